"""The methods of an engine, without torch, for programs that use an engine in another process or a fake."""

from dataclasses import dataclass, field
from typing import Protocol

from limner.request import GenerationRequest
from limner.request.resolve import ResolvedRequest

from .handle import Handle


@dataclass(frozen=True)
class Stats:
    """Statistics of an engine.

    Attributes:
        waiting: Number of requests with images that have not begun.
        running: Number of images that have begun and are not finished.
        done: Number of requests that are finished.
        failed: Number of requests that have failed.
        cancelled: Number of requests that were cancelled.
        forwards: Number of forward passes by kind of call.
        rows: Number of calls answered in them by kind of call.
        pass_seconds: Seconds of them by kind of call, as attributed to this engine's requests.
    """

    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    forwards: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    pass_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all forward passes."""
        return sum(self.pass_seconds.values())


class EngineProtocol(Protocol):
    """Runs requests. Safe to use from any thread. `Engine` and `FakeEngine` implement it."""

    def submit(
        self,
        request: GenerationRequest | ResolvedRequest,
        *,
        id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Handle:
        """Accept a request and return at once.

        Args:
            request: A request, whose fields at None take the defaults of its model. Or one that was resolved
                against its model, with images as paths or data URLs: it is not resolved again.
            id: Name of the request in events and logs; by default a new one.
            priority: Higher goes first, then age.
            timeout: Seconds after which the request fails with `DeadlineExceeded` if it is not finished.

        Raises:
            QueueFull: Too many requests are waiting.
            EngineClosed: The engine was drained or closed.
            InvalidRequest: An unfinished request has this id.
        """

    def stats(self) -> Stats:
        """The statistics so far."""

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those accepted. False after `timeout` seconds."""

    def close(self) -> list[Handle]:
        """Take no more requests, cancel those accepted, and wait for the current forward pass.

        Returns:
            The handles of the requests that this has cancelled.
        """
