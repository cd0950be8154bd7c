"""Training objectives against their closed forms."""

import pytest
import torch

from limner.diffusion.objectives import loss_weight, offset_noise, target
from limner.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.from_beta_schedule()


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=dtype)
    return x0, noise, torch.tensor([0, 500, 999])


def test_a_perfect_network_lets_x0_be_recovered_from_each_target():
    x0, noise, t = batch()
    signal, sigma = SCHEDULE.rates_at(t, x0)
    x = SCHEDULE.add_noise(x0, noise, t)
    epsilon = target(SCHEDULE, "epsilon", x0, noise, t)
    v = target(SCHEDULE, "v_prediction", x0, noise, t)
    torch.testing.assert_close((x - sigma * epsilon) / signal, x0)
    torch.testing.assert_close(signal * x - sigma * v, x0)
    torch.testing.assert_close(target(SCHEDULE, "sample", x0, noise, t), x0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_the_same_error_of_x0_alike_whatever_is_predicted(prediction_type):
    """An error d in x0 is an error d * |d target / d x0| in the target, for a given noisy latent."""
    t = torch.arange(0, 1000, 37)
    a = torch.tensor(SCHEDULE.alphas_cumprod, dtype=torch.float64)[t]
    snr = a / (1 - a)
    error = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type]
    weight = loss_weight(SCHEDULE, prediction_type, t, 5.0).double()
    torch.testing.assert_close(weight * error, snr.clamp(max=5.0), rtol=1e-5, atol=0)


def test_without_gamma_every_timestep_weighs_the_same():
    assert loss_weight(SCHEDULE, "epsilon", torch.tensor([3, 998]), None).tolist() == [1.0, 1.0]


def test_zero_terminal_snr_is_finite_everywhere():
    schedule = NoiseSchedule.from_beta_schedule(zero_terminal_snr=True)
    x0, noise, _ = batch(torch.float32)
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(schedule.add_noise(x0, noise, t)[2], noise[2])
    torch.testing.assert_close(target(schedule, "v_prediction", x0, noise, t)[2], -x0[2])
    for prediction_type, last in (("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)):
        weight = loss_weight(schedule, prediction_type, t, 5.0)
        assert weight.isfinite().all()
        assert weight[2] == last


def test_half_precision_latents_keep_their_dtype():
    x0, noise, t = batch(torch.float16)
    assert SCHEDULE.add_noise(x0, noise, t).dtype == torch.float16
    assert target(SCHEDULE, "v_prediction", x0, noise, t).dtype == torch.float16


def test_offset_noise_shifts_whole_channels():
    noise = torch.zeros(64, 4, 8, 8)
    shifted = offset_noise(noise, 0.1, torch.Generator().manual_seed(0))
    assert (shifted == shifted[:, :, :1, :1]).all()
    assert shifted[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.15)  # 256 draws
    assert offset_noise(noise, 0.0) is noise


def test_an_unknown_prediction_type_is_refused():
    x0, noise, t = batch()
    with pytest.raises(ValueError, match="'flow'"):
        target(SCHEDULE, "flow", x0, noise, t)
    with pytest.raises(ValueError, match="'flow'"):
        loss_weight(SCHEDULE, "flow", t, 5.0)
