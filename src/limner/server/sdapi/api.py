"""What the routes of this API share: errors in its shape, bodies read leniently, and what names mean here."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from limner.catalogue.catalogue import Entry
from limner.errors import LimnerError, NotFound
from limner.server.bodies import read_json
from limner.server.problems import Problem, SafeJSON, for_callers
from limner.server.state import ServerState
from limner.service.identity import Principal

from . import names
from .errors import Refusal, body_of, detail_of, status_of
from .options import FIXED, OPTIONS, defaults

M = TypeVar("M", bound=BaseModel)

PREFIXES = ("/sdapi", "/controlnet", "/internal", "/queue/status", "/config")
"""Beginnings of this API's paths. Of `/queue` it has one path only: the rest is ComfyUI's."""

_OPTIONS_NAME = "sdapi.options"  # of the draft that keeps an account's options
_MAX_OPTIONS, _MAX_OPTION = 2000, 20_000  # number of an account's options, and characters of one


class WrongTypes(Exception):
    """A body whose fields have the wrong types.

    Attributes:
        details: pydantic's list of what is wrong.
    """

    def __init__(self, details: list[dict[str, Any]]) -> None:
        super().__init__(details)
        self.details = details


class SdapiRoute(APIRoute):
    """A route that writes errors as AUTOMATIC1111 does, and says how long it took."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, with this API's errors."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            began = time.monotonic()
            try:
                response = await handle(request)
            except LimnerError as error:
                response = _error(for_callers(error))
            except WrongTypes as error:
                response = SafeJSON({"detail": error.details}, 422)
            response.headers["x-process-time"] = f"{time.monotonic() - began:.4f}"
            return response

        return answer


def error_response(problem: Problem) -> Response:
    """A problem of the server itself in the shape of this API."""
    headers = problem.all_headers
    if problem.status == 401:
        headers["www-authenticate"] = "Basic"
        return SafeJSON(body_of("HTTPException", "Incorrect username or password"), 401, headers)
    if problem.status in (404, 405) and problem.code != "model_not_found":
        detail = "Not Found" if problem.status == 404 else "Method Not Allowed"
        return SafeJSON({"detail": detail}, problem.status, headers)
    status = 400 if problem.code == "invalid_request" else problem.status
    return SafeJSON(body_of(_kind(problem.code), problem.text()), status, headers)


def _kind(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


def _error(error: LimnerError) -> Response:
    status = status_of(error)
    retry_after = getattr(error, "retry_after", None)
    headers = {} if retry_after is None else {"retry-after": str(max(1, round(retry_after)))}
    kind = "HTTPException" if isinstance(error, Refusal) else type(error).__name__
    return SafeJSON(body_of(kind, detail_of(error)), status, headers)


async def read_object(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Args:
        optional: Whether no body means an empty object; else it is an error, as in AUTOMATIC1111.

    Raises:
        Refused: The body is no JSON.
        WrongTypes: It is no object, or there is none.
    """
    if not (await request.body()).strip():
        if optional:
            return {}
        raise WrongTypes([{"loc": ["body"], "msg": "field required", "type": "value_error.missing"}])
    value = await read_json(request, any_type=True)
    if not isinstance(value, dict):
        raise WrongTypes([{"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"}])
    return value


def read_fields(kind: type[M], value: dict[str, Any]) -> M:
    """An object as a model. Raises WrongTypes with pydantic's list."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise WrongTypes([{**fault, "loc": ["body", *fault["loc"]]} for fault in faults]) from None


@dataclass(frozen=True)
class Place:
    """What names mean for a caller.

    Attributes:
        state: State of the server.
        caller: The caller.
    """

    state: ServerState
    caller: Principal

    def models(self) -> names.Models:
        """The models that there are."""
        return names.Models(self.state.catalogue.entries("checkpoint"), self.state.settings.aliases)

    def default_model(self) -> Entry:
        """The model of requests that name none."""
        return self.state.intake.find_model(self.state.settings.model)

    def options(self) -> dict[str, Any]:
        """The options of the caller's account."""
        try:
            kept = self.state.ledger.get_draft(self.caller.account.id, _OPTIONS_NAME).value
        except NotFound:
            kept = {}
        return {**defaults(), **(kept if isinstance(kept, dict) else {})}

    def keep_options(self, given: dict[str, Any]) -> None:
        """Keep options of the account. Unknown ones are kept as well, so that a client finds its own again.

        Raises:
            Refusal: A model that there is not, or far too many options.
        """
        checkpoint = given.get("sd_model_checkpoint")
        if checkpoint:
            self.models().find(str(checkpoint), "sd_model_checkpoint")
        values = {**self.options(), **given}
        kept = {
            name: value
            for name, value in values.items()
            if name not in FIXED and not (name in OPTIONS and value == OPTIONS[name].default)
        }
        if len(kept) > _MAX_OPTIONS or any(len(repr(one)) > _MAX_OPTION for one in kept.values()):
            raise Refusal(
                f"the options are {len(kept)}, or one is long; at most {_MAX_OPTIONS} of {_MAX_OPTION:,} "
                "characters are kept"
            )
        self.state.ledger.put_draft(self.caller.account.id, _OPTIONS_NAME, kept)

    def control(self, name: str) -> str:
        """Catalogue's name of a control network. Raises Refusal."""
        return self._network(name, ("controlnet", "t2i_adapter")).name

    def image_prompt(self, name: str) -> str:
        """Catalogue's name of an IP-Adapter. Raises Refusal."""
        return self._network(name, ("ip_adapter",)).name

    def networks(self) -> list[Entry]:
        """The networks that ControlNet's units may name."""
        kinds = ("controlnet", "t2i_adapter", "ip_adapter")
        entries = self.state.catalogue.entries()
        return [entry for entry in entries if entry.kind in kinds and entry.problem is None]

    def _network(self, name: str, kinds: tuple[str, ...]) -> Entry:
        found = names.find_network(name, [one for one in self.networks() if one.kind in kinds])
        if found is None:
            known = [names.network_title(one) for one in self.networks()]
            raise Refusal(
                f"alwayson_scripts.ControlNet: there is no model {name[:100]!r}",
                hint=f"there are {', '.join(known)}" if known else "there are none",
                status=422,
                fields=("controls",),
            )
        return found
