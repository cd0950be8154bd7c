"""The types of a request's fields, and how a field is described.

Descriptions stand on the schema: the CLI's options, the JSON schema and docs/reference/request.md derive from
them. In a description, `name` is another field or a value; what follows from a type (choices, ranges,
defaults) is not repeated in words.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

MAX_SEED = 2**53 - 1  # the largest integer that JSON carries everywhere without loss
NEW_SEEDS = (
    2**32 - 2**10
)  # random seeds are below it: all seeds of a request then have the 32 bits torch reads
MIN_SIDE, MAX_SIDE = 64, 4096  # of an image, in pixels
MAX_LORAS = 100  # of a request, those that its prompt names included

SpeedName = Literal["exact", "balanced", "fast"]
Upscaler = Literal[
    "latent",
    "latent_antialiased",
    "latent_bicubic",
    "latent_bicubic_antialiased",
    "latent_nearest",
    "latent_nearest_exact",
    "lanczos",
    "nearest",
]
Tiling = Literal["x", "y", "xy"]

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Prompt = Annotated[str, Field(max_length=65_536)]
Source = Annotated[str, Field(min_length=1, max_length=64 << 20)]  # the path of an image, or a data URL
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]
Margin = Annotated[int, Field(ge=0, le=2048, multiple_of=8)]
Pair = tuple[Annotated[int, Field(ge=0, le=16_384)], Annotated[int, Field(ge=0, le=16_384)]]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonzeroFraction = Annotated[float, Field(gt=0, le=1)]


class Group(StrEnum):
    """Headings that fields stand under in help, forms and reference, in their order."""

    PROMPT = "Prompt"
    IMAGE = "Image"
    SAMPLING = "Sampling"
    IMAGE_TO_IMAGE = "Image to image"
    INPAINTING = "Inpainting and outpainting"
    CONTROL = "Control images and image prompts"
    HIRES = "Hires pass"
    XL = "Stable Diffusion XL"
    MODEL = "Model"
    SPEED = "Speed and memory"


def field(
    group: Group,
    description: str,
    default: Any = None,
    *,
    unit: str | None = None,
    parts: Sequence[str] = (),
    also: Sequence[str] = (),
    examples: Sequence[Any] = (),
    max_length: int | None = None,
) -> Any:
    """A field of `GenerationRequest` with its description.

    Args:
        unit: of its numbers.
        parts: names of the elements of a tuple of fixed length.
        also: names that diffusers, AUTOMATIC1111 and ComfyUI have for it.
        max_length: of a tuple of any length.
    """
    extra: dict[str, Any] = {"group": group.value}
    if unit:
        extra["unit"] = unit
    if parts:
        extra["parts"] = list(parts)
    if also:
        extra["also"] = list(also)
    return Field(
        default,
        description=description,
        examples=list(examples) or None,
        max_length=max_length,
        json_schema_extra=extra,
    )
