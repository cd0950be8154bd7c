"""Signs what the service delivers: C2PA manifests, last of all. See `limner.safety.provenance`. No torch."""

from typing import Self

from PIL import Image

from limner.images.assets import Assets
from limner.images.picture import Picture
from limner.images.record import Record
from limner.request import GenerationRequest
from limner.safety.provenance import SignedFile, Signing, ingredients_of, load_anchors, load_signer
from limner.settings import DEVELOPMENT_KEYS
from limner.settings.serve import ServeSettings


class DeliverySigning:
    """Signs images for delivery. Safe to use from any thread.

    Args:
        signing: How they are signed.
        assets: The uploads, of which input images become ingredients.
    """

    def __init__(self, signing: Signing, assets: Assets) -> None:
        self._signing, self._assets = signing, assets

    @classmethod
    def of(cls, settings: ServeSettings) -> Self | None:
        """As the settings say; None where nothing is signed. Makes a development CA in `data` on first use.

        Raises:
            InvalidRequest: The keys cannot be used, or limner[provenance] is not installed.
            OutputError: The development CA cannot be made.
        """
        if not settings.sign:
            return None
        keys = settings.data / DEVELOPMENT_KEYS
        signer = load_signer(settings.signing_certificate, settings.signing_key, settings.timestamp_url, keys)
        anchors = load_anchors(settings.trust_anchors, keys)
        assets = Assets(store=settings.data / "uploads", allow_paths=False)
        return cls(Signing(signer, anchors, with_prompt=settings.sign_prompt), assets)

    def drawn(self, picture: Picture, request: GenerationRequest, **params: object) -> SignedFile:
        """The signed PNG of an image that was drawn.

        Args:
            request: Its request, with the references of its input images. Those that were deleted are named
                in the manifest without their own.
            **params: For Pillow.

        Raises:
            OutputError: It cannot be signed.
        """
        ingredients = ingredients_of(request, self._assets, gone=True)
        return self._signing.encode(picture, "png", ingredients, **params)

    def converted(
        self, image: Image.Image, format: str, original: bytes, record: Record, **params: object
    ) -> bytes:
        """The signed file of an image that is there as a signed PNG. Arguments and errors as of
        `Signing.convert`."""
        return self._signing.convert(image, format, original, record, **params)
