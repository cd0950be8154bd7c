"""`limner models`: what is installed."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from limner.cli import terminal


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models on this machine: the one that ships with Limner, and those in the hub's cache."""
    from limner.weights.hub import list_models

    found = list_models()
    if as_json:
        typer.echo(json.dumps([asdict(model) for model in found], indent=2, default=str))
        return
    if not found:
        terminal.note("no models are installed; name one on the hub, such as --model organisation/name")
        return
    rows = [
        (
            f"{model.name} ({model.variant})" if model.variant else model.name,
            model.problem or model.family,
            "" if model.problem else _figure(model.parameters, ("", " k", " M", " G"), 1000),
            "" if model.problem else _figure(model.bytes, (" B", " KiB", " MiB", " GiB"), 1024),
            model.where,
            str(model.path),
        )
        for model in found
    ]
    terminal.columns(rows, ("name", "family", "parameters", "size", "where", "folder"))


def _figure(value: float, units: tuple[str, ...], base: int) -> str:
    """A count with three digits and a unit."""
    power = 0
    while value >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = 0 if power == 0 or value >= 100 else 1
    return f"{value:.{digits}f}{units[power]}"
