"""A process forked while another thread works has locks and threads of its own."""

import os
import time
import warnings

import pytest

from limner.engine.fake import FakeEngine
from limner.files import StampCache
from limner.model.adapters import Words
from limner.model.image_prompts import ImagePromptLibrary
from limner.nn.unet_config import UNetConfig
from limner.request import GenerationRequest
from tests.waiting import DEADLINE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def exit_code(work):
    """The exit code of a forked process that does `work`; None if it takes longer than `DEADLINE`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


@pytest.mark.parametrize(
    "make",
    [
        lambda: StampCache(lambda path: path),
        lambda: ImagePromptLibrary(UNetConfig()),
        lambda: Words({}, {}, 0, lambda path: None),
    ],
    ids=["StampCache", "ImagePromptLibrary", "Words"],
)
def test_a_lock_that_was_held_is_free_in_the_child(make):
    one = make()
    held = one._lock

    def work():
        assert one._lock is not held
        assert one._lock.acquire(timeout=DEADLINE / 2)

    with held:
        assert exit_code(work) == 0


def test_a_fake_engine_draws_in_the_child():
    request = GenerationRequest.of({"prompt": "a cat", "seed": 1, "steps": 3})
    engine = FakeEngine(step_seconds=0.2)
    handle = engine.submit(request)
    next(iter(handle))  # its thread is at work

    def work():
        assert engine.submit(request).result(timeout=DEADLINE / 2).seeds == (1,)

    assert exit_code(work) == 0
    assert handle.result().seeds == (1,)
