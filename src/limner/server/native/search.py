"""Search over one's own images, prompt memory and taste."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from limner.errors import LimnerError
from limner.server.auth import Reader, Submitter
from limner.server.bodies import body_schema, read_body
from limner.server.state import ServerState, in_thread, state_of
from limner.service.search import taste
from limner.service.search.account import AccountSearch, Embedded, Order, RememberedPrompt
from limner.service.search.query import CHIPS, MAX_LENGTH, parse_query

from .uploads import upload_content
from .views import checked_id

T = TypeVar("T")

router = APIRouter(tags=["search"])

_UPLOAD = re.compile("sha256:([0-9a-f]{64})")
_WITHOUT_MEANING = "no worker can compare by meaning now: these are found by their words alone"

Text = Annotated[str, Query(max_length=MAX_LENGTH, description="A text, such as a part of a prompt.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Number of prompts at most.")]


class HitView(BaseModel):
    """An image that was found."""

    number: int = Field(description="Its number, which stands for the id in paths.")
    id: str = Field(description="Its id.")
    score: float = Field(
        description="How well it fits: fused ranks, with `like` the cosine with that image, or its taste."
    )
    ratio: float = Field(description="Its width over its height.")
    words: bool = Field(description="Whether its prompt has the words; else it is near in meaning.")


class TermView(BaseModel):
    """A part of the query, as it was read."""

    kind: str = Field(description=f"`word`, `phrase`, or a kind of chip: {', '.join(CHIPS)}.")
    value: str = Field(description="Its text.")


class FoundView(BaseModel):
    """What a search has found."""

    items: list[HitView] = Field(description="The first images, in the order that was asked for.")
    total: int = Field(description="Number of all images that were found.")
    terms: list[TermView] = Field(description="How the query was read.")
    meaning: bool = Field(description="Whether images were compared by meaning or likeness.")
    note: str | None = Field(
        default=None,
        description="Warnings: parts of the query that were not applied, or images not yet indexed.",
    )


class PromptView(BaseModel):
    """A prompt of one's own."""

    prompt: str = Field(description="The prompt.")
    negative_prompt: str = Field(description="The negative prompt; empty without one.")
    kept: int = Field(description="Number of its images that are kept.")
    drawn: int = Field(description="Number of its images.")
    score: float = Field(description="How well it fits; more is better.")
    image: int = Field(description="Number of its newest image that is kept, or of the newest of all.")


class TasteScore(BaseModel):
    """An image as the taste has it."""

    number: int = Field(description="Its number.")
    score: float = Field(description="From -1 to 1; more is more to the taste.")


class ScoresView(BaseModel):
    """Images by taste."""

    items: list[TasteScore] = Field(
        description="The images, best first. Those that cannot be compared yet are left out."
    )
    picks: int = Field(description="Number of kept images that the taste is made of.")


class TasteView(BaseModel):
    """Whether one's taste is used."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = Field(description="Whether images may be ordered by taste.")


@router.get("/images/search")
async def search_images(
    request: Request,
    caller: Reader,
    q: Annotated[
        str,
        Query(
            max_length=MAX_LENGTH,
            description='Words, phrases in quotes, and chips such as `seed:7` or `album:"For Anna"`: '
            + "; ".join(f"`{kind}:` {what}" for kind, what in CHIPS.items())
            + ".",
        ),
    ] = "",
    like: Annotated[
        str | None,
        Query(
            max_length=128,
            description="An image that others are to be like: its id or number, or `sha256:…` of an upload.",
        ),
    ] = None,
    order: Annotated[Order, Query(description="What comes first.")] = "relevance",
    limit: Annotated[int, Query(ge=1, le=10_000, description="Number of images at most.")] = 200,
) -> FoundView:
    """Find images by the words of their prompts, by meaning, by settings, and by likeness.

    Words and meaning are fused. With `like`, words are a condition, and images are ranked by likeness.
    """
    state, account_id = state_of(request), caller.account.id
    query = parse_query(q)
    notes = []
    text = image = None
    if like is not None:
        image = await _image(state, account_id, like)
    elif query.words:
        text = await _if_possible(state.embedder.text(query.text))
        notes += [] if text is not None else [_WITHOUT_MEANING]
    found = await _run(
        state,
        account_id,
        lambda search: search.find(query, text=text, like=image, order=order, limit=limit),
    )
    ids = await in_thread(state.ledger.image_ids, [hit.number for hit in found.hits])
    return FoundView(
        items=[
            HitView(
                number=hit.number, id=ids[hit.number], score=hit.score, ratio=hit.ratio, words=hit.by_words
            )
            for hit in found.hits
            if hit.number in ids
        ],
        total=found.total,
        terms=[TermView(kind=one.kind, value=one.value) for one in found.terms],
        meaning=found.meaning,
        note="; ".join([*notes, *found.notes]) or None,
    )


@router.get("/prompts/suggestions")
async def suggest_prompts(
    request: Request, caller: Reader, q: Text = "", limit: Limit = 10
) -> list[PromptView]:
    """Prompts of one's own whose images were kept: those that fit a text first, by words and by meaning.
    Without a text, those with most kept images."""
    state = state_of(request)
    text = await _if_possible(state.embedder.text(q)) if q.strip() else None
    found = await _run(
        state,
        caller.account.id,
        lambda search: search.recall(q, embedded=text, limit=limit),
    )
    return list(map(_prompt_view, found))


@router.get("/prompts/similar")
async def similar_prompts(
    request: Request,
    caller: Reader,
    q: Annotated[str, Query(min_length=1, max_length=MAX_LENGTH, description="A prompt.")],
    limit: Limit = 10,
) -> list[PromptView]:
    """Prompts of one's own, whether their images were kept or not, nearest in meaning first. The score is the
    cosine."""
    state = state_of(request)
    text = await state.embedder.text(q)
    found = await _run(
        state,
        caller.account.id,
        lambda search: search.recall(q, embedded=text, by_words=False, kept_only=False, limit=limit),
    )
    return list(map(_prompt_view, found))


@router.delete("/prompts/memory", status_code=204)
async def clear_memory(request: Request, caller: Submitter) -> Response:
    """Forget the prompts of all images until now: they are suggested no more. The images stay, and can be
    searched for."""
    await _run(state_of(request), caller.account.id, lambda search: search.clear_memory())
    return Response(status_code=204)


@router.get("/images/taste")
async def rate_images(
    request: Request,
    caller: Reader,
    numbers: Annotated[
        str,
        Query(
            pattern=r"^\d{1,18}(,\d{1,18})*$",
            max_length=20_000,
            description="Numbers of images, with commas between.",
        ),
    ],
) -> ScoresView:
    """How much images are to one's taste, which is made of the images that one keeps. 409 if it is switched
    off."""
    wanted = [int(one) for one in numbers.split(",")]
    scores, picks = await _run(state_of(request), caller.account.id, lambda search: search.taste(wanted))
    best = sorted(scores.items(), key=lambda one: -one[1])
    return ScoresView(items=[TasteScore(number=number, score=score) for number, score in best], picks=picks)


@router.get("/taste")
async def show_taste(request: Request, caller: Reader) -> TasteView:
    """Whether one's taste is used."""
    ledger, account_id = state_of(request).ledger, caller.account.id

    def read() -> taste.Taste:
        ledger.get_account(account_id)  # one that was erased meanwhile has none
        return taste.taste_settings(ledger, account_id)

    return TasteView(enabled=(await in_thread(read)).enabled)


@router.put("/taste", openapi_extra=body_schema(TasteView))
async def switch_taste(request: Request, caller: Submitter) -> TasteView:
    """Switch the taste on or off."""
    body = await read_body(request, TasteView)
    await in_thread(taste.switch_taste, state_of(request).ledger, caller.account.id, body.enabled)
    return body


@router.delete("/taste", status_code=204)
async def clear_taste(request: Request, caller: Submitter) -> Response:
    """Forget the taste: only images that are drawn from now on make it, once they are kept."""
    await _run(state_of(request), caller.account.id, lambda search: search.clear_taste())
    return Response(status_code=204)


async def _run(state: ServerState, account_id: str, act: Callable[[AccountSearch], T]) -> T:
    """The result of `act` on an account's search, in one of the threads for searches."""
    return await to_thread.run_sync(state.searches.run, account_id, act, limiter=state.searchers)


async def _image(state: ServerState, account_id: str, name: str) -> Embedded:
    """The vector of an image or an upload of the account.

    Raises:
        NotFound: There is no such image or upload.
        WorkerUnavailable: It has none yet, and no worker can make it.
    """
    match = _UPLOAD.fullmatch(name)

    def stored() -> Embedded | bytes:
        if match is not None:
            state.ledger.get_upload(account_id, match[1])
            return upload_content(state, match[1], "like")
        image = state.ledger.find_image(checked_id(name, "image"), account_id=account_id)
        known = state.searches.run(account_id, lambda search: search.vector(image.number))
        return state.release.inside(image) if known is None else known

    found = await to_thread.run_sync(stored, limiter=state.searchers)
    return found if isinstance(found, Embedded) else await state.embedder.image(found)


def _prompt_view(one: RememberedPrompt) -> PromptView:
    return PromptView(**asdict(one))


async def _if_possible(embedding: Awaitable[Embedded]) -> Embedded | None:
    """The vector of a text; None where no worker makes it now."""
    try:
        return await embedding
    except LimnerError:
        return None
