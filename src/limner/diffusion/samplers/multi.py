"""Multistep samplers: a step also uses the predictions of previous steps."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from limner.diffusion.prediction import PredictionType, scalings
from limner.diffusion.samplers.steps import Legs, Noise, Steps, phi_2, relabelled


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
        x = relabelled(x, level, sigma)
        denoised = yield x, sigma
        output = scalings(prediction_type, sigma).output(x, denoised)
        if call == 1:
            x = relabelled(first, sigmas[0], start)
            output = (outputs[0] + output) / 2
        else:
            outputs = [output, *outputs[:3]]  # newest first
            weights = ADAMS_BASHFORTH[len(outputs)]
            output = sum((w * o for w, o in zip(weights, outputs, strict=True)), torch.zeros_like(x))
        denoised = scalings(prediction_type, start).denoised(x, output)
        x = denoised + (x - denoised) * (end / start)
        level = end
    return x


def ipndm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:
    """Linear multistep with the weights for evenly spaced steps, whatever the sigmas: improved PNDM.

    Zhang & Chen 2023 (arXiv:2204.13902). Order 2, or up to `order` on evenly spaced sigmas but for the first
    steps. ComfyUI's `sample_ipndm`; diffusers' `IPNDMScheduler` is over other sigmas.

    Args:
        order: how many slopes, 1 to 4.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order is {order}; ipndm has orders 1 to 4")
    slopes: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]  # newest first
        for slope, weight in zip(slopes, ADAMS_BASHFORTH[len(slopes)], strict=True):
            x = x + slope * (weight * (sigma_next - sigma))
    return x


def gradient_estimation(x: Tensor, sigmas: Sequence[float], noise: Noise, *, gamma: float = 2.0) -> Steps:
    """Euler's method with slopes that go on from the last one by more than the difference.

    Permenter & Yuan 2024 (arXiv:2306.04848). Order 1. ComfyUI's `sample_gradient_estimation`.

    Args:
        gamma: by how much: 1 is `euler`, 1.5 is `ipndm` of order 2, and 2 the paper's choice.
    """
    last: Tensor | None = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        slope = (x - denoised) / sigma
        x = x + (slope if last is None else last + (slope - last) * gamma) * (sigma_next - sigma)
        last = slope
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
        eta: Fraction of fresh noise; at 0 none is drawn.
        s_noise: a factor on the fresh noise.
        order: how many predictions, 1 to 3. With 3 the method is of order 2 still, because every program has
            the curvature at half the weight that it should have.
        solver_type: how the second-order term of a step with two is weighted.
        lowered: how many of the last steps use no more predictions than there are steps left. A step to 0
            always uses one.
    """
    steps = len(sigmas) - 1
    older: list[tuple[float, Tensor]] = []  # previous steps, newest first: length, prediction
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
            weight = phi_2(span)
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


def dpmpp_2m_sde_heun(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    final_draw: bool = True,
) -> Steps:
    """`dpmpp_2m_sde` with solver type heun; arguments as there."""
    return (
        yield from dpmpp_2m_sde(
            x, sigmas, noise, eta=eta, s_noise=s_noise, solver_type="heun", final_draw=final_draw
        )
    )


def res_multistep(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """RES, the refined exponential solver, of two steps (Zhang et al. 2023, arXiv:2308.02157).

    Its weights are those that `dpmpp_2m` has with solver type heun. Order 2. ComfyUI's
    `sample_res_multistep`.
    """
    return (yield from dpmpp_2m(x, sigmas, noise, solver_type="heun"))


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

    The first of two is a step of order 1; the second starts again at the same sigma, with what was predicted
    at both. Order 2. `DPMSolverSinglestepScheduler`. Arguments as in `dpmpp_2m_sde`.
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
            weight = phi_2(h) if solver_type == "heun" else -0.5 * math.expm1(-h)
            x = first + (x - first) * (sigma_next / top)
            x = x + (denoised - first) * (weight * h / math.log(top / sigma))
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


def unipc_bh1(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 3,
    lower_order_final: bool = True,
) -> Steps:
    """`unipc` as webui's "UniPC" and ComfyUI's `uni_pc` have it: B(h) = h, order 3; arguments as there."""
    return (
        yield from unipc(
            x, sigmas, noise, order=order, solver_type="bh1", lower_order_final=lower_order_final
        )
    )


def unipc_bh2(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 3,
    lower_order_final: bool = True,
) -> Steps:
    """`unipc` of order 3, as ComfyUI's `uni_pc_bh2` has it; arguments as there."""
    return (yield from unipc(x, sigmas, noise, order=order, lower_order_final=lower_order_final))


def er_scale(sigma: float) -> float:
    """The noise scale of `er_sde` that its authors chose (arXiv:2309.06169)."""
    return sigma * (math.exp(sigma**0.3) + 10.0)


def er_sde(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_noise: float = 1.0,
    order: int = 3,
    scale: Callable[[float], float] = er_scale,
) -> Steps:
    """Extended reverse-time SDE solver (Cui et al. 2023, arXiv:2309.06169).

    Of all diffusion equations with the same marginals, `scale` chooses one: it solves that exactly where the
    predictions are a polynomial in sigma. ComfyUI's `sample_er_sde`.

    Args:
        s_noise: a factor on the fresh noise.
        order: how many predictions, 1 to 3. With 3 the method is of order 2 still, as `dpmpp_2m_sde` is.
        scale: the paper's phi, of sigma: sigma**2 is the usual reverse equation, sigma the probability flow.
            Between them there is less noise.
    """
    known: list[tuple[float, Tensor]] = []  # (sigma, denoised), newest first
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0.0:
            return denoised
        known = [(sigma, denoised), *known[: order - 1]]
        kept = scale(sigma_next) / scale(sigma)
        x = denoised + (x - denoised) * kept
        if len(known) > 1:
            slope = (known[0][1] - known[1][1]) / (known[0][0] - known[1][0])
            x = x + slope * _er_weight(1, sigma, sigma_next, scale)
        if len(known) > 2:
            older = (known[1][1] - known[2][1]) / (known[1][0] - known[2][0])
            curve = (slope - older) / ((known[0][0] - known[2][0]) / 2)
            x = x + curve * _er_weight(2, sigma, sigma_next, scale)
        x = x + noise() * (math.sqrt(max(sigma_next**2 - (sigma * kept) ** 2, 0.0)) * s_noise)
    return x


def sa_solver(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_noise: float = 1.0,
    predictor: int = 2,
    corrector: int = 2,
    lower_order_final: bool = True,
    taus: Sequence[float] | None = None,
) -> Steps:
    """Stochastic Adams: a multistep predictor, corrected by the next prediction at no extra call.

    Xue et al. 2023 (arXiv:2309.05019). `SASolverScheduler`, which draws at every step.

    Args:
        s_noise: a factor on the fresh noise.
        predictor, corrector: how many predictions each uses.
        lower_order_final: whether the last steps use fewer. A step to 0 always uses one.
        taus: for each step the share of fresh noise, 0 (the probability flow) to 1 (the usual reverse
            equation) or more; by default 1.
    """
    steps = len(sigmas) - 1
    known: list[tuple[float, Tensor]] = []  # (sigma, denoised), newest first
    before, fresh, tau = x, x, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        known = [(sigma, denoised), *known[: max(predictor, corrector) - 1]]
        left = steps - i if lower_order_final else len(known)
        if i > 0:
            used = known[: min(corrector, left + 2)]
            x = _adams_step(before, sigmas[i - 1], sigma, used, tau, fresh)
        if sigma_next == 0.0:
            return denoised
        before, fresh, tau = x, noise() * s_noise, 1.0 if taus is None else taus[i]
        x = _adams_step(x, sigma, sigma_next, known[: min(predictor, left)], tau, fresh)
    return x


ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the last slopes, newest first, for evenly spaced steps."""


def _order_at(left: int, known: int, lowered: int) -> int:
    """Return how many of `known` predictions a step uses that is followed by `left - 1` more."""
    return min(known, left) if left <= lowered else known


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


def _er_weight(power: int, sigma: float, end: float, scale: Callable[[float], float]) -> float:
    """Return the weight in a step of `er_sde` of a derivative of the prediction, (level - sigma)**power /
    power!.

    With scale phi it is phi(end) times the integral, from `sigma` to `end`, of that power of the way times
    phi' / phi**2; by parts, the power at the end and an integral that is smooth in log(level). That is by
    Simpson's rule.
    """
    count = 32
    span = math.log(sigma / end) / count
    levels = [end * math.exp(span * i) for i in range(count + 1)]
    values = [(level - sigma) ** (power - 1) * level / scale(level) for level in levels]
    integral = span / 3 * (values[0] + values[-1] + 4 * sum(values[1::2]) + 2 * sum(values[2:-1:2]))
    return (end - sigma) ** power / power + scale(end) * integral


def _adams_step(
    x: Tensor, sigma: float, end: float, known: Sequence[tuple[float, Tensor]], tau: float, fresh: Tensor
) -> Tensor:
    """From `sigma` to `end` by the polynomial in log(sigma) through known predictions.

    Equations 15 and 18 of arXiv:2309.05019. With two predictions the first moment is rounded up as in the
    authors' program, which for few steps is the better.
    """
    h, pace = math.log(sigma / end), 1.0 + tau**2
    moments = [-math.expm1(-pace * h)]
    for k in range(1, len(known)):
        moments.append(h**k - k / pace * moments[-1])
    if len(known) == 2:
        moments[1] = pace * h**2 / 2
    weights = _matching([math.log(sigma / level) for level, _ in known], moments)
    x = x * ((end / sigma) * math.exp(-(tau**2) * h))
    for weight, (_, denoised) in zip(weights, known, strict=True):
        x = x + denoised * weight
    return x + fresh * (end * math.sqrt(-math.expm1(-2.0 * tau**2 * h)))
