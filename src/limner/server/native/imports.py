"""Images of any program: what they say, as a request of this service."""

import io
from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from limner.errors import InvalidPicture, LimnerError
from limner.images.metadata import read_metadata
from limner.images.readers.base import NotTaken
from limner.server.auth import Submitter
from limner.server.state import ServerState, in_decoder, in_thread, state_of
from limner.service.identity import Principal
from limner.service.imports import Here, Replaced, Understood, lay_out
from limner.service.intake import FORMATS, Upload

from .uploads import IMAGE_BODY, image_body

router = APIRouter(tags=["requests"])

_MAX_TEXT = 20_000  # characters of a value that is shown


class UnderstoodView(BaseModel):
    """A value that the request has."""

    field: str = Field(description="Field of the request.")
    label: str = Field(description="Its name for people.")
    value: Any = Field(description="Its value.")


class ReplacedView(BaseModel):
    """Something that is not here, and what stands for it."""

    field: str = Field(description="Field of the request.")
    given: Any = Field(description="What the image says.")
    used: Any = Field(description="What the request says; null for the model's default.")
    reason: str = Field(description="Why.")


class NotUnderstoodView(BaseModel):
    """A value that the request does not have."""

    name: str = Field(description="What the image's program calls it.")
    value: Any = Field(description="Its value.")
    reason: str = Field(description="Why it is not taken over, and what to do.")
    idle: bool = Field(description="Whether it changes no image.")


class ImportView(BaseModel):
    """What an image says."""

    program: str | None = Field(description="Program that wrote it; null for an image that says nothing.")
    understood: list[UnderstoodView] = Field(description="Values that the request has as they are.")
    replaced: list[ReplacedView] = Field(description="What is not here, and what stands for it.")
    not_understood: list[NotUnderstoodView] = Field(description="All other values.")
    request: dict[str, Any] | None = Field(description="A request like the image's; null if it makes none.")
    upload: str = Field(description="The image, for fields that take an image: `sha256:` and its hash.")
    width: int = Field(description="Width of the image in pixels.")
    height: int = Field(description="Height of the image in pixels.")
    note: str | None = Field(description="What concerns no single value.")


@router.post("/imports", status_code=201, openapi_extra=IMAGE_BODY)
async def import_image(request: Request, caller: Submitter) -> ImportView:
    """Lay out what an image says of how it was made, as a request for this service.

    Reads the metadata of Limner, AUTOMATIC1111 and Forge, ComfyUI, InvokeAI, Fooocus, SwarmUI, NovelAI, Draw
    Things and Easy Diffusion. The image becomes an upload.
    """
    state = state_of(request)
    data = await image_body(request)
    checked = await in_thread(state.intake.read_image, data)
    found = await in_decoder(state, _lay_out, state, caller, checked)
    await in_thread(state.intake.store_upload, caller, checked)
    return found


def _lay_out(state: ServerState, caller: Principal, image: Upload) -> ImportView:
    """What an image says. Raises InvalidPicture for a file that is broken."""
    metadata = read_metadata(io.BytesIO(image.data), formats=tuple(FORMATS))
    try:
        reading = metadata.read()
    except InvalidPicture as error:
        why = "it is part of metadata that cannot be read"
        return _view(
            image,
            program=metadata.program,
            not_understood=[NotTaken(name, text, why) for name, text in metadata.raw().items()],
            note="; ".join(filter(None, (error.message, error.hint))),
        )
    made = lay_out(reading, _here(state, caller))
    notes = list(made.notes)
    if made.request is not None:
        try:
            state.intake.prepare(caller, made.request)
        except LimnerError as error:
            notes.append("; ".join(filter(None, (error.message, error.hint))))
    return _view(
        image,
        program=made.program,
        understood=made.understood,
        replaced=made.replaced,
        not_understood=made.not_understood,
        request=None if made.request is None else made.request.model_dump(mode="json", exclude_unset=True),
        note=state.intake.without_paths("; ".join(notes)) or None,
    )


def _here(state: ServerState, caller: Principal) -> Here:
    """What this service has for a caller."""
    return Here(
        checkpoints=state.catalogue.entries("checkpoint"),
        loras=state.catalogue.entries("lora"),
        embeddings=state.catalogue.entries("embedding"),
        default=state.intake.find_model(state.settings.model),
        has_upload=partial(state.ledger.has_upload, caller.account.id),
    )


def _view(
    image: Upload,
    *,
    program: str | None,
    understood: Sequence[Understood] = (),
    replaced: Sequence[Replaced] = (),
    not_understood: Sequence[NotTaken] = (),
    request: dict[str, Any] | None = None,
    note: str | None = None,
) -> ImportView:
    return ImportView(
        program=program,
        understood=[UnderstoodView(field=u.field, label=u.label, value=u.value) for u in understood],
        replaced=[
            ReplacedView(field=one.field, given=_plain(one.given), used=one.used, reason=one.reason)
            for one in replaced
        ],
        not_understood=[
            NotUnderstoodView(name=one.name, value=_plain(one.value), reason=one.reason, idle=one.idle)
            for one in not_understood
        ],
        request=request,
        upload=image.reference,
        width=image.width,
        height=image.height,
        note=note,
    )


def _plain(value: Any) -> Any:
    """A value from an image as JSON can carry it; long texts are cut."""
    match value:
        case str():
            text = value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}…"
            return text.encode("utf-8", "backslashreplace").decode()
        case None | bool() | int():
            return value
        case float():
            return value if isfinite(value) else str(value)
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict():
            return {str(_plain(str(key))): _plain(one) for key, one in value.items()}
    return str(value)
