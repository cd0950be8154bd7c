"""Ready-made callbacks for the pipeline argument `callback_on_step_end`."""

from collections.abc import Sequence
from typing import Any, ClassVar

from limner.errors import InvalidRequest


class SDCFGCutoffCallback:
    """Turn classifier-free guidance off after a given step, for Stable Diffusion 1.x and 2.x.

    Args:
        cutoff_step_ratio: Fraction of the steps that are guided, 0 to 1.
        cutoff_step_index: Index of the step after which guidance is off, from 0; give this or the ratio.

    Raises:
        InvalidRequest: Both or neither were given, or the ratio is outside 0 to 1.
    """

    tensor_inputs: ClassVar[Sequence[str]] = ("prompt_embeds",)

    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None) -> None:
        if (cutoff_step_ratio is None) == (cutoff_step_index is None):
            raise InvalidRequest("expected one of cutoff_step_ratio and cutoff_step_index, the other None")
        if cutoff_step_ratio is not None and not 0.0 <= cutoff_step_ratio <= 1.0:
            raise InvalidRequest(f"cutoff_step_ratio is {cutoff_step_ratio}; expected 0 to 1")
        self._ratio, self._index = cutoff_step_ratio, cutoff_step_index

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Called by the pipeline after each step. At the cutoff, return the positive half of each
        conditioning tensor."""
        last = int(pipeline.num_timesteps * self._ratio) if self._index is None else self._index
        if step_index != last or not pipeline.do_classifier_free_guidance:
            return callback_kwargs
        pipeline._guidance_scale = 0.0
        return {name: callback_kwargs[name].chunk(2)[1] for name in self.tensor_inputs}


class SDXLCFGCutoffCallback(SDCFGCutoffCallback):
    """Turn classifier-free guidance off after a given step, for Stable Diffusion XL."""

    tensor_inputs = ("prompt_embeds", "add_text_embeds", "add_time_ids")
