"""The session of a browser, and what its studio can use of this service."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from limner import __version__
from limner.server.auth import caller_or_none, needs_key, unauthorized
from limner.server.bodies import body_schema, read_body
from limner.server.state import in_thread, state_of
from limner.service.identity import Principal, Scope
from limner.settings.serve import ServeSettings

from .accounts import AccountView, account_view

router = APIRouter(tags=["session"])


class NewSession(BaseModel):
    """A key to sign in with."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=200, description="A key of the service.", repr=False)


class FeaturesView(BaseModel):
    """What a studio can use of this service."""

    previews: bool = Field(description="Whether running jobs send previews.")
    steps: bool = Field(description="Whether previews of the steps of finished images are kept.")
    wildcards: bool = Field(description="Whether there are files for wildcards.")
    styles: bool = Field(description="Whether there are files of styles.")
    currency: str | None = Field(description="Currency of costs; null where device seconds have no price.")
    max_body_bytes: int = Field(description="Size of the largest file that can be uploaded.")
    max_image_pixels: int = Field(description="Pixels of the largest image that can be uploaded.")


class SessionView(BaseModel):
    """Who is calling, and what the service is."""

    needed: bool = Field(description="Whether this caller needs a key.")
    signed_in: bool = Field(description="Whether the service knows who is calling.")
    account: AccountView | None = Field(description="The caller's account; null for one who is not known.")
    scopes: list[Scope] = Field(description="What the caller may do.")
    ends_at: float | None = Field(description="When the session ends; null for a caller without one.")
    version: str = Field(description="Version of Limner.")
    features: FeaturesView = Field(description="What the studio can use.")


@router.get("/session")
async def show_session(request: Request, response: Response) -> SessionView:
    """Who is calling, and what a studio can use of this service. No key is needed.

    A session of which more than half is over is prolonged.
    """
    sessions = state_of(request).sessions
    caller = await caller_or_none(request)
    session = sessions.of(request)
    if session is None or caller is None or caller.key is None or caller.key.id != session.key_id:
        if sessions.cookie in request.cookies and caller is None:
            sessions.end(request, response)
        return await _view(request, caller, None)
    return await _view(request, caller, sessions.renew(request, response, session, caller.key).ends_at)


@router.post("/session", openapi_extra=body_schema(NewSession), response_model=SessionView)
async def sign_in(request: Request, response: Response) -> SessionView:
    """Sign in with a key: the answer sets a cookie that stands for it in later calls of the same browser.

    A change that is made with the cookie needs the header `X-Limner: studio`.
    """
    state, body = state_of(request), await read_body(request, NewSession)
    caller = await in_thread(state.ledger.authenticate, body.key.strip())
    if caller is None or caller.key is None:
        raise unauthorized(request, "the key is not known, or has expired or been revoked")
    session = state.sessions.begin(request, response, caller.key)
    return await _view(request, caller, session.ends_at)


@router.delete("/session", status_code=204)
async def sign_out(request: Request) -> Response:
    """Sign out: the browser forgets its session. No key is needed."""
    response = Response(status_code=204)
    state_of(request).sessions.end(request, response)
    return response


async def _view(request: Request, caller: Principal | None, ends_at: float | None) -> SessionView:
    return SessionView(
        needed=await needs_key(request),
        signed_in=caller is not None,
        account=None if caller is None else account_view(caller.account),
        scopes=[] if caller is None else list(caller.scopes),
        ends_at=ends_at,
        version=__version__,
        features=_features(state_of(request).settings),
    )


def _features(settings: ServeSettings) -> FeaturesView:
    return FeaturesView(
        previews=settings.previews,
        steps=settings.keep_steps,
        wildcards=bool(settings.wildcards_dirs),
        styles=bool(settings.styles_files),
        currency=settings.currency if settings.prices else None,
        max_body_bytes=settings.max_body_bytes,
        max_image_pixels=settings.max_image_pixels,
    )
