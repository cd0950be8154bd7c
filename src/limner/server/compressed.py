"""Answers that are made once and sent often: kept in memory with their entity tag, compressed by gzip."""

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from starlette.requests import Request
from starlette.responses import Response

from .ranges import conditional

GZIP_LEVEL = 5
"""Level for bodies that are made while somebody waits: a third of the time of 9 for 2 % more bytes."""

_SMALLEST = 512  # bytes below which compression is not worth its headers
_TEXT = re.compile(r"text/|image/svg|application/(json|javascript|manifest\+json|wasm)")


@dataclass(frozen=True)
class CompressedBody:
    """A body as it is sent.

    Attributes:
        data: Its bytes.
        compressed: The same by gzip; None where that is not worth it.
        media_type: Value of Content-Type.
        tag: Entity tag, in its quotes: a strong one of `data`, or a weak one, `W/"…"`, of both forms.
    """

    data: bytes
    compressed: bytes | None
    media_type: str
    tag: str

    @classmethod
    def of(cls, data: bytes, media_type: str, *, level: int = 9, tag: str | None = None) -> Self:
        """The body of these bytes.

        Args:
            level: Of the compression, 1 to 9.
            tag: Its entity tag, in its quotes; None: a strong one, made of its hash.
        """
        compressed = None
        if len(data) >= _SMALLEST and _TEXT.match(media_type):
            compressed = gzip.compress(data, level, mtime=0)
        return cls(data, compressed, media_type, tag or f'"{hashlib.sha256(data).hexdigest()[:32]}"')

    def respond(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The answer to a request: compressed where the client takes that, 304 where it has the body."""
        own = {**headers, "content-type": self.media_type}
        body, tag = self.data, self.tag
        if self.compressed is not None:
            own["vary"] = "Accept-Encoding"
            if takes_gzip(request.headers.get("accept-encoding", "")):
                body = self.compressed
                own["content-encoding"] = "gzip"
                if not tag.startswith("W/"):
                    tag = f'{tag[:-1]}-gzip"'
        own["etag"] = tag
        return conditional(request, tag, own) or Response(body, headers=own)


def takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding allows gzip (RFC 9110, section 12.5.3)."""
    weights: dict[str, float] = {}
    for one in header.lower().split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0
