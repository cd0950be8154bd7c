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


EMPTY = torch.randn(2, 4, 5, 6, generator=GENERATOR, dtype=torch.float64)
ALL = {"positive": POSITIVE, "positive 2": NEGATIVE.flip(1), "negative": NEGATIVE, "empty": EMPTY}


def combined(guidance, sigma=2.0, rows=slice(None)):
    asked = {name: ALL[name][rows] for name in guidance.branches(sigma)}
    return guidance.combine(asked, X[rows], sigma, scalings("epsilon", sigma))


def test_perp_neg_takes_away_what_is_perpendicular_to_the_positive():
    """Equation 8 of arXiv:2304.04968, for each picture of a batch."""
    guidance = ClassifierFreeGuidance(5.0, perpendicular=1.5)
    assert guidance.branches(2.0) == ("positive", "negative", "empty")
    expected = []
    for positive, negative, empty in zip(POSITIVE, NEGATIVE, EMPTY, strict=True):
        p, n = positive - empty, negative - empty
        away = n - (p * n).sum() / (p * p).sum() * p
        assert (away * p).sum().item() == pytest.approx(0.0, abs=1e-12)
        expected.append(empty + 5.0 * (p - 1.5 * away))
    torch.testing.assert_close(combined(guidance), torch.stack(expected))
    torch.testing.assert_close(combined(guidance, rows=slice(1, 2)), expected[1][None])


def test_perp_neg_is_the_same_of_whatever_the_network_predicts():
    guidance = ClassifierFreeGuidance(5.0, perpendicular=1.5)
    for prediction_type in ("epsilon", "v_prediction"):
        around = scalings(prediction_type, 2.0)
        said = {name: around.output(X, denoised) for name, denoised in ALL.items()}
        of_outputs = guidance.combine(said, X, 2.0, around)
        torch.testing.assert_close(around.denoised(X, of_outputs), combined(guidance))


def test_perp_neg_spares_a_prompt_that_is_the_negative_one():
    guidance = ClassifierFreeGuidance(5.0, perpendicular=1.5)
    same = {"positive": POSITIVE, "negative": POSITIVE, "empty": EMPTY}
    result = guidance.combine(same, X, 2.0, scalings("epsilon", 2.0))
    torch.testing.assert_close(result, EMPTY + 5.0 * (POSITIVE - EMPTY))
    nothing = {"positive": EMPTY, "negative": NEGATIVE, "empty": EMPTY}
    result = guidance.combine(nothing, X, 2.0, scalings("epsilon", 2.0))
    torch.testing.assert_close(
        result, EMPTY - 7.5 * (NEGATIVE - EMPTY)
    )  # all of it is perpendicular to nothing


def test_perp_neg_with_several_positive_conditionings():
    """The direction that is spared is that of all together."""
    guidance = ClassifierFreeGuidance(5.0, weights=(0.7, 0.4), perpendicular=1.0)
    assert guidance.branches(2.0) == ("positive", "positive 2", "negative", "empty")
    together = EMPTY + 0.7 * (POSITIVE - EMPTY) + 0.4 * (ALL["positive 2"] - EMPTY)
    one = {"positive": together, "negative": NEGATIVE, "empty": EMPTY}
    expected = ClassifierFreeGuidance(5.0, perpendicular=1.0).combine(one, X, 2.0, scalings("epsilon", 2.0))
    torch.testing.assert_close(combined(guidance), expected)


@pytest.mark.parametrize("perpendicular", [None, 1.0])
def test_what_is_evaluated_where_nothing_is_guided(perpendicular):
    base = "negative" if perpendicular is None else "empty"
    arguments = {"interval": (0.5, 5.0), "skipped": ((1.0, 2.0),), "perpendicular": perpendicular}
    alone = ClassifierFreeGuidance(5.0, **arguments)
    several = ClassifierFreeGuidance(5.0, weights=(0.7, 0.4), **arguments)
    for sigma in (6.0, 2.0, 1.5, 0.5):
        assert alone.branches(sigma) == ("positive",)
        assert several.branches(sigma) == ("positive", "positive 2", base)
        assert torch.equal(combined(alone, sigma), POSITIVE)
        together = ALL[base] + 0.7 * (POSITIVE - ALL[base]) + 0.4 * (ALL["positive 2"] - ALL[base])
        torch.testing.assert_close(combined(several, sigma), together)
        assert alone.unguided(ALL, sigma) is several.unguided(ALL, sigma) is None
    for sigma in (5.0, 2.1, 1.0):
        assert alone.branches(sigma) == alone.names
        assert alone.unguided(ALL, sigma) is ALL[base]


def test_a_pair_needs_the_negative_at_every_scale():
    assert ClassifierFreeGuidance(1.0, paired=True).branches(2.0) == ("positive", "negative")
    assert ClassifierFreeGuidance(1.0, paired=True, interval=(3.0, 9.0)).branches(2.0) == ("positive",)
    torch.testing.assert_close(combined(ClassifierFreeGuidance(1.0, paired=True)), POSITIVE)
