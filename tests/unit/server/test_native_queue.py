"""The native API's queue: in order, many jobs at once, and sets that grow."""

import threading

import pytest

from limner.engine.fake import FakeEngine
from tests.serving import serving, submit
from tests.waiting import DEADLINE, until

BOAT = {"prompt": "a boat", "steps": 2, "seed": 40, "num_images": 2}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A server without a worker: what is submitted waits."""
    with serving(tmp_path_factory.mktemp("idle"), working=False) as running:
        yield running


def posted(served, key, **more):
    answer = served.client.post("/api/v1/jobs", json={"request": {**BOAT, **more}}, headers=key)
    assert answer.status_code == 202, answer.text
    return answer.json()


def queue(served, key, **more):
    return served.client.get("/api/v1/jobs", params={"order": "queue", **more}, headers=key).json()


def seeds(served, key, job_ids, name="seed"):
    found = [served.client.get(f"/api/v1/jobs/{one}", headers=key).json() for one in job_ids]
    return [one["params"][name] for one in found]


def test_the_queue_is_in_order_with_the_time_until_each_begins(idle):
    key = idle.key("anna")
    first, second = posted(idle, key), posted(idle, key)
    ids = [job["id"] for one in (first, second) for job in one["jobs"]]
    found = queue(idle, key)
    assert [one["id"] for one in found["items"]] == ids
    assert [one["place"] for one in found["items"]] == [0, 1, 2, 3]
    starts = [one["starts_in"] for one in found["items"]]
    assert starts[0] == 0.0
    assert starts == sorted(set(starts))
    assert found["total"] == 4
    idle.client.patch(f"/api/v1/jobs/{ids[3]}", json={"before": ids[0]}, headers=key)
    assert [one["id"] for one in queue(idle, key)["items"]] == [ids[3], *ids[:3]]
    assert queue(idle, key, limit=1)["total"] == 4
    assert queue(idle, key, state="paused,running")["items"] == []
    assert queue(idle, key, state="paused,queued")["total"] == 4
    assert queue(idle, idle.key("bert"))["items"] == []
    refused = idle.client.get("/api/v1/jobs", params={"order": "queue", "before": ids[0]}, headers=key)
    assert refused.status_code == 422


def test_many_jobs_are_paused_resumed_and_cancelled_at_once(idle):
    key, other = idle.key("carl"), idle.key("dora")
    ids = [job["id"] for _ in range(2) for job in posted(idle, key)["jobs"]]
    kept = posted(idle, other)["jobs"][0]["id"]
    client = idle.client
    change = lambda body: client.patch("/api/v1/jobs", json=body, headers=key)  # noqa: E731
    assert change({"ids": ids[:3], "state": "paused"}).json() == {"changed": 3}
    assert [one["id"] for one in queue(idle, key)["items"]] == [ids[3], *ids[:3]]
    assert change({"ids": ids, "state": "queued"}).json() == {"changed": 3}
    assert change({"ids": [ids[0], kept], "state": "paused"}).status_code == 404
    assert change({"ids": [], "state": "paused"}).status_code == 422
    cancel = lambda body: client.post("/api/v1/jobs/cancel", json=body, headers=key)  # noqa: E731
    assert cancel({"ids": ids[:1]}).json() == {"changed": 1}
    assert cancel({"all": True}).json() == {"changed": 3}
    assert cancel({"all": True}).json() == {"changed": 0}
    for wrong in ({}, {"all": True, "ids": ids}):
        assert cancel(wrong).status_code == 422
    assert queue(idle, key)["items"] == []
    assert client.get(f"/api/v1/jobs/{kept}", headers=other).json()["state"] == "queued"


def test_a_set_gets_the_next_seeds_and_nothing_else_changes(idle):
    key = idle.key("emil")
    made = posted(idle, key, negative_prompt="fog", loras=[])
    more = lambda body: idle.client.post(f"/api/v1/sets/{made['id']}/jobs", json=body, headers=key)  # noqa: E731
    assert more({"count": 2}).status_code == 202
    extended = more({"seeds": [7, 8, 5]}).json()
    ids = [job["id"] for job in extended["jobs"]]
    assert seeds(idle, key, ids) == [40, 41, 42, 43, 7, 8, 5]
    assert [job["index"] for job in extended["jobs"]] == list(range(7))
    whole = [idle.client.get(f"/api/v1/jobs/{one}", headers=key).json() for one in ids]
    assert {repr({**one["params"], "seed": 0}) for one in whole[1:]} == {
        repr({**whole[0]["params"], "seed": 0})
    }
    assert {(one["model"], one["predicted_seconds"]) for one in whole} == {
        (whole[0]["model"], whole[0]["predicted_seconds"])
    }
    for wrong in (
        {},
        {"count": 1, "seeds": [1]},
        {"count": 0},
        {"seeds": []},
        {"seeds": [-1]},
        {"count": 65},
    ):
        assert more(wrong).status_code == 422, wrong
    other = idle.client.post(f"/api/v1/sets/{made['id']}/jobs", json={"count": 1}, headers=idle.key("fred"))
    assert other.status_code == 404


def test_a_set_is_extended_once_when_the_request_is_sent_twice(idle):
    key = idle.key("nora")
    made = posted(idle, key)
    once = {**key, "idempotency-key": "two-more"}
    route = f"/api/v1/sets/{made['id']}/jobs"
    first, again = (idle.client.post(route, json={"count": 2}, headers=once) for _ in range(2))
    assert [len(one.json()["jobs"]) for one in (first, again)] == [4, 4]
    assert [one.headers.get("idempotent-replayed") for one in (first, again)] == [None, "true"]
    other = idle.client.post(route, json={"count": 1}, headers=once)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert queue(idle, key)["total"] == 4


def test_variations_get_the_next_variation_seeds(idle):
    key = idle.key("gina")
    made = posted(idle, key, variation_strength=0.2, variation_seed=9)
    extended = idle.client.post(f"/api/v1/sets/{made['id']}/jobs", json={"count": 1}, headers=key).json()
    ids = [job["id"] for job in extended["jobs"]]
    assert seeds(idle, key, ids, "variation_seed") == [9, 10, 11]
    assert seeds(idle, key, ids) == [40, 40, 40]


def test_a_stopped_job_is_replaced_by_the_next_seed_which_is_next(idle):
    key = idle.key("hans")
    made = posted(idle, key, num_images=3)
    ids = [job["id"] for job in made["jobs"]]
    path = f"/api/v1/sets/{made['id']}/jobs"
    extended = idle.client.post(path, json={"instead_of": [ids[1]]}, headers=key).json()
    assert [job["state"] for job in extended["jobs"]] == ["queued", "cancelled", "queued", "queued"]
    new = extended["jobs"][3]["id"]
    assert seeds(idle, key, [new]) == [43]
    assert [one["id"] for one in queue(idle, key)["items"]] == [new, ids[0], ids[2]]
    again = idle.client.post(path, json={"instead_of": [ids[1]]}, headers=key).json()
    assert len(again["jobs"]) == 4
    only = idle.key("hans", scopes=("generate", "read"))
    assert idle.client.post(path, json={"instead_of": [ids[0]]}, headers=only).status_code == 403
    assert idle.client.post(path, json={"count": 1}, headers=only).status_code == 202


def test_a_running_job_is_stopped_and_its_replacement_drawn(tmp_path, monkeypatch):
    begun = threading.Event()
    take_step = FakeEngine._take_step

    def step(self, job, *arguments):
        """The first step of all takes until the worker hears that its job is cancelled."""
        if not begun.is_set():
            begun.set()
            until(job.handle.done)
        take_step(self, job, *arguments)

    monkeypatch.setattr(FakeEngine, "_take_step", step)
    with serving(tmp_path) as served:
        made = posted(served, {}, num_images=1)
        assert begun.wait(DEADLINE)
        body = {"instead_of": [made["jobs"][0]["id"]]}
        answer = served.client.post(f"/api/v1/sets/{made['id']}/jobs", json=body).json()
        assert answer["jobs"][0]["cancel_requested"]
        ended = served.client.get(f"/api/v1/sets/{made['id']}", params={"wait": DEADLINE}).json()
        assert [one["state"] for one in ended["jobs"]] == ["cancelled", "done"]
        assert ended["jobs"][1]["image"]["seed"] == 41


def test_an_ended_set_goes_on_when_it_is_extended(tmp_path):
    with serving(tmp_path) as served:
        done = submit(served.client, seed=5)
        path = f"/api/v1/sets/{done['id']}"
        assert served.client.post(f"{path}/jobs", json={"count": 1}).status_code == 202
        ended = served.client.get(path, params={"wait": DEADLINE}).json()
        assert [one["image"]["seed"] for one in ended["jobs"]] == [5, 6]
