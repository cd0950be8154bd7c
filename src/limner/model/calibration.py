"""Images to calibrate int8 on: the inputs of the U-Net from noise to image."""

from collections.abc import Mapping

from limner.backends.base import Backend
from limner.diffusion.config import SchedulerConfig
from limner.generation.calls import Denoise
from limner.generation.run import watch
from limner.generation.story import picture_of
from limner.prompts.tokenizer import Tokenizer
from limner.request import MIN_SIDE, GenerationRequest
from limner.weights.checkpoint import Checkpoint

from .model import Model

_PROMPTS = (
    "a red house beside a tree at night",
    "two boats on the blue sea under white clouds",
    "a black cat and a yellow ball in the snow",
)
_STEPS = 4


def generate_samples(
    checkpoint: Checkpoint, scheduler: SchedulerConfig, tokenizers: Mapping[str, Tokenizer], backend: Backend
) -> None:
    """Run the U-Net of a backend over all steps of a few images, at the model's own size."""
    model = Model("calibration", None, None, checkpoint, scheduler, tokenizers, backend)
    side = max(MIN_SIDE, checkpoint.unet_config.sample_size * checkpoint.vae_config.downscale)
    for seed, prompt in enumerate(_PROMPTS):
        request = GenerationRequest(
            prompt=prompt, seed=seed, steps=_STEPS, sampler="ddim", width=side, height=side
        )
        for call, _ in watch(picture_of(model.resolve(request).pictures[0], model.facts), model):
            if isinstance(call, Denoise) and call.step == call.steps:
                break  # the decoder's call follows
