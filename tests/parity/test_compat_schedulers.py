"""Scheduler classes of the compat, step by step against those of diffusers under the same name."""

import diffusers
import pytest
import torch

import limner.compat.scheduler_classes as compat
from limner.compat.schedulers import Scheduler
from limner.compat.values import named_subclasses
from limner.errors import InvalidRequest, UnsupportedModel

# NumPy 2 says so of diffusers' `np.array(tensor)` and `np.log(tensor)`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OWN = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
}
CLASSES = named_subclasses(Scheduler, "Scheduler")
NAMES = sorted(CLASSES.keys() - {"DPMSolverSDEScheduler"})  # whose noise has another source there
LOOSE = {"atol": 2e-3, "rtol": 1e-3}  # theirs takes a small difference of squares in float32 there


def pair(name, **changes):
    settings = {**LATENT, **OWN.get(name, {}), **changes}
    return getattr(compat, name)(**settings), getattr(diffusers, name)(**settings)


def network(x, t):
    return 0.35 * x + 0.4 * torch.tanh(1.7 * x + 0.1) - 0.15 * float(t) / 1000


def walk(scheduler, steps, *, begin=0, change=None, timesteps=None, sigmas=None, **options):
    """Every sample on the way, with the class's own scale and timesteps."""
    own = {"timesteps": timesteps, "sigmas": sigmas}
    scheduler.set_timesteps(steps, **{name: value for name, value in own.items() if value is not None})
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    timesteps = scheduler.timesteps[begin:]
    if begin:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = scheduler.add_noise(x, torch.roll(x, 1), timesteps[:1])
    else:
        x = x * scheduler.init_noise_sigma
    seen = [x]
    for number, t in enumerate(timesteps):
        if change is not None and number in change:
            x = x * 0.9 + 0.1
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
        seen.append(x)
    return seen


def assert_same(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(
            one,
            other.to(one),
            **({"atol": 1e-4, "rtol": 1e-4} | tolerance),
            msg=lambda m, number=number: f"sample {number} of {len(ours)}: {m}",
        )


def tolerance_of(name):
    return LOOSE if name == "KDPM2AncestralDiscreteScheduler" else {}


@pytest.mark.parametrize("name", NAMES)
def test_each_class_step_by_step(name):
    ours, theirs = pair(name)
    ours.set_timesteps(8)
    theirs.set_timesteps(8)
    assert ours.timesteps.dtype == theirs.timesteps.dtype or name == "KDPM2AncestralDiscreteScheduler"
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.to(ours.timesteps), atol=0.02, rtol=1e-4)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    assert ours.order == theirs.order
    assert len(ours) == len(theirs)
    assert_same(walk(ours, 8), walk(theirs, 8), **tolerance_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_are_changed_between_steps(name):
    ours, theirs = pair(name)
    changed = {2, 3, 5}
    assert_same(walk(ours, 8, change=changed), walk(theirs, 8, change=changed), **tolerance_of(name))


@pytest.mark.parametrize("begin", [1, 2, 3])
@pytest.mark.parametrize("name", sorted({*NAMES} - {"LMSDiscreteScheduler", "DPMSolverSinglestepScheduler"}))
def test_a_run_that_begins_on_the_way(name, begin):
    """Not LMS, which diffusers then gives weights of slopes that it does not have, nor the singlestep solver,
    which takes a step of first order twice if it begins with an odd one."""
    ours, theirs = pair(name)
    begin *= ours.order
    found, expected = walk(ours, 8, begin=begin), walk(theirs, 8, begin=begin)
    assert_same(found, expected, **tolerance_of(name))


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_from_config_between_classes(name, other):
    ours, theirs = pair(name)
    ours, theirs = (
        getattr(module, other).from_config({**one.config, "clip_sample": False, "skip_prk_steps": True})
        for module, one in ((compat, ours), (diffusers, theirs))
    )
    named = CLASSES[other].defaults
    assert {key: ours.config[key] for key in named} == {key: theirs.config[key] for key in named}
    assert_same(walk(ours, 6), walk(theirs, 6), **tolerance_of(other))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        (
            "DDIMScheduler",
            {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            },
        ),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_settings(name, changes):
    ours, theirs = pair(name, **changes)
    assert_same(walk(ours, 7), walk(theirs, 7))


@pytest.mark.parametrize(
    ("name", "options"),
    [("DDIMScheduler", {"eta": 0.7}), ("TCDScheduler", {"eta": 0.5}), ("LMSDiscreteScheduler", {"order": 2})],
)
def test_options_of_steps(name, options):
    ours, theirs = pair(name)
    assert_same(walk(ours, 7, **options), walk(theirs, 7, **options))


OF_ONES_OWN = [
    *("DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler", "TCDScheduler"),
]


@pytest.mark.parametrize("name", OF_ONES_OWN)
def test_timesteps_of_one_s_own(name):
    ours, theirs = pair(name)
    visits = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert_same(walk(ours, None, timesteps=visits), walk(theirs, None, timesteps=visits))


def test_sigmas_of_one_s_own():
    ours, theirs = pair("EulerDiscreteScheduler")
    sigmas = [14.6, 6.3, 3.8, 1.2, 0.4, 0.0]
    assert_same(walk(ours, None, sigmas=sigmas), walk(theirs, None, sigmas=sigmas))


@pytest.mark.parametrize("name", NAMES)
def test_what_training_asks(name):
    ours, theirs = pair(name)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)
    x, noise = torch.randn(2, 3, 4, 4, 4)[:2]
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    found, expected = (s.add_noise(x, noise, s.timesteps[[0, 2, 4]]) for s in (ours, theirs))
    torch.testing.assert_close(found, expected.to(found), atol=1e-4, rtol=1e-4)


def test_saved_and_read_again(tmp_path):
    ours, _ = pair("UniPCMultistepScheduler", solver_order=3)
    ours.save_pretrained(tmp_path / "scheduler")
    theirs = diffusers.UniPCMultistepScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert theirs.config.solver_order == 3
    again = compat.DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler", clip_sample=False)
    assert again.config.beta_start == ours.config.beta_start
    assert again.config["solver_order"] == 3  # kept for others


def test_what_cannot_be_honoured():
    with pytest.raises(TypeError, match="no argument solver_order"):
        compat.EulerDiscreteScheduler(solver_order=2)
    with pytest.raises(TypeError, match="no argument solver_order"):
        compat.EulerDiscreteScheduler.from_config({}, solver_order=2)
    with pytest.raises(UnsupportedModel, match="clip_sample is True"):
        compat.DDIMScheduler()
    with pytest.raises(UnsupportedModel, match="not among Limner's samplers"):
        compat.DPMSolverMultistepScheduler(algorithm_type="dpmsolver")
    scheduler = compat.UniPCMultistepScheduler(**LATENT)
    scheduler.set_timesteps(5)
    x = torch.zeros(1, 4, 2, 2)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(InvalidRequest, match="builds on the last ones"):
        scheduler.step(x, scheduler.timesteps[3], x)
    with pytest.raises(InvalidRequest, match="s_churn"):
        compat.EulerDiscreteScheduler(**LATENT).step(x, 1, x, s_churn=0.5)
    with pytest.raises(InvalidRequest, match="expected 1 to 1000"):
        scheduler.set_timesteps(5000)
