"""`limner safety`: what a safety policy says, without generating anything."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.lines import read_prompt
from limner.cli.opening import JsonOption

from . import terminal

if TYPE_CHECKING:
    from limner.safety.decisions import BaseDecision
    from limner.safety.policy import Action

app = typer.Typer(
    help="Show what a safety policy says about prompts and images.",
    no_args_is_help=True,
    add_completion=False,
)
check = typer.Typer(help="Check prompts and images.", no_args_is_help=True, add_completion=False)
app.add_typer(check, name="check")

Safety = Annotated[
    str, typer.Option(help="Policy: off, standard, strict, or a policy file.", metavar="LEVEL|FILE")
]


@app.callback()
def _group() -> None:
    """Show what a safety policy says about prompts and images."""


@check.callback()
def _checks() -> None:
    """Check prompts and images against a safety policy."""


@check.command()
def prompt(
    text: Annotated[str, typer.Argument(help="The prompt; `-` reads it from standard input.")],
    negative_prompt: Annotated[str, typer.Option(help="The negative prompt.", metavar="TEXT")] = "",
    safety: Safety = "standard",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy says about a prompt: the action, the rules that apply, and the words.

    "off" has only the rules that are part of every policy. The exit code is 3 where the prompt is refused,
    else 0.
    """
    from limner.safety.policy import load_policy
    from limner.safety.prompts import check_prompt

    decision = check_prompt(read_prompt(text) or "", load_policy(safety), negative_prompt)
    if as_json:
        typer.echo(json.dumps(decision.to_dict(), ensure_ascii=False, indent=2))
    else:
        terminal.columns(_rows(decision))
    _end([decision.action])


@check.command()
def picture(
    files: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    safety: Safety = "standard",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy says about images: the action, the rules that apply, and each checker's scores.

    "off" has no rules about images. The exit code is 3 where an image is blocked, else 0.
    """
    import numpy as np

    from limner.images.opening import open_image, to_rgb
    from limner.safety.images import check_images, load_checkers
    from limner.safety.policy import load_policy

    policy = load_policy(safety)
    checkers, decisions = load_checkers(policy), []
    for number, file in enumerate(files):
        [decision] = check_images([np.asarray(to_rgb(open_image(file)))], policy, checkers)
        decisions.append(decision)
        if as_json:
            continue
        scores = [
            (f"{name} {category}", f"{score:.3g} ({decision.checkers[name]})")
            for name, found in decision.scores.items()
            for category, score in found.items()
        ]
        if number:
            typer.echo()
        terminal.columns([("image", str(file)), *_rows(decision), *scores])
    if as_json:
        found = [{"file": str(file), **one.to_dict()} for file, one in zip(files, decisions, strict=True)]
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    _end(one.action for one in decisions)


def _rows(decision: "BaseDecision[Any]") -> list[tuple[str, str]]:
    """The action, the policy, and each rule that applies."""
    rules = [
        (one.rule, f"{one.action.value}, score {one.score:.3g}: {one.reason}") for one in decision.findings
    ]
    return [("action", decision.action.value), ("policy", decision.version), *rules]


def _end(actions: "Iterable[Action]") -> None:
    """Exit with code 3 if anything is blocked."""
    if any(action.value == "block" for action in actions):
        raise typer.Exit(3)
