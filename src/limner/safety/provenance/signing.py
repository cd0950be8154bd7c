"""Encodes images and signs them, with a time stamp where an authority gives one."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from limner.errors import OutputError
from limner.images.picture import Encode, Picture, encode
from limner.images.record import Record

from .ingredients import Ingredient
from .keys import Signer
from .manifests import sign, source_type_of
from .xmp import COMPOSITE, GENERATED, iptc_packet

UNSTAMPED = "the image is signed without a time stamp: the time-stamp authority did not answer"
_PAUSE = 60.0  # seconds without asking an authority that did not answer, for which the library waits 30 s


@dataclass(frozen=True)
class SignedFile:
    """A signed image file.

    Attributes:
        data: Its bytes.
        warnings: Warnings that its record has besides those of the image: `UNSTAMPED`, or none.
    """

    data: bytes
    warnings: tuple[str, ...] = ()


class Signing:
    """Encodes images and signs them, with IPTC's fields in XMP. Safe to use from any thread.

    Where the signer's time-stamp authority does not answer, the image is signed without a time stamp, its
    record has a warning, and the authority is not asked again for a minute.

    Args:
        signer: What images are signed with.
        anchors: Certificates in PEM of those who vouch for the signers of input images.
        with_prompt: Whether manifests say the prompt. The record in a file has it in any case.
    """

    def __init__(self, signer: Signer, anchors: bytes = b"", *, with_prompt: bool = False) -> None:
        self._signer, self._anchors, self._with_prompt = signer, anchors, with_prompt
        self._unstamped = replace(signer, timestamp_url=None)
        self._lock = threading.Lock()  # of what follows
        self._ask_from = float("-inf")  # time.monotonic

    def encode(
        self, image: Image.Image, format: str, ingredients: Sequence[Ingredient] = (), **params: object
    ) -> SignedFile:
        """The signed file of an image. A `Picture` keeps its record, which says its watermark and its prompt.

        Args:
            format: As of `limner.images.picture.encode`.
            ingredients: The images that it was made from.
            **params: For Pillow, as of `limner.images.picture.encode`.

        Raises:
            InvalidRequest, OutputError: As `sign` and `limner.images.picture.encode`.
        """
        record = image.record if isinstance(image, Picture) else None
        return self._signed(image, format, record, ingredients, None, params)

    def convert(
        self, image: Image.Image, format: str, original: bytes, record: Record, **params: object
    ) -> bytes:
        """The signed file of an image that is there in another format, whose manifest it keeps.

        Args:
            image: The image. Without a record, its file has none.
            format, params: As of `encode`.
            original: The signed file.
            record: Its record.

        Raises:
            InvalidRequest, OutputError: As `encode`.
        """
        parent = Ingredient(original, "parentOf", "image in another format")
        source = GENERATED if record.request.image is None else COMPOSITE
        return self._signed(image, format, record, [parent], source, params).data

    def _signed(
        self,
        image: Image.Image,
        format: str,
        record: Record | None,
        ingredients: Sequence[Ingredient],
        converted_as: str | None,
        params: dict[str, object],
    ) -> SignedFile:
        xmp = iptc_packet(converted_as or source_type_of(ingredients)).encode()

        def signed(signer: Signer, image: Image.Image) -> bytes:
            return sign(
                encode(image, format, xmp=xmp, **params),
                signer,
                ingredients=ingredients,
                watermark=None if record is None else record.watermark,
                prompt=record.request.prompt if self._with_prompt and record is not None else "",
                anchors=self._anchors,
                converted_as=converted_as,
            )

        if self._signer.timestamp_url is None:
            return SignedFile(signed(self._signer, image))
        with self._lock:
            asks = time.monotonic() >= self._ask_from
        if asks:
            try:
                return SignedFile(signed(self._signer, image))
            except OutputError:  # of the authority, if the image can be signed without it
                pass
        file = SignedFile(signed(self._unstamped, _with_warning(image)), (UNSTAMPED,))
        if asks:
            with self._lock:
                self._ask_from = time.monotonic() + _PAUSE
        return file


def signed_encoding(
    signer: Signer,
    *,
    ingredients: Sequence[Ingredient] = (),
    anchors: bytes = b"",
    with_prompt: bool = False,
) -> Encode:
    """A function like `limner.images.picture.encode` that signs what it encodes, as `Signing` does."""
    signing = Signing(signer, anchors, with_prompt=with_prompt)

    def encoded(image: Image.Image, format: str) -> bytes:
        return signing.encode(image, format, ingredients).data

    return encoded


def _with_warning(image: Image.Image) -> Image.Image:
    """The image with a record that says that it is unstamped; the image itself where it has no record."""
    if not isinstance(image, Picture):
        return image
    warnings = tuple(dict.fromkeys((*image.record.warnings, UNSTAMPED)))
    return Picture(image, image.record.model_copy(update={"warnings": warnings}))
