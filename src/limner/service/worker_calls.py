"""Calls of the API process to workers, for work that needs networks or much time.

    result, parts = await hub.call("preprocess", {"preprocessor": "canny"}, [image])

`CALLS` needs no networks. `UNFINISHED` is answered by the worker that runs the job.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from limner.errors import InvalidRequest
from limner.images.opening import eight_bit, normalised
from limner.images.preprocess import preprocessed

Handler = Callable[[Mapping[str, Any], Sequence[bytes]], tuple[dict[str, Any], list[bytes]]]
"""Answers a call: parameters and binary data -> result and binary data. Raises LimnerError."""

UNFINISHED = "unfinished"
"""Call for the image of a running job as far as it is: {"job": id, "seconds"} -> {"step", "steps", "decoded"}
and a PNG. It is a preview where it cannot be decoded in so many seconds."""

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")


def preprocess(params: Mapping[str, Any], parts: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Control images of images, as PNG.

    Args:
        params: "preprocessor", as `Control.preprocessor`; and, to scale the images before, "width" and
            "height", or "shorter" for the length of the shorter side.
        parts: Image files.

    Raises:
        InvalidRequest: An unknown preprocessor or option, or a part that is no image.
    """
    made = []
    for part in parts:
        image = preprocessed(_scaled(image_of(part), params), str(params["preprocessor"]))
        made.append(png(image))
    return {}, made


def _scaled(image: Image.Image, params: Mapping[str, Any]) -> Image.Image:
    size = image.size
    if params.get("width") and params.get("height"):
        size = int(params["width"]), int(params["height"])
    elif params.get("shorter"):
        scale = int(params["shorter"]) / min(size)
        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def image_of(part: bytes) -> Image.Image:
    """The image in a file. Raises InvalidRequest where there is none."""
    try:
        with Image.open(io.BytesIO(part), formats=_FORMATS) as opened:
            opened.load()
            return eight_bit(normalised(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"the image cannot be read: {error}", fields=("image",)) from None


def png(image: Image.Image) -> bytes:
    """The bytes of an image as PNG."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


CALLS: Mapping[str, Handler] = {"preprocess": preprocess}
"""Handlers by the name of the call."""
