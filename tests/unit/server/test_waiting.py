"""Calls that wait: what a client that hangs up stops, and what it does not."""

import asyncio
import socket

import pytest

from limner.errors import DeadlineExceeded
from limner.server.waiting import finished_set, follow
from limner.service.encoding import Encoding
from limner.service.events import JobChanged
from limner.service.release import converted
from tests.serving import serving
from tests.waiting import DEADLINE, until, until_in_loop


@pytest.fixture
def slow(tmp_path):
    with serving(tmp_path, step_seconds=0.2) as running:
        yield running


def post(served, steps=3, headers=None, **body):
    body = {"request": {"prompt": "x", "steps": steps, **body}}
    return served.client.post("/api/v1/jobs", json=body, headers=headers or {}).json()


def states(served, set_id):
    return [job.state for job in served.state.ledger.get_set(set_id).jobs]


def run(served, work):
    """The result of a coroutine, run in the server's event loop."""
    return asyncio.run_coroutine_threadsafe(work, served.loop).result(DEADLINE)


def test_a_set_is_waited_for(slow):
    posted = post(slow, steps=2)
    done = run(slow, finished_set(slow.state, posted["id"]))
    assert [job.state for job in done.jobs] == ["done"]
    assert run(slow, finished_set(slow.state, posted["id"])).ended, "one that has ended is there at once"
    assert slow.state.waiting == {}


def test_waiting_ends_after_its_time_and_the_jobs_go_on(slow):
    posted = post(slow, steps=250)
    with pytest.raises(DeadlineExceeded):
        run(slow, finished_set(slow.state, posted["id"], timeout=0.1))
    assert states(slow, posted["id"])[0] in ("queued", "running")
    slow.painter.step_seconds = 0.0
    until(lambda: states(slow, posted["id"]) == ["done"])


def test_following_ends_with_the_set_and_has_its_changes(slow):
    async def changes(set_id):
        return [e.change async for e in follow(slow.state, set_id) if isinstance(e, JobChanged)]

    assert run(slow, changes(post(slow, steps=2)["id"]))[-1] == "done"


@pytest.mark.parametrize("waiting", [1, 2])
def test_who_hangs_up_stops_only_what_nobody_else_waits_for(slow, waiting):
    posted = post(slow, steps=250)

    async def cancelled() -> None:
        tasks = [asyncio.create_task(finished_set(slow.state, posted["id"])) for _ in range(waiting)]
        await until_in_loop(lambda: slow.state.waiting.get(posted["id"]) == waiting)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        if waiting > 1:
            slow.painter.step_seconds = 0.0
        for task in tasks[1:]:
            assert (await task).ended

    run(slow, cancelled())
    until(lambda: states(slow, posted["id"])[0] in ("cancelled", "done"))
    assert states(slow, posted["id"]) == (["cancelled"] if waiting == 1 else ["done"])


def test_a_client_that_hangs_up_does_not_stop_what_was_submitted_for_good(slow):
    host, port = slow.url.removeprefix("http://").split(":")
    body = b'{"request": {"prompt": "durable", "steps": 250}}'
    head = (
        "POST /api/v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"prefer: wait=600\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: slow.state.waiting)
    [posted] = slow.state.ledger.list_sets(None)
    until(lambda: not slow.state.waiting)
    assert states(slow, posted.id)[0] in ("queued", "running")
    slow.painter.step_seconds = 0.0
    until(lambda: states(slow, posted.id) == ["done"])


def test_a_jpeg_keeps_the_record_of_its_master(slow):
    done = run(slow, finished_set(slow.state, post(slow, steps=1, seed=3)["id"]))
    image = done.jobs[0].image
    master = slow.state.store.get(image.key)
    assert converted(master, Encoding("jpeg", 70)) != converted(master, Encoding("jpeg", 20))
    assert b"Steps: 1" in converted(master, Encoding("jpeg", 70)).replace(b"\0", b"")
