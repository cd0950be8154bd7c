"""What leaves of the image store: the only reader of stored images for callers.

Masters keep the exact pixels. What is delivered has the watermark, whose id the ledger resolves to the image,
and is signed last where the service signs. A worker makes it as a PNG beside the master, and its hash is in
the ledger; where the file is lost, it is made again. Other formats are made of that PNG, and signed again.
Thumbnails, steps and previews are not signed. Everything here runs without torch.
"""

import hashlib
import io
import logging
from typing import Any, Literal

from PIL import Image

from limner.errors import NotFound
from limner.images.picture import Picture, encode
from limner.images.record import Record
from limner.safety.images import blurred
from limner.safety.marking import marked
from limner.safety.provenance import has_manifest
from limner.safety.watermark import DEFAULT_KEY, TILE, FoundMark, embed, find_mark, known_keys
from limner.settings import watermark_key_in
from limner.settings.serve import ServeSettings

from .encoding import AS_STORED, Encoding
from .jobs import ImageFile, StoredImage
from .ledger.ledger import Ledger
from .reviews import DeliveredFile
from .signing import DeliverySigning
from .storage import ImageStore

_LOG = logging.getLogger("limner.service")

THUMBNAIL_SIDE = 384
COMPRESSION = 4  # of PNG: half the time of Pillow's 6 for 2 % more bytes


def watermark_key(settings: ServeSettings) -> bytes:
    """The key of the service's watermarks: of the settings, else of `watermark.key` in the data folder, else
    the published one.

    Raises:
        InvalidRequest: It is too short, or cannot be read.
    """
    if settings.watermark_key is not None:
        return settings.watermark_key.get_secret_value().encode()
    own = watermark_key_in(settings.data)
    return DEFAULT_KEY if own is None else own.encode()


def with_watermark(picture: Picture, key: bytes) -> Picture:
    """An image as it is delivered, with a record that names the mark; the image itself where it is too small
    for one."""
    return marked(picture, key) if min(picture.size) >= TILE else picture


def encoded_thumbnail(image: Image.Image, mode: Literal["RGB", "RGBA"]) -> bytes:
    """An image at most `THUMBNAIL_SIDE` pixels a side, as a WebP. The image itself is made smaller."""
    return _webp(_small(image, mode))


def converted(file: bytes, how: Encoding, signing: DeliverySigning | None = None) -> bytes:
    """A delivered PNG as it is to be sent: the file itself, or its pixels in another file.

    Args:
        signing: Signs the other file, if the PNG is signed.
    """
    if how.is_delivered:
        return file
    with Image.open(io.BytesIO(file), formats=("PNG",)) as opened:
        opened.load()  # PNG text may follow the pixels
        text = opened.info.get("limner")
        image: Image.Image = opened.convert("RGB") if how.format == "jpeg" else opened.copy()
    image.info = {}
    if not isinstance(text, str):
        return encode(image, how.format, **how.params)
    record = Record.model_validate_json(text)
    if how.with_record:
        image = Picture(image, record)
    if signing is None or not has_manifest(file):
        return encode(image, how.format, **how.params)
    return signing.converted(image, how.format, file, record, **how.params)


class ImageRelease:
    """Images as they leave the service. Safe to use from any thread.

    Args:
        store: Where they are.
        ledger: Where their records are.
        key: Key of the watermarks.
        signing: Signs what is delivered; None: nothing does.
    """

    def __init__(
        self, store: ImageStore, ledger: Ledger, key: bytes, signing: DeliverySigning | None = None
    ) -> None:
        self._store, self._ledger, self._key, self._signing = store, ledger, key, signing

    @property
    def signs(self) -> bool:
        """Whether files are signed, so that those of other formats than PNG differ each time."""
        return self._signing is not None

    def file(self, image: ImageFile | StoredImage, how: Encoding = AS_STORED) -> bytes:
        """The file of an image, as callers get it; by default a PNG with its record.

        Raises:
            NotFound: It is gone.
            StorageError: The store cannot be read.
            OutputError: It cannot be signed.
        """
        return converted(self._stored(image), how, self._signing)

    def thumbnail(self, image: ImageFile | StoredImage) -> bytes:
        """A small WebP of an image, made at the first call and kept, with the watermark if that fits. Raises
        as `file`."""
        if (kept := self._store.get_thumbnail(image.key, blurred=image.blurred)) is not None:
            return kept
        with Image.open(io.BytesIO(self.file(image)), formats=("PNG",)) as opened:
            mode: Literal["RGB", "RGBA"] = "RGBA" if "A" in opened.getbands() else "RGB"
            large = max(opened.size) > THUMBNAIL_SIDE
            small = _small(opened, mode)
        if large and image.watermark is not None and min(small.size) >= TILE:  # the mark is scaled, and weak
            small = embed(small, int(image.watermark, 16), self._key)
        data = _webp(small)
        self._store.put_thumbnail(image.key, data, blurred=image.blurred)
        try:
            self._ledger.find_image(image.id)
        except NotFound:
            if not self._ledger.known_keys([image.key]):  # deleted meanwhile: no thumbnail may be left over
                self._store.delete([image.key])
            raise  # or taken down
        return data

    def steps_layout(self, image: ImageFile) -> dict[str, Any] | None:
        """Where each step of an image is in its sprite; None if no steps are stored."""
        return self._store.get_strip_layout(image.key)

    def steps_sprite(self, image: ImageFile) -> bytes:
        """A WebP with the small previews of an image's steps. Raises as `file`."""
        return self._store.get_strip(image.key)

    def exact(self, image: ImageFile | StoredImage, *, actor: str) -> bytes:
        """The master with the exact pixels, without a watermark, for operators. It is entered into the audit
        log. Raises as `file`.

        Args:
            actor: The operator.
        """
        data = self._store.get(image.key)
        self._ledger.audit(actor, "image.exact", image.id)
        return data

    def opened(self, image: StoredImage, *, actor: str, review: str) -> bytes:
        """The master of an image under review, delivered or withheld, for operators. It is entered into the
        audit log before it is returned. Raises as `file`.

        Args:
            actor: Who opens it.
            review: Id of the review.
        """
        data = self._store.get(image.key)
        self._ledger.audit(actor, "image.opened", image.id, review=review, account=image.account_id)
        return data

    def covered(self, image: StoredImage) -> bytes:
        """An image under review as a blurred PNG without its record. Raises as `file`."""
        with Image.open(io.BytesIO(self._store.get(image.key)), formats=("PNG",)) as opened:
            return encode(blurred(opened), "png")

    def make_delivered(self, image: StoredImage) -> DeliveredFile:
        """Store the file that is delivered of an image, blurred or in clear as it says. Callers get it once
        the ledger says so. Raises as `file`."""
        if image.watermark is None and not image.blurred and not self.signs:
            return DeliveredFile(None, 0)
        data = self._made(image)
        return DeliveredFile(hashlib.sha256(data).hexdigest(), len(data))

    def inside(self, image: ImageFile | StoredImage) -> bytes:
        """The master, for the service's own networks. It must not be sent to a caller. Raises as `file`."""
        return self._store.get(image.key)

    def unstored(self, picture: Picture, how: Encoding, *, marks: bool) -> tuple[bytes, Record]:
        """The file of an image that is delivered and not stored, as one that was interrupted, and its record.

        Args:
            marks: Whether it gets a watermark. The ledger does not know its id.

        Raises:
            LimnerError: It cannot be signed.
        """
        if marks:
            picture = with_watermark(picture, self._key)
        if self._signing is None:
            file = encode(picture, "png", compress_level=1)
        else:
            file = self._signing.drawn(picture, picture.record.request, compress_level=1).data
        return converted(file, how, self._signing), picture.record

    def find_mark(self, image: Image.Image, *, search_scales: bool = False) -> FoundMark | None:
        """The watermark of an image, made with the service's key or the published one; None if none is found.

        Raises:
            InvalidRequest: The image is too small.
        """
        return find_mark(image, known_keys(self._key), search_scales=search_scales)

    def _stored(self, image: ImageFile | StoredImage) -> bytes:
        """The delivered PNG of an image. One that is lost is made again; where it is signed, its hash is
        another one than before, and the ledger learns it."""
        if image.delivered_sha256 is None:
            return self._store.get(image.key)
        try:
            return self._store.get_delivered(image.key, blurred=image.blurred)
        except NotFound:
            known = self._ledger.get_image(image.id)
            data = self._made(known)
            if (digest := hashlib.sha256(data).hexdigest()) != known.delivered_sha256:
                self._ledger.replace_delivered(image.id, digest, len(data))
            _LOG.warning("a lost file was made again", extra={"fields": {"image": image.id}})
            return data

    def _made(self, image: StoredImage) -> bytes:
        """The delivered file of an image, made of its master and its record, signed, and stored."""
        record = Record.model_validate(image.record)
        with Image.open(io.BytesIO(self._store.get(image.key)), formats=("PNG",)) as opened:
            pixels = blurred(opened) if image.blurred else opened.copy()
        pixels.info = {}
        if record.watermark is not None:
            pixels = embed(pixels, int(record.watermark.id, 16), self._key)
        picture = Picture(pixels, record)
        if self._signing is None:
            data = encode(picture, "png", compress_level=COMPRESSION)
        else:
            data = self._signing.drawn(picture, record.request, compress_level=COMPRESSION).data
        self._store.put_delivered(image.key, data, blurred=image.blurred, lasting=self.signs)
        return data


def _small(image: Image.Image, mode: Literal["RGB", "RGBA"]) -> Image.Image:
    """An image at most `THUMBNAIL_SIDE` pixels a side. The image itself is made smaller."""
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return image.convert(mode)


def _webp(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=80, method=4)
    return encoded.getvalue()
