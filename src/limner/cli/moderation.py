"""`limner moderation`: the images that the safety policy of a service flags, blurs or blocks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from limner.errors import InvalidRequest
from limner.files import whole_file
from limner.service.reviews import BY_POLICY, Decision, Review, ReviewState

from . import terminal
from .moments import when
from .opening import AccountOption, DataOption, JsonOption, image_release, open_ledger

if TYPE_CHECKING:
    from limner.service.moderation import Moderation

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look at images that the safety policy of a service holds up, and decide.",
)

StateName = StrEnum("StateName", {state: state for state in get_args(ReviewState)})  # type: ignore[misc]
ActionName = StrEnum("ActionName", {action: action for action in BY_POLICY})  # type: ignore[misc]
DecisionName = StrEnum("DecisionName", {name: name for name in get_args(Decision)})  # type: ignore[misc]
ReviewArgument = Annotated[str, typer.Argument(help="Id of a review.", metavar="REVIEW")]
NoteOption = Annotated[str, typer.Option(help="Reason. The account sees it in a notice.", metavar="TEXT")]


@app.command("list")
def list_reviews(
    account: AccountOption = None,
    state: Annotated[
        StateName | None, typer.Option(help="List reviews of this state only; open: undecided ones.")
    ] = None,
    action: Annotated[
        ActionName | None, typer.Option(help="List reviews with this action of the policy only.")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of reviews to list at most.", min=1, max=10_000)] = 50,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List reviews, the newest first, and how many are open."""
    with open_ledger(data) as ledger:
        which = None if state is None else cast(ReviewState, state.value)
        done = None if action is None else action.value
        found = ledger.list_reviews(account, state=which, action=done, limit=count)
        waiting = ledger.open_reviews()
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    if found:
        headings = ("review", "created", "account", "image", "action", "rule", "score", "state", "delivery")
        terminal.columns([_line(one) for one in found], headings)
    parts = ", ".join(f"{number} {name}" for name, number in sorted(waiting.items())) or "none"
    terminal.note(f"{len(found)} listed; open: {parts}")


@app.command()
def show(review: ReviewArgument, as_json: JsonOption = False, data: DataOption = None) -> None:
    """Show a review and what was decided."""
    with open_ledger(data) as ledger:
        found = ledger.get_review(review)
    _print(found, as_json)


@app.command("open")
def open_image(
    review: ReviewArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: REVIEW.png.", metavar="FILE")
    ] = None,
    blurred: Annotated[
        bool, typer.Option("--blurred", help="Write it blurred, which is no entry of the audit log.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Write the image of a review to a file, which is an entry of the audit log."""
    target = out or Path(f"{review}.png")
    with _moderation(data) as moderation:
        content = moderation.covered(review) if blurred else moderation.opened(review, actor="cli")
    with whole_file(target) as temporary:
        temporary.write_bytes(content)
    typer.echo(str(target))


@app.command()
def decide(
    review: ReviewArgument,
    decision: Annotated[
        DecisionName,
        typer.Argument(
            help="uphold: it stays as the policy says; release: deliver it in clear; block: take it down.",
            metavar="DECISION",
        ),
    ],
    note: NoteOption,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Decide an open review."""
    with _moderation(data) as moderation:
        found = moderation.decide(review, cast(Decision, decision.value), note=_checked(note))
    _print(found, as_json)


@app.command()
def reverse(
    review: ReviewArgument, note: NoteOption, as_json: JsonOption = False, data: DataOption = None
) -> None:
    """Undo the decision that holds; it stays on record, and the review is open again."""
    with _moderation(data) as moderation:
        found = moderation.reverse(review, note=_checked(note))
    _print(found, as_json)


@contextmanager
def _moderation(data: Path | None) -> "Iterator[Moderation]":
    from limner.service.moderation import Moderation

    with open_ledger(data) as ledger:
        yield Moderation(ledger, image_release(ledger, data))


def _checked(note: str) -> str:
    if not note.strip():
        raise InvalidRequest("--note is empty; expected the reason of the decision", fields=("note",))
    return note.strip()


def _line(review: Review) -> tuple[str, ...]:
    policy = review.decision
    its = (review.id, when(review.created_at), review.account_id, review.image_id or "", review.action)
    return (*its, str(policy["rule"]), f"{policy['score']:g}", review.state, review.delivery or "not stored")


def _print(review: Review, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(review), indent=2))
        return
    policy = review.decision
    shown = {
        "review": review.id,
        "created": when(review.created_at),
        "account": review.account_id,
        "job": review.job_id,
        "image": review.image_id or "",
        "policy": f"{review.action}, rule {policy['rule']} ({policy['score']:g}): {policy['reason']}",
        "about": "the pixels" if review.stage == "image" else "the prompts",
        "version": str(policy["version"]),
        "state": review.state,
        "delivery": review.delivery or "not stored any more",
    }
    for number, one in enumerate(review.decisions, 1):
        shown[f"decision {number}"] = f"{when(one.at)} {one.actor}: {one.decision}: {one.note}"
    terminal.columns([(label, text) for label, text in shown.items() if text])
