"""The audit log by the native API: checkpoints, proofs, and what operators look at."""

import json

import pytest

from limner.service.audit.notes import PublicKey, open_checkpoint
from limner.service.audit.proofs import check_document
from limner.service.audit.sequencer import AuditLog
from tests.serving import serving
from tests.waiting import DEADLINE

JOB = {"request": {"prompt": "a zebra at midnight", "steps": 2, "width": 64, "height": 64}}


@pytest.fixture
def api(tmp_path):
    """A service with two users and an operator; calls return an answer by the name of the caller."""
    with serving(tmp_path) as served:
        served.ledger.create_account("root", role="operator")
        keys = {name: served.key(name) for name in ("anna", "bert", "root")}

        def call(who, method, path, **more):
            return served.client.request(
                method, f"/api/v1/{path}", headers={**keys[who], **more.pop("headers", {})}, **more
            )

        call.served = served
        yield call


def drawn(api, who):
    answer = api(who, "POST", "jobs", json=JOB, headers={"prefer": f"wait={DEADLINE}"})
    assert answer.status_code == 200
    return answer.json()


def entries(api, **query):
    return api("root", "GET", "audit", params={"limit": 1000, **query}).json()


def test_an_image_is_proved_to_its_owner(api):
    mine, his = drawn(api, "anna"), drawn(api, "bert")
    job = mine["jobs"][0]
    document = api("anna", "GET", "audit/proof", params={"id": job["image"]["id"]})
    assert document.status_code == 200
    note = api("root", "GET", "audit/checkpoint")
    assert note.headers["content-type"].startswith("text/plain")
    key = PublicKey.parse(document.json()["key"])
    found = check_document(document.text, [key])
    assert (found.entry["action"], found.entry["subject"]) == ("job.done", job["id"])
    assert open_checkpoint(note.text, [key]).origin == found.checkpoint.origin
    for name in ("anna", "bert", his["jobs"][0]["id"], "zebra"):
        assert name not in document.text
    theirs = his["jobs"][0]
    for name, code in ((theirs["id"], 404), (theirs["image"]["id"], 404), ("1", 422), ("x" * 200, 422)):
        assert api("anna", "GET", "audit/proof", params={"id": name}).status_code == code
    assert api("anna", "GET", "audit/proof", params={"id": job["id"]}).json()["entry"] == found.entry
    accepted = api("root", "GET", "audit/proof", params={"id": mine["id"]}).json()["entry"]
    assert accepted["action"] == "set.accepted"
    assert accepted["details"]["prompts"].keys() == {"month", "hashed"}
    assert api("root", "GET", "audit/proof", params={"id": "nothing"}).status_code == 404


def test_the_log_continues_its_checkpoints(api):
    first = api("root", "GET", "audit/checkpoint").text
    size = int(first.split("\n")[1])
    drawn(api, "anna")
    document = api("root", "GET", "audit/consistency", params={"size": size})
    found = check_document(document.text)
    assert found.old.size == size < found.checkpoint.size
    missing = api("root", "GET", "audit/consistency", params={"size": size + 1})
    assert (missing.status_code, "keeps no checkpoint" in missing.text) == (404, True)
    for path in ("audit", "audit/checkpoint", f"audit/consistency?size={size}"):
        assert api("anna", "GET", path).status_code == 403


def test_entries_are_found_by_actor_and_action_before_and_after_they_are_leaves(api):
    made = drawn(api, "anna")
    before = entries(api, actor="anna", action="set.accepted")
    assert [(one["subject"], one["leaf"]) for one in before] == [(made["id"], None)]
    api("root", "GET", "audit/checkpoint")
    after = entries(api, actor="anna", action="set.accepted")
    assert [(one["id"], one["actor"]) for one in after] == [(before[0]["id"], "anna")]
    assert after[0]["leaf"] is not None
    assert "zebra" not in json.dumps(entries(api))


def test_what_an_operator_looks_at_of_others_is_recorded_once(api):
    made = drawn(api, "anna")
    job = made["jobs"][0]
    image = job["image"]["id"]
    for _ in range(2):
        for who in ("anna", "root"):
            for path in (
                *(f"images/{image}", f"images/{image}/file", f"images/{image}/thumbnail"),
                *(f"jobs/{job['id']}", f"sets/{made['id']}", "images", "jobs", "sets", "uploads"),
            ):
                assert api(who, "GET", path).status_code == 200
    for path in (
        "images?account=anna",
        "jobs?account=anna&order=queue",
        "sets?account=*",
        "uploads?account=anna",
    ):
        assert api("root", "GET", path).status_code == 200
    assert api("bert", "GET", f"images/{image}").status_code == 404
    seen = [(one["actor"], one["action"], one["subject"], one["details"]) for one in entries(api)]
    viewed = [one for one in seen if one[1].endswith(".viewed")]
    assert viewed == [
        ("root", "image.viewed", image, {"account": "anna"}),
        ("root", "job.viewed", job["id"], {"account": "anna"}),
        ("root", "set.viewed", made["id"], {"account": "anna"}),
        ("root", "list.viewed", "images", {"account": "anna"}),
        ("root", "list.viewed", "jobs", {"account": "anna"}),
        ("root", "list.viewed", "sets", {"account": "*"}),
        ("root", "list.viewed", "uploads", {"account": "anna"}),
    ]


def test_an_operator_who_changes_what_is_anothers_is_named(api):
    image = drawn(api, "anna")["jobs"][0]["image"]["id"]
    assert api("root", "DELETE", f"images/{image}").status_code == 204
    assert [one["actor"] for one in entries(api, action="image.deleted")] == ["root"]
    assert api("root", "GET", "accounts/anna/export").status_code == 200
    assert [one["actor"] for one in entries(api, action="account.exported")] == ["root"]


@pytest.mark.parametrize("keep", ["encrypted", "plain", "none"])
def test_prompts_are_kept_as_the_service_is_set(tmp_path, keep):
    with serving(tmp_path, prompt_log=keep) as served:
        request = {**JOB["request"], "negative_prompt": "a boat"}
        made = served.client.post("/api/v1/jobs", json={"request": request}).json()
        log = AuditLog(served.ledger, served.state.settings)
        read = log.prompts_of(made["id"])
    if keep == "none":
        assert read is None
    else:
        assert read == {"prompt": "a zebra at midnight", "negative_prompt": "a boat"}
