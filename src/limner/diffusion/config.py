"""A checkpoint's `scheduler_config.json`: its noise schedule and default sampling settings.

The hub's "scheduler" is several things at once. What the network was trained on (betas, prediction type)
holds for every sampler; how to sample (class, spacing, sigmas) is only the checkpoint's default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from limner.diffusion.prediction import PredictionType
from limner.diffusion.schedule import BetaSchedule, NoiseSchedule, SigmaScheduleName, Spacing

if TYPE_CHECKING:
    import torch

SAMPLER_CLASSES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
"""Scheduler class of diffusers -> sampler, unless other keys of the config choose a variant."""

FALLBACK_SAMPLER = "dpmpp_2m"
"""Default sampler of a checkpoint whose scheduler class or solver Limner does not have."""

OFFERED: dict[str, Any] = {
    "clip_sample": False,
    "disable_corrector": [],
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf,
    "noise_sampler_seed": None,
    "predict_x0": True,
    "shift_terminal": None,
    "sigma_max": None,
    "sigma_min": None,
    "skip_prk_steps": True,
    "solver_p": None,
    "thresholding": False,
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": "fixed_small",
}
"""Sampling settings without a field -> the only supported value; null is treated the same."""

WITHOUT_EFFECT = {
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "sample_max_value",
    "time_shift_type",
}
"""Parameters of features that `OFFERED` requires to be off."""

CLASS_SPECIFIC: dict[str, dict[str, Any]] = {
    "clip_sample": {
        "DDIMScheduler": True,
        "DDPMScheduler": True,
        "HeunDiscreteScheduler": False,
        "LCMScheduler": False,
        "TCDScheduler": False,
    },
    "skip_prk_steps": {"PNDMScheduler": False},
}
"""Keys of `OFFERED` that only some classes read, and the default of each class."""

TRAINED_ON = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Fields that the training determines. All others are default sampling settings."""

_OTHER_PROCESSES = ("FlowMatch", "EDM", "CogVideoX", "KarrasVe", "ScoreSde", "ConsistencyDecoder")

MOST_TIMESTEPS = 100_000
"""Largest `num_train_timesteps` of a file; every published model has 1,000."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The fields of `scheduler_config.json` under its own names. The defaults are Stable Diffusion's.

    None is "as the sampler's class has it", which `limner.diffusion.plan` knows. Two fields are not in the
    file: `family`, the model's where it is known, and `warnings` of the settings that are not followed.
    """

    class_name: str = "DDIMScheduler"
    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Spacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    family: str | None = None
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(_not_among(name, getattr(self, name), allowed))
        if not 2 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}; expected 2 to {MOST_TIMESTEPS}"
            )
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}; expected 0 < start <= end < 1"
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} values; expected {self.num_train_timesteps}, "
                "as num_train_timesteps says"
            )
        if not all(isinstance(beta, float) and 0.0 < beta < 1.0 for beta in self.trained_betas or ()):
            raise ValueError("trained_betas holds something else than numbers between 0 and 1")
        if self.original_inference_steps < 1:
            raise ValueError(
                f"original_inference_steps is {self.original_inference_steps}; expected a number of steps"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(f"steps_offset is {self.steps_offset}; expected a timestep")
        if sum(getattr(self, key) for key in SIGMA_SCHEDULE_KEYS) > 1:
            raise ValueError(f"more than one of {', '.join(SIGMA_SCHEDULE_KEYS)} is set")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SchedulerConfig:
        """Read the parsed JSON.

        What the network was trained on is read strictly. A setting of how to sample that is not offered, or
        that cannot be read, is left out, with a warning in `warnings`: it does not keep a model from use.

        Raises:
            ValueError: naming the key and the value, of what the network was trained on.
        """
        class_name = values.get("_class_name")
        if not isinstance(class_name, str):
            raise ValueError(f"_class_name is {class_name!r}; expected the name of a scheduler class")
        if class_name.startswith(_OTHER_PROCESSES) or values.get("timestep_type") == "continuous":
            raise ValueError(
                f"{class_name} is for networks trained on another noise process, which is not offered; where "
                "the U-Net is Stable Diffusion's, put the scheduler_config.json of its family there"
            )
        defaults = {own.name: own.default for own in fields(cls) if own.name in _IN_FILES}
        trained = {key: value for key, value in values.items() if key in TRAINED_ON and value is not None}
        given: dict[str, Any] = {"class_name": class_name}
        given |= {key: _checked(key, value, defaults[key]) for key, value in trained.items()}
        for key in ("beta_schedule", "beta_start", "beta_end"):
            if key not in given and "trained_betas" not in given:
                raise ValueError(f"missing key {key!r}")
        warnings = [*_not_offered(values, class_name)]
        cls(**given)  # raises for errors in the fields that the training determines
        for key, value in values.items():
            if key not in defaults or key in TRAINED_ON or value is None:
                continue
            try:
                cls(**given, **{key: (checked := _checked(key, value, defaults[key]))})
                given[key] = checked
            except ValueError as error:
                warnings.append(f"{error}; the setting is not followed")
        config = cls(**given)
        if config.sampler is None:
            solver = f" ({config.algorithm_type}, order {config.solver_order})"
            warnings.append(
                f"{class_name}{solver if class_name in SAMPLER_CLASSES else ''} is not among the samplers; "
                f"`sampler={FALLBACK_SAMPLER}` is used where none is named"
            )
        return replace(config, warnings=tuple(warnings))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON, as diffusers reads it."""
        always = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
        values: dict[str, Any] = {"_class_name": self.class_name}
        values |= {key: OFFERED[key] for key, by in CLASS_SPECIFIC.items() if self.class_name in by}
        for own in fields(self):
            value = getattr(self, own.name)
            if own.name in _IN_FILES and (own.name in always or value != own.default):
                values[own.name] = list(value) if isinstance(value, tuple) else value
        return values

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """Noise schedule of the training."""
        import torch  # here, as requests are resolved without it

        return self._noise_schedule(torch.float64)

    @cached_property
    def noise_schedule_fp32(self) -> NoiseSchedule:
        """The noise schedule computed in float32."""
        import torch

        return self._noise_schedule(torch.float32)

    def _noise_schedule(self, dtype: torch.dtype) -> NoiseSchedule:
        if self.trained_betas is not None:
            import torch

            betas = torch.tensor(self.trained_betas, dtype=dtype)
            return NoiseSchedule.from_betas(betas, zero_terminal_snr=self.rescale_betas_zero_snr)
        return NoiseSchedule.from_beta_schedule(
            self.beta_schedule,
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            zero_terminal_snr=self.rescale_betas_zero_snr,
            dtype=dtype,
        )

    @property
    def sampler(self) -> str | None:
        """Sampler of the class and its solver; None if Limner has no counterpart."""
        name = SAMPLER_CLASSES.get(self.class_name)
        if name == "dpmpp_2m" and self.algorithm_type == "sde-dpmsolver++":
            # At order 3, diffusers subtracts 1/2 where it should add it: for short steps, the weight of D2
            # would tend to -1 instead of 0. Limner follows k-diffusion.
            return "dpmpp_3m_sde" if self.solver_order == 3 else "dpmpp_2m_sde"
        if name in ("dpmpp_2m", "dpmpp_2s") and self.algorithm_type != "dpmsolver++":
            return None
        return None if name == "dpmpp_2s" and self.solver_order != 2 else name

    @property
    def sigma_schedule(self) -> SigmaScheduleName:
        """The checkpoint's default sigma schedule."""
        if self.use_karras_sigmas:
            return "karras"
        if self.use_exponential_sigmas:
            return "exponential"
        return "beta" if self.use_beta_sigmas else "uniform"


SIGMA_SCHEDULE_KEYS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

_IN_FILES = {own.name for own in fields(SchedulerConfig)} - {"class_name", "family", "warnings"}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": get_args(BetaSchedule),
    "prediction_type": get_args(PredictionType),
    "timestep_spacing": (None, *get_args(Spacing)),
    "set_alpha_to_one": (None, False, True),
    "lower_order_final": (None, False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
}


def _not_among(key: str, value: Any, allowed: Sequence[Any]) -> str:
    return f"{key} is {value!r}; expected one of {', '.join(map(str, allowed))}"


def _not_offered(values: Mapping[str, Any], class_name: str) -> Iterator[str]:
    """Warnings of settings without a field."""
    if class_name not in SAMPLER_CLASSES:
        return  # its settings configure a sampler that Limner does not have
    for key, value in values.items():
        if key in CLASS_SPECIFIC or key in _IN_FILES or key.startswith("_") or key in WITHOUT_EFFECT:
            continue
        if key not in OFFERED:
            if key != "timestep_type":
                yield f"unknown key {key!r} (value {value!r}); it is ignored"
        elif value not in (None, OFFERED[key]):
            yield f"{key} is {value!r}, which is not offered; {OFFERED[key]!r} is used"
    for key, by_class in CLASS_SPECIFIC.items():
        value = values.get(key, by_class.get(class_name))
        if class_name in by_class and value != OFFERED[key]:
            absent = "" if key in values else f", which is what its absence means to {class_name}"
            yield f"{key} is {value!r}{absent}; only {OFFERED[key]!r} is offered, and used"


def _checked(key: str, value: Any, default: Any) -> Any:
    """Return `value` if its type matches that of `default`; lists become tuples. Raises ValueError
    otherwise."""
    if isinstance(value, list):
        value = tuple(value)
    kinds: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    if type(default) in kinds and type(value) not in kinds[type(default)]:
        raise ValueError(f"{key} is {value!r}; expected something like {default!r}")
    return value
