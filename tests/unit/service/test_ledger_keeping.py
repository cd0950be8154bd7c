"""What the ledger keeps beside jobs, what it counts, and how it forgets."""

import threading
import time

import pytest

from limner.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from limner.service.identity import LOCAL_ACCOUNT, Principal, Quotas
from limner.service.jobs import Completion, JobError
from limner.service.ledger.retention import ERASED, Freed
from limner.service.ledger.schema import deliveries, events, images, jobs, metadata, sets, uploads, workers
from tests.waiting import DEADLINE


@pytest.fixture
def draw(ledger, submit, stored):
    """Submits jobs and finishes them: the set."""

    def drawn(principal, count=1, *, seconds=2.0, price=0.5, size=100, **more):
        made = submit(principal, count, **more)
        for claim in ledger.claim("w", lease_seconds=10, limit=count):
            image = stored(claim.job.id, claim.job.fence, size=size)
            assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, seconds, price))
        return ledger.get_set(made.id)

    return drawn


def limited(ledger, **quotas):
    return Principal(ledger.update_account("anna", quotas=Quotas(**quotas)))


# -- usage and quotas --


def test_usage_is_summed_by_what_is_asked(ledger, anna, bert, draw, submit):
    draw(anna, 3, model="a")
    draw(bert, 1, model="b")
    submit(anna, 1, model="a")
    (claim,) = ledger.claim("w", lease_seconds=10)
    fault = JobError("internal_error", "it broke")
    ledger.fail(claim.job.id, claim.job.fence, fault, retryable=True, device_seconds=1.0, price=0.5)
    by = {(row.account, row.model): row for row in ledger.usage(["account", "model"])}
    assert by.keys() == {("anna", "a"), ("bert", "b")}
    row = by["anna", "a"]
    assert (row.images, row.jobs, row.device_seconds, row.cost) == (3, 4, 7.0, 3.5)
    (day,) = ledger.usage(["day"])
    assert day.day == time.strftime("%Y-%m-%d", time.gmtime(ledger.now()))
    assert (day.images, day.cost) == (4, 4.5)
    (mine,) = ledger.usage(account_id="bert")
    assert (mine.account, mine.images) == (None, 1)
    assert ledger.usage(since=ledger.now() + 60) == []
    with pytest.raises(InvalidRequest):
        ledger.usage(["colour"])


def test_what_was_spent_is_what_quotas_count(ledger, anna, draw, submit):
    draw(anna, 2, size=300)
    submit(anna, 2)
    ledger.claim("w", lease_seconds=10)
    spent = ledger.spent("anna")
    assert (spent.images_per_day, spent.device_seconds_per_day, spent.cost_per_month) == (2, 4.0, 2.0)
    assert (spent.stored_bytes, spent.queued_jobs, spent.running_jobs) == (600, 1, 1)


@pytest.mark.parametrize(
    ("quotas", "fits"),
    [
        ({"images_per_day": 3}, 1),  # 2 done
        ({"device_seconds_per_day": 5.5}, 1),  # 4 used, a second each
        ({"queued_jobs": 2}, 2),
    ],
)
def test_a_quota_is_filled_and_not_passed(ledger, anna, draw, submit, quotas, fits):
    draw(anna, 2)
    caller = limited(ledger, **quotas)
    with pytest.raises(QuotaExceeded) as caught:
        submit(caller, fits + 1)
    assert caught.value.hint
    submit(caller, fits)
    with pytest.raises(QuotaExceeded) as caught:
        submit(caller, 1)
    assert caught.value.retry_after >= 1
    assert len(ledger.list_jobs("anna")) == 2 + fits


def test_reached_costs_and_bytes_stop_further_jobs(ledger, anna, draw, submit):
    draw(anna, 2)
    for quotas in ({"cost_per_month": 2.0}, {"stored_bytes": 200}):
        with pytest.raises(QuotaExceeded):
            submit(limited(ledger, **quotas))
    submit(limited(ledger, cost_per_month=2.5, stored_bytes=201))


def test_a_request_beyond_the_whole_quota_never_fits(ledger, anna, submit):
    with pytest.raises(QuotaExceeded) as caught:
        submit(limited(ledger, images_per_day=3), 4)
    assert caught.value.retry_after is None


def test_a_job_is_queued_again_within_the_quotas_alone(ledger, anna, draw, submit):
    draw(anna, 1)
    caller = limited(ledger, images_per_day=2)
    [first] = submit(caller, 1).jobs
    ledger.cancel(account_id="anna", job_ids=[first.id])
    [second] = submit(caller, 1).jobs
    with pytest.raises(QuotaExceeded):
        ledger.retry(account_id="anna", job_id=first.id)
    assert ledger.get_job(first.id).state == "cancelled"
    ledger.cancel(account_id="anna", job_ids=[second.id])
    assert ledger.retry(account_id="anna", job_id=first.id).state == "queued"
    assert ledger.retry(account_id=None, job_id=second.id).state == "queued", "an operator may go beyond"


def test_room_comes_when_the_oldest_use_leaves_the_window(ledger, anna, draw, submit):
    draw(anna, 2)
    with pytest.raises(QuotaExceeded) as caught:
        submit(limited(ledger, images_per_day=2))
    assert caught.value.retry_after == pytest.approx(86400, abs=30)


# -- uploads and drafts --


def test_an_upload_is_deleted_when_it_is_nobodys(ledger, anna, bert):
    first = ledger.add_upload("anna", "ab" * 32, 1000, "image/png")
    again = ledger.add_upload("anna", "ab" * 32, 1000, "image/png")
    assert again.created_at == first.created_at
    ledger.add_upload("bert", "ab" * 32, 1000, "image/png")
    assert ledger.has_upload("anna", "ab" * 32)
    assert not ledger.has_upload("anna", "cd" * 32)
    assert [one.sha256 for one in ledger.list_uploads("anna")] == ["ab" * 32]
    assert ledger.delete_upload("anna", "ab" * 32) is False
    with pytest.raises(NotFound):
        ledger.get_upload("anna", "ab" * 32)
    assert ledger.delete_upload("bert", "ab" * 32) is True
    with pytest.raises(NotFound):
        ledger.delete_upload("bert", "ab" * 32)


def test_uploads_count_against_the_quota_of_bytes(ledger, anna):
    limited(ledger, stored_bytes=1500)
    ledger.add_upload("anna", "ab" * 32, 1000, "image/png")
    with pytest.raises(QuotaExceeded):
        ledger.add_upload("anna", "cd" * 32, 501, "image/png")
    ledger.add_upload("anna", "ab" * 32, 1000, "image/png")  # the same file takes no more room
    ledger.add_upload("anna", "ef" * 32, 500, "image/png")


def test_an_account_has_a_limited_number_of_drafts(ledger, anna, bert, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.keeping.MAX_DRAFTS", 2)
    for name in ("one", "two", "one"):
        ledger.put_draft("anna", name, {})
    with pytest.raises(QuotaExceeded, match="2 drafts"):
        ledger.put_draft("anna", "three", {})
    ledger.put_draft("bert", "three", {})
    ledger.delete_draft("anna", "one")
    ledger.put_draft("anna", "three", {})


def test_a_draft_is_not_overwritten_from_an_old_version(ledger, anna, bert):
    first = ledger.put_draft("anna", "boats", {"prompt": "a boat"}, version=0)
    second = ledger.put_draft("anna", "boats", {"prompt": "two boats"}, version=first.version)
    with pytest.raises(Conflict):
        ledger.put_draft("anna", "boats", {}, version=first.version)
    assert ledger.get_draft("anna", "boats") == second
    assert ledger.put_draft("anna", "boats", {}).version == 3
    with pytest.raises(NotFound):
        ledger.get_draft("bert", "boats")
    assert [draft.name for draft in ledger.list_drafts("anna")] == ["boats"]
    ledger.delete_draft("anna", "boats")
    assert ledger.list_drafts("anna") == []


# -- webhooks and workers --


def test_the_end_of_a_set_is_delivered_once_until_it_is_recorded(ledger, anna, submit, stored, set_back):
    hook = {"url": "https://example.org/hook", "secret": "s"}
    made = submit(anna, 2, webhook=hook)
    first, second = ledger.claim("w", lease_seconds=10, limit=2)
    ledger.finish(first.job.id, 1, Completion(stored(first.job.id), 1.0))
    assert ledger.due_deliveries() == []
    ledger.fail(second.job.id, 1, JobError("invalid_request", "no"), retryable=False)
    (due,) = ledger.due_deliveries(hold_seconds=60.0)
    assert (due.set_id, due.webhook, due.attempts) == (made.id, hook, 1)
    assert ledger.due_deliveries() == []
    set_back(deliveries.c.due_at, 60)  # whoever held it has died
    (again,) = ledger.due_deliveries()
    assert (again.id, again.attempts) == (due.id, 2)
    ledger.record_delivery(due.id, status=503, error="503 Service Unavailable", retry_in=0.0)
    (third,) = ledger.due_deliveries()
    ledger.record_delivery(third.id, status=200)
    (ended,) = ledger.list_deliveries(made.id)
    assert (ended.due_at, ended.status, ended.error, ended.attempts) == (None, 200, None, 3)
    assert ended.delivered_at is not None


def test_a_webhook_can_be_given_up(ledger, anna, submit):
    made = submit(anna, webhook={"url": "https://example.org"})
    ledger.cancel(account_id="anna", set_id=made.id)
    (due,) = ledger.due_deliveries()
    ledger.record_delivery(due.id, error="no route to host")
    assert ledger.list_deliveries(made.id)[0].due_at is None
    assert [row.action for row in ledger.audit_log(subject=made.id)][-1] == "webhook.given_up"


def test_workers_are_listed_while_they_report(ledger, set_back):
    ledger.heartbeat("w1", device="cpu", warm=["a"], details={"pid": 1})
    ledger.heartbeat("w2", device="cuda:0")
    ledger.heartbeat("w1", device="cpu", warm=["a", "b"], details={"pid": 1})
    one, two = ledger.list_workers()
    assert (one.id, one.warm, one.details, two.device) == ("w1", ["a", "b"], {"pid": 1}, "cuda:0")
    ledger.forget_workers(workers_gone=["w2"])
    assert [worker.id for worker in ledger.list_workers()] == ["w1"]
    set_back(workers.c.seen_at, 60)
    assert ledger.list_workers(seen_within=60) == []


# -- forgetting --


def test_a_deleted_image_leaves_its_job(ledger, anna, bert, draw):
    job = draw(anna).jobs[0]
    with pytest.raises(NotFound):
        ledger.delete_image(job.image.id, account_id="bert")
    assert ledger.delete_image(job.image.id, account_id="anna") == job.image.key
    assert ledger.get_job(job.id).image is None
    assert ledger.get_job(job.id).state == "done"
    assert ledger.spent("anna").stored_bytes == 0


def test_old_images_expire_and_known_keys_are_the_others(ledger, anna, bert, draw, set_back):
    old = draw(anna, 2)
    keys = {job.image.key for job in old.jobs}
    set_back(images.c.created_at, 600)
    new = draw(bert)
    assert ledger.expire_images(older_than=600, account_id="bert") == []
    assert set(ledger.expire_images(older_than=600)) == keys
    fresh = new.jobs[0].image.key
    assert ledger.known_keys([*keys, fresh, "stale/1.png"]) == {fresh}


def test_unused_uploads_expire_unless_a_job_is_open(ledger, anna, bert, submit, set_back):
    for name in ("anna", "bert"):
        ledger.add_upload(name, "ab" * 32, 10, "image/png")
        ledger.add_upload(name, name[0] * 64, 10, "image/png")
    made = submit(anna)
    set_back(uploads.c.used_at, 600)
    assert ledger.expire_uploads(unused_for=600) == ["b" * 64]  # the other one is anna's too
    ledger.cancel(account_id="anna", set_id=made.id)
    used = submit(anna, uploads=("a" * 64,))  # which keeps it for as long again
    ledger.cancel(account_id="anna", set_id=used.id)
    assert ledger.expire_uploads(unused_for=600) == ["ab" * 32]
    assert ledger.has_upload("anna", "a" * 64)


def test_a_request_for_an_upload_that_is_gone_is_not_accepted(ledger, anna, bert, submit):
    ledger.add_upload("bert", "b" * 64, 10, "image/png")
    with pytest.raises(InvalidRequest, match="deleted"):
        submit(anna, uploads=("b" * 64,))
    assert ledger.list_sets("anna") == []
    assert len(submit(bert, uploads=("b" * 64,)).jobs) == 1


def test_content_is_deleted_only_while_no_account_has_it(ledger, anna):
    deleted = []
    ledger.add_upload("anna", "a" * 64, 10, "image/png")
    assert ledger.delete_unowned(["a" * 64, "b" * 64], deleted.append) == ["b" * 64] == deleted
    late = threading.Thread(target=ledger.add_upload, args=("anna", "c" * 64, 10, "image/png"))

    def delete(digest):
        late.start()
        time.sleep(0.1)
        assert not ledger.has_upload("anna", digest)  # it waits until the content is gone

    ledger.delete_unowned(["c" * 64], delete)
    late.join(DEADLINE)
    assert ledger.has_upload("anna", "c" * 64)


def test_old_sets_are_forgotten_with_all_that_is_theirs(ledger, anna, draw, submit, set_back):
    done = draw(anna, 2, webhook={"url": "https://example.org"})
    waiting = submit(anna)
    set_back(sets.c.created_at, 600)
    set_back(jobs.c.finished_at, 600)
    freed = ledger.forget_sets(older_than=600)
    assert set(freed.keys) == {job.image.key for job in done.jobs}
    assert [one.id for one in ledger.list_sets("anna")] == [waiting.id]
    *of_jobs, of_library = ledger.events("anna", after=0)
    assert {event.set_id for event in of_jobs} == {waiting.id}
    assert set(of_library.data["numbers"]) == {job.image.number for job in done.jobs}
    assert ledger.usage()[0].images == 2
    with pytest.raises(Conflict):
        ledger.delete_set(waiting.id, account_id="anna")
    ledger.cancel(account_id="anna", set_id=waiting.id)
    assert ledger.delete_set(waiting.id, account_id="anna") == Freed()


def test_forgotten_events_do_not_give_their_numbers_to_new_ones(ledger, anna, submit, set_back):
    submit(anna, 3)
    last = ledger.last_event()
    set_back(events.c.at, 600)
    assert ledger.forget_events(older_than=600) == 2
    submit(anna)
    assert [event.seq for event in ledger.events(None, after=last)] == [last + 1]


def test_an_export_has_everything_but_secrets(ledger, anna, bert, draw):
    key, secret = ledger.create_key("anna", name="phone")
    draw(anna, 2, webhook={"url": "https://example.org", "secret": "hush"})
    draw(bert)
    ledger.add_upload("anna", "ab" * 32, 10, "image/png")
    ledger.put_draft("anna", "boats", {"prompt": "x"})
    exported = list(ledger.export_account("anna"))
    counts = {kind: sum(1 for one, _ in exported if one == kind) for kind, _ in exported}
    expected = {"account": 1, "key": 1, "set": 1, "job": 2, "attempt": 2, "image": 2, "upload": 1, "draft": 1}
    expected |= {"webhook": 1, "usage": 2, "event": 6}
    assert {kind: counts[kind] for kind in expected} == expected
    text = repr(exported)
    assert key.id in text
    assert "hush" not in text
    assert secret not in text
    assert "bert" not in text


def test_an_erased_account_is_in_no_table(ledger, anna, bert, draw, submit, stored):
    ledger.create_key("anna", name="phone")
    done = draw(anna, 2)
    ledger.add_upload("anna", "ab" * 32, 10, "image/png")
    ledger.add_upload("bert", "ab" * 32, 10, "image/png")
    ledger.add_upload("anna", "cd" * 32, 10, "image/png")
    ledger.put_draft("anna", "boats", {})
    submit(anna)
    (running,) = ledger.claim("w", lease_seconds=10)
    freed = ledger.erase_account("anna")
    assert set(freed.keys) == {job.image.key for job in done.jobs}
    assert freed.uploads == ("cd" * 32,)
    assert not ledger.finish(running.job.id, 1, Completion(stored(running.job.id), 1.0))
    assert ledger.renew("w", {running.job.id: 1}, 10).lost == {running.job.id}
    with ledger._db.read() as connection:
        for table in metadata.sorted_tables:
            assert "anna" not in repr(connection.execute(table.select()).all()), table.name
    assert [(row.account, row.images) for row in ledger.usage(["account"])] == [(ERASED, 2)]
    with pytest.raises(NotFound):
        list(ledger.export_account("anna"))
    with pytest.raises(Conflict):
        ledger.erase_account(LOCAL_ACCOUNT)


def test_what_is_due_now_is_due_at_once(ledger, anna, submit):
    """The clock that writes when something is due is the one that compares: finer than a millisecond."""
    submit(anna, webhook={"url": "http://127.0.0.1/"})
    (claim,) = ledger.claim("w", lease_seconds=10)
    ledger.fail(claim.job.id, claim.job.fence, JobError("broken", "it broke"), retryable=False)
    for _ in range(50):
        (delivery,) = ledger.due_deliveries(hold_seconds=0.0)
        ledger.record_delivery(delivery.id, error="not yet", retry_in=0.0)
