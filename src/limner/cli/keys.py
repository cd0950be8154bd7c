"""`limner keys`: API keys of the service."""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, cast

import typer

from limner.errors import NotFound
from limner.service.identity import LOCAL_ACCOUNT, SCOPES, ApiKey, Scope

from . import terminal
from .accounts import LimitOption, policy_of
from .moments import seconds, when
from .opening import AccountOption, DataOption, JsonOption, open_ledger

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Create, list and revoke API keys of limner serve."
)

ScopeName = StrEnum("ScopeName", {scope: scope for scope in SCOPES})  # type: ignore[misc]


@app.command()
def create(
    account: Annotated[
        str,
        typer.Option(
            help="Account that the key is for, made if there is none. Default: local, the operator that "
            "callers on this machine are.",
            metavar="ACCOUNT",
        ),
    ] = LOCAL_ACCOUNT,
    name: Annotated[str, typer.Option(help="What the key is for, in your words.", metavar="TEXT")] = "",
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="What it is good for. May be repeated. Default: everything of the account."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it is good, such as 30d or 12h.", metavar="DURATION")
    ] = None,
    limit: LimitOption = None,
    operator: Annotated[
        bool,
        typer.Option("--operator", help="Make the account one that sees and changes those of all others."),
    ] = False,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Create a key. It is shown this once: the ledger keeps a hash of it.

    The key goes to standard output. Clients send it as `Authorization: Bearer KEY`.
    """
    policy = policy_of({}, limit)
    expires_in = None if expires is None else seconds(expires, "expires")
    with open_ledger(data, create=True) as ledger:
        try:
            found = ledger.get_account(account)
        except NotFound:
            found = ledger.create_account(account, role="operator" if operator else "user")
            terminal.note(f"the account {account} is new")
        if operator and found.role != "operator":
            ledger.update_account(account, role="operator")
            terminal.note(f"the account {account} is an operator now")
        scopes = cast(tuple[Scope, ...], tuple(one.value for one in scope)) if scope else SCOPES
        key, secret = ledger.create_key(
            account, name=name, scopes=scopes, expires_in=expires_in, policy=policy
        )
    if as_json:
        typer.echo(json.dumps(asdict(key) | {"secret": secret}, indent=2))
        return
    typer.echo(secret)
    until = "" if key.expires_at is None else f" until {when(key.expires_at)} UTC"
    terminal.note(
        f"key {key.id} of {account}, good{until} for {', '.join(key.scopes)}; it is not shown again"
    )


@app.command("list")
def list_keys(account: AccountOption = None, as_json: JsonOption = False, data: DataOption = None) -> None:
    """List keys, those that are revoked or have expired too."""
    with open_ledger(data) as ledger:
        found, now = ledger.list_keys(account), ledger.now()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found], indent=2))
        return
    if not found:
        terminal.note("there are no keys; limner keys create makes one")
        return
    rows = [
        (
            key.id,
            key.account_id,
            key.name,
            _state(key, now),
            ", ".join(key.scopes),
            when(key.created_at),
            when(key.last_used_at) or "never",
        )
        for key in found
    ]
    terminal.columns(rows, ("key", "account", "name", "state", "scopes", "created", "last used"))


@app.command()
def revoke(
    keys: Annotated[
        list[str], typer.Argument(help="Ids of keys, as limner keys list shows them.", metavar="KEY ...")
    ],
    data: DataOption = None,
) -> None:
    """Revoke keys: they are refused from the next request on."""
    with open_ledger(data) as ledger:
        for key_id in keys:
            try:
                key = ledger.revoke_key(key_id.split("_")[1] if key_id.startswith("lim_") else key_id)
            except NotFound as error:
                raise NotFound(error.message, hint="`limner keys list` shows their ids") from None
            terminal.note(f"key {key.id} of {key.account_id} is revoked")


def _state(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return "expired"
    return "good" if key.expires_at is None else f"until {when(key.expires_at)}"
