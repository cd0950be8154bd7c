"""Noise schedules, timestep spacing and sigma schedules."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from limner.diffusion.schedule import (
    SIGMA_SCHEDULES,
    NoiseSchedule,
    beta,
    ddim_uniform,
    exponential,
    karras,
    kl_optimal,
    normal,
    polyexponential,
    sgm_uniform,
    simple,
    spaced_timesteps,
)

SCHEDULE = NoiseSchedule.from_beta_schedule()


@pytest.fixture(scope="module")
def golden(reference):
    return json.loads((reference / "schedulers" / "sigmas.json").read_text())


def test_stable_diffusion_schedule(golden):
    for t, a in golden["alphas_cumprod"].items():
        assert SCHEDULE.alphas_cumprod[int(t)] == pytest.approx(a, rel=1e-12)
    for t, sigma in golden["sigmas"].items():
        assert SCHEDULE.sigmas[int(t)] == pytest.approx(sigma, rel=1e-12)
    assert sum(SCHEDULE.alphas_cumprod) == pytest.approx(golden["alphas_cumprod_sum"], rel=1e-12)
    assert sum(SCHEDULE.sigmas) == pytest.approx(golden["sigmas_sum"], rel=1e-12)


def test_sigmas_and_timesteps_convert(golden):
    # The golden conversions take logarithms in float32, worth 1e-3 of a timestep where sigma is largest.
    for sigma, (timestep, quantized) in golden["sigma_to_t"].items():
        assert SCHEDULE.timestep_at(float(sigma)) == pytest.approx(timestep, abs=1e-3)
        assert SCHEDULE.timestep_at(float(sigma), quantize=True) == quantized
    for timestep, sigma in golden["t_to_sigma"].items():
        assert SCHEDULE.sigma_at(float(timestep), interpolation="log") == pytest.approx(sigma, rel=1e-6)


def test_linear_interpolation_is_between_neighbours():
    assert SCHEDULE.sigma_at(10.25) == pytest.approx(0.75 * SCHEDULE.sigmas[10] + 0.25 * SCHEDULE.sigmas[11])
    assert SCHEDULE.sigma_at(999.0) == SCHEDULE.sigmas[999]


@pytest.mark.parametrize("count", ["5", "10", "20", "50"])
def test_sigma_schedules(golden, count):
    # The golden lists were computed in float32, between ends cut to six digits, and end with 0.
    ends = 0.0291675, 14.614642
    n = int(count)
    discrete = [SCHEDULE.sigma_at(t, interpolation="log") for t in spaced_timesteps("linspace", n, 1000)]
    assert discrete == pytest.approx(golden["get_sigmas"][count][:-1], rel=1e-6)
    assert karras(n, *ends) == pytest.approx(golden["karras"][count][:-1], rel=2e-6)
    assert exponential(n, *ends) == pytest.approx(golden["exponential"][count][:-1], rel=2e-6)
    assert polyexponential(n, *ends, rho=0.5) == pytest.approx(
        golden["polyexponential_rho0.5"][count][:-1], rel=2e-6
    )
    if count in golden["karras_rho5"]:
        assert karras(n, 0.1, 10.0, rho=5.0) == pytest.approx(golden["karras_rho5"][count][:-1], rel=2e-6)


@pytest.mark.parametrize("make", [info.sigmas for info in SIGMA_SCHEDULES.values() if info.sigmas])
def test_sigma_schedules_include_their_ends_exactly(make):
    assert make(1, 0.1, 10.0) == [10.0]
    assert make(2, 0.1, 10.0) == [10.0, 0.1]
    sigmas = make(9, 0.1, 10.0)
    assert (sigmas[0], sigmas[-1]) == (10.0, 0.1)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_spacing_is_numpys_to_the_last_rounding():
    too_many = 0
    for n in range(1, 1001):
        leading = (np.arange(n) * (1000 // n)).round()[::-1] + 1
        assert spaced_timesteps("leading", n, 1000, offset=1) == leading.tolist()
        linspace = np.linspace(0, 999, n)[::-1]
        assert spaced_timesteps("linspace", n, 1000) == linspace.tolist()
        trailing = np.arange(1000, 0, -1000 / n).round() - 1
        too_many += len(trailing) > n  # NumPy's arange at its edge: one more, at timestep -1
        assert spaced_timesteps("trailing", n, 1000) == trailing[:n].tolist()
    assert too_many > 0
    with pytest.raises(ValueError, match="'even'"):
        spaced_timesteps("even", 5, 1000)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_keeps_the_first_and_zeroes_the_last(name):
    plain = NoiseSchedule.from_beta_schedule(name)
    rescaled = NoiseSchedule.from_beta_schedule(name, zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    assert rescaled.alphas_cumprod[-1] == 0.0
    assert rescaled.sigmas[-1] == math.inf
    assert rescaled.capped(4096.0).sigmas[-1] == pytest.approx(4096.0)
    assert rescaled.capped(4096.0).sigmas[:-1] == rescaled.sigmas[:-1]
    assert plain.capped(4096.0) is plain


def test_squaredcos_follows_its_formula():
    """a_t is cos^2 at the end of step t over cos^2 at 0, until the cap on beta."""
    a = NoiseSchedule.from_beta_schedule("squaredcos_cap_v2").alphas_cumprod

    def cosine(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 250, 500, 900):
        assert a[t] == pytest.approx(cosine((t + 1) / 1000) / cosine(0.0), rel=1e-9)


def test_bad_schedules_are_refused():
    for a in ((), (1.0, 0.5), (0.5, 0.5), (0.5, 0.6), (0.5, -0.1), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="strictly decreasing"):
            NoiseSchedule(a)
    with pytest.raises(ValueError, match="strictly decreasing"):
        NoiseSchedule.from_betas(torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match="'cosine'"):
        NoiseSchedule.from_beta_schedule("cosine")


def test_polyexponential_is_exponential_at_rho_1():
    assert polyexponential(9, 0.03, 14.6) == pytest.approx(exponential(9, 0.03, 14.6), rel=1e-12)


def test_the_beta_schedule_is_at_the_quantiles_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for count in (2, 3, 20, 999):
        shares = [1.0 - i / (count - 1) for i in range(count)]
        expected = 0.03 + (14.6 - 0.03) * stats.beta.ppf(shares, 0.6, 0.6)
        assert beta(count, 0.03, 14.6) == pytest.approx(expected.tolist(), rel=1e-12)


def test_kl_optimal_is_even_in_the_arctangent():
    sigmas = kl_optimal(4, 0.0, math.sqrt(3.0))  # 60, 40, 20 and 0 degrees
    assert sigmas == pytest.approx([3**0.5, 0.8390996311772799, 0.36397023426620234, 0.0])


def test_schedules_of_timesteps_where_they_do_not_divide():
    assert normal(3, 1000) == [999.0, 499.5, 0.0]
    assert sgm_uniform(3, 1000) == [999.0, 666.0, 333.0]
    assert simple(3, 1000) == [999.0, 666.0, 333.0]  # 1000 / 3 and 2000 / 3, cut off
    assert ddim_uniform(3, 1000) == [667.0, 334.0, 1.0]  # and not 1000, which there is not
    assert [make(1, 1000) for make in (normal, sgm_uniform, simple)] == [[999.0]] * 3
    assert ddim_uniform(1, 1000) == [1.0]
