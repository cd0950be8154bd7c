"""Which pipeline a `model_index.json` means."""

from collections.abc import Mapping

from .pipelines import DiffusionPipeline, StableDiffusionPipeline

PIPELINES: Mapping[str, type[DiffusionPipeline]] = {
    pipeline.__name__: pipeline for pipeline in (StableDiffusionPipeline,)
}
