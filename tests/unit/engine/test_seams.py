"""What others build on: events, cancelling single images, the review of finished images, ids."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

import limner
from limner.engine.device import _LINGER, DeviceEngine, engine_of
from limner.engine.engine import Engine
from limner.engine.events import Admitted, Cancelled, Finished, ImageDone, Started, StepDone
from limner.engine.front import Desk
from limner.engine.handle import Handle
from limner.engine.jobs import DeviceJob
from limner.engine.memory import container_limits
from limner.errors import InternalError, InvalidRequest, LimnerError
from limner.generation.story import picture_of
from limner.images.opening import image_source
from limner.request import GenerationRequest
from tests.waiting import DEADLINE

FIELDS = {"prompt": "a red house", "steps": 3, "width": 64, "height": 64, "seed": 1}


def ask(**fields):
    return GenerationRequest.of({**FIELDS, **fields})


@pytest.fixture
def model(checkpoint_folder):
    return limner.load(checkpoint_folder, precision="fp32")


def test_events_follow_a_request_and_share_the_devices_time(model):
    events = []
    with Engine(model, subscribers=[events.append]) as engine:
        held = held_up(model)
        handles = [engine.submit(ask(seed=seed), id=f"job {seed}", priority=seed) for seed in (1, 2)]
        held.set()
        results = [handle.result() for handle in handles]
    for seed, handle, result in zip((1, 2), handles, results, strict=True):
        own = [event for event in events if event.job == handle.id]
        assert own[0] == Admitted(job=f"job {seed}", images=1, priority=seed)
        kinds = [Admitted, Started, StepDone, StepDone, StepDone, ImageDone, Finished]
        assert [type(event) for event in own] == kinds
        assert [(event.image, event.step, event.steps) for event in own[2:5]] == [
            (1, step, 3) for step in (1, 2, 3)
        ]
        assert {event.batch_size for event in own[2:5]} == {2}
        assert own[5].picture is result.images[0]
        steps = sum(event.device_seconds for event in own[2:5])
        assert 0 < steps < own[6].device_seconds == own[5].device_seconds <= own[6].seconds
    spent = sum(event.device_seconds for event in events if isinstance(event, Finished))
    assert spent == pytest.approx(engine.stats().seconds)


def held_up(model):
    """Hold the device up until the returned event is set."""
    held, begun = threading.Event(), threading.Event()

    def answer(calls):
        begun.set()
        assert held.wait(DEADLINE)
        return model.answer(calls)

    other = replace(model)
    object.__setattr__(other, "answer", answer)
    call = _first_call(model)
    threading.Thread(target=engine_of(model.backend.device).answer, args=(other, [call])).start()
    assert begun.wait(DEADLINE)
    return held


def _first_call(model):
    return next(picture_of(model.resolve(ask()).pictures[0], model.facts))


def test_a_subscribers_exception_is_logged_and_harms_nothing(model, caplog):
    def fail(event):
        raise ZeroDivisionError("of a subscriber")

    events = []
    with (
        caplog.at_level("ERROR", "limner.engine"),
        Engine(model, subscribers=[fail, events.append]) as engine,
    ):
        assert engine.submit(ask(), id="seven").result()
    assert len(events) == len(caplog.records) == 7
    assert "'admitted' of job seven" in caplog.records[0].message


def test_ids_are_distinct_while_requests_are_unfinished(model):
    with Engine(model) as engine:
        first = engine.submit(ask(steps=500), id="one")
        with pytest.raises(InvalidRequest, match="'one'"):
            engine.submit(ask(), id="one")
        first.cancel()
        engine.drain(DEADLINE)
    with Engine(model) as engine:
        assert engine.submit(ask()).id != engine.submit(ask()).id


def test_close_returns_what_it_has_cancelled(model):
    engine = Engine(model)
    done = engine.submit(ask())
    done.result()
    going = [engine.submit(ask(steps=900), id=name) for name in ("a", "b")]
    assert {handle.id for handle in engine.close()} == {"a", "b"}
    assert all(handle.cancelled() for handle in going)


def test_a_single_image_is_cancelled_before_and_after_it_has_begun(model):
    events = []
    alone = [model.generate(request=ask(seed=seed, steps=12)).images[0] for seed in (1, 3)]

    def leave(event):
        events.append(event)
        if isinstance(event, StepDone) and (event.image, event.step) == (2, 1):
            assert handle.cancel(image=2)

    with Engine(model, subscribers=[leave]) as engine:
        held = held_up(model)
        handle = engine.submit(ask(num_images=4, steps=12), id="one")
        assert handle.cancel(image=4)
        held.set()
        result = handle.result()
    assert not handle.cancelled()
    assert result.cancelled == (2, 4)
    assert {"image 2 was cancelled", "image 4 was cancelled"} <= {*result.warnings}
    assert result.seeds == (1, 3)
    assert [image.tobytes() for image in result.images] == [image.tobytes() for image in alone]
    dropped = {event.image: event.device_seconds for event in events if isinstance(event, Cancelled)}
    assert dropped.keys() == {2, 4}
    assert dropped[2] > 0 == dropped[4]
    assert not handle.cancel(image=1)


def test_cancelling_every_image_cancels_the_request(model):
    with Engine(model) as engine:
        handle = engine.submit(ask(num_images=2, steps=900))
        assert handle.cancel(image=1)
        assert handle.cancel(image=2)
        assert handle.cancelled()
    with pytest.raises(InvalidRequest, match="images 1 to 2"):
        handle.cancel(image=3)


def test_a_review_sees_finished_images_together_and_its_notes_are_recorded(model):
    seen = []

    def darken(images, requests):
        seen.append((images.shape, [request.seed for request in requests]))
        kept = images.clone()
        kept[0] = -1.0
        return kept, [{"safety": f"looked at {request.seed}"} for request in requests]

    with Engine(model, review=darken) as engine:
        result = engine.submit(ask(num_images=3)).result()
    assert seen == [((3, 3, 64, 64), [1, 2, 3])]
    assert result.images[0].getextrema() == ((0, 0),) * 3
    assert result.images[1].tobytes() == model.generate(request=ask(seed=2)).images[0].tobytes()
    assert [image.record.notes for image in result.images] == [
        {"safety": f"looked at {seed}"} for seed in (1, 2, 3)
    ]


def test_what_a_review_raises_is_the_error_of_the_request_at_fault(model):
    class Refused(LimnerError):
        code = "refused"

    def refuse(images, requests):
        if any(request.seed == 2 for request in requests):
            raise Refused("not this one")
        return images, [{} for _ in requests]

    with Engine(model, review=refuse) as engine:
        held = held_up(model)
        handles = [engine.submit(ask(seed=seed)) for seed in (1, 2, 3)]
        held.set()
        assert [type(handle.exception()) for handle in handles] == [type(None), Refused, type(None)]
    with Engine(model, review=lambda images, requests: (images[:0], [])) as engine:
        assert isinstance(engine.submit(ask()).exception(), InternalError)


def test_images_are_encoded_together(model):
    photos = [
        image_source(Image.radial_gradient("L").resize((64, 64)).rotate(turn).convert("RGB"))
        for turn in (0, 40)
    ]
    requests = [ask(image=photos[seed % 2], strength=0.7, seed=seed) for seed in range(8)]
    alone = [model.generate(request=request).images[0].tobytes() for request in requests]
    with Engine(model) as engine:
        held = held_up(model)
        handles = [engine.submit(request) for request in requests]
        held.set()
        assert [handle.result().images[0].tobytes() for handle in handles] == alone
    stats = engine.stats()
    assert stats.rows["EncodeImage"] == 8
    assert stats.forwards["EncodeImage"] <= 5


def test_containers_limit_memory(tmp_path):
    def write(path, text):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert container_limits(tmp_path) == []
    write("proc/self/cgroup", "4:memory:/pods/one\n3:cpu,cpuacct:/pods\n0::/pods/one\n")
    write("sys/fs/cgroup/pods/memory.max", "300\n")
    write("sys/fs/cgroup/pods/one/memory.max", "max\n")
    write("sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes", "200\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "900\n")
    assert sorted(container_limits(tmp_path)) == [200, 300, 900]


def test_calls_that_somebody_waits_for_go_first_and_are_given_up_after_a_while(model):
    engine, order, held = engine_of(model.backend.device), [], held_up(model)

    def ask_for(name, **how):
        named = replace(model)
        object.__setattr__(named, "answer", lambda calls: (order.append(name), model.answer(calls))[1])
        asking = threading.Thread(target=engine.answer, args=(named, [_first_call(model)]), kwargs=how)
        waiting = len(engine._inbox)
        asking.start()
        while len(engine._inbox) == waiting:
            time.sleep(0.001)
        return asking

    for first in (False, True):
        with pytest.raises(TimeoutError):
            engine.answer(model, [_first_call(model)], first=first, timeout=0.0)
    asking = [ask_for("in turn"), ask_for("first", first=True)]
    held.set()
    for one in asking:
        one.join(DEADLINE)
    assert order == ["first", "in turn"]


def test_an_idle_thread_that_would_stay_ends_when_its_engine_is_closed(model, monkeypatch):
    """As on CUDA, where the thread never ends by itself."""
    monkeypatch.setitem(_LINGER, "cpu", None)
    engine = DeviceEngine(torch.device("cpu"))
    for _ in range(2):  # it starts again when it is needed again
        assert engine.answer(model, [_first_call(model)])
        thread = engine._thread
        assert thread.is_alive()
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(DEADLINE)
        assert not closing.is_alive()
        assert not thread.is_alive()


def test_an_image_that_fails_as_it_begins_is_the_last_of_its_request(model, monkeypatch, caplog):
    begun = []

    def fail(picture, *_):
        begun.append(picture.seed)
        raise ZeroDivisionError("of an image")

    with monkeypatch.context() as patch, caplog.at_level("ERROR", "limner.engine"):
        patch.setattr("limner.engine.device.picture_of", fail)
        engine = Engine(model)
        with pytest.raises(InternalError, match="of an image"):
            engine.submit(ask(num_images=3)).result()
        assert engine.drain(DEADLINE)
    assert begun == [1]
    assert len(caplog.records) == 1
    stats = engine.stats()
    assert (stats.failed, stats.waiting, stats.running) == (1, 0, 0)


def test_a_job_ends_once(model):
    desk, engine = Desk(5, ()), Engine(model)
    job = DeviceJob(Handle(ask()), (0, 1), time.monotonic(), client=engine._client)
    desk.accept(job)
    desk.fail(job, InternalError("of the test"))
    assert desk.drop(job)
    assert (desk.stats().failed, desk.stats().cancelled, desk.stats().waiting) == (1, 0, 0)


def test_the_engines_of_a_device_are_counted_as_they_are_at_one_moment(model):
    device, before, after = DeviceEngine(torch.device("cpu")), Engine(model), Engine(model)
    device._clients.add(before._client)
    each = iter(device._capacity().clients)
    device._clients.add(after._client)
    assert [*each] == [before._client]


def test_a_fault_of_the_engines_own_fails_all_and_it_goes_on(model, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("of the engine")

    engine = Engine(model)
    with monkeypatch.context() as patch, caplog.at_level("ERROR", "limner.engine"):
        patch.setattr("limner.engine.device.choose", fail)
        handles = [engine.submit(ask(seed=seed)) for seed in (1, 2)]
        assert all(isinstance(handle.exception(), InternalError) for handle in handles)
        with pytest.raises(InternalError):
            engine_of(model.backend.device).answer(model, [_first_call(model)])
    assert "ZeroDivisionError" in caplog.text
    assert engine.stats().failed == 2
    assert engine.submit(ask()).result()
    assert torch.device("cpu") == model.backend.device
