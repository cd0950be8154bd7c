"""How images are encoded for callers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """How an image is sent.

    Attributes:
        format: "png", "jpeg" or "webp".
        quality: Of JPEG and WebP, from 0 to 100; None: the encoder's default.
        lossless: WebP without loss.
        with_record: Whether it carries how it was made.
    """

    format: str = "png"
    quality: int | None = None
    lossless: bool = False
    with_record: bool = True

    @property
    def is_delivered(self) -> bool:
        """Whether this is how what is delivered is stored."""
        return self.format == "png" and self.with_record

    @property
    def params(self) -> dict[str, object]:
        """Pillow's parameters."""
        if self.format == "png":
            return {}
        params: dict[str, object] = {} if self.quality is None else {"quality": self.quality}
        if self.format == "webp":
            params["lossless"] = self.lossless
        return params


AS_STORED = Encoding()
