"""A worker over a ledger in SQLite, with a device that draws flat colours."""

import asyncio
import errno
import hashlib
import io
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image

from limner.engine.events import Admitted, Cancelled, Finished, Started, StepDone
from limner.engine.fake import FakeEngine
from limner.errors import (
    InvalidRequest,
    LedgerUnavailable,
    ModelNotFound,
    NotFound,
    NumericalError,
    OutOfMemory,
    StorageError,
    UnsupportedModel,
)
from limner.images.metadata import read_record
from limner.service import handing_in
from limner.service import worker as worker_module
from limner.service.channel import hub_socket
from limner.service.events import JobChanged, JobProgress
from limner.service.fake import FakeDevice
from limner.service.hub import Hub
from limner.service.jobs import FINAL_STATES, MAX_ATTEMPTS, NewJob, Submission
from limner.service.ledger.ledger import Ledger
from limner.service.storage import ImageStore
from limner.service.window import FIRST
from limner.service.worker import Worker
from limner.settings.serve import ServeSettings
from tests.waiting import DEADLINE, until

RESOLVED = {"steps": 4, "width": 64, "height": 64, "seed": 1, "sampler": "euler", "guidance_scale": 7.5}
RESOLVED["sigma_schedule"] = "uniform"

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch):
    """Waits of a worker, a tenth as long."""
    waits = {worker_module: ("_POLL", "_TICK", "_REPORT"), handing_in: ("_LATER", "_MUCH_LATER")}
    for module, names in waits.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / 10)
    monkeypatch.setattr("limner.service.ledger.ending.RETRY_SECONDS", (0.0,))


@pytest.fixture
def ledger(sqlite_url):
    opened = Ledger.open(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path):
    return ImageStore.in_folder(tmp_path / "pictures")


@pytest.fixture
def submit(ledger, anna):
    def accept(*requests, **more):
        jobs = tuple(NewJob({**RESOLVED, **one}, "checkpoint:m", 1.0) for one in requests)
        return ledger.accept(anna, Submission(jobs, {}, **more))

    return accept


def fake(step_seconds=0.0, failures=None, engine=FakeEngine):
    """Makes fake devices with these steps and failures by prompt."""

    def make(settings, device, subscribers, meter):
        made = FakeDevice(settings, device, subscribers, meter)
        made.engine = engine(
            step_seconds=step_seconds,
            subscribers=subscribers,
            failure_of=lambda request, *_: (failures or {}).get(request.prompt),
        )
        return made

    return make


def held(go_on, *, after=0, step_seconds=0.01, engine=FakeEngine):
    """Makes fake devices whose later steps wait for an event."""

    class Held(engine):
        def _take_step(self, job, index, step, steps):
            assert step <= after or go_on.wait(DEADLINE)
            super()._take_step(job, index, step, steps)

    return fake(step_seconds, engine=Held)


@pytest.fixture
def working(tmp_path, ledger, store):
    @contextmanager
    def run(make_device=None, *, name="w1", **settings):
        given = ServeSettings(data=tmp_path, **settings)
        worker = Worker(given, name, ledger, store, make_device or fake(), device="fake")
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(DEADLINE)
            assert not thread.is_alive()

    return run


def ended(ledger, made):
    def look():
        found = ledger.get_set(made.id)
        return found if all(job.state in FINAL_STATES for job in found.jobs) else None

    return until(look)


def states(ledger, made):
    return [job.state for job in ledger.get_set(made.id).jobs]


def test_jobs_are_drawn_stored_and_handed_in(ledger, store, submit, working):
    made = submit(*({"prompt": "a boat", "seed": seed} for seed in range(10)))
    with working(prices={"fake": 0.5}):
        done = ended(ledger, made)
    assert states(ledger, made) == ["done"] * 10
    for job in done.jobs:
        data = store.get(job.image.key)
        with Image.open(io.BytesIO(data)) as image:
            assert hashlib.sha256(image.tobytes()).hexdigest() == job.image.pixels_sha256
        record = read_record(io.BytesIO(data))
        assert hashlib.sha256(data).hexdigest() == job.image.sha256
        assert (job.image.width, job.image.height, job.image.bytes) == (64, 64, len(data))
        assert record.model_dump(mode="json") == job.image.record
        assert record.request.seed == job.index
        assert record.notes["job"] == job.id
        assert f"/{job.fence}.png" in job.image.key
    assert len({job.image.id for job in done.jobs}) == 10


def test_device_seconds_and_cost_are_handed_in(ledger, submit, working):
    made = submit({"prompt": "a boat"})
    with working(fake(0.01), prices={"fake": 0.5}):
        [job] = ended(ledger, made).jobs
    assert job.device_seconds == pytest.approx(0.04)
    assert job.cost == pytest.approx(0.02)
    assert job.image.record["notes"]["cost"] == "0.020000 USD"


@pytest.mark.parametrize(
    ("error", "state", "attempts"),
    [
        (InvalidRequest("width is 7", fields=("width",)), "failed", 1),
        (ModelNotFound("there is no checkpoint"), "failed", 1),
        (NumericalError("NaN"), "failed", 1),
        (OutOfMemory("too large"), "dead", MAX_ATTEMPTS),
        (ZeroDivisionError("x"), "dead", MAX_ATTEMPTS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_fails_the_job_or_is_tried_again(error, state, attempts, ledger, submit, working):
    made = submit({"prompt": "bad"}, {"prompt": "good"})
    with working(fake(failures={"bad": error})):
        bad, good = ended(ledger, made).jobs
    assert (bad.state, good.state) == (state, "done")
    assert [one.outcome for one in ledger.attempts(bad.id)] == ["failed"] * attempts
    assert bad.error.code == getattr(error, "code", "internal_error")
    assert bad.error.fields == getattr(error, "fields", ())


def test_jobs_do_not_repeat_exceptions_that_nobody_wrote_for_callers(ledger, submit, working):
    made = submit({"prompt": "x"})
    with working(fake(failures={"x": OSError("/srv/secret/x cannot be read")})):
        [job] = ended(ledger, made).jobs
    assert job.error.code == "internal_error"
    assert "OSError" in job.error.message
    assert "secret" not in f"{job.error.message} {job.error.hint}"


def test_errors_of_jobs_do_not_say_where_files_are(ledger, submit, working, tmp_path):
    error = InvalidRequest(f"{tmp_path}/models/x.safetensors is broken", hint=f"look into {tmp_path}/logs")
    made = submit({"prompt": "x"})
    with working(fake(failures={"x": error})):
        [job] = ended(ledger, made).jobs
    assert (job.error.message, job.error.hint) == ("models/x.safetensors is broken", "look into logs")


def test_params_that_are_no_request_fail_the_job(ledger, submit, working):
    made = submit({"prompt": "x", "width": 7}, {"prompt": "x", "num_images": 3}, {"prompt": "x"})
    with working():
        first, second, third = ended(ledger, made).jobs
    assert (first.state, second.state, third.state) == ("failed", "failed", "done")
    assert first.error.fields == ("width",)
    assert second.error.fields == ("num_images",)


def test_a_deadline_is_kept(ledger, submit, working, monkeypatch):
    def claim(*args, **more):
        """Claims as they would be a minute later: a job that is late before it is claimed is not."""
        found = Ledger.claim(ledger, *args, **more)
        return [replace(one, seconds_left=one.seconds_left - 59.8) for one in found]

    monkeypatch.setattr(ledger, "claim", claim)
    made = submit({"prompt": "x", "steps": 1000}, deadline_seconds=60)
    with working(fake(0.05)):
        [job] = ended(ledger, made).jobs
    assert job.state == "failed"
    assert job.error.code == "deadline_exceeded"


def test_a_running_job_is_cancelled_within_a_step_of_the_renewal(ledger, submit, working):
    made = submit({"prompt": "x", "steps": 1000}, {"prompt": "y"})
    with working(fake(0.05), lease_seconds=1.0) as worker:
        until(lambda: any(run.device_seconds for run in worker._running()))
        ledger.cancel(account_id="anna", job_ids=[made.jobs[0].id])
        first, second = ended(ledger, made).jobs
    assert (first.state, second.state) == ("cancelled", "done")
    assert 0.0 < first.device_seconds < 1000 * 0.05
    assert [one.outcome for one in ledger.attempts(first.id)] == ["cancelled"]


def test_a_job_that_another_worker_has_taken_over_is_dropped(ledger, store, submit, working, monkeypatch):
    made, go_on = submit({"prompt": "x", "steps": 20}), threading.Event()
    with working(held(go_on), lease_seconds=300.0) as worker:
        running = until(lambda: [one for one in ledger.list_jobs("anna") if one.state == "running"])
        monkeypatch.setattr(worker._window, "room", lambda *_, **__: 0)  # it claims nothing more
        ledger.renew("w1", {running[0].id: running[0].fence}, 0.0)  # as if it had been silent
        time.sleep(0.01)
        assert ledger.reconcile().requeued
        with working(fake(0.0), name="w2"):
            [job] = ended(ledger, made).jobs
            go_on.set()
            until(lambda: not worker._runs)
    assert job.state == "done"
    assert [(one.worker, one.outcome) for one in ledger.attempts(job.id)] == [("w1", "lost"), ("w2", "done")]
    assert [one.key for one in store.masters()] == [job.image.key]  # nothing of the stale attempt is left
    (used,) = ledger.usage()
    assert used.jobs == 2  # what the lost attempt used counts as well
    assert used.device_seconds > job.device_seconds


def test_stopping_finishes_what_has_begun_and_gives_back_the_rest(ledger, submit, working):
    made, go_on = submit(*({"prompt": "x", "seed": seed} for seed in range(4))), threading.Event()
    with working(held(go_on)) as worker:
        until(lambda: [run.began for run in worker._running()].count(True) == 1)
        worker.stop()
        until(lambda: [run.released for run in worker._running()].count(True) == 3)
        go_on.set()
    assert states(ledger, made).count("done") == 1
    assert states(ledger, made).count("queued") == 3
    for job in ledger.get_set(made.id).jobs:
        assert job.attempt == (1 if job.state == "done" else 0)  # given back is no attempt


def test_what_takes_too_long_is_given_back_when_stopping(ledger, submit, working):
    made = submit(*({"prompt": prompt, "steps": 500} for prompt in "xy"))
    with working(fake(0.05), drain_seconds=0.2) as worker:
        until(lambda: sorted(run.began for run in worker._running()) == [False, True])
        worker.stop()  # the engine drops the second only once the first has ended
    for job in ledger.get_set(made.id).jobs:
        assert (job.state, job.attempt, job.image) == ("queued", 0, None)


def test_a_full_disk_holds_up_images_and_loses_none(ledger, store, submit, working, monkeypatch):
    full = threading.Event()
    put, check = store.put_master, store.check

    def refusing(act):
        def refuse(*args):
            if full.is_set():
                raise StorageError(OSError(errno.ENOSPC, "No space left on device").strerror)
            return act(*args)

        return refuse

    monkeypatch.setattr(store, "put_master", refusing(put))
    monkeypatch.setattr(store, "check", refusing(check))
    full.set()
    made = submit({"prompt": "x"}, {"prompt": "y"})
    with working() as worker:
        until(lambda: worker._state()["problem"])
        later = submit({"prompt": "z"})
        time.sleep(0.3)
        assert states(ledger, later) == ["queued"]  # no jobs are taken
        assert states(ledger, made) == ["running", "running"]
        full.clear()
        ended(ledger, made)
        ended(ledger, later)
        until(lambda: worker._state()["problem"] is None)
    assert states(ledger, made) == ["done", "done"]
    assert [job.attempt for job in ledger.get_set(made.id).jobs] == [1, 1]


def test_a_ledger_that_is_away_for_a_while_holds_up_images_and_loses_none(
    ledger, submit, working, monkeypatch
):
    finish, failures = ledger.finish, [LedgerUnavailable("away")] * 3

    def failing(*args):
        if failures:
            raise failures.pop()
        return finish(*args)

    monkeypatch.setattr(ledger, "finish", failing)
    made = submit({"prompt": "x"})
    with working():
        [job] = ended(ledger, made).jobs
    assert (job.state, job.attempt) == ("done", 1)
    assert not failures


def test_a_finish_whose_answer_was_lost_counts_once(ledger, store, submit, working, monkeypatch):
    finish, lost = ledger.finish, [1]

    def finish_without_answer(*args):
        done = finish(*args)
        if lost and lost.pop():
            raise LedgerUnavailable("the connection was lost")
        return done

    monkeypatch.setattr(ledger, "finish", finish_without_answer)
    made = submit({"prompt": "x"})
    with working() as worker:
        [job] = ended(ledger, made).jobs
        until(lambda: not worker._runs)
    assert store.get(job.image.key)
    assert ledger.usage()[0].images == 1


def test_an_image_that_the_ledger_took_is_kept_though_the_job_is_the_workers_no_more(
    ledger, store, submit, working, monkeypatch
):
    """The answer of `finish` is lost, and before it is tried again a renewal finds the job ended."""
    finish, lost = ledger.finish, set()

    def finish_without_answer(*args):
        finish(*args)
        raise LedgerUnavailable("the connection was lost")

    def renew(*args):
        renewal = Ledger.renew(ledger, *args)
        lost.update(renewal.lost)
        return renewal

    monkeypatch.setattr(ledger, "finish", finish_without_answer)
    monkeypatch.setattr(ledger, "renew", renew)
    monkeypatch.setattr(handing_in, "_LATER", 1.0)
    made = submit({"prompt": "x"})
    with working(lease_seconds=1) as worker:
        [job] = ended(ledger, made).jobs
        until(lambda: not worker._runs)
    assert (job.state, lost) == ("done", {job.id})
    assert store.get(job.image.key)


def test_the_image_of_an_erased_account_is_not_left_in_the_store(ledger, store, submit, working, monkeypatch):
    put = store.put_master

    def put_and_erase(*args):
        key = put(*args)
        ledger.erase_account("anna")
        return key

    monkeypatch.setattr(store, "put_master", put_and_erase)
    submit({"prompt": "x"})
    with working() as worker:
        until(lambda: worker.meter.value("limner_stale_finishes_total", device="fake"))
        until(lambda: not worker._runs)
    assert list(store.masters()) == []


def test_leases_are_renewed_after_a_failure_that_nobody_foresaw(ledger, submit, working, monkeypatch):
    """And a request that the engine cannot even read fails its own job alone."""
    failures, go_on = [TypeError("a bug")], threading.Event()

    def renew(*args):
        if failures:
            raise failures.pop()
        renewal = Ledger.renew(ledger, *args)
        if args[1]:
            go_on.set()  # only then the slow job goes on
        return renewal

    class Broken(FakeEngine):
        def submit(self, request, **more):
            if request.prompt == "broken":
                raise TypeError("a bug")
            return super().submit(request, **more)

    monkeypatch.setattr(ledger, "renew", renew)
    slow, broken = submit({"prompt": "slow", "steps": 20}), submit({"prompt": "broken"})
    with working(held(go_on, engine=Broken), lease_seconds=1):
        [job] = ended(ledger, slow).jobs
        assert (job.state, job.attempt, failures) == ("done", 1, [])
        [job] = ended(ledger, broken).jobs
        assert (job.error.code, job.state) == ("internal_error", "dead")


class Batching(FakeEngine):
    """Begins up to three images side by side, and notes how many requests it held at once."""

    most = 0

    def submit(self, request, **more):
        handle = super().submit(request, **more)
        stats = self.stats()
        type(self).most = max(self.most, stats.waiting + stats.running)
        return handle


def test_a_slow_engine_is_given_few_jobs_ahead(ledger, submit, working):
    Batching.most = 0
    made = submit(*({"prompt": "x", "seed": seed} for seed in range(30)))
    with working(fake(0.002, engine=Batching)):
        ended(ledger, made)
    assert states(ledger, made) == ["done"] * 30
    assert Batching.most <= FIRST


def test_a_job_on_its_last_attempt_runs_alone(ledger, submit, working):
    suspect = submit({"prompt": "suspect"})
    for _ in range(MAX_ATTEMPTS - 1):
        [claim] = until(lambda: ledger.claim("other", lease_seconds=5.0, limit=1))
        ledger.renew("other", {claim.job.id: claim.job.fence}, 0.0)
        time.sleep(0.01)
        assert ledger.reconcile().requeued
    company, made = [], submit({"prompt": "x"}, {"prompt": "y"})

    class Watching(FakeEngine):
        def submit(self, request, **more):
            stats = self.stats()
            if request.prompt == "suspect" or "suspect" in company:
                company.append((request.prompt, stats.waiting + stats.running))
            return super().submit(request, **more)

    with working(fake(0.01, engine=Watching)):
        ended(ledger, made)
        ended(ledger, suspect)
    assert states(ledger, suspect) + states(ledger, made) == ["done"] * 3
    assert company[0] == ("suspect", 0)
    assert [(name, more) for name, more in company[1:] if name == "suspect"] == []


def test_a_device_that_hangs_ends_the_process(ledger, submit, working, monkeypatch):
    exited = threading.Event()
    codes = []

    def leave(code):
        codes.append(code)
        exited.set()

    monkeypatch.setattr(worker_module.os, "_exit", leave)
    submit({"prompt": "x", "steps": 20})
    with working(fake(0.5), watchdog_seconds=0.2, drain_seconds=0.1):
        assert exited.wait(DEADLINE)
    assert codes[0] == worker_module._HUNG


def test_claiming_further_jobs_is_no_sign_of_life_of_the_device(ledger, tmp_path, store):
    worker = Worker(ServeSettings(data=tmp_path), "w1", ledger, store, fake(), device="fake")
    for event, is_sign in [
        (Admitted(job="a", images=1, priority=0), False),
        (Cancelled(job="a", image=None, device_seconds=0.0), False),
        (Started(job="a", seconds=0.0), True),
        (StepDone(job="a", image=1, step=1, steps=2, batch_size=1, device_seconds=0.0), True),
        (Finished(job="a", images=1, seconds=0.0, device_seconds=0.0), True),
    ]:
        worker._last_sign = before = 0.0
        worker._on_event(event)
        assert (worker._last_sign > before) == is_sign, event


def test_a_worker_that_fails_itself_ends_though_an_image_cannot_be_handed_in(
    ledger, store, submit, tmp_path, monkeypatch
):
    tried = threading.Event()

    def finish(*args):
        tried.set()
        raise LedgerUnavailable("away")

    def claim(*args, **more):
        if tried.is_set():
            raise ZeroDivisionError("of the worker")
        return Ledger.claim(ledger, *args, **more)

    monkeypatch.setattr(ledger, "finish", finish)
    monkeypatch.setattr(ledger, "claim", claim)
    monkeypatch.setattr(Worker, "_room", lambda worker: 1)
    submit({"prompt": "x"})
    worker = Worker(ServeSettings(data=tmp_path), "w1", ledger, store, fake(), device="fake")
    ended_with = []

    def run():
        try:
            worker.run()
        except ZeroDivisionError as error:
            ended_with.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert ended_with


@contextmanager
def hub_of(ledger, path):
    """A hub in a thread of its own, and a function that runs coroutines there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(DEADLINE)

    async def make():
        made = Hub(ledger)
        await made.start(hub_socket(path))
        return made

    hub = run(make())
    try:
        yield hub, run
    finally:
        run(hub.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


def test_a_worker_and_the_hub_know_of_each_other(ledger, submit, working, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "_POLL", 600.0)
    seen, go_on = [], threading.Event()

    async def watch(hub, made):
        async with hub.subscribe(None, set_ids={made.id}, after=0) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, JobProgress):
                    go_on.set()
                if getattr(event, "change", None) in FINAL_STATES:
                    return

    device = held(go_on, after=10, step_seconds=0.05)
    with hub_of(ledger, tmp_path) as (hub, run), working(device, lease_seconds=300):
        until(lambda: hub.workers)
        assert (hub.workers[0].id, hub.workers[0].device) == ("w1", "fake")
        time.sleep(0.1)
        made = submit({"prompt": "x", "steps": 20})
        hub.wake_workers()
        began = time.monotonic()
        run(watch(hub, made))
        seconds = time.monotonic() - began
        changes = [one.change for one in seen if isinstance(one, JobChanged)]
        progress = [one for one in seen if isinstance(one, JobProgress)]
        assert changes == ["queued", "started", "done"]
        assert progress
        assert len(progress) <= 5 * seconds + 3  # five a second
        assert [one.step for one in progress] == sorted({one.step for one in progress})
        assert {(one.job_id, one.steps) for one in progress} == {(made.jobs[0].id, 20)}

        assert run(hub.call("echo", {"a": 1}, [b"x"])) == ({"a": 1}, [b"x"])
        with pytest.raises(UnsupportedModel, match="no model of this worker answers the call 'dance'"):
            run(hub.call("dance", {}))
        with pytest.raises(NotFound):
            run(hub.call("unfinished", {"job": "job1", "seconds": 1.0}))

        slow = submit({"prompt": "x", "steps": 1000})
        hub.wake_workers()
        until(lambda: states(ledger, slow) == ["running"])
        hub.cancel(ledger.cancel(account_id="anna", set_id=slow.id))
        # By the call of the hub: the lease is renewed once in 100 s.
        until(lambda: states(ledger, slow) == ["cancelled"])
        until(lambda: hub.workers and hub.workers[0].running == 0)


def test_a_worker_goes_on_without_the_hub_and_finds_the_next_one(ledger, submit, working, tmp_path):
    with working() as worker:
        with hub_of(ledger, tmp_path):
            until(lambda: worker._link.connected)
        made = submit({"prompt": "x"})
        ended(ledger, made)
        with hub_of(ledger, tmp_path) as (hub, _):
            until(lambda: hub.workers)


def test_the_ledger_knows_of_workers_that_are_there(ledger, working):
    with working():
        [row] = until(lambda: ledger.list_workers())
        assert (row.id, row.device) == ("w1", "fake")
    assert ledger.list_workers() == []


def test_a_ledger_that_takes_no_claims_is_reported_and_asked_again(ledger, submit, working, monkeypatch):
    claim, away = ledger.claim, threading.Event()

    def failing(act):
        def fail(*args, **more):
            if away.is_set():
                raise LedgerUnavailable("the disk of the ledger is full")
            return act(*args, **more)

        return fail

    monkeypatch.setattr(ledger, "claim", failing(claim))
    monkeypatch.setattr(ledger, "heartbeat", failing(ledger.heartbeat))
    away.set()
    made = submit({"prompt": "x"})
    with working() as worker:
        until(lambda: worker._state()["problem"] == "the disk of the ledger is full")
        away.clear()
        ended(ledger, made)
        until(lambda: worker._state()["problem"] is None)


def test_leases_are_renewed_though_one_renewal_failed(ledger, submit, working, monkeypatch):
    renew, failures = ledger.renew, [ZeroDivisionError("a fault of the program"), LedgerUnavailable("away")]
    go_on = threading.Event()

    def failing(*args):
        if failures:
            raise failures.pop()
        renewal = renew(*args)
        if args[1]:
            go_on.set()
        return renewal

    monkeypatch.setattr(ledger, "renew", failing)
    made = submit({"prompt": "x"})
    with working(held(go_on), lease_seconds=1.5):
        ended(ledger, made)
    [job] = ledger.get_set(made.id).jobs
    assert (job.state, job.attempt) == ("done", 1)
    assert not failures
