"""Conditional and range requests (RFC 9110, sections 13 and 14) for bytes that never change."""

import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from .problems import Refused

IMMUTABLE = "private, max-age=31536000, immutable"
"""Cache-Control of content whose id or hash never refers to other content."""

REVALIDATED = "private, no-cache"
"""Cache-Control of content that may be replaced."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def conditional(request: Request, tag: str, headers: Mapping[str, str]) -> Response | None:
    """304 where the client has these bytes already; else None.

    Args:
        tag: Entity tag, in its quotes; a weak one begins with `W/`.
    """
    given = request.headers.get("if-none-match")
    if given is None:
        return None
    tags = {one.strip().removeprefix("W/") for one in given.split(",")}
    if tag.removeprefix("W/") not in tags and "*" not in tags:
        return None
    return Response(status_code=304, headers=dict(headers))


async def answered(
    request: Request,
    read: Callable[[], Awaitable[bytes]],
    media_type: str,
    tag: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The bytes, or the one range of them that was asked for; 304 where the client has them already.

    Args:
        read: Returns the bytes. It is not called for a 304.
        tag: Entity tag, in its quotes. Unless it is weak, it never refers to other bytes.
        headers: Headers besides `etag`; a `cache-control` takes the place of `IMMUTABLE`.

    Raises:
        Refused: 416 for a range outside of the bytes.
    """
    own = {"etag": tag, "cache-control": IMMUTABLE, **(headers or {})}
    if (known := conditional(request, tag, own)) is not None:
        return known
    return _ranged(request, await read(), media_type, tag, own)


def _ranged(request: Request, data: bytes, media_type: str, tag: str, headers: Mapping[str, str]) -> Response:
    """The bytes, or one range of them. Several ranges are answered with all bytes, and so is any range where
    the tag is weak: the bytes may be others than those that the client has a part of."""
    if tag.startswith("W/"):
        return Response(data, media_type=media_type, headers=dict(headers))
    own = {**headers, "accept-ranges": "bytes"}
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or not any(match.groups()) or request.headers.get("if-range", tag) != tag:
        return Response(data, media_type=media_type, headers=own)
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
        if last and int(last) < int(first):
            return Response(data, media_type=media_type, headers=own)
    else:
        start, end = max(0, len(data) - int(last)), len(data) - 1
    if start > end:
        raise Refused(
            416,
            f"the range begins at {start}; there are {len(data)} bytes",
            headers={"content-range": f"bytes */{len(data)}"},
        )
    own["content-range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, media_type=media_type, headers=own)
