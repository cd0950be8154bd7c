"""The AutoPipeline classes: they choose a pipeline class by task and model."""

from pathlib import Path
from typing import Any, ClassVar

from .files import reject_unsupported
from .pipelines import DiffusionPipeline
from .values import named_subclasses


class _Auto:
    """Base of the AutoPipeline classes: one task, any model."""

    task: ClassVar[str]  # as it stands in the names of the pipeline classes

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **given: Any) -> Any:
        """Load a model as `DiffusionPipeline.from_pretrained` does, in the pipeline class of this task.

        Args:
            given: Arguments of `DiffusionPipeline.from_pretrained`. With `controlnet`, the result is a
                ControlNet pipeline.
        """
        control = {"controlnet": given.pop("controlnet")} if "controlnet" in given else {}
        named = DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **given)
        return cls.from_pipe(named, **control)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **given: Any) -> Any:
        """Return a pipeline of this task with the components of `pipeline`.

        Args:
            given: Arguments of `DiffusionPipeline.from_pipe`. `controlnet=None` drops the ControlNet of
                `pipeline`.
        """
        reject_unsupported(
            {name: given.pop(name) for name in ("enable_pag",) if name in given}, ("enable_pag",)
        )
        controlnet = given.pop("controlnet", pipeline.__dict__.get("controlnet"))
        family = "XL" if pipeline.is_xl else ""
        kind = "" if controlnet is None else "ControlNet"
        given |= {} if controlnet is None else {"controlnet": controlnet}
        name = f"StableDiffusion{family}{kind}{cls.task}Pipeline"
        return named_subclasses(DiffusionPipeline, "Pipeline")[name].from_pipe(pipeline, **given)


class AutoPipelineForText2Image(_Auto):
    """Text to image."""

    task = ""


class AutoPipelineForImage2Image(_Auto):
    """Image to image."""

    task = "Img2Img"


class AutoPipelineForInpainting(_Auto):
    """Inpainting."""

    task = "Inpaint"
