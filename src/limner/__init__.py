"""Limner: Stable Diffusion, whole, in one Python package.

    import limner

    model = limner.load("picturebook")
    result = model.generate("a yellow boat on the sea at sunset", seed=42, num_images=4)
    result.images[0].save("boat.png")

Importing this does not import torch: a name is looked up when it is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limner.errors import (
    DeadlineExceeded,
    EngineClosed,
    InvalidCheckpoint,
    InvalidDataset,
    InvalidPicture,
    InvalidRequest,
    InvalidTrainingState,
    LimnerError,
    ModelNotFound,
    NumericalError,
    OutOfMemory,
    OutputError,
    PickleRefused,
    PromptError,
    QueueFull,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from limner.face import *  # noqa: F403
    from limner.pipeline.axes import Axis
    from limner.pipeline.backends.base import Precision
    from limner.pipeline.engine import Engine
    from limner.pipeline.grid import Grid, grid
    from limner.pipeline.handle import Handle, Progress
    from limner.pipeline.loading import BackendName, load
    from limner.pipeline.metadata import Picture
    from limner.pipeline.model import Model
    from limner.pipeline.models import ModelCache
    from limner.pipeline.result import GenerationResult
    from limner.request import GenerationRequest

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "DeadlineExceeded",
    "Engine",
    "EngineClosed",
    "GenerationRequest",
    "GenerationResult",
    "Grid",
    "Handle",
    "InvalidCheckpoint",
    "InvalidDataset",
    "InvalidPicture",
    "InvalidRequest",
    "InvalidTrainingState",
    "LimnerError",
    "Model",
    "ModelCache",
    "ModelNotFound",
    "NumericalError",
    "OutOfMemory",
    "OutputError",
    "PickleRefused",
    "Picture",
    "Progress",
    "PromptError",
    "QueueFull",
    "UnsupportedModel",
    "generate",
    "grid",
    "load",
]

_FACE = (
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "ControlNetModel",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DiffusionPipeline",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "MultiControlNetModel",
    "PNDMScheduler",
    "SDCFGCutoffCallback",
    "SDXLCFGCutoffCallback",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "TCDScheduler",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "VaeImageProcessor",
    "load_image",
    "make_image_grid",
)
"""The classes that programs written for diffusers name."""

_HOMES = {
    "Axis": "limner.pipeline.axes",
    "Engine": "limner.pipeline.engine",
    "GenerationRequest": "limner.request",
    "GenerationResult": "limner.pipeline.result",
    "Grid": "limner.pipeline.grid",
    "Handle": "limner.pipeline.handle",
    "Model": "limner.pipeline.model",
    "Picture": "limner.pipeline.metadata",
    "ModelCache": "limner.pipeline.models",
    "Progress": "limner.pipeline.handle",
    "grid": "limner.pipeline.grid",
    "load": "limner.pipeline.loading",
    **dict.fromkeys(_FACE, "limner.face"),
}


def generate(
    prompt: str,
    *,
    model: str | Path = "picturebook",
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    precision: "Precision | Literal['auto']" = "auto",
    backend: "BackendName" = "torch",
    **fields: Any,
) -> "GenerationResult":
    """Load a model, draw with it and let it go. To draw more than once, keep what `load` returns.

    Args:
        prompt: what to draw.
        model, revision, variant, device, precision, backend: as of `load`.
        **fields: of `GenerationRequest`, such as steps, guidance_scale, seed, num_images.

    Raises:
        LimnerError: as `load` and `Model.generate` do.
    """
    from limner.pipeline.loading import load

    loaded = load(
        model, revision=revision, variant=variant, device=device, precision=precision, backend=backend
    )
    return loaded.generate(prompt, **fields)


if not TYPE_CHECKING:  # else a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'limner' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
