"""A worker: it claims jobs from the ledger, has its engine draw them, stores the images and hands them in.

    python -m limner.service.worker        # started by the supervisor

It claims as many jobs as its engine takes at once. A job on its last attempt runs alone, so that a request
which kills its worker takes no others with it. Images are encoded and stored outside of the engine's thread.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from limner.allocator import keep_freed_memory
from limner.engine.events import Cancelled, Event, Failed, Finished, ImageDone, Started, StepDone
from limner.engine.handle import Progress
from limner.errors import LimnerError
from limner.logs import configure
from limner.settings.serve import ServeSettings

from .answering import CallAnswers
from .channel import Frame, hub_socket
from .drawing import DeviceFactory, DrawingDevice, TorchDevice
from .fake import FakeDevice, is_fake
from .handing_in import HandingIn
from .image_safety import CHECK, ImageSafety
from .ledger.ledger import Ledger
from .link import HubLink
from .measuring import DeviceMeter, WorkerMeter
from .paths import PathFilter
from .previews import Previews
from .processes import Line
from .release import watermark_key
from .runs import Run, trace
from .signing import DeliverySigning
from .step_strips import StepStrip
from .storage import ImageStore
from .tracing import Tracing
from .window import ClaimWindow

_LOG = logging.getLogger("limner.worker")

_POLL = 1.0  # seconds between looks into the queue without a message from the hub
_HANDING_IN = 2  # threads that encode and store
_TICK = 1.0  # seconds between looks at the clock for leases and the watchdog
_REPORT = 5.0  # seconds between reports to the hub and the ledger
_HUNG = 70  # exit code of a worker whose device hangs


class Worker:
    """Runs jobs until `stop` is called.

    Args:
        settings: Settings of the service.
        name: Its name in the ledger.
        ledger: Where jobs are claimed.
        store: Where images are stored.
        make_device: Makes what it draws with.
        device: The device, as torch knows it in this process.
        shown: The device, as the service knows it.
    """

    def __init__(
        self,
        settings: ServeSettings,
        name: str,
        ledger: Ledger,
        store: ImageStore,
        make_device: DeviceFactory,
        *,
        device: str = "cpu",
        shown: str | None = None,
    ) -> None:
        self._settings, self.name, self._ledger, self._store = settings, name, ledger, store
        self._shown = shown or device
        self._price = settings.price_of(self._shown)
        self.meter = WorkerMeter(self._shown, price=self._price, currency=settings.currency)
        self._tracing = Tracing.start(enabled=settings.telemetry, process=f"worker {self._shown}")
        self._lock = threading.Lock()  # of what follows
        self._runs: dict[str, Run] = {}  # all that are claimed and not handed in, by `Run.id`
        self._alone: deque[Run] = deque()  # those that wait to run alone
        self._window = ClaimWindow()
        self._steps = self._steps_at_claim = 0
        self._problem: str | None = None
        self._news = threading.Event()
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._last_sign = time.monotonic()  # when the engine last made progress
        self._pool = ThreadPoolExecutor(_HANDING_IN, "limner-handing-in")
        self._safety = ImageSafety(settings)
        self._handing_in = HandingIn(
            ledger,
            store,
            self.meter,
            price=self._price,
            currency=settings.currency,
            ended=self._stopped,
            trouble=self._set_problem,
            without_paths=PathFilter(settings),
            watermark_key=watermark_key(settings) if settings.watermark else None,
            safety=self._safety,
            keeps_withheld=settings.keep_withheld_days > 0,
            signing=DeliverySigning.of(settings),
        )
        self._device: DrawingDevice = make_device(settings, device, (self._on_event, self.meter), self.meter)
        self._device_meter = DeviceMeter(self.meter, self._shown, gpu=self._device.gpu)
        self._link = HubLink(hub_socket(settings.data), self._state, self._on_frame)
        self._calls = CallAnswers(
            self._device, self._link, self.meter, self._running, {CHECK: self._safety.answer}
        )
        self._previews = Previews(settings, self._link, self._running)
        self._link.start()

    def load(self, model: str) -> None:
        """Load a model before jobs ask for it. Raises LimnerError."""
        self._device.load(model)

    def run(self) -> None:
        """Claim and run jobs until `stop`; then finish the images that have begun, as long as the settings
        allow, and give all other jobs back."""
        keeper = threading.Thread(target=self._keep, name="limner-leases", daemon=True)
        keeper.start()
        self._report()
        try:
            while not self._stopping.is_set():
                self._news.clear()
                if not self._claim():
                    self._news.wait(_POLL)
            self._drain()
        finally:
            self._stopped.set()  # first: what cannot be handed in waits for it
            self._pool.shutdown()
            keeper.join()
            self._previews.close()
            self._tracing.close()
            self._report()
            self._link.close()

    def stop(self) -> None:
        """Have `run` end. Any thread and signal handler may call this."""
        self._stopping.set()
        self._news.set()

    # Claiming.

    def _claim(self) -> bool:
        """Claim jobs if the engine takes more. Returns whether there may be more of them."""
        self._begin_alone()
        room = self._room()
        if room <= 0:
            return False
        try:
            claims = self._ledger.claim(
                self.name, lease_seconds=self._settings.lease_seconds, limit=room, warm=self._device.models()
            )
        except LimnerError as error:
            self._set_problem(error.message)
            return False
        if not claims:
            return False
        self._link.send("changed", {})
        warm = set(self._device.models())
        for claim in claims:
            withheld = self._safety.withholds(claim.job)
            keeps_steps = self._settings.keep_steps and not withheld
            run = Run(claim, strip=StepStrip() if keeps_steps else None, withheld=withheld)
            self.meter.claimed(claim.job, warm=claim.job.model in warm)
            with self._lock:
                self._runs[run.id] = run
                if run.suspect:
                    self._alone.append(run)
                    continue
            self._begin(run)
        with self._lock:
            self._steps_at_claim = self._steps
        self._report_state()
        return len(claims) == room

    def _room(self) -> int:
        """Number of jobs to claim now."""
        if self._problem is not None and not self._works_again():
            return 0
        with self._lock:
            if self._alone or any(run.suspect for run in self._runs.values()):
                return 0
            drawn = [run for run in self._runs.values() if run.handle is not None and not run.handle.done()]
            begun = sum(run.began for run in drawn)
            settled = self._steps - self._steps_at_claim > 2 * begun > 0
            room = self._window.room(begun, len(drawn) - begun, settled=settled)
            # What is being encoded and stored must not pile up either.
            return min(room, 2 * self._window.size - len(self._runs))

    def _begin_alone(self) -> None:
        """Begin a job that runs alone, once nothing else does."""
        with self._lock:
            if not self._alone or len(self._runs) > len(self._alone):
                return
            run = self._alone.popleft()
        self._begin(run)

    def _begin(self, run: Run) -> None:
        job = run.claim.job
        try:
            request = self._device.request(job)
            run.handle = self._device.engine.submit(request, id=run.id, timeout=run.claim.seconds_left)
        except Exception as error:  # of this job alone: the others of this worker go on
            if not isinstance(error, LimnerError):
                _LOG.exception("job %s could not be begun", run.id)
            self._pool.submit(self._hand_in, run, error)
            return
        run.handle.listen(lambda progress: self._on_progress(run, progress))
        if run.cancelled or run.released:
            run.handle.cancel()

    # Events of the engine, in its thread.

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Started | StepDone | ImageDone | Finished):
            self._last_sign = time.monotonic()
        run = self._runs.get(event.job)
        if run is None:
            return
        match event:
            case Started():
                run.began = True
                self._news.set()
            case StepDone():
                self._steps += 1
                run.batch_size = event.batch_size
                run.device_seconds += event.device_seconds
            case ImageDone():
                run.batch_size, run.picture, run.drawn_at = event.batch_size, event.picture, time.time()
            case Finished():
                self._over(run, event.device_seconds, None)
            case Failed():
                self._over(run, event.device_seconds, event.error)
            case Cancelled(image=None):
                self._over(run, event.device_seconds, None)

    def _over(self, run: Run, device_seconds: float, error: Exception | None) -> None:
        """The engine is done with a job: it has a place for another, and this one is handed in."""
        run.device_seconds = device_seconds
        self._pool.submit(self._hand_in, run, error)
        self._news.set()

    def _on_progress(self, run: Run, progress: Progress | None) -> None:
        if progress is not None and progress.picture is None:
            run.progress = progress
            if run.strip is not None:
                run.strip.add(progress)
            self._previews.news()

    # Handing in, in the threads of the pool.

    def _hand_in(self, run: Run, error: Exception | None) -> None:
        try:
            self._handing_in.end(run, error)
        finally:
            with self._lock:
                self._runs.pop(run.id, None)
            if self._settings.telemetry:
                self._trace(run, error)
            self._link.send("changed", {})
            self._news.set()

    def _trace(self, run: Run, error: Exception | None) -> None:
        with suppress(LimnerError):  # the job has ended, and its trace lacks a part
            trace(run, self._tracing, self._ledger.traceparent(run.claim.job.set_id), error)

    def _set_problem(self, problem: str | None) -> None:
        if (problem is None) != (self._problem is None):
            if problem is not None:
                _LOG.error("no jobs are taken until this is over: %s", problem)
            else:
                _LOG.info("jobs are taken again")
        self._problem = problem
        self._report_state()

    def _works_again(self) -> bool:
        try:
            self._store.check()
            self._heartbeat()
        except LimnerError:
            return False
        self._set_problem(None)
        return True

    # Leases, cancelling, the watchdog.

    def _keep(self) -> None:
        """Renew leases, report, and end the process where the device hangs."""
        renewed = reported = time.monotonic()
        while not self._stopped.wait(min(_TICK, self._settings.lease_seconds / 6)):
            now = time.monotonic()
            try:
                if now - renewed >= self._settings.lease_seconds / 3:
                    renewed = now
                    self._renew()
                if now - reported >= _REPORT:
                    reported = now
                    self._report()
            except Exception:  # without this thread all jobs of this worker would be lost
                _LOG.exception("leases could not be renewed, or the worker not reported")
            if self._hangs(now):
                _LOG.critical(
                    "the device made no step in %g s: the worker ends, and its jobs go to another",
                    self._settings.watchdog_seconds,
                )
                logging.shutdown()
                os._exit(_HUNG)

    def _renew(self) -> None:
        with self._lock:
            runs = {run.claim.job.id: run for run in self._runs.values()}
        fences = {job_id: run.claim.job.fence for job_id, run in runs.items()}
        try:
            renewal = self._ledger.renew(self.name, fences, self._settings.lease_seconds)
        except LimnerError as error:
            _LOG.warning("leases cannot be renewed: %s", error)
            return
        for job_id in renewal.lost:
            runs[job_id].lost = True
        self._stop_runs([runs[job_id] for job_id in renewal.lost | renewal.cancelled])

    def _stop_runs(self, runs: list[Run]) -> None:
        """Stop jobs that are cancelled, lost or released, within a step."""
        for run in runs:
            run.cancelled = True
            with self._lock:
                waits = run in self._alone
                if waits:
                    self._alone.remove(run)
            if waits:
                self._pool.submit(self._hand_in, run, None)
            elif run.handle is not None:
                run.handle.cancel()

    def _hangs(self, now: float) -> bool:
        if self._device.engine.stats().running == 0:
            self._last_sign = now
            return False
        return now - self._last_sign > self._settings.watchdog_seconds

    def _drain(self) -> None:
        """Finish what has begun, and give back all else."""
        self._report_state()
        end = time.monotonic() + self._settings.drain_seconds
        self._release(lambda run: not run.began)
        while self._runs and time.monotonic() < end:
            self._news.clear()
            self._news.wait(min(0.2, max(0.0, end - time.monotonic())))
        self._release(lambda run: True)
        end = time.monotonic() + self._settings.lease_seconds
        while self._runs and time.monotonic() < end:
            time.sleep(0.02)
        self._stopped.set()
        self._device.engine.close()

    def _release(self, which: Callable[[Run], bool]) -> None:
        with self._lock:
            runs = [
                run for run in self._runs.values() if run.picture is None and not run.released and which(run)
            ]
        for run in runs:
            run.released = not run.cancelled
        self._stop_runs(runs)

    # The hub.

    def _on_frame(self, frame: Frame) -> None:
        match frame.type:
            case "wake":
                self._news.set()
            case "cancel":
                wanted = set(frame.data["jobs"])
                self._stop_runs([run for run in self._running() if run.claim.job.id in wanted])
            case "watch":
                self._previews.watch(frame.data)
            case "call":
                self._calls.answer(frame)

    def _state(self) -> Mapping[str, Any]:
        """The worker as the hub knows it."""
        return {
            "worker": self.name,
            "device": self._shown,
            "pid": os.getpid(),
            "models": list(self._device.models()),
            "memory": self._device.memory(),
            "running": len(self._runs),
            "draining": self._stopping.is_set(),
            "problem": self._problem,
        }

    def _report_state(self) -> None:
        self._link.send("state", self._state())

    def _report(self) -> None:
        self._report_state()
        self._beat()
        self._device_meter.read()
        self.meter.poll(self._device.engine.stats())
        self._link.send("observed", {"meter": self.meter.drain()})

    def _beat(self) -> None:
        """Record in the ledger that this worker is alive, or that it has ended."""
        try:
            if self._stopped.is_set():
                self._ledger.forget_workers(workers_gone=[self.name])
            else:
                self._heartbeat()
        except LimnerError as error:
            _LOG.warning("the heartbeat of this worker cannot be recorded: %s", error)

    def _heartbeat(self) -> None:
        """Record in the ledger that this worker is alive. Raises LedgerError."""
        details = {"running": len(self._runs), "draining": self._stopping.is_set()}
        self._ledger.heartbeat(self.name, device=self._shown, warm=self._device.models(), details=details)

    def _running(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())


def run_worker(
    settings: ServeSettings,
    name: str,
    *,
    device: str,
    shown: str | None = None,
    make_device: DeviceFactory,
    models: Sequence[str] = (),
    first: bool = True,
    ready: Callable[[], None] = lambda: None,
    stopping: threading.Event,
) -> None:
    """Run a worker until `stopping` is set.

    Args:
        device: The device, as torch knows it in this process.
        shown: The device, as the service knows it.
        models: Models of the catalogue to load before jobs are claimed.
        first: Whether a model that cannot be loaded is an error; else it is logged.
        ready: Called when jobs are claimed.

    Raises:
        LimnerError: The ledger cannot be opened, or a model cannot be loaded.
    """
    ledger = Ledger.open(settings.ledger_url, migrate=False)
    try:
        store = ImageStore.in_folder(settings.data / "pictures")
        worker = Worker(settings, name, ledger, store, make_device, device=device, shown=shown)
        for model in models:
            try:
                worker.load(model)
            except LimnerError as error:
                if first:
                    raise
                _LOG.error("the model %s cannot be loaded: %s", model, error)

        def watch() -> None:
            stopping.wait()
            worker.stop()

        threading.Thread(target=watch, name="limner-stop", daemon=True).start()
        ready()
        worker.run()
    finally:
        ledger.close()


def main() -> None:
    """The process of a worker."""
    stopping = threading.Event()
    line = Line(stopping.set)
    keep_freed_memory()
    order = line.order(meanwhile=_import_engine)
    settings, device = ServeSettings.from_json(order.settings), str(order.more["device"])
    configure(settings.log_level, settings.log_format, process=f"worker {order.more['shown']}")
    try:
        run_worker(
            settings,
            order.name,
            device=device,
            shown=str(order.more["shown"]),
            make_device=FakeDevice if is_fake(device) else TorchDevice,
            models=settings.models,
            first=order.first,
            ready=line.ready,
            stopping=stopping,
        )
    except LimnerError as error:
        line.failed(error)
        sys.exit(2)


def _import_engine() -> None:
    """Import torch, which takes a second, while the ledger is opened."""
    if "fake" not in sys.argv:
        import limner.engine.engine  # noqa: F401


if __name__ == "__main__":
    main()
