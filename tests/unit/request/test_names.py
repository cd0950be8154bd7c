"""Samplers and sigma schedules by everyone's names."""

from typing import get_args

import pytest
import torch

from limner import GenerationRequest
from limner.diffusion.config import SAMPLER_CLASSES
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.errors import InvalidRequest
from limner.request import SamplerName, SigmaScheduleName
from limner.request.names import own_names, own_sampler, own_sigma_schedule


def test_requests_accept_what_is_in_the_tables():
    assert get_args(SamplerName) == tuple(SAMPLER_TABLE)
    assert get_args(SigmaScheduleName) == tuple(SIGMA_SCHEDULES)
    schema = GenerationRequest.model_json_schema()["properties"]
    assert schema["sampler"]["anyOf"][0]["enum"] == list(SAMPLER_TABLE)
    assert schema["hires_sigma_schedule"]["anyOf"][0]["enum"] == list(SIGMA_SCHEDULES)


def test_no_two_have_a_name_in_common():
    for own, info in SAMPLER_TABLE.items():
        assert {own_sampler(name) for name in (own, info.label, *info.aliases)} == {(own, None)}
    for own, info in SIGMA_SCHEDULES.items():
        assert {own_sigma_schedule(name) for name in (own, info.label, *info.aliases)} == {own}


@pytest.mark.parametrize(("class_name", "sampler"), SAMPLER_CLASSES.items())
def test_names_of_diffusers(class_name, sampler):
    assert own_sampler(class_name) == (sampler, None)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("euler", "euler"),
        ("euler_ancestral", "euler_a"),
        ("heun", "heun"),
        ("dpm_2", "dpm2"),
        ("dpm_2_ancestral", "dpm2_a"),
        ("lms", "lms"),
        ("dpm_adaptive", "dpm_adaptive"),
        ("dpmpp_2s_ancestral", "dpmpp_2s_a"),
        ("dpmpp_sde", "dpmpp_sde"),
        ("dpmpp_sde_gpu", "dpmpp_sde"),
        ("dpmpp_2m", "dpmpp_2m"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde"),
        ("dpmpp_3m_sde", "dpmpp_3m_sde"),
        ("ddpm", "ddpm"),
        ("lcm", "lcm"),
        ("deis", "deis"),
        ("ddim", "ddim"),
        ("uni_pc", "unipc_bh1"),
        ("heunpp2", "heunpp2"),
        ("dpm_fast", "dpm_fast"),
        ("dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde_heun"),
        ("ipndm", "ipndm"),
        ("res_multistep", "res_multistep"),
        ("gradient_estimation", "gradient_estimation"),
        ("er_sde", "er_sde"),
        ("seeds_2", "seeds_2"),
        ("seeds_3", "seeds_3"),
        ("sa_solver", "sa_solver"),
        ("euler_cfg_pp", "euler_cfg_pp"),
        ("euler_ancestral_cfg_pp", "euler_a_cfg_pp"),
        ("dpmpp_2m_cfg_pp", "dpmpp_2m_cfg_pp"),
        ("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_a_cfg_pp"),
        ("uni_pc_bh2", "unipc_bh2"),
    ],
)
def test_names_of_comfyui(name, sampler):
    assert own_sampler(name) == (sampler, None)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("normal", "normal"),
        ("karras", "karras"),
        ("exponential", "exponential"),
        ("sgm_uniform", "sgm_uniform"),
        ("simple", "simple"),
        ("ddim_uniform", "ddim_uniform"),
        ("beta", "beta"),
        ("kl_optimal", "kl_optimal"),
    ],
)
def test_sigma_schedules_of_comfyui(name, schedule):
    assert own_sigma_schedule(name) == schedule


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++ 2m sde exponential", ("dpmpp_2m_sde", "exponential")),
        ("DDIM Uniform", ("ddim", "uniform")),
        ("DDIM DDIM", ("ddim", "ddim_uniform")),
        ("Euler Polyexponential", ("euler", "polyexponential")),
        ("Euler SGM Uniform", ("euler", "sgm_uniform")),
        ("plms", ("pndm", None)),
        ("k_dpm_fast", ("dpm_fast", None)),
        ("DDIM CFG++", ("ddim_cfg_pp", None)),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde_heun", "karras")),
        ("Euler Align Your Steps", ("euler", "align_your_steps")),
        ("UniPC", ("unipc_bh1", None)),
        ("UniPC Karras", ("unipc_bh1", "karras")),
        ("uni_pc karras", ("unipc_bh1", "karras")),
        ("uni_pc_bh2 karras", ("unipc_bh2", "karras")),
        ("UniPC bh2 Karras", ("unipc_bh2", "karras")),
        ("unipc karras", ("unipc", "karras")),
        ("UniPCMultistepScheduler", ("unipc", None)),
    ],
)
def test_a_sigma_schedule_may_stand_at_the_end(name, own):
    assert own_sampler(name) == own


@pytest.mark.parametrize(
    ("name", "near"), [("dpmp_2m", "dpmpp_2m"), ("Euler A.", None), ("eulr", "euler"), ("DPM++2S", None)]
)
def test_near_names_are_said(name, near):
    if near is None:  # signs and blanks do not matter
        own_sampler(name)
        return
    with pytest.raises(InvalidRequest) as caught:
        own_sampler(name)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"did you mean {near}")


@pytest.mark.parametrize(
    "name", ["res_multistep_cfg_pp", "ipndm_v", "sa_solver_pece", "x" * 10_000, "", "k_"]
)
def test_what_limner_lacks_is_refused_with_all_that_it_has(name):
    with pytest.raises(InvalidRequest) as caught:
        own_sampler(name)
    assert all(sampler in caught.value.message for sampler in SAMPLERS)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("name", "solver_type", "order"),
    [
        ("UniPC", "bh1", 3),  # webui's, by its options' defaults
        ("uni_pc", "bh1", 3),  # ComfyUI's
        ("uni_pc_bh2", "bh2", 3),
        ("UniPCMultistepScheduler", "bh2", 2),  # diffusers', by its own defaults
        ("unipc", "bh2", 2),
    ],
)
def test_every_program_s_unipc_takes_its_own_steps(name, solver_type, order):
    def end(sampler, **options):
        x = torch.tensor([-13.0, 2.0, 7.0], dtype=torch.float64)
        steps = SAMPLERS[sampler](x, (10.0, 6.0, 3.0, 1.0, 0.3, 0.0), lambda: x, **options)
        x, sigma = next(steps)
        while True:
            try:
                x, sigma = steps.send(torch.tanh(x) * 0.9 ** (sigma + 1.0))
            except StopIteration as done:
                return done.value

    variants = {(kind, n): end("unipc", solver_type=kind, order=n) for kind in ("bh1", "bh2") for n in (2, 3)}
    result = end(own_sampler(name)[0])
    same = [variant for variant, other in variants.items() if torch.equal(result, other)]
    assert same == [(solver_type, order)]


def test_requests_take_every_name_and_keep_limners():
    request = GenerationRequest.of({"prompt": "", "sampler": "DPM++ 2M Karras"})
    assert (request.sampler, request.sigma_schedule) == ("dpmpp_2m", "karras")
    request = GenerationRequest.of(
        {"prompt": "", "sampler": "euler_ancestral", "sigma_schedule": "KL Optimal"}
    )
    assert (request.sampler, request.sigma_schedule) == ("euler_a", "kl_optimal")
    texts = {"prompt": "", "sampler": "LMS Karras"}
    own = {"prompt": "", "sampler": "lms", "sigma_schedule": "karras"}
    assert GenerationRequest.read_texts(texts) == own
    assert GenerationRequest.of({"prompt": "", "sampler": None}).sampler is None


def test_two_sigma_schedules_are_one_too_many():
    assert own_names("DPM++ 2M Karras", "Karras") == {"sampler": "dpmpp_2m", "sigma_schedule": "karras"}
    with pytest.raises(InvalidRequest, match="but sigma_schedule is 'Beta'"):
        own_names("DPM++ 2M Karras", "Beta")
