"""The device that draws without a model: what tests of the studio and of clients rely on."""

import threading

import pytest

from limner.errors import InternalError, InvalidRequest, OutOfMemory, PromptError
from limner.request import GenerationRequest
from limner.service.fake import FakeDevice, is_fake
from limner.service.measuring import WorkerMeter
from limner.settings.serve import ServeSettings
from tests.waiting import DEADLINE


def device(name="fake", subscribers=()):
    return FakeDevice(ServeSettings(), name, subscribers, WorkerMeter(name, price=0.0, currency="USD"))


def ask(**fields):
    return GenerationRequest.of(
        {"prompt": "a boat", "seed": 1, "steps": 4, "width": 128, "height": 96, **fields}
    )


def drawn(**fields):
    return device().engine.submit(ask(**fields)).result(DEADLINE).images[0].tobytes()


def test_an_image_depends_on_prompt_and_seed_alone():
    assert drawn() == drawn(steps=2) == drawn(guidance_scale=3.0)
    assert len({drawn(), drawn(seed=2), drawn(prompt="a house")}) == 3


def steps_of(**fields):
    """All steps of a request, which begins when it is listened to, and its handle."""
    engine, begin = device().engine, threading.Event()
    engine._wait = lambda *_: begin.wait(DEADLINE)
    handle = engine.submit(ask(**fields))
    steps = []
    handle.listen(steps.append)
    begin.set()
    return handle, steps


def previews(**fields):
    handle, steps = steps_of(**fields)
    handle.result(DEADLINE)
    return [step.preview() for step in steps if step is not None and step.picture is None]


def test_each_step_has_a_preview_of_its_own_which_depends_on_the_seed():
    one, same, other = ([image.tobytes() for image in previews(seed=seed)] for seed in (1, 1, 2))
    assert len(set(one)) == 4
    assert one == same
    assert not set(one) & set(other)
    assert previews(steps=1)[0].size == (16, 12)


@pytest.mark.parametrize(
    ("mark", "error"),
    [
        ("fail:request", InvalidRequest),
        ("fail:prompt", PromptError),
        ("fail:device", OutOfMemory),
        ("fail:internal", InternalError),
    ],
)
def test_marks_in_the_prompt_fail_half_way(mark, error):
    handle, steps = steps_of(prompt=f"a boat, {mark}")
    with pytest.raises(error):
        handle.result(DEADLINE)
    assert [step.step for step in steps if step is not None] == [1, 2]


def test_several_images_are_drawn_at_once_where_the_name_says_so():
    """Each waits until as many are in the middle of a step as may be, which none could do alone."""
    together = threading.Barrier(3, timeout=DEADLINE)
    engine = device("fake:0:3").engine
    engine._take_step = lambda *_: together.wait()
    handles = [engine.submit(ask(seed=seed, steps=1)) for seed in range(3)]
    assert len({handle.result(DEADLINE).images[0].tobytes() for handle in handles}) == 3


@pytest.mark.parametrize(
    ("name", "known"),
    [("fake", True), ("fake:0.5", True), ("fake:0.5:16", True), ("fake:x", False), ("fake:1:0", False)],
)
def test_names(name, known):
    assert is_fake(name) == known
