"""The moderation queue by the API: every action of the policy, every decision about it, and its reversal."""

import io
import json
import zipfile
from collections import namedtuple
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from limner.safety.images import blurred
from tests.checked_images import ASK, holds_image, pattern, pixels
from tests.serving import submit
from tests.waiting import DEADLINE, until

PROMPTS = {"flag": "a doubtful boat", "blur": "a hidden boat", "block": "a forbidden boat"}
DELIVERY = {"flag": "clear", "blur": "blurred", "block": "withheld"}

Drawn = namedtuple("Drawn", "job review")


@pytest.fixture
def api(checked):
    """A service with two users and an operator; calls return an answer by the name of the caller."""
    with checked() as served:
        served.ledger.create_account("root", role="operator")
        keys = {name: served.key(name) for name in ("anna", "bert", "root")}

        def call(who, method, path, **more):
            return served.client.request(method, f"/api/v1/{path}", headers=keys[who], **more)

        call.served, call.keys = served, keys
        yield call


def drawn(api, action):
    """A job of anna's whose image the policy flags, blurs or blocks, and its review."""
    [job] = submit(api.served.client, headers=api.keys["anna"], prompt=PROMPTS[action], **ASK)["jobs"]
    [review] = [one for one in reviews(api) if one["job_id"] == job["id"]]
    return Drawn(job, review)


def reviews(api, **query):
    return api("root", "GET", "moderation", params=query).json()["items"]


def decide(api, review, decision, note="seen"):
    return api("root", "POST", f"moderation/{review['id']}/decide", json={"decision": decision, "note": note})


def reverse(api, review, note="a mistake"):
    return api("root", "POST", f"moderation/{review['id']}/reverse", json={"note": note})


def notices(api, who="anna", **query):
    return api(who, "GET", "notices", params=query).json()["items"]


def audited(api, action):
    return [row for row in api.served.ledger.audit_log() if row.action == action]


def shown(api, image_id, prompt):
    """How an account gets its image: "clear", "blurred" or "withheld", by every route."""
    answers = {path: api("anna", "GET", f"images/{image_id}{path}") for path in ("", "/file", "/thumbnail")}
    codes = {answer.status_code for answer in answers.values()}
    listed = [one["id"] for one in api("anna", "GET", "images").json()["items"]]
    if codes == {404}:
        assert image_id not in listed
        assert api("anna", "GET", f"images/{image_id}/steps").status_code == 404
        assert "is withheld" in answers["/file"].json()["detail"]
        return "withheld"
    assert codes == {200}
    assert image_id in listed
    original = pattern(prompt).astype(int)
    covered = np.asarray(blurred(Image.fromarray(pattern(prompt)))).astype(int)
    found = set()
    for path in ("/file", "/thumbnail"):
        seen = pixels(answers[path].content).astype(int)
        nearer = np.abs(seen - original).mean() < np.abs(seen - covered).mean()
        found.add("clear" if nearer else "blurred")
    [delivery] = found
    return delivery


@pytest.mark.parametrize("action", PROMPTS)
def test_what_the_policy_says_is_under_review_and_can_be_upheld(api, action):
    job, review = drawn(api, action)
    assert (review["action"], review["stage"], review["rule"] is not None) == (action, "image", True)
    assert (review["state"], review["delivery"], review["decisions"]) == ("open", DELIVERY[action], [])
    assert (review["account_id"], review["reason"]) == ("anna", "a known pattern")
    assert job["state"] == ("failed" if action == "block" else "done")
    told = notices(api)
    assert [(one["cause"], one["delivery"]) for one in told] == (
        [] if action == "flag" else [("policy", DELIVERY[action])]
    )
    upheld = decide(api, review, "uphold", "as it says").json()
    assert (upheld["state"], upheld["delivery"]) == ("upheld", DELIVERY[action])
    assert shown(api, review["image_id"], PROMPTS[action]) == DELIVERY[action]
    told = notices(api)[: 1 if action != "flag" else 0]
    assert [(one["cause"], one["reason"], one["note"]) for one in told] == (
        [] if action == "flag" else [("uphold", "a known pattern", "as it says")]
    )
    assert decide(api, review, "block").status_code == 409
    opened = reverse(api, review).json()
    assert (opened["state"], opened["delivery"]) == ("open", DELIVERY[action])
    assert [one["decision"] for one in opened["decisions"]] == ["uphold", "reverse"]
    assert reverse(api, review).status_code == 409


@pytest.mark.parametrize("action", ["blur", "block"])
def test_a_released_image_is_delivered_in_clear_and_withdrawn_by_a_reversal(api, action):
    job, review = drawn(api, action)
    prompt, image_id = PROMPTS[action], review["image_id"]
    if action == "blur":
        assert shown(api, image_id, prompt) == "blurred"
        assert "no-cache" in api("anna", "GET", f"images/{image_id}/file").headers["cache-control"]
    released = decide(api, review, "release", "harmless").json()
    assert (released["state"], released["delivery"]) == ("released", "clear")
    assert shown(api, image_id, prompt) == "clear"
    after = api("anna", "GET", f"jobs/{job['id']}").json()
    assert (after["state"], after["error"], after["image"]["id"]) == ("done", None, image_id)
    assert not after["image"]["blurred"]
    assert after["image"]["watermark"] is not None
    marked = api("anna", "GET", f"images/{image_id}/file").content
    found = api("anna", "POST", "detect", content=marked).json()
    assert [one["id"] for one in found["images"]] == [image_id]
    assert notices(api)[0]["cause"] == "release"
    assert reverse(api, review).json()["delivery"] == DELIVERY[action]
    assert shown(api, image_id, prompt) == DELIVERY[action]
    again = api("anna", "GET", f"jobs/{job['id']}").json()
    assert (again["state"], again["image"] is None) == ("done", action == "block")
    assert decide(api, review, "release").json()["delivery"] == "clear"
    assert shown(api, image_id, prompt) == "clear"
    [row] = api.served.ledger.usage(by=["account"])
    assert row.images == 1


@pytest.mark.parametrize("action", ["flag", "blur"])
def test_an_image_that_is_taken_down_comes_back_as_it_was_by_a_reversal(api, action):
    _, review = drawn(api, action)
    image_id, prompt = review["image_id"], PROMPTS[action]
    album = api("anna", "POST", "albums", json={"name": "boats"}).json()["id"]
    api("anna", "POST", f"albums/{album}/images", json={"add": [image_id]})
    api("anna", "PATCH", "images", json={"ids": [image_id], "kept": True})
    before = api("anna", "GET", f"images/{image_id}").json()
    taken = decide(api, review, "block", "no").json()
    assert (taken["state"], taken["delivery"]) == ("blocked", "withheld")
    assert shown(api, image_id, prompt) == "withheld"
    assert api("bert", "GET", f"images/{image_id}").json()["detail"] == f"no image {image_id}"
    assert notices(api)[0] | {"id": "", "at": 0} == {
        "id": "",
        "at": 0,
        "account_id": "anna",
        "job_id": review["job_id"],
        "image_id": image_id,
        "cause": "block",
        "delivery": "withheld",
        "reason": "a known pattern",
        "note": "no",
        "read_at": None,
    }
    assert reverse(api, review).json()["delivery"] == DELIVERY[action]
    assert shown(api, image_id, prompt) == DELIVERY[action]
    after = api("anna", "GET", f"images/{image_id}").json()
    assert after == before
    assert notices(api)[0]["cause"] == "reverse"


def test_what_changes_nothing_is_refused(api):
    for action, decision in (("flag", "release"), ("block", "block")):
        _, review = drawn(api, action)
        answer = decide(api, review, decision)
        assert (answer.status_code, "uphold" in answer.json()["hint"]) == (409, True)
        assert decide(api, review, "uphold", " ").status_code == 422


def test_an_image_whose_job_was_tried_again_is_not_released(api):
    job, review = drawn(api, "block")
    assert api("anna", "POST", f"jobs/{job['id']}/retry").status_code == 200
    until(lambda: len(reviews(api, action="block")) == 2)
    assert decide(api, review, "release").status_code == 409
    latest = reviews(api, action="block")[0]
    assert decide(api, latest, "release").json()["delivery"] == "clear"


def test_images_are_blurred_until_they_are_opened_and_each_opening_is_in_the_audit_log(api):
    for action, prompt in PROMPTS.items():
        _, review = drawn(api, action)
        covered = api("root", "GET", f"moderation/{review['id']}/image")
        assert covered.headers["cache-control"] == "no-store"
        assert np.array_equal(pixels(covered.content), blurred(Image.fromarray(pattern(prompt))))
        assert prompt.encode() not in covered.content
        for count in (0, 1, 2):
            rows = [row for row in audited(api, "image.opened") if row.subject == review["image_id"]]
            said = ("root", {"review": review["id"], "account": "anna"})
            assert [(row.actor, row.details) for row in rows] == [said] * count
            opened = api("root", "POST", f"moderation/{review['id']}/open")
            assert np.array_equal(pixels(opened.content), pattern(prompt))


def test_decisions_are_in_the_audit_log_with_who_made_them(api):
    _, review = drawn(api, "block")
    decide(api, review, "release", "harmless: a boat")
    delivered = api("anna", "GET", f"images/{review['image_id']}/file").content
    reverse(api, review, "it is anna's")
    api("root", "GET", f"moderation/{review['id']}")
    rows = [row for row in api.served.ledger.audit_log() if row.subject == review["id"]]
    its = {"image": review["image_id"], "job": review["job_id"], "account": "anna"}
    assert [(row.actor, row.action, row.details) for row in rows] == [
        ("root", "review.released", {**its, "delivered_sha256": sha256(delivered).hexdigest()}),
        ("root", "review.reversed", its),
        ("root", "review.viewed", {"account": "anna"}),
    ]
    [blocked] = audited(api, "image.blocked")
    assert (blocked.subject, blocked.details["review"]) == (review["job_id"], review["id"])
    assert "boat" not in json.dumps([row.details for row in api.served.ledger.audit_log()])
    history = api("root", "GET", f"moderation/{review['id']}").json()["decisions"]
    assert [(one["decision"], one["actor"], one["note"]) for one in history] == [
        ("release", "root", "harmless: a boat"),
        ("reverse", "root", "it is anna's"),
    ]


def test_the_queue_is_listed_by_state_action_and_account_in_pages(api):
    made = [drawn(api, action).review for action in ("flag", "blur", "block")]
    ids = [one["id"] for one in made]
    assert [one["id"] for one in reviews(api)] == ids[::-1]
    assert [one["id"] for one in reviews(api, action="blur")] == [ids[1]]
    assert reviews(api, account="bert") == []
    decide(api, made[0], "uphold")
    assert [one["id"] for one in reviews(api, state="open", account="anna")] == ids[:0:-1]
    page = api("root", "GET", "moderation", params={"limit": 2}).json()
    rest = api("root", "GET", "moderation", params={"limit": 2, "before": page["next"]}).json()
    assert [one["id"] for one in (*page["items"], *rest["items"])] == ids[::-1]
    assert rest["next"] is None
    for query in ({"before": "rev_none"}, {"state": "lost"}):
        assert api("root", "GET", "moderation", params=query).status_code in (404, 422)
    text = api.served.client.get("/metrics", headers=api.keys["root"]).text
    assert 'limner_reviews_open{action="block"} 1.0' in text
    assert 'limner_reviews_open{action="flag"} 0.0' in text
    assert 'limner_review_decisions_total{action="flag",decision="uphold"} 1.0' in text


def test_only_operators_moderate_and_accounts_read_their_own_notices_alone(api):
    _, review = drawn(api, "block")
    for who in ("anna", "bert"):
        answers = [
            api(who, "GET", "moderation"),
            api(who, "GET", f"moderation/{review['id']}"),
            api(who, "GET", f"moderation/{review['id']}/image"),
            api(who, "POST", f"moderation/{review['id']}/open"),
            api(who, "POST", f"moderation/{review['id']}/decide", json={"decision": "release", "note": "x"}),
            api(who, "POST", f"moderation/{review['id']}/reverse", json={"note": "x"}),
        ]
        assert {answer.status_code for answer in answers} == {403}
        assert not any(holds_image(answer.content) for answer in answers)
    for path in ("", "/image"):
        assert api("root", "GET", f"moderation/rev_none{path}").status_code == 404
    [notice] = notices(api)
    assert notices(api, "bert") == []
    assert api("bert", "GET", "notices", params={"account": "anna"}).status_code == 404
    assert api("bert", "POST", f"notices/{notice['id']}/read").status_code == 404
    assert notices(api, unread=True) == [notice]
    read = api("anna", "POST", f"notices/{notice['id']}/read").json()
    assert read["read_at"] is not None
    assert api("anna", "POST", f"notices/{notice['id']}/read").json() == read
    assert (notices(api, unread=True), notices(api)) == ([], [read])
    assert notices(api, before=notice["id"]) == []


def test_notices_come_by_the_event_stream(api):
    with api.served.client.stream(
        "GET", "/api/v1/events", params={"after": 0}, headers=api.keys["anna"]
    ) as stream:
        lines = stream.iter_lines()
        _, review = drawn(api, "block")
        decide(api, review, "release")
        found = []
        for line in lines:
            if line == "event: notice":
                found.append(json.loads(next(lines).removeprefix("data: ")))
            if len(found) == 2:
                break
    assert [(one["cause"], one["delivery"]) for one in found] == [
        ("policy", "withheld"),
        ("release", "clear"),
    ]
    assert [one["notice"] for one in found] == [one["id"] for one in notices(api)][::-1]
    assert found[1]["image_id"] == review["image_id"]


def test_a_released_image_is_told_as_the_result_of_its_set(api):
    made = submit(api.served.client, headers=api.keys["anna"], prompt=PROMPTS["block"], **ASK)
    [review] = reviews(api)
    decide(api, review, "release")
    answer = api("anna", "GET", f"sets/{made['id']}", params={"wait": DEADLINE}).json()
    assert [job["state"] for job in answer["jobs"]] == ["done"]
    assert api("anna", "POST", f"jobs/{review['job_id']}/retry").status_code == 409
    proof = api("anna", "GET", "audit/proof", params={"id": review["image_id"]}).json()
    assert proof["entry"]["action"] == "job.done"
    assert proof["entry"]["details"]["image"] == review["image_id"]


def test_an_image_that_is_taken_down_leaves_by_no_route(api):
    body = {"prompt": PROMPTS["flag"], "seed": 1, "steps": 4, "size": "128x128", "response_format": "url"}
    client, key = api.served.client, api.keys["anna"]
    url = client.post("/v1/images/generations", json=body, headers=key).json()["data"][0]["url"]
    assert client.get(url).status_code == 200
    [review] = reviews(api)
    image, number = review["image_id"], api("anna", "GET", "images").json()["items"][0]["number"]
    assert decide(api, review, "block").status_code == 200
    assert client.get(url).status_code == 404
    for name in (image, number):
        for path in ("", "/file", "/thumbnail", "/steps", "/steps/sprite", "/lineage"):
            assert api("anna", "GET", f"images/{name}{path}").status_code == 404
        assert api("root", "GET", f"images/{name}/file?exact=true").status_code == 404
    lists = (
        "images",
        "images/index",
        "images/search",
        f"jobs/{review['job_id']}",
        f"sets/{review['set_id']}",
    )
    found = [api("anna", "GET", path) for path in lists]
    assert {answer.status_code for answer in found} == {200}
    assert (found[0].json()["items"], found[1].json()["total"]) == ([], 0)
    assert not any(image in answer.text for answer in found)
    archive = zipfile.ZipFile(io.BytesIO(api("anna", "GET", "accounts/anna/export").content))
    assert not any(holds_image(archive.read(name)) for name in archive.namelist())


def test_an_image_that_is_taken_down_while_its_thumbnail_is_made_is_kept_for_its_review(api, monkeypatch):
    _, review = drawn(api, "flag")
    put = api.served.state.store.put_thumbnail

    def take_down_and_put(*args, **more):
        decide(api, review, "block")
        return put(*args, **more)

    monkeypatch.setattr(api.served.state.store, "put_thumbnail", take_down_and_put)
    assert api("anna", "GET", f"images/{review['image_id']}/thumbnail").status_code == 404
    monkeypatch.undo()
    assert reverse(api, review).json()["delivery"] == "clear"
    assert shown(api, review["image_id"], PROMPTS["flag"]) == "clear"
