"""`limner safety`: what a safety policy says, without generating anything."""

import json
from typing import Annotated

import typer

from limner.cli.generate import read_prompt
from limner.cli.opening import JsonOption

from . import terminal

app = typer.Typer(
    help="Show what a safety policy says about a prompt.", no_args_is_help=True, add_completion=False
)
check = typer.Typer(help="Check a prompt.", no_args_is_help=True, add_completion=False)
app.add_typer(check, name="check")


@app.callback()
def _group() -> None:
    """Show what a safety policy says about a prompt."""


@check.callback()
def _checks() -> None:
    """Check a prompt against a safety policy."""


@check.command()
def prompt(
    text: Annotated[str, typer.Argument(help="The prompt; `-` reads it from standard input.")],
    negative_prompt: Annotated[str, typer.Option(help="The negative prompt.", metavar="TEXT")] = "",
    safety: Annotated[
        str, typer.Option(help="Policy: off, standard, strict, or a policy file.", metavar="LEVEL|FILE")
    ] = "standard",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy says about a prompt: the action, the rules that apply, and the words.

    "off" has only the rules that are part of every policy. The exit code is 3 where the prompt is refused,
    else 0.
    """
    from limner.safety.policy import Action, load_policy
    from limner.safety.prompts import check_prompt

    decision = check_prompt(read_prompt(text) or "", load_policy(safety), negative_prompt)
    if as_json:
        typer.echo(json.dumps(decision.to_dict(), ensure_ascii=False, indent=2))
    else:
        rows = [("action", decision.action.value), ("policy", decision.version)]
        for one in decision.findings:
            rows.append((one.rule, f"{one.action.value}, score {one.score:g}: {one.reason}"))
        terminal.columns(rows)
    if decision.action is Action.BLOCK:
        raise typer.Exit(3)
