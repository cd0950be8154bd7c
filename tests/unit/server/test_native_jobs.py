"""The native API: jobs, sets, images, uploads and the stream of events."""

import base64
import hashlib
import io
import json
import threading
import time
from contextlib import ExitStack

import pytest
from PIL import Image

from limner.errors import NotFound
from limner.images.metadata import read_record
from tests.serving import png, serving, submit
from tests.waiting import DEADLINE, until


def test_a_request_becomes_jobs_whose_images_can_be_fetched(served):
    done = submit(served.client, num_images=2, seed=7)
    assert [job["state"] for job in done["jobs"]] == ["done", "done"]
    for number, job in enumerate(done["jobs"]):
        answer = served.client.get(job["image"]["url"])
        assert hashlib.sha256(answer.content).hexdigest() == job["image"]["delivered_sha256"]
        exact = served.client.get(job["image"]["url"], params={"exact": True})
        assert hashlib.sha256(exact.content).hexdigest() == job["image"]["sha256"]
        record = read_record(io.BytesIO(answer.content))
        assert (record.request.prompt, record.request.seed) == ("a red boat", 7 + number)
        assert record.request.model.endswith("picturebook")


def test_errors_name_the_field_of_the_request(served):
    for given, field, hint in (
        ({"prompt": "a boat", "width": 100}, "width", "96 and 104"),
        ({"prompt": "a boat", "stepz": 4}, "stepz", "steps"),
        ({"steps": 4}, "prompt", ""),
    ):
        problem = served.client.post("/api/v1/jobs", json={"request": given}).json()
        assert problem["fields"] == [field]
        assert problem["detail"].startswith(f"{field} is ")
        assert hint in (problem["hint"] or "")


def test_an_accepted_set_is_where_its_location_says(served):
    answer = served.client.post("/api/v1/jobs", json={"request": {"prompt": "a boat", "steps": 1}})
    assert answer.status_code in (200, 202)
    found = served.client.get(answer.headers["location"], params={"wait": 20}).json()
    assert found["ended"]
    assert found["request"]["prompt"] == "a boat"
    job = served.client.get(f"/api/v1/jobs/{found['jobs'][0]['id']}").json()
    assert job["params"]["sampler"], "parameters have every default filled in"
    assert job["image"]["record"]["request"]["prompt"] == "a boat"
    [attempt] = served.client.get(f"/api/v1/jobs/{job['id']}/attempts").json()
    assert (attempt["number"], attempt["outcome"]) == (1, "done")


def test_the_same_idempotency_key_means_the_same_set(served):
    first = submit(served.client, headers={"idempotency-key": "k1"}, prompt="once")
    again = served.client.post(
        "/api/v1/jobs",
        json={"request": {"prompt": "once", "steps": 2}},
        headers={"idempotency-key": "k1"},
    )
    assert again.json()["id"] == first["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = served.client.post(
        "/api/v1/jobs", json={"request": {"prompt": "twice"}}, headers={"idempotency-key": "k1"}
    )
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("request_", "field", "status"),
    [
        ({"prompt": 3}, "prompt", 422),
        ({"prompt": "x", "width": 100}, "width", 422),
        ({"prompt": "x", "steps": 251}, "steps", 422),
        ({"prompt": "x", "model": "no-such-model"}, "model", 404),
        ({"prompt": "x", "model": "/etc/passwd"}, "model", 404),
        ({"prompt": "x", "loras": [{"name": "ink"}]}, "loras", 404),
        ({"prompt": "x", "image": "/etc/passwd"}, "image", 422),
        ({"prompt": "x", "image": "http://127.0.0.1/x.png"}, "image", 422),
        ({"prompt": "x", "image": "data:image/png;base64,AAAA"}, "image", 422),
        ({"prompt": "x", "image": "sha256:" + 64 * "0"}, "image", 422),
        ({"prompt": "x", "mask": "data:image/png;base64,AAAA"}, "mask", 422),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field(served, request_, field, status):
    answer = served.client.post("/api/v1/jobs", json={"request": request_})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert field is None or field in problem["fields"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert str(served.state.settings.data) not in answer.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"request": {"prompt": "\\u0000"}}', "application/json", 400),
        (b'{"request": {"prompt": "\\ud800"}}', "application/json", 400),
        (b'{"request": {"prompt": "x", "eta": NaN}}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"request": {"prompt": "\xed\xa0\x80"}}', "application/json", 400),
        (b'{"request": {"prompt": "\xe9"}}', "application/json", 400),
        (b'{"request": {"prompt": "x", "seed": ' + b"9" * 5000 + b"}}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"request": {"prompt": "x"}, "lane": "fast"}', "application/json", 422),
        (b'{"request": {"prompt": "x"}, "colour": "red"}', "application/json", 422),
    ],
)
def test_malformed_bodies_are_refused(served, body, kind, status):
    answer = served.client.post("/api/v1/jobs", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["code"]


def test_a_bare_request_is_told_where_it_belongs(served):
    for path in ("/api/v1/jobs", "/api/v1/estimates"):
        answer = served.client.post(path, json={"prompt": "x"})
        assert (answer.status_code, answer.json()["hint"]) == (422, 'send {"request": {"prompt": …}}')


def test_an_input_image_is_uploaded_once_and_named_by_its_hash(served):
    data = png()
    upload = served.client.post("/api/v1/uploads", content=data, headers={"content-type": "image/png"}).json()
    assert upload["reference"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (upload["width"], upload["height"], upload["media_type"]) == (64, 64, "image/png")
    done = submit(served.client, image=upload["reference"], strength=0.5)
    assert done["request"]["image"] == upload["reference"]
    listed = served.client.get("/api/v1/uploads").json()
    assert upload["reference"] in [one["reference"] for one in listed]
    fetched = served.client.get(f"/api/v1/uploads/{upload['sha256']}")
    assert (fetched.content, fetched.headers["content-type"]) == (data, "image/png")
    inline = submit(served.client, image=f"data:image/png;base64,{base64.b64encode(data).decode()}")
    assert inline["request"]["image"] == upload["reference"]


def test_a_deleted_upload_is_gone(served):
    reference = served.client.post("/api/v1/uploads", content=png(colour="blue")).json()["reference"]
    assert served.client.delete(f"/api/v1/uploads/{reference}").status_code == 204
    assert served.client.get(f"/api/v1/uploads/{reference}").status_code == 404
    assert served.client.delete(f"/api/v1/uploads/{reference}").status_code == 404
    assert served.state.assets.find(reference.removeprefix("sha256:")) is None


def test_an_upload_is_no_image_or_too_large(served):
    for data in (b"", b"GIF89a", b"<svg/>", png()[:40]):
        answer = served.client.post("/api/v1/uploads", content=data)
        assert (answer.status_code, answer.json()["fields"]) == (422, ["image"])


def test_images_are_immutable_and_can_be_fetched_in_parts(served):
    image = submit(served.client)["jobs"][0]["image"]
    whole = served.client.get(image["url"])
    assert "immutable" in whole.headers["cache-control"]
    tag = whole.headers["etag"]
    assert served.client.get(image["url"], headers={"if-none-match": tag}).status_code == 304
    part = served.client.get(image["url"], headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    last = served.client.get(image["url"], headers={"range": "bytes=-5"})
    assert last.content == whole.content[-5:]
    stale = served.client.get(image["url"], headers={"range": "bytes=0-3", "if-range": '"other"'})
    assert stale.status_code == 200
    beyond = served.client.get(image["url"], headers={"range": "bytes=99999999-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")
    head = served.client.head(image["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(("format", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_images_are_delivered_in_other_formats_with_their_record(served, format, kind):
    image = submit(served.client, seed=5)["jobs"][0]["image"]
    answer = served.client.get(image["url"], params={"format": format, "quality": 80})
    assert answer.headers["content-type"] == f"image/{format}"
    assert Image.open(io.BytesIO(answer.content)).format == kind
    assert read_record(io.BytesIO(answer.content)).request.seed == 5


def test_thumbnails_are_small_and_kept(served):
    image = submit(served.client, width=768, height=384)["jobs"][0]["image"]
    answer = served.client.get(image["thumbnail_url"])
    assert Image.open(io.BytesIO(answer.content)).size == (384, 192)
    assert served.client.get(image["thumbnail_url"]).content == answer.content


def test_a_deleted_image_is_gone_and_its_job_stays(served):
    job = submit(served.client)["jobs"][0]
    assert served.client.delete(f"/api/v1/images/{job['image']['id']}").status_code == 204
    assert served.client.get(job["image"]["url"]).status_code == 404
    assert served.client.get(f"/api/v1/jobs/{job['id']}").json()["image"] is None


def test_lists_are_divided_into_pages(served):
    ids = [submit(served.client)["id"] for _ in range(3)]
    first = served.client.get("/api/v1/sets", params={"limit": 2}).json()
    assert [one["id"] for one in first["items"]] == ids[:0:-1]
    second = served.client.get("/api/v1/sets", params={"limit": 2, "before": first["next"]}).json()
    assert second["items"][0]["id"] == ids[0]
    jobs = served.client.get("/api/v1/jobs", params={"state": "done", "limit": 1}).json()["items"]
    assert jobs[0]["set_id"] == ids[-1]


def test_waiting_jobs_are_paused_moved_and_cancelled(tmp_path):
    with serving(tmp_path, working=False) as served:
        client = served.client
        posted = [client.post("/api/v1/jobs", json={"request": {"prompt": f"{n}"}}).json() for n in range(3)]
        first, second, third = (one["jobs"][0]["id"] for one in posted)
        assert client.get(f"/api/v1/jobs/{third}").json()["place"] == 2
        moved = client.patch(f"/api/v1/jobs/{third}", json={"before": first})
        assert (moved.status_code, moved.json()["place"]) == (200, 0)
        assert client.patch(f"/api/v1/jobs/{second}", json={"state": "paused"}).json()["state"] == "paused"
        assert client.patch(f"/api/v1/jobs/{second}", json={"state": "queued"}).json()["state"] == "queued"
        assert client.patch(f"/api/v1/jobs/{second}", json={}).status_code == 422
        assert client.post(f"/api/v1/jobs/{first}/cancel").json()["state"] == "cancelled"
        assert client.post(f"/api/v1/jobs/{first}/retry").json()["state"] == "queued"
        assert client.post(f"/api/v1/jobs/{third}/retry").status_code == 409
        assert client.post(f"/api/v1/sets/{posted[2]['id']}/cancel").json()["ended"]


def test_a_full_queue_says_when_to_try_again(tmp_path):
    with serving(tmp_path, working=False, max_queued_jobs=3) as served:
        body = {"request": {"prompt": "x", "num_images": 2}}
        assert served.client.post("/api/v1/jobs", json=body).status_code == 202
        answer = served.client.post("/api/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1


def test_what_was_accepted_is_found_again_when_the_queue_is_full(tmp_path):
    with serving(tmp_path, working=False, max_queued_jobs=1) as served:
        body, headers = {"request": {"prompt": "x"}}, {"idempotency-key": "a"}
        first = served.client.post("/api/v1/jobs", json=body, headers=headers)
        assert served.client.post("/api/v1/jobs", json=body).status_code == 429
        again = served.client.post("/api/v1/jobs", json=body, headers=headers)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


class Events:
    """The events of a stream, read in a thread."""

    def __init__(self, client, headers=None, **params):
        self.found, self.ids = [], []
        self._ready = threading.Event()
        self._arguments = client, headers or {}, params
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE)

    def _read(self):
        client, headers, params = self._arguments
        with client.stream("GET", "/api/v1/events", headers=headers, params=params) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                self._ready.set()
                if line.startswith("id: "):
                    self.ids.append(int(line[4:]))
                if line.startswith("data: "):
                    self.found.append(json.loads(line[6:]))
                    if self.found[-1].get("change") == "done":
                        return

    def all(self):
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self.found


def test_a_stream_has_each_change_and_can_be_resumed(served):
    stream = Events(served.client)
    done = submit(served.client)
    own = [one for one in stream.all() if one.get("set_id") == done["id"]]
    changes = [one["change"] for one in own if "change" in one]  # and not progress
    assert changes == ["queued", "started", "done"]
    missed = Events(served.client, headers={"last-event-id": str(stream.ids[1])})
    assert [one["change"] for one in missed.all() if one.get("change")] == ["started", "done"]
    assert missed.ids == stream.ids[2:]
    own = Events(served.client, after=0, set_id=done["id"])
    assert {one["set_id"] for one in own.all()} == {done["id"]}


@pytest.mark.parametrize("id", ["x", "-1", "9" * 19])
def test_a_stream_is_not_resumed_after_what_is_no_event(served, id):
    answer = served.client.get("/api/v1/events", headers={"last-event-id": id})
    assert answer.status_code in (400, 422)


def test_a_stream_of_an_unknown_set_does_not_begin(served):
    assert served.client.get("/api/v1/events", params={"set_id": "set_x"}).status_code == 404


def test_a_waiting_call_returns_the_set_as_it_is_when_the_time_is_up(tmp_path):
    with serving(tmp_path, working=False) as served:
        began = time.monotonic()
        answer = served.client.post(
            "/api/v1/jobs", json={"request": {"prompt": "x"}}, headers={"prefer": "wait=1"}
        )
        assert time.monotonic() - began > 0.9
        assert (answer.status_code, answer.json()["jobs"][0]["state"]) == (202, "queued")


def test_a_thumbnail_of_an_image_that_is_deleted_meanwhile_is_not_left_over(served, monkeypatch):
    image = submit(served.client)["jobs"][0]["image"]
    state = served.state
    key, put = state.ledger.get_image(image["id"]).key, state.store.put_thumbnail

    def delete_and_put(*args, **more):
        state.ledger.delete_image(image["id"])
        state.store.delete([key])
        return put(*args, **more)

    monkeypatch.setattr(state.store, "put_thumbnail", delete_and_put)
    assert served.client.get(image["thumbnail_url"]).status_code == 404
    assert state.store.get_thumbnail(key) is None


def test_an_account_cannot_take_all_event_streams(tmp_path):
    limits = {"max_event_streams": 3, "max_event_streams_per_account": 2}
    with serving(tmp_path, working=False, **limits) as served, ExitStack() as opened:
        alice, bob, carol = (served.key(name) for name in ("alice", "bob", "carol"))
        start = lambda headers: opened.enter_context(  # noqa: E731
            served.client.stream("GET", "/api/v1/events", headers=headers)
        )
        answers = [start(alice), start(alice)]
        assert [one.status_code for one in answers] == [200, 200]
        assert served.client.get("/api/v1/events", headers=alice).status_code == 429
        assert start(bob).status_code == 200
        assert served.client.get("/api/v1/events", headers=carol).status_code == 503
        answers[0].close()
        until(lambda: served.state.streams.open_of["alice"] <= 1)
        assert start(alice).status_code == 200
    assert (served.state.streams.open, dict(served.state.streams.open_of)) == (0, {})


def test_a_set_is_deleted_with_its_images_once_it_has_ended(tmp_path):
    with serving(tmp_path) as served:
        alice, bob = served.key("alice"), served.key("bob")
        done = submit(served.client, headers=alice, num_images=2)
        keys = [served.ledger.get_image(job["image"]["id"]).key for job in done["jobs"]]
        assert served.client.delete(f"/api/v1/sets/{done['id']}", headers=bob).status_code == 404
        assert served.client.delete(f"/api/v1/sets/{done['id']}", headers=alice).status_code == 204
        for path in (f"sets/{done['id']}", f"jobs/{done['jobs'][0]['id']}"):
            assert served.client.get(f"/api/v1/{path}", headers=alice).status_code == 404
        for key in keys:
            with pytest.raises(NotFound):
                served.state.store.get(key)
        assert served.ledger.usage()[0].images == 2
        entries = served.client.get("/api/v1/audit", headers=alice)
        assert entries.status_code == 403
        served.ledger.create_account("root", role="operator")
        query = {"subject": done["id"], "limit": 1000}
        entries = served.client.get("/api/v1/audit", params=query, headers=served.key("root")).json()
        assert [(one["actor"], one["action"]) for one in entries][-1] == ("alice", "set.deleted")


def test_a_set_that_has_not_ended_is_not_deleted(tmp_path):
    with serving(tmp_path, working=False) as served:
        made = served.client.post("/api/v1/jobs", json={"request": {"prompt": "x"}}).json()
        refused = served.client.delete(f"/api/v1/sets/{made['id']}")
        assert (refused.status_code, refused.json()["hint"]) == (409, "cancel them first")


def test_what_became_of_a_webhook_is_told(tmp_path):
    with serving(tmp_path, webhook_hosts=("127.0.0.1:9",)) as served:
        webhook = {"url": "http://127.0.0.1:9/x", "secret": "a secret of its own"}
        done = served.client.post(
            "/api/v1/jobs",
            json={"request": {"prompt": "x", "steps": 1}, "webhook": webhook},
            headers={"prefer": f"wait={DEADLINE}"},
        ).json()
        answer = served.client.get(f"/api/v1/sets/{done['id']}/deliveries")
        assert [(one["url"], one["delivered_at"]) for one in answer.json()] == [(webhook["url"], None)]
        assert "secret" not in answer.text
        assert served.client.get("/api/v1/sets/set_x/deliveries").status_code == 404
