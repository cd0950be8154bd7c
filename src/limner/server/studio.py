"""The studio's files, served from memory: `index.html` at `/`, what it loads under `/assets/DIGEST/`.

The bundle's names have no hashes. The digest in the address is over the whole bundle and is written into
`index.html` when the server starts, so that the files of an address never change and a page never mixes those
of two versions: a page of an older version gets 404 for what it has not loaded yet, and has to be reloaded.

Layout of a bundle:

    index.html           refers to ./assets/NAME
    assets/NAME          loaded by the page; they refer to each other by relative addresses
    NAME.EXTENSION       icons and the manifest, at /NAME.EXTENSION
    SOURCES.sha256       what the bundle was built from; not served
"""

import hashlib
import logging
import mimetypes
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from fastapi import APIRouter, Request
from starlette.responses import Response

from .compressed import CompressedBody
from .problems import Refused

_LOG = logging.getLogger("limner.server")

PAGE, SOURCES, ASSETS = "index.html", "SOURCES.sha256", "assets"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_REFERENCE = re.compile(r'((?:src|href)=")(?:\./|/)?assets/')
_STYLE = re.compile(r"<style\b[^>]*>(.*?)</style>", re.DOTALL)
_DIGITS = 16  # of the digest in addresses
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""Media types that do not depend on the machine's tables."""

_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"

_ABSENT = """\
<!doctype html>
<html lang="en">
<title>Limner: the studio is not installed</title>
<meta name="viewport" content="width=device-width">
<h1>The studio is not installed</h1>
<p>This copy of Limner has no built studio in its package. A wheel of a release has it; in a clone,
<code>npm ci &amp;&amp; npm run build</code> in <code>web/</code> builds it.</p>
<p>The API is there all the same: <a href="/api/v1/openapi.json">its description</a>.</p>
</html>
"""


class StudioBundle:
    """A built studio, in memory.

    Attributes:
        digest: Digest of all files, as in the addresses of assets.
        page: The page, whose references to assets have the digest.
        assets: What the page loads, by name.
        others: Icons and the manifest, by name.
        policy: The page's content security policy. It allows the inline styles of the page by their hashes,
            and no inline script.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Take over the files of a bundle: path in it, with slashes -> bytes. `index.html` is one of them."""
        served = {name: data for name, data in sorted(files.items()) if name != SOURCES}
        whole = hashlib.sha256()
        for name, data in served.items():
            whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
        self.digest = whole.hexdigest()[:_DIGITS]
        page = _REFERENCE.sub(rf"\1/{ASSETS}/{self.digest}/", served.pop(PAGE).decode())
        self.page = _file(PAGE, page.encode())
        self.policy = _policy(page)
        within = f"{ASSETS}/"
        made = {name: _file(name, data) for name, data in served.items()}
        self.assets = {
            name.removeprefix(within): file for name, file in made.items() if name.startswith(within)
        }
        self.others = {name: file for name, file in made.items() if _NAME.fullmatch(name)}

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The bundle in a folder; None, and a warning in the log, where there is none."""
        if not (folder / PAGE).is_file():
            _LOG.warning("the studio is not served: it has not been built into this package")
            return None
        paths = (path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


def studio_router(bundle: StudioBundle | None) -> APIRouter:
    """Routes of the studio; None: a page says that it is not installed."""
    router = APIRouter(include_in_schema=False)

    async def page(request: Request) -> Response:
        if bundle is None:
            return Response(_ABSENT, 404, media_type="text/html; charset=utf-8")
        headers = {"cache-control": _ASK_AGAIN, "content-security-policy": bundle.policy}
        return bundle.page.respond(request, headers)

    async def asset(request: Request, digest: str, name: str) -> Response:
        file = bundle.assets.get(name) if bundle is not None and digest == bundle.digest else None
        if file is None:
            raise Refused(
                404,
                "the studio of this server has no such file",
                hint="the page is of another version: load it again",
            )
        return file.respond(request, {"cache-control": _FOR_EVER})

    async def other(request: Request) -> Response:
        assert bundle is not None
        file = bundle.others[request.url.path.removeprefix("/")]
        return file.respond(request, {"cache-control": _ASK_AGAIN})

    methods = ["GET", "HEAD"]
    router.add_api_route("/", page, methods=methods, response_model=None)
    router.add_api_route(f"/{ASSETS}/{{digest}}/{{name:path}}", asset, methods=methods, response_model=None)
    # Each has a path of its own: other paths at the root belong to other APIs.
    for name in () if bundle is None else bundle.others:
        router.add_api_route(f"/{name}", other, methods=methods, response_model=None)
    return router


def _policy(page: str) -> str:
    """The content security policy of a page. It names what the page may load and from where."""
    hashes = (b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in _STYLE.findall(page))
    styles = "".join(f" 'sha256-{one}'" for one in hashes)
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src 'self'{styles}",
            "img-src 'self' blob: data:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _file(name: str, data: bytes) -> CompressedBody:
    """A file of the bundle by its name and bytes."""
    suffix = Path(name).suffix.lower()
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return CompressedBody.of(data, media_type)
