"""A service that is stopping: which requests it still accepts, and how jobs end that a client waits for."""

import asyncio

import httpx
import pytest

from tests.serving import Painter, serving, worker_of
from tests.waiting import DEADLINE, until

OPENAI = ("/v1/images/generations", {"prompt": "x", "steps": 2})
STREAM = ("/v1/images/generations", {"prompt": "x", "steps": 2, "stream": True})
SDAPI = ("/sdapi/v1/txt2img", {"prompt": "x", "steps": 2})
NATIVE = ("/api/v1/jobs", {"request": {"prompt": "x", "steps": 2}})


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path, working=False) as running:
        yield running


def states(served):
    return [job.state for job in served.ledger.list_jobs(None)]


def posted(served, path, body, **more):
    """The answers of calls that wait when the service stops, without a worker being left."""

    async def post():
        async with httpx.AsyncClient(base_url=served.url, timeout=DEADLINE) as client:
            task = asyncio.create_task(client.post(path, json=body, **more))
            while not served.state.waiting:
                await asyncio.sleep(0.01)
            served.state.hub.drain()
            return await task

    return asyncio.run(post())


@pytest.mark.parametrize(("path", "body"), [OPENAI, SDAPI])
def test_a_call_that_waits_at_the_end_gets_503_and_its_jobs_are_cancelled(served, path, body):
    answer = posted(served, path, body)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "about to stop" in answer.text
    assert states(served) == ["cancelled"]


def test_a_stream_that_waits_at_the_end_has_an_error_and_its_jobs_are_cancelled(served):
    answer = posted(served, *STREAM)
    assert answer.text.startswith("event: error")
    assert "about to stop" in answer.text
    until(lambda: states(served) == ["cancelled"])


def test_a_set_of_the_native_api_that_is_waited_for_stays_queued_and_is_named(served):
    answer = posted(served, *NATIVE, headers={"prefer": f"wait={DEADLINE}"})
    assert answer.status_code == 202
    assert [job["state"] for job in answer.json()["jobs"]] == ["queued"]
    assert states(served) == ["queued"]


def test_what_would_be_waited_for_is_refused_while_all_workers_drain(tmp_path):
    painter = Painter(step_seconds=0.2)
    with (
        serving(tmp_path, working=False, drain_seconds=600) as served,
        worker_of(served.state.settings, painter) as worker,
    ):
        running = served.client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 250}}).json()
        until(lambda: painter.steps)
        worker.stop()
        until(lambda: served.state.hub.stopping)
        for path, body in (OPENAI, STREAM, SDAPI):
            answer = served.client.post(path, json=body)
            assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True), answer.text
        assert served.client.post(NATIVE[0], json=NATIVE[1]).status_code == 202
        assert sorted(states(served)) == ["queued", "running"]
        served.client.post(f"/api/v1/sets/{running['id']}/cancel")
