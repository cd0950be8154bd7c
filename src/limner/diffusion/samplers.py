"""Samplers: generators that walk a noisy latent down a list of sigmas.

    def sampler(x, sigmas, noise, **options):
        denoised = yield x, sigma      # what is x without its noise?
        ...
        return x

`x` is `x0 + sigmas[0] * unit_noise`, of any shape; `sigmas` are Python floats, decreasing, and the last is
where to stop (0 for a clean latent); `noise()` gives a unit normal tensor like x, and is called once for each
draw, in order. A sampler keeps the dtype of x and holds its history in local variables, so it can be stopped
at any yield. The x that it yields is what it goes on with: whoever drives it may write another latent into
it.

Each agrees with the class of diffusers that its docstring names and with k-diffusion's `sample_<name>`. Those
two differ in one thing only: diffusers draws noise on the last step too, where it is multiplied by 0.
`final_draw` is True by default, to leave the generator where diffusers does; False is k-diffusion's way.
"""

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from limner.diffusion.prediction import PredictionType, scalings
from limner.diffusion.schedule import karras

Steps = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise = Callable[[], Tensor]
Legs = Sequence[tuple[float, float]]


def euler(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Euler's method on dx/dsigma = (x - denoised) / sigma (Karras et al. 2022, algorithm 1).

    Order 1. `EulerDiscreteScheduler`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        x = denoised + (x - denoised) * (sigma_next / sigma)
    return x


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """How far down to step, and how much fresh noise to add, to arrive at `sigma_next`.

    At eta = 1 the noise is as large as that of the posterior of the diffusion process (Ho et al. 2020,
    equation 7); at eta = 0 there is none.
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def euler_a(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    final_draw: bool = True,
) -> Steps:
    """Ancestral sampling with Euler steps: each goes too far down and makes up for it with fresh noise.

    `EulerAncestralDiscreteScheduler`; k-diffusion's `sample_euler_ancestral`.

    Args:
        eta: the share of fresh noise, 0 (none: `euler`) to 1.
        s_noise: a factor on the fresh noise.
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
        eta: the share of fresh noise; at 0 none is drawn.
        legs: for each step where it begins and ends, if not at consecutive sigmas (`Plan` says when). The
            latent, scaled to unit variance, is then taken as it is for one of the noise level where the next
            leg begins.
    """
    level = sigmas[0]
    for sigma, sigma_next in legs or pairwise(sigmas):
        x = _relabelled(x, level, sigma)
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = denoised + (x - denoised) * (down / sigma)
        if eta > 0.0:
            x = x + noise() * up
        level = sigma_next
    return x


def heun(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Heun's method: an Euler step, then again with the mean of the slopes at its two ends.

    Order 2, two calls a step except for one that ends at 0 (Karras et al. 2022, algorithm 1).
    `HeunDiscreteScheduler`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = yield from _heun_step(x, sigma, sigma_next)
    return x


def restart(x: Tensor, sigmas: Sequence[float], noise: Noise, *, s_noise: float = 1.0) -> Steps:
    """Heun's method that goes back up to a larger sigma, by adding noise, to correct its errors.

    Xu et al. 2023 (arXiv:2306.14878, algorithm 1), as in AUTOMATIC1111's webui: with 20 steps or more, 9 of
    them, with 36 or more twice a quarter of them, are spent between sigma 2 and 0.1, and the rest are spread
    anew over the same range as `karras` has it.

    Args:
        s_noise: a factor on the fresh noise.
    """
    level = sigmas[0]
    for sigma, sigma_next in _restart_legs(sigmas):
        if sigma > level:
            x = x + noise() * (math.sqrt(sigma**2 - level**2) * s_noise)
        x = yield from _heun_step(x, sigma, sigma_next)
        level = sigma_next
    return x


def dpm2(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """DPM-Solver-2: a step with the slope at its middle in log(sigma) (Karras et al. 2022, algorithm 2).

    Order 2, two calls a step except for one that ends at 0. `KDPM2DiscreteScheduler`; k-diffusion's
    `sample_dpm_2`.
    """
    return (yield from dpm2_a(x, sigmas, noise, eta=0.0))


def dpm2_a(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """Ancestral sampling with steps of `dpm2`; arguments as in `euler_a`.

    `KDPM2AncestralDiscreteScheduler`; k-diffusion's `sample_dpm_2_ancestral`.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        down, up = ancestral_step(sigma, sigma_next, eta)
        # At eta = 1 the middle is sigma_next itself. A hair off, it is not taken for the step that will begin
        # there, whose timestep may be rounded, while this one's is not.
        middle = math.sqrt(sigma * down) * (1.0 - 1e-12)
        x_middle = denoised + (x - denoised) * (middle / sigma)
        denoised = yield x_middle, middle
        x = x + (x_middle - denoised) * ((down - sigma) / middle)
        if eta > 0.0:
            x = x + noise() * (up * s_noise)
    return x


def lms(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:
    """Linear multistep: the integral of the polynomial through the last slopes (Adams-Bashforth).

    The first steps have fewer slopes to go by. `LMSDiscreteScheduler`.

    Args:
        order: how many slopes, 1 to 4.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order is {order}; lms has orders 1 to 4")
    slopes: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]  # newest first
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        for slope, weight in zip(slopes, _lagrange_integrals(nodes, sigma, sigma_next), strict=True):
            x = x + slope * weight
    return x


def deis(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 2, lowered: int = 0) -> Steps:
    """Linear multistep with a polynomial in log(sigma) through the last slopes: tAB-DEIS in log(rho).

    Zhang & Chen 2023 (arXiv:2204.13902, equation 15). `DEISMultistepScheduler`.

    Args:
        order: how many slopes, 1 to 3.
        lowered: as in `dpmpp_2m_sde`.
    """
    steps = len(sigmas) - 1
    slopes: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]  # newest first
        used = _order_at(steps - i, len(slopes), lowered)
        nodes = [math.log(sigmas[i - j] / sigma) for j in range(used)]
        weights = _matching(nodes, _log_moments(used, sigma, sigma_next))
        for slope, weight in zip(slopes[:used], weights, strict=True):
            x = x + slope * weight
    return x


def pndm(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    prediction_type: PredictionType = "epsilon",
    legs: Legs | None = None,
) -> Steps:
    """Pseudo linear multistep, PLMS (Liu et al. 2022, arXiv:2202.09778), without Runge-Kutta steps.

    Adams-Bashforth weights for evenly spaced timesteps, applied to what the network said. The first step is
    taken twice, the second time with the mean of the outputs at its two ends: n + 1 calls. Order 2 (4 on
    evenly spaced sigmas, but for the first steps), and only 1 if the outputs are v, because the mean of
    several v is not the v of the mean noise. `PNDMScheduler` with `skip_prk_steps`.

    Args:
        prediction_type: what the network says.
        legs: as in `ddim`, but one for each call; the second call is made where its leg ends.
    """
    if legs is None:
        steps = list(pairwise(sigmas))
        legs = steps if len(steps) == 1 else [steps[0], *steps]
    level, first, outputs = sigmas[0], x, list[Tensor]()
    for call, (start, end) in enumerate(legs):
        sigma = end if call == 1 else start
        x = _relabelled(x, level, sigma)
        denoised = yield x, sigma
        output = scalings(prediction_type, sigma).output(x, denoised)
        if call == 1:
            x = _relabelled(first, sigmas[0], start)
            output = (outputs[0] + output) / 2
        else:
            outputs = [output, *outputs[:3]]  # newest first
            weights = ADAMS_BASHFORTH[len(outputs)]
            output = sum((w * o for w, o in zip(weights, outputs, strict=True)), torch.zeros_like(x))
        denoised = scalings(prediction_type, start).denoised(x, output)
        x = denoised + (x - denoised) * (end / start)
        level = end
    return x


def dpmpp_2m(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lowered: int = 0,
) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    Order 2. `DPMSolverMultistepScheduler` with `dpmsolver++`. Arguments as in `dpmpp_2m_sde`.
    """
    return (
        yield from dpmpp_2m_sde(
            x, sigmas, noise, eta=0.0, order=order, solver_type=solver_type, lowered=lowered
        )
    )


def dpmpp_2m_sde(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lowered: int = 0,
    final_draw: bool = True,
) -> Steps:
    """SDE-DPM-Solver++(2M): the same solver for the reverse diffusion equation (arXiv:2211.01095).

    `DPMSolverMultistepScheduler` with `sde-dpmsolver++`.

    Args:
        eta: the share of fresh noise; at 0 none is drawn.
        s_noise: a factor on the fresh noise.
        order: how many predictions, 1 to 3. With 3 the method is of order 2 still, because every program has
            the curvature at half the weight that it should have.
        solver_type: how the second-order term of a step with two is weighted.
        lowered: how many of the last steps use no more predictions than there are steps left. A step to 0
            always uses one.
    """
    steps = len(sigmas) - 1
    older: list[tuple[float, Tensor]] = []  # the steps before, newest first: length, what it was told
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            if eta > 0.0 and final_draw:
                noise()
            return denoised
        h = math.log(sigma / sigma_next)
        span = h * (1.0 + eta)
        x = math.exp(-span) * x - math.expm1(-span) * denoised
        used = _order_at(steps - i, len(older) + 1, lowered)
        if used > 1 and h > 0.0:
            slope = (denoised - older[0][1]) / older[0][0]
            weight = _phi_2(span)
            if used == 3:
                curve = (slope - (older[0][1] - older[1][1]) / older[1][0]) / (older[0][0] + older[1][0])
                slope = slope + curve * older[0][0]
                x = x - curve * (h**2 * (weight / span - 0.5))
            elif solver_type == "midpoint":
                weight = -0.5 * math.expm1(-span)
            x = x + slope * (h * weight)
        if eta > 0.0:
            x = x + noise() * (sigma_next * math.sqrt(-math.expm1(-2.0 * eta * h)) * s_noise)
        older = [(h, denoised), *older][: order - 1]
    return x


def dpmpp_3m_sde(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    final_draw: bool = True,
) -> Steps:
    """`dpmpp_2m_sde` with three predictions, as k-diffusion's `sample_dpmpp_3m_sde`; arguments as there."""
    return (
        yield from dpmpp_2m_sde(
            x, sigmas, noise, eta=eta, s_noise=s_noise, order=3, solver_type="heun", final_draw=final_draw
        )
    )


def dpmpp_2s(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lowered: int = 0,
) -> Steps:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1), two steps at a time.

    The first of two is a step of order 1; the second begins anew where that began, with what was predicted at
    both. Order 2. `DPMSolverSinglestepScheduler`. Arguments as in `dpmpp_2m_sde`.
    """
    steps = len(sigmas) - 1
    begun: tuple[float, Tensor, Tensor] | None = None  # where the first began: sigma, x, denoised
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        if begun is None or _order_at(steps - i, 2, lowered) == 1:
            begun = sigma, x, denoised
            x = denoised + (x - denoised) * (sigma_next / sigma)
        else:
            top, x, first = begun
            begun = None
            h = math.log(top / sigma_next)
            weight = _phi_2(h) if solver_type == "heun" else -0.5 * math.expm1(-h)
            x = first + (x - first) * (sigma_next / top)
            x = x + (denoised - first) * (weight * h / math.log(top / sigma))
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
    """`dpmpp_2s_a` whose way to the middle is an ancestral step too: two calls and two draws a step.

    `DPMSolverSDEScheduler` and k-diffusion's `sample_dpmpp_sde`, whose draws come from a Brownian tree, while
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
            span = math.log(sigma / sigma_next)
            early, late = sigma * math.exp(-span / 3), sigma * math.exp(-span * 2 / 3)
            x_early = x + slope * (early - sigma)
            change = (x_early - (yield x_early, early)) / early - slope
            x_low = x + (slope + change * 1.5) * (sigma_next - sigma)
            x_late = x + slope * (late - sigma) + change * (2.0 * late * _phi_2(-span * 2 / 3))
            change = (x_late - (yield x_late, late)) / late - slope
            x_high = x + slope * (sigma_next - sigma) + change * (1.5 * sigma_next * _phi_2(-span))
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


def unipc(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    solver_type: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
) -> Steps:
    """UniPC: a multistep predictor, corrected by the next prediction at no extra call.

    Zhao et al. 2023 (arXiv:2302.04867), B(h) version, predicting x0. The order is `order + 1`, one less
    with `lower_order_final`. `UniPCMultistepScheduler`.

    Args:
        order: how many predictions the predictor uses, 1 or more.
        solver_type: B(h) = h, or exp(h) - 1.
        lower_order_final: whether the last steps use fewer. A step to 0 always uses one.
    """
    steps = len(sigmas) - 1
    history: list[tuple[float, Tensor]] = []  # (sigma, denoised), newest first
    before, used = x, 0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if history:
            x = _unipc_step(before, history[:used], sigma, solver_type, correction=denoised)
        history = [(sigma, denoised), *history[: order - 1]]
        used = min(len(history), steps - i) if lower_order_final else len(history)
        before = x
        x = _unipc_step(x, history[:used], sigma_next, solver_type)
    return x


def lcm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, kept: Sequence[float] | None = None) -> Steps:
    """Multistep sampling of a consistency model (Song et al. 2023, algorithm 1; Luo et al. 2023).

    Each step takes the network's estimate for clean and adds noise anew. `LCMScheduler`; k-diffusion's
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


SAMPLERS: dict[str, Callable[..., Steps]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "restart": restart,
    "dpm2": dpm2,
    "dpm2_a": dpm2_a,
    "lms": lms,
    "deis": deis,
    "pndm": pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_sde": dpmpp_sde,
    "dpm_adaptive": dpm_adaptive,
    "unipc": unipc,
    "lcm": lcm,
    "tcd": tcd,
}

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the last slopes, newest first, for evenly spaced steps."""


_SHORTEST = 0.02
"""A step in log(sigma) that `dpm_adaptive` takes whatever its error, so that it always ends."""


def _relabelled(x: Tensor, level: float, sigma: float) -> Tensor:
    """A latent at noise `level`, taken for one at `sigma` without changing it at unit variance."""
    return x if sigma == level else x * math.sqrt((sigma**2 + 1.0) / (level**2 + 1.0))


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


def _restart_legs(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Where each step of `restart` begins and ends."""
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


def _order_at(left: int, known: int, lowered: int) -> int:
    """How many of `known` predictions a step uses that has `left - 1` steps behind it."""
    return min(known, left) if left <= lowered else known


def _phi_2(span: float) -> float:
    """(exp(-span) - 1) / span + 1: what a step in log(sigma) gives to the slope of the prediction."""
    return math.expm1(-span) / span + 1.0


def _lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """For each of up to four nodes, the integral of its Lagrange polynomial.

    By Gauss-Legendre quadrature with two points, which is exact up to the third degree.
    """
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3.0), middle + half / math.sqrt(3.0))

    def basis(node: float, point: float) -> float:
        return math.prod((point - other) / (node - other) for other in nodes if other != node)

    return [half * sum(basis(node, point) for point in points) for node in nodes]


def _log_moments(count: int, start: float, end: float) -> list[float]:
    """The integrals from `start` to `end` of log(sigma / start)**k, for k below `count`."""
    moments = [end - start]
    for k in range(1, count):
        edge = end * math.log(end / start) ** k if end > 0.0 else 0.0
        moments.append(edge - k * moments[-1])
    return moments


def _matching(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights of as many nodes that have these moments: Vandermonde(nodes) @ w = moments."""
    rows = [[node**k for node in nodes] for k in range(len(nodes))]
    weights: list[float] = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(moments, dtype=torch.float64)
    ).tolist()
    return weights


def _unipc_step(
    x: Tensor,
    history: Sequence[tuple[float, Tensor]],
    sigma_next: float,
    solver_type: str,
    correction: Tensor | None = None,
) -> Tensor:
    """From `history[0]`'s sigma to `sigma_next`: UniP, or UniC where the prediction there is known.

    Equations 3 and 9 of arXiv:2302.04867 in sigma coordinates, where lambda = -log(sigma).
    """
    (sigma, newest), *older = history
    if sigma_next == 0.0:
        return newest
    h = math.log(sigma / sigma_next)
    x_next = x * (sigma_next / sigma) - newest * math.expm1(-h)
    ratios = [math.log(sigma / s) / h for s, _ in older]
    differences = [(d - newest) / r for r, (_, d) in zip(ratios, older, strict=True)]
    if correction is not None:
        ratios.append(1.0)
        differences.append(correction - newest)
    scale = -h if solver_type == "bh1" else math.expm1(-h)
    for difference, weight in zip(differences, _unipc_weights(ratios, h, scale), strict=True):
        x_next = x_next - difference * (scale * weight)
    return x_next


def _unipc_weights(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """The weights that match as many derivatives as there are ratios."""
    if len(ratios) <= 1:
        return [0.5] * len(ratios)  # the authors' choice for a single difference
    phi, b = math.expm1(-h) / -h - 1.0, []
    for k in range(1, len(ratios) + 1):
        b.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1.0 / math.factorial(k + 1)
    return _matching(ratios, b)
