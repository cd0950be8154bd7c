"""`limner models`: every model, adapter, embedding and network on this machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.catalogue.contents import KINDS, Kind
from limner.settings import Settings

from . import terminal
from .pull import pull

app = typer.Typer(add_completion=False)
app.command("pull")(pull)

KindName = StrEnum("KindName", {kind: kind for kind in KINDS})  # type: ignore[misc]

Folders = list[Path] | None


def _folder(name: str, what: str) -> Any:
    return typer.Option(name, help=f"Folder of {what}. May be repeated.", metavar="FOLDER")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    kind: Annotated[list[KindName] | None, typer.Option(help="List this kind only. May be repeated.")] = None,
    family: Annotated[
        str | None, typer.Option(help="List what serves this family: sd1, sd2, xl, xl_refiner or custom.")
    ] = None,
    model_dir: Annotated[Folders, _folder("--model-dir", "checkpoints, autoencoders and upscalers")] = None,
    lora_dir: Annotated[Folders, _folder("--lora-dir", "LoRA files")] = None,
    embedding_dir: Annotated[Folders, _folder("--embedding-dir", "textual inversions")] = None,
    control_dir: Annotated[Folders, _folder("--control-dir", "ControlNets and T2I-Adapters")] = None,
    image_prompt_dir: Annotated[
        Folders, _folder("--image-prompt-dir", "IP-Adapters and image encoders")
    ] = None,
    hashes: Annotated[bool, typer.Option("--hash", help="Hash the files, which reads them whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models on this machine.

    These are the ones that ship with Limner, those in the hub's cache, those that limner models pull fetched,
    and those in the given folders, with adapters, embeddings and control networks.
    """
    if context.invoked_subcommand is not None:
        return
    from huggingface_hub import constants

    from limner.catalogue.catalogue import Catalogue
    from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
    from limner.settings.serve import ServeSettings
    from limner.weights.checkpoint import checked

    settings, service = Settings.read(), ServeSettings.read()
    given: dict[Kind, Sequence[Path]] = {
        "checkpoint": model_dir or service.model_dirs,
        "lora": lora_dir or settings.lora_dirs,
        "embedding": embedding_dir or settings.embedding_dirs,
        "controlnet": control_dir or settings.control_dirs,
        "ip_adapter": image_prompt_dir or settings.image_prompt_dirs,
    }
    catalogue = Catalogue(
        {one: (*given.get(one, ()), service.pulled_models / one) for one in KINDS},
        cache=settings.cache_dir,
        shipped=SHIPPED | SHIPPED_NETWORKS,
        hub_cache=Path(constants.HF_HUB_CACHE),
    )
    if hashes:
        catalogue.refresh()
        catalogue.wait_hashed()
    wanted = [one.value for one in kind or ()]
    found = [
        checked(entry) if entry.kind == "checkpoint" else entry
        for entry in catalogue.entries(family=family)
        if not wanted or entry.kind in wanted
    ]
    if as_json:
        typer.echo(json.dumps([_described(entry) for entry in found], indent=2, default=str))
        return
    if not found:
        terminal.note("nothing is installed; name a model on the hub, such as --model organisation/name")
        return
    rows = [
        (
            f"{entry.name} ({entry.variant})" if entry.variant else entry.name,
            entry.kind,
            entry.problem or entry.family,
            _figure(entry.parameters, ("", " k", " M", " G"), 1000) if entry.parameters else "",
            _figure(entry.bytes, (" B", " KiB", " MiB", " GiB"), 1024) if entry.bytes else "",
            *((entry.short_hash or "",) if hashes else ()),
            entry.where,
            str(entry.path),
        )
        for entry in found
    ]
    hash_column = ("hash",) if hashes else ()
    terminal.columns(rows, ("name", "kind", "family", "parameters", "size", *hash_column, "where", "path"))


def _described(entry: Any) -> dict[str, Any]:
    described = asdict(entry)
    del described["stamp"]
    return described


def _figure(value: float, units: tuple[str, ...], base: int) -> str:
    """A count with three digits and a unit."""
    power = 0
    while value >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = 0 if power == 0 or value >= 100 else 1
    return f"{value:.{digits}f}{units[power]}"
