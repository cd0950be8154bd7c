"""The steps before a change of the prompt have the same bits as without the change."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.generation.calls import Denoise
from limner.generation.run import watch
from tests.unit.engine.test_engine import Spy, ask
from tests.unit.generation.test_generation import Telling, picture_of, request

STEPS = 20  # with fewer, `restart` does not go back
AFTER = 7


def calls_of(**fields):
    """What the network is given and answers at each step."""
    model, found = Telling(), defaultdict(list)
    for call, answer in watch(picture_of(request(**fields), model), model):
        if isinstance(call, Denoise):
            found[call.step] += [call.x, answer.value.latents]
    return found


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def changed_too_early(sampler, after):
    """The steps up to `after` that a change of the prompt after it changes, and those after it."""
    options = {"eta": 1.0} if "eta" in SAMPLER_TABLE[sampler].takes else {}
    fields = {"sampler": sampler, "steps": STEPS, "guidance_scale": 3.0, **options}
    before = calls_of(prompt="a red house", **fields)
    branch = calls_of(prompt=f"a [red:yellow:{after}] house", **fields)
    changed = [step for step in sorted({*before, *branch}) if not same(before[step], branch[step])]
    return [step for step in changed if step <= after], [step for step in changed if step > after]


@pytest.mark.parametrize("sampler", [name for name, one in SAMPLER_TABLE.items() if not one.revisits])
def test_the_steps_before_a_change_are_the_same(sampler):
    early, late = changed_too_early(sampler, AFTER)
    assert early == []
    assert late


@pytest.mark.parametrize("sampler", [name for name, one in SAMPLER_TABLE.items() if one.revisits])
def test_samplers_that_return_to_earlier_steps_change_them(sampler):
    assert any(changed_too_early(sampler, after)[0] for after in range(1, STEPS))


def test_the_guide_names_these_samplers():
    guide = Path(__file__).parents[3] / "docs/guides/prompts.md"
    [sentence] = re.findall(
        r"Samplers that return to earlier steps are the exception: (.*)", guide.read_text("utf-8")
    )
    assert sorted(re.findall("`(.*?)`", sentence)) == sorted(
        name for name, one in SAMPLER_TABLE.items() if one.revisits
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "euler_a", "negative_prompt": "fog"},
        {"sampler": "heun", "guidance_scale": 1.0},
        {"hires_scale": 1.5, "hires_strength": 0.5},
    ],
    ids=["ancestral", "two calls a step", "two passes"],
)
def test_a_branch_has_the_bits_of_its_picture_in_company_of_it(checkpoint_folder, fields):
    spy = Spy(load(checkpoint_folder, precision="fp32"))
    prompts = ("a red house", "a [red:yellow:2] house")
    seen = [[], []]
    spy.gate.clear()
    with Engine(spy.spied) as engine:
        handles = [engine.submit(ask(prompt=prompt, steps=4, **fields)) for prompt in prompts]
        for handle, steps in zip(handles, seen, strict=True):
            handle.listen(steps.append)
        spy.gate.set()
        first, second = (handle.result().images[0].tobytes() for handle in handles)
    assert first != second
    one, other = ([step for step in steps if step and step.picture is None] for steps in seen)
    assert [step.step for step in one] == [step.step for step in other]
    equal = [torch.equal(a.latents, b.latents) for a, b in zip(one, other, strict=True)]
    assert equal == [step.step <= 2 for step in one]
