"""What is asked for: the schema of a request, and resolving it against a model's facts. Imports no torch."""

from limner.diffusion.sampler_table import SamplerName
from limner.diffusion.schedule import SigmaScheduleName, Spacing

from .fields import (
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    NEW_SEEDS,
    SpeedName,
    Tiling,
    Upscaler,
)
from .parsing import SCHEMA_VERSION, parts_of
from .parts import Control, ImagePrompt, Lora
from .request import GenerationRequest

__all__ = [
    "MAX_SEED",
    "MAX_SIDE",
    "MIN_SIDE",
    "NEW_SEEDS",
    "SCHEMA_VERSION",
    "Control",
    "GenerationRequest",
    "ImagePrompt",
    "Lora",
    "SamplerName",
    "SigmaScheduleName",
    "Spacing",
    "SpeedName",
    "Tiling",
    "Upscaler",
    "parts_of",
]
