"""What all routes share: the ledger, the image store, the hub to the workers, the catalogue."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from limner.catalogue.catalogue import Catalogue, Entry
from limner.images.assets import Assets
from limner.service.completions import Completions
from limner.service.health import Health
from limner.service.hub import Hub
from limner.service.image_gate import ImageGate
from limner.service.intake import Intake
from limner.service.ledger.ledger import Ledger
from limner.service.metrics import Metrics
from limner.service.release import ImageRelease
from limner.service.search.embedding import Embedder
from limner.service.search.indexing import Indexer
from limner.service.search.searches import Searches
from limner.service.storage import StoredFiles
from limner.settings.serve import ServeSettings

from .compressed import CompressedBody
from .event_streams import EventStreams
from .oidc import OpenIDConnect
from .sessions import Sessions

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class ServerState:
    """What all routes share; `app.state.limner`.

    Attributes:
        store: The image store, without the contents of its files.
        release: Reads images for callers, as they leave the service.
        gate: Lets other images pass to callers, which no job has drawn.
        assets: Uploads by their content.
        intake: Makes jobs of requests.
        metrics: What the service has counted and measured.
        searches: Searches the images of accounts.
        indexer: Indexes them.
        embedder: Makes vectors of what is searched for.
        health: Says whether the service can do its work.
        signing_key: The service's signing key.
        oidc: Recognises tokens of OpenID Connect; None where no issuer is set.
        started_at: When this process was started, by the ledger's clock.
        adopted: Ids of sets of an earlier process that a repeated request has taken over.
        waiting: Number of HTTP requests that wait for a set, by set id.
        streams: The event streams that are open.
        sessions: Sessions of browsers.
        completions: Completes words of prompts.
        listings: Entries of the catalogue, and lists of them as they are sent, by what was asked for.
        has_keys: Whether a key was found, so that callers on loopback need one, too.
        searchers: Bounds the threads that search, of which those of one account wait for each other.
        views: What operators have looked at of other accounts, and until when that is no new entry of the
            audit log.
        decoders: Bounds the threads that decode input images, each of which may take hundreds of megabytes.
    """

    settings: ServeSettings
    ledger: Ledger
    store: StoredFiles
    release: ImageRelease
    gate: ImageGate
    hub: Hub
    catalogue: Catalogue
    assets: Assets
    intake: Intake
    metrics: Metrics
    searches: Searches
    indexer: Indexer
    embedder: Embedder
    health: Health
    sessions: Sessions
    completions: Completions
    signing_key: bytes = field(repr=False)
    oidc: OpenIDConnect | None = None
    started_at: float = 0.0
    adopted: set[str] = field(default_factory=set)
    waiting: dict[str, int] = field(default_factory=dict)
    streams: EventStreams = field(default_factory=EventStreams, repr=False)
    listings: tuple[tuple[Entry, ...], dict[object, CompressedBody]] = field(
        default_factory=lambda: ((), {}), repr=False
    )
    has_keys: bool = False
    views: dict[tuple[str, str | None, str, str], float] = field(default_factory=dict, repr=False)
    searchers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8), repr=False)
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2), repr=False)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that may block, such as a query of the ledger, run in a thread."""
    return await run_in_threadpool(function, *args, **kwargs)


async def in_decoder(state: ServerState, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that decodes input images, run in one of the few threads for that."""
    return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=state.decoders)


def state_of(request: Request) -> ServerState:
    """The state of the application that answers a request."""
    state: ServerState = request.app.state.limner
    return state
