"""Answers the calls of the API process in a worker, in threads of their own.

`worker_calls` describes the calls. The device's models answer most of them; a call for the unfinished image
of a job is answered from the newest progress of that job.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from limner.engine.workers import Workers
from limner.errors import LimnerError, NotFound, UnsupportedModel

from .channel import Frame, error_data, for_callers
from .drawing import DrawingDevice
from .link import HubLink
from .measuring import WorkerMeter
from .runs import Run
from .worker_calls import UNFINISHED, Handler, png

_LOG = logging.getLogger("limner.worker")

_THREADS = 2
_UNFINISHED_THREADS = 2  # of their own: somebody waits for these calls at once


class CallAnswers:
    """Answers calls.

    Args:
        device: Its models answer the calls.
        link: Where answers are sent.
        meter: Counts the calls.
        running: Returns the claimed jobs.
        more: Handlers of calls that the worker answers without the device.
    """

    def __init__(
        self,
        device: DrawingDevice,
        link: HubLink,
        meter: WorkerMeter,
        running: Callable[[], Sequence[Run]],
        more: Mapping[str, Handler],
    ) -> None:
        self._device, self._link, self._meter, self._running = device, link, meter, running
        self._more = more
        self._workers = Workers("limner-calls", _THREADS)
        self._unfinished_workers = Workers("limner-unfinished", _UNFINISHED_THREADS)

    def answer(self, frame: Frame) -> None:
        """Answer a `call` of the hub. Returns at once."""
        if frame.data["name"] == UNFINISHED:
            # A cancel may follow at once, so the job is looked up before this returns.
            handler = self._unfinished(str(frame.data["params"]["job"]))
            self._unfinished_workers.submit(partial(self._answer, frame, handler))
        else:
            self._workers.submit(partial(self._answer, frame, None))

    def _unfinished(self, job_id: str) -> Handler:
        """A handler for the image of a running job as far as it is."""
        run = next((run for run in self._running() if run.claim.job.id == job_id), None)
        progress = None if run is None else run.progress

        def handle(params: Mapping[str, Any], parts: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
            if run is None or progress is None or run.withheld:
                raise NotFound(f"the job {job_id} has no image yet")
            request, seconds = self._device.request(run.claim.job), float(params["seconds"])
            decoded = self._device.unfinished(request, progress, seconds)
            image = progress.preview() if decoded is None else decoded
            told = {"step": progress.step, "steps": progress.steps, "decoded": decoded is not None}
            return told, [png(image)]

        return handle

    def _answer(self, frame: Frame, handler: Handler | None) -> None:
        """Send the result or the error of a call.

        Args:
            handler: Handles the call; None takes the device's handler.
        """
        number, name = frame.data["id"], str(frame.data["name"])
        outcome = "ok"
        try:
            handler = handler or self._more.get(name) or self._device.calls.get(name)
            if handler is None:
                raise UnsupportedModel(f"no model of this worker answers the call {name!r}")
            result, parts = handler(frame.data["params"], frame.parts)
            self._link.answer({"id": number, "result": result}, tuple(parts))
        except Exception as error:
            if not isinstance(error, LimnerError):
                _LOG.exception("the call %s failed", name)
            outcome = error.code if isinstance(error, LimnerError) else "internal_error"
            self._link.answer({"id": number, "error": error_data(for_callers(error))})
        self._meter.count("limner_engine_calls_total", call=name, outcome=outcome)
