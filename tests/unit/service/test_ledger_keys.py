"""Accounts and keys: shown once, kept as hashes, good until they expire or are revoked."""

import time

import pytest
from sqlalchemy import select

from limner.errors import Conflict, InvalidRequest, NotFound
from limner.service.identity import LOCAL_ACCOUNT, Quotas
from limner.service.ledger.schema import api_keys


def test_a_key_tells_whose_it_is_and_what_it_may_do(ledger):
    ledger.create_account("anna", weight=2.0, quotas=Quotas(images_per_day=5), policy={"max_steps": 30})
    key, secret = ledger.create_key("anna", name="phone", scopes=["read"], policy={"max_steps": 10})
    caller = ledger.authenticate(secret)
    assert caller.account == ledger.get_account("anna")
    assert caller.account.quotas.images_per_day == 5
    assert (caller.key.id, caller.key.name, caller.scopes) == (key.id, "phone", ("read",))
    assert caller.policy == {"max_steps": 10}
    assert not caller.is_operator


def test_the_secret_is_not_in_the_database(ledger):
    _, secret = ledger.create_key(LOCAL_ACCOUNT)
    with ledger._db.read() as connection:
        dump = "\n".join(str(tuple(row)) for row in connection.execute(select(api_keys)))
    assert secret.split("_", 2)[1] in dump
    assert secret.split("_", 2)[2] not in dump


@pytest.mark.parametrize(
    "damage", [lambda s: s[:-1], lambda s: s + "a", lambda s: s.swapcase(), lambda _: ""]
)
def test_anything_but_the_secret_is_nobodys(ledger, damage):
    _, secret = ledger.create_key(LOCAL_ACCOUNT)
    assert ledger.authenticate(damage(secret)) is None


def test_revoked_and_expired_keys_and_closed_accounts_are_nobodys(ledger):
    ledger.create_account("anna")
    assert not ledger.has_keys()
    key, revoked = ledger.create_key("anna")
    _, short = ledger.create_key("anna", expires_in=0.05)
    _, good = ledger.create_key("anna")
    assert ledger.revoke_key(key.id).revoked_at is not None
    time.sleep(0.1)
    assert [ledger.authenticate(secret) is None for secret in (revoked, short, good)] == [True, True, False]
    assert ledger.has_keys()
    ledger.update_account("anna", disabled=True)
    assert ledger.authenticate(good) is None
    ledger.update_account("anna", disabled=False)
    assert ledger.authenticate(good).account.id == "anna"


def test_last_use_is_written_but_not_each_time(ledger):
    key, secret = ledger.create_key(LOCAL_ACCOUNT)
    assert key.last_used_at is None
    ledger.authenticate(secret)
    (first,) = ledger.list_keys(LOCAL_ACCOUNT)
    assert first.last_used_at is not None
    ledger.authenticate(secret)
    assert ledger.list_keys(LOCAL_ACCOUNT) == [first]


def test_bad_accounts_and_keys_are_refused(ledger):
    ledger.create_account("anna")
    with pytest.raises(Conflict):
        ledger.create_account("anna")
    for name in ("", "a b", "-x", "../x", "a" * 65):
        with pytest.raises(InvalidRequest):
            ledger.create_account(name)
    with pytest.raises(InvalidRequest):
        ledger.create_key("anna", scopes=["everything"])
    with pytest.raises(NotFound):
        ledger.create_key("nobody")
    key, _ = ledger.create_key("anna")
    with pytest.raises(NotFound):
        ledger.revoke_key(key.id, account_id=LOCAL_ACCOUNT)
