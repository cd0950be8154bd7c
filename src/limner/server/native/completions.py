"""Completions for editors of prompts."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from limner.server.auth import Reader
from limner.server.state import in_thread, state_of
from limner.service.completions import COMPLETION_KINDS, Completion, CompletionKind

from .models import thumbnail_path

router = APIRouter(tags=["requests"])


class CompletionView(BaseModel):
    """Something that can be completed."""

    kind: CompletionKind = Field(description="What it is; `word` is one that the model was trained on.")
    name: str = Field(description="Its name.")
    insert: str = Field(description="What stands in the prompt for it; a style's name stands in `styles`.")
    trigger_words: list[str] = Field(description="Words that it answers to.")
    detail: str = Field(description="What it is, in a few words.")
    thumbnail: str | None = Field(description="Path of a small image of it.")
    family: str = Field(description="Family of models that it serves; empty for any.")


@router.get("/completions")
async def complete(
    request: Request,
    caller: Reader,
    q: Annotated[str, Query(max_length=200, description="Of the name or of a trigger word.")] = "",
    kind: Annotated[
        list[CompletionKind] | None, Query(max_length=10, description="Only of these kinds. May be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        Query(max_length=4096, description="Model that the prompt is for. Default: the service's."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most completions.")] = 20,
) -> list[CompletionView]:
    """What a word of a prompt may become, the likeliest first. What is for another family is left out."""
    state = state_of(request)

    def find() -> list[Completion]:
        entry = state.intake.find_model(model or state.settings.model)
        return state.completions.find(q, entry, kind or COMPLETION_KINDS, limit)

    return [_view(one) for one in await in_thread(find)]


def _view(one: Completion) -> CompletionView:
    return CompletionView(
        kind=one.kind,
        name=one.name,
        insert=one.insert,
        trigger_words=list(one.trigger_words),
        detail=one.detail,
        thumbnail=None if one.entry is None else thumbnail_path(one.entry),
        family=one.family,
    )
