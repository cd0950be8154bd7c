"""What this service can generate with: models, adapters, samplers; and the schema of a request."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from PIL import Image
from pydantic import BaseModel, Field
from starlette.responses import Response

from limner.catalogue.catalogue import Entry
from limner.catalogue.contents import KINDS, Kind
from limner.catalogue.files import CatalogueFiles
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.errors import LimnerError, NotFound
from limner.files import StampCache
from limner.request import GenerationRequest
from limner.server.auth import Reader
from limner.server.compressed import GZIP_LEVEL, CompressedBody
from limner.server.ranges import REVALIDATED
from limner.server.state import ServerState, in_decoder, in_thread, state_of
from limner.service.release import encoded_thumbnail

router = APIRouter(tags=["models"])

_LISTINGS = 32  # lists that are kept
_THUMBNAIL: dict[int | str, dict[str, Any]] = {200: {"content": {"image/webp": {}}}}


class ModelView(BaseModel):
    """A checkpoint, adapter, embedding or network on this machine."""

    id: str = Field(description="Id in the catalogue.")
    kind: Kind = Field(description="What it is.")
    name: str = Field(description="Name that requests give for it.")
    family: str = Field(description="Family of models that it is or serves; empty for any.")
    bytes: int = Field(description="Size of its weight files.")
    parameters: int = Field(description="Number of its weights; 0 where that is not known.")
    variant: str | None = Field(default=None, description="Variant of its weight files, such as fp16.")
    revision: str | None = Field(default=None, description="Commit of a hub repository.")
    sha256: str | None = Field(default=None, description="SHA-256 of its file, once it is hashed.")
    trigger_words: list[str] = Field(default=[], description="Trigger words.")
    problem: str | None = Field(default=None, description="Why it cannot be used.")
    aliases: list[str] = Field(default=[], description="Other names that requests may give for it.")
    default: bool = Field(default=False, description="Whether it is the model of requests that name none.")
    warm: bool = Field(default=False, description="Whether a worker has it in memory.")
    fits: bool | None = Field(
        default=None,
        description="Whether it can be used with the model `base`; null for checkpoints, without `base`, and "
        "where only loading it would tell.",
    )
    thumbnail: str | None = Field(default=None, description="Path of a small image of it.")


class ChoiceView(BaseModel):
    """A value of a setting."""

    name: str = Field(description="Name that requests give for it.")
    label: str = Field(description="Name for people.")
    aliases: list[str] = Field(description="Names that other programs have for it.")


class SamplerView(ChoiceView):
    """A sampler."""

    revisits: bool = Field(
        description="Whether it may return to an earlier step: a prompt that changes after a step then also "
        "changes the steps before it."
    )


@router.get("/models", response_model=list[ModelView])
async def list_models(
    request: Request,
    caller: Reader,
    kind: Annotated[list[Kind] | None, Query(description="Only of these kinds. May be repeated.")] = None,
    family: Annotated[
        str | None, Query(max_length=20, description="Only what serves this family of models.")
    ] = None,
    base: Annotated[
        str | None,
        Query(max_length=4096, description="Model for which `fits` is to be said: its id, name or alias."),
    ] = None,
) -> Response:
    """Checkpoints, adapters, embeddings and networks on this machine. It has an ETag."""
    state = state_of(request)
    kinds = frozenset(kind or KINDS)
    body = await in_thread(_listing, state, kinds, family, base)
    return body.respond(request, {"cache-control": REVALIDATED})


def _listing(
    state: ServerState, kinds: frozenset[Kind], family: str | None, base: str | None
) -> CompressedBody:
    """A list of models as it is sent, made anew only where the catalogue or the workers have changed."""
    entries = state.catalogue.entries()
    listed, listings = state.listings
    if listed is not entries:
        listings = {}
        state.listings = entries, listings
    warm = _warm(state)
    key = kinds, family, base, warm
    if (known := listings.get(key)) is not None:
        return known
    model = None if base is None else state.intake.find_model(base)
    files = None if model is None else CatalogueFiles(state.catalogue, state.intake.facts(model))
    views = [
        _view(entry, state, warm, None if files is None else _fits(entry, files)).model_dump()
        for entry in entries
        if entry.kind in kinds and (family is None or entry.family in (family, ""))
    ]
    body = CompressedBody.of(json.dumps(views).encode(), "application/json", level=GZIP_LEVEL)
    if len(listings) >= _LISTINGS:
        listings.clear()
    listings[key] = body
    return body


@router.get("/models/{model_id:path}/thumbnail", responses=_THUMBNAIL)
async def model_thumbnail(request: Request, caller: Reader, model_id: str) -> Response:
    """A small WebP of the image that lies beside a file of weights, at most 384 pixels a side."""
    state = state_of(request)
    entries = await in_thread(state.catalogue.entries)
    entry = next((one for one in entries if one.id == model_id), None)
    if entry is None or entry.preview is None:
        raise NotFound("there is no image of this model")
    try:
        data = await in_decoder(state, _previews.get, entry.preview)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NotFound("the image of this model cannot be read") from error
    [shown] = await state.gate.passed(caller, [data])
    return CompressedBody.of(shown, "image/webp").respond(request, {"cache-control": REVALIDATED})


@router.get("/models/{model_id:path}")
async def show_model(request: Request, caller: Reader, model_id: str) -> ModelView:
    """One of them, by its id, or a checkpoint by its name or an alias."""
    state = state_of(request)
    warm = _warm(state)
    for entry in await in_thread(state.catalogue.entries):
        if entry.id == model_id:
            return _view(entry, state, warm)
    if "/" in model_id[:1]:
        raise NotFound("there is no model of this id")
    return _view(await in_thread(state.intake.find_model, model_id), state, warm)


@router.get("/samplers")
async def list_samplers(caller: Reader) -> list[SamplerView]:
    """Samplers."""
    return [
        SamplerView(name=name, label=one.label, aliases=list(one.aliases), revisits=one.revisits)
        for name, one in SAMPLER_TABLE.items()
    ]


@router.get("/sigma-schedules")
async def list_sigma_schedules(caller: Reader) -> list[ChoiceView]:
    """Sigma schedules."""
    return [
        ChoiceView(name=name, label=one.label, aliases=list(one.aliases))
        for name, one in SIGMA_SCHEDULES.items()
    ]


@router.get("/schema")
async def request_schema(caller: Reader) -> dict[str, Any]:
    """The JSON schema of a request, as `limner schema` prints it."""
    return GenerationRequest.model_json_schema()


def thumbnail_path(entry: Entry) -> str | None:
    """Path of a small image of an entry; None where there is no image beside its file."""
    if entry.preview is None:
        return None
    return f"/api/v1/models/{quote(entry.id, safe='/:')}/thumbnail"


def _warm(state: ServerState) -> frozenset[str]:
    """Ids of the checkpoints that a worker has in memory."""
    return frozenset(one for worker in state.hub.workers for one in worker.models)


def _fits(entry: Entry, files: CatalogueFiles) -> bool | None:
    """Whether something can be used with the model of `files`; None where only loading it would tell."""
    if entry.kind == "checkpoint":
        return None
    if entry.problem is not None or entry.family not in ("", files.family):
        return False
    if entry.family != "custom":
        return True
    if entry.kind != "lora":
        return None
    try:  # models of their own sizes differ among each other
        files.check_lora(entry, entry.name)
    except (LimnerError, OSError):
        return False
    return True


def _preview(path: Path) -> bytes:
    """A thumbnail of an image beside a file of weights."""
    with Image.open(path) as opened:
        return encoded_thumbnail(opened, "RGB")


_previews = StampCache(_preview, 1000)


def _view(entry: Entry, state: ServerState, warm: Set[str], fits: bool | None = None) -> ModelView:
    settings = state.settings
    checkpoint = entry.kind == "checkpoint"
    names = {entry.id, entry.name}
    return ModelView(
        id=entry.id,
        kind=entry.kind,
        name=entry.name,
        family=entry.family,
        bytes=entry.bytes,
        parameters=entry.parameters,
        variant=entry.variant,
        revision=entry.revision,
        sha256=entry.sha256,
        trigger_words=list(entry.trigger_words),
        problem=None if entry.problem is None else entry.problem.replace(str(entry.path), entry.name),
        aliases=[alias for alias, meant in settings.aliases.items() if checkpoint and meant in names],
        default=checkpoint and settings.model in names,
        warm=entry.id in warm,
        fits=fits,
        thumbnail=thumbnail_path(entry),
    )
