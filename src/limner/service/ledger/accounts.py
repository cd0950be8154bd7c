"""Accounts and their keys.

A key reads `lim_<id>_<secret>`. The ledger keeps the SHA-256 of the whole: the secret has 256 random bits,
and a slower hash would protect nothing more.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from limner.errors import Conflict, InvalidRequest, NotFound
from limner.service.identity import LOCAL_ACCOUNT, SCOPES, Account, ApiKey, Principal, Quotas, Role, Scope

from .rows import account_of, key_of, quotas_value
from .schema import accounts, api_keys
from .writing import Writing

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_KEY = re.compile(r"lim_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_SEEN_SECONDS = 60.0


class Accounts(Writing):
    """Accounts, keys, and who a secret belongs to."""

    def create_account(
        self,
        account_id: str,
        *,
        role: Role = "user",
        weight: float = 1.0,
        quotas: Quotas | None = None,
        policy: Mapping[str, Any] | None = None,
        actor: str = "operator",
    ) -> Account:
        """Make an account. Raises Conflict if there is one of this id."""
        _check(account_id, weight)
        try:
            with self._db.write() as tx:
                now = self._db.time(tx)
                tx.execute(
                    insert(accounts).values(
                        id=account_id,
                        role=role,
                        weight=weight,
                        quotas=quotas_value(quotas or Quotas()),
                        policy=dict(policy or {}),
                        created_at=now,
                        disabled=False,
                    )
                )
                self._audit(tx, now, actor, "account.created", account_id, role=role)
        except IntegrityError:
            raise Conflict(f"there is an account {account_id!r} already", fields=("account",)) from None
        return self.get_account(account_id)

    def get_account(self, account_id: str) -> Account:
        """An account. Raises NotFound."""
        with self._db.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.id == account_id)).first()
        if row is None:
            raise NotFound(f"no account {account_id!r}", fields=("account",))
        return account_of(row)

    def list_accounts(self) -> list[Account]:
        """All accounts, by their ids."""
        with self._db.read() as connection:
            return [account_of(row) for row in connection.execute(select(accounts).order_by(accounts.c.id))]

    def update_account(
        self,
        account_id: str,
        *,
        role: Role | None = None,
        weight: float | None = None,
        quotas: Quotas | None = None,
        policy: Mapping[str, Any] | None = None,
        disabled: bool | None = None,
        actor: str = "operator",
    ) -> Account:
        """Change an account; None leaves a value as it is. Raises NotFound."""
        _check(account_id, 1.0 if weight is None else weight)
        values: dict[str, Any] = {
            "role": role,
            "weight": weight,
            "quotas": None if quotas is None else quotas_value(quotas),
            "policy": None if policy is None else dict(policy),
            "disabled": disabled,
        }
        changed = {name: value for name, value in values.items() if value is not None}
        if changed:
            with self._db.write() as tx:
                done = tx.execute(update(accounts).where(accounts.c.id == account_id).values(**changed))
                if done.rowcount:
                    self._audit(tx, self._db.time(tx), actor, "account.updated", account_id, **changed)
        return self.get_account(account_id)

    def create_key(
        self,
        account_id: str,
        *,
        name: str = "",
        scopes: Sequence[Scope] = SCOPES,
        expires_in: float | None = None,
        policy: Mapping[str, Any] | None = None,
        actor: str = "operator",
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Args:
            expires_in: Seconds until it expires; None: never.
            policy: Limits for callers with this key, where they are stricter than the account's.

        Returns:
            The key and its secret, which is shown this once: the ledger keeps a hash of it.
        """
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(
                f"scopes are {', '.join(unknown) or 'none'}; expected some of {', '.join(SCOPES)}",
                fields=("scopes",),
            )
        self.get_account(account_id)
        key_id = secrets.token_hex(8)
        secret = f"lim_{key_id}_{secrets.token_urlsafe(32)}"
        with self._db.write() as tx:
            now = self._db.time(tx)
            tx.execute(
                insert(api_keys).values(
                    id=key_id,
                    account_id=account_id,
                    name=name,
                    hash=_hash(secret),
                    scopes=list(scopes),
                    policy=dict(policy or {}),
                    created_at=now,
                    expires_at=None if expires_in is None else now + expires_in,
                )
            )
            self._audit(tx, now, actor, "key.created", key_id, account=account_id, scopes=list(scopes))
            row = tx.execute(select(api_keys).where(api_keys.c.id == key_id)).one()
        return key_of(row), secret

    def list_keys(self, account_id: str | None = None) -> list[ApiKey]:
        """Keys of an account, or of all, oldest first; revoked and expired ones too."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        if account_id is not None:
            query = query.where(api_keys.c.account_id == account_id)
        with self._db.read() as connection:
            return [key_of(row) for row in connection.execute(query)]

    def find_keyless(self) -> Account | None:
        """The account that callers without a key have on loopback; None once any key was made.

        Keys that were revoked or have expired count, too: losing the last one must not open the service.
        """
        with self._db.read() as connection:
            if connection.execute(select(api_keys.c.id).limit(1)).first() is not None:
                return None
            row = connection.execute(select(accounts).where(accounts.c.id == LOCAL_ACCOUNT)).one()
        return account_of(row)

    def has_keys(self) -> bool:
        """Whether there is any key that is good now."""
        with self._db.read() as connection:
            now = self._db.time(connection)
            rows = connection.execute(select(api_keys).where(api_keys.c.revoked_at.is_(None)))
            return any(row.expires_at is None or row.expires_at > now for row in rows)

    def revoke_key(self, key_id: str, *, account_id: str | None = None, actor: str = "operator") -> ApiKey:
        """Make a key useless at once. Raises NotFound, also for another account's."""
        with self._db.write() as tx:
            row = tx.execute(select(api_keys).where(api_keys.c.id == key_id)).first()
            if row is None or account_id not in (None, row.account_id):
                raise NotFound(f"no key {key_id!r}", fields=("key",))
            if row.revoked_at is None:
                now = self._db.time(tx)
                tx.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now))
                self._audit(tx, now, actor, "key.revoked", key_id, account=row.account_id)
            return key_of(tx.execute(select(api_keys).where(api_keys.c.id == key_id)).one())

    def authenticate(self, secret: str) -> Principal | None:
        """The caller with this key; None if it is unknown, expired or revoked, or if its account is locked.

        The hashes are compared in constant time. When a key was last used is written at most once a minute.
        """
        match = _KEY.fullmatch(secret)
        return self._holder(match[1] if match else "", _hash(secret))

    def holder_of(self, key_id: str) -> Principal | None:
        """Whose key has this id, for a caller who has proved that it is theirs; None as `authenticate`."""
        return self._holder(key_id, None)

    def _holder(self, key_id: str, hashed: str | None) -> Principal | None:
        """Whose key this is.

        Args:
            hashed: Hash that the key must have; None for any.
        """
        with self._db.read() as connection:
            now = self._db.time(connection)
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).first()
            stored = row.hash if row is not None else _NOBODY
            good = hashed is None or hmac.compare_digest(stored, hashed)
            if row is None or not good or row.revoked_at is not None:
                return None
            if row.expires_at is not None and row.expires_at <= now:
                return None
            owner = connection.execute(select(accounts).where(accounts.c.id == row.account_id)).one()
        if owner.disabled:
            return None
        if row.last_used_at is None or now - row.last_used_at >= _SEEN_SECONDS:
            with self._db.write(durable=False) as tx:
                tx.execute(update(api_keys).where(api_keys.c.id == row.id).values(last_used_at=now))
        key = key_of(row)
        return Principal(account_of(owner), key, key.scopes)

    def is_valid(self, caller: Principal) -> bool:
        """Whether a caller may still do anything: the account is there, and the key good."""
        with self._db.read() as connection:
            its = select(accounts.c.disabled).where(accounts.c.id == caller.account.id)
            if connection.execute(its).scalar() is not False:
                return False
            if caller.key is None:
                return True
            row = connection.execute(select(api_keys).where(api_keys.c.id == caller.key.id)).first()
            if row is None or row.revoked_at is not None:
                return False
            return row.expires_at is None or row.expires_at > self._db.time(connection)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogatepass")).hexdigest()


_NOBODY = _hash("")


def _check(account_id: str, weight: float) -> None:
    if not _ID.fullmatch(account_id):
        raise InvalidRequest(
            f"{account_id!r} is no name of an account; expected at most 64 letters, digits and - _ . @, "
            "the first a letter or digit",
            fields=("account",),
        )
    if not 0.001 <= weight <= 1000:
        raise InvalidRequest(f"weight is {weight:g}; expected 0.001 to 1000", fields=("weight",))
