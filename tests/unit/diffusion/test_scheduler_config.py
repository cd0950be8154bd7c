"""Reading and writing scheduler_config.json."""

import json
import math
import re

import pytest

from limner.diffusion.config import FALLBACK_SAMPLER, SchedulerConfig
from limner.diffusion.plan import make_plan

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.mark.parametrize(
    ("model", "sampler", "prediction_type", "spacing"),
    [
        ("sd15", "pndm", "epsilon", None),
        ("sd21-768-v", "ddim", "v_prediction", None),
        ("sdxl-base", "euler", "epsilon", "leading"),
    ],
)
def test_published_configs(reference, model, sampler, prediction_type, spacing):
    [file] = (reference / "configs" / model / "scheduler").iterdir()
    config = SchedulerConfig.from_dict(json.loads(file.read_text()))
    assert config.sampler == sampler
    assert config.sigma_schedule == "uniform"
    assert config.prediction_type == prediction_type
    assert config.timestep_spacing == spacing
    assert config.steps_offset == 1
    assert config.set_alpha_to_one is False
    assert SchedulerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "sampler", "sigma_schedule"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_a", "uniform"),
        ({"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": True}, "heun", "karras"),
        ({"_class_name": "LMSDiscreteScheduler", "use_exponential_sigmas": True}, "lms", "exponential"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", "uniform"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
            "uniform",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_2m", "uniform"),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "solver_order": 3,
            },
            "dpmpp_3m_sde",
            "uniform",
        ),
        ({"_class_name": "DPMSolverSinglestepScheduler", "use_beta_sigmas": True}, "dpmpp_2s", "beta"),
        ({"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}, None, "uniform"),
        ({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": None}, "dpmpp_sde", "uniform"),
        ({"_class_name": "KDPM2DiscreteScheduler"}, "dpm2", "uniform"),
        ({"_class_name": "KDPM2AncestralDiscreteScheduler", "use_karras_sigmas": True}, "dpm2_a", "karras"),
        ({"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis"}, "deis", "uniform"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, None, "uniform"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc", "uniform"),
        ({"_class_name": "IPNDMScheduler", "original_inference_steps": 50}, None, "uniform"),
    ],
)
def test_the_class_decides_the_sampler(changes, sampler, sigma_schedule):
    config = SchedulerConfig.from_dict({**SD15, **changes})
    assert (config.sampler, config.sigma_schedule) == (sampler, sigma_schedule)
    assert SchedulerConfig.from_dict(config.to_dict()) == config


def test_trained_betas_are_the_schedule():
    betas = {"trained_betas": [0.1, 0.2, 0.5], "num_train_timesteps": 3}
    config = SchedulerConfig.from_dict({**SD15, **betas})
    assert config.noise_schedule.alphas_cumprod == pytest.approx((0.9, 0.72, 0.36))


def test_written_configs_keep_diffusers_from_clipping():
    assert SchedulerConfig(class_name="DDIMScheduler").to_dict()["clip_sample"] is False
    assert SchedulerConfig(class_name="PNDMScheduler").to_dict()["skip_prk_steps"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": None}, "_class_name is None"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"beta_start": None}, "missing key 'beta_start'"),
        ({"beta_start": -0.1}, "beta_start is -0.1"),
        ({"beta_end": math.nan}, "beta_end nan"),
        ({"beta_end": "0.012"}, "beta_end is '0.012'"),
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000"),
        ({"trained_betas": ["a", "b"], "num_train_timesteps": 2}, "something else than numbers"),
        ({"num_train_timesteps": True}, "num_train_timesteps is True"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values"),
        ({"_class_name": "EDMEulerScheduler"}, "another noise process"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "another noise process"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "another noise process"),
    ],
)
def test_what_the_network_was_trained_on_is_read_strictly(changes, message):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig.from_dict({**SD15, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one is 'no'"),
        ({"steps_offset": 1000}, "steps_offset is 1000"),
        ({"timestep_spacing": "even"}, "'even'"),
        ({"skip_prk_steps": False}, "skip_prk_steps is False"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample is True"),
        ({"thresholding": True}, "thresholding is True"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 7}, "noise_sampler_seed is 7"),
        ({"lower_order_final": "no"}, "lower_order_final is 'no'"),
        ({"solver_order": 7}, "solver_order is 7"),
        ({"original_inference_steps": 0}, "original_inference_steps is 0"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "more than one of"),
        ({"use_beta_sigmas": True, "use_karras_sigmas": True}, "more than one of"),
    ],
)
def test_how_to_sample_does_not_keep_a_model_from_use(changes, message):
    config = SchedulerConfig.from_dict({**SD15, **changes})
    [warning] = config.warnings
    assert re.search(message, warning)
    first, value = next(iter(changes.items()))
    kept = {first: value} if first in ("_class_name", "use_karras_sigmas", "use_beta_sigmas") else {}
    others = {key: value for key, value in SD15.items() if key not in changes}
    assert config == SchedulerConfig.from_dict(others | kept)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "IPNDMScheduler"}, "IPNDMScheduler is not among"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            r"\(dpmsolver, order 2",
        ),
    ],
)
def test_a_class_without_counterpart_has_a_fallback(changes, named):
    config = SchedulerConfig.from_dict({**SD15, **changes})
    assert re.search(named, config.warnings[0])
    assert make_plan(config, 10).sampler == FALLBACK_SAMPLER
    assert make_plan(config, 10, sampler="euler").sampler == "euler"


def test_absent_keys_mean_what_they_mean_to_the_class():
    without = {k: v for k, v in SD15.items() if k not in ("clip_sample", "skip_prk_steps")}
    [warning] = SchedulerConfig.from_dict({**without, "_class_name": "DDIMScheduler"}).warnings
    assert "clip_sample is True, which is what its absence means" in warning
    [warning] = SchedulerConfig.from_dict(without).warnings
    assert "skip_prk_steps is False, which is what its absence means" in warning
    euler = {**without, "_class_name": "EulerDiscreteScheduler", "clip_sample": True}
    assert SchedulerConfig.from_dict(euler).warnings == ()
