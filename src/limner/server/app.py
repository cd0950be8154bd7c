"""The FastAPI application of the API process: every API on one port. It never imports torch."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from limner import __version__
from limner.errors import LimnerError
from limner.images.assets import Assets
from limner.prompts.wildcards import Wildcards
from limner.service.catalogue import catalogue_of
from limner.service.completions import Completions
from limner.service.events import JobChanged
from limner.service.health import Health, health_gauges, queue_gauges, review_gauges, worker_gauges
from limner.service.housekeeping import Housekeeping
from limner.service.hub import Hub
from limner.service.identity import LOCAL_ACCOUNT
from limner.service.image_gate import ImageGate
from limner.service.intake import Intake
from limner.service.ledger.ledger import Ledger
from limner.service.metrics import Metrics
from limner.service.release import ImageRelease, watermark_key
from limner.service.search.embedding import Embedder
from limner.service.search.indexing import Indexer
from limner.service.search.searches import Searches
from limner.service.secret import signing_key
from limner.service.signing import DeliverySigning
from limner.service.storage import ImageStore
from limner.service.tracing import Tracing
from limner.settings.serve import ServeSettings
from limner.studio import DIST

from . import health, native, openai, sdapi
from .auth import is_loopback
from .observation import Traced, observer
from .oidc import OpenIDConnect
from .openapi import describe_api
from .problems import ErrorResponse, Shapes, problem_of, request_id
from .security import Edge
from .sessions import Sessions
from .state import ServerState, in_thread
from .studio import StudioBundle, studio_router
from .waiting import ClientDisconnected

_LOG = logging.getLogger("limner.server")


@dataclass(frozen=True)
class Mount:
    """An API of this server.

    Attributes:
        router: Its routes.
        error_response: How it writes errors.
        prefixes: Beginnings of its paths, for errors of routes that are not there.
    """

    router: APIRouter
    error_response: ErrorResponse
    prefixes: tuple[str, ...]


MOUNTS = (
    Mount(native.router, native.error_response, (native.PREFIX,)),
    Mount(openai.router, openai.error_response, (openai.PREFIX,)),
    Mount(sdapi.router, sdapi.error_response, sdapi.PREFIXES),
    Mount(health.router, native.error_response, ("/health", "/metrics")),
)
"""Every API. Another one is a package with these three, and a line here."""


def create_app(
    settings: ServeSettings,
    *,
    socket: Path | None = None,
    open_state: "OpenState | None" = None,
    bundle: Path = DIST,
) -> FastAPI:
    """The application.

    Args:
        socket: Unix socket that workers connect to; None: none do.
        open_state: Opens what routes share, in place of `open_server_state`.
        bundle: Folder of the studio's bundle.
    """
    opening = open_state or open_server_state
    tracing = Tracing.start(enabled=settings.telemetry, process="api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = await in_thread(opening, settings)
        app.state.limner = state
        await in_thread(_warn_of_open_door, state)
        await state.hub.start(socket)
        counting = asyncio.create_task(_count_changes(state))
        indexing = asyncio.create_task(state.indexer.run())
        house = Housekeeping(
            settings,
            state.ledger,
            state.store,
            state.metrics,
            signing_key=state.signing_key,
            refresh=state.catalogue.refresh,
        )
        house.start()
        try:
            yield
        finally:
            await in_thread(house.stop)
            await state.hub.stop()
            for task in (counting, indexing):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await in_thread(state.searches.close)
            await in_thread(tracing.close)
            await in_thread(state.ledger.close)

    app = FastAPI(
        title="Limner",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{native.PREFIX}/openapi.json",
        redirect_slashes=False,
    )
    shapes = Shapes({prefix: one.error_response for one in MOUNTS for prefix in one.prefixes})
    for mount in MOUNTS:
        app.include_router(mount.router)
    if settings.studio:
        app.include_router(studio_router(StudioBundle.read(bundle)))
    for kind in (LimnerError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_with(shapes))
    app.add_exception_handler(ClientDisconnected, _nobody_reads)
    app.add_middleware(Traced, tracing=tracing, template=_template)
    app.add_middleware(Edge, settings=settings, shapes=shapes, observe=observer(app, _template))
    describe_api(app)
    return app


OpenState = Callable[[ServeSettings], ServerState]


def open_server_state(settings: ServeSettings) -> ServerState:
    """Open the ledger, the image store and the catalogue. Raises as they do."""
    ledger = Ledger.open(settings.ledger_url)
    if not any(one.id == LOCAL_ACCOUNT for one in ledger.list_accounts()):
        ledger.create_account(LOCAL_ACCOUNT, role="operator")
    metrics = Metrics()
    hub = Hub(ledger, observed=lambda _, measured: metrics.absorb(measured.get("meter", ())))
    catalogue = catalogue_of(settings)
    assets = Assets(store=settings.data / "uploads", allow_paths=False)
    store = ImageStore.in_folder(settings.data / "pictures")
    key = signing_key(settings.data, create=ledger.last_event() == 0)
    health = Health(ledger, store, settings.data, settings.min_free_bytes, lambda: hub.workers)
    searches = Searches(ledger, settings.data / "search")
    workers = worker_gauges(lambda: hub.workers)
    metrics.sources += [queue_gauges(ledger), review_gauges(ledger.open_reviews)]
    metrics.sources += [health_gauges(health, settings.data), workers]
    return ServerState(
        settings=settings,
        ledger=ledger,
        store=store,
        release=ImageRelease(store, ledger, watermark_key(settings), DeliverySigning.of(settings)),
        gate=ImageGate(settings, hub, ledger, metrics),
        hub=hub,
        catalogue=catalogue,
        assets=assets,
        intake=Intake(
            settings,
            ledger,
            catalogue,
            assets,
            hub.wake_workers,
            metrics,
            lambda: [one.device for one in hub.workers],
            lambda: hub.stopping,
        ),
        metrics=metrics,
        searches=searches,
        indexer=Indexer(searches, ledger, store, hub),
        embedder=Embedder(hub),
        health=health,
        sessions=Sessions(key, settings, native.PREFIX),
        completions=Completions(catalogue, Wildcards(settings.wildcards_dirs), settings.styles_files),
        signing_key=key,
        oidc=None if settings.oidc_issuer is None else OpenIDConnect(settings, ledger),
        started_at=ledger.now(),
    )


def _warn_of_open_door(state: ServerState) -> None:
    """Log a warning if requests through a proxy on this machine could count as an operator's."""
    settings = state.settings
    host = urlsplit(settings.public_url or "").hostname
    if host is None or is_loopback(host) or settings.require_key or settings.oidc_issuer is not None:
        return
    if state.ledger.find_keyless() is not None:
        _LOG.warning(
            "public_url is %s, but there is no key: requests through a proxy on this machine may count as "
            "local, and local callers are operators; make a key (limner keys create) or set require_key",
            settings.public_url,
        )


async def _count_changes(state: ServerState) -> None:
    """Count the changes of jobs, until the hub stops."""
    async with state.hub.subscribe(None, progress=False) as changes:
        async for event in changes:
            if isinstance(event, JobChanged):
                try:
                    state.metrics.job_changed(event)
                except Exception:  # the next one is counted all the same
                    _LOG.exception("a change cannot be counted")


def _answer_with(shapes: Shapes) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        return shapes.respond(request.url.path, problem_of(error, request_id(request)))

    return answer


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _template(scope: Scope) -> str:
    """Template of a request's path, such as "/api/v1/jobs/{job_id}"; "none" for a path without a route."""
    template = str(getattr(scope.get("route"), "path", "none"))
    for prefix in (prefix for mount in MOUNTS for prefix in mount.prefixes):
        # The route of a router that has a prefix does not know it.
        if template != "none" and scope["path"].startswith(f"{prefix}/") and not template.startswith(prefix):
            return prefix + template
    return template
