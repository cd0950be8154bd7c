"""Control images made from images, by a worker: the detected maps of answers, and `/controlnet/detect`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from limner.service.hub import Hub
from limner.service.intake import decode_data_url

from .delivery import text_of
from .units import DetectedMap


async def detected_map(hub: Hub, one: DetectedMap, fields: Mapping[str, Any]) -> str:
    """Base64 of the PNG of a control image, at the size of the request's images.

    Args:
        fields: Fields of the request.

    Raises:
        LimnerError: As `Hub.call`.
    """
    size = {name: fields[name] for name in ("width", "height") if isinstance(fields.get(name), int)}
    params = {"preprocessor": one.preprocessor, **size}
    _, [made] = await hub.call("preprocess", params, [decode_data_url(one.image, "controls")])
    return text_of(made)


async def detected(hub: Hub, files: Sequence[bytes], preprocessor: str, shorter: int) -> list[str]:
    """Base64 of the PNGs of control images.

    Args:
        shorter: Length in pixels of the shorter side, to which the images are scaled before; 0: their own.

    Raises:
        LimnerError: As `Hub.call`.
    """
    _, made = await hub.call("preprocess", {"preprocessor": preprocessor, "shorter": shorter}, files)
    return [text_of(one) for one in made]


def png_text(image: Image.Image) -> str:
    """Base64 of an image as PNG."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return text_of(encoded.getvalue())
