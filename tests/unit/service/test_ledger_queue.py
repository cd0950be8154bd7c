"""The queue in the ledger: fair order, deadlines, one's own order, and the reconciler."""

import random
import re
import sqlite3
import time

import pytest
from sqlalchemy import event, select, update

from limner.errors import Conflict, IdempotencyConflict, NotFound, QuotaExceeded
from limner.service.identity import LOCAL_ACCOUNT, Principal, Quotas
from limner.service.jobs import Completion, JobError, NewJob, Submission
from limner.service.ledger.ending import RETRY_SECONDS, WORKER_LOST
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.postgres import FLOWS, PASS, TAKE
from limner.service.ledger.schema import jobs
from tests import postgres

FAULT = JobError("internal_error", "it broke")


def drain(ledger, count, *, limit=1, **more):
    """Claims jobs: their accounts."""
    taken = []
    while len(taken) < count:
        taken += ledger.claim("w", lease_seconds=60, limit=limit, **more)
    return [claim.job.account_id for claim in taken]


def test_accounts_share_by_weight_and_predicted_seconds(ledger, anna, submit):
    heavy = Principal(ledger.create_account("heavy", weight=3.0))
    submit(anna, 20, seconds=1.0)
    submit(heavy, 20, seconds=1.0)
    one_by_one = drain(ledger, 8)
    assert (one_by_one.count("heavy"), one_by_one.count("anna")) == (6, 2)
    together = drain(ledger, 8, limit=4)
    assert (together.count("heavy"), together.count("anna")) == (6, 2)


def test_batch_jobs_give_way_and_still_move(ledger, anna, bert, submit):
    submit(anna, 20, lane="batch")
    submit(bert, 20)
    taken = drain(ledger, 10)
    assert taken[0] == "bert"
    assert taken.count("anna") == 2


def test_a_loaded_model_is_preferred_and_who_was_passed_over_is_remembered(ledger, anna, bert, submit):
    submit(anna, 1, model="cold")
    submit(bert, 40, model="warm")
    taken = drain(ledger, 25, warm=["warm"])
    assert taken == ["bert"] * 24 + ["anna"]


def test_only_jobs_of_the_workers_kinds_are_claimed(ledger, anna, submit):
    submit(anna, 1, kind="train")
    assert ledger.claim("w", lease_seconds=10) == []
    (claim,) = ledger.claim("w", lease_seconds=10, kinds=["generate", "train"])
    assert claim.job.kind == "train"


def test_jobs_of_an_account_that_is_locked_out_wait(ledger, anna, submit):
    submit(anna)
    ledger.update_account("anna", disabled=True)
    assert ledger.claim("w", lease_seconds=10) == []
    ledger.update_account("anna", disabled=False)
    assert len(ledger.claim("w", lease_seconds=10)) == 1


def test_places_are_those_in_which_jobs_are_claimed(ledger, anna, bert, submit):
    sets = [submit(anna, 3, seconds=2.0), submit(bert, 3, seconds=1.0), submit(anna, 2, seconds=1.0)]
    submit(bert, 5, lane="batch")
    places = {job.id: ledger.place(job.id) for one in sets for job in one.jobs}
    order = []
    while len(order) < len(places):
        order += [claim.job.id for claim in ledger.claim("w", lease_seconds=9) if claim.job.lane != "batch"]
    assert sorted(places, key=places.get) == order
    assert ledger.place(order[0]) == 0  # it runs


@pytest.mark.parametrize("seed", range(4))
def test_the_place_of_a_job_is_that_in_the_whole_order(ledger, anna, submit, seed):
    pick = random.Random(seed)
    callers = [anna, *(Principal(ledger.create_account(name, weight=pick.uniform(0.5, 4))) for name in "xy")]
    for _ in range(12):
        lane, seconds = pick.choice(["interactive", "batch"]), pick.uniform(0.1, 9)
        submit(pick.choice(callers), pick.randint(1, 4), lane=lane, seconds=seconds)
        if pick.random() < 0.3:
            ledger.claim("w", lease_seconds=60, limit=2)
    listed, _ = ledger.list_queue(None, states=["queued"])
    assert {one.job.lane for one in listed} == {"interactive", "batch"}
    places = {one.job.id: one.place for one in listed}
    assert {job_id: ledger.place(job_id) for job_id in places} == places


def test_a_waiting_job_of_a_locked_account_has_no_place(ledger, anna, bert, submit):
    job, other = submit(anna).jobs[0], submit(bert).jobs[0]
    ledger.update_account("anna", disabled=True)
    places = {one.job.id: one.place for one in ledger.list_queue(None)[0]}
    assert places == {job.id: None, other.id: 0}
    assert ledger.place(job.id) == 10_000


def test_load_says_what_waits_and_how_fast_it_goes(ledger, anna, submit, stored):
    assert ledger.load().work_per_second is None
    made = submit(anna, 3, seconds=4.0)
    submit(anna, 2, seconds=1.0, lane="batch")
    (claim,) = ledger.claim("w", lease_seconds=10)
    time.sleep(0.2)
    ledger.finish(claim.job.id, 1, Completion(stored(claim.job.id), 0.2))
    ledger._rated = (float("-inf"), None)  # it is measured once a second
    load = ledger.load()
    assert load.waiting == {"interactive": 2, "batch": 2}
    assert load.waiting_seconds == {"interactive": 8.0, "batch": 2.0}
    assert (load.running, load.all_waiting, load.all_waiting_seconds) == (0, 4, 10.0)
    assert 0.2 < load.oldest_seconds["interactive"] < 60
    took = ledger.get_job(made.jobs[0].id)
    assert load.work_per_second == pytest.approx(4.0 / (took.finished_at - took.started_at), rel=1e-3)


# -- deadlines, leases, clocks --


def pass_deadlines(ledger):
    """Make the deadlines of all jobs those of a minute earlier."""
    with ledger._db.write() as tx:
        tx.execute(update(jobs).values(deadline_at=jobs.c.deadline_at - 60))


def test_a_deadline_that_has_passed_ends_a_waiting_job(ledger, anna, submit):
    made = submit(anna, 2, deadline_seconds=60)
    (running,) = ledger.claim("w", lease_seconds=60)
    assert 0 < running.seconds_left <= 60
    pass_deadlines(ledger)
    assert ledger.claim("w", lease_seconds=10) == []
    assert ledger.reconcile().late == (made.jobs[1].id,)
    job = ledger.get_job(made.jobs[1].id)
    assert (job.state, job.error.code) == ("failed", "deadline_exceeded")
    assert ledger.get_job(running.job.id).state == "running"  # its worker keeps the time


def test_a_late_job_whose_worker_is_lost_is_not_tried_again(ledger, anna, submit):
    submit(anna, 1, deadline_seconds=60)
    (claim,) = ledger.claim("w", lease_seconds=0.05)
    pass_deadlines(ledger)
    time.sleep(0.1)
    assert ledger.reconcile().late == (claim.job.id,)
    assert ledger.get_job(claim.job.id).error.code == "deadline_exceeded"


def test_a_lost_worker_costs_an_attempt_and_three_end_the_job(ledger, anna, submit, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.ending.RETRY_SECONDS", (0.0,))
    made = submit(anna, 1, webhook={"url": "https://example.org"})
    job_id = made.jobs[0].id
    results = []
    for _ in range(3):
        assert len(ledger.claim("w", lease_seconds=0.01)) == 1
        time.sleep(0.03)
        results.append(ledger.reconcile())
    assert [result.requeued for result in results] == [(job_id,), (job_id,), ()]
    assert results[2].dead == (job_id,)
    job = ledger.get_job(job_id)
    assert (job.state, job.error) == ("dead", WORKER_LOST)
    assert [one.outcome for one in ledger.attempts(job_id)] == ["lost"] * 3
    assert len(ledger.due_deliveries()) == 1
    assert not ledger.reconcile()


def test_cancelling_a_job_whose_worker_is_lost_ends_it(ledger, anna, submit):
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=0.01)
    ledger.cancel(account_id="anna", job_ids=[claim.job.id])
    time.sleep(0.03)
    assert ledger.reconcile().cancelled == (claim.job.id,)
    assert ledger.get_job(claim.job.id).state == "cancelled"


def test_a_wait_from_before_the_clock_was_set_back_is_cut_to_its_length(ledger, anna, submit):
    made = submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    ledger.fail(claim.job.id, claim.job.fence, FAULT, retryable=True)
    its = jobs.c.id == made.jobs[0].id
    with ledger._db.write() as tx:
        tx.execute(update(jobs).where(its).values(not_before=jobs.c.not_before + 86400))
    before = ledger.now()
    ledger.reconcile()
    with ledger._db.read() as connection:
        not_before = connection.execute(select(jobs.c.not_before).where(its)).scalar_one()
    assert before <= not_before - RETRY_SECONDS[-1] <= ledger.now()


def test_a_lease_from_before_the_clock_was_set_back_is_cut_to_its_length(ledger, anna, submit):
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=0.05)
    with ledger._db.write() as tx:
        tx.execute(update(jobs).values(lease_until=jobs.c.lease_until + 3600))
    assert not ledger.reconcile()
    time.sleep(0.1)
    assert ledger.reconcile().requeued == (claim.job.id,)


def test_a_job_that_failed_waits_a_little_before_it_is_tried_again(ledger, anna, submit, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.ending.RETRY_SECONDS", (60.0,))
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=10)
    ledger.fail(claim.job.id, 1, FAULT, retryable=True)
    assert ledger.claim("w", lease_seconds=10) == []
    with ledger._db.write() as tx:
        tx.execute(update(jobs).values(not_before=jobs.c.not_before - 60))
    assert len(ledger.claim("w", lease_seconds=10)) == 1


# -- one's own order --


def test_paused_jobs_are_not_claimed_until_they_are_resumed(ledger, anna, submit):
    made = submit(anna, 3)
    first, second, third = (job.id for job in made.jobs)
    assert ledger.pause(account_id="anna", job_ids=[first, second]) == [first, second]
    assert ledger.pause(account_id="anna", set_id=made.id) == [third]
    assert ledger.claim("w", lease_seconds=10) == []
    assert ledger.resume(account_id="anna", job_ids=[second]) == [second]
    assert [claim.job.id for claim in ledger.claim("w", lease_seconds=10, limit=3)] == [second]
    assert ledger.cancel(account_id="anna", job_ids=[first]) == [first]
    assert ledger.resume(account_id="anna", set_id=made.id) == [third]
    changes = [event.change for event in ledger.events("anna", after=0)]
    assert changes.count("paused") == 3


def test_jobs_are_moved_among_ones_own(ledger, anna, bert, submit):
    ids = [job.id for job in submit(anna, 4).jobs]
    other = submit(bert).jobs[0].id
    ledger.move(ids[3], before=ids[0], account_id="anna")
    ledger.move(ids[0], before=None, account_id="anna")
    ledger.move(ids[2], before=ids[1])
    with pytest.raises(NotFound):
        ledger.move(ids[1], before=other)
    with pytest.raises(NotFound):
        ledger.move(ids[1], before=None, account_id="bert")
    with pytest.raises(Conflict):
        ledger.move(ids[1], before=ids[1])
    ledger.pause(account_id="bert", job_ids=[other])
    order = [claim.job.id for claim in ledger.claim("w", lease_seconds=10, limit=4)]
    assert order == [ids[3], ids[2], ids[1], ids[0]]
    with pytest.raises(Conflict):
        ledger.move(ids[3], before=None)


def test_positions_do_not_run_out_however_often_jobs_are_moved(ledger, anna, submit):
    ids = [job.id for job in submit(anna, 3).jobs]
    for _ in range(70):  # halving a gap of doubles 70 times would leave none
        ledger.move(ids[0], before=ids[2])
        ledger.move(ids[1], before=ids[2])
    order = [claim.job.id for claim in ledger.claim("w", lease_seconds=10, limit=3)]
    assert order == ids


def test_what_has_ended_badly_can_be_tried_again(ledger, anna, submit, stored):
    submit(anna, 1, deadline_seconds=60)
    (claim,) = ledger.claim("w", lease_seconds=10)
    job_id = claim.job.id
    with pytest.raises(Conflict):
        ledger.retry(account_id="anna", job_id=job_id)
    ledger.fail(job_id, 1, FAULT, retryable=False, device_seconds=1.0)
    again = ledger.retry(account_id="anna", job_id=job_id)
    assert (again.state, again.attempt, again.error, again.deadline_at) == ("queued", 0, None, None)
    with pytest.raises(NotFound):
        ledger.retry(account_id="bert", job_id=job_id)
    (claim,) = ledger.claim("w", lease_seconds=10)
    assert (claim.job.fence, claim.job.attempt) == (2, 1)
    ledger.finish(job_id, 2, Completion(stored(job_id, 2), 2.0))
    job = ledger.get_job(job_id)
    assert (job.state, job.device_seconds, len(ledger.attempts(job_id))) == ("done", 3.0, 2)
    with pytest.raises(Conflict):
        ledger.retry(account_id="anna", job_id=job_id)


def test_looking_for_work_reads_only_what_waits_or_runs(sqlite_url):
    """However much has been done before: each query goes by one of the small indexes."""
    ledger = Ledger.open(sqlite_url)
    statements = []

    @event.listens_for(ledger._db.engine, "before_cursor_execute")
    def _note(_connection, _cursor, statement, parameters, *_more):
        statements.append((statement, parameters))

    ledger._anything_waits()
    ledger.reconcile()
    ledger.load()
    with ledger._db.read() as connection:
        ledger._queues(connection, 0.0, 1, [], ["generate"])
    ledger.close()
    database = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    queries = [one for one in statements if "FROM jobs" in one[0]]
    assert len(queries) >= 6
    for statement, parameters in queries:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        assert any("INDEX ix_jobs_" in step for step in plan), (statement, plan)
        assert not any(step.startswith("SCAN jobs") and "INDEX" not in step for step in plan), plan


@pytest.mark.postgres
def test_claims_read_no_more_however_many_wait(postgres_url):
    """And though the server believes that the queue is empty, as it was when it looked."""
    ledger = Ledger.open(postgres_url)
    caller = Principal(ledger.get_account(LOCAL_ACCOUNT))
    submission = Submission(tuple(NewJob({}, "m", 1.0) for _ in range(300)), {})
    ledger.accept(caller, submission)
    postgres.execute(postgres_url, "UPDATE jobs SET state = 'done'", "VACUUM ANALYZE")
    ledger.accept(caller, submission)
    with ledger._db.driver() as cursor:
        [first, *_] = cursor.execute("SELECT min(seq) FROM jobs WHERE state = 'queued'").fetchone()
        for statement, values in (
            (FLOWS, {"wide": 8, "kinds": ["generate"], "count": 9}),
            (PASS, {"passed": [first]}),
            (TAKE, {"worker": "w", "lease": 60.0, "wanted": [first, first + 1], "count": 1}),
        ):
            text, literals = statement._compiled
            cursor.execute(f"EXPLAIN (ANALYZE, COSTS off, TIMING off) {text}", literals | values)
            plan = [row[0] for row in cursor]
            read = [int(number) for line in plan for number in re.findall(r"actual rows=(\d+)", line)]
            assert max(read) <= 9, plan
            assert not any("Rows Removed" in line or "Seq Scan on jobs" in line for line in plan), plan
    ledger.close()


def test_jobs_of_accounts_that_are_locked_out_are_no_load(ledger, anna, bert, submit):
    submit(anna, 5, seconds=2.0)
    submit(bert, 1, seconds=2.0)
    ledger.update_account("anna", disabled=True)
    load = ledger.load()
    assert (load.all_waiting, load.all_waiting_seconds) == (1, 2.0)
    ledger.update_account("anna", disabled=False)
    assert ledger.load().all_waiting == 6


# -- the queue in order --


def test_the_queue_is_what_runs_then_what_is_next_then_what_is_paused(ledger, anna, bert, submit):
    first = submit(anna, 2, seconds=2.0)
    batch = submit(anna, 1, seconds=2.0, lane="batch")
    submit(bert, 2, seconds=2.0)
    (running,) = ledger.claim("w", lease_seconds=10)
    last, paused = submit(anna, 2, seconds=3.0).jobs
    ledger.pause(account_id="anna", job_ids=[paused.id])
    queue, total = ledger.list_queue("anna")
    assert total == 5
    rest = next(job for job in first.jobs if job.id != running.job.id)
    assert queue[0].job.id == running.job.id
    assert queue[-1].job.id == paused.id
    assert {one.job.id for one in queue[1:-1]} == {rest.id, batch.jobs[0].id, last.id}
    waiting = [one for one in queue if one.job.state == "queued"]
    assert all(one.place == ledger.place(one.job.id) for one in waiting)
    starts = [one.starts_in for one in waiting]
    assert starts == sorted(starts)
    assert [one.starts_in for one in (queue[0], queue[-1])] == [None, None]
    claimed = []
    while claims := ledger.claim("w", lease_seconds=10):
        claimed += [claim.job.id for claim in claims if claim.job.account_id == "anna"]
    assert [one.job.id for one in waiting] == claimed


def test_the_queue_can_be_cut_and_has_only_the_states_that_are_asked_for(ledger, anna, bert, submit):
    made = submit(anna, 3)
    submit(bert)
    ledger.pause(account_id="anna", job_ids=[made.jobs[0].id])
    queue, total = ledger.list_queue("anna", states=("queued",), limit=1)
    assert ([one.job.id for one in queue], total) == ([made.jobs[1].id], 2)
    assert ledger.list_queue(None)[1] == 4


def test_what_is_ahead_takes_as_long_as_it_was_predicted(ledger, anna, submit):
    submit(anna, 3, seconds=4.0)
    assert [one.starts_in for one in ledger.list_queue("anna")[0]] == [0.0, 4.0, 8.0]


# -- sets that grow --


def jobs_of(count, **params):
    return [NewJob({"prompt": "boat", "seed": 100 + number, **params}, "m", 1.0) for number in range(count)]


def test_a_set_gets_further_jobs_behind_its_own(ledger, anna, bert, submit):
    made = submit(anna, 2, deadline_seconds=50.0, webhook={"url": "https://example.org"})
    other = submit(anna)
    extended = ledger.extend(anna, made.id, jobs_of(2), known=2)
    assert [job.index for job in extended.jobs.jobs] == [0, 1, 2, 3]
    assert ledger.get_set(made.id) == extended.jobs
    new = extended.jobs.jobs[2:]
    assert all(job.deadline_at - job.created_at == pytest.approx(50.0) for job in new)
    queue, _ = ledger.list_queue("anna")
    assert [one.job.id for one in queue] == [
        *(j.id for j in made.jobs),
        other.jobs[0].id,
        *(j.id for j in new),
    ]
    assert [event.change for event in ledger.events("anna", after=0)] == ["queued"] * 5
    with pytest.raises(NotFound):
        ledger.extend(bert, made.id, jobs_of(1), known=4)


def test_a_set_that_others_have_extended_is_looked_at_again(ledger, anna, submit):
    made = submit(anna, 2)
    assert ledger.extend(anna, made.id, jobs_of(1), known=1) is None
    assert ledger.extend(anna, made.id, jobs_of(1), known=2) is not None
    assert ledger.extend(anna, made.id, jobs_of(1), known=2) is None
    assert len(ledger.get_set(made.id).jobs) == 3


def test_a_set_is_extended_once_for_an_idempotency_key(ledger, anna, bert, submit):
    made, other, berts = submit(anna, 2), submit(anna, 1, idempotency_key="of-a-set"), submit(bert, 1)
    once = {"idempotency_key": "more", "digest": "one"}
    first = ledger.extend(anna, made.id, jobs_of(2), known=2, **once)
    again = ledger.extend(anna, made.id, jobs_of(2), known=2, **once)
    assert (first.jobs.replayed, again.jobs.replayed) == (False, True)
    assert [job.id for job in again.jobs.jobs] == [job.id for job in first.jobs.jobs]
    assert ledger.find_replayed("anna", "more", "one").id == made.id
    of_another_account = ledger.extend(bert, berts.id, jobs_of(1), known=1, **once)
    assert (len(of_another_account.jobs.jobs), of_another_account.jobs.replayed) == (2, False)
    for key, digest in (("more", "another"), ("of-a-set", "another")):
        with pytest.raises(IdempotencyConflict):
            ledger.extend(anna, other.id, jobs_of(1), known=1, idempotency_key=key, digest=digest)
    with pytest.raises(IdempotencyConflict):
        submit(anna, 1, idempotency_key="more", digest="another")
    exported = [one for kind, one in ledger.export_account("anna") if kind == "extension"]
    assert [one["idempotency_key"] for one in exported] == ["more"]


def test_an_extension_that_was_not_made_does_not_use_up_its_idempotency_key(ledger, anna, submit):
    made = submit(anna, 2)
    once = {"idempotency_key": "more", "digest": "one"}
    assert ledger.extend(anna, made.id, jobs_of(1), known=1, **once) is None
    limited = Principal(ledger.update_account("anna", quotas=Quotas(queued_jobs=2)))
    with pytest.raises(QuotaExceeded):
        ledger.extend(limited, made.id, jobs_of(1), known=2, **once)
    extended = ledger.extend(anna, made.id, jobs_of(1), known=2, **once)
    assert (len(extended.jobs.jobs), extended.jobs.replayed) == (3, False)


def test_jobs_are_replaced_and_those_that_have_ended_are_not(ledger, anna, submit, stored):
    made, other = submit(anna, 4), submit(anna)
    done, running = ledger.claim("w", lease_seconds=10, limit=2)
    ledger.finish(done.job.id, 1, Completion(stored(done.job.id), 1.0))
    waiting = [job.id for job in made.jobs[2:]]
    replaced = [done.job.id, running.job.id, waiting[0]]
    extended = ledger.extend(anna, made.id, jobs_of(3), known=4, instead_of=replaced)
    assert set(extended.cancelled) == {running.job.id, waiting[0]}
    new = extended.jobs.jobs[4:]
    assert [job.params["seed"] for job in new] == [100, 101]
    assert ledger.get_job(waiting[0]).state == "cancelled"
    assert ledger.get_job(running.job.id).cancel_requested
    queue, _ = ledger.list_queue("anna", states=("queued",))
    assert [one.job.id for one in queue] == [*(job.id for job in new), waiting[1], other.jobs[0].id]
    again = ledger.extend(anna, made.id, jobs_of(1), known=6, instead_of=[done.job.id])
    assert (again.cancelled, len(again.jobs.jobs)) == ((), 6)
    with pytest.raises(NotFound, match="has no job"):
        ledger.extend(anna, made.id, jobs_of(1), known=6, instead_of=[other.jobs[0].id])
    assert ledger.get_job(other.jobs[0].id).state == "queued"


def test_a_set_does_not_grow_without_bounds(ledger, anna, submit, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.submitting.MAX_SET_JOBS", 3)
    made = submit(anna, 2)
    with pytest.raises(Conflict, match="may have 3"):
        ledger.extend(anna, made.id, jobs_of(2), known=2)
    limited = Principal(ledger.update_account("anna", quotas=Quotas(queued_jobs=2)))
    with pytest.raises(QuotaExceeded):
        ledger.extend(limited, made.id, jobs_of(1), known=2)


def test_all_jobs_of_an_account_are_cancelled_at_once(ledger, anna, bert, submit):
    submit(anna, 3)
    (running,) = ledger.claim("w", lease_seconds=10)
    other = submit(bert)
    assert len(ledger.cancel(account_id="anna", all_of="anna")) == 3
    assert ledger.get_job(running.job.id).cancel_requested
    assert ledger.get_job(other.jobs[0].id).state == "queued"
    assert ledger.cancel(account_id="anna", all_of="anna") == []
