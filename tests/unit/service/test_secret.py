"""The service's signing key: made once, kept from others, and missed when it is gone."""

import pytest

from limner.errors import InvalidRequest, OutputError
from limner.service.secret import KEY_FILE, derived, new_signing_key, signing_key


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    key = signing_key(tmp_path, create=True)
    assert len(key) == 32
    assert signing_key(tmp_path, create=True) == signing_key(tmp_path, create=False) == key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    assert signing_key(tmp_path / "other", create=True) != key


def test_a_lost_key_is_noticed(tmp_path):
    signing_key(tmp_path, create=True)
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(InvalidRequest, match=r"signing\.key is missing") as caught:
        signing_key(tmp_path, create=False)
    assert "limner webhooks secret --new" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"00ff", b"\xff" * 64, b"z" * 64])
def test_a_broken_key_is_refused(tmp_path, content):
    signing_key(tmp_path, create=True)
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(InvalidRequest):
        signing_key(tmp_path, create=True)


def test_a_new_key_takes_the_place_of_the_old_one(tmp_path):
    old = signing_key(tmp_path, create=True)
    new = new_signing_key(tmp_path)
    assert signing_key(tmp_path, create=False) == new != old


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "keys").write_text("a file")
    with pytest.raises((OutputError, InvalidRequest)):
        signing_key(tmp_path, create=True)


def test_derived_secrets_depend_on_key_and_purpose():
    assert len({derived(key, purpose) for key in (b"a", b"b") for purpose in ("x", "y")}) == 4
