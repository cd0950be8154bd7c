"""Opens the images that requests name: paths, data URLs, and content by its hash.

A reference is a path, a data URL, `sha256:` and the hash of a file's bytes, or `blob:` and a name that the
store gave. A server allows no paths, or those below some folders only.
"""

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from limner.errors import InvalidRequest
from limner.files import StampCache, whole_file

from .opening import image_source, shortened

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB = re.compile(r"blob:([A-Za-z0-9_-]{1,128})")
_MAX_FILES = 10_000  # that are searched in a folder


@dataclass(frozen=True)
class Assets:
    """Opens the images that requests name.

    Attributes:
        store: Folder of content by its hash, which `put` writes. None: there is none.
        folders: Folders, with those in them, in which content is looked for by its hash.
        allow_paths: Whether a reference may be a path.
        roots: Folders that paths must be in; none allows all.
    """

    store: Path | None = None
    folders: tuple[Path, ...] = ()
    allow_paths: bool = True
    roots: tuple[Path, ...] = ()
    _bytes: StampCache[str] = field(
        default_factory=lambda: StampCache(_hash_of_bytes, _MAX_FILES), repr=False, compare=False
    )
    _pixels: StampCache[str | None] = field(
        default_factory=lambda: StampCache(_hash_of_pixels, _MAX_FILES), repr=False, compare=False
    )

    def put(self, data: bytes) -> str:
        """Store the bytes of a file, and return their `sha256:` reference.

        Raises:
            OutputError: the store cannot be written.
            ValueError: there is no store.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._write(self._stored(digest), data)
        return f"sha256:{digest}"

    def put_blob(self, data: bytes) -> str:
        """Store bytes under a new `blob:` reference that nobody can guess. Raises as `put`."""
        name = secrets.token_urlsafe(24)
        self._write(self._blob(name), data)
        return f"blob:{name}"

    def discard(self, digest: str) -> None:
        """Delete stored content by its hash; no effect where there is none."""
        self._stored(digest).unlink(missing_ok=True)

    def locate(self, reference: str, name: str = "image") -> str:
        """The path of a file or the data URL that a reference stands for.

        Args:
            name: Field of the request that has it, for errors.

        Raises:
            InvalidRequest: it is not known, or not allowed.
        """
        if reference.startswith("data:"):
            return reference
        if match := _SHA256.fullmatch(reference):
            path = self.find(match[1])
            if path is None:
                raise InvalidRequest(
                    f"{name} is {reference[:19]}…, and no file with this content is known",
                    hint=f"give `{name}` itself, or the folder that holds it as `assets_dirs`",
                    fields=(name,),
                )
            return str(path)
        if match := _BLOB.fullmatch(reference):
            path = None if self.store is None else self._blob(match[1])
            if path is None or not path.is_file():
                raise InvalidRequest(
                    f"{name} is {shortened(reference)}, which is not known",
                    hint="upload it again",
                    fields=(name,),
                )
            return str(path)
        if reference.startswith(("sha256:", "blob:")):
            raise InvalidRequest(
                f"{name} is {shortened(reference)}; expected sha256: and 64 hexadecimal digits, or blob: and "
                "a name",
                fields=(name,),
            )
        self._check_path(reference, name)
        return reference

    def open(self, reference: str) -> BinaryIO:
        """The file that a path, `sha256:` or `blob:` stands for. Raises as `locate`."""
        try:
            return Path(os.path.expanduser(self.locate(reference))).open("rb")
        except OSError as error:
            raise InvalidRequest(f"{shortened(reference)} cannot be opened: {error.strerror}") from None

    def read(self, reference: str, name: str = "image") -> bytes:
        """The bytes of the file that a reference stands for. Arguments and errors as of `locate`.

        Raises:
            InvalidRequest: also where the file cannot be read.
        """
        located = self.locate(reference, name)
        if located.startswith("data:"):
            return _data_of(located)
        try:
            return Path(os.path.expanduser(located)).read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"{shortened(reference)} cannot be opened: {error.strerror}", fields=(name,)
            ) from None

    def find(self, digest: str) -> Path | None:
        """A file whose bytes have this SHA-256, or whose pixels written by `image_source` have it."""
        if self.store is not None and (stored := self._stored(digest)).is_file():
            return stored
        for hashes in (self._bytes, self._pixels):  # the second decodes each image
            for path in self._files():
                with suppress(OSError):
                    if hashes.get(path) == digest:
                        return path
        return None

    def reference(self, source: str) -> str:
        """What a record holds for a source that was located: a path as it is, all else by its `sha256:`."""
        if source.startswith("data:"):
            return f"sha256:{hashlib.sha256(_data_of(source)).hexdigest()}"
        if self.store is not None and Path(source).is_relative_to(self.store):
            path = Path(source)
            return f"sha256:{path.name if path == self._stored(path.name) else self.digest(source)}"
        return source

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file's bytes; None if it cannot be read."""
        try:
            return self._bytes.get(Path(os.path.expanduser(path)))
        except OSError:
            return None

    def _check_path(self, path: str, name: str) -> None:
        if not self.allow_paths:
            raise InvalidRequest(
                f"{name} is a path, {shortened(path)}, and paths are not opened here",
                hint="give a data URL, or upload the image",
                fields=(name,),
            )
        if self.roots:
            real = Path(os.path.expanduser(path)).resolve()
            if not any(real.is_relative_to(root.resolve()) for root in self.roots):
                raise InvalidRequest(
                    f"{name} is {shortened(path)}, outside of the folders that are opened here",
                    hint=f"these are {', '.join(map(str, self.roots))}",
                    fields=(name,),
                )

    def _files(self) -> Iterator[Path]:
        """Image files in the folders that are searched."""
        suffixes = Image.registered_extensions().keys()
        for folder in self.folders:
            for number, path in enumerate(sorted(folder.rglob("*"))):
                if number >= _MAX_FILES:
                    break
                if path.suffix.lower() in suffixes and path.is_file():
                    yield path

    def _stored(self, digest: str) -> Path:
        return self._store() / digest[:2] / digest

    def _blob(self, name: str) -> Path:
        return self._store() / "blobs" / name

    def _store(self) -> Path:
        if self.store is None:
            raise ValueError("these assets have no store")
        return self.store

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(data)


def _hash_of_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_pixels(path: Path) -> str | None:
    """SHA-256 of an image's pixels as `image_source` writes them; None for no image, or a broken one."""
    try:
        with Image.open(path) as image:
            image.load()
            return hashlib.sha256(_data_of(image_source(image))).hexdigest()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _data_of(url: str) -> bytes:
    """The bytes of a data URL."""
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error:
        return url.encode()
