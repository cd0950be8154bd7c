"""Downloads of large files over HTTP: resumed after an interruption, and checked by size and SHA-256."""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from limner import __version__
from limner.errors import InvalidCheckpoint, ModelNotFound, OutputError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and those of the whole file, where that is known."""

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # in a row that bring nothing
_FIRST_WAIT = 0.5  # seconds before the second attempt; each further one waits twice as long
_SPARE = 64 << 20  # bytes that stay free on the disk


class HttpError(Exception):
    """An answer with an error status.

    Attributes:
        status: The status.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status} {reason}".strip())
        self.status = status


def get(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """The answer to a GET request, opened. A redirect to another host does not get the Authorization header.

    Raises:
        HttpError: The status is no success.
        OSError: The server cannot be reached.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"limner/{__version__}", **(headers or {})})
    try:
        return urllib.request.build_opener(_Redirects()).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise HttpError(error.code, error.reason) from None


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress = lambda _done, _whole: None,
) -> None:
    """Download a file. What an earlier, interrupted call has left in `target` with ".part" is resumed.

    Args:
        sha256: Hash that the file must have, in hex.
        size: Bytes that it must have.

    Raises:
        HttpError: The server refuses.
        ModelNotFound: The connection breaks again and again; what has come is kept.
        InvalidCheckpoint: The file is not the one that was expected; it is deleted.
        OutputError: It cannot be written, or the disk has no room for it.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _fetch(url, part, size, headers or {}, progress)
        if (fault := _fault(part, sha256, size)) is not None and resumed:
            part.unlink()  # what was resumed was of another version of the file
            _fetch(url, part, size, headers or {}, progress)
            fault = _fault(part, sha256, size)
        if fault is not None:
            part.unlink()
            raise InvalidCheckpoint(
                f"{target.name} was downloaded, but {fault}",
                hint="try again; if it happens again, the file at the source is not what it is said to be",
            )
        part.replace(target)
    except OSError as error:
        raise OutputError(f"{part} cannot be written: {error.strerror or error}") from error


def _fetch(url: str, part: Path, size: int | None, headers: Mapping[str, str], progress: Progress) -> None:
    """Append to a file what it lacks, with new connections where one breaks."""
    attempts, wait = 0, _FIRST_WAIT
    while True:
        before = part.stat().st_size if part.exists() else 0
        if size is not None and before == size:
            return
        try:
            if _fetch_once(url, part, size, headers, progress):
                return
            reason = "the connection ended early"
        except _Broken as error:
            reason = str(error)
        gained = part.exists() and part.stat().st_size > before
        attempts, wait = (0, _FIRST_WAIT) if gained else (attempts + 1, wait)
        if attempts >= _ATTEMPTS:
            raise ModelNotFound(
                f"the download of {part.stem} was interrupted: {reason}",
                hint="run the command again: it goes on where it stopped",
            )
        time.sleep(wait)
        wait *= 2


class _Broken(Exception):
    """A connection that broke."""


def _fetch_once(
    url: str, part: Path, size: int | None, headers: Mapping[str, str], progress: Progress
) -> bool:
    """Make one request for what is missing. Returns whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    ranged = {"Range": f"bytes={have}-"} if have else {}
    try:
        answer = get(url, {**headers, **ranged, "Accept-Encoding": "identity"})
    except HttpError as error:
        if error.status == 416 and have:  # there is nothing behind what is there, or it is another file
            part.unlink()
            return False
        if error.status in (408, 429) or error.status >= 500:
            raise _Broken(str(error)) from None
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error)) from error
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise HttpError(401, "a page was sent instead of a file, as for who is not logged in")
        if have and not (answer.status == 206 and _starts_at(answer, have)):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length is not None and length.isdigit() else size
        if whole is not None and shutil.disk_usage(part.parent).free < whole - have + _SPARE:
            raise OutputError(
                f"{part.parent} has no room for {part.stem}: {(whole - have) / 1e9:.1f} GB are needed",
                hint="free some space, or choose another folder",
            )
        with part.open("ab" if have else "wb") as file:
            done = _copy(answer, file, have, whole, progress)
        return whole is None or done >= whole


def _copy(source: Any, file: IO[bytes], done: int, whole: int | None, progress: Progress) -> int:
    while True:
        try:
            chunk = source.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(error) or type(error).__name__) from error
        if not chunk:
            return done
        file.write(chunk)
        done += len(chunk)
        progress(done, whole)


def _starts_at(answer: Any, have: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _fault(path: Path, sha256: str | None, size: int | None) -> str | None:
    """What is wrong with a file; None where it is as it should be."""
    if size is not None and (actual := path.stat().st_size) != size:
        return f"it has {actual:,} bytes; expected {size:,}"
    if sha256 is not None:
        with path.open("rb") as file:
            actual_hash = hashlib.file_digest(file, "sha256").hexdigest()
        if actual_hash != sha256.lower():
            return f"its SHA-256 is {actual_hash}; expected {sha256.lower()}"
    return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, without the key of one host for another, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise HttpError(code, f"redirects from https to {new.scheme}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request
