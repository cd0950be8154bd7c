"""The table of samplers agrees with their functions."""

import inspect

import pytest

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.samplers import SAMPLERS, cfg_pp, multi, single

REQUESTED = {"eta", "s_churn", "s_tmin", "s_tmax", "s_noise"}


def test_every_sampler_has_a_row():
    written = {
        name: function
        for module in (single, multi, cfg_pp)
        for name, function in inspect.getmembers(module, inspect.isgeneratorfunction)
        if [*inspect.signature(function).parameters][:3] == ["x", "sigmas", "noise"]
    }
    assert written == SAMPLERS


@pytest.mark.parametrize("name", SAMPLER_TABLE)
def test_options_and_kind_are_those_of_the_function(name):
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    options = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name in REQUESTED]
    assert tuple(options) == SAMPLER_TABLE[name].takes
    assert SAMPLER_TABLE[name].cfg_pp == (SAMPLERS[name].__module__ == cfg_pp.__name__)
