"""The picture store in a folder."""

import errno
import os
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from limner.errors import NotFound, StorageError
from limner.service.storage import ImageStore


@pytest.fixture
def store(tmp_path):
    return ImageStore.in_folder(tmp_path / "pictures")


def test_a_master_is_read_as_it_was_written(store):
    key = store.put_master("anna", "job1", 3, b"pixels")
    assert store.get(key) == b"pixels"


def test_a_later_attempt_has_another_key(store):
    first, second = (store.put_master("anna", "job1", fence, bytes([fence])) for fence in (1, 2))
    assert first != second
    assert store.get(first) == b"\1"


def test_the_same_bytes_may_be_stored_again_but_never_others(store):
    key = store.put_master("anna", "job1", 1, b"first")
    assert store.put_master("anna", "job1", 1, b"first") == key
    with pytest.raises(StorageError, match="other bytes"):
        store.put_master("anna", "job1", 1, b"second")
    assert store.get(key) == b"first"


@pytest.mark.parametrize("account", ["..", ".", "", "a/b", "a\\b", "x" * 200, ".hidden"])
def test_a_key_cannot_leave_its_place(store, account):
    with pytest.raises(ValueError, match="part of a key"):
        store.put_master(account, "job", 1, b"")


def test_what_is_missing_is_not_found(store):
    with pytest.raises(NotFound):
        store.get("masters/anna/job1/1.png")
    assert store.get_thumbnail("masters/anna/job1/1.png") is None


def test_deleting_takes_thumbnails_and_empty_folders_along(store, tmp_path):
    keys = [store.put_master("anna", "job1", fence, b"x") for fence in (1, 12)]
    thumbnails = [store.put_thumbnail(key, b"small") for key in keys]
    store.delete([keys[0]])
    assert store.get_thumbnail(keys[0]) is None
    assert store.get_thumbnail(keys[1]) == b"small"
    store.delete([*keys, thumbnails[1]])  # what is gone is no error
    assert [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "pictures/masters/anna/job1").exists()


def test_an_account_may_be_named_like_an_address(store):
    key = store.put_master("anna@example.org", "job1", 1, b"x")
    assert store.get(key) == b"x"
    assert [one.account_id for one in store.masters("anna@example.org")] == ["anna@example.org"]


def test_masters_are_listed_with_their_attempts(store):
    store.put_master("anna", "job1", 1, b"x")
    key = store.put_master("anna", "job1", 12, b"xyz")
    store.put_master("bert", "job2", 5, b"x")
    store.put_thumbnail(key, b"small")
    assert {(one.account_id, one.job_id, one.fence) for one in store.masters()} == {
        ("anna", "job1", 1),
        ("anna", "job1", 12),
        ("bert", "job2", 5),
    }
    [listed] = [one for one in store.masters("anna") if one.fence == 12]
    assert (listed.key, listed.bytes) == (key, 3)


def test_a_full_disk_is_an_error_that_may_pass(store, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(obstore, "put", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        store.put_master("anna", "job1", 1, b"x")
    assert caught.value.retryable
    assert "free some space" in caught.value.hint
    with pytest.raises(StorageError):
        store.check()


def test_a_check_leaves_nothing(store, tmp_path):
    store.check()
    assert list((tmp_path / "pictures").iterdir()) == []


def test_what_a_killed_process_was_writing_is_removed(store, tmp_path):
    key = store.put_master("anna", "job1", 1, b"x")
    now = datetime.now(UTC)
    parts = [tmp_path / f"pictures/masters/anna/job1/2.png#{number}" for number in (6, 7)]
    for part, age in zip(parts, (3000, 4000), strict=True):
        part.write_bytes(b"half")
        os.utime(part, (then := now.timestamp() - age, then))
    assert [one.key for one in store.masters()] == [key]
    assert store.remove_unfinished(now - timedelta(hours=1)) == 1
    assert [part.exists() for part in parts] == [True, False]  # the newer one may still be written
    assert store.get(key) == b"x"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        ImageStore.in_folder(tmp_path / "file" / "pictures")
