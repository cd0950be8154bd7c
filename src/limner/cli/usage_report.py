"""`limner usage`: what was used, by account, key, model and day."""

import json
from dataclasses import asdict
from typing import Annotated, cast

import typer

from . import terminal
from .moments import amount, moment
from .opening import AccountOption, DataOption, JsonOption, open_ledger, service_settings


def usage(
    by: Annotated[
        str,
        typer.Option(
            help="What to sum by: account, key, model, day, or several of them.", metavar="NAME,NAME ..."
        ),
    ] = "account",
    account: AccountOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="From when on: a day (UTC) such as 2026-11-30, or a duration such as 7d.", metavar="TIME"
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Until when: as --since. Default: now.", metavar="TIME")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show what was used: images, device seconds and cost.

    Device seconds are those of the forward passes that a job took part in, by its share; those of failed and
    cancelled attempts count too.
    """
    from limner.service.ledger.usage import UsageKey

    names = [cast(UsageKey, name.strip()) for name in by.split(",") if name.strip()]
    start = None if since is None else moment(since, "since")
    end = None if until is None else moment(until, "until")
    with open_ledger(data) as ledger:
        rows = ledger.usage(names, account_id=account, since=start, until=end)
        total = ledger.usage(account_id=account, since=start, until=end)
    if as_json:
        kept = {*names, "images", "jobs", "device_seconds", "cost"}
        found = [{name: value for name, value in asdict(row).items() if name in kept} for row in rows]
        typer.echo(json.dumps(found, indent=2))
        return
    if not rows:
        terminal.note("nothing was used in that time")
        return
    currency = service_settings(data).currency
    table = [
        (
            *(getattr(row, name) or "none" for name in names),
            str(row.images),
            str(row.jobs),
            amount(row.device_seconds, 3),
            amount(row.cost, 6),
        )
        for row in rows
    ]
    terminal.columns(table, (*names, "images", "attempts", "device s", f"cost ({currency})"))
    (whole,) = total
    terminal.note(
        f"in all {whole.images} images, {whole.device_seconds:.1f} device seconds, "
        f"{whole.cost:.4f} {currency}"
    )
