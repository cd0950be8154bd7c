"""The API process: `python -m limner.server.process`, started by the supervisor. It imports no torch."""

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from limner.logs import configure
from limner.service.channel import as_limner_error, hub_socket
from limner.service.processes import Line
from limner.settings.serve import ServeSettings

from .app import create_app
from .connections import PatientProtocol

_LOG = logging.getLogger("limner.server")

_KEEP_ALIVE = 75  # seconds that an idle connection stays open, longer than clients reuse one
_LAST_ANSWERS = 10  # seconds that answers have to be sent when the workers have ended


class _Server(uvicorn.Server):
    """A server that says when it answers, and ends event streams when it is to stop.

    Args:
        app: The application.
        settings: Settings of the service.
        line: The line to the supervisor.
    """

    def __init__(self, app: FastAPI, settings: ServeSettings, line: Line) -> None:
        proxies = list(settings.trusted_proxies)
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_LAST_ANSWERS,
            )
        )
        self._app, self._line = app, line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell the supervisor."""
        await super().startup(sockets)
        if self.started:
            self._line.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stay with the line to the supervisor."""
        yield

    def stop(self) -> None:
        """Take no more connections and answer what is asked. Any thread and signal handler may call this."""
        self.should_exit = True
        state = getattr(self._app.state, "limner", None)
        if state is not None:
            state.hub.drain()


def main() -> None:
    """The API process."""
    stopping = threading.Event()
    server: _Server | None = None

    def stop() -> None:
        stopping.set()
        if server is not None:
            server.stop()

    line = Line(stop)
    order = line.order()
    settings = ServeSettings.from_json(order.settings)
    configure(settings.log_level, settings.log_format, process="api")
    # It writes a line, in a form of its own, about each malformed form, which is answered with 400.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    try:
        app = create_app(settings, socket=hub_socket(settings.data))
        server = _Server(app, settings, line)
        if stopping.is_set():
            return
        listening = socket.socket(fileno=int(order.more["descriptor"]))
        server.run(sockets=[listening])
    except Exception as error:
        _LOG.exception("the API process failed")
        line.failed(as_limner_error(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
