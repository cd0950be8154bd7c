"""How a prompt is read: tokens, weights, chunks and names, as spans of its text."""

import re
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from limner.catalogue.files import CatalogueFiles
from limner.errors import LimnerError
from limner.prompts.analysis import NetworkSpan, PromptAnalysis, PromptPart, analyse_prompt
from limner.prompts.attention import PromptSyntax
from limner.prompts.networks import LORA_TAGS
from limner.prompts.wildcards import Wildcards
from limner.request import GenerationRequest
from limner.request.fields import Prompt
from limner.request.loras import with_loras
from limner.server.auth import Reader
from limner.server.bodies import body_schema, read_body
from limner.server.state import ServerState, in_thread, state_of
from limner.service.vocabulary import CatalogueWords, known_words, tokenizer_of

router = APIRouter(tags=["requests"])

_WORD = re.compile(r"[a-z]+")
_WILDCARD = re.compile(r"__([^\s_{}|$:][^{}|$:\n]*?)__")


class PromptBody(BaseModel):
    """A prompt to analyse."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt = Field(description="The prompt.")
    model: str | None = Field(
        default=None, max_length=4096, description="Model that reads it. Default: the service's."
    )
    prompt_syntax: PromptSyntax = Field(default="a1111", description="As in a request.")
    wildcards: bool = Field(default=False, description="As in a request.")
    steps: int = Field(default=30, ge=1, le=1000, description="Number of steps, for prompts that change.")


class SpanView(BaseModel):
    """A part of the prompt's text."""

    start: int = Field(description="Its first character, from 0, counted in code points.")
    end: int = Field(description="The character after its last.")


class TokenView(SpanView):
    """A token."""

    text: str = Field(description="As the vocabulary has it; empty for a vector of an embedding.")
    id: int | None = Field(description="Id in the vocabulary; null for a vector of an embedding.")
    weight: float = Field(description="Its emphasis.")
    chunk: int = Field(description="Number of the chunk that it is in, from 0.")


class PartView(BaseModel):
    """One of the prompts that AND combines."""

    text: str = Field(description="The text that is encoded.")
    weight: float = Field(description="Its weight.")
    chunks: list[int] = Field(description="Number of tokens of each chunk.")
    tokens: list[TokenView] = Field(description="Its tokens, in order.")
    warnings: list[str] = Field(description="Warnings: text that may have been meant otherwise.")


class StepsView(BaseModel):
    """The prompts of a range of steps."""

    first: int = Field(description="First step, from 1.")
    last: int = Field(description="Last step.")
    parts: list[PartView] = Field(description="The prompts that AND combines, at least one.")


class NameView(SpanView):
    """A name in the prompt that refers to a file of this service."""

    kind: Literal["lora", "embedding", "wildcard", "network", "word"] = Field(
        description="`network` is a tag of another kind of network; `word` one that the model does not know."
    )
    name: str = Field(description="The name.")
    known: bool = Field(description="Whether it can be used with this model.")
    id: str | None = Field(default=None, description="Id in the catalogue.")
    problem: str | None = Field(default=None, description="Why it cannot be used.")
    trigger_words: list[str] = Field(default=[], description="Trigger words.")


class AnalysisView(BaseModel):
    """How a prompt is read."""

    model: str = Field(description="Id of the checkpoint in the catalogue.")
    exact: bool = Field(description="Whether the tokens are the model's own, not those of a similar one.")
    chunk_size: int = Field(description="Number of tokens that a chunk holds.")
    tokens: int = Field(description="Number of tokens of the first range of steps.")
    names: list[NameView] = Field(description="Names and unknown words, in the order of the text.")
    steps: list[StepsView] = Field(description="The prompts from step to step.")
    complete: bool = Field(description="Whether these are all ranges; at most 20 are analysed.")


@router.post("/prompts/analysis", openapi_extra=body_schema(PromptBody), response_model=AnalysisView)
async def analyse(request: Request, caller: Reader) -> AnalysisView:
    """Analyse a prompt as a model reads it, for editors. Nothing is generated."""
    body = await read_body(request, PromptBody)
    return await in_thread(_analyse, state_of(request), body)


def _analyse(state: ServerState, body: PromptBody) -> AnalysisView:
    entry = state.intake.find_model(body.model or state.settings.model)
    facts = state.intake.facts(entry)
    tokenizer, own = tokenizer_of(entry.path)
    words = CatalogueWords(state.catalogue.entries("embedding", facts.family))
    found = analyse_prompt(body.prompt, tokenizer, body.prompt_syntax, words, steps=body.steps)
    files = CatalogueFiles(state.catalogue, facts)
    names = [_network(state, files, tag) for tag in found.networks]
    if body.prompt_syntax == "a1111":
        names += _embeddings(body.prompt, words)
    if body.wildcards:
        names += _wildcards(body.prompt, Wildcards(state.settings.wildcards_dirs))
    names += _unknown_words(body.prompt, found, known_words(entry.path), names)
    first = found.steps[0].parts
    return AnalysisView(
        model=entry.id,
        exact=own,
        chunk_size=found.chunk_size,
        tokens=sum(len(part.tokens) for part in first),
        names=sorted(names, key=lambda one: (one.start, one.end)),
        steps=[
            StepsView(first=one.first, last=one.last, parts=list(map(_part, one.parts)))
            for one in found.steps
        ],
        complete=found.complete,
    )


def _part(part: PromptPart) -> PartView:
    return PartView(
        text=part.text,
        weight=part.weight,
        chunks=list(part.chunks),
        tokens=[
            TokenView(
                start=one.start, end=one.end, text=one.text, id=one.id, weight=one.weight, chunk=one.chunk
            )
            for one in part.tokens
        ],
        warnings=list(part.warnings),
    )


def _network(state: ServerState, files: CatalogueFiles, tag: NetworkSpan) -> NameView:
    name = tag.network.positional[0] if tag.network.positional else ""
    view = NameView(start=tag.start, end=tag.end, kind="network", name=name, known=False)
    if tag.network.kind not in LORA_TAGS:
        return view.model_copy(
            update={"problem": f"networks of the kind {tag.network.kind} are not supported"}
        )
    view = view.model_copy(update={"kind": "lora"})
    text = f"<{tag.network.kind}:{':'.join(tag.network.items)}>"
    try:
        files.adapters(with_loras(GenerationRequest(prompt=text)).loras)
        entry = state.catalogue.find("lora", name, None)
    except LimnerError as error:
        return view.model_copy(update={"problem": state.intake.without_paths(error.message)})
    found = {"known": True, "id": entry.id, "trigger_words": list(entry.trigger_words)}
    return view.model_copy(update=found)


def _embeddings(prompt: str, words: CatalogueWords) -> list[NameView]:
    matches = () if words.pattern is None else words.pattern.finditer(prompt)
    return [
        NameView(
            start=match.start(),
            end=match.end(),
            kind="embedding",
            name=match[0],
            known=words.entries[match[0].lower()].problem is None,
            id=words.entries[match[0].lower()].id,
            problem=words.entries[match[0].lower()].problem and "its file cannot be used",
        )
        for match in matches
    ]


def _wildcards(prompt: str, wildcards: Wildcards) -> list[NameView]:
    names = []
    for match in _WILDCARD.finditer(prompt):
        try:
            wildcards.options(match[1])
            problem = None
        except LimnerError:
            problem = f"there is no wildcard {match[1]!r}"
        view = NameView(
            start=match.start(),
            end=match.end(),
            kind="wildcard",
            name=match[1],
            known=problem is None,
            problem=problem,
        )
        names.append(view)
    return names


def _unknown_words(
    prompt: str, found: PromptAnalysis, known: frozenset[str] | None, names: list[NameView]
) -> list[NameView]:
    """Words that a model with a small vocabulary was not trained on, where they are encoded."""
    if known is None:
        return []
    encoded = {
        index
        for steps in found.steps
        for part in steps.parts
        for token in part.tokens
        for index in range(token.start, token.end)
    }
    taken = {index for one in names for index in range(one.start, one.end)}
    return [
        NameView(start=match.start(), end=match.end(), kind="word", name=match[0], known=False)
        for match in _WORD.finditer(prompt.lower() if len(prompt.lower()) == len(prompt) else prompt)
        if match[0] not in known
        and match[0] != "break"
        and match.start() in encoded
        and match.start() not in taken
    ]
