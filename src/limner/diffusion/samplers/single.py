"""Single-step samplers: a step uses only network calls of its own."""

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limner.diffusion.samplers.steps import Legs, Noise, Steps, ancestral_step, phi_2, relabelled
from limner.diffusion.schedule import exponential, karras, raised


def euler(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """Euler's method on dx/dsigma = (x - denoised) / sigma (Karras et al. 2022, algorithm 1).

    Order 1. `EulerDiscreteScheduler`, which has another way to churn; here as in k-diffusion.

    Args:
        s_churn: how much noise to add before the steps, all of them together (the same, algorithm 2): each
            begins at a sigma higher by s_churn / steps of itself, but no more than sqrt(2) - 1. At 0 none is
            drawn.
        s_tmin, s_tmax: the sigmas between which it is added.
        s_noise: a factor on it.
    """
    churned = _churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for begin, sigma_next in pairwise(sigmas):
        x, sigma = churned(x, begin)
        denoised = yield x, sigma
        x = denoised + (x - denoised) * (sigma_next / sigma)
    return x


def euler_a(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    final_draw: bool = True,
) -> Steps:
    """Ancestral sampling with Euler steps: each steps below the next sigma and adds fresh noise to reach it.

    `EulerAncestralDiscreteScheduler`; k-diffusion's `sample_euler_ancestral`.

    Args:
        eta: Fraction of fresh noise, 0 (none: `euler`) to 1.
        s_noise: Factor on the fresh noise.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - denoised) * (down / sigma)
        if sigma_next > 0.0 or final_draw:
            x = x + noise() * (up * s_noise)
    return x


def ddpm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, final_draw: bool = True) -> Steps:
    """Ancestral sampling of the diffusion process itself (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    In sigma coordinates the posterior that it samples is an ancestral Euler step. `DDPMScheduler`.
    """
    return (yield from euler_a(x, sigmas, noise, final_draw=final_draw))


def ddim(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0, legs: Legs | None = None
) -> Steps:
    """Song et al. 2021 (arXiv:2010.02502), equation 12. At eta = 0 it is Euler's method, at 1 DDPM.

    Order 1. `DDIMScheduler`.

    Args:
        eta: Fraction of fresh noise; at 0 none is drawn.
        legs: for each step where it begins and ends, if not at consecutive sigmas (`Plan` says when). The
            latent, scaled to unit variance, is then taken as it is for one of the noise level where the next
            leg begins.
    """
    level = sigmas[0]
    for sigma, sigma_next in legs or pairwise(sigmas):
        x = relabelled(x, level, sigma)
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * up
        level = sigma_next
    return x


def heun(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """Heun's method: an Euler step, then again with the mean of the slopes at its two ends.

    Order 2, two calls a step except for one that ends at 0 (Karras et al. 2022, algorithm 1).
    `HeunDiscreteScheduler`. Arguments as in `euler`.
    """
    churned = _churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for begin, sigma_next in pairwise(sigmas):
        x = yield from _heun_step(*churned(x, begin), sigma_next)
    return x


def heunpp2(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Heun's method that looks one step further ahead, with smaller weights for slopes at lower sigmas.

    From Carzit's sd-webui-samplers-scheduler, not from a paper; also in ComfyUI. Three calls a step but for
    the last two, and order 1 all the same, as the slopes' weights are not those of a quadrature.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        slopes = [(x - (yield x, sigma)) / sigma]
        ahead, level, x_ahead = sigmas[step + 1 : -1][:2], sigma, x
        for further in ahead:
            x_ahead = x_ahead + slopes[-1] * (further - level)
            slopes.append((x_ahead - (yield x_ahead, further)) / further)
            level = further
        weights = [further / (len(slopes) * sigmas[0]) for further in ahead]
        for slope, weight in zip(slopes, [1.0 - sum(weights), *weights], strict=True):
            x = x + slope * (weight * (sigma_next - sigma))
    return x


def restart(x: Tensor, sigmas: Sequence[float], noise: Noise, *, s_noise: float = 1.0) -> Steps:
    """Heun's method that goes back up to a larger sigma, by adding noise, to correct its errors.

    Xu et al. 2023 (arXiv:2306.14878, algorithm 1), as in AUTOMATIC1111's webui: with 20 steps or more, 9 of
    them, with 36 or more twice a quarter of them, are repetitions between sigma 2 and 0.1; the other steps
    cover the whole range with the spacing of `karras`.

    Args:
        s_noise: Factor on the fresh noise.
    """
    level = sigmas[0]
    for sigma, sigma_next in _restart_legs(sigmas):
        if sigma > level:
            x = x + noise() * (math.sqrt(sigma**2 - level**2) * s_noise)
        x = yield from _heun_step(x, sigma, sigma_next)
        level = sigma_next
    return x


def dpm2(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """DPM-Solver-2: a step with the slope at its middle in log(sigma) (Karras et al. 2022, algorithm 2).

    Order 2, two calls a step except for one that ends at 0. `KDPM2DiscreteScheduler`; k-diffusion's
    `sample_dpm_2`. Arguments as in `euler`.
    """
    churned = _churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for begin, sigma_next in pairwise(sigmas):
        x = yield from _dpm_2_step(*churned(x, begin), sigma_next)
    return x


def dpm2_a(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """Ancestral sampling with steps of `dpm2`; arguments as in `euler_a`.

    `KDPM2AncestralDiscreteScheduler`; k-diffusion's `sample_dpm_2_ancestral`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = yield from _dpm_2_step(x, sigma, down)
        if eta > 0.0 and sigma_next > 0.0:
            x = x + noise() * (up * s_noise)
    return x


def dpmpp_2s_a(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """Ancestral sampling with steps of DPM-Solver++(2S), two calls a step; arguments as in `euler_a`.

    Its step with what is predicted at its middle in log(sigma). Order 2 at eta = 0. k-diffusion's
    `sample_dpmpp_2s_ancestral`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        down, up = ancestral_step(sigma, sigma_next, eta)
        middle = math.sqrt(sigma * down)
        denoised = yield denoised + (x - denoised) * (middle / sigma), middle
        x = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * (up * s_noise)
    return x


def dpmpp_sde(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """`dpmpp_2s_a` whose half step is an ancestral step too: two calls and two draws a step.

    `DPMSolverSDEScheduler` and k-diffusion's `sample_dpmpp_sde`, which draw noise from a Brownian tree, while
    all of these are independent. Arguments as in `euler_a`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        middle = math.sqrt(sigma * sigma_next)
        down, up = ancestral_step(sigma, middle, eta)
        x_middle = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0:
            x_middle = x_middle + noise() * (up * s_noise)
        denoised = yield x_middle, middle
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * (up * s_noise)
    return x


def seeds_2(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """SEEDS-2 (Gonzalez et al. 2023, arXiv:2305.14267), predicting x0.

    `dpmpp_sde` whose noise at the middle of a step is part of that at its end. Two calls and two draws a
    step; order 2 at eta = 0. ComfyUI's `sample_seeds_2`. Arguments as in `euler_a`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        h = math.log(sigma / sigma_next)
        span, middle = h * (1.0 + eta), math.sqrt(sigma * sigma_next)
        gathered = _gathered(0.0, eta * h / 2, noise)
        x_middle = denoised + (x - denoised) * math.exp(-span / 2) + gathered * (middle * s_noise)
        denoised = yield x_middle, middle
        gathered = _gathered(gathered, eta * h / 2, noise)
        x = denoised + (x - denoised) * math.exp(-span) + gathered * (sigma_next * s_noise)
    return x


def seeds_3(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """SEEDS-3: `seeds_2` with three calls and three draws a step; order 3 at eta = 0. Arguments as there."""
    for sigma, sigma_next in pairwise(sigmas):
        first = yield x, sigma
        if sigma_next == 0.0:
            return first
        h = math.log(sigma / sigma_next)
        span, third = h * (1.0 + eta), eta * h / 3
        early, late = sigma * math.exp(-h / 3), sigma * math.exp(-h * 2 / 3)
        gathered = _gathered(0.0, third, noise)
        x_early = first + (x - first) * math.exp(-span / 3) + gathered * (early * s_noise)
        change = (yield x_early, early) - first
        gathered = _gathered(gathered, third, noise)
        x_late = first + (x - first) * math.exp(-span * 2 / 3) + gathered * (late * s_noise)
        change = (yield x_late + change * (2.0 * phi_2(span * 2 / 3)), late) - first
        gathered = _gathered(gathered, third, noise)
        x = first + (x - first) * math.exp(-span) + gathered * (sigma_next * s_noise)
        x = x + change * (1.5 * phi_2(span))
    return x


def dpm_fast(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver-fast: steps of one length in log(sigma), with three calls each and the rest at the end.

    Lu et al. 2022 (arXiv:2206.00927). Of the sigmas it takes the first, the last but 0 and their
    number, which is how many calls it makes on the way; one more is for what is predicted at its end if 0 is
    to be reached. There k-diffusion's `sample_dpm_fast` stops. Order 3, but for the last steps.

    Args:
        eta: Fraction of fresh noise; at 0 none is drawn.
        s_noise: Factor on the fresh noise.
    """
    bottom = [sigma for sigma in sigmas if sigma > 0.0][-1]
    if bottom < sigmas[0]:
        threes, rest = divmod(len(sigmas) - 1, 3)
        orders = [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]
        way = exponential(len(orders) + 1, bottom, sigmas[0])
        for order, (sigma, sigma_next) in zip(orders, pairwise(way), strict=True):
            down = max(ancestral_step(sigma, sigma_next, eta)[0], bottom)
            x = yield from _dpm_step(x, sigma, down, order)
            if eta > 0.0:
                x = x + noise() * (math.sqrt(sigma_next**2 - down**2) * s_noise)
    if sigmas[-1] == 0.0:
        x = yield x, bottom
    return x


def dpm_adaptive(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, rtol: float = 0.05, atol: float = 0.0078
) -> Steps:
    """DPM-Solver-3 with steps as long as their error lets them be (Lu et al. 2022, arXiv:2206.00927).

    Of the sigmas it takes the first and the last but 0, and goes its own way between: their number does not
    matter, and how many calls it makes, nobody knows beforehand. k-diffusion's `sample_dpm_adaptive` of order
    3, which stops at that last sigma, while this takes what is predicted there if 0 is to be reached.

    Args:
        rtol: the largest error of a step, as a share of the latent.
        atol: the same for latents near 0, in their unit.
    """
    sigma, bottom = sigmas[0], [s for s in sigmas if s > 0.0][-1]
    h, before = 0.05, x
    while sigma > bottom:
        slope = (x - (yield x, sigma)) / sigma
        while True:
            sigma_next = max(bottom, sigma * math.exp(-h))
            x_low, x_high = yield from _dpm_3_step(x, slope, sigma, sigma_next)
            allowed = torch.clamp(torch.maximum(x_low.abs(), before.abs()) * rtol, min=atol)
            error = float(((x_low - x_high) / allowed).square().mean().sqrt())
            factor = 1.0 + math.atan((error + 1e-8) ** (-1 / 3) - 1.0)
            taken = factor >= 0.81 or h <= _SHORTEST
            h = max(_SHORTEST, h * factor)
            if taken:
                break
        before, x, sigma = x_low, x_high, sigma_next
    if sigmas[-1] == 0.0:
        x = yield x, sigma
    return x


def lcm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, kept: Sequence[float] | None = None) -> Steps:
    """Multistep sampling of a consistency model (Song et al. 2023, algorithm 1; Luo et al. 2023).

    Each step takes the denoised latent as clean and adds fresh noise. `LCMScheduler`; k-diffusion's
    `sample_lcm` has no boundary condition.

    Args:
        kept: for each step the share c_skip of its input, at unit variance, that stays in the estimate; the
            boundary condition of a consistency model makes it next to nothing but near sigma 0.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if kept is not None:
            share = kept[step]
            denoised = denoised * math.sqrt(1.0 - share) + x * (share / math.sqrt(sigma**2 + 1.0))
        x = denoised + noise() * sigma_next if sigma_next > 0.0 else denoised
    return x


def tcd(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 0.3,
    inner: Sequence[float] | None = None,
) -> Steps:
    """Strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024, arXiv:2402.19159).

    Each step goes further down than the next sigma and comes back by adding noise. `TCDScheduler`.

    Args:
        eta: the paper's gamma: 0 adds no noise.
        inner: the sigmas to go down to; by default (1 - eta) of the next one, in `Plan` what belongs to that
            share of its timestep.
    """
    last = len(sigmas) - 2
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        down = (1.0 - eta) * sigma_next if inner is None else inner[step]
        x = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0 and step < last:
            x = x + noise() * math.sqrt(sigma_next**2 - down**2)
    return x


_SHORTEST = 0.02
"""A step in log(sigma) that `dpm_adaptive` takes whatever its error, so that it always ends."""


def _churning(
    steps: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Callable[[Tensor, float], tuple[Tensor, float]]:
    """The first half of a step of algorithm 2 of Karras et al. 2022: to a higher sigma, by adding noise."""

    def churned(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        if s_churn == 0.0:
            return x, sigma
        fresh = noise()  # drawn even if unused, as in k-diffusion, so that later draws stay the same
        higher = raised(sigma, steps, s_churn, s_tmin, s_tmax)
        return x + fresh * (math.sqrt(higher**2 - sigma**2) * s_noise), higher

    return churned


def _gathered(before: Tensor | float, span: float, noise: Noise) -> Tensor | float:
    """Noise, in units of sigma, that is there a span of log(sigma) further: what is left, and what is new."""
    if span == 0.0:
        return before
    return before * math.exp(-span) + noise() * math.sqrt(-math.expm1(-2.0 * span))


def _heun_step(x: Tensor, sigma: float, sigma_next: float) -> Steps:
    """One step of `heun`."""
    denoised = yield x, sigma
    slope = (x - denoised) / sigma
    x_next = x + slope * (sigma_next - sigma)
    if sigma_next > 0.0:
        denoised = yield x_next, sigma_next
        slope = (slope + (x_next - denoised) / sigma_next) / 2
        x_next = x + slope * (sigma_next - sigma)
    return x_next


def _dpm_2_step(x: Tensor, sigma: float, end: float) -> Steps:
    """One step of `dpm2`."""
    denoised = yield x, sigma
    if end == 0.0:
        return denoised
    # At eta = 1 the middle of an ancestral step is the next sigma itself. A hair off, it is not taken for the
    # step that will begin there, whose timestep may be rounded, while this one's is not.
    middle = math.sqrt(sigma * end) * (1.0 - 1e-12)
    x_middle = denoised + (x - denoised) * (middle / sigma)
    denoised = yield x_middle, middle
    return x + (x_middle - denoised) * ((end - sigma) / middle)


def _dpm_3_step(
    x: Tensor, slope: Tensor, sigma: float, end: float
) -> Generator[tuple[Tensor, float], Tensor, tuple[Tensor, Tensor]]:
    """A step of DPM-Solver-3, given the slope at its beginning: where one of order 2 ends, and one of 3."""
    span = math.log(sigma / end)
    early, late = sigma * math.exp(-span / 3), sigma * math.exp(-span * 2 / 3)
    x_early = x + slope * (early - sigma)
    change = (x_early - (yield x_early, early)) / early - slope
    x_low = x + (slope + change * 1.5) * (end - sigma)
    x_late = x + slope * (late - sigma) + change * (2.0 * late * phi_2(-span * 2 / 3))
    change = (x_late - (yield x_late, late)) / late - slope
    return x_low, x + slope * (end - sigma) + change * (1.5 * end * phi_2(-span))


def _dpm_step(x: Tensor, sigma: float, end: float, order: int) -> Steps:
    """A step of DPM-Solver of order 1, 2 or 3, in as many calls."""
    if order == 2:
        return (yield from _dpm_2_step(x, sigma, end))
    slope = (x - (yield x, sigma)) / sigma
    if order == 1:
        return x + slope * (end - sigma)
    return (yield from _dpm_3_step(x, slope, sigma, end))[1]


def _restart_legs(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Return the begin and end sigma of each step of `restart`."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    way = karras(steps - length * times, sigmas[-2], sigmas[0])

    def nearest(wanted: float) -> float:
        return min(way, key=lambda sigma: abs(sigma - wanted))

    bottom, top = nearest(0.1), nearest(2.0)
    if top <= bottom:
        return list(pairwise(sigmas))
    legs = list(pairwise([*way, sigmas[-1]]))
    place = way.index(bottom)
    return [*legs[:place], *list(pairwise(karras(length + 1, bottom, top))) * times, *legs[place:]]
