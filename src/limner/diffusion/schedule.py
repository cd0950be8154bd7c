"""Noise schedules: the noise level of each timestep, and the choice of timesteps and sigmas of a run.

At timestep t of T the noisy latent is `x_t = sqrt(a_t) * x0 + sqrt(1 - a_t) * noise`, with a_t the product of
`1 - beta` up to t (Ho et al. 2020, arXiv:2006.11239). In sigma coordinates that is the same latent
divided by sqrt(a_t): `x0 + sigma_t * noise` with `sigma_t = sqrt((1 - a_t) / a_t)`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
"""linear: evenly spaced betas (Ho et al. 2020). scaled_linear: evenly spaced square roots (Stable
Diffusion). squaredcos_cap_v2: the cosine of Nichol & Dhariwal 2021 (arXiv:2102.09672), which has no ends."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The cumulative signal power `a_t` of each training timestep.

    Args:
        alphas_cumprod: strictly decreasing in [0, 1). The last may be 0 (zero terminal SNR); its sigma is
            then infinite.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if not a or not all(1.0 > x > y for x, y in zip(a, (*a[1:], -1.0), strict=True)) or a[-1] < 0.0:
            raise ValueError("alphas_cumprod must be strictly decreasing from below 1 to 0 or above")

    @classmethod
    def from_betas(cls, betas: Tensor, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
        """From the variance added at each timestep, [T], each in (0, 1), computed in its dtype.

        With `zero_terminal_snr`, sqrt(a) is shifted and stretched so that its first value stays and its
        last is 0: algorithm 1 of Lin et al. 2023 (arXiv:2305.08891).
        """
        a = (1.0 - betas).cumprod(0)
        if zero_terminal_snr:
            signal = a.sqrt()
            a = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2
        return cls(tuple(a.tolist()))

    @classmethod
    def from_beta_schedule(
        cls,
        name: BetaSchedule = "scaled_linear",
        timesteps: int = 1000,
        start: float = 0.00085,
        end: float = 0.012,
        *,
        zero_terminal_snr: bool = False,
        dtype: torch.dtype | None = None,
    ) -> NoiseSchedule:
        """From a named family of betas between `start` and `end`; the defaults are Stable Diffusion's.

        The dtype is that of the arithmetic, float64 by default. In float32 sigmas differ by about 1e-6.
        """
        import torch  # here, as requests are resolved without it

        dtype = dtype or torch.float64
        if name == "linear":
            betas = torch.linspace(start, end, timesteps, dtype=dtype)
        elif name == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=dtype) ** 2
        elif name == "squaredcos_cap_v2":
            time = (torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64) + 0.008) / 1.008
            a = torch.cos(time * (math.pi / 2)) ** 2
            betas = (1.0 - a[1:] / a[:-1]).clamp(max=0.999).to(dtype)
        else:
            raise ValueError(
                f"beta schedule is {name!r}; expected one of {', '.join(get_args(BetaSchedule))}"
            )
        return cls.from_betas(betas, zero_terminal_snr=zero_terminal_snr)

    def __len__(self) -> int:
        """The number of training timesteps."""
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The noise level of each timestep, increasing; the last is infinite under zero terminal SNR."""
        return tuple(math.sqrt((1.0 - a) / a) if a > 0.0 else math.inf for a in self.alphas_cumprod)

    def capped(self, sigma: float) -> NoiseSchedule:
        """The same schedule with `sigma` in the place of an infinite last sigma, or itself."""
        if self.alphas_cumprod[-1] > 0.0:
            return self
        return NoiseSchedule((*self.alphas_cumprod[:-1], 1.0 / (sigma**2 + 1.0)))

    def sigma_at(self, timestep: float, *, interpolation: Literal["linear", "log"] = "linear") -> float:
        """The sigma of a timestep in [0, T - 1]; between integers interpolated, or its log (k-diffusion)."""
        low = min(int(timestep), len(self) - 1)
        if timestep == low:
            return self.sigmas[low]
        share = timestep - low
        below, above = self.sigmas[low], self.sigmas[low + 1]
        if interpolation == "log":
            return math.exp((1.0 - share) * math.log(below) + share * math.log(above))
        return (1.0 - share) * below + share * above

    def timestep_at(self, sigma: float, *, quantize: bool = False) -> float:
        """The timestep of a sigma, in [0, T - 1]: interpolated in log(sigma), or the nearest integer's.

        Sigmas outside the schedule have its first or last timestep.
        """
        low = min(max(bisect_right(self.sigmas, sigma) - 1, 0), len(self) - 2)
        below, above = math.log(self.sigmas[low]), math.log(self.sigmas[low + 1])
        share = min(max((math.log(max(sigma, 1e-10)) - below) / (above - below), 0.0), 1.0)
        if quantize:
            return float(low + (share > 0.5))
        return low + share

    def rates_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The signal rate sqrt(a_t) and the noise rate sqrt(1 - a_t) of integer timesteps [B].

        Each [B, 1, ...] to multiply `like` [B, ...], on its device, in its dtype but at least float32.
        """
        import torch

        dtype = torch.promote_types(like.dtype, torch.float32)
        rates = self._rates.to(device=like.device, dtype=dtype)[:, timesteps.to(like.device)]  # [2, B]
        signal, noise = rates.reshape(2, -1, *(1,) * (like.ndim - 1))  # [2, B] -> [2, B, 1, ...]
        return signal, noise

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latent that is the network's input: sqrt(a_t) * x0 + sqrt(1 - a_t) * noise.

        Args:
            x0: clean latents [B, ...].
            noise: unit normal, of the same shape.
            timesteps: integers in [0, len(self)), [B].

        Returns:
            [B, ...] in the dtype of `x0`.
        """
        signal_rate, noise_rate = self.rates_at(timesteps, x0)
        return (signal_rate * x0 + noise_rate * noise).to(x0.dtype)

    @cached_property
    def _rates(self) -> Tensor:
        # Rooted in float64: at small t, 1 - a would lose four of float32's seven digits.
        import torch

        a = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return torch.stack((a, 1.0 - a)).sqrt()  # [2, T]


Spacing = Literal["leading", "linspace", "trailing"]
"""How a run's timesteps are spread (table 2 of Lin et al. 2023, arXiv:2305.08891). leading: multiples of
T // n from `offset` up. trailing: multiples of T / n from T - 1 down. linspace: both ends included."""


def spaced_timesteps(spacing: Spacing, count: int, total: int, *, offset: int = 0) -> list[float]:
    """`count` timesteps of `total`, decreasing. linspace alone gives fractions.

    The arithmetic is NumPy's as used by diffusers, half to even and all, since a rounded timestep that
    differs by one is another image. So a single linspace step starts at 0, where almost no noise is
    left to remove. (For a few counts, such as 61, trailing spacing gives one step too many in diffusers, at
    timestep -1. Not here.)

    Args:
        offset: the lowest timestep of leading (`steps_offset` in diffusers).
    """
    if spacing == "leading":
        return [float(i * (total // count) + offset) for i in reversed(range(count))]
    if spacing == "linspace":
        return _linspace(0.0, total - 1.0, count)[::-1]
    if spacing == "trailing":
        step = (total - total / count) - total
        return [round(total + i * step) - 1.0 for i in range(count)]
    raise ValueError(f"spacing is {spacing!r}; expected one of {', '.join(get_args(Spacing))}")


def karras(count: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """`count` sigmas whose rho-th roots are evenly spaced, decreasing (Karras et al. 2022, equation 5).

    Both ends are included; one sigma alone is `sigma_max`.
    """
    inner = [x**rho for x in _linspace(sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho), count)[1:-1]]
    return [sigma_max, *inner, sigma_min][:count]


def exponential(count: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`count` sigmas whose logarithms are evenly spaced, decreasing; ends as in `karras`."""
    inner = [math.exp(x) for x in _linspace(math.log(sigma_max), math.log(sigma_min), count)[1:-1]]
    return [sigma_max, *inner, sigma_min][:count]


def polyexponential(count: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> list[float]:
    """`count` sigmas whose logarithms are spaced as powers (k-diffusion); ends as in `karras`.

    Args:
        rho: the power. At 1, which every program has for a default, it is `exponential`.
    """
    low, high = math.log(sigma_min), math.log(sigma_max)
    inner = [math.exp(low + (high - low) * x**rho) for x in _linspace(1.0, 0.0, count)[1:-1]]
    return [sigma_max, *inner, sigma_min][:count]


def beta(count: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`count` sigmas at the quantiles of a beta distribution (Lee et al. 2024, arXiv:2407.12173).

    Of its two parameters 0.6, over sigmas, as diffusers and AUTOMATIC1111's webui have it (ComfyUI's is over
    timesteps): dense at both ends, which are as in `karras`.
    """
    inner = [_beta_quantile(x) for x in _linspace(1.0, 0.0, count)[1:-1]]
    return [sigma_max, *(sigma_min + (sigma_max - sigma_min) * x for x in inner), sigma_min][:count]


def kl_optimal(count: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`count` sigmas whose arctangents are evenly spaced, decreasing; ends as in `karras`.

    Least divergence on Gaussian data (Sabour et al. 2024, arXiv:2404.14507, section 3.1). As in ComfyUI, a
    last step goes from `sigma_min` on to 0; AUTOMATIC1111's webui leaves it out.
    """
    inner = [math.tan(x) for x in _linspace(math.atan(sigma_max), math.atan(sigma_min), count)[1:-1]]
    return [sigma_max, *inner, sigma_min][:count]


def normal(count: int, total: int) -> list[float]:
    """Timesteps from the last to 0, both included. Unlike linspace spacing, one step alone is the last."""
    return _linspace(total - 1.0, 0.0, count)


def sgm_uniform(count: int, total: int) -> list[float]:
    """Timesteps evenly spaced on the way to 0, which is left out: as in Stability's generative-models."""
    return _linspace(total - 1.0, 0.0, count + 1)[:-1]


def simple(count: int, total: int) -> list[float]:
    """Every (total / count)-th timestep, from the last down, its place in the schedule cut off."""
    return [total - 1.0 - int(i * (total / count)) for i in range(count)]


def ddim_uniform(count: int, total: int) -> list[float]:
    """Every (total // count)-th timestep, from 1 up, as DDIM has them.

    Only the lowest `count` are used; other programs add one or more steps if `count` does
    not divide `total`.
    """
    return spaced_timesteps("leading", count, total, offset=1)


ALIGNED = {
    "sd1": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "xl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
}
"""Model family -> the ten timesteps that Align Your Steps found, and the final one."""


def align_your_steps(count: int, best: Sequence[float]) -> list[float]:
    """`count` sigmas, interpolated from ten that are optimal for a model family (Sabour et al. 2024,
    arXiv:2404.14507).

    Interpolated in log(sigma) between those, as the authors and ComfyUI do. AUTOMATIC1111's webui makes the
    lowest sigma one of the `count`; here a run goes to its end from the one before.

    Args:
        best: sigmas, decreasing: the ten of `ALIGNED`, and the lowest.
    """
    logs, sigmas = [math.log(sigma) for sigma in best], []
    for place in _linspace(0.0, len(best) - 1.0, count + 1)[:-1]:
        low = int(place)
        sigmas.append(math.exp(logs[low] + (place - low) * (logs[low + 1] - logs[low])))
    return sigmas


@dataclass(frozen=True)
class SigmaScheduleInfo:
    """A row of `SIGMA_SCHEDULES`.

    Attributes:
        label: Name in AUTOMATIC1111's webui.
        aliases: Further names, of other programs.
        sigmas: Function of (count, sigma_min, sigma_max), for schedules that need no timesteps.
        timesteps: Function of (count, total), for the schedules of ComfyUI and AUTOMATIC1111's webui
            that are timesteps. Sigmas between trained timesteps are interpolated in log(sigma).
        spacing: Timestep spacing that `timesteps` is a kind of.
        aligned: Timesteps by family, for schedules made for certain models.
        integers: How diffusers makes integers of the timesteps, if it does.
    """

    label: str
    aliases: tuple[str, ...] = ()
    sigmas: Callable[[int, float, float], list[float]] | None = None
    timesteps: Callable[[int, int], list[float]] | None = None
    spacing: Spacing | None = None
    aligned: Mapping[str, Sequence[int]] | None = None
    integers: Literal["rounded", "truncated"] | None = None


SIGMA_SCHEDULES: dict[str, SigmaScheduleInfo] = {
    "uniform": SigmaScheduleInfo("Uniform"),
    "karras": SigmaScheduleInfo("Karras", ("ka",), sigmas=karras, integers="rounded"),
    "exponential": SigmaScheduleInfo("Exponential", sigmas=exponential, integers="truncated"),
    "polyexponential": SigmaScheduleInfo("Polyexponential", sigmas=polyexponential),
    "beta": SigmaScheduleInfo("Beta", sigmas=beta, integers="truncated"),
    "kl_optimal": SigmaScheduleInfo("KL Optimal", sigmas=kl_optimal),
    "normal": SigmaScheduleInfo("Normal", timesteps=normal, spacing="linspace"),
    "simple": SigmaScheduleInfo("Simple", timesteps=simple, spacing="trailing"),
    "sgm_uniform": SigmaScheduleInfo("SGM Uniform", timesteps=sgm_uniform, spacing="linspace"),
    "ddim_uniform": SigmaScheduleInfo("DDIM", timesteps=ddim_uniform, spacing="leading"),
    "align_your_steps": SigmaScheduleInfo("Align Your Steps", ("ays",), aligned=ALIGNED),
}
"""The sigmas that a run visits, by name. uniform: those of timesteps that `Spacing` spreads evenly."""

if TYPE_CHECKING:
    SigmaScheduleName = str
else:
    SigmaScheduleName = Literal[*SIGMA_SCHEDULES]


def _beta_quantile(share: float, shape: float = 0.6) -> float:
    """Where the beta distribution of `shape` and `shape` has `share` of its mass below.

    Its distribution function is x**shape times a power series, which half the range is enough for; solved for
    that x**shape over and over, it gives another digit or so each time.
    """
    if share > 0.5:
        return 1.0 - _beta_quantile(1.0 - share, shape)
    terms, term = [], 1.0
    for k in range(_BETA_TERMS):
        terms.append(term / (shape + k))
        term *= (k + 1.0 - shape) / (k + 1.0)
    mass = share * math.gamma(shape) ** 2 / math.gamma(2.0 * shape)
    x = 0.0
    for _ in range(_BETA_ROUNDS):
        x = (mass / sum(term * x**k for k, term in enumerate(terms))) ** (1.0 / shape)
    return x


_BETA_TERMS, _BETA_ROUNDS = 50, 25  # at x = 0.5, the slowest place, both leave less than 1e-15


def _linspace(start: float, end: float, count: int) -> list[float]:
    """`count` evenly spaced numbers, both ends included; `start` alone if count is 1."""
    step = (end - start) / max(count - 1, 1)
    return [end if 0 < i == count - 1 else start + i * step for i in range(count)]


def raised(
    sigma: float, steps: int, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> float:
    """Return the sigma at which one of `steps` steps begins with churn; arguments as in `euler`."""
    share = min(s_churn / steps, math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (1.0 + share)
