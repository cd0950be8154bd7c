"""Accounts, their keys, and what a caller may do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["user", "operator"]
"""An operator sees and changes the objects of all accounts."""

Scope = Literal["generate", "read", "manage"]
"""What a key allows: submitting jobs, reading one's own objects, and changing or deleting them."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

SAFETY = "safety"
"""Name of the level of the safety policy in the policy of an account or a key."""

LOCAL_ACCOUNT = "local"
"""Account of callers on loopback where no key is needed."""


@dataclass(frozen=True)
class Quotas:
    """Limits of an account. None: no limit.

    Attributes:
        images_per_day: Number of images finished in the last 24 hours.
        device_seconds_per_day: Device seconds used in the last 24 hours.
        cost_per_month: Money spent in the last 30 days, in the currency of the prices.
        stored_bytes: Bytes of images and uploads that are kept.
        queued_jobs: Number of jobs that may wait at once.
    """

    images_per_day: int | None = None
    device_seconds_per_day: float | None = None
    cost_per_month: float | None = None
    stored_bytes: int | None = None
    queued_jobs: int | None = None


@dataclass(frozen=True)
class Account:
    """An account.

    Attributes:
        id: Its name: letters, digits, `-`, `_` and `.`.
        role: Whether it sees the objects of others.
        weight: Its share of the devices relative to other accounts.
        quotas: Its limits.
        policy: Values of `limner.request.policy.RequestPolicy` that replace the server's, and `safety`: one
            of `limner.safety.policy.LEVELS` in place of the server's safety policy.
        created_at: Seconds since the epoch.
        disabled: Whether it is locked.
    """

    id: str
    role: Role = "user"
    weight: float = 1.0
    quotas: Quotas = Quotas()
    policy: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    disabled: bool = False


@dataclass(frozen=True)
class ApiKey:
    """A key of an account, without its secret.

    Attributes:
        id: Public part of the key, which appears in lists and logs.
        account_id: Whose key it is.
        name: What it is for, in the owner's words.
        scopes: What the key allows.
        policy: As `Account.policy`, for callers with this key, where it is stricter than the account's. Its
            `safety` is a policy that requests must pass besides the account's.
        created_at, expires_at, revoked_at, last_used_at: Seconds since the epoch; None for never.
    """

    id: str
    account_id: str
    name: str = ""
    scopes: tuple[Scope, ...] = SCOPES
    policy: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True)
class Principal:
    """A caller who has been recognised.

    Attributes:
        account: The account.
        key: The key that was given; None on loopback without one.
        scopes: What the caller may do.
    """

    account: Account
    key: ApiKey | None = None
    scopes: tuple[Scope, ...] = SCOPES

    @property
    def is_operator(self) -> bool:
        """Whether the caller sees the objects of all accounts."""
        return self.account.role == "operator"

    @property
    def policy(self) -> dict[str, Any]:
        """Limits for this caller: of those of the account and those of the key the stricter ones."""
        limits = {name: value for name, value in self.account.policy.items() if name != SAFETY}
        for name, value in (self.key.policy if self.key else {}).items():
            if name == SAFETY:
                continue
            known = limits.get(name)
            # A key may be older than the account's limits, and is never wider. Of booleans False is stricter.
            limits[name] = value if known is None else known if value is None else min(known, value)
        return limits

    @property
    def safety(self) -> tuple[str | None, str | None]:
        """Levels of the safety policies of the account and of the key; None: it has none of its own."""
        key = self.key.policy if self.key else {}
        return self.account.policy.get(SAFETY), key.get(SAFETY)
