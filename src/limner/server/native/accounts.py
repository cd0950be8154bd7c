"""Accounts and keys: the caller, its usage and keys, and for operators all accounts."""

import inspect
import re
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from limner.errors import InvalidRequest
from limner.request.policy import RequestPolicy
from limner.safety.policy import LEVELS
from limner.server.auth import Manager, Operator, Reader
from limner.server.bodies import body_schema, read_body
from limner.server.problems import Refused
from limner.server.state import in_thread, state_of
from limner.service.identity import SAFETY, SCOPES, Account, ApiKey, Principal, Quotas, Role, Scope

from .access import AccountQuery, listed_account, owner_of, split_at_commas
from .views import Seconds, checked_id

router = APIRouter(tags=["accounts"])

_STRICT = ConfigDict(extra="forbid", strict=True)
_ROLE = "An operator sees and changes the objects of all accounts."
_WEIGHT = "Its share of the devices relative to other accounts."
_QUOTAS, _POLICY = "Its limits.", "What one of its requests may ask, where the service's limits differ."
_DISABLED = "Whether the account is locked."
_Name = Annotated[str, Field(max_length=100, description="What it is for, in the owner's words.")]


def _attributes(cls: type[Any]) -> dict[str, str]:
    """Attribute -> its description in the docstring of a class."""
    _, _, section = inspect.cleandoc(str(cls.__doc__)).partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        match = re.fullmatch(r"    ([\w, ]+): (.+)", line)
        if match is not None:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _limits(
    name: str, cls: type[Any], description: str, *, gt: int | None = None, ge: int | None = None, **more: Any
) -> Any:
    """A model with the fields of a dataclass of limits, whose docstring describes them.

    Args:
        gt, ge: Lower bound of the limits, itself excluded or included.
        more: Further fields.
    """
    texts = _attributes(cls)
    own: dict[str, Any] = dict(more)
    for one in fields(cls):
        kind = float if "float" in str(one.type) else int
        own[one.name] = kind | None, Field(default=None, description=texts[one.name], gt=gt, ge=ge)
    return create_model(name, __config__=_STRICT, __doc__=description, **own)


QuotasBody = _limits("QuotasBody", Quotas, "Limits of an account; what is left out or null has none.", ge=0)
PolicyBody = _limits(
    "PolicyBody",
    RequestPolicy,
    "What one request may ask; what is left out has the limit of the account or the service.",
    gt=0,
    safety=(
        Literal[LEVELS] | None,
        Field(
            default=None,
            description="Level of the safety policy: an account's replaces that of the service, and requests "
            "with a key must pass the key's too.",
        ),
    ),
)


class NewKey(BaseModel):
    """A new key."""

    model_config = ConfigDict(extra="forbid")

    name: _Name = ""
    scopes: list[Scope] = Field(
        default=list(SCOPES), min_length=1, description="What the key allows, at most what the caller may do."
    )
    expires_in: float | None = Field(default=None, gt=0, le=3.2e9, description="Seconds until it expires.")
    policy: PolicyBody | None = Field(  # type: ignore[valid-type]
        default=None, description="Limits of requests with it, at most those of the caller."
    )
    account: str | None = Field(
        default=None, max_length=64, description="For operators: account that it is for."
    )


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str = Field(description="Public part of the key, which appears in logs.")
    account_id: str = Field(description="Account of the key.")
    name: str = Field(description="What it is for.")
    scopes: list[Scope] = Field(description="What the key allows.")
    policy: dict[str, Any] = Field(description="Limits of requests with it.")
    created_at: Seconds
    expires_at: float | None = Field(default=None, description="When it expires; null for never.")
    revoked_at: float | None = Field(default=None, description="When it was revoked.")
    last_used_at: float | None = Field(default=None, description="When it was last used, to the minute.")


class MadeKey(KeyView):
    """A key that was just made."""

    secret: str = Field(description="What callers send. It is shown this once.")


class AccountView(BaseModel):
    """An account."""

    id: str = Field(description="Its name.")
    role: Role = Field(description=_ROLE)
    weight: float = Field(description=_WEIGHT)
    quotas: dict[str, float | None] = Field(description="Its limits; null for none.")
    policy: dict[str, Any] = Field(
        description="What one of its requests may ask, where the service's differ."
    )
    created_at: Seconds
    disabled: bool = Field(description=_DISABLED)


class CallerView(AccountView):
    """The account of the caller, and what it may do."""

    key: KeyView | None = Field(description="The key that was sent; null where none is needed.")
    scopes: list[Scope] = Field(description="What the caller may do.")
    limits: dict[str, int | None] = Field(description="What one request may ask.")
    safety: list[str] = Field(description="Names and hashes of the safety policies that it must pass.")
    used: dict[str, float] = Field(description="What counts against the quotas now, and the running jobs.")


class NewAccount(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64, description="Letters, digits, `-`, `_`, `.` and `@`.")
    role: Role = Field(default="user", description=_ROLE)
    weight: float = Field(default=1.0, gt=0, le=1000, description=_WEIGHT)
    quotas: QuotasBody | None = Field(default=None, description=_QUOTAS)  # type: ignore[valid-type]
    policy: PolicyBody | None = Field(default=None, description=_POLICY)  # type: ignore[valid-type]


class AccountChange(BaseModel):
    """Changes of an account; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = Field(default=None, description=_ROLE)
    weight: float | None = Field(default=None, gt=0, le=1000, description=_WEIGHT)
    quotas: QuotasBody | None = Field(default=None, description=_QUOTAS)  # type: ignore[valid-type]
    policy: PolicyBody | None = Field(default=None, description=_POLICY)  # type: ignore[valid-type]
    disabled: bool | None = Field(default=None, description=_DISABLED)


class UsageView(BaseModel):
    """Usage, summed."""

    account: str | None = Field(default=None, description="Account, if summed by it.")
    key: str | None = Field(default=None, description="Id of the key, if summed by it.")
    model: str | None = Field(default=None, description="Id of the checkpoint, if summed by it.")
    day: str | None = Field(default=None, description="Day in UTC, if summed by it.")
    images: int = Field(description="Images finished.")
    jobs: int = Field(description="Attempts that used a device.")
    device_seconds: float = Field(description="Device seconds, including those of failed and cancelled jobs.")
    cost: float = Field(description="Their price.")


@router.get("/account")
async def show_account(request: Request, caller: Reader) -> CallerView:
    """The caller: account, key, scopes, limits, quotas and their usage."""
    state = state_of(request)
    used = await in_thread(state.ledger.spent, caller.account.id)
    return CallerView(
        **account_view(caller.account).model_dump(),
        key=None if caller.key is None else key_view(caller.key),
        scopes=list(caller.scopes),
        limits=asdict(state.intake.policy(caller)),
        safety=[one.version for one in state.intake.safety.policies(caller)],
        used=asdict(used),
    )


@router.get("/usage")
async def usage(
    request: Request,
    caller: Reader,
    by: Annotated[
        list[Literal["account", "key", "model", "day"]] | None,
        BeforeValidator(split_at_commas),
        Query(max_length=4, description="What to sum by. May be repeated, or separated by commas."),
    ] = None,
    since: Annotated[float | None, Query(allow_inf_nan=False, description="Only after this time.")] = None,
    until: Annotated[float | None, Query(allow_inf_nan=False, description="Only before this time.")] = None,
    account: AccountQuery = None,
) -> list[UsageView]:
    """Images, device seconds and cost, summed."""
    found = await in_thread(
        state_of(request).ledger.usage,
        tuple(dict.fromkeys(by or ())),
        account_id=listed_account(caller, account),
        since=since,
        until=until,
    )
    return [UsageView(**asdict(row)) for row in found]


@router.get("/keys")
async def list_keys(request: Request, caller: Manager, account: AccountQuery = None) -> list[KeyView]:
    """Keys of the account, oldest first, including revoked and expired ones."""
    owner = listed_account(caller, account)
    return [key_view(one) for one in await in_thread(state_of(request).ledger.list_keys, owner)]


@router.post("/keys", status_code=201, openapi_extra=body_schema(NewKey), response_model=MadeKey)
async def create_key(request: Request, caller: Manager) -> MadeKey:
    """Create a key. It can do no more than the caller."""
    state = state_of(request)
    body = await read_body(request, NewKey)
    owner = listed_account(caller, body.account) or caller.account.id
    missing = [scope for scope in body.scopes if scope not in caller.scopes]
    if missing:
        raise Refused(403, f"the caller's own key lacks the scope {', '.join(missing)}", fields=("scopes",))
    key, secret = await in_thread(
        state.ledger.create_key,
        owner,
        name=body.name,
        scopes=tuple(dict.fromkeys(body.scopes)),
        expires_in=_lifetime(caller, body.expires_in, await in_thread(state.ledger.now)),
        policy=_policy_of_key(caller, body.policy, asdict(state.intake.policy(caller))),
        actor=caller.account.id,
    )
    return MadeKey(**key_view(key).model_dump(), secret=secret)


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(request: Request, caller: Manager, key_id: str) -> Response:
    """Revoke a key: it is no longer accepted."""
    await in_thread(
        state_of(request).ledger.revoke_key,
        checked_id(key_id, "key"),
        account_id=owner_of(caller),
        actor=caller.account.id,
    )
    return Response(status_code=204)


@router.get("/accounts")
async def list_accounts(request: Request, caller: Operator) -> list[AccountView]:
    """All accounts. For operators."""
    return [account_view(one) for one in await in_thread(state_of(request).ledger.list_accounts)]


@router.post("/accounts", status_code=201, openapi_extra=body_schema(NewAccount), response_model=AccountView)
async def create_account(request: Request, caller: Operator) -> AccountView:
    """Create an account. For operators."""
    body = await read_body(request, NewAccount)
    return account_view(
        await in_thread(
            state_of(request).ledger.create_account,
            body.id,
            role=body.role,
            weight=body.weight,
            quotas=_quotas(body.quotas),
            policy=_set_values(body.policy),
            actor=caller.account.id,
        )
    )


@router.patch("/accounts/{account_id}", openapi_extra=body_schema(AccountChange), response_model=AccountView)
async def change_account(request: Request, caller: Operator, account_id: str) -> AccountView:
    """Change an account: role, share, quotas, limits; or lock it. For operators."""
    body = await read_body(request, AccountChange)
    if account_id == caller.account.id and (body.disabled or body.role == "user"):
        raise InvalidRequest("operators cannot lock themselves out", fields=("disabled", "role"))
    return account_view(
        await in_thread(
            state_of(request).ledger.update_account,
            checked_id(account_id, "account"),
            role=body.role,
            weight=body.weight,
            quotas=_quotas(body.quotas),
            policy=None if body.policy is None else _set_values(body.policy),
            disabled=body.disabled,
            actor=caller.account.id,
        )
    )


class WorkerView(BaseModel):
    """A connected worker."""

    id: str = Field(description="Its name, as in attempts.")
    device: str = Field(description="Its device.")
    models: list[str] = Field(description="Ids of the checkpoints in its memory.")
    memory: dict[str, int] = Field(description="Bytes: `models`, and the `limit` for them.")
    running: int = Field(description="Number of jobs that it has claimed.")
    draining: bool = Field(description="Whether it takes no more jobs.")
    problem: str | None = Field(description="Why it cannot work for the moment.")


@router.get("/workers")
async def list_workers(request: Request, caller: Operator) -> list[WorkerView]:
    """The connected workers. For operators."""
    return [
        WorkerView(
            id=one.id,
            device=one.device,
            models=list(one.models),
            memory=dict(one.memory),
            running=one.running,
            draining=one.draining,
            problem=one.problem,
        )
        for one in state_of(request).hub.workers
    ]


def account_view(account: Account) -> AccountView:
    """An account."""
    return AccountView(
        id=account.id,
        role=account.role,
        weight=account.weight,
        quotas=asdict(account.quotas),
        policy=dict(account.policy),
        created_at=account.created_at,
        disabled=account.disabled,
    )


def key_view(key: ApiKey) -> KeyView:
    """A key."""
    return KeyView(
        id=key.id,
        account_id=key.account_id,
        name=key.name,
        scopes=list(key.scopes),
        policy=dict(key.policy),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def _lifetime(caller: Principal, asked: float | None, now: float) -> float | None:
    """Seconds until a new key expires: not later than the key of the caller."""
    if caller.key is None or caller.key.expires_at is None:
        return asked
    left = max(0.001, caller.key.expires_at - now)
    return left if asked is None else min(asked, left)


def _policy_of_key(caller: Principal, asked: BaseModel | None, limits: dict[str, Any]) -> dict[str, Any]:
    """Limits of a new key: those of the caller's key, and further ones that narrow them.

    Raises:
        Refused: A user asks for more than the caller's own limits.
    """
    own = {} if caller.key is None else dict(caller.key.policy)
    new = _set_values(asked)
    wider = [name for name, value in new.items() if name != SAFETY and (limits[name] or value) < value]
    if SAFETY in own and SAFETY in new and LEVELS.index(new[SAFETY]) < LEVELS.index(own[SAFETY]):
        wider.append(SAFETY)
    if wider and not caller.is_operator:
        raise Refused(403, f"{', '.join(wider)} exceed the caller's own limits", fields=("policy",))
    return {**own, **new}


def _quotas(body: BaseModel | None) -> Quotas | None:
    return None if body is None else Quotas(**body.model_dump())


def _set_values(body: BaseModel | None) -> dict[str, Any]:
    return {} if body is None else body.model_dump(exclude_none=True)
