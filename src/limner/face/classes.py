"""Which pipeline a model and a task mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .control import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from .pipelines import DiffusionPipeline
from .stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

PIPELINES: Mapping[str, type[DiffusionPipeline]] = {
    pipeline.__name__: pipeline
    for pipeline in (
        StableDiffusionPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionXLPipeline,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
        StableDiffusionXLControlNetPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetInpaintPipeline,
    )
}


class _Auto:
    """Makes the pipeline of a task for whatever model is named."""

    classes: ClassVar[tuple[type[DiffusionPipeline], type[DiffusionPipeline]]]  # of 1.x and 2.x, and of XL

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **given: Any) -> Any:
        """As `DiffusionPipeline.from_pretrained`."""
        named = DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **given)
        return cls.from_pipe(named)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline) -> Any:
        """The pipeline of this task with the components of another one."""
        plain, xl = cls.classes
        return (xl if pipeline.is_xl else plain).from_pipe(pipeline)


class AutoPipelineForText2Image(_Auto):
    """Text to picture."""

    classes = StableDiffusionPipeline, StableDiffusionXLPipeline


class AutoPipelineForImage2Image(_Auto):
    """Picture to picture."""

    classes = StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline


class AutoPipelineForInpainting(_Auto):
    """Inpainting."""

    classes = StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
