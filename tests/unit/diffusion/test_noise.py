"""Noise by seed."""

import pytest
import torch

from limner.diffusion.noise import cpu_noise, gpu_noise, varied

SHAPE = (1, 4, 6, 5)


def test_gpu_noise_is_that_of_cuda():
    """What torch.manual_seed(0); torch.randn(8, device="cuda") gives on every NVIDIA GPU."""
    expected = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]
    torch.testing.assert_close(gpu_noise(0, (8,))(), torch.tensor(expected), atol=5e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_noise_beside_a_gpu():
    generator = torch.Generator("cuda").manual_seed(123456789012)
    noise = gpu_noise(123456789012, SHAPE)
    for _ in range(3):
        drawn = torch.randn(SHAPE, generator=generator, device="cuda").cpu()
        torch.testing.assert_close(noise(), drawn, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", [cpu_noise, gpu_noise])
def test_draws_are_normal_differ_and_repeat(source):
    noise, again = source(7, (1, 4, 64, 64)), source(7, (1, 4, 64, 64))
    first, second = noise(), noise()
    for draw in (first, second):
        assert abs(float(draw.mean())) < 0.03
        assert abs(float(draw.std()) - 1.0) < 0.03
    assert abs(float((first * second).mean())) < 0.03
    assert torch.equal(again(), first)
    assert torch.equal(again(), second)
    assert not torch.equal(source(8, (1, 4, 64, 64))(), first)


def test_a_variation_lies_between_and_keeps_its_size():
    one, other = cpu_noise(1, SHAPE)(), cpu_noise(2, SHAPE)()
    for strength, expected in ((0.0, one), (1.0, other)):
        found = varied(cpu_noise(1, SHAPE), cpu_noise(2, SHAPE), strength)
        torch.testing.assert_close(found(), expected)
    half = varied(cpu_noise(1, SHAPE), cpu_noise(2, SHAPE), 0.5)
    first = half()
    assert 0.8 < float(first.std() / one.std()) < 1.25
    assert float((first * one).mean()) > 0.4
    assert float((first * other).mean()) > 0.4
    reference = cpu_noise(1, SHAPE)
    reference()
    assert torch.equal(half(), reference())  # later draws are the first seed's own
    torch.testing.assert_close(varied(cpu_noise(1, SHAPE), cpu_noise(1, SHAPE), 0.3)(), one)
