"""Progress and previews of a worker's running jobs, for the hub.

The progress of each job is sent a few times a second at most, that of all jobs in one message. Previews are
made for accounts and sets that are watched, outside of the engine's thread.
"""

import io
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from PIL import Image

from limner.engine.handle import Progress
from limner.errors import UnsupportedModel
from limner.settings.serve import ServeSettings

from .jobs import Job
from .link import HubLink
from .runs import Run

_LOG = logging.getLogger("limner.worker")

_QUALITY = 75
TYPE = "image/jpeg"


class Previews:
    """Sends progress from a thread of its own.

    Args:
        settings: How often and how large.
        link: Where it is sent.
        running: Returns the claimed jobs.
    """

    def __init__(self, settings: ServeSettings, link: HubLink, running: Callable[[], Sequence[Run]]) -> None:
        self._link, self._running = link, running
        self._enabled, self._side = settings.previews, settings.preview_side
        self._interval = 1.0 / settings.previews_per_second
        self._everybody, self._accounts, self._sets = False, frozenset[str](), frozenset[str]()
        self._sent: dict[str, Progress] = {}  # the last that was sent, by `Run.id`
        self._news, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="limner-previews", daemon=True)
        self._thread.start()

    def news(self) -> None:
        """Announce new progress. Returns at once."""
        self._news.set()

    def watch(self, data: Mapping[str, Any]) -> None:
        """Take over whose previews are wanted, from a `watch` of the hub."""
        self._accounts = frozenset(map(str, data["accounts"]))
        self._sets = frozenset(map(str, data["sets"]))
        self._everybody = bool(data["all"])

    def close(self) -> None:
        """Send nothing more."""
        self._closed = True
        self._news.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._news.wait()
            if self._closed:
                return
            self._news.clear()
            began = time.monotonic()
            if self._link.connected:
                try:
                    self._send()
                except Exception:  # a failed preview must not stop the progress of other jobs
                    _LOG.exception("progress could not be sent")
            time.sleep(max(0.0, self._interval - (time.monotonic() - began)))

    def _send(self) -> None:
        runs = self._running()
        jobs: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for run in runs:
            progress, job = run.progress, run.claim.job
            if progress is None or self._sent.get(run.id) is progress:
                continue
            self._sent[run.id] = progress
            entry: dict[str, Any] = {
                "account_id": job.account_id,
                "set_id": job.set_id,
                "job_id": job.id,
                "index": job.index,
                "step": progress.step,
                "steps": progress.steps,
                "seconds_left": progress.seconds_left if isfinite(progress.seconds_left) else None,
                "batch_size": run.batch_size,
            }
            shown = not run.withheld and self._is_watched(job)
            if shown and (preview := encoded_preview(progress, self._side)) is not None:
                entry |= {"preview": len(parts), "preview_type": TYPE}
                parts.append(preview)
            jobs.append(entry)
        if jobs:
            self._link.send("progress", {"jobs": jobs}, tuple(parts))
        alive = {run.id for run in runs}
        self._sent = {name: progress for name, progress in self._sent.items() if name in alive}

    def _is_watched(self, job: Job) -> bool:
        if not self._enabled:
            return False
        return self._everybody or job.account_id in self._accounts or job.set_id in self._sets


def encoded_preview(progress: Progress, side: int) -> bytes | None:
    """The preview of a step as a JPEG, its longest side at most `side` pixels; None where the model has
    none."""
    try:
        image = progress.preview()
    except UnsupportedModel:
        return None
    scale = min(8.0, side / max(image.size))  # a latent stands for about eight pixels
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    data = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
