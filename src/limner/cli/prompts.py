"""`limner prompts`: the prompts of an account, on the data folder of the service."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from limner.service.identity import LOCAL_ACCOUNT

from . import terminal
from .opening import DataOption, JsonOption, open_ledger, service_settings

if TYPE_CHECKING:
    from limner.service.search.account import AccountSearch, Embedded, RememberedPrompt

T = TypeVar("T")

app = typer.Typer(
    help="Search the prompts that an account of limner serve has drawn.",
    no_args_is_help=True,
    add_completion=False,
)

TextArgument = Annotated[list[str], typer.Argument(metavar="TEXT ...", help="Words, or a prompt.")]
AccountOption = Annotated[str, typer.Option("--account", help="Account.", metavar="ACCOUNT")]
CountOption = Annotated[int, typer.Option(help="Number of prompts to list at most.", min=1, max=10_000)]
KeptOption = Annotated[bool, typer.Option("--kept", help="Only prompts with an image that is kept.")]

_TEXTS = 256  # prompts that are compared for the first time at once


@app.command()
def search(
    text: TextArgument,
    account: AccountOption = LOCAL_ACCOUNT,
    count: CountOption = 20,
    kept: KeptOption = False,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List prompts that have words, the best first. A last word may be the beginning of one."""
    with _searching(data, account) as searching:
        found = searching(lambda its: its.recall(" ".join(text), kept_only=kept, limit=count))
    _show(found, as_json)


@app.command()
def similar(
    text: TextArgument,
    account: AccountOption = LOCAL_ACCOUNT,
    count: CountOption = 20,
    kept: KeptOption = False,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List prompts that mean something similar, the nearest first, with the cosine as their score."""
    from limner.service.judges import Judges
    from limner.service.search.embedding import embedded_of

    judges, wanted = Judges(), " ".join(text)
    [vector] = embedded_of(*judges.embed_text({"texts": [wanted]}, []))
    with _searching(data, account) as searching:
        while missing := searching(lambda its: its.prompts_without_vector(_TEXTS)):
            made = embedded_of(*judges.embed_text({"texts": list(missing.values())}, []))
            searching(partial(_store, vectors=dict(zip(missing, made, strict=True))))
        found = searching(
            lambda its: its.recall(wanted, embedded=vector, by_words=False, kept_only=kept, limit=count)
        )
    _show(found, as_json)


def _store(search: "AccountSearch", vectors: "dict[int, Embedded]") -> None:
    search.put_vectors("prompt_vectors", vectors)


@contextmanager
def _searching(data: Path | None, account: str) -> "Iterator[Callable[[Callable[[AccountSearch], T]], T]]":
    """A function that runs another on the search of an account, whose index has caught up."""
    from limner.service.search.searches import Searches

    settings = service_settings(data)
    with open_ledger(data) as ledger:
        ledger.get_account(account)
        searches = Searches(ledger, settings.data / "search")
        try:
            while searches.run(account, lambda its: its.catch_up()):
                pass
            yield lambda act: searches.run(account, act)
        finally:
            searches.close()


def _show(found: "list[RememberedPrompt]", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    rows = [(f"{one.score:.3f}", str(one.kept), str(one.drawn), str(one.image), one.prompt) for one in found]
    if rows:
        terminal.columns(rows, ("score", "kept", "drawn", "image", "prompt"))
    terminal.note(f"{len(found)} prompts")
