"""Reviews in the ledger, and what retention, erasure and export do with withheld images."""

import io
import json
import time
import zipfile
from random import Random

import pytest

from limner.errors import Conflict, NotFound
from limner.safety.watermark import DEFAULT_KEY
from limner.service.jobs import Completion, JobError, NewReview, StoredImage
from limner.service.ledger.quotas import stored_bytes
from limner.service.ledger.writing import ACTING
from limner.service.metrics import Metrics
from limner.service.release import ImageRelease
from limner.service.retention import Deleted, Retention
from limner.service.reviews import DeliveredFile
from limner.service.storage import ImageStore
from limner.settings.serve import ServeSettings

REFUSED = JobError("image_refused", "the safety policy blocks the image")
FILE = DeliveredFile("ff" * 32, 77)


def decision(action):
    return {"action": action, "rule": "own", "score": 0.9, "version": "own-1", "reason": "a known pattern"}


@pytest.fixture
def store(tmp_path):
    return ImageStore.in_folder(tmp_path / "pictures")


@pytest.fixture
def retention(ledger, store, tmp_path):
    def made(**settings):
        return Retention(ledger, store, ServeSettings(data=tmp_path, **settings), Metrics())

    return made


@pytest.fixture
def review(ledger, store, submit):
    """Makes a review of an image that the policy flags, blurs or blocks."""

    def make(principal, action, *, stage="image", kept=True, **more):
        [job] = submit(principal, **more).jobs
        [claim] = ledger.claim("w", lease_seconds=60)
        data = f"master of {job.id}".encode()
        key = store.put_master(job.account_id, job.id, claim.job.fence, data)
        image = StoredImage(
            *(f"img_{job.id}", job.id, job.account_id, key, "00", "11", 64, 32, len(data), {"x": 1}),
            safety=decision(action),
            blurred=action == "blur",
        )
        fence = claim.job.fence
        if action == "block":
            found = NewReview(stage, decision(action), image if kept else None)
            assert ledger.fail(job.id, fence, REFUSED, retryable=False, review=found) == "failed"
        else:
            done = Completion(image, 2.0, review=NewReview(stage, decision(action)))
            assert ledger.finish(job.id, fence, done)
        [made] = [one for one in ledger.list_reviews() if one.job_id == job.id]
        return made

    return make


def test_a_review_is_written_with_the_end_of_its_job_alone(ledger, submit, stored, anna):
    [job] = submit(anna).jobs
    [claim] = ledger.claim("w", lease_seconds=60)
    late = claim.job.fence + 1
    image, found = stored(job.id), NewReview("image", decision("flag"))
    assert not ledger.finish(job.id, late, Completion(image, 1.0, review=found))
    assert ledger.fail(job.id, late, REFUSED, retryable=False, review=found) is None
    assert (ledger.list_reviews(), ledger.open_reviews(), ledger.list_notices(None)) == ([], {}, [])
    assert [row.action for row in ledger.audit_log() if row.action.startswith("image.")] == []
    assert ledger.finish(job.id, claim.job.fence, Completion(image, 1.0, review=found))
    assert ledger.open_reviews() == {"flag": 1}


def test_a_prompt_is_reviewed_without_an_entry_about_the_image(ledger, review, anna):
    found = review(anna, "flag", stage="prompt")
    assert (found.stage, found.delivery, found.image_id) == ("prompt", "clear", f"img_{found.job_id}")
    assert not [row for row in ledger.audit_log() if row.action == "image.flagged"]


def test_two_decisions_at_once_are_one_and_a_conflict(ledger, review, anna):
    found = review(anna, "flag")
    assert ledger.decide(found.id, "block", note="no").state == "blocked"
    with pytest.raises(Conflict, match="is blocked"):
        ledger.decide(found.id, "uphold", note="yes")
    with pytest.raises(NotFound):
        ledger.decide("rev_none", "uphold", note="yes")


def test_a_decision_names_who_made_it_until_that_account_is_erased(ledger, review, anna, bert):
    found = review(anna, "block")
    acting = ACTING.set("bert")
    ledger.decide(found.id, "uphold", note="no")
    ACTING.reset(acting)
    assert [one.actor for one in ledger.get_review(found.id).decisions] == ["bert"]
    ledger.erase_account("bert")
    assert [one.actor for one in ledger.get_review(found.id).decisions] == ["erased"]


def test_an_image_that_is_gone_can_be_upheld_or_blocked_but_not_released(ledger, review, anna):
    unkept, deleted = review(anna, "block", kept=False), review(anna, "blur")
    ledger.delete_image(deleted.image_id)
    assert (unkept.image_id, unkept.delivery) == (None, None)
    for one in (unkept, deleted):
        for act in (
            lambda one=one: ledger.reviewed_image(one.id),
            lambda one=one: ledger.decide(one.id, "release", note="x", file=FILE),
        ):
            with pytest.raises(NotFound, match="not stored any more"):
                act()
    assert ledger.decide(unkept.id, "uphold", note="x").state == "upheld"
    assert ledger.decide(deleted.id, "block", note="x").delivery is None
    with pytest.raises(NotFound, match="not stored any more"):
        ledger.reverse(deleted.id, note="x")


def test_a_withheld_image_is_deleted_after_its_days_and_its_review_stays(
    ledger, store, retention, review, anna
):
    blocked, taken, flagged = (review(anna, action) for action in ("block", "flag", "flag"))
    ledger.decide(taken.id, "block", note="no")
    time.sleep(0.01)
    assert retention().run() == Deleted()
    assert len(list(store.masters())) == 3
    assert retention(keep_withheld_days=0.0).run() == Deleted(images=2)
    assert [one.job_id for one in store.masters()] == [flagged.job_id]
    gone = [ledger.get_review(one.id) for one in (blocked, taken)]
    assert [(one.state, one.delivery) for one in gone] == [("open", None), ("blocked", None)]
    [row] = [row for row in ledger.audit_log() if row.action == "images.expired"]
    assert (row.subject, row.details["images"]) == ("anna", [blocked.image_id, taken.image_id])


def test_withheld_images_are_no_leftovers(ledger, store, retention, review, anna, monkeypatch):
    monkeypatch.setattr("limner.service.retention._GRACE", -10.0)
    review(anna, "block")
    store.put_master("anna", "job_late", 1, b"of a stale attempt")
    assert retention().collect() == 1
    assert len(list(store.masters())) == 1


def test_a_withheld_image_goes_with_its_set_and_with_its_account(
    ledger, store, retention, review, anna, bert
):
    mine, other, his = review(anna, "block"), review(anna, "blur"), review(bert, "block")
    store.delete(ledger.delete_set(mine.set_id).keys)
    assert {one.job_id for one in store.masters()} == {other.job_id, his.job_id}
    with pytest.raises(NotFound):
        ledger.get_review(mine.id)
    ledger.decide(other.id, "block", note="no")
    retention().erase("anna")
    assert [one.job_id for one in store.masters()] == [his.job_id]
    assert [one.id for one in ledger.list_reviews()] == [his.id]
    assert [one.account_id for one in ledger.list_notices(None)] == ["bert"]


def test_an_export_has_reviews_and_notices_without_what_is_withheld(ledger, store, retention, review, anna):
    found = review(anna, "block")
    ledger.decide(found.id, "uphold", note="no")
    out = io.BytesIO()
    retention().export("anna", out, ImageRelease(store, ledger, DEFAULT_KEY))
    archive = zipfile.ZipFile(out)
    assert not [name for name in archive.namelist() if name.startswith("images/")]

    def rows(name):
        return [json.loads(line) for line in archive.read(f"{name}.jsonl").splitlines()]

    [row] = rows("reviews")
    assert (row["id"], row["state"], {"withheld", "withheld_key"} & row.keys()) == (found.id, "upheld", set())
    [row] = rows("review_decisions")
    assert (row["decision"], row["note"], "actor" in row) == ("uphold", "no", False)
    assert [row["cause"] for row in rows("notices")] == ["uphold", "policy"][::-1]


def test_withheld_bytes_count_for_no_quota(ledger, review, anna):
    found = review(anna, "flag")

    def kept():
        with ledger._db.read() as connection:
            return stored_bytes(connection, "anna")

    assert kept() > 0
    ledger.decide(found.id, "block", note="no")
    assert kept() == 0


def test_a_set_whose_image_is_released_is_reported_again(ledger, review, anna):
    found = review(anna, "block", webhook={"url": "https://hooks.example.org"})
    [failed] = ledger.due_deliveries()
    ledger.record_delivery(failed.id, status=200)
    ledger.decide(found.id, "release", note="harmless", file=FILE)
    [done] = ledger.due_deliveries()
    assert (done.set_id, done.id != failed.id) == (failed.set_id, True)
    assert ledger.get_set(found.set_id).jobs[0].state == "done"
    last = ledger.events("anna", after=0)[-2:]
    assert {one.change for one in last} == {"done", "notice"}


@pytest.mark.parametrize("action", ["flag", "blur", "block"])
def test_after_any_decisions_an_image_is_either_delivered_as_they_say_or_withheld(
    ledger, review, anna, action
):
    found, random = review(anna, action), Random(action)
    by_policy = {"flag": "clear", "blur": "blurred", "block": "withheld"}[action]
    state, delivery, history = "open", by_policy, 0
    for _ in range(40):
        decision = random.choice(("uphold", "release", "block", "reverse"))
        allowed = (decision == "reverse") == (state != "open")
        allowed &= (action, decision) not in {("flag", "release"), ("block", "block")}
        try:
            if decision == "reverse":
                ledger.reverse(found.id, note="x", file=FILE)
            else:
                ledger.decide(found.id, decision, note="x", file=FILE)
        except Conflict:
            assert not allowed
            continue
        assert allowed
        history += 1
        delivery = {"release": "clear", "block": "withheld"}.get(decision, by_policy)
        state = {"uphold": "upheld", "release": "released", "block": "blocked"}.get(decision, "open")
        now = ledger.get_review(found.id)
        assert (now.state, now.delivery, len(now.decisions)) == (state, delivery, history)
        images = ledger.list_images("anna")
        assert [one.blurred for one in images] == ([] if delivery == "withheld" else [delivery == "blurred"])
        assert ledger.reviewed_image(found.id).id == found.image_id
    assert history > 10
    [row] = ledger.usage(by=["account"])
    assert row.images == 1
