"""The hub: events for watchers, calls to workers."""

import asyncio
from contextlib import asynccontextmanager
from math import inf

import pytest

from limner.errors import InvalidRequest, WorkerUnavailable
from limner.service import hub as hub_module
from limner.service.channel import Frame, error_data, read_frame
from limner.service.events import JobChanged, JobProgress
from limner.service.hub import Hub, WorkerInfo
from limner.service.subscription import QUEUED
from tests.waiting import DEADLINE
from tests.waiting import until_in_loop as until


class Events:
    """A ledger of events alone."""

    def __init__(self):
        self.all, self.reads = [], 0

    def add(self, *changes, account="anna", set_id="set1", job="job1"):
        for change in changes:
            self.all.append(JobChanged(len(self.all) + 1, account, set_id, job, 0, change, 0.0))

    def events(self, account_id, *, after, limit=500):
        self.reads += 1
        found = [one for one in self.all if one.seq > after and account_id in (None, one.account_id)]
        return found[:limit]

    def last_event(self):
        return len(self.all)


HELLO = {
    "worker": "w1",
    "device": "cpu",
    "pid": 7,
    "models": ["checkpoint:picturebook"],
    "memory": {},
    "running": 0,
    "draining": False,
}


class Worker:
    """What a worker says and hears on the socket."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path, **more):
        worker = cls(*await asyncio.open_unix_connection(path))
        worker.send("hello", **{**HELLO, **more})
        assert (await worker.next()).type == "watch"
        return worker

    def send(self, type, *parts, **data):
        self._writer.write(Frame(type, data, parts).encode())

    async def next(self):
        return await asyncio.wait_for(read_frame(self._reader), DEADLINE)

    async def close(self):
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def running(events, path=None, **more):
    hub = Hub(events, **more)
    await hub.start(path)
    try:
        yield hub
    finally:
        await hub.stop()


async def take(subscription, count):
    return [await asyncio.wait_for(anext(subscription), DEADLINE) for _ in range(count)]


def progress(job="job1", step=1, account="anna", set_id="set1", **more):
    return {
        "account_id": account,
        "set_id": set_id,
        "job_id": job,
        "index": 0,
        "step": step,
        "steps": 4,
        "seconds_left": None,
        "batch_size": 2,
        **more,
    }


def test_changes_go_to_those_who_may_see_them():
    async def scenario():
        events = Events()
        events.add("queued")
        async with (
            running(events) as hub,
            hub.subscribe("anna") as own,
            hub.subscribe("bert") as other,
            hub.subscribe(None) as all_,
            hub.subscribe("anna", set_ids={"set2"}) as of_set,
        ):
            events.add("started")
            events.add("queued", account="bert", set_id="set9")
            events.add("queued", set_id="set2")
            hub.changed()
            assert [one.seq for one in await take(own, 2)] == [2, 4]
            assert [one.seq for one in await take(other, 1)] == [3]
            assert [one.seq for one in await take(all_, 3)] == [2, 3, 4]
            assert [one.seq for one in await take(of_set, 1)] == [4]

    asyncio.run(scenario())


def test_changes_are_found_without_being_told(monkeypatch):
    monkeypatch.setattr(hub_module, "_POLL", 0.02)

    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna") as own:
            events.add("queued")
            assert [one.change for one in await take(own, 1)] == ["queued"]

    asyncio.run(scenario())


@pytest.mark.parametrize("missed", [0, 3, 500, 1203])
def test_a_stream_resumes_after_a_number_without_gap_or_double(missed):
    async def scenario():
        events = Events()
        events.add(*["moved"] * (5 + missed))
        events.add("queued", account="bert")
        async with running(events) as hub, hub.subscribe("anna", after=5) as own:
            events.add("started")
            hub.changed()
            await until(lambda: hub._last == len(events.all))  # it is there live, too
            seqs = [one.seq for one in await take(own, missed + 1)]
            assert seqs == [*range(6, 6 + missed), len(events.all)]
            events.add("done")
            hub.changed()
            assert (await take(own, 1))[0].change == "done"

    asyncio.run(scenario())


def test_what_was_read_before_the_hub_had_it_comes_once():
    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna", after=0) as own:
            events.add("queued", "started")  # the hub has not been told
            assert [one.seq for one in await take(own, 2)] == [1, 2]
            events.add("done")
            hub.changed()
            assert [one.seq for one in await take(own, 1)] == [3]

    asyncio.run(scenario())


def test_a_slow_watcher_misses_no_change_and_keeps_few():
    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna") as own:
            for _ in range(30):
                events.add(*["moved"] * 100)
                hub.changed()
                await until(lambda: hub._last == len(events.all))
            assert len(own._changes) <= QUEUED
            events.add("done")
            assert [one.seq for one in await take(own, 3001)] == [*range(1, 3002)]

    asyncio.run(scenario())


def test_only_the_newest_progress_of_a_job_waits(tmp_path):
    async def scenario():
        events = Events()
        async with running(events, tmp_path / "hub.sock") as hub, hub.subscribe("anna") as own:
            worker = await Worker.connect(tmp_path / "hub.sock")
            for step in (1, 2, 3):
                worker.send("progress", b"png", jobs=[progress(step=step, preview=0), progress("job2", 9)])
            worker.send("progress", jobs=[progress("job3", account="bert")])
            await until(lambda: hub.latest("job3"))
            one, other = await take(own, 2)
            assert one == JobProgress("anna", "set1", "job1", 0, 3, 4, inf, 2, b"png")
            assert (other.job_id, other.step, other.preview) == ("job2", 9, None)
            assert hub.latest("job1") == one
            worker.send("progress", jobs=[progress(step=4)])
            await until(lambda: hub.latest("job1").step == 4)
            events.add("done")
            hub.changed()
            await until(lambda: hub.latest("job1") is None)
            [done] = await take(own, 1)  # the progress before it is of no use any more
            assert done.change == "done"
            await worker.close()

    asyncio.run(scenario())


def test_progress_that_comes_after_the_end_of_its_job_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "_POLL", 0.01)

    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            worker = await Worker.connect(tmp_path / "hub.sock")
            worker.send("progress", jobs=[progress(), progress("job2", account="bert")])
            await until(lambda: hub.latest("job2"))
            hub.forget("bert")
            assert hub.latest("job2") is None
            assert hub.latest("job1")
            monkeypatch.setattr(hub_module, "_KEPT", 0.0)
            await until(lambda: hub.latest("job1") is None)
            await worker.close()

    asyncio.run(scenario())


def test_workers_hear_of_new_jobs_and_cancelled_ones(tmp_path):
    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            workers = [await Worker.connect(tmp_path / "hub.sock", worker=name) for name in ("w1", "w2")]
            assert [info.id for info in hub.workers] == ["w1", "w2"]
            hub.wake_workers()
            hub.cancel(["job1"])
            for worker in workers:
                assert (await worker.next()).type == "wake"
                assert (await worker.next()).data == {"jobs": ["job1"]}
            workers[0].send("state", **{**HELLO, "running": 3, "problem": "the disk is full"})
            await until(lambda: hub.workers[0].running == 3)
            assert hub.workers[0] == WorkerInfo(
                "w1", "cpu", 7, ("checkpoint:picturebook",), {}, 3, False, "the disk is full"
            )
            await workers[0].close()
            await until(lambda: len(hub.workers) == 1)
            await workers[1].close()

    asyncio.run(scenario())


def test_workers_hear_whose_previews_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "_POLL", 0.02)
    monkeypatch.setattr(hub_module, "_WANTED", 0.1)

    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            worker = await Worker.connect(tmp_path / "hub.sock")
            async with hub.subscribe("anna", previews=False), hub.subscribe("bert", progress=False):
                async with hub.subscribe("anna"):
                    assert (await worker.next()).data == {"all": False, "accounts": ["anna"], "sets": []}
                    async with hub.subscribe(None, set_ids={"set1"}):
                        assert (await worker.next()).data["sets"] == ["set1"]
                    assert (await worker.next()).data["sets"] == []
                assert (await worker.next()).data == {"all": False, "accounts": [], "sets": []}
            async with hub.subscribe(None):
                assert (await worker.next()).data["all"]
            assert not (await worker.next()).data["all"]
            hub.want_previews("carl")
            assert (await worker.next()).data["accounts"] == ["carl"]
            assert (await worker.next()).data["accounts"] == []  # after a while
            await worker.close()

    asyncio.run(scenario())


def test_a_call_is_answered_by_the_worker_with_the_fewest(tmp_path):
    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            busy = await Worker.connect(tmp_path / "hub.sock", worker="w1", running=5)
            idle = await Worker.connect(tmp_path / "hub.sock", worker="w2")
            gone = await Worker.connect(tmp_path / "hub.sock", worker="w0", draining=True)
            asked = asyncio.create_task(hub.call("upscale", {"scale": 2}, [b"one", b"two"]))
            call = await idle.next()
            assert (call.type, call.data["name"], call.data["params"]) == ("call", "upscale", {"scale": 2})
            assert call.parts == (b"one", b"two")
            idle.send("answer", b"big", id=call.data["id"], result={"ok": True})
            assert await asked == ({"ok": True}, [b"big"])

            asked = asyncio.create_task(hub.call("upscale", {}))
            call = await idle.next()
            error = error_data(InvalidRequest("scale is missing", fields=("scale",)))
            idle.send("answer", id=call.data["id"], error=error)
            with pytest.raises(InvalidRequest, match="scale is missing"):
                await asked

            asked = asyncio.create_task(hub.call("upscale", {}))
            await idle.next()
            await idle.close()
            with pytest.raises(WorkerUnavailable, match="gone"):
                await asked
            with pytest.raises(WorkerUnavailable, match="within"):
                await hub.call("upscale", {}, timeout=0.05)
            await busy.close()
            await gone.close()

    asyncio.run(scenario())


def test_a_call_waits_for_a_worker_to_connect(tmp_path):
    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            with pytest.raises(WorkerUnavailable, match="no worker is connected"):
                await hub.call("upscale", {}, timeout=0.05)
            asked = asyncio.create_task(hub.call("upscale", {}))
            worker = await Worker.connect(tmp_path / "hub.sock")
            worker.send("answer", id=(await worker.next()).data["id"], result={})
            assert await asked == ({}, [])
            await worker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", Frame("hello", {"worker": 1}).encode()])
def test_what_is_no_worker_is_shut_out(sent, tmp_path):
    async def scenario():
        async with running(Events(), tmp_path / "hub.sock") as hub:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "hub.sock")
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
            assert hub.workers == ()
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())


def test_measurements_are_handed_on(tmp_path):
    async def scenario():
        seen = []
        async with running(Events(), tmp_path / "hub.sock", observed=lambda *got: seen.append(got)):
            worker = await Worker.connect(tmp_path / "hub.sock")
            worker.send("observed", seconds=3)
            await until(lambda: seen)
            assert seen == [("w1", {"seconds": 3})]
            await worker.close()

    asyncio.run(scenario())


def test_subscriptions_end_when_the_process_stops():
    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna") as own:
            hub.end_subscriptions()
            assert [one async for one in own] == []
            async with hub.subscribe("anna") as later:
                assert [one async for one in later] == []

    asyncio.run(scenario())


def test_who_waits_for_a_set_hears_its_end_while_the_process_drains(tmp_path):
    async def scenario():
        events = Events()
        async with running(events, tmp_path / "hub.sock") as hub:
            worker = await Worker.connect(tmp_path / "hub.sock")
            async with hub.subscribe("anna") as stream, hub.subscribe(None, set_ids={"set1"}) as waiting:
                hub.drain()
                assert [one async for one in stream] == []
                events.add("done")
                hub.changed()
                assert [one.change for one in await take(waiting, 1)] == ["done"]
                async with hub.subscribe("anna") as later:
                    assert [one async for one in later] == []
                events.add("done", job="job2")
                await worker.close()
                assert [one.job_id async for one in waiting] == ["job2"]  # and then it ends

    asyncio.run(scenario())


def test_a_new_process_takes_over_the_socket_of_a_dead_one(tmp_path):
    async def scenario():
        (tmp_path / "hub.sock").write_text("")  # what a killed process leaves
        async with running(Events(), tmp_path / "hub.sock"):
            worker = await Worker.connect(tmp_path / "hub.sock")
            await worker.close()

    asyncio.run(scenario())


def test_a_ledger_that_fails_for_a_while_is_read_again(monkeypatch):
    monkeypatch.setattr(hub_module, "_POLL", 0.02)

    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna") as own:
            read, failures = events.events, [OSError("locked"), OSError("locked")]

            def failing(*args, **more):
                if failures:
                    raise failures.pop()
                return read(*args, **more)

            events.events = failing
            events.add("queued")
            hub.changed()
            assert (await take(own, 1))[0].change == "queued"
            assert not failures

    asyncio.run(scenario())


def test_a_batch_has_all_changes_before_all_progress():
    async def scenario():
        events = Events()
        events.add("queued")
        async with running(events) as hub, hub.subscribe("anna", after=0) as watched:
            first = await watched.batch(DEADLINE)
            assert [one.change for one in first] == ["queued"]
            assert await watched.batch(0.01) == []
            events.add("started", "done")
            hub.changed()
            found = await watched.batch(DEADLINE)
            watched.offer(JobProgress("anna", "set1", "job2", 0, 1, 4, 1.0))
            while len(found) < 3:
                found += await watched.batch(DEADLINE)
            assert [getattr(one, "change", one.__class__.__name__) for one in found] == [
                "started",
                "done",
                "JobProgress",
            ]
            hub.end_subscriptions()
            await asyncio.sleep(0.01)
            assert await watched.batch(DEADLINE) is None

    asyncio.run(scenario())


def test_a_batch_of_a_slow_watcher_misses_nothing():
    async def scenario():
        events = Events()
        async with running(events) as hub, hub.subscribe("anna") as watched:
            for _ in range(QUEUED + 50):
                events.add("queued")
            hub.changed()
            found = []
            while len(found) < QUEUED + 50:
                found += await watched.batch(DEADLINE)
            assert [one.seq for one in found] == list(range(1, QUEUED + 51))

    asyncio.run(scenario())
