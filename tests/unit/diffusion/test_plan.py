"""What a run is decided to be. Agreement with diffusers is in tests/parity/test_samplers.py."""

import itertools
import math
from dataclasses import replace

import pytest
from diffusers.schedulers import AysSchedules

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.plan import make_plan
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES

SD15 = SchedulerConfig(class_name="PNDMScheduler", steps_offset=1, set_alpha_to_one=False)


def test_the_checkpoint_decides_what_is_not_asked():
    plan = make_plan(SD15, 20)
    assert (plan.sampler, plan.spacing, plan.sigma_schedule) == ("pndm", "leading", "uniform")
    assert plan.timesteps[0] == 951.0
    assert plan.sigmas[-1] == plan.schedule.sigmas[0]  # set_alpha_to_one is false
    assert plan.start_scale == pytest.approx(math.hypot(1.0, plan.sigmas[0]))
    assert plan.end_scale == pytest.approx(math.hypot(1.0, plan.sigmas[-1]))


def test_another_sampler_brings_its_own_defaults():
    plan = make_plan(SD15, 20, sampler="euler")
    assert plan.spacing == "linspace"
    assert plan.timesteps[0] == 999.0
    assert plan.start_scale == plan.sigmas[0]
    assert (plan.sigmas[-1], plan.end_scale) == (0.0, 1.0)
    leading = make_plan(SD15, 20, sampler="euler", spacing="leading")
    assert leading.start_scale == pytest.approx(math.hypot(1.0, leading.sigmas[0]))


def test_sigma_schedules_are_inherited_by_samplers_that_have_the_setting():
    karras = SchedulerConfig(class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
    assert make_plan(karras, 5, sampler="dpmpp_2m").sigma_schedule == "karras"
    assert make_plan(karras, 5, sampler="ddim").sigma_schedule == "uniform"
    assert make_plan(karras, 5, sampler="ddim", sigma_schedule="karras").sigma_schedule == "karras"
    assert make_plan(karras, 5, sigma_schedule="uniform").sigma_schedule == "uniform"


ONE_OF_EACH = {(info.convention, info.implied_options): name for name, info in SAMPLER_TABLE.items()}.values()


@pytest.mark.parametrize("sampler", sorted({*ONE_OF_EACH, "ddpm", "lcm", "tcd", "deis", "sa_solver"}))
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sigma_schedule", SIGMA_SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_combination_is_a_finite_walk_down(sampler, spacing, sigma_schedule, zero_terminal_snr):
    config = SchedulerConfig(
        prediction_type="v_prediction",
        steps_offset=1,
        rescale_betas_zero_snr=zero_terminal_snr,
        family="xl",
    )
    distilled = SAMPLER_TABLE[sampler].convention.distilled
    own = SIGMA_SCHEDULES[sigma_schedule].spacing or ("trailing" if distilled else spacing)
    if spacing != own:
        with pytest.raises(ValueError, match="timestep_spacing"):
            make_plan(config, 4, sampler=sampler, spacing=spacing, sigma_schedule=sigma_schedule)
        return
    for steps in (1, 2, 7, 50):
        plan = make_plan(config, steps, sampler=sampler, spacing=spacing, sigma_schedule=sigma_schedule)
        assert (plan.spacing, plan.sigma_schedule) == (spacing, sigma_schedule)
        assert len(plan.sigmas) == steps + 1 == len(plan.timesteps) + 1
        assert all(a > b for a, b in itertools.pairwise(plan.sigmas[:-1]))
        assert plan.sigmas[-2] >= plan.sigmas[-1] >= 0.0
        assert all(0.0 <= t <= 999.0 for t in plan.timesteps)
        assert math.isfinite(plan.start_scale)
        assert [plan.timestep(sigma) for sigma in plan.sigmas[:-1]] == list(plan.timesteps)


def test_zero_terminal_snr_has_the_stand_in_of_each_family():
    config = SchedulerConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert make_plan(config, 5, sampler="ddim").sigmas[0] == pytest.approx(1e6)
    assert make_plan(config, 5, sampler="euler").sigmas[0] == pytest.approx(4096.0)


def test_sigmas_between_those_visited_have_interpolated_timesteps():
    plan = make_plan(SD15, 5, sampler="dpmpp_2m")
    between = math.sqrt(plan.sigmas[0] * plan.sigmas[1])
    assert plan.timesteps[1] < plan.timestep(between) < plan.timesteps[0]


@pytest.mark.parametrize(
    ("sigma_schedule", "spacing", "timesteps"),
    [
        ("normal", "linspace", [999.0, 749.25, 499.5, 249.75, 0.0]),
        ("sgm_uniform", "linspace", [999.0, 799.2, 599.4, 399.6, 199.8]),
        ("simple", "trailing", [999.0, 799.0, 599.0, 399.0, 199.0]),
        ("ddim_uniform", "leading", [801.0, 601.0, 401.0, 201.0, 1.0]),
    ],
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim", "lcm"])
def test_schedules_that_are_timesteps(sigma_schedule, spacing, timesteps, sampler):
    plan = make_plan(SD15, 5, sampler=sampler, sigma_schedule=sigma_schedule)
    assert plan.timesteps == pytest.approx(timesteps)
    assert plan.spacing == spacing
    assert plan.sigmas[0] == plan.schedule.sigma_at(timesteps[0])
    between = plan.schedule.sigma_at(plan.timesteps[2], interpolation="log")
    assert plan.sigmas[2] == pytest.approx(between)
    again = make_plan(SD15, 5, sampler=sampler, sigma_schedule=sigma_schedule, spacing=plan.spacing)
    assert again == plan


def test_orders_are_of_the_class_that_names_them():
    third = SchedulerConfig(class_name="DPMSolverMultistepScheduler", solver_order=3)
    assert make_plan(third, 20).options["order"] == 3
    assert make_plan(third, 20, sampler="dpmpp_2m_sde").options["order"] == 2
    unipc = SchedulerConfig(class_name="UniPCMultistepScheduler", solver_order=3)
    assert make_plan(unipc, 20, sampler="dpmpp_2m").options["order"] == 2


def test_options_go_over_what_the_checkpoint_implies():
    assert make_plan(SD15, 5, sampler="ddim", options={"eta": 0.5}).options == {"eta": 0.5}
    assert make_plan(SD15, 14, sampler="dpmpp_2m").options["lowered"] == 2
    assert make_plan(SD15, 15, sampler="dpmpp_2m").options["lowered"] == 0
    with pytest.raises(ValueError, match="heun has no option 'eta'"):
        make_plan(SD15, 5, sampler="heun", options={"eta": 0.5})
    with pytest.raises(ValueError, match=r"it has eta, s_noise$"):  # and not what configs alone may say
        make_plan(SD15, 5, sampler="euler_a", options={"s_churn": 0.5})


@pytest.mark.parametrize(
    ("steps", "choices", "message"),
    [
        (0, {}, "steps is 0"),
        (1001, {}, "steps is 1001"),
        (10**12, {"sampler": "euler"}, "steps is 1000000000000"),
        (1000, {}, "more than leading spacing can place"),  # steps_offset puts the first at 1000
        (700, {"sampler": "dpmpp_2m", "spacing": "leading", "sigma_schedule": "karras"}, None),
        (5, {"sampler": "plms"}, "sampler is 'plms'"),
        (5, {"spacing": "even"}, "spacing is 'even'"),
        (5, {"sigma_schedule": "even"}, "sigma_schedule is 'even'"),
        (
            1000,
            {"sampler": "euler", "sigma_schedule": "ddim_uniform"},
            "more than ddim_uniform spacing can place",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(steps, choices, message):
    if message is None:
        assert len(make_plan(SD15, steps, **choices).sigmas) == steps + 1
    else:
        with pytest.raises(ValueError, match=message):
            make_plan(SD15, steps, **choices)


@pytest.mark.parametrize(("family", "name"), [("sd1", "StableDiffusion"), ("xl", "StableDiffusionXL")])
def test_align_your_steps_has_the_published_tables(family, name):
    published = AysSchedules[f"{name}Timesteps"], AysSchedules[f"{name}Sigmas"]
    plan = make_plan(replace(SD15, family=family), 10, sampler="euler", sigma_schedule="align_your_steps")
    assert plan.timesteps == pytest.approx(published[0], abs=1e-6)
    assert plan.sigmas == pytest.approx(published[1], rel=0.02)  # which are rounded


def test_align_your_steps_of_another_number_lie_between():
    [ten, twenty] = (
        make_plan(
            replace(SD15, family="sd1"), steps, sampler="euler", sigma_schedule="align_your_steps"
        ).sigmas
        for steps in (10, 20)
    )
    assert twenty[:20:2] == pytest.approx(ten[:10])
    assert twenty[1] == pytest.approx(math.sqrt(ten[0] * ten[1]))
    assert twenty[19] == pytest.approx(math.sqrt(ten[9] * SD15.noise_schedule_fp32.sigmas[0]))


def test_align_your_steps_is_for_models_that_it_was_made_for():
    with pytest.raises(ValueError, match="sd1 and xl; this one is sd2"):
        make_plan(replace(SD15, family="sd2"), 10, sampler="euler", sigma_schedule="align_your_steps")
