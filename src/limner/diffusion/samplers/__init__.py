"""Samplers: generators that denoise a latent along a decreasing list of sigmas.

    def sampler(x, sigmas, noise, **options):
        denoised = yield x, sigma      # send the denoised x
        ...
        return x

`x` is `x0 + sigmas[0] * unit_noise`, of any shape; `sigmas` are Python floats, decreasing, and the last is
where to stop (0 for a clean latent); `noise()` gives a unit normal tensor like x, and is called once for each
draw, in order. A sampler keeps the dtype of x and holds its history in local variables, so it can be stopped
at any yield. It continues from the x that it yielded: the caller may write other latents into
it. Those of `cfg_pp` are sent two predictions, with guidance and without.

Each agrees with the class of diffusers that its docstring names and with k-diffusion's `sample_<name>`. Those
two differ in one thing only: diffusers draws noise on the last step too, where it is multiplied by 0.
`final_draw` is True by default, to leave the generator where diffusers does; False is k-diffusion's way.

    steps    shared functions
    single   single-step samplers
    multi    multistep samplers, which use the predictions of previous steps
    cfg_pp   CFG++: guidance of the denoised latent, not of the noise
"""

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.samplers import cfg_pp, multi, single
from limner.diffusion.samplers.cfg_pp import PairedSteps
from limner.diffusion.samplers.steps import Noise, Steps, ancestral_step

__all__ = ["SAMPLERS", "AnySteps", "Noise", "PairedSteps", "Steps", "ancestral_step"]

AnySteps = Generator[tuple[Tensor, float], Any, Tensor]

_FUNCTIONS = {**vars(single), **vars(multi), **vars(cfg_pp)}
SAMPLERS: dict[str, Callable[..., AnySteps]] = {name: _FUNCTIONS[name] for name in SAMPLER_TABLE}
"""Each row of `SAMPLER_TABLE` with the function of its name."""
