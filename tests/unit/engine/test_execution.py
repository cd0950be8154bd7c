"""Forward passes that fail: what is freed, tried again, remembered and logged."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from limner.engine.execution import execute
from limner.engine.review import reviewed
from limner.errors import InternalError, OutOfMemory
from limner.generation.calls import Answer, EncodeText

CALLS = [EncodeText((str(number),), "literal", 1) for number in range(8)]


class Model:
    """Answers each call with its prompt, and fails as the given function says.

    Attributes:
        sizes: Number of calls of each pass.
    """

    def __init__(self, fail):
        self.fail, self.sizes = fail, []

    def group(self, call):
        return call.clip_skip

    def answer(self, calls):
        self.sizes.append(len(calls))
        activations = torch.zeros(len(calls), 1000)
        self.fail(calls, activations)
        return [Answer(call.prompts[0]) for call in calls]


def answers(model, calls=CALLS):
    passes = []
    found = execute(model, calls, passes.append)
    assert sorted({index for which in passes for index in which}) == [*range(len(calls))]
    return [one.error if one.error is not None else one.value for one in found]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ZeroDivisionError])
def test_a_failed_pass_frees_its_activations_before_the_next_one(error):
    made = []

    def fail(calls, activations):
        assert all(one() is None for one in made), "activations of a failed pass are in memory"
        made.append(weakref.ref(activations))
        try:
            raise KeyError("of a pass")
        except KeyError:
            raise error("of a pass") from None

    found = answers(Model(fail))
    assert len(made) == 15
    assert all(isinstance(one, OutOfMemory | InternalError) for one in found)
    assert all(one() is None for one in made), "errors keep activations"


def test_a_size_that_does_not_fit_is_not_tried_again(caplog):
    def fail(calls, _):
        if len(calls) > 3:
            raise torch.OutOfMemoryError("no")

    model = Model(fail)
    for _ in range(2):
        assert answers(model) == [str(number) for number in range(8)]
    assert model.sizes == [8, 4, 2, 2, 4, 2, 2, *[2] * 4]
    other_group = [EncodeText(("a",), "literal", 2)] * 3
    assert answers(model, other_group) == ["a"] * 3
    assert model.sizes[-1] == 3
    [line] = caplog.records
    assert "8 calls" in line.message
    assert "OutOfMemoryError: no" in line.message


def test_one_call_at_fault_does_not_make_later_passes_small(caplog):
    def fail(calls, _):
        if any(call.prompts == ("5",) for call in calls):
            raise torch.OutOfMemoryError("no")

    model = Model(fail)
    for _ in range(2):
        model.sizes.clear()
        found = answers(model)
        assert [number for number, one in enumerate(found) if isinstance(one, OutOfMemory)] == [5]
        assert model.sizes == [8, 4, 4, 2, 1, 1, 2]
    assert len(caplog.records) == 1


def test_a_failed_review_frees_what_it_held_before_the_next_one():
    held = []

    def review(images, requests):
        assert all(one() is None for one in held), "tensors of a failed review are in memory"
        features = torch.zeros(len(images), 1000)
        held.append(weakref.ref(features))
        raise ZeroDivisionError("of a review")

    client = SimpleNamespace(review=review)
    runs = [
        SimpleNamespace(image=torch.zeros(1, 3, 8, 8), job=SimpleNamespace(client=client), request=None)
        for _ in range(3)
    ]
    found = reviewed(runs)
    assert len(held) == 4
    assert all("of a review" in str(error) for error in found)
    assert all(one() is None for one in held), "errors keep tensors"
