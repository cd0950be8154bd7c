"""What one run needs: the sigmas it visits, the timestep of each, and how its latents begin and end.

The mathematics leaves open which timesteps a run visits, where it stops, and how large the first noise is.
Checkpoints are published with settings for the classes of diffusers, which answer differently from class to
class; `CONVENTIONS` has their answers, so that the same settings give the same picture.

    plan = make_plan(config, steps=30)
    steps = SAMPLERS[plan.sampler](unit_noise * plan.start_scale, plan.sigmas, noise, **plan.options)
    # for each yielded (x, sigma): the network is asked about c_in * x at plan.timestep(sigma)
    latents = result / plan.end_scale
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, get_args

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.samplers.steps import raised
from limner.diffusion.schedule import (
    ALIGNED,
    SIGMA_SCHEDULES,
    TIMESTEP_SCHEDULES,
    NoiseSchedule,
    SigmaSchedule,
    Spacing,
    align_your_steps,
    spaced_timesteps,
)


@dataclass(frozen=True)
class Convention:
    """How a scheduler class of diffusers answers what the mathematics leaves open.

    Args:
        spacing: its timestep spacing where the config names none.
        own_spacing: even where the config names another.
        unit_variance: it scales the latents by 1 / sqrt(sigma**2 + 1), from the first noise to the result.
            Otherwise the first noise is as large as sigma, or with leading spacing (whose first sigma is not
            the schedule's last) sqrt(sigma**2 + 1), and the result is taken as it is.
        fractional: it asks the network about timesteps between the trained ones. Otherwise they are rounded.
        rounds_karras: it rounds the timesteps of the Karras sigma schedule.
        spare_step: it spaces one step more than asked and leaves out the last, and lets a sigma schedule
            span all that the network was trained on, with its timesteps cut off where diffusers has that
            schedule. Otherwise that spans what the spacing visits.
        stride: each step goes T // n timesteps down, even where the next timestep lies elsewhere, and the
            last past 0 to where `set_alpha_to_one`, whose default this is, says. None for classes that go
            to the next timestep, and then to 0.
        final_sigmas_type: it heeds the config's key of this name. Otherwise it ends at 0.
        sigma_schedules: it heeds the config's `use_karras_sigmas` and the like.
        distilled: it visits some of the `original_inference_steps` timesteps that the model was distilled on,
            whatever the spacing.
        infinity: what an infinite sigma (zero terminal SNR) stands for.
    """

    spacing: Spacing
    unit_variance: bool
    fractional: bool
    own_spacing: bool = False
    rounds_karras: bool = False
    spare_step: bool = False
    stride: bool | None = None
    final_sigmas_type: bool = False
    sigma_schedules: bool = False
    distilled: bool = False
    infinity: float = 4096.0


_DDPM = Convention("leading", unit_variance=True, fractional=False, infinity=1e6)
_EULER_A = Convention("linspace", unit_variance=False, fractional=True)
_HEUN = replace(_EULER_A, sigma_schedules=True)
_DPM2 = replace(_HEUN, rounds_karras=True)
_DPM = Convention(
    "linspace",
    unit_variance=True,
    fractional=False,
    rounds_karras=True,
    spare_step=True,
    final_sigmas_type=True,
    sigma_schedules=True,
)

CONVENTIONS: dict[str, Convention] = {
    "ddim": replace(_DDPM, stride=True),
    "ddpm": _DDPM,
    "euler": replace(_HEUN, final_sigmas_type=True),
    "euler_a": _EULER_A,
    "heun": _HEUN,
    "heunpp2": _HEUN,
    "restart": _HEUN,
    "dpm2": _DPM2,
    "dpm2_a": _DPM2,
    "lms": _HEUN,
    "deis": replace(_DPM, final_sigmas_type=False),
    "pndm": replace(_DDPM, stride=False),
    "ipndm": _HEUN,
    "dpmpp_2m": _DPM,
    "dpmpp_2m_sde": _DPM,
    "dpmpp_2m_sde_heun": _DPM,
    "dpmpp_3m_sde": _DPM,
    "dpmpp_2s": replace(_DPM, own_spacing=True),
    "dpmpp_2s_a": _HEUN,
    "dpmpp_sde": _HEUN,
    "dpm_fast": _HEUN,
    "dpm_adaptive": _HEUN,
    "unipc": _DPM,
    "unipc_bh1": _DPM,
    "unipc_bh2": _DPM,
    "res_multistep": _HEUN,
    "gradient_estimation": _HEUN,
    "er_sde": _HEUN,
    "seeds_2": _HEUN,
    "seeds_3": _HEUN,
    "sa_solver": replace(_DPM, final_sigmas_type=False),
    "lcm": replace(_DDPM, spacing="trailing", distilled=True),
    "tcd": replace(_DDPM, spacing="trailing", distilled=True),
    "ddim_cfg_pp": replace(_DDPM, stride=True),
    "euler_cfg_pp": replace(_HEUN, final_sigmas_type=True),
    "euler_a_cfg_pp": _EULER_A,
    "dpmpp_2m_cfg_pp": _DPM,
    "dpmpp_2s_a_cfg_pp": _HEUN,
}
"""One for each of `SAMPLERS`."""


@dataclass(frozen=True)
class Plan:
    """A run, decided.

    Args:
        sampler: a key of `SAMPLERS`.
        spacing: the timestep spacing it came from.
        sigma_schedule: the sigma schedule it came from.
        sigmas: the sigmas to visit, decreasing, and the one to end at: one more than steps.
        timesteps: what the network is told at each but the last.
        start_scale: the factor on unit noise that gives the first latent.
        end_scale: the divisor that gives the latents to decode.
        options: the sampler's keyword arguments.
        schedule: the noise schedule, with no infinite sigma.
        begun, left: how many steps of the whole run lie before these and behind them.
    """

    sampler: str
    spacing: Spacing
    sigma_schedule: SigmaSchedule
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    start_scale: float
    end_scale: float
    options: Mapping[str, Any]
    schedule: NoiseSchedule = field(repr=False)
    begun: int = 0
    left: int = 0

    def part(self, begin: int, end: int | None = None) -> "Plan":
        """The steps from `begin` up to `end`: what begins with a picture, or is handed over on the way."""
        steps = len(self.timesteps)
        end = steps if end is None else end
        if not 0 <= begin < end <= steps:
            raise ValueError(f"steps {begin} to {end} are no part of {steps}")
        options = dict(self.options)
        for name in _PER_STEP & options.keys():
            if len(options[name]) == steps:
                options[name] = options[name][begin:end]
            elif (begin, end) != (0, steps):
                del options[name]  # of pndm's calls, which are other ones if it begins elsewhere
        return replace(
            self,
            sigmas=self.sigmas[begin : end + 1],
            timesteps=self.timesteps[begin:end],
            options=options,
            begun=self.begun + begin,
            left=self.left + steps - end,
        )

    def step_at(self, share: float) -> int:
        """The first step that is told a timestep below this share of the way, as diffusers cuts a run."""
        cutoff = round(len(self.schedule) * (1.0 - share))
        return sum(timestep >= cutoff for timestep in self.timesteps)

    def timestep(self, sigma: float) -> float:
        """What the network is told at a sigma that the sampler yields."""
        return self._timesteps.get(sigma, self.schedule.timestep_at(sigma))

    @cached_property
    def begins(self) -> tuple[float, ...]:
        """The sigmas at which the steps begin: those to visit, or higher ones where there is churn."""
        churn = {name: self.options[name] for name in self.options.keys() & {"s_churn", "s_tmin", "s_tmax"}}
        return tuple(raised(sigma, len(self.timesteps), **churn) for sigma in self.sigmas[:-1])

    @cached_property
    def _timesteps(self) -> dict[float, float]:
        return dict(zip(self.sigmas, self.timesteps, strict=False))


_SIGMA_DATA = 0.5  # of the boundary condition of latent consistency models (Luo et al. 2023)
_ASKED_FOR = {"eta", "s_churn", "s_tmin", "s_tmax", "s_noise"}  # by requests; the others by configs
_PER_STEP = {"legs", "kept", "inner", "taus"}  # options of samplers


def make_plan(
    config: SchedulerConfig,
    steps: int,
    *,
    sampler: str | None = None,
    spacing: Spacing | None = None,
    sigma_schedule: SigmaSchedule | None = None,
    options: Mapping[str, Any] | None = None,
    visits: Sequence[float] | None = None,
) -> Plan:
    """Decide a run.

    Args:
        config: the checkpoint's.
        steps: how many, from 1 to the number of training timesteps. Of them `dpm_adaptive` heeds only the
            first and the last sigma, and takes as many between as it needs.
        sampler: a key of `SAMPLERS`; None is the checkpoint's own.
        spacing: None is the checkpoint's own, or else the default of the sampler's class in diffusers. Some
            samplers and sigma schedules visit timesteps of their own, and take no other.
        sigma_schedule: None is the checkpoint's own where the sampler's class has that setting, or uniform.
        options: keyword arguments for the sampler, such as `eta`, over those that the checkpoint implies.
        visits: as many timesteps as steps, decreasing, in the place of those that are spaced.

    Raises:
        ValueError: for a name, number or option that cannot be used; the message says which.
    """
    name = sampler or config.sampler
    if name is None:
        raise ValueError(
            f"the checkpoint asks for {config.class_name} ({config.algorithm_type}, order "
            f"{config.solver_order}), which is not among the samplers; name one of {', '.join(SAMPLERS)}"
        )
    if name not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}; expected one of {', '.join(SAMPLERS)}")
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(f"steps is {steps}; expected 1 to {config.num_train_timesteps}")
    peer = CONVENTIONS[name]
    sigma_schedule = sigma_schedule or (config.sigma_schedule if peer.sigma_schedules else "uniform")
    spacing = _spacing(name, config, spacing, sigma_schedule)
    # In float32, as diffusers computes it: where a sigma's timestep is rounded, 1e-6 can make it another.
    schedule = config.noise_schedule_fp32.capped(peer.infinity)

    if visits is not None:
        if peer.stride is not None or sigma_schedule != "uniform":
            what = name if sigma_schedule == "uniform" else sigma_schedule
            raise ValueError(f"{what} visits timesteps of its own, and takes no others")
        timesteps = [float(t) for t in visits]
        if len(timesteps) != steps or timesteps[-1] < 0.0:
            raise ValueError(f"timesteps are {timesteps}; expected {steps}, none below 0")
    elif sigma_schedule in TIMESTEP_SCHEDULES:
        timesteps = TIMESTEP_SCHEDULES[sigma_schedule][1](steps, len(schedule))
    elif peer.distilled:
        timesteps = _distilled(steps, len(schedule), config.original_inference_steps)
    else:
        timesteps = _spaced(peer, spacing, steps, len(schedule), config.steps_offset)
    if timesteps[0] > len(schedule) - 1 or any(t <= t_next for t, t_next in pairwise(timesteps)):
        if visits is not None:
            raise ValueError(f"timesteps are {timesteps}; expected to decrease from {len(schedule) - 1} down")
        placed = spacing if sigma_schedule == "uniform" else sigma_schedule
        raise ValueError(
            f"steps is {steps}, more than {placed} spacing can place on {len(schedule)} timesteps"
        )
    if sigma_schedule in TIMESTEP_SCHEDULES:
        sigmas = [schedule.sigma_at(t, interpolation="log") for t in timesteps]
    else:
        sigmas = [schedule.sigma_at(t) for t in timesteps]
    if sigma_schedule not in ("uniform", *TIMESTEP_SCHEDULES):
        sigmas, timesteps = _respaced(peer, sigma_schedule, schedule, sigmas, config.family)
    chosen = _implied_options(name, config, timesteps)
    final = _final_sigma(name, peer, config, schedule)
    if peer.stride is not None and sigma_schedule == "uniform":
        stride = len(schedule) // steps
        ends = [schedule.sigma_at(t - stride) if t >= stride else final for t in timesteps]
        final = ends[-1]
        if ends[:-1] != sigmas[1:]:
            legs = list(zip(sigmas, ends, strict=True))
            if name == "pndm":
                legs.insert(1, (schedule.sigma_at(min(timesteps[1] + stride, len(schedule) - 1)), sigmas[1]))
            chosen["legs"] = legs

    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option, value in (options or {}).items():
        if option not in accepted:
            names = ", ".join(name for name in accepted if name in _ASKED_FOR) or "none"
            raise ValueError(f"{name} has no option {option!r} (given {value!r}); it has {names}")
        chosen[option] = value
    if name == "tcd":
        share = 1.0 - chosen.get("eta", 0.3)
        chosen["inner"] = [schedule.sigma_at(int(share * t)) for t in (*timesteps[1:], 0.0)]
    return Plan(
        sampler=name,
        spacing=spacing,
        sigma_schedule=sigma_schedule,
        sigmas=(*sigmas, final),
        timesteps=tuple(timesteps),
        start_scale=_norm(sigmas[0]) if peer.unit_variance or spacing == "leading" else sigmas[0],
        end_scale=_norm(final) if peer.unit_variance else 1.0,
        options=chosen,
        schedule=schedule,
    )


def _spacing(
    name: str, config: SchedulerConfig, asked: Spacing | None, sigma_schedule: SigmaSchedule
) -> Spacing:
    """The timestep spacing of a run."""
    peer = CONVENTIONS[name]
    what, own = name, peer.spacing if peer.distilled else None
    if sigma_schedule in TIMESTEP_SCHEDULES:
        what, own = sigma_schedule, TIMESTEP_SCHEDULES[sigma_schedule][0]
    if own is not None and asked not in (None, own):
        raise ValueError(
            f"timestep_spacing is {asked!r}, but {what} visits timesteps of its own: leave it out, "
            f"or say {own!r}"
        )
    return own or asked or (None if peer.own_spacing else config.timestep_spacing) or peer.spacing


def _spaced(peer: Convention, spacing: Spacing, steps: int, total: int, offset: int) -> list[float]:
    """The timesteps of a run with the uniform sigma schedule."""
    spare = peer.spare_step and spacing != "trailing"
    timesteps = spaced_timesteps(spacing, steps + spare, total, offset=offset)[:steps]
    return timesteps if peer.fractional else [float(round(t)) for t in timesteps]


def _distilled(steps: int, total: int, original: int) -> list[float]:
    """Timesteps of `LCMScheduler`: of those that the model was distilled on, as many, evenly spaced."""
    original = min(original, total)
    stride = total // original
    known = [float((number + 1) * stride - 1) for number in range(original)][::-1]
    if steps > original:
        raise ValueError(f"steps is {steps}, more than the {original} that the model was distilled from")
    return [known[number * original // steps] for number in range(steps)]


def _respaced(
    peer: Convention,
    sigma_schedule: SigmaSchedule,
    schedule: NoiseSchedule,
    sigmas: list[float],
    family: str | None,
) -> tuple[list[float], list[float]]:
    """The sigmas of a sigma schedule in the place of `sigmas`, and their timesteps."""
    if sigma_schedule == "align_your_steps":
        if family not in ALIGNED:
            known = " and ".join(ALIGNED)
            raise ValueError(f"align_your_steps is for models of family {known}; this one is {family}")
        sigmas = align_your_steps(len(sigmas), [schedule.sigma_at(t) for t in ALIGNED[family]])
        return sigmas, [schedule.timestep_at(sigma) for sigma in sigmas]
    if sigma_schedule not in SIGMA_SCHEDULES:
        allowed = ", ".join(get_args(SigmaSchedule))
        raise ValueError(f"sigma_schedule is {sigma_schedule!r}; expected one of {allowed}")
    span = schedule.sigmas if peer.spare_step else sigmas[::-1]
    sigmas = SIGMA_SCHEDULES[sigma_schedule](len(sigmas), span[0], span[-1])
    timesteps = [schedule.timestep_at(sigma) for sigma in sigmas]
    if peer.rounds_karras and sigma_schedule == "karras":
        timesteps = [float(round(t)) for t in timesteps]
    elif peer.spare_step and sigma_schedule in ("exponential", "beta"):
        # Cut off after rounding errors that leave the first just short of the last timestep.
        timesteps = [float(min(int(t), len(schedule) - 2)) for t in timesteps]
    return sigmas, timesteps


def _final_sigma(name: str, peer: Convention, config: SchedulerConfig, schedule: NoiseSchedule) -> float:
    """Where a run ends whose last step goes past timestep 0."""
    if name == "lcm":
        return 0.0
    if name in ("tcd", "deis", "sa_solver"):
        return schedule.sigmas[0]
    if peer.stride is not None:
        to_zero = peer.stride if config.set_alpha_to_one is None else config.set_alpha_to_one
    else:
        to_zero = not (peer.final_sigmas_type and config.final_sigmas_type == "sigma_min")
    return 0.0 if to_zero else schedule.sigmas[0]


def _implied_options(name: str, config: SchedulerConfig, timesteps: list[float]) -> dict[str, Any]:
    """The sampler's keyword arguments that a checkpoint implies. What another solver means is left out."""
    if name == "ddpm":
        return {"final_draw": timesteps[-1] > 0.0}
    if name == "lcm":
        scaled = [config.timestep_scaling * t for t in timesteps]
        return {"kept": [_SIGMA_DATA**2 / (t**2 + _SIGMA_DATA**2) for t in scaled]}
    if name == "sa_solver":  # noise in the middle of the way only
        return {"taus": [float(200.0 <= t <= 800.0) for t in timesteps]}
    if name == "pndm":
        return {"prediction_type": config.prediction_type}
    lower_order_final = config.lower_order_final is not False
    few = 2 if lower_order_final and len(timesteps) < 15 else 0
    midpoint_or_heun = config.solver_type if config.solver_type in ("midpoint", "heun") else "midpoint"
    if name in ("dpmpp_2m", "dpmpp_2m_sde"):
        return {
            "order": config.solver_order if config.sampler == name else 2,
            "solver_type": midpoint_or_heun,
            "lowered": few or int(config.euler_at_final),
        }
    if name == "dpmpp_2s":  # whose class, unlike the others, does not lower the order where nothing is said
        return {"solver_type": midpoint_or_heun, "lowered": int(config.lower_order_final is True)}
    if name == "deis":
        return {"order": config.solver_order, "lowered": few}
    if name == "unipc":
        solver_type = config.solver_type if config.solver_type in ("bh1", "bh2") else "bh2"
        return {
            "order": config.solver_order,
            "solver_type": solver_type,
            "lower_order_final": lower_order_final,
        }
    return {}


def _norm(sigma: float) -> float:
    """The standard deviation of a latent of unit variance with noise of `sigma` added."""
    return math.sqrt(sigma**2 + 1.0)
