"""diffusers' scheduler classes: settings, defaults and arguments of `step`. Each docstring names Limner's
sampler."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.diffusion.plan import Plan
from limner.errors import InvalidRequest

from .noise import Generators
from .schedulers import CustomTimesteps, Scheduler, SchedulerOutput, noise_like

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
        """As `Scheduler.step`. `eta` is the fraction of fresh noise; `variance_noise` replaces that noise."""
        _refuse(use_clipped_model_output=use_clipped_model_output)
        noise = noise_like(model_output, generator) if variance_noise is None else lambda: variance_noise
        return self._step(model_output, timestep, sample, noise, return_dict, eta=eta)


class DDPMScheduler(CustomTimesteps):
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
        """As `Scheduler.plan`. From any begin index, the second call repeats the first step."""
        plan = self._make_plan(options or {})
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
        """As `Scheduler.step`. `order` is the number of slopes used, 1 to 4."""
        noise = noise_like(model_output, None)
        return self._step(model_output, timestep, sample, noise, return_dict, order=order)


class EulerDiscreteScheduler(CustomTimesteps):
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
        """As `Scheduler.set_timesteps`; also takes custom timesteps, or custom sigmas with the final one."""
        self._set_run(num_inference_steps, device, timesteps, sigmas)

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
        """As `Scheduler.step`. Churn is not supported; without it, the other `s_` arguments have no
        effect."""
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


class HeunDiscreteScheduler(CustomTimesteps):
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


class DPMSolverMultistepScheduler(CustomTimesteps):
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
        """As `Scheduler.step`. `variance_noise` replaces the fresh noise."""
        noise = noise_like(model_output, generator) if variance_noise is None else lambda: variance_noise
        return self._step(model_output, timestep, sample, noise, return_dict)


class DPMSolverSinglestepScheduler(CustomTimesteps):
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
    """`dpmpp_sde` with independent noise draws; diffusers uses a Brownian tree."""

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


class LCMScheduler(CustomTimesteps):
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
        """As `Scheduler.step`. `eta` is gamma of the TCD paper."""
        noise = noise_like(model_output, generator)
        return self._step(model_output, timestep, sample, noise, return_dict, eta=eta)


def _refuse(**given: Any) -> None:
    """Raise InvalidRequest for an argument that is neither 0, False nor None."""
    for name, value in given.items():
        if value:
            raise InvalidRequest(f"{name} is {value!r}, which is not offered", hint="leave it out")
