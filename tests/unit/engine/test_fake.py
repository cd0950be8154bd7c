"""The engine without a model: everything that a front end relies on, and no torch."""

import subprocess
import sys
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import pytest

from limner.engine.fake import FakeEngine
from limner.errors import DeadlineExceeded, EngineClosed, InvalidRequest, NumericalError, QueueFull
from limner.request import GenerationRequest
from tests.waiting import DEADLINE, until

if TYPE_CHECKING:
    from limner.engine.protocol import EngineProtocol


def ask(**fields):
    return GenerationRequest.of({"prompt": "a cat", "seed": 1, "steps": 3, **fields})


def test_it_has_the_protocols_form_and_draws():
    engine: EngineProtocol = FakeEngine()
    handle = engine.submit(ask(num_images=2, width=128))
    steps = [(p.image, p.step, p.picture is not None) for p in handle]
    assert steps[-1] == (2, 3, True)
    result = handle.result()
    assert result.seeds == (1, 2)
    assert [image.size for image in result.images] == [(128, 64)] * 2
    one, other = (image.getpixel((0, 0)) for image in result.images)
    assert one != other
    assert engine.submit(ask()).result().images[0].getpixel((0, 0)) == one
    assert result.images[0].record.request.seed == 1
    assert engine.drain(DEADLINE)
    assert (engine.stats().done, engine.stats().waiting, engine.stats().running) == (2, 0, 0)


def test_events():
    seen = []
    with FakeEngine(subscribers=[seen.append], step_seconds=0.001) as engine:
        engine.submit(ask(steps=2), id="one").result()
    assert [event.kind for event in seen] == ["admitted", "started", "step", "step", "picture", "finished"]
    assert {event.job for event in seen} == {"one"}
    assert seen[-1].device_seconds == pytest.approx(0.002)


def test_cancelling_deadlines_and_failures():
    seen = []
    failures = {"a bad one": NumericalError("no")}
    with FakeEngine(
        step_seconds=0.01,
        subscribers=[seen.append],
        failure_of=lambda request, *_: failures.get(request.prompt),
    ) as engine:
        late = engine.submit(ask(steps=1000), timeout=1.0)  # until when those behind it wait
        cancelled = engine.submit(ask(steps=1000))
        partly = engine.submit(ask(num_images=2))
        failing = engine.submit(ask(prompt="a bad one"))
        assert cancelled.cancel()
        assert partly.cancel(image=1)
        assert not partly.cancel(image=1)
        with pytest.raises(DeadlineExceeded):
            late.result()
        with pytest.raises(CancelledError):
            cancelled.result()
        result = partly.result()
        with pytest.raises(NumericalError):
            failing.result()
        with pytest.raises(InvalidRequest, match="images 1 to 2"):
            partly.cancel(image=3)
    assert (result.seeds, result.cancelled, result.warnings) == ((2,), (1,), ("image 1 was cancelled",))
    assert {event.kind for event in seen} >= {"failed", "cancelled", "finished"}
    assert (engine.stats().failed, engine.stats().cancelled, engine.stats().done) == (2, 1, 1)


def start(engine, **fields):
    """Submit a request, and wait until it is being drawn."""
    handle = engine.submit(ask(**fields))
    until(lambda: not engine.stats().waiting)
    return handle


def test_the_queue_is_bounded():
    engine = FakeEngine(step_seconds=0.05, max_waiting=1)
    start(engine, steps=1000)
    second = engine.submit(ask())
    with pytest.raises(QueueFull):
        engine.submit(ask())
    assert second in engine.close()
    with pytest.raises(EngineClosed):
        engine.submit(ask())


def test_ids_are_distinct():
    with FakeEngine(step_seconds=0.05) as engine:
        first = engine.submit(ask(steps=1000), id="one")
        with pytest.raises(InvalidRequest, match="one"):
            engine.submit(ask(), id="one")
        first.cancel()


def test_priority_goes_first():
    order = []
    with FakeEngine(step_seconds=0.02) as engine:
        first = start(engine, steps=1000)
        first.when_done(lambda: order.append("first"))
        for name, priority in (("low", -1), ("high", 5)):
            engine.submit(ask(), priority=priority).when_done(lambda name=name: order.append(name))
        first.cancel()
    assert order == ["first", "high", "low"]


def test_neither_it_nor_the_protocol_imports_torch():
    program = "import limner.engine.fake, limner.engine.protocol, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
