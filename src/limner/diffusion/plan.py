"""The plan of one run: its sigmas, the timestep of each, and the scales of the first and last latents.

The mathematics does not determine which timesteps a run visits, where it stops, and how large the initial
noise is. Checkpoints are published with settings for the scheduler classes of diffusers, whose conventions
differ from class to class; `SAMPLER_TABLE` lists them, so that the same settings give the same image.

    plan = make_plan(config, steps=30)
    steps = SAMPLERS[plan.sampler](unit_noise * plan.start_scale, plan.sigmas, noise, **plan.options)
    # for each yielded (x, sigma): call the network with c_in * x and plan.timestep(sigma)
    latents = result / plan.end_scale
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from limner.diffusion.config import FALLBACK_SAMPLER, SchedulerConfig
from limner.diffusion.sampler_table import SAMPLER_TABLE, Convention, Run
from limner.diffusion.schedule import (
    SIGMA_SCHEDULES,
    NoiseSchedule,
    SigmaScheduleInfo,
    SigmaScheduleName,
    Spacing,
    align_your_steps,
    raised,
    spaced_timesteps,
)


@dataclass(frozen=True)
class Plan:
    """The plan of one run.

    Args:
        sampler: Key of `SAMPLERS`.
        spacing: Timestep spacing of the run.
        sigma_schedule: Sigma schedule of the run.
        sigmas: Sigma of each step, decreasing, then the final sigma.
        timesteps: Timestep of each step.
        start_scale: Factor on unit noise that gives the initial latents.
        end_scale: Divisor of the result that gives the latents to decode.
        options: Keyword arguments of the sampler.
        schedule: Noise schedule, without infinite sigmas.
        begun, left: Number of steps of the complete run before and after the steps of this plan.
    """

    sampler: str
    spacing: Spacing
    sigma_schedule: SigmaScheduleName
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    start_scale: float
    end_scale: float
    options: Mapping[str, Any]
    schedule: NoiseSchedule = field(repr=False)
    begun: int = 0
    left: int = 0

    def part(self, begin: int, end: int | None = None) -> "Plan":
        """Return the plan of the steps from `begin` up to `end`, for image-to-image and for refiners."""
        steps = len(self.timesteps)
        end = steps if end is None else end
        if not 0 <= begin < end <= steps:
            raise ValueError(f"steps {begin} to {end}; expected a range within 0 to {steps}")
        options = dict(self.options)
        for name in _PER_STEP & options.keys():
            if len(options[name]) == steps:
                options[name] = options[name][begin:end]
            elif (begin, end) != (0, steps):
                del options[name]  # values for pndm's calls, which differ if the run begins later
        return replace(
            self,
            sigmas=self.sigmas[begin : end + 1],
            timesteps=self.timesteps[begin:end],
            options=options,
            begun=self.begun + begin,
            left=self.left + steps - end,
        )

    def step_at(self, share: float) -> int:
        """Return the index of the first step after a fraction of the noise schedule, where diffusers splits a
        run between a model and its refiner."""
        cutoff = round(len(self.schedule) * (1.0 - share))
        return sum(timestep >= cutoff for timestep in self.timesteps)

    def timestep(self, sigma: float) -> float:
        """Return the timestep for a sigma that the sampler yields."""
        return self._timesteps.get(sigma, self.schedule.timestep_at(sigma))

    @cached_property
    def begins(self) -> tuple[float, ...]:
        """Sigma at which each step begins: that of `sigmas`, or a higher one with churn."""
        churn = {name: self.options[name] for name in self.options.keys() & {"s_churn", "s_tmin", "s_tmax"}}
        return tuple(raised(sigma, len(self.timesteps), **churn) for sigma in self.sigmas[:-1])

    @cached_property
    def _timesteps(self) -> dict[float, float]:
        return dict(zip(self.sigmas, self.timesteps, strict=False))


_REQUEST_OPTIONS = {"eta", "s_churn", "s_tmin", "s_tmax", "s_noise"}  # the others come from configs
_PER_STEP = {"legs", "kept", "inner", "taus"}  # options of samplers


@dataclass(frozen=True)
class Outline:
    """The part of a plan that can be computed without a noise schedule and torch.

    Attributes:
        sampler, spacing, sigma_schedule: As in `Plan`.
        timesteps: Timesteps by the spacing; a sigma schedule replaces them.
    """

    sampler: str
    spacing: Spacing
    sigma_schedule: SigmaScheduleName
    timesteps: tuple[float, ...]


def make_outline(
    config: SchedulerConfig,
    steps: int,
    *,
    sampler: str | None = None,
    spacing: Spacing | None = None,
    sigma_schedule: SigmaScheduleName | None = None,
    options: Collection[str] = (),
    visits: Sequence[float] | None = None,
) -> Outline:
    """Choose sampler, timestep spacing and sigma schedule, and check that they can be combined.

    Arguments and errors are those of `make_plan`; `options` holds only their names.
    """
    name = sampler or config.sampler or FALLBACK_SAMPLER
    if name not in SAMPLER_TABLE:
        raise ValueError(f"sampler is {name!r}; expected one of {', '.join(SAMPLER_TABLE)}")
    total = config.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"steps is {steps}; expected 1 to {total}")
    takes, convention = SAMPLER_TABLE[name].takes, SAMPLER_TABLE[name].convention
    sigma_schedule = sigma_schedule or (config.sigma_schedule if convention.sigma_schedules else "uniform")
    if sigma_schedule not in SIGMA_SCHEDULES:
        allowed = ", ".join(SIGMA_SCHEDULES)
        raise ValueError(f"sigma_schedule is {sigma_schedule!r}; expected one of {allowed}")
    spaced = SIGMA_SCHEDULES[sigma_schedule]
    if spaced.aligned is not None and config.family not in spaced.aligned:
        known = " and ".join(spaced.aligned)
        raise ValueError(f"{sigma_schedule} is for models of family {known}; this one is {config.family}")
    spacing = _spacing(name, config, spacing, sigma_schedule)
    if visits is not None:
        if convention.stride is not None or sigma_schedule != "uniform":
            what = name if sigma_schedule == "uniform" else sigma_schedule
            raise ValueError(f"{what} has timesteps of its own and accepts no others")
        timesteps = [float(t) for t in visits]
        if len(timesteps) != steps or timesteps[-1] < 0.0:
            raise ValueError(f"timesteps are {timesteps}; expected {steps}, none below 0")
    elif spaced.timesteps is not None:
        timesteps = spaced.timesteps(steps, total)
    elif convention.distilled:
        timesteps = _distilled(steps, total, config.original_inference_steps)
    else:
        timesteps = _spaced(convention, spacing, steps, total, config.steps_offset)
    if timesteps[0] > total - 1 or any(t <= t_next for t, t_next in pairwise(timesteps)):
        if visits is not None:
            raise ValueError(f"timesteps are {timesteps}; expected to decrease from {total - 1} down")
        placed = spacing if sigma_schedule == "uniform" else sigma_schedule
        raise ValueError(f"steps is {steps}, more than {placed} spacing can place on {total} timesteps")
    for option in options:
        if option in _REQUEST_OPTIONS and option not in takes:
            names = ", ".join(takes) or "none"
            raise ValueError(f"{name} has no option {option!r}; it has {names}")
    return Outline(name, spacing, sigma_schedule, tuple(timesteps))


def make_plan(
    config: SchedulerConfig,
    steps: int,
    *,
    sampler: str | None = None,
    spacing: Spacing | None = None,
    sigma_schedule: SigmaScheduleName | None = None,
    options: Mapping[str, Any] | None = None,
    visits: Sequence[float] | None = None,
) -> Plan:
    """Return the plan of a run.

    Args:
        config: Scheduler config of the checkpoint.
        steps: Number of steps, from 1 to the number of training timesteps. `dpm_adaptive` uses only the first
            and the last sigma, and chooses the number of steps between them.
        sampler: A key of `SAMPLERS`; None is the checkpoint's default, or `FALLBACK_SAMPLER` if it has none.
        spacing: Timestep spacing. None is the checkpoint's, or else the default of the sampler's class in
            diffusers. Some samplers and sigma schedules determine the timesteps and accept no other spacing.
        sigma_schedule: None is the checkpoint's if the sampler's class has that setting, else uniform.
        options: Keyword arguments of the sampler, such as `eta`; they override those that the checkpoint
            implies.
        visits: Custom timesteps, decreasing, one per step, in place of those of the spacing.

    Raises:
        ValueError: A name, number or option cannot be used; the message says which.
    """
    outline = make_outline(
        config,
        steps,
        sampler=sampler,
        spacing=spacing,
        sigma_schedule=sigma_schedule,
        options=options or (),
        visits=visits,
    )
    name, spacing, sigma_schedule = outline.sampler, outline.spacing, outline.sigma_schedule
    row, spaced = SAMPLER_TABLE[name], SIGMA_SCHEDULES[sigma_schedule]
    timesteps, convention, options = list(outline.timesteps), row.convention, options or {}
    # In float32, as in diffusers: where the timestep of a sigma is rounded, a difference of 1e-6 can change
    # it.
    schedule = config.noise_schedule_fp32.capped(convention.infinity)
    interpolation: Literal["linear", "log"] = "linear" if spaced.timesteps is None else "log"
    sigmas = [schedule.sigma_at(t, interpolation=interpolation) for t in timesteps]
    if spaced.sigmas is not None or spaced.aligned is not None:
        sigmas, timesteps = _respaced(convention, spaced, schedule, sigmas, config.family)
    chosen = row.implied_options(Run(config, schedule, timesteps, config.sampler == name, options))
    final = _final_sigma(convention, config, schedule)
    if convention.stride is not None and sigma_schedule == "uniform":
        stride = len(schedule) // steps
        ends = [schedule.sigma_at(t - stride) if t >= stride else final for t in timesteps]
        final = ends[-1]
        if ends[:-1] != sigmas[1:]:
            legs = list(zip(sigmas, ends, strict=True))
            if convention.repeats_first:
                legs.insert(1, (schedule.sigma_at(min(timesteps[1] + stride, len(schedule) - 1)), sigmas[1]))
            chosen["legs"] = legs
    return Plan(
        sampler=name,
        spacing=spacing,
        sigma_schedule=sigma_schedule,
        sigmas=(*sigmas, final),
        timesteps=tuple(timesteps),
        start_scale=_norm(sigmas[0]) if convention.unit_variance or spacing == "leading" else sigmas[0],
        end_scale=_norm(final) if convention.unit_variance else 1.0,
        options={**chosen, **options},
        schedule=schedule,
    )


def _spacing(
    name: str, config: SchedulerConfig, asked: Spacing | None, sigma_schedule: SigmaScheduleName
) -> Spacing:
    """Return the timestep spacing of a run. Raises ValueError if `asked` conflicts with the sampler or
    schedule."""
    convention = SAMPLER_TABLE[name].convention
    what, own = name, convention.spacing if convention.distilled else None
    if (spacing := SIGMA_SCHEDULES[sigma_schedule].spacing) is not None:
        what, own = sigma_schedule, spacing
    if own is not None and asked not in (None, own):
        raise ValueError(
            f"timestep_spacing is {asked!r}, but {what} has its own: leave it out, or give {own!r}"
        )
    return own or asked or (None if convention.own_spacing else config.timestep_spacing) or convention.spacing


def _spaced(convention: Convention, spacing: Spacing, steps: int, total: int, offset: int) -> list[float]:
    """Return the timesteps of a run with the uniform sigma schedule."""
    spare = convention.spare_step and spacing != "trailing"
    timesteps = spaced_timesteps(spacing, steps + spare, total, offset=offset)[:steps]
    return timesteps if convention.fractional else [float(round(t)) for t in timesteps]


def _distilled(steps: int, total: int, original: int) -> list[float]:
    """Return timesteps as `LCMScheduler` does: `steps` of those that the model was distilled on, evenly
    spaced."""
    original = min(original, total)
    stride = total // original
    known = [float((number + 1) * stride - 1) for number in range(original)][::-1]
    if steps > original:
        raise ValueError(f"steps is {steps}, more than the {original} that the model was distilled from")
    return [known[number * original // steps] for number in range(steps)]


def _respaced(
    convention: Convention,
    spaced: SigmaScheduleInfo,
    schedule: NoiseSchedule,
    sigmas: list[float],
    family: str | None,
) -> tuple[list[float], list[float]]:
    """Return the sigmas of a sigma schedule that replace `sigmas`, and their timesteps."""
    if spaced.aligned is not None:
        assert family is not None  # make_outline checked it
        sigmas = align_your_steps(len(sigmas), [schedule.sigma_at(t) for t in spaced.aligned[family]])
        return sigmas, [schedule.timestep_at(sigma) for sigma in sigmas]
    assert spaced.sigmas is not None
    span = schedule.sigmas if convention.spare_step else sigmas[::-1]
    sigmas = spaced.sigmas(len(sigmas), span[0], span[-1])
    timesteps = [schedule.timestep_at(sigma) for sigma in sigmas]
    if spaced.integers == "rounded" and convention.rounds_karras:
        timesteps = [float(round(t)) for t in timesteps]
    elif spaced.integers == "truncated" and convention.spare_step:
        # Rounding errors leave the first one just below the last timestep of the schedule.
        timesteps = [float(min(int(t), len(schedule) - 2)) for t in timesteps]
    return sigmas, timesteps


def _final_sigma(convention: Convention, config: SchedulerConfig, schedule: NoiseSchedule) -> float:
    """Return the final sigma of a run whose last step goes past timestep 0."""
    if convention.end != "configured":
        to_zero = convention.end == "zero"
    elif convention.stride is not None:
        to_zero = convention.stride if config.set_alpha_to_one is None else config.set_alpha_to_one
    else:
        to_zero = config.final_sigmas_type != "sigma_min"
    return 0.0 if to_zero else schedule.sigmas[0]


def _norm(sigma: float) -> float:
    """Return the standard deviation of unit-variance latents with noise of `sigma` added."""
    return math.sqrt(sigma**2 + 1.0)
