"""`limner accounts`: the accounts of a service."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import typer

from limner.errors import InvalidRequest
from limner.files import whole_file
from limner.request.policy import RequestPolicy
from limner.safety.policy import LEVELS
from limner.service.identity import SAFETY, Account, Quotas, Role

from . import terminal
from .opening import DataOption, image_release, open_ledger, service_settings

app = typer.Typer(
    help="Manage the accounts of a service: roles, shares, quotas, export and erasure.",
    no_args_is_help=True,
    add_completion=False,
)

RoleName = StrEnum("RoleName", {role: role for role in get_args(Role)})  # type: ignore[misc]
_POLICY = tuple(one.name for one in fields(RequestPolicy))
_QUOTAS = get_type_hints(Quotas)

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Name of the account.")]
RoleOption = Annotated[
    RoleName | None, typer.Option(help="user, or operator, who sees and changes the objects of all accounts.")
]
WeightOption = Annotated[
    float | None, typer.Option(help="Share of the devices relative to other accounts.", metavar="NUMBER")
]
QuotaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        metavar="NAME=VALUE",
        help=f"Quota: {', '.join(_QUOTAS)}. NAME=none takes it away. May be repeated.",
    ),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help=f"What one request may ask: {', '.join(_POLICY)}; or {SAFETY}={'|'.join(LEVELS)}, the level of "
        "the safety policy. NAME=none takes it away. May be repeated.",
    ),
]


@app.command("list")
def list_accounts(
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the accounts."""
    with open_ledger(data) as ledger:
        found = ledger.list_accounts()
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    rows = [
        (
            one.id,
            one.role,
            f"{one.weight:g}",
            "locked out" if one.disabled else "",
            _written({name: value for name, value in asdict(one.quotas).items() if value is not None}),
            _written(one.policy),
        )
        for one in found
    ]
    terminal.columns(rows, ("account", "role", "weight", "", "quotas", "limits"))


@app.command()
def create(
    account: AccountArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    quota: QuotaOption = None,
    limit: LimitOption = None,
    data: DataOption = None,
) -> None:
    """Make an account. `limner keys create` makes a key for it."""
    with open_ledger(data) as ledger:
        ledger.create_account(
            account,
            role=_role(role) or "user",
            weight=1.0 if weight is None else weight,
            quotas=_quotas(Quotas(), quota),
            policy=policy_of({}, limit),
            actor="cli",
        )
    terminal.note(f"account {account} is made; make a key for it: limner keys create --account {account}")


@app.command()
def change(
    account: AccountArgument,
    role: RoleOption = None,
    weight: WeightOption = None,
    quota: QuotaOption = None,
    limit: LimitOption = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Lock it out, or let it in again.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Change an account. What is not given stays as it is."""
    with open_ledger(data) as ledger:
        known = ledger.get_account(account)
        changed = ledger.update_account(
            account,
            role=_role(role),
            weight=weight,
            quotas=_quotas(known.quotas, quota) if quota else None,
            policy=policy_of(known.policy, limit) if limit else None,
            disabled=disable,
            actor="cli",
        )
    terminal.note(_told(changed))


@app.command()
def export(
    account: AccountArgument,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: ACCOUNT.zip.", metavar="FILE")
    ] = None,
    data: DataOption = None,
) -> None:
    """Write everything that is kept of an account to a ZIP file."""
    target = out or Path(f"{account}.zip")
    with open_ledger(data) as ledger:
        ledger.get_account(account)
        with whole_file(target) as temporary, temporary.open("wb") as file:
            count = _retention(ledger, data).export(account, file, image_release(ledger, data))
        ledger.audit("cli", "account.exported", account)
    terminal.note(f"{count} files of {account}")
    typer.echo(str(target))


@app.command()
def erase(
    account: AccountArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataOption = None,
) -> None:
    """Erase an account and everything of it: keys, jobs, images, uploads, drafts.

    It cannot be undone. What it has used stays in the sums of limner usage, without its name.
    """
    with open_ledger(data) as ledger:
        ledger.get_account(account)
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidRequest(f"erasing {account} cannot be undone", hint="confirm it by --yes")
            typer.confirm(f"Erase {account} and everything of it?", abort=True, err=True)
        erased = _retention(ledger, data).erase(account, actor="cli")
    terminal.note(f"erased {account}: {erased.images} images, {erased.uploads} uploads")


def _retention(ledger: Any, data: Path | None) -> Any:
    from limner.service.metrics import Meter
    from limner.service.retention import Retention
    from limner.service.storage import ImageStore

    settings = service_settings(data)
    store = ImageStore.in_folder(settings.data / "pictures")
    return Retention(ledger, store, settings, Meter())


def _role(name: RoleName | None) -> Role | None:
    return None if name is None else cast(Role, name.value)


def _quotas(known: Quotas, given: Sequence[str] | None) -> Quotas:
    values = _pairs(given, "--quota", tuple(_QUOTAS))
    changed: dict[str, Any] = {
        name: None if text is None else _number(name, text, whole="float" not in str(_QUOTAS[name]))
        for name, text in values.items()
    }
    return replace(known, **changed)


def policy_of(known: Any, given: Sequence[str] | None) -> dict[str, Any]:
    """A policy, changed by options such as "max_steps=30" and "max_steps=none"."""
    values = _pairs(given, "--limit", (*_POLICY, SAFETY))
    changed: dict[str, Any] = {}
    for name, text in values.items():
        if text is None or (name == SAFETY and text in LEVELS):
            changed[name] = text
        elif name == SAFETY:
            raise InvalidRequest(f"--limit {name}={text}: expected one of {', '.join(LEVELS)}, or none")
        else:
            changed[name] = _number(name, text, whole=True)
    return {name: value for name, value in {**known, **changed}.items() if value is not None}


def _pairs(given: Sequence[str] | None, option: str, names: Sequence[str]) -> dict[str, str | None]:
    """Values by name; None for one that is taken away."""
    pairs: dict[str, str | None] = {}
    for pair in given or ():
        name, sign, text = (part.strip() for part in pair.partition("="))
        if not sign or name not in names:
            raise InvalidRequest(f"{option} {pair}: expected NAME=VALUE with one of {', '.join(names)}")
        pairs[name] = None if text == "none" else text
    return pairs


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not value >= 0:
        raise InvalidRequest(f"{name}={text}: expected a number that is not negative, or none")
    return value


def _told(account: Account) -> str:
    quotas = {name: value for name, value in asdict(account.quotas).items() if value is not None}
    parts = [f"{account.role}, weight {account.weight:g}", "locked out" if account.disabled else ""]
    parts += [_written(quotas), _written(account.policy)]
    return f"account {account.id}: {'; '.join(filter(None, parts))}"


def _written(values: Any) -> str:
    return ", ".join(
        f"{name}={value if isinstance(value, str) else f'{value:g}'}" for name, value in values.items()
    )
