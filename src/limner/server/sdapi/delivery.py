"""Images of this API: base64, and those that were interrupted as far as they came."""

import base64
import io
from collections.abc import Mapping

from PIL import Image

from limner import __version__
from limner.images.picture import Picture
from limner.images.record import Record
from limner.request import GenerationRequest
from limner.service.jobs import Job

from .running import Unfinished


def unfinished(job: Job, image: Unfinished, models: Mapping[str, str]) -> Picture:
    """The image of an interrupted job as far as it is, at full size, with a record that says so.

    Args:
        models: Name of a model by its id.
    """
    request = GenerationRequest.of(job.params)
    with Image.open(io.BytesIO(image.data)) as opened:
        small = opened.convert("RGB")
    size = request.hires_size or (request.width or small.width, request.height or small.height)
    what = "after" if image.decoded else "a preview after"
    record = Record(
        request=request,
        model={"name": models.get(job.model, request.model)},
        environment={"limner": __version__},
        notes={"interrupted": f"{what} step {image.step} of {image.steps}"},
    )
    return Picture(small if small.size == size else small.resize(size, Image.Resampling.BICUBIC), record)


def text_of(data: bytes) -> str:
    """Base64 without a prefix."""
    return base64.b64encode(data).decode()
