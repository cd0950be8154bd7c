"""The service in this process: its HTTP application, and a worker whose device draws flat colours without a
model. For tests of the APIs.

The server listens on a free port of loopback, so that clients of every kind can talk to it.
"""

import asyncio
import io
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image

from limner.engine.events import Subscriber
from limner.engine.fake import FakeEngine
from limner.request import GenerationRequest
from limner.server.app import create_app
from limner.server.connections import PatientProtocol
from limner.server.state import ServerState
from limner.service.channel import hub_socket
from limner.service.fake import FakeDevice
from limner.service.ledger.ledger import Ledger
from limner.service.measuring import WorkerMeter
from limner.service.storage import ImageStore
from limner.service.worker import Worker
from limner.settings.serve import ServeSettings
from limner.studio import DIST
from tests.waiting import DEADLINE, until


def _grey(request: GenerationRequest, step: int, steps: int) -> Image.Image:
    """The preview of a step."""
    shade = 255 * step // steps
    return Image.new("RGB", (8, 8), (shade, shade, shade))


@dataclass
class Painter:
    """What a worker draws with.

    Attributes:
        step_seconds: Seconds that each step takes. It may be changed while something is drawn.
        failures: Prompt -> what a request with it fails with.
        previews: Whether steps have previews, unlike those of a `FakeEngine`.
        steps: Number of steps that were taken.
    """

    step_seconds: float = 0.0
    failures: Mapping[str, Exception] = field(default_factory=dict)
    previews: bool = True
    steps: int = 0

    def device(
        self, settings: ServeSettings, name: str, subscribers: Sequence[Subscriber], meter: WorkerMeter
    ) -> FakeDevice:
        """The device, for a worker."""
        made = FakeDevice(settings, name, subscribers, meter)
        made.engine = _PaintingEngine(self, subscribers)
        return made


class _PaintingEngine(FakeEngine):
    def __init__(self, painter: Painter, subscribers: Sequence[Subscriber]) -> None:
        failures = dict(painter.failures)
        super().__init__(subscribers=subscribers, failure_of=lambda request, *_: failures.get(request.prompt))
        self._painter = painter

    def _take_step(self, job: Any, index: int, step: int, steps: int) -> None:
        self._painter.steps += 1
        self._step_seconds = self._painter.step_seconds
        self._draw_preview = _grey if self._painter.previews else None
        super()._take_step(job, index, step, steps)


@dataclass
class Served:
    """A running server.

    Attributes:
        url: Its address.
        state: What its routes share.
        client: A client of it without a key.
        loop: Its event loop, which runs in another thread.
        painter: What its worker draws with.
    """

    url: str
    state: ServerState
    client: httpx.Client
    loop: asyncio.AbstractEventLoop
    painter: Painter

    @property
    def ledger(self) -> Ledger:
        """Its ledger."""
        return self.state.ledger

    def key(self, account: str = "alice", **more: Any) -> dict[str, str]:
        """Headers with a new key of an account, which is made if need be."""
        if account not in {one.id for one in self.ledger.list_accounts()}:
            self.ledger.create_account(account)
        return {"authorization": f"Bearer {self.ledger.create_key(account, **more)[1]}"}


@contextmanager
def serving(
    data: Path,
    *,
    step_seconds: float = 0.0,
    working: bool = True,
    painter: Painter | None = None,
    bundle: Path = DIST,
    **settings: Any,
) -> Iterator[Served]:
    """A server on a free port, and a worker.

    Args:
        step_seconds: Seconds that each step takes, where there is no `painter`.
        working: Whether there is a worker.
        painter: What it draws with.
        bundle: Folder of the studio's bundle.
        **settings: Of the server.
    """
    painter = painter or Painter(step_seconds)
    defaults: dict[str, Any] = {"data": data, "cache_dir": data / "cache"}
    chosen = ServeSettings(**{**defaults, **settings})
    app = create_app(chosen, socket=hub_socket(chosen.data), bundle=bundle)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="critical", lifespan="on", ws="none", http=PatientProtocol)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), "the start of the server")
    assert server.started, "the server has ended"
    state: ServerState = app.state.limner
    try:
        with (
            worker_of(chosen, painter) if working else nullcontext(),
            httpx.Client(base_url=url, timeout=DEADLINE + 10) as client,
        ):
            yield Served(url, state, client, loops[0], painter)
    finally:
        state.hub.end_subscriptions()
        server.should_exit = True
        thread.join(DEADLINE)


@contextmanager
def worker_of(settings: ServeSettings, painter: Painter | None = None) -> Iterator[Worker]:
    """A worker in a thread of this process, for a server of these settings."""
    ledger = Ledger.open(settings.ledger_url)
    store = ImageStore.in_folder(settings.data / "pictures")
    worker = Worker(settings, "painter", ledger, store, (painter or Painter()).device, device="fake")
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(DEADLINE)
        ledger.close()


def submit(client: httpx.Client, wait: int = DEADLINE, headers: Any = None, **request: Any) -> dict[str, Any]:
    """A set of the native API whose jobs have ended.

    Args:
        wait: Seconds to wait for them.
        **request: Fields of the request.
    """
    body = {"request": {"prompt": "a red boat", "steps": 2, **request}}
    answer = client.post("/api/v1/jobs", json=body, headers={"prefer": f"wait={wait}", **(headers or {})})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def png(size: tuple[int, int] = (64, 64), colour: str = "red") -> bytes:
    """The bytes of an image of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()
