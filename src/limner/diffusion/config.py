"""A checkpoint's `scheduler_config.json`: its noise schedule, and the sampler it asks for.

The hub's "scheduler" is several things at once. What the network was trained on (betas, prediction type)
holds for every sampler; how to sample (class, spacing, sigmas) is only the checkpoint's default.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, get_args

import torch

from limner.diffusion.prediction import PredictionType
from limner.diffusion.schedule import BetaSchedule, NoiseSchedule, SigmaSchedule, Spacing

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
"""Which sampler a class of diffusers means, if nothing else in its config says otherwise."""

SUPPORTED: dict[str, Any] = {
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
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": "fixed_small",
}
"""Keys with no field, and the one value at which they change nothing; null is as good."""

WITHOUT_EFFECT = {
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "sample_max_value",
    "time_shift_type",
}
"""Parameters of what `SUPPORTED` holds to be off."""

CLASS_SPECIFIC: dict[str, dict[str, Any]] = {
    "clip_sample": {"DDIMScheduler": True, "DDPMScheduler": True, "HeunDiscreteScheduler": False},
    "skip_prk_steps": {"PNDMScheduler": False},
}
"""Keys of `SUPPORTED` that only some classes read, and what their absence means to each."""

MOST_TIMESTEPS = 100_000
"""A bound on what a file can make us compute; every published model has 1,000."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The fields of `scheduler_config.json` under its own names. The defaults are Stable Diffusion's.

    None is "as the sampler's class has it", which `limner.diffusion.plan` knows. Only `family` does not stand
    in the file: it is the model's, where that is known.
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

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": get_args(BetaSchedule),
            "prediction_type": get_args(PredictionType),
            "timestep_spacing": (None, *get_args(Spacing)),
            "set_alpha_to_one": (None, False, True),
            "lower_order_final": (None, False, True),
            "final_sigmas_type": ("zero", "sigma_min"),
            "solver_order": (1, 2, 3),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(str, allowed))}")
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
        if self.use_karras_sigmas + self.use_exponential_sigmas + self.use_beta_sigmas > 1:
            raise ValueError(
                "more than one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas is set"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SchedulerConfig":
        """Read the parsed JSON. Every key is used, known to change nothing, or an error.

        Raises:
            ValueError: naming the key and the value.
        """
        class_name = values.get("_class_name")
        if not isinstance(class_name, str):
            raise ValueError(f"_class_name is {class_name!r}; expected the name of a scheduler class")
        defaults = {field.name: field.default for field in fields(cls) if field.name != "family"}
        given: dict[str, Any] = {"class_name": class_name}
        for key, value in values.items():
            if key in defaults:
                if value is not None:
                    given[key] = _checked(key, value, defaults[key])
            elif class_name not in SAMPLER_CLASSES:
                pass  # its other keys are about a way to sample that is not offered
            elif key in SUPPORTED:
                if key not in CLASS_SPECIFIC and value not in (None, SUPPORTED[key]):
                    raise ValueError(f"{key} is {value!r}; only {SUPPORTED[key]!r} is supported")
            elif not key.startswith("_") and key not in WITHOUT_EFFECT:
                raise ValueError(f"unknown key {key!r} (value {value!r})")
        for key, by_class in CLASS_SPECIFIC.items():
            value = values.get(key, by_class.get(class_name))
            if class_name in by_class and value != SUPPORTED[key]:
                absent = "" if key in values else f", which is what its absence means to {class_name}"
                raise ValueError(f"{key} is {value!r}{absent}; only {SUPPORTED[key]!r} is supported")
        for key in ("beta_schedule", "beta_start", "beta_end"):
            if key not in given and "trained_betas" not in given:
                raise ValueError(f"missing key {key!r}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The JSON, as diffusers reads it."""
        always = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
        values: dict[str, Any] = {"_class_name": self.class_name}
        values |= {key: SUPPORTED[key] for key, by in CLASS_SPECIFIC.items() if self.class_name in by}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("class_name", "family") and (
                field.name in always or value != field.default
            ):
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """What the network was trained on."""
        return self._noise_schedule(torch.float64)

    @cached_property
    def noise_schedule_fp32(self) -> NoiseSchedule:
        """The same, computed in the arithmetic of float32."""
        return self._noise_schedule(torch.float32)

    def _noise_schedule(self, dtype: torch.dtype) -> NoiseSchedule:
        if self.trained_betas is not None:
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
        """The checkpoint's default sampler; None if its class or solver has no counterpart here."""
        name = SAMPLER_CLASSES.get(self.class_name)
        if name == "dpmpp_2m" and self.algorithm_type == "sde-dpmsolver++":
            # Of order 3, diffusers subtracts 1/2 where it should be added (the weight of its D2 would tend to
            # -1, not 0, for short steps). Here as in k-diffusion.
            return "dpmpp_3m_sde" if self.solver_order == 3 else "dpmpp_2m_sde"
        if name in ("dpmpp_2m", "dpmpp_2s") and self.algorithm_type != "dpmsolver++":
            return None
        return None if name == "dpmpp_2s" and self.solver_order != 2 else name

    @property
    def sigma_schedule(self) -> SigmaSchedule:
        """The checkpoint's default sigma schedule."""
        if self.use_karras_sigmas:
            return "karras"
        if self.use_exponential_sigmas:
            return "exponential"
        return "beta" if self.use_beta_sigmas else "uniform"


def _checked(key: str, value: Any, default: Any) -> Any:
    """`value`, if it is of the kind that `default` is; lists become tuples."""
    if isinstance(value, list):
        value = tuple(value)
    kinds: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    if type(default) in kinds and type(value) not in kinds[type(default)]:
        raise ValueError(f"{key} is {value!r}; expected something like {default!r}")
    return value
