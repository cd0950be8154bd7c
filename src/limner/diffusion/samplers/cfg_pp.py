"""CFG++: the denoised latent is guided, but the remaining noise is the estimate without guidance.

    denoised, unguided = yield x, sigma
    x = denoised + (x - unguided) * (sigma_next / sigma)

Guidance distorts the estimate of the noise as well as that of the denoised latent. Chung et al. 2024
(arXiv:2406.08070, algorithm 2) take only the latter from it, so small scales do what otherwise takes large
ones: theirs are 0 to 1, for 1 to 12.5, and 0.6 is for 7.5. A step is one of Euler's with guidance at
scale / (1 - sigma_next / sigma).

These samplers are sent two estimates where others are sent one: the guided one, and that of the conditioning
that guidance moves away from. If the two are equal, each equals the sampler that it is named after.
"""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

from torch import Tensor

from limner.diffusion.samplers.steps import Legs, Noise, ancestral_step, relabelled

PairedSteps = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], Tensor]


def ddim_cfg_pp(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0, legs: Legs | None = None
) -> PairedSteps:
    """`ddim` with CFG++; arguments as there. "DDIM CFG++" of AUTOMATIC1111's webui."""
    level = sigmas[0]
    for sigma, sigma_next in legs or pairwise(sigmas):
        x = relabelled(x, level, sigma)
        denoised, unguided = yield x, sigma
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - unguided) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * up
        level = sigma_next
    return x


def euler_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> PairedSteps:
    """`euler` with CFG++. ComfyUI's `euler_cfg_pp`."""
    return (yield from euler_a_cfg_pp(x, sigmas, noise, eta=0.0))


def euler_a_cfg_pp(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> PairedSteps:
    """`euler_a` with CFG++; arguments as there. ComfyUI's `euler_ancestral_cfg_pp`."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised, unguided = yield x, sigma
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - unguided) * (down / sigma)
        if eta > 0.0 and sigma_next > 0.0:
            x = x + noise() * (up * s_noise)
    return x


def dpmpp_2m_cfg_pp(x: Tensor, sigmas: Sequence[float], noise: Noise) -> PairedSteps:
    """`dpmpp_2m` with CFG++, as its authors and ComfyUI have it.

    The slope runs from the unguided prediction of the previous step to the guided prediction of this one.
    """
    before: tuple[float, Tensor] | None = None  # previous step: length, prediction
    for sigma, sigma_next in pairwise(sigmas):
        denoised, unguided = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        h, ratio = math.log(sigma / sigma_next), sigma_next / sigma
        x = denoised + (x - unguided) * ratio
        if before is not None:
            x = x + (denoised - before[1]) * ((1.0 - ratio) / 2 * h / before[0])
        before = h, unguided
    return x


def dpmpp_2s_a_cfg_pp(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> PairedSteps:
    """`dpmpp_2s_a` with CFG++, as its authors have it; arguments as there.

    The way to the middle is not guided. (ComfyUI adds what guidance makes of the beginning, instead of the
    middle.)
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised, unguided = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        down, up = ancestral_step(sigma, sigma_next, eta)
        middle = math.sqrt(sigma * down)
        denoised, unguided = yield unguided + (x - unguided) * (middle / sigma), middle
        x = denoised + (x - unguided) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * (up * s_noise)
    return x
