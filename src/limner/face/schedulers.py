"""Samplers with a `step()`: diffusers' scheduler classes over `limner.diffusion`.

    scheduler.set_timesteps(30)
    x = torch.randn(shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, t), t, …)
        x = scheduler.step(output, t, x).prev_sample

Each class reads its config as diffusers does, makes the `Plan` that such a config means, and walks the
plan's sampler one call a step: `step` writes the sample that it is given into the sampler's latent, sends it
what the network predicts, and hands out the next latent. Between them lies only the scale: samplers work on
x0 + sigma * noise, while some classes keep the latents at unit variance.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.plan import CONVENTIONS, Plan, make_plan
from limner.diffusion.prediction import scalings
from limner.diffusion.samplers import SAMPLERS, Noise, Steps
from limner.errors import InvalidRequest, UnsupportedModel
from limner.weights.files import read_json
from limner.weights.save import write_json

from .files import Place, refuse
from .noise import Generators, draw
from .values import Config, Output

CONFIG_NAME = "scheduler_config.json"
_CLASS, _UNSET = "_class_name", "_use_default_values"

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
_LATENT_BETAS = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIPPING = {"clip_sample": False, "clip_sample_range": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_PREDICTION = {"prediction_type": "epsilon"}


@dataclass
class SchedulerOutput(Output):
    """What a step gives.

    Attributes:
        prev_sample: the latents to go on with.
        pred_original_sample: what is predicted for the latents without their noise.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor

    @property
    def denoised(self) -> Tensor:
        """The name that the prediction has in `LCMScheduler`."""
        return self.pred_original_sample


@dataclass
class _Walk:
    """A sampler on its way.

    Attributes:
        call: which of the timesteps it waits for.
        x, sigma: what it has yielded last.
    """

    sampler: Steps
    call: int
    x: Tensor
    sigma: float
    options: Mapping[str, Any]


class Scheduler:
    """What all classes have. The arguments of each, in order, are its `defaults`.

    Attributes:
        config: all arguments, and those of other classes that a config brought along for them.
        timesteps: what the network is to be told, call by call: more than there are steps where a step takes
            two calls.
        num_inference_steps: as `set_timesteps` was told.

    Raises:
        TypeError: an argument that the class does not have.
        UnsupportedModel: a value that Limner does not compute.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    order: ClassVar[int] = 1
    memoryless: ClassVar[bool] = False  # its steps may be taken in any order
    has_sigmas: ClassVar[bool] = True  # rather than the signal power of timesteps alone

    def __init__(self, *values: Any, **given: Any) -> None:
        own = {**dict(zip(self.defaults, values, strict=False)), **given}
        if len(values) > len(self.defaults) or (unknown := own.keys() - self.defaults.keys()):
            names = f"{', '.join(sorted(unknown))}" if len(values) <= len(self.defaults) else "so many values"
            raise TypeError(f"{type(self).__name__} has no argument {names}")
        self._adopt({**self.defaults, **own}, {}, sorted(self.defaults.keys() - own.keys()))

    def _adopt(self, values: Mapping[str, Any], others: Mapping[str, Any], unset: Sequence[str]) -> None:
        name = {_CLASS: type(self).__name__}
        self.config = Config({**others, **values, **name, _UNSET: list(unset)})
        try:
            self._known = SchedulerConfig.from_dict({**_plain(values), **name})
        except ValueError as error:
            raise UnsupportedModel(f"{type(self).__name__}: {error}") from None
        if self._known.sampler is None:
            solver = f"{self._known.algorithm_type} of order {self._known.solver_order}"
            raise UnsupportedModel(f"{type(self).__name__} with {solver} is not among Limner's samplers")
        total = self._known.num_train_timesteps
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(total - 1, -1, -1)
        self._plan: Plan | None = None
        self._visits: Sequence[float] | None = None
        self._levels: Sequence[float] | None = None
        self._visited: tuple[float, ...] = ()  # the sigma of each timestep
        self._walk: _Walk | None = None
        self._begin_index: int | None = None

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config", {})
        if name in config:
            return config[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __len__(self) -> int:
        return self._known.num_train_timesteps

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """A scheduler with the settings of another, of this class or another one.

        Settings that the other class had by default are left to this class; those that this class does not
        have stay in its config, for others.

        Raises:
            TypeError: a change that this class has no argument for.
            UnsupportedModel: as the class.
        """
        if unknown := changes.keys() - cls.defaults.keys():
            raise TypeError(f"{cls.__name__} has no argument {', '.join(sorted(unknown))}")
        given = {key: v for key, v in config.items() if key not in config.get(_UNSET, ()) and key != _UNSET}
        known = {key: value for key, value in given.items() if key in cls.defaults} | changes
        others = {key: value for key, value in given.items() if key not in known}
        named = {key for other in CLASSES.values() for key in other.defaults}
        if strange := [key for key in others if key not in named and not key.startswith("_")]:
            warnings.warn(f"{cls.__name__} has no use for {', '.join(sorted(strange))}", stacklevel=2)
        scheduler = cls(**known)
        scheduler._adopt({**cls.defaults, **known}, others, sorted(cls.defaults.keys() - known.keys()))
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **given: Any,
    ) -> Self:
        """The scheduler of a folder or a hub id, whose `scheduler_config.json` may be of any class.

        Args:
            given: subfolder; of the hub revision, cache_dir, token, local_files_only; changes of settings.

        Raises:
            ModelNotFound, InvalidCheckpoint: there is no such file, or it is broken.
        """
        place, changes = Place.of(pretrained_model_name_or_path, given)
        return cls.from_config(read_json(place.find(CONFIG_NAME)), **changes)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> dict[str, Any]:
        """What a `scheduler_config.json` says, for `from_config`. Arguments as of `from_pretrained`."""
        place, strange = Place.of(pretrained_model_name_or_path, where)
        refuse(strange, ())
        return read_json(place.find(CONFIG_NAME))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `scheduler_config.json` into a folder, which is made if need be."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_NAME, self.saved_config)

    save_config = save_pretrained

    @property
    def compatibles(self) -> list[type["Scheduler"]]:
        """The classes that take its config."""
        return [*CLASSES.values()]

    @property
    def saved_config(self) -> dict[str, Any]:
        """The config as a file holds it."""
        return {key: value for key, value in _plain(self.config).items() if key != _UNSET}

    def to_json_string(self) -> str:
        """The config as JSON."""
        return json.dumps(self.saved_config, indent=2, sort_keys=True) + "\n"

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Decide on a run, and begin anew.

        Raises:
            InvalidRequest: that many steps cannot be had.
        """
        self._decide(num_inference_steps, device)

    def _decide(
        self,
        steps: int | None,
        device: str | torch.device | None,
        visits: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Decide on a run of so many steps, or at timesteps or sigmas of one's own."""
        self._visits, self._levels = visits, sigmas
        own = len(visits) if visits is not None else len(sigmas) - 1 if sigmas is not None else None
        if (steps is None) == (own is None) or (visits is not None and sigmas is not None):
            raise InvalidRequest("expected one of num_inference_steps, timesteps and sigmas")
        self.num_inference_steps = own if steps is None else steps
        self._walk = self._begin_index = None
        self._plan = self._planned({})
        self._visited = tuple(_visited(self._plan))
        told = [self._plan.timestep(sigma) for sigma in self._visited]
        fractional = CONVENTIONS[self._plan.sampler].fractional
        self.timesteps = torch.tensor(told, dtype=torch.float32 if fractional else torch.int64, device=device)

    def _planned(self, options: Mapping[str, Any]) -> Plan:
        assert self.num_inference_steps is not None
        try:
            plan = make_plan(self._known, self.num_inference_steps, options=options, visits=self._visits)
            if self._levels is None:
                return plan
            levels = tuple(float(sigma) for sigma in self._levels)
            told = tuple(plan.schedule.timestep_at(sigma) for sigma in levels[:-1])
            start = math.sqrt(levels[0] ** 2 + 1.0) if plan.spacing == "leading" else levels[0]
            return replace(plan, sigmas=levels, timesteps=told, start_scale=start)
        except ValueError as error:
            raise InvalidRequest(f"{type(self).__name__}: {error}") from None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which of the timesteps the first step is."""
        self._begin_index = begin_index

    @property
    def begin_index(self) -> int | None:
        """As `set_begin_index` was told."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Which of the timesteps the next step is at; None before the first."""
        return None if self._walk is None else self._walk.call

    @property
    def unit_variance(self) -> bool:
        """Whether latents are kept at unit variance, rather than at x0 + sigma * noise."""
        assert self._known.sampler is not None
        return CONVENTIONS[self._known.sampler].unit_variance

    @property
    def init_noise_sigma(self) -> float:
        """The factor on unit noise that gives the first latents."""
        if self.unit_variance:
            return 1.0
        if self._plan is not None:
            return self._plan.start_scale
        largest = self._known.noise_schedule_fp32.capped(4096.0).sigmas[-1]
        return math.sqrt(largest**2 + 1.0) if self._known.timestep_spacing == "leading" else largest

    @property
    def alphas_cumprod(self) -> Tensor:
        """The signal power of each training timestep."""
        return torch.tensor(self._known.noise_schedule_fp32.alphas_cumprod)

    @property
    def betas(self) -> Tensor:
        """How much of the signal's power each training timestep takes."""
        powers = torch.cat([torch.ones(1), self.alphas_cumprod])
        return 1.0 - powers[1:] / powers[:-1]

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """The signal power behind the last step, of the classes that have a setting for it."""
        if "set_alpha_to_one" not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no final_alpha_cumprod")
        return torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]

    @property
    def sigmas(self) -> Tensor:
        """The noise level at each of the timesteps, and the one at the end."""
        if not self.has_sigmas:
            raise AttributeError(f"{type(self).__name__} has no sigmas")
        if self._plan is None:
            return torch.tensor([*reversed(self._known.noise_schedule_fp32.sigmas), 0.0])
        return torch.tensor([*self._visited, self._plan.sigmas[-1]])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Latents as the network is shown them."""
        if self.unit_variance:
            return sample
        if timestep is None:
            raise InvalidRequest("timestep is missing", hint="scale_model_input(sample, t)")
        return sample / math.sqrt(self._sigma_at(float(timestep)) ** 2 + 1.0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents [B, …] with the noise of timesteps [B], at this class's scale."""
        schedule = self._known.noise_schedule
        if not self.has_sigmas:
            return schedule.add_noise(original_samples, noise, timesteps.long())
        sigma_at = schedule.sigma_at if self._plan is None else self._sigma_at
        sigmas = [sigma_at(float(t)) for t in timesteps]
        sigma = torch.tensor(sigmas, device=noise.device).reshape(-1, *[1] * (noise.ndim - 1))
        noisy = original_samples + sigma * noise
        return (noisy / torch.sqrt(sigma**2 + 1.0) if self.unit_variance else noisy).to(
            original_samples.dtype
        )

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network with v-prediction is trained to say."""
        signal_rate, noise_rate = self._known.noise_schedule.rates_at(timesteps, sample)
        return (signal_rate * noise - noise_rate * sample).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take a step from what the network said.

        Args:
            model_output: for `scale_model_input(sample, timestep)`, guided.
            timestep: the next of `timesteps`.
            sample: the latents, which need not be those that the last step gave.
            generator: of fresh noise, for the classes that add some; a list has one for each row.

        Raises:
            InvalidRequest: another timestep than the next one, where a step builds on the last ones.
        """
        return self._step(model_output, timestep, sample, _drawn(model_output, generator), return_dict)

    def _step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        noise: Noise,
        return_dict: bool,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        self._noise = noise
        walk = self._walk
        if walk is None or not self._goes_on(walk, float(timestep), options):
            walk = self._begun(float(timestep), x, options)
        walk.x.copy_(x * self.norm(walk.sigma))
        around = scalings(self._known.prediction_type, walk.sigma)
        denoised = around.denoised(walk.x, model_output.to(x.dtype))
        try:
            walk.x, walk.sigma = walk.sampler.send(denoised)
            walk.call += 1
            self._walk, result = walk, walk.x / self.norm(walk.sigma)
        except StopIteration as done:
            assert self._plan is not None
            self._walk, result = None, done.value / self.norm(self._plan.sigmas[-1])
        output = SchedulerOutput(result.to(sample.dtype), denoised.to(sample.dtype))
        return output if return_dict else output.to_tuple()

    def norm(self, sigma: float) -> float:
        """What makes latents of this class those of a sampler."""
        return math.sqrt(sigma**2 + 1.0) if self.unit_variance else 1.0

    def _sigma_at(self, timestep: float) -> float:
        """The noise level at one of the timesteps."""
        told = self.timesteps.tolist()
        if self._plan is None or timestep not in told:
            raise InvalidRequest(
                f"timestep {timestep:g} is not one of this run's {len(told)}", hint="call set_timesteps first"
            )
        if self._walk is not None and told[self._walk.call] == timestep:
            return self._walk.sigma
        return self._visited[told.index(timestep)]

    def _goes_on(self, walk: _Walk, timestep: float, options: Mapping[str, Any]) -> bool:
        """Whether a step is the next one of a walk; if not, another is to begin."""
        told = self.timesteps.tolist()
        if timestep == told[walk.call] and options == walk.options:
            return True
        if self.memoryless or timestep == told[0]:
            return False
        raise InvalidRequest(
            f"timestep {timestep:g} was given, expected {told[walk.call]:g}: each step of "
            f"{type(self).__name__} builds on the last ones",
            hint="call set_timesteps to begin anew",
        )

    def _begun(self, timestep: float, sample: Tensor, options: Mapping[str, Any]) -> _Walk:
        self._sigma_at(timestep)
        call = self._begin_index
        if call is None or self._walk is not None:
            # Where a step takes two calls, a timestep is that of a look ahead and then of a step.
            starts = range(0, len(self.timesteps), self.order)
            call = [start for start in starts if float(self.timesteps[start]) == timestep][-1]
        plan = self.plan(call, options)
        x = sample * self.norm(plan.sigmas[0])
        sampler = SAMPLERS[plan.sampler](x, plan.sigmas, lambda: self._noise(), **plan.options)
        x, sigma = next(sampler)
        return _Walk(sampler, call, x, sigma, options)

    def plan(self, call: int = 0, options: Mapping[str, Any] | None = None) -> Plan:
        """The run from one of its timesteps on.

        Args:
            call: which of them.
            options: of the sampler.
        """
        plan = self._planned(options or {})
        return plan if call == 0 else plan.part(call // self.order)


class _OfOnesOwn(Scheduler):
    """The classes that take timesteps of one's own."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """As `Scheduler.set_timesteps`, or at these timesteps."""
        self._decide(num_inference_steps, device, timesteps)


def _drawn(model_output: Tensor, generator: Generators) -> Noise:
    return lambda: draw(model_output.shape, generator, model_output.device, model_output.dtype).float()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    return {key: v.tolist() if hasattr(v, "tolist") else v for key, v in values.items()}


def _visited(plan: Plan) -> Iterator[float]:
    """The sigmas at which a plan's sampler asks, call by call; they do not depend on the answers."""
    nothing = torch.zeros(1)
    sampler = SAMPLERS[plan.sampler](nothing, plan.sigmas, lambda: nothing, **plan.options)
    _, sigma = next(sampler)
    while True:
        yield sigma
        try:
            _, sigma = sampler.send(nothing)
        except StopIteration:
            return


class DDIMScheduler(Scheduler):
    """`ddim`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        **_PREDICTION,
        **_THRESHOLDING,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
    memoryless = True
    has_sigmas = False

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As `Scheduler.step`; `eta` is the share of fresh noise, which `variance_noise` may give."""
        _refuse(use_clipped_model_output=use_clipped_model_output)
        noise = _drawn(model_output, generator) if variance_noise is None else lambda: variance_noise
        return self._step(model_output, timestep, sample, noise, return_dict, eta=eta)


class DDPMScheduler(_OfOnesOwn):
    """`ddpm`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "variance_type": "fixed_small",
        "clip_sample": True,
        **_PREDICTION,
        **_THRESHOLDING,
        "clip_sample_range": 1.0,
        **_LEADING,
        "rescale_betas_zero_snr": False,
    }
    memoryless = True
    has_sigmas = False


class PNDMScheduler(Scheduler):
    """`pndm`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        **_PREDICTION,
        **_LEADING,
    }
    has_sigmas = False

    def plan(self, call: int = 0, options: Mapping[str, Any] | None = None) -> Plan:
        """As `Scheduler.plan`. Wherever it begins, the second call takes the first step again."""
        plan = self._planned(options or {})
        if call == 0:
            return plan
        assert self.num_inference_steps is not None
        timesteps, sigma_at, last = self.timesteps.tolist()[call:], plan.schedule.sigma_at, len(self) - 1
        stride, end = len(self) // self.num_inference_steps, plan.sigmas[-1]
        legs = [(sigma_at(t), sigma_at(t - stride) if t >= stride else end) for t in timesteps]
        if len(legs) > 1:
            legs[1] = sigma_at(min(timesteps[1] + stride, last)), sigma_at(timesteps[1])
        return replace(
            plan,
            sigmas=(*map(sigma_at, timesteps), end),
            timesteps=tuple(map(float, timesteps)),
            options={**plan.options, "legs": legs},
        )


class LMSDiscreteScheduler(Scheduler):
    """`lms`."""

    defaults: ClassVar[Mapping[str, Any]] = {**_BETAS, **_SIGMAS, **_PREDICTION, **_LINSPACE}

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As `Scheduler.step`; `order` is how many slopes count, 1 to 4."""
        noise = _drawn(model_output, None)
        return self._step(model_output, timestep, sample, noise, return_dict, order=order)


class EulerDiscreteScheduler(_OfOnesOwn):
    """`euler`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        **_PREDICTION,
        "interpolation_type": "linear",
        **_SIGMAS,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    memoryless = True

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """As `Scheduler.set_timesteps`, or at these timesteps, or sigmas, the one to end at included."""
        self._decide(num_inference_steps, device, timesteps, sigmas)

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As `Scheduler.step`. Without churn, which is not offered, the other settings of it mean nothing."""
        _refuse(s_churn=s_churn)
        return super().step(model_output, timestep, sample, generator, return_dict)


class EulerAncestralDiscreteScheduler(Scheduler):
    """`euler_a`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        **_PREDICTION,
        **_LINSPACE,
        "rescale_betas_zero_snr": False,
    }
    memoryless = True


class HeunDiscreteScheduler(_OfOnesOwn):
    """`heun`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_LATENT_BETAS,
        **_PREDICTION,
        **_SIGMAS,
        **_CLIPPING,
        **_LINSPACE,
    }
    order = 2


class KDPM2DiscreteScheduler(Scheduler):
    """`dpm2`."""

    defaults: ClassVar[Mapping[str, Any]] = {**_LATENT_BETAS, **_SIGMAS, **_PREDICTION, **_LINSPACE}
    order = 2


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """`dpm2_a`."""


class DPMSolverMultistepScheduler(_OfOnesOwn):
    """`dpmpp_2m`; with `algorithm_type="sde-dpmsolver++"` `dpmpp_2m_sde`, and of order 3 `dpmpp_3m_sde`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "solver_order": 2,
        **_PREDICTION,
        **_THRESHOLDING,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        **_SIGMAS,
        "use_lu_lambdas": False,
        **_FLOW,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **_LINSPACE,
        "rescale_betas_zero_snr": False,
        **_SHIFTING,
    }

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As `Scheduler.step`; `variance_noise` takes the place of fresh noise."""
        noise = _drawn(model_output, generator) if variance_noise is None else lambda: variance_noise
        return self._step(model_output, timestep, sample, noise, return_dict)


class DPMSolverSinglestepScheduler(_OfOnesOwn):
    """`dpmpp_2s`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "solver_order": 2,
        **_PREDICTION,
        **_THRESHOLDING,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        **_SIGMAS,
        **_FLOW,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **_SHIFTING,
    }


class DPMSolverSDEScheduler(Scheduler):
    """`dpmpp_sde`, whose draws are independent, while diffusers takes them from a Brownian tree."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_LATENT_BETAS,
        **_PREDICTION,
        **_SIGMAS,
        "noise_sampler_seed": None,
        **_LINSPACE,
    }
    order = 2


class UniPCMultistepScheduler(Scheduler):
    """`unipc`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "solver_order": 2,
        **_PREDICTION,
        **_THRESHOLDING,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        **_SIGMAS,
        **_FLOW,
        **_LINSPACE,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        **_SHIFTING,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }


class DEISMultistepScheduler(Scheduler):
    """`deis`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_BETAS,
        "solver_order": 2,
        **_PREDICTION,
        **_THRESHOLDING,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
        **_SIGMAS,
        **_FLOW,
        **_LINSPACE,
        **_SHIFTING,
    }


class LCMScheduler(_OfOnesOwn):
    """`lcm`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **_LATENT_BETAS,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        **_CLIPPING,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        **_PREDICTION,
        **_THRESHOLDING,
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    }
    memoryless = True
    has_sigmas = False


class TCDScheduler(LCMScheduler):
    """`tcd`."""

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As `Scheduler.step`; `eta` is the paper's gamma."""
        noise = _drawn(model_output, generator)
        return self._step(model_output, timestep, sample, noise, return_dict, eta=eta)


CLASSES: Mapping[str, type[Scheduler]] = {
    cls.__name__: cls
    for cls in (
        DDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSDEScheduler,
        DPMSolverSinglestepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
    )
}


def scheduler_from(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a `scheduler_config.json` names.

    Raises:
        UnsupportedModel: a class that is not among Limner's.
    """
    name = str(config.get(_CLASS))
    if name not in CLASSES:
        raise UnsupportedModel(f"the scheduler is a {name}", hint=f"there are {', '.join(CLASSES)}")
    return CLASSES[name].from_config(config)


def _refuse(**given: Any) -> None:
    """Raise InvalidRequest for an argument that is not left at nothing."""
    for name, value in given.items():
        if value:
            raise InvalidRequest(f"{name} is {value!r}, which is not offered", hint="leave it out")
