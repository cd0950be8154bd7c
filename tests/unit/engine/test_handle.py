"""Listeners of a request: their order, and what they may do."""

import threading

import pytest

from limner.engine.handle import Handle, Progress
from limner.images.picture import Picture
from limner.images.result import GenerationResult
from limner.request import GenerationRequest
from tests.waiting import DEADLINE


@pytest.fixture
def handle():
    return Handle(GenerationRequest(prompt="a house", num_images=3), "seven")


def progress(image, step=1, picture=None):
    return Progress(image, 3, step, 9, None, 0.0, picture)


def in_time(work):
    """Run a function that must not wait for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_listeners_exception_is_logged_and_harms_no_other(handle, caplog):
    def fail(event):
        raise ZeroDivisionError("of a listener")

    told = []
    handle.listen(fail)
    handle.listen(told.append)
    first = progress(1)
    assert handle.publish(first)
    handle.finish(GenerationResult((), handle.request, (), ()))
    assert told == [first, None]
    assert [*handle] == []
    assert [record.message for record in caplog.records] == ["a listener of job seven failed"] * 2


def test_a_listener_may_cancel_and_leave(handle):
    told = []

    def listen(event):
        told.append(event)
        if event is not None and event.image == 1:
            assert handle.cancel(image=2)
            handle.leave(other.append)
        if event is not None and event.image == 3:
            assert handle.cancel()

    other, first, last = [], progress(1), progress(3)
    handle.listen(listen)
    handle.listen(other.append)
    in_time(lambda: handle.publish(first))
    assert not handle.publish(progress(2))
    in_time(lambda: handle.publish(last))
    assert told == [first, last, None]
    assert other == []
    assert handle.cancelled()


def test_a_listener_is_told_in_order_also_while_another_thread_publishes(handle):
    told, replaying, published = [], threading.Event(), threading.Event()

    def listen(event):
        if not told:
            replaying.set()
            assert published.wait(DEADLINE)
        told.append(event)

    finished, later = progress(1, 9, picture=object.__new__(Picture)), progress(2)
    assert handle.publish(finished)
    listening = threading.Thread(target=handle.listen, args=(listen,), daemon=True)
    listening.start()
    assert replaying.wait(DEADLINE)
    in_time(lambda: handle.publish(later))
    in_time(handle.cancel)
    published.set()
    listening.join(DEADLINE)
    assert told == [finished, later, None]
