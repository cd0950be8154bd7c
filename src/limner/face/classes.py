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
from .files import refuse
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

    task: ClassVar[str]  # in the names of its pipelines

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **given: Any) -> Any:
        """As `DiffusionPipeline.from_pretrained`.

        Args:
            given: with a controlnet, the pipeline is one for control pictures.
        """
        control = {"controlnet": given.pop("controlnet")} if "controlnet" in given else {}
        named = DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **given)
        return cls.from_pipe(named, **control)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **given: Any) -> Any:
        """The pipeline of this task with the components of another one.

        Args:
            given: as of `DiffusionPipeline.from_pipe`; controlnet=None leaves the other one's out.
        """
        refuse({name: given.pop(name) for name in ("enable_pag",) if name in given}, ("enable_pag",))
        controlnet = given.pop("controlnet", pipeline.__dict__.get("controlnet"))
        family = "XL" if pipeline.is_xl else ""
        kind = "" if controlnet is None else "ControlNet"
        given |= {} if controlnet is None else {"controlnet": controlnet}
        return PIPELINES[f"StableDiffusion{family}{kind}{cls.task}Pipeline"].from_pipe(pipeline, **given)


class AutoPipelineForText2Image(_Auto):
    """Text to picture."""

    task = ""


class AutoPipelineForImage2Image(_Auto):
    """Picture to picture."""

    task = "Img2Img"


class AutoPipelineForInpainting(_Auto):
    """Inpainting."""

    task = "Inpaint"
