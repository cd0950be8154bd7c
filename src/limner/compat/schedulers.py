"""The base class of diffusers' schedulers, over the samplers of `limner.diffusion`.

    scheduler.set_timesteps(30)
    x = torch.randn(shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, t), t, …)
        x = scheduler.step(output, t, x).prev_sample

Each class reads its config as diffusers does, makes the `Plan` that this config means, and advances the
plan's sampler by one U-Net call per step: `step` copies the given sample into the sampler's latents, sends it
the network's prediction and returns the next latents. Only the scale differs: samplers work on x0 + sigma *
noise, while some classes keep latents at unit variance.
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
from limner.diffusion.plan import Plan, make_plan
from limner.diffusion.prediction import scalings
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.samplers import SAMPLERS, Noise, Steps
from limner.errors import InvalidRequest, UnsupportedModel
from limner.files import read_json
from limner.weights.save import write_json

from .files import ComponentLocation, reject_unsupported
from .noise import Generators, randn_tensor
from .values import Config, Output, named_subclasses

CONFIG_NAME = "scheduler_config.json"
_CLASS, _UNSET = "_class_name", "_use_default_values"


@dataclass
class SchedulerOutput(Output):
    """Output of a step.

    Attributes:
        prev_sample: Latents for the next step.
        pred_original_sample: Predicted latents without noise.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor

    @property
    def denoised(self) -> Tensor:
        """`pred_original_sample` under its name in diffusers' `LCMScheduler`."""
        return self.pred_original_sample


@dataclass
class _Run:
    """A sampler in progress.

    Attributes:
        sampler: The sampler's generator.
        call: Index of the timestep that it waits for.
        x, sigma: The latents and sigma that it yielded last.
        options: Options of the sampler.
    """

    sampler: Steps
    call: int
    x: Tensor
    sigma: float
    options: Mapping[str, Any]


class Scheduler:
    """Base of all scheduler classes. The keys of `defaults` are the arguments of a class, in order.

    Attributes:
        config: All arguments, and settings of other classes that the config contained.
        timesteps: Timestep of each U-Net call: more than there are steps where a step takes two calls.
        num_inference_steps: Number of steps set by `set_timesteps`; None before.
        defaults: Argument -> default value.
        order: Number of U-Net calls per step.
        memoryless: Whether steps can be taken in any order.
        has_sigmas: Whether the class works with sigmas rather than with the signal power of timesteps only.

    Raises:
        TypeError: The class does not have the argument.
        UnsupportedModel: Limner does not support the value.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    order: ClassVar[int] = 1
    memoryless: ClassVar[bool] = False
    has_sigmas: ClassVar[bool] = True

    def __init__(self, *values: Any, **given: Any) -> None:
        own = {**dict(zip(self.defaults, values, strict=False)), **given}
        if len(values) > len(self.defaults) or (unknown := own.keys() - self.defaults.keys()):
            names = f"{', '.join(sorted(unknown))}" if len(values) <= len(self.defaults) else "so many values"
            raise TypeError(f"{type(self).__name__} has no argument {names}")
        self._set_config({**self.defaults, **own}, {}, sorted(self.defaults.keys() - own.keys()))

    def _set_config(self, values: Mapping[str, Any], others: Mapping[str, Any], unset: Sequence[str]) -> None:
        name = {_CLASS: type(self).__name__}
        self.config = Config({**others, **values, **name, _UNSET: list(unset)})
        try:
            self._parsed = SchedulerConfig.from_dict({**_plain(values), **name})
        except ValueError as error:
            raise UnsupportedModel(f"{type(self).__name__}: {error}") from None
        if self._parsed.sampler is None:
            solver = f"{self._parsed.algorithm_type} of order {self._parsed.solver_order}"
            raise UnsupportedModel(f"{type(self).__name__} with {solver} is not among Limner's samplers")
        if self._parsed.warnings:  # settings that `limner.load` only warns about: a class must honour them
            raise UnsupportedModel(f"{type(self).__name__}: {'; '.join(self._parsed.warnings)}")
        total = self._parsed.num_train_timesteps
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(total - 1, -1, -1)
        self._plan: Plan | None = None
        self._custom_timesteps: Sequence[float] | None = None
        self._custom_sigmas: Sequence[float] | None = None
        self._timestep_sigmas: tuple[float, ...] = ()  # the sigma of each timestep
        self._run: _Run | None = None
        self._begin_index: int | None = None

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config", {})
        if name in config:
            return config[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __len__(self) -> int:
        return self._parsed.num_train_timesteps

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Return a scheduler with the config of another one, of this or another class.

        Settings that were defaults of the other class take this class's defaults. Settings that this class
        does not have stay in its config, so that a conversion back restores them.

        Raises:
            TypeError: This class has no argument for a change.
            UnsupportedModel: Limner does not support a value.
        """
        if unknown := changes.keys() - cls.defaults.keys():
            raise TypeError(f"{cls.__name__} has no argument {', '.join(sorted(unknown))}")
        given = {key: v for key, v in config.items() if key not in config.get(_UNSET, ()) and key != _UNSET}
        known = {key: value for key, value in given.items() if key in cls.defaults} | changes
        others = {key: value for key, value in given.items() if key not in known}
        named = {key for other in named_subclasses(Scheduler, "Scheduler").values() for key in other.defaults}
        if strange := [key for key in others if key not in named and not key.startswith("_")]:
            warnings.warn(f"{cls.__name__} has no use for {', '.join(sorted(strange))}", stacklevel=2)
        scheduler = cls(**known)
        scheduler._set_config({**cls.defaults, **known}, others, sorted(cls.defaults.keys() - known.keys()))
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **given: Any,
    ) -> Self:
        """Load the scheduler of a folder or a hub id. Its `scheduler_config.json` may be of another class.

        Args:
            given: subfolder; for the hub revision, cache_dir, token, local_files_only; and changes of
                settings.

        Raises:
            ModelNotFound, InvalidCheckpoint: There is no such file, or it is damaged.
        """
        location, changes = ComponentLocation.from_arguments(pretrained_model_name_or_path, given)
        return cls.from_config(read_json(location.find(CONFIG_NAME)), **changes)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> dict[str, Any]:
        """Read a `scheduler_config.json`, for `from_config`. Arguments as in `from_pretrained`."""
        location, strange = ComponentLocation.from_arguments(pretrained_model_name_or_path, where)
        reject_unsupported(strange, ())
        return read_json(location.find(CONFIG_NAME))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `scheduler_config.json` into a folder, which is created if necessary."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_NAME, self.saved_config)

    save_config = save_pretrained

    @property
    def compatibles(self) -> list[type["Scheduler"]]:
        """The classes that accept this config."""
        return [*named_subclasses(Scheduler, "Scheduler").values()]

    @property
    def saved_config(self) -> dict[str, Any]:
        """The config as it is saved to a file."""
        return {key: value for key, value in _plain(self.config).items() if key != _UNSET}

    def to_json_string(self) -> str:
        """The config as JSON."""
        return json.dumps(self.saved_config, indent=2, sort_keys=True) + "\n"

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps of a run and reset the sampler.

        Raises:
            InvalidRequest: The number of steps is out of range.
        """
        self._set_run(num_inference_steps, device)

    def _set_run(
        self,
        steps: int | None,
        device: str | torch.device | None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set up a run: a number of steps, custom timesteps, or custom sigmas."""
        self._custom_timesteps, self._custom_sigmas = timesteps, sigmas
        own = len(timesteps) if timesteps is not None else len(sigmas) - 1 if sigmas is not None else None
        if (steps is None) == (own is None) or (timesteps is not None and sigmas is not None):
            raise InvalidRequest("expected one of num_inference_steps, timesteps and sigmas")
        self.num_inference_steps = own if steps is None else steps
        self._run = self._begin_index = None
        self._plan = self._make_plan({})
        self._timestep_sigmas = tuple(_sigmas_of_calls(self._plan))
        planned = [self._plan.timestep(sigma) for sigma in self._timestep_sigmas]
        fractional = SAMPLER_TABLE[self._plan.sampler].convention.fractional
        self.timesteps = torch.tensor(
            planned, dtype=torch.float32 if fractional else torch.int64, device=device
        )

    def _make_plan(self, options: Mapping[str, Any]) -> Plan:
        assert self.num_inference_steps is not None
        try:
            plan = make_plan(
                self._parsed, self.num_inference_steps, options=options, visits=self._custom_timesteps
            )
            if self._custom_sigmas is None:
                return plan
            levels = tuple(float(sigma) for sigma in self._custom_sigmas)
            timesteps = tuple(plan.schedule.timestep_at(sigma) for sigma in levels[:-1])
            start = math.sqrt(levels[0] ** 2 + 1.0) if plan.spacing == "leading" else levels[0]
            return replace(plan, sigmas=levels, timesteps=timesteps, start_scale=start)
        except ValueError as error:
            raise InvalidRequest(f"{type(self).__name__}: {error}") from None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index of the first timestep to run."""
        self._begin_index = begin_index

    @property
    def begin_index(self) -> int | None:
        """Index set by `set_begin_index`, or None."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Index of the timestep of the next step; None before the first step."""
        return None if self._run is None else self._run.call

    @property
    def unit_variance(self) -> bool:
        """Whether latents are kept at unit variance instead of x0 + sigma * noise."""
        assert self._parsed.sampler is not None
        return SAMPLER_TABLE[self._parsed.sampler].convention.unit_variance

    @property
    def init_noise_sigma(self) -> float:
        """Factor on unit noise that gives the initial latents."""
        if self.unit_variance:
            return 1.0
        if self._plan is not None:
            return self._plan.start_scale
        largest = self._parsed.noise_schedule_fp32.capped(4096.0).sigmas[-1]
        return math.sqrt(largest**2 + 1.0) if self._parsed.timestep_spacing == "leading" else largest

    @property
    def alphas_cumprod(self) -> Tensor:
        """Signal power of each training timestep, [T]."""
        return torch.tensor(self._parsed.noise_schedule_fp32.alphas_cumprod)

    @property
    def betas(self) -> Tensor:
        """Fraction of the signal power that each training timestep removes, [T]."""
        powers = torch.cat([torch.ones(1), self.alphas_cumprod])
        return 1.0 - powers[1:] / powers[:-1]

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """Signal power after the last step, for the classes that have `set_alpha_to_one`."""
        if "set_alpha_to_one" not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no final_alpha_cumprod")
        return torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]

    @property
    def sigmas(self) -> Tensor:
        """Sigma at each timestep, then the final sigma."""
        if not self.has_sigmas:
            raise AttributeError(f"{type(self).__name__} has no sigmas")
        if self._plan is None:
            return torch.tensor([*reversed(self._parsed.noise_schedule_fp32.sigmas), 0.0])
        return torch.tensor([*self._timestep_sigmas, self._plan.sigmas[-1]])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Scale latents to the input of the network."""
        if self.unit_variance:
            return sample
        if timestep is None:
            raise InvalidRequest("timestep is missing", hint="scale_model_input(sample, t)")
        return sample / math.sqrt(self._sigma_at(float(timestep)) ** 2 + 1.0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise at the level of `timesteps` [B] to latents [B, …], at this class's scale."""
        schedule = self._parsed.noise_schedule
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
        """Return the training target of a network with v-prediction."""
        signal_rate, noise_rate = self._parsed.noise_schedule.rates_at(timesteps, sample)
        return (signal_rate * noise - noise_rate * sample).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take one step.

        Args:
            model_output: Output of the network for `scale_model_input(sample, timestep)`, after guidance.
            timestep: The next of `timesteps`.
            sample: Current latents; they need not be those that the previous step returned.
            generator: Generator of fresh noise, for samplers that add some; or a list with one per row.

        Raises:
            InvalidRequest: `timestep` is not the next one, and the sampler depends on previous steps.
        """
        return self._step(model_output, timestep, sample, noise_like(model_output, generator), return_dict)

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
        run = self._run
        if run is None or not self._continues(run, float(timestep), options):
            run = self._start_run(float(timestep), x, options)
        run.x.copy_(x * self.sampler_scale(run.sigma))
        around = scalings(self._parsed.prediction_type, run.sigma)
        denoised = around.denoised(run.x, model_output.to(x.dtype))
        try:
            run.x, run.sigma = run.sampler.send(denoised)
            run.call += 1
            self._run, result = run, run.x / self.sampler_scale(run.sigma)
        except StopIteration as done:
            assert self._plan is not None
            self._run, result = None, done.value / self.sampler_scale(self._plan.sigmas[-1])
        output = SchedulerOutput(result.to(sample.dtype), denoised.to(sample.dtype))
        return output if return_dict else output.to_tuple()

    def sampler_scale(self, sigma: float) -> float:
        """Factor from this class's latents to those of a sampler, x0 + sigma * noise."""
        return math.sqrt(sigma**2 + 1.0) if self.unit_variance else 1.0

    def _sigma_at(self, timestep: float) -> float:
        """Sigma at one of the run's timesteps."""
        timesteps = self.timesteps.tolist()
        if self._plan is None or timestep not in timesteps:
            raise InvalidRequest(
                f"timestep {timestep:g} is not one of this run's {len(timesteps)}",
                hint="call set_timesteps first",
            )
        if self._run is not None and timesteps[self._run.call] == timestep:
            return self._run.sigma
        return self._timestep_sigmas[timesteps.index(timestep)]

    def _continues(self, run: _Run, timestep: float, options: Mapping[str, Any]) -> bool:
        """Whether a step continues `run`; if not, a new run begins."""
        timesteps = self.timesteps.tolist()
        if timestep == timesteps[run.call] and options == run.options:
            return True
        if self.memoryless or timestep == timesteps[0]:
            return False
        raise InvalidRequest(
            f"timestep {timestep:g} was given, expected {timesteps[run.call]:g}: each step of "
            f"{type(self).__name__} builds on the last ones",
            hint="call set_timesteps to start a new run",
        )

    def _start_run(self, timestep: float, sample: Tensor, options: Mapping[str, Any]) -> _Run:
        self._sigma_at(timestep)
        call = self._begin_index
        if call is None or self._run is not None:
            # With two calls per step, a step's second call and the next step's first share a timestep.
            starts = range(0, len(self.timesteps), self.order)
            call = [start for start in starts if float(self.timesteps[start]) == timestep][-1]
        plan = self.plan(call, options)
        x = sample * self.sampler_scale(plan.sigmas[0])
        sampler = SAMPLERS[plan.sampler](x, plan.sigmas, lambda: self._noise(), **plan.options)
        x, sigma = next(sampler)
        return _Run(sampler, call, x, sigma, options)

    def plan(self, call: int = 0, options: Mapping[str, Any] | None = None) -> Plan:
        """Return the plan of the run from one of its timesteps on.

        Args:
            call: Index of the timestep.
            options: Options of the sampler.
        """
        plan = self._make_plan(options or {})
        return plan if call == 0 else plan.part(call // self.order)


class CustomTimesteps(Scheduler):
    """A scheduler whose `set_timesteps` accepts custom timesteps."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """As `Scheduler.set_timesteps`; also takes custom timesteps."""
        self._set_run(num_inference_steps, device, timesteps)


def noise_like(model_output: Tensor, generator: Generators) -> Noise:
    return lambda: randn_tensor(
        model_output.shape, generator, model_output.device, model_output.dtype
    ).float()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert tensors and arrays to lists, for JSON."""
    return {key: v.tolist() if hasattr(v, "tolist") else v for key, v in values.items()}


def _sigmas_of_calls(plan: Plan) -> Iterator[float]:
    """Yield the sigma of each U-Net call of a plan's sampler; the predictions do not affect it."""
    nothing = torch.zeros(1)
    sampler = SAMPLERS[plan.sampler](nothing, plan.sigmas, lambda: nothing, **plan.options)
    _, sigma = next(sampler)
    while True:
        yield sigma
        try:
            _, sigma = sampler.send(nothing)
        except StopIteration:
            return


def scheduler_from(config: Mapping[str, Any]) -> Scheduler:
    """Return a scheduler of the class that a `scheduler_config.json` names.

    Raises:
        UnsupportedModel: Limner does not have this class.
    """
    name = str(config.get(_CLASS))
    classes = named_subclasses(Scheduler, "Scheduler")
    if name not in classes:
        raise UnsupportedModel(f"the scheduler is a {name}", hint=f"there are {', '.join(classes)}")
    return classes[name].from_config(config)
