"""Retention: what is past its time goes, what is needed stays, and an account leaves no trace but sums."""

import io
import json
import os
import threading
import time
import zipfile
from dataclasses import asdict

import pytest

from limner.errors import Conflict, NotFound
from limner.images.assets import Assets
from limner.safety.watermark import DEFAULT_KEY
from limner.service.housekeeping import Housekeeping
from limner.service.jobs import Completion, JobError, StoredImage
from limner.service.metrics import Metrics
from limner.service.release import ImageRelease
from limner.service.retention import Deleted, Retention
from limner.service.storage import ImageStore
from limner.settings.serve import ServeSettings

LONG_AGO = 1e-9  # days to keep: everything is past its time


@pytest.fixture
def store(tmp_path):
    return ImageStore.in_folder(tmp_path / "pictures")


@pytest.fixture
def assets(tmp_path):
    return Assets(store=tmp_path / "uploads", allow_paths=False)


@pytest.fixture
def retention(ledger, store, tmp_path):
    """Retention of a ledger with some settings."""

    def made(meter=None, **settings):
        own = ServeSettings(data=tmp_path, **settings)
        return Retention(ledger, store, own, meter or Metrics())

    return made


@pytest.fixture
def drawn(ledger, store, submit):
    """Submits jobs, draws them, and returns the set."""

    def draw(principal, count=1, **more):
        made = submit(principal, count, **more)
        for claim in ledger.claim("w", lease_seconds=60, limit=count):
            job = claim.job
            data = f"master of {job.id}".encode()
            key = store.put_master(job.account_id, job.id, job.fence, data)
            image = StoredImage(
                f"img_{job.id}", job.id, job.account_id, key, "00", "11", 64, 32, len(data), {"x": 1}
            )
            assert ledger.finish(job.id, job.fence, Completion(image, 2.0, price=0.5))
        return ledger.get_set(made.id)

    return draw


def upload(ledger, assets, account_id, data):
    digest = assets.put(data).removeprefix("sha256:")
    ledger.add_upload(account_id, digest, len(data), "image/png")
    return digest


def age(store, key, seconds):
    """Make a master look older."""
    path = store._folder / key
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_nothing_is_deleted_by_default(ledger, store, retention, drawn, anna):
    made = drawn(anna, 2)
    assert retention().run() == Deleted()
    assert all(store.get(job.image.key) for job in made.jobs)


def test_old_images_go_and_their_jobs_stay(ledger, store, retention, drawn, anna):
    made, meter = drawn(anna, 2), Metrics()
    store.put_thumbnail(made.jobs[0].image.key, b"small")
    time.sleep(0.01)
    assert retention(keep_images_days=1.0).run() == Deleted()
    assert retention(meter, keep_images_days=LONG_AGO).run().images == 2
    assert list(store.masters()) == []
    assert store.get_thumbnail(made.jobs[0].image.key) is None
    assert [job.image for job in ledger.get_set(made.id).jobs] == [None, None]
    assert meter.value("limner_pictures_deleted_total", reason="expired") == 2


def test_the_trash_is_emptied_with_its_files_after_its_days(ledger, store, retention, drawn, anna, bert):
    (kept, gone), (other,) = (
        [job.image for job in drawn(who, count).jobs] for who, count in ((anna, 2), (bert, 1))
    )
    ledger.mark_images([gone.id, other.id], account_id=None, deleted=True)
    assert retention().run() == Deleted()
    assert retention().empty_trash(account_id="bert") == 1
    assert {one.key for one in store.masters()} == {kept.key, gone.key}
    time.sleep(0.01)
    meter = Metrics()
    assert retention(meter, trash_days=LONG_AGO).run().images == 1
    assert [one.key for one in store.masters()] == [kept.key]
    assert meter.value("limner_pictures_deleted_total", reason="trash") == 1


def test_old_sets_go_with_their_images_and_their_usage_stays(ledger, store, retention, drawn, submit, anna):
    made, waiting = drawn(anna), submit(anna)
    time.sleep(0.01)
    deleted = retention(keep_jobs_days=LONG_AGO).run()
    assert (deleted.sets, deleted.images) == (1, 1)
    assert list(store.masters()) == []
    with pytest.raises(NotFound):
        ledger.get_set(made.id)
    assert ledger.get_set(waiting.id).jobs[0].state == "queued"
    [row] = ledger.usage(by=["account"])
    assert (row.images, row.device_seconds, row.cost) == (1, 2.0, 1.0)


def test_unused_uploads_go_unless_somebody_needs_them(ledger, assets, retention, submit, anna, bert):
    shared = upload(ledger, assets, "anna", b"shared")
    assert upload(ledger, assets, "bert", b"shared") == shared
    own = upload(ledger, assets, "anna", b"own")
    submit(bert)  # a waiting job of his may need it
    time.sleep(0.01)
    assert retention(keep_uploads_days=LONG_AGO).run().uploads == 1
    assert assets.find(own) is None
    assert assets.find(shared).read_bytes() == b"shared"
    assert not ledger.has_upload("anna", shared)


def test_an_upload_that_comes_back_while_it_is_deleted_is_kept(ledger, assets, retention, anna, bert):
    """It is forgotten for one account, and uploaded by another before its content is deleted."""
    digest = upload(ledger, assets, "anna", b"a picture")
    forget = ledger.expire_uploads

    def forget_and_upload(**more):
        gone = forget(**more)
        upload(ledger, assets, "bert", b"a picture")
        return gone

    ledger.expire_uploads = forget_and_upload
    assert retention(keep_uploads_days=LONG_AGO).run().uploads == 0
    assert not ledger.has_upload("anna", digest)
    assert assets.find(digest).read_bytes() == b"a picture"


def test_uploads_that_no_account_has_are_collected_after_an_hour(ledger, assets, retention, anna):
    kept = upload(ledger, assets, "anna", b"kept")
    left = assets.put(b"left by a process that died").removeprefix("sha256:")
    assert retention().collect() == 0
    for digest in (kept, left):
        os.utime(assets.find(digest), (0, time.time() - 3700))
    assert retention().collect() == 1
    assert (assets.find(left), assets.find(kept) is None) == (None, False)


def test_leftovers_of_stale_attempts_are_collected_after_an_hour(ledger, store, retention, drawn, anna):
    made, meter = drawn(anna), Metrics()
    stale = store.put_master("anna", made.jobs[0].id, 99, b"came too late")
    age(store, made.jobs[0].image.key, 7200)
    assert retention(meter).collect() == 0
    age(store, stale, 3700)
    assert retention(meter).collect() == 1
    assert [one.key for one in store.masters()] == [made.jobs[0].image.key]
    assert meter.value("limner_pictures_deleted_total", reason="leftover") == 1


def test_an_erased_account_leaves_nothing_but_sums(
    ledger, store, assets, retention, drawn, submit, anna, bert
):
    mine, running, his = drawn(anna, 2), submit(anna), drawn(bert)
    digest = upload(ledger, assets, "anna", b"a secret picture")
    shared = upload(ledger, assets, "anna", b"shared")
    upload(ledger, assets, "bert", b"shared")
    ledger.put_draft("anna", "plan", {"prompt": "a secret plan"})
    _, secret = ledger.create_key("anna", name="laptop")
    [claim] = ledger.claim("w", lease_seconds=60)
    store.put_master("anna", claim.job.id, claim.job.fence, b"just stored")
    deleted = retention().erase("anna")
    assert (deleted.images, deleted.uploads, deleted.leftovers) == (2, 1, 1)
    assert {one.account_id for one in store.masters()} == {"bert"}
    assert (assets.find(digest), assets.find(shared) is None) == (None, False)
    assert ledger.authenticate(secret) is None
    for gone in (mine, running):
        with pytest.raises(NotFound):
            ledger.get_set(gone.id)
    assert not ledger.finish(claim.job.id, claim.job.fence, Completion(None, 1.0))
    assert store.get(ledger.get_set(his.id).jobs[0].image.key)
    assert sum(row.images for row in ledger.usage(by=["account"])) == 3
    assert "anna" not in {row.account for row in ledger.usage(by=["account"])}
    with pytest.raises(NotFound):
        retention().erase("anna")
    with pytest.raises(Conflict):
        retention().erase("local")


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_nothing_of_an_erased_account_is_left_in_the_database(ledger, retention, drawn, anna, tmp_path):
    """Byte for byte, in the files of SQLite, while the service goes on."""
    drawn(anna, 1, external_id="zebra-crossing-417")
    ledger.put_draft("anna", "plan", {"prompt": "zebra-crossing-417"})

    def holding():
        files = list(tmp_path.glob("ledger.sqlite3*"))
        return [file.name for file in files if b"zebra-crossing-417" in file.read_bytes()]

    assert holding()
    retention().erase("anna")
    assert not holding()


def test_the_audit_log_repeats_no_part_of_a_request(ledger, submit, anna):
    """It outlasts jobs and accounts, and messages of errors quote prompts."""
    submit(anna)
    (claim,) = ledger.claim("w", lease_seconds=60)
    error = JobError("invalid_prompt", "the embedding 'my secret plan' is not known")
    ledger.fail(claim.job.id, claim.job.fence, error, retryable=False)
    ledger.erase_account("anna")
    told = json.dumps([asdict(row) for row in ledger.audit_log()])
    assert "invalid_prompt" in told
    assert "secret plan" not in told


def test_an_export_holds_everything_of_one_account(ledger, store, assets, retention, drawn, anna, bert):
    made = drawn(anna, 2, webhook={"url": "https://example.org", "secret": "sesame-sesame"})
    drawn(bert)
    digest = upload(ledger, assets, "anna", b"an upload")
    ledger.put_draft("anna", "plan", {"prompt": "a plan"})
    _, secret = ledger.create_key("anna", name="laptop")
    store.delete([made.jobs[1].image.key])
    out = io.BytesIO()
    release = ImageRelease(store, ledger, DEFAULT_KEY)
    count = retention().export("anna", out, release)
    archive = zipfile.ZipFile(out)
    assert archive.testzip() is None
    names = set(archive.namelist())
    assert count == len(names) == len(archive.namelist())
    assert archive.read(f"images/{made.jobs[0].image.id}.png") == f"master of {made.jobs[0].id}".encode()
    assert f"images/{made.jobs[1].image.id}.png" not in names
    assert archive.read(f"uploads/{digest}") == b"an upload"
    rows = {
        name: [json.loads(line) for line in archive.read(name).splitlines()]
        for name in names
        if "/" not in name
    }
    assert [row["value"] for row in rows["drafts.jsonl"]] == [{"prompt": "a plan"}]
    assert {"usage.jsonl", "audit.jsonl", "accounts.jsonl"} <= names
    assert {entry.date_time[0] for entry in archive.infolist()} <= {
        time.localtime()[0],
        time.localtime()[0] - 1,
    }
    assert len(rows["jobs.jsonl"]) == len(rows["images.jsonl"]) == 2
    assert {row["account_id"] for row in rows["sets.jsonl"]} == {"anna"}
    text = b"".join(archive.read(name) for name in names)
    assert secret.encode() not in text
    assert b"sesame" not in text
    with pytest.raises(NotFound):
        retention().export("nobody", io.BytesIO(), ImageRelease(store, ledger, DEFAULT_KEY))


def test_housekeeping_goes_on_after_a_failure(ledger, store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("limner.service.housekeeping._WEBHOOK_SECONDS", 0.005)
    keeping = Housekeeping(ServeSettings(data=tmp_path), ledger, store, Metrics(), signing_key=b"k" * 32)
    rounds, enough, others = [], threading.Event(), set(threading.enumerate())

    def failing(**_):
        rounds.append(1)
        if len(rounds) > 2:
            enough.set()
        raise OSError("the database is gone")

    monkeypatch.setattr(ledger, "due_deliveries", failing)
    keeping.start()
    assert enough.wait(30)
    keeping.stop()
    count = len(rounds)
    time.sleep(0.03)
    assert len(rounds) == count
    assert "webhooks failed" in caplog.text
    own = set(threading.enumerate()) - others
    assert not any(thread.name in ("limner-webhooks", "limner-leftovers") for thread in own)
