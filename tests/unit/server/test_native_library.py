"""The native API's library: the index, marking many at once, albums, lineage, and the events of all that."""

import gzip
import json

import pytest

from limner.server import compressed
from limner.server.native.library import index_columns
from tests.serving import submit
from tests.unit.server.test_native_jobs import Events
from tests.waiting import DEADLINE

NOVEMBER, DECEMBER = 1_795_000_000.0, 1_797_000_000.0  # seconds, in 2026


def images(served, headers, count=1, **request):
    """Images of a set that is drawn for a caller, in the order in which they were finished."""
    done = submit(served.client, headers=headers, num_images=count, **request)
    return sorted((job["image"] for job in done["jobs"]), key=lambda image: image["number"])


def numbers(index):
    """The numbers of an index."""
    found, last = [], 0
    for one in index["numbers"]:
        last = last - one if found else one
        found.append(last)
    return found


def test_the_columns_of_an_index():
    rows = [
        (12, 64, 48, True, DECEMBER),
        (11, 64, 64, False, DECEMBER + 0.5),
        (7, 50, 100, True, NOVEMBER),
        (3, 64, 64, False, DECEMBER),  # another process's clock
    ]
    assert index_columns(rows) == {
        "total": 4,
        "numbers": [12, 1, 4, 4],
        "ratios": [133, 100, 50, 100],
        "months": [(0, "2026-12"), (2, "2026-11")],
        "kept": [0, 2],
    }
    assert index_columns([])["months"] == []


def test_the_index_is_what_the_list_has_and_knows_when_it_has_changed(served, monkeypatch):
    monkeypatch.setattr(compressed, "_SMALLEST", 1)  # that of three images is compressed as well
    key = served.key("irma")
    drawn = images(served, key, 3)
    client = served.client
    answer = client.get("/api/v1/images/index", headers=key)
    index = answer.json()
    assert index["total"] == 3
    assert numbers(index) == [one["number"] for one in drawn[::-1]]
    listed = client.get("/api/v1/images", headers=key).json()["items"]
    assert [one["number"] for one in listed] == numbers(index)
    assert answer.headers["etag"] == f'W/"{index["version"]}"'
    known = {**key, "if-none-match": answer.headers["etag"]}
    with monkeypatch.context() as unchanged:
        unchanged.setattr(compressed.gzip, "compress", None)  # is not called
        assert client.get("/api/v1/images/index", headers=known).status_code == 304
    client.patch("/api/v1/images", json={"ids": [drawn[1]["number"]], "kept": True}, headers=key)
    changed = client.get("/api/v1/images/index", headers=known)
    assert (changed.status_code, changed.json()["kept"]) == (200, [1])
    assert changed.json()["version"] != index["version"]
    plain = client.get("/api/v1/images/index", headers={**key, "accept-encoding": "identity"})
    assert plain.json() == changed.json()
    packed = client.build_request("GET", "/api/v1/images/index", headers={**key, "accept-encoding": "gzip"})
    raw = b"".join(client.send(packed, stream=True).iter_raw())
    assert json.loads(gzip.decompress(raw)) == plain.json()


def test_an_image_is_found_by_its_number_and_by_nobody_else(served):
    mine, other = served.key("jane"), served.key("karl")
    (image,) = images(served, mine, seed=77)
    number = image["number"]
    for path in ("", "/file", "/thumbnail", "/lineage"):
        assert served.client.get(f"/api/v1/images/{number}{path}", headers=mine).status_code == 200
        assert served.client.get(f"/api/v1/images/{number}{path}", headers=other).status_code == 404
    found = served.client.get(f"/api/v1/images/{number}", headers=mine).json()
    assert (found["id"], found["seed"], found["prompt"], found["index"]) == (image["id"], 77, "a red boat", 0)
    assert (found["parents"], found["albums"], found["relation"]) == ([], [], None)
    some = served.client.get("/api/v1/images", params={"number": [number, 10**12]}, headers=mine).json()
    assert [one["id"] for one in some["items"]] == [image["id"]]
    assert served.client.delete(f"/api/v1/images/{number}", headers=other).status_code == 404
    assert served.client.delete(f"/api/v1/images/{number}", headers=mine).status_code == 204
    assert served.client.get(f"/api/v1/images/{image['id']}", headers=mine).status_code == 404


def test_deleted_images_are_hidden_until_they_are_restored(served):
    key = served.key("lena")
    drawn = images(served, key, 3)
    client, ids = served.client, [one["id"] for one in drawn[1:]]
    body = {"ids": [*ids, "img_none"], "deleted": True}
    answer = client.patch("/api/v1/images", json=body, headers=key).json()
    assert answer == {"changed": 2, "unknown": ["img_none"]}
    listed = lambda **which: [  # noqa: E731
        one["id"] for one in client.get("/api/v1/images", params=which, headers=key).json()["items"]
    ]
    assert listed() == [drawn[0]["id"]]
    assert client.get("/api/v1/images/index", headers=key).json()["total"] == 1
    assert listed(deleted=True) == ids[::-1]
    assert client.get("/api/v1/images/index", params={"deleted": True}, headers=key).json()["total"] == 2
    assert client.get(f"/api/v1/images/{ids[0]}", headers=key).json()["deleted_at"] is not None
    client.patch("/api/v1/images", json={"ids": ids, "deleted": False}, headers=key)
    assert listed() == [*ids[::-1], drawn[0]["id"]]
    client.patch("/api/v1/images", json={"ids": ids[:1], "deleted": True}, headers=key)
    assert client.delete("/api/v1/trash", headers=served.key("lisa")).json() == {"deleted": 0}
    assert client.delete("/api/v1/trash", headers=key).json() == {"deleted": 1}
    assert client.get(f"/api/v1/images/{ids[0]}", headers=key).status_code == 404
    assert listed() == [ids[1], drawn[0]["id"]]


@pytest.mark.parametrize(
    "body",
    [
        {"ids": ["img_x"]},
        {"ids": [], "kept": True},
        {"ids": [1.5], "kept": True},
        {"ids": [True], "kept": True},
        {"ids": ["x"], "kept": 1},
        {"ids": ["x"] * 10_001, "kept": True},
    ],
)
def test_marks_that_make_no_sense_are_refused(served, body):
    answer = served.client.patch("/api/v1/images", json=body, headers=served.key("mia"))
    assert answer.status_code == 422, answer.text


def test_images_are_found_by_what_made_them(served):
    key = served.key("mona")
    first, second = images(served, key, seed=500) + images(served, key, seed=501)
    index = lambda **which: served.client.get("/api/v1/images/index", params=which, headers=key)  # noqa: E731
    assert numbers(index(seed=501).json()) == [second["number"]]
    assert index(model="picturebook").json()["total"] == 2
    assert index(model="another").json()["total"] == 0
    assert index(lora="ink").json()["total"] == 0
    for which in ({"seed": 501}, {"model": "picturebook", "seed": 501, "limit": 1}):
        listed = served.client.get("/api/v1/images", params=which, headers=key)
        assert [one["id"] for one in listed.json()["items"]] == [second["id"]]
    none = served.client.get("/api/v1/images", params={"lora": "ink"}, headers=key)
    assert none.json()["items"] == []
    assert numbers(index(until=second["created_at"], since=0).json()) == [first["number"]]
    assert index(album="alb_none").status_code == 404


def test_a_refined_image_knows_where_it_comes_from(served):
    key, client = served.key("nora"), served.client
    (base,) = images(served, key)
    body = {"request": {"prompt": "finer", "steps": 2}, "parents": [base["number"]], "relation": "refined"}
    made = client.post("/api/v1/jobs", json=body, headers={**key, "prefer": f"wait={DEADLINE}"}).json()
    assert (made["parents"], made["relation"]) == ([base["id"]], "refined")
    child = made["jobs"][0]["image"]["id"]
    lineage = client.get(f"/api/v1/images/{base['number']}/lineage", headers=key).json()
    assert lineage["parents"] == []
    assert [(one["id"], one["relation"], one["parents"]) for one in lineage["children"]] == [
        (child, "refined", [base["id"]])
    ]
    assert client.get(f"/api/v1/images/{child}", headers=key).json()["set_id"] == made["id"]
    for wrong in (
        {"parents": [base["id"]]},
        {"relation": "refined"},
        {"parents": ["img_x"], "relation": "edited"},
    ):
        answer = client.post("/api/v1/jobs", json={"request": {"prompt": "x"}, **wrong}, headers=key)
        assert (answer.status_code, "parents" in answer.json()["fields"]) == (422, True), answer.text
    relation = {"parents": [base["id"]], "relation": "child"}
    assert (
        client.post("/api/v1/jobs", json={"request": {"prompt": "x"}, **relation}, headers=key).status_code
        == 422
    )


def test_albums_hold_images_under_a_name(served):
    mine, other = served.key("olga"), served.key("paul")
    client, drawn = served.client, images(served, mine, 2)
    made = client.post("/api/v1/albums", json={"name": " boats "}, headers=mine)
    assert (made.status_code, made.json()["name"]) == (201, "boats")
    path = f"/api/v1/albums/{made.json()['id']}"
    assert client.post("/api/v1/albums", json={"name": "boats"}, headers=mine).status_code == 409
    assert client.post("/api/v1/albums", json={"name": "  "}, headers=mine).status_code == 422
    body = {"add": [drawn[0]["id"], drawn[1]["number"], "img_x"]}
    changed = client.post(f"{path}/images", json=body, headers=mine).json()
    assert (changed["count"], changed["cover"], changed["unknown"]) == (2, drawn[1]["number"], ["img_x"])
    client.post(f"{path}/images", json={"remove": [drawn[1]["number"]]}, headers=mine)
    inside = client.get("/api/v1/images", params={"album": made.json()["id"]}, headers=mine).json()["items"]
    assert [(one["id"], one["albums"]) for one in inside] == [(drawn[0]["id"], [made.json()["id"]])]
    assert client.patch(path, json={"name": "ships"}, headers=mine).json()["name"] == "ships"
    assert client.get("/api/v1/albums", headers=other).json() == []
    assert client.patch(path, json={"name": "x"}, headers=other).status_code == 404
    assert client.delete(path, headers=other).status_code == 404
    assert client.delete(path, headers=mine).status_code == 204
    assert client.get("/api/v1/albums", headers=mine).json() == []
    assert client.get(f"/api/v1/images/{drawn[0]['id']}", headers=mine).json()["albums"] == []


def test_other_tabs_are_told_of_changes_of_the_library(served):
    key, client = served.key("rosa"), served.client
    (image,) = images(served, key)
    last = served.ledger.last_event()
    client.patch("/api/v1/images", json={"ids": [image["id"]], "kept": True, "deleted": True}, headers=key)
    album = client.post("/api/v1/albums", json={"name": "boats"}, headers=key).json()
    submit(client, headers=key)  # its end ends the stream below
    found = [one for one in Events(client, headers=key, after=last).all() if "numbers" in one]
    own = {"account_id": "rosa", "numbers": [image["number"]]}
    expected = [{**own, "change": "kept", "kept": True}, {**own, "change": "deleted"}]
    expected.append({**own, "change": "albums", "album": album["id"], "numbers": []})
    assert [{name: one[name] for name in one if name != "at"} for one in found] == expected
