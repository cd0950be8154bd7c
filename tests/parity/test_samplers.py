"""Samplers, step by step, against trajectories of diffusers and k-diffusion.

The golden ones were recorded with a function in the place of the network, elementwise in x and t, so that one
latent, timestep or draw out of place shows. Others are made on the spot with diffusers' own classes.
"""

import copy
import importlib
import itertools
import json
import sys
from dataclasses import dataclass, field
from functools import cache
from unittest.mock import MagicMock, patch

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from limner.diffusion.config import SAMPLER_CLASSES, SchedulerConfig
from limner.diffusion.plan import make_plan
from limner.diffusion.prediction import scalings
from limner.diffusion.samplers import SAMPLERS

# NumPy 2 says so of diffusers' `np.array(tensor)` and `np.log(tensor)`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

FLOAT32 = {"atol": 2e-5, "rtol": 1e-5}
"""diffusers keeps its constants, and some of its steps, in float32."""
FLOAT32_LOOSE = {"atol": 1e-4, "rtol": 1e-4}
"""With sigma 4096, and for multistep solvers near sigma 0, rounding errors are larger."""
CANCELLED = {"atol": 2e-3, "rtol": 1e-3}
TIMESTEPS = {"dpm2_a": {"timestep_tolerance": 0.02}}
"""It takes a small difference of squares in float32, and the logarithm of that. From sigma 15 to 0.03,
next to nothing is left of it."""


@dataclass
class Trajectory:
    """What the network was shown at each call, what it was told, and what came out."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    draws: int = 0
    final: torch.Tensor | None = None


@dataclass(frozen=True)
class Bench:
    """A network's stand-in, a first noise and a stock of draws."""

    init: torch.Tensor
    noise_bank: torch.Tensor
    pattern: torch.Tensor

    def network(self, x, t):
        return 0.35 * x + 0.4 * torch.tanh(1.7 * x + 0.1) - 0.15 * t / 1000 + 0.05 * self.pattern

    def run(self, config, steps, **choices):
        """Limner's trajectory."""
        plan = make_plan(config, steps, **choices)
        seen = Trajectory()

        def noise():
            seen.draws += 1
            return self.noise_bank[seen.draws - 1]

        sampler = SAMPLERS[plan.sampler](self.init * plan.start_scale, plan.sigmas, noise, **plan.options)
        denoised = None
        while True:
            try:
                x, sigma = sampler.send(denoised)
            except StopIteration as done:
                seen.final = done.value / plan.end_scale
                return seen
            around = scalings(config.prediction_type, sigma)
            seen.inputs.append(around.c_in * x)
            seen.timesteps.append(plan.timestep(sigma))
            seen.sigmas.append(sigma)
            denoised = around.denoised(x, self.network(seen.inputs[-1], seen.timesteps[-1]))

    def run_diffusers(self, config, steps, **step_options):
        """The trajectory of the class that a config names, as diffusers' pipelines drive it."""
        scheduler = copy.deepcopy(their_scheduler(json.dumps(config)))
        scheduler.set_timesteps(steps)
        seen = Trajectory()

        def randn_tensor(shape, **kwargs):
            seen.draws += 1
            return self.noise_bank[seen.draws - 1]

        x = self.init * scheduler.init_noise_sigma
        module = sys.modules[type(scheduler).__module__]
        with patch.object(module, "randn_tensor", randn_tensor, create=True):
            for t in scheduler.timesteps:
                seen.inputs.append(scheduler.scale_model_input(x, t).double())
                seen.timesteps.append(float(t))
                output = self.network(seen.inputs[-1], float(t))
                x = scheduler.step(output, t, x, **step_options).prev_sample
        seen.final = x.double()
        return seen


@cache
def their_scheduler(config):
    """To be copied: some classes take a second to make one, as they set 1000 timesteps."""
    config = json.loads(config)
    return getattr(diffusers, config["_class_name"]).from_config(config)


def assert_same(ours, theirs, case, *, timestep_tolerance=1e-4, **tolerance):
    """Timesteps that are rounded are equal; between the trained ones, float32 is worth some 1e-5."""
    assert len(ours.inputs) == len(theirs.inputs), case
    assert ours.draws == theirs.draws, case
    assert ours.timesteps == pytest.approx(theirs.timesteps, abs=timestep_tolerance), case
    pairs = zip([*ours.inputs, ours.final], [*theirs.inputs, theirs.final], strict=True)
    for call, (a, b) in enumerate(pairs):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, call=call: f"{case}, call {call}: {m}")


@pytest.fixture(scope="module")
def bench(reference):
    return Bench(**load_file(reference / "schedulers" / "common.safetensors"))


def golden(reference, index):
    lines = (reference / "schedulers" / index).read_text().splitlines()
    return [json.loads(line) for line in lines]


AMONG_THEM = {*SAMPLER_CLASSES.values(), "dpmpp_2m_sde"} - {"tcd", "dpmpp_sde"}


@pytest.mark.parametrize("sampler", sorted(AMONG_THEM))
def test_golden_diffusers_trajectories(reference, bench, sampler):
    compared = 0
    for entry in golden(reference, "diffusers.index.jsonl"):
        config = SchedulerConfig.from_dict(entry["config"])
        if config.sampler != sampler:
            continue
        tensors, prefix = load_file(reference / entry["file"]), entry["prefix"]
        latents = tensors[f"{prefix}.latents"].double()[:-1]
        timesteps = tensors[f"{prefix}.timesteps"].tolist()
        ours = bench.run(config, entry["num_inference_steps"], options=entry["step_kwargs"])
        # Euler and its kin keep latents in sigma coordinates, and scale them for the network.
        if entry["init_noise_sigma"] != 1.0:
            sigmas = torch.tensor(ours.sigmas, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)
            latents = latents / (sigmas**2 + 1) ** 0.5
        final = tensors[f"{prefix}.final"]
        theirs = Trajectory(list(latents), timesteps, draws=entry["noise_draws"], final=final)
        assert_same(ours, theirs, entry["id"], **TIMESTEPS.get(sampler, {}), **FLOAT32)
        compared += 1
    assert compared >= 2


K_DIFFUSION = {
    "sample_euler": ("euler", {}),
    "sample_euler_ancestral": ("euler_a", {"final_draw": False}),
    "sample_heun": ("heun", {}),
    "sample_dpm_2": ("dpm2", {}),
    "sample_dpm_2_ancestral": ("dpm2_a", {}),
    "sample_lms": ("lms", {}),
    "sample_dpmpp_2m": ("dpmpp_2m", {}),
    "sample_dpmpp_2m_sde": ("dpmpp_2m_sde", {"final_draw": False}),
    "sample_dpmpp_3m_sde": ("dpmpp_3m_sde", {"final_draw": False}),
    "sample_dpmpp_2s_ancestral": ("dpmpp_2s_a", {}),
    "sample_dpmpp_sde": ("dpmpp_sde", {}),
}
TWO_CALLS = {"heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde"}


@pytest.mark.parametrize("function", K_DIFFUSION)
def test_golden_k_diffusion_trajectories(reference, bench, function):
    compared = 0
    for entry in golden(reference, "k-diffusion.index.jsonl"):
        if entry["function"] != function:
            continue
        name, options = K_DIFFUSION[function]
        if entry["kwargs"].pop("solver_type", "midpoint") == "heun":
            name += "_heun"
        tensors, prefix = load_file(reference / entry["file"]), entry["prefix"]
        sigmas, latents = tensors[f"{prefix}.sigmas"].tolist(), tensors[f"{prefix}.latents"]
        draws = iter(bench.noise_bank)
        sampler = SAMPLERS[name](
            bench.init * sigmas[0], sigmas, lambda draws=draws: next(draws), **options, **entry["kwargs"]
        )
        seen, calls, denoised = [], 0, None
        while True:
            try:
                x, sigma = sampler.send(denoised)
            except StopIteration as done:
                seen.append(done.value)
                break
            # k-diffusion reports x once a step: not at the second of two calls.
            if name not in TWO_CALLS or calls % 2 == 0:
                seen.append(x)
            calls += 1
            denoised = x - sigma * bench.network(x / (sigma**2 + 1) ** 0.5, 999 * sigma / (sigma + 1))
        assert calls == entry["model_calls"], entry["id"]
        assert len(bench.noise_bank) - len(list(draws)) == entry["noise_draws"], entry["id"]
        torch.testing.assert_close(seen[-1], tensors[f"{prefix}.final"], atol=1e-10, rtol=0)
        exact = latents.dtype == torch.float64  # the longest are stored in float32
        tolerance = {"atol": 1e-10, "rtol": 0.0} if exact else {"atol": 1e-5, "rtol": 1e-6}
        torch.testing.assert_close(torch.stack(seen).to(latents.dtype), latents, **tolerance)
        compared += 1
    assert compared >= 2


# ---- made on the spot ----

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "unipc": "UniPCMultistepScheduler",
    "sa_solver": "SASolverScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}


@pytest.fixture(scope="module", autouse=True)
def brownian_tree():
    """DPMSolverSDEScheduler takes its noise from torchsde, and is not there without: here from the bench."""
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"

    def tree(*of):
        return lambda *between: sys.modules[name].randn_tensor(())

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "torchsde", MagicMock())
        patched.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        patched.setattr(module, "BrownianTreeNoiseSampler", tree)
        patched.setattr(diffusers, "DPMSolverSDEScheduler", module.DPMSolverSDEScheduler)
        yield


@pytest.fixture(scope="module")
def live_bench():
    generator = torch.Generator().manual_seed(0)
    init, *bank = torch.randn(121, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    pattern = torch.sin(0.37 * torch.arange(36, dtype=torch.float64)).reshape(1, 4, 3, 3)
    return Bench(init, torch.stack(bank), pattern)


def compare(bench, sampler, steps, tolerance=FLOAT32_LOOSE, step_options=None, **changes):
    if sampler == "lms":
        pytest.importorskip("scipy", reason="diffusers' LMSDiscreteScheduler integrates with SciPy")
    config = {
        "_class_name": CLASSES[sampler],
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "skip_prk_steps": True,
        **({"algorithm_type": "sde-dpmsolver++"} if sampler == "dpmpp_2m_sde" else {}),
        **changes,
    }
    named = {"sampler": sampler} if config["_class_name"] not in SAMPLER_CLASSES else {}
    theirs = bench.run_diffusers(config, steps, **(step_options or {}))
    ours = bench.run(SchedulerConfig.from_dict(config), steps, options=step_options, **named)
    case = f"{sampler}, {steps} steps, {changes}"
    if (sampler, steps) == ("dpm2_a", 2):
        tolerance = CANCELLED
    assert_same(ours, theirs, case, **TIMESTEPS.get(sampler, {}), **tolerance)


@pytest.mark.long
@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_any_number_of_steps_with_any_spacing(live_bench, sampler, prediction_type):
    for spacing, steps in itertools.product((None, "leading", "linspace", "trailing"), (1, 2, 3, 7, 16, 50)):
        changes = {} if spacing is None else {"timestep_spacing": spacing}
        compare(live_bench, sampler, steps, prediction_type=prediction_type, **changes)


SCHEDULED = sorted(CLASSES.keys() - {"ddim", "ddpm", "euler_a", "pndm", "lcm", "tcd"})


@pytest.mark.parametrize("sampler", SCHEDULED)
@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_sigma_schedules(live_bench, sampler, setting):
    # At 18 and 33 steps some timestep is so near a half or a whole that float64 rounds it to another. With
    # the beta schedule timesteps then repeat, and some classes of diffusers lose count.
    for steps in (1, 2, 7) if setting == "use_beta_sigmas" else (1, 2, 7, 18, 33):
        # These go from sigma_max to itself with one step of diffusers', and draw the noise.
        if steps > 1 or sampler not in ("deis", "sa_solver"):
            compare(live_bench, sampler, steps, **{setting: True})


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_zero_terminal_snr(live_bench, sampler):
    # The last finite sigma is a difference of nearly equal numbers, so float32 gives fewer digits here.
    tolerance = {"atol": 1e-3, "rtol": 1e-3}
    for spacing, steps in itertools.product(("leading", "linspace", "trailing"), (1, 2, 7, 20)):
        zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        compare(live_bench, sampler, steps, tolerance, timestep_spacing=spacing, **zero)


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("ddim", {"set_alpha_to_one": True}),
        ("pndm", {"set_alpha_to_one": True}),
        ("ddim", {"steps_offset": 0}),
        ("ddpm", {"steps_offset": 0}),
        ("ddim", {"prediction_type": "sample"}),
        ("unipc", {"prediction_type": "sample"}),
        ("ddim", {"beta_schedule": "linear"}),
        ("ddim", {"beta_schedule": "squaredcos_cap_v2"}),
        ("pndm", {"num_train_timesteps": 500}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
        ("dpmpp_2m_sde", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}),
        ("dpmpp_2m", {"solver_type": "heun"}),
        ("dpmpp_2m", {"solver_order": 1}),
        ("dpmpp_2m", {"solver_order": 3}),
        ("dpmpp_2m", {"solver_order": 3, "solver_type": "heun", "euler_at_final": True}),
        ("dpmpp_2m", {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpmpp_2m_sde", {"solver_order": 1}),
        ("dpmpp_2s", {"solver_type": "heun"}),
        ("dpmpp_2s", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2s", {"final_sigmas_type": "sigma_min", "lower_order_final": True}),
        ("deis", {"solver_order": 1}),
        ("deis", {"solver_order": 3}),
        ("deis", {"solver_order": 3, "lower_order_final": False}),
        ("deis", {"solver_order": 3, "timestep_spacing": "trailing"}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_2m", {"solver_type": "bh2"}),
        # To sigma 0 bh1 is NaN in diffusers: an infinite weight times a difference of nothing.
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
        ("unipc", {"solver_type": "midpoint"}),
        ("unipc", {"solver_order": 1}),
        ("unipc", {"solver_order": 3}),
        ("unipc", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ],
)
def test_settings_of_a_checkpoint(live_bench, sampler, changes):
    for steps in (2, 9, 20):
        compare(live_bench, sampler, steps, **changes)


def test_the_noise_of_tcd(live_bench):
    for eta, steps in itertools.product((0.0, 0.5, 1.0), (1, 4, 9)):
        compare(live_bench, "tcd", steps, step_options={"eta": eta})


def test_eta(live_bench):
    for eta in (0.3, 1.0):
        compare(live_bench, "ddim", 7, step_options={"eta": eta})
