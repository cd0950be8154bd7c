"""Guidance, and the scalings around a network."""

import math

import pytest
import torch

from limner.diffusion.guidance import ClassifierFreeGuidance
from limner.diffusion.prediction import scalings

GENERATOR = torch.Generator().manual_seed(0)
X, POSITIVE, NEGATIVE = torch.randn(3, 2, 4, 5, 6, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 4096.0])
def test_scalings_undo_the_definition_of_the_prediction(prediction_type, sigma):
    x0, noise = POSITIVE, NEGATIVE
    a = 1.0 / (sigma**2 + 1.0)
    x = x0 + sigma * noise
    output = {
        "epsilon": noise,
        "v_prediction": math.sqrt(a) * noise - math.sqrt(1.0 - a) * x0,
        "sample": x0,
    }[prediction_type]
    around = scalings(prediction_type, sigma)
    assert around.c_in == pytest.approx(math.sqrt(a))
    torch.testing.assert_close(around.denoised(x, output), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(around.output(x, x0), output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_scalings_of_many_rows_are_those_of_each(prediction_type):
    sigmas = [0.1, 7.0]
    rows = scalings(prediction_type, torch.tensor(sigmas, dtype=torch.float64).reshape(2, 1, 1, 1))
    together = rows.denoised(X, POSITIVE)
    for i, sigma in enumerate(sigmas):
        alone = scalings(prediction_type, sigma).denoised(X[i], POSITIVE[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-12)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'flow'"):
        scalings("flow", 1.0)


def combine(guidance, sigma=2.0, prediction_type="epsilon"):
    denoised = {"positive": POSITIVE, "negative": NEGATIVE}
    asked = {name: denoised[name] for name in guidance.branches(sigma)}
    return guidance.combine(asked, X, sigma, scalings(prediction_type, sigma))


def test_scale():
    assert ClassifierFreeGuidance(7.5).branches(2.0) == ("positive", "negative")
    torch.testing.assert_close(combine(ClassifierFreeGuidance(7.5)), NEGATIVE + 7.5 * (POSITIVE - NEGATIVE))


def test_scale_1_does_not_ask_for_the_negative():
    guidance = ClassifierFreeGuidance(1.0, rescale=0.7)
    assert guidance.branches(2.0) == ("positive",)
    assert combine(guidance) is POSITIVE


def test_interval():
    guidance = ClassifierFreeGuidance(7.5, interval=(0.5, 5.0))
    assert [len(guidance.branches(sigma)) for sigma in (6.0, 5.0, 1.0, 0.5, 0.1)] == [1, 2, 2, 1, 1]
    assert combine(guidance, sigma=6.0) is POSITIVE


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_rescale_is_lin_et_al_on_the_networks_output(prediction_type):
    """Equations 15 and 16 of arXiv:2305.08891, written out for what the network would have said."""
    sigma, phi = 2.0, 0.7
    around = scalings(prediction_type, sigma)
    positive, negative = around.output(X, POSITIVE), around.output(X, NEGATIVE)
    guided = negative + 7.5 * (positive - negative)
    dims = (1, 2, 3)
    rescaled = guided * positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    expected = around.denoised(X, phi * rescaled + (1 - phi) * guided)
    result = combine(ClassifierFreeGuidance(7.5, rescale=phi), sigma, prediction_type)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(result, combine(ClassifierFreeGuidance(7.5), sigma, prediction_type))


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": -1.0},
        {"scale": 2.0, "rescale": 1.1},
        {"scale": 2.0, "rescale": math.nan},
        {"scale": 2.0, "interval": (3.0, 3.0)},
        {"scale": 2.0, "interval": (math.nan, 3.0)},
    ],
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        ClassifierFreeGuidance(**arguments)
