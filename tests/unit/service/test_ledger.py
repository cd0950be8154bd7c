"""Jobs in the ledger: accepting, claiming, ending, and what a stale worker cannot do."""

import time
from dataclasses import replace

import pytest

from limner.errors import IdempotencyConflict, InvalidRequest, NotFound
from limner.service.jobs import Completion, JobError, NewJob, Submission
from limner.service.ledger.ledger import Ledger

FAULT = JobError("internal_error", "the device fell over", fields=("width",))


def test_an_accepted_set_is_there_for_whoever_opens_the_ledger(ledger, ledger_url, anna, submit):
    made = submit(anna, 3, external_id="task-1", warnings=("the prompt is cut",), client="sdapi")
    other = Ledger.open(ledger_url)
    found = other.get_set(made.id, account_id="anna")
    assert found == made
    assert [job.index for job in found.jobs] == [0, 1, 2]
    assert {job.state for job in found.jobs} == {"queued"}
    assert other.find_external("anna", "task-1") == made
    assert other.get_job(made.jobs[1].id) == made.jobs[1]
    other.close()


def test_a_claim_is_one_workers_alone(ledger, anna, submit):
    made, before = submit(anna, 2), ledger.now()
    first = ledger.claim("w1", lease_seconds=10)
    second = ledger.claim("w2", lease_seconds=10, limit=5)
    assert [claim.job.id for claim in (*first, *second)] == [job.id for job in made.jobs]
    assert ledger.claim("w3", lease_seconds=10) == []
    job = first[0].job
    assert (job.state, job.owner, job.fence, job.attempt) == ("running", "w1", 1, 1)
    assert before <= job.lease_until - 10 <= ledger.now()


def test_a_finished_job_has_its_image_usage_and_event(ledger, anna, submit, stored):
    made = submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    image = stored(claim.job.id)
    assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, 2.0, price=0.5))
    job = ledger.get_job(made.jobs[0].id)
    assert (job.state, job.device_seconds, job.cost) == ("done", 2.0, 1.0)
    assert job.image.account_id == "anna"
    assert (job.image.width, job.image.height, job.image.record) == (64, 32, {"prompt": "boat"})
    found = ledger.get_image(image.id, account_id="anna")
    assert found == replace(job.image, parents=(), albums=())
    assert (found.set_id, found.index, found.prompt) == (made.id, 0, "boat 0")
    assert ledger.get_set(made.id).ended
    assert [event.change for event in ledger.events("anna", after=0)] == ["queued", "started", "done"]
    assert ledger.events("anna", after=0)[-1].data["image"] == image.id
    assert [(one.number, one.outcome) for one in ledger.attempts(job.id)] == [(1, "done")]


def test_a_stale_fence_changes_nothing(ledger, anna, submit, stored):
    submit(anna)
    (old,) = ledger.claim("w1", lease_seconds=0.05)
    time.sleep(0.1)
    assert ledger.reconcile().requeued == (old.job.id,)
    time.sleep(0.55)  # before its second attempt
    (new,) = ledger.claim("w2", lease_seconds=10)
    assert new.job.fence > old.job.fence
    before = ledger.get_job(old.job.id), ledger.last_event()
    assert not ledger.finish(old.job.id, old.job.fence, Completion(stored(old.job.id, 1), 9.0))
    assert ledger.fail(old.job.id, old.job.fence, FAULT, retryable=True) is None
    assert not ledger.cancelled(old.job.id, old.job.fence)
    assert not ledger.release(old.job.id, old.job.fence)
    assert ledger.renew("w1", {old.job.id: old.job.fence}, 10).lost == {old.job.id}
    assert (ledger.get_job(old.job.id), ledger.last_event()) == before
    assert ledger.finish(new.job.id, new.job.fence, Completion(stored(new.job.id, 2), 1.0))
    assert ledger.get_job(old.job.id).device_seconds == 1.0


def test_what_a_lost_attempt_used_is_counted_once_when_its_worker_tells(ledger, anna, submit):
    submit(anna)
    (old,) = ledger.claim("w1", lease_seconds=0.05)
    report = lambda: ledger.count_lost(old.job.id, old.job.fence, device_seconds=2.0, price=0.5)  # noqa: E731
    assert not report(), "it is not lost yet"
    time.sleep(0.1)
    assert ledger.reconcile().requeued
    assert [report(), report()] == [True, False]
    (used,) = ledger.usage()
    assert (used.images, used.jobs, used.device_seconds, used.cost) == (0, 1, 2.0, 1.0)
    assert ledger.get_job(old.job.id).state == "queued"


def test_renewing_extends_the_lease_and_tells_of_cancellation(ledger, anna, submit):
    submit(anna, 2)
    claims = ledger.claim("w", lease_seconds=1, limit=2)
    fences = {claim.job.id: claim.job.fence for claim in claims}
    one, two = fences
    assert ledger.cancel(account_id="anna", job_ids=[one]) == [one]
    renewal = ledger.renew("w", fences, 60)
    assert (renewal.lost, renewal.cancelled) == (frozenset(), {one})
    assert ledger.get_job(two).lease_until > ledger.now() + 30
    assert ledger.renew("other", fences, 60).lost == {one, two}
    assert ledger.cancelled(one, fences[one], device_seconds=0.5)
    assert ledger.get_job(one).state == "cancelled"


def test_a_failure_that_cannot_pass_is_final_at_once(ledger, anna, submit):
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    assert ledger.fail(claim.job.id, 1, FAULT, retryable=False, device_seconds=1.0, price=2.0) == "failed"
    job = ledger.get_job(claim.job.id)
    assert (job.state, job.error, job.cost) == ("failed", FAULT, 2.0)


def test_a_job_is_dead_after_three_attempts(ledger, anna, submit, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.ending.RETRY_SECONDS", (0.0,))
    submit(anna)
    states = []
    while claims := ledger.claim("w", lease_seconds=10):
        (claim,) = claims
        states.append(ledger.fail(claim.job.id, claim.job.fence, FAULT, retryable=True, device_seconds=1.0))
    assert states == ["queued", "queued", "dead"]
    job = ledger.get_job(claim.job.id)
    assert (job.state, job.attempt, job.device_seconds) == ("dead", 3, 3.0)
    assert [one.error for one in ledger.attempts(job.id)] == [FAULT] * 3


def test_a_released_job_waits_again_and_has_lost_no_attempt(ledger, anna, submit):
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    assert ledger.release(claim.job.id, claim.job.fence)
    (again,) = ledger.claim("w", lease_seconds=10)
    assert (again.job.id, again.job.attempt, again.job.fence) == (claim.job.id, 1, 2)


def test_what_a_released_job_has_used_counts_once(ledger, anna, submit, stored):
    submit(anna, 2)
    first, second = ledger.claim("w", lease_seconds=10, limit=2)
    assert ledger.release(first.job.id, 1, device_seconds=2.0, price=0.5)
    assert not ledger.release(first.job.id, 1, device_seconds=2.0, price=0.5)
    ledger.cancel(account_id="anna", job_ids=[second.job.id])
    assert ledger.release(second.job.id, 1, device_seconds=1.0, price=0.5)
    (again,) = ledger.claim("w", lease_seconds=10)
    assert ledger.finish(again.job.id, again.job.fence, Completion(stored(again.job.id, 2), 3.0, 0.5))
    (used,) = ledger.usage()
    assert (used.images, used.jobs, used.device_seconds, used.cost) == (1, 3, 6.0, 3.0)
    assert [ledger.get_job(one.job.id).device_seconds for one in (first, second)] == [5.0, 1.0]


def test_waiting_jobs_are_cancelled_at_once_and_running_ones_asked(ledger, anna, submit):
    made = submit(anna, 3)
    (running,) = ledger.claim("w", lease_seconds=10)
    affected = ledger.cancel(account_id="anna", set_id=made.id)
    assert sorted(affected) == sorted(job.id for job in made.jobs)
    assert [job.state for job in ledger.get_set(made.id).jobs] == ["running", "cancelled", "cancelled"]
    assert ledger.get_job(running.job.id).cancel_requested
    assert ledger.cancel(account_id="anna", set_id=made.id) == []
    assert ledger.fail(running.job.id, 1, FAULT, retryable=True) == "cancelled"


def test_objects_of_another_account_do_not_exist(ledger, anna, bert, submit, stored):
    made = submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    ledger.finish(claim.job.id, 1, Completion(stored(claim.job.id), 1.0))
    job, image = claim.job.id, ledger.get_job(claim.job.id).image.id
    for ask in (
        lambda: ledger.get_set(made.id, account_id="bert"),
        lambda: ledger.get_job(job, account_id="bert"),
        lambda: ledger.get_image(image, account_id="bert"),
        lambda: ledger.attempts(job, account_id="bert"),
        lambda: ledger.cancel(account_id="bert", job_ids=[job]),
        lambda: ledger.cancel(account_id="bert", set_id=made.id),
        lambda: ledger.list_jobs("bert", before=job),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert "anna" not in str(caught.value)
    assert ledger.list_jobs("bert") == ledger.list_sets("bert") == ledger.list_images("bert") == []
    assert ledger.events("bert", after=0) == []


def test_an_idempotency_key_means_one_set(ledger, anna, bert, submit):
    made = submit(anna, 2, idempotency_key="k", digest="d1")
    again = submit(anna, 2, idempotency_key="k", digest="d1")
    assert again.replayed
    assert again.jobs == made.jobs
    with pytest.raises(IdempotencyConflict):
        submit(anna, 2, idempotency_key="k", digest="d2")
    assert not submit(bert, 1, idempotency_key="k", digest="d2").replayed
    assert len(ledger.list_jobs("anna")) == 2


def test_lists_are_newest_first_and_go_on_page_by_page(ledger, anna, bert, submit):
    sets = [submit(anna).id for _ in range(5)]
    submit(bert)
    assert [one.id for one in ledger.list_sets("anna", limit=2)] == sets[:2:-1]
    assert [one.id for one in ledger.list_sets("anna", limit=2, before=sets[3])] == sets[2:0:-1]
    newest = ledger.list_jobs("anna", limit=3)
    rest = ledger.list_jobs("anna", before=newest[-1].id)
    assert [job.set_id for job in (*newest, *rest)] == sets[::-1]
    assert len(ledger.list_jobs(None)) == 6
    ledger.claim("w", lease_seconds=10)
    assert [job.set_id for job in ledger.list_jobs("anna", states=["running"])] == sets[:1]


def test_a_set_needs_jobs(ledger, anna):
    with pytest.raises(InvalidRequest):
        ledger.accept(anna, Submission((), {}))


@pytest.mark.parametrize(
    "text", ["a\0b", "a\ud800b", "'; DROP TABLE jobs; --", "ü𝕏\n\t", "x" * 100_000, "é" * 250]
)
def test_whatever_a_caller_sends_is_kept_or_refused(ledger, anna, submit, text):
    """Text that a database cannot hold is the caller's error, in a query too, and never the service's."""

    def kept(act):
        try:
            act()
        except (InvalidRequest, NotFound):
            return False
        return True

    if kept(lambda: submit(anna, 1, external_id=text, idempotency_key=text, digest=text)):
        assert submit(anna, 1, idempotency_key=text, digest=text).replayed
        assert ledger.find_external("anna", text).external_id == text
    kept(lambda: ledger.put_draft("anna", text, {"prompt": text}))
    made = ledger.accept(anna, Submission((NewJob({"prompt": text}, "m", 1.0),), {"prompt": text}))
    assert ledger.get_set(made.id).request == {"prompt": text}
    for query in (ledger.get_set, ledger.get_job, ledger.get_image):
        assert not kept(lambda query=query: query(text))
    assert ledger.authenticate(text) is None
    assert not kept(lambda: ledger.list_jobs("anna", before=text))


def test_numbers_beyond_the_database_are_refused(ledger):
    for act in (
        lambda: ledger.events(None, after=10**30),
        lambda: ledger.list_jobs(None, limit=10**30),
    ):
        with pytest.raises(InvalidRequest):
            act()


def test_an_account_that_was_erased_meanwhile_is_not_found(ledger, anna, submit):
    ledger.erase_account("anna")
    with pytest.raises(NotFound):
        submit(anna)
