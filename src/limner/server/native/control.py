"""Control images: the preprocessors that make them, and a look at what one makes of an upload."""

import inspect
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from limner.errors import InvalidRequest
from limner.images.preprocess import PREPROCESSORS, option_names, preprocessor
from limner.server.auth import Reader, Submitter
from limner.server.bodies import body_schema, read_body
from limner.server.state import in_thread, state_of

from .uploads import upload_content

router = APIRouter(prefix="/control", tags=["requests"])

_SECONDS = 30.0  # that a preview may take, with the time until a worker is free
_MAX_SIDE = 2048
_IMAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


class OptionView(BaseModel):
    """An option of a preprocessor."""

    name: str = Field(description="Its name.")
    default: float = Field(description="Its value where none is given.")
    whole: bool = Field(description="Whether it takes whole numbers only.")


class PreprocessorView(BaseModel):
    """A way to make a control image from an image."""

    name: str = Field(description="What the `preprocessor` of a control gives.")
    description: str = Field(description="What it makes.")
    options: list[OptionView] = Field(
        description="Options, in the order in which their values follow the name: `canny:50:150`."
    )


class ControlPreviewBody(BaseModel):
    """An image, and what makes a control image of it."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        pattern="^sha256:[0-9a-f]{64}$", description="An upload of the account: `sha256:` and its hash."
    )
    preprocessor: str = Field(
        min_length=1, max_length=64, description="As of a control: a name, and perhaps values of its options."
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_SIDE,
        description="Width of the image that would be drawn: the upload is scaled to it first. "
        "Given together with `height`; default: the upload's own size.",
    )
    height: int | None = Field(default=None, ge=1, le=_MAX_SIDE, description="Height, as `width`.")

    @model_validator(mode="after")
    def _size_is_whole(self) -> "ControlPreviewBody":
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        return self


@router.get("/preprocessors")
async def list_preprocessors(request: Request, caller: Reader) -> list[PreprocessorView]:
    """The preprocessors that a control may name. Other control images are given ready-made."""
    return [
        PreprocessorView(name=name, description=_summary(name), options=_options(name))
        for name in PREPROCESSORS
    ]


@router.post(
    "/preview", openapi_extra=body_schema(ControlPreviewBody), responses=_IMAGE, response_class=Response
)
async def preview_control(request: Request, caller: Submitter) -> Response:
    """The control image that a preprocessor makes of an upload, as a PNG. A worker makes it at once; nothing
    is stored. Under a safety policy with rules about images it is checked, as the upload itself.

    An unknown preprocessor, one that is a network, or one whose library is not installed is refused with 422.
    """
    state = state_of(request)
    body = await read_body(request, ControlPreviewBody)
    digest = body.image.removeprefix("sha256:")

    def read() -> bytes:
        state.ledger.get_upload(caller.account.id, digest)
        return upload_content(state, digest, "image")

    params = {"preprocessor": body.preprocessor, "width": body.width, "height": body.height}
    data = await in_thread(read)
    try:
        preprocessor(body.preprocessor)  # an unknown one is refused without a worker
        _, [made] = await state.hub.call("preprocess", params, [data], timeout=_SECONDS)
    except InvalidRequest as error:
        error.fields = error.fields or ("preprocessor",)
        raise
    [shown] = await state.gate.passed(caller, [made], made_from=[data])
    return Response(shown, media_type="image/png", headers={"cache-control": "no-store"})


def _summary(name: str) -> str:
    """The first paragraph of its docstring."""
    return " ".join((inspect.getdoc(PREPROCESSORS[name]) or "").partition("\n\n")[0].split())


def _options(name: str) -> list[OptionView]:
    parameters = inspect.signature(PREPROCESSORS[name]).parameters
    return [
        OptionView(name=one, default=parameters[one].default, whole=type(parameters[one].default) is int)
        for one in option_names(name)
    ]
