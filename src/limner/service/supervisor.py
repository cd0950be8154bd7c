"""The supervisor of `limner serve`: it starts one API process and one worker for each device, and starts them
again when they die.

It holds the listening socket, so that connections wait while the API process starts again, and the lock of
the data folder. Every two seconds it has the ledger queue lost jobs again;
the claims of a worker that dies it gives up at once. It sequences the audit log. It imports no torch.
"""

import glob
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from types import FrameType
from typing import TYPE_CHECKING

from limner.catalogue.shipped import SHIPPED
from limner.errors import InternalError, InvalidRequest, LimnerError
from limner.safety.policy import load_policy
from limner.settings import DEVELOPMENT_KEYS
from limner.settings.serve import ServeSettings

from .channel import error_of
from .data_folder import claimed
from .listening import address_of, listen
from .processes import Order
from .secret import signing_key

if TYPE_CHECKING:  # slow to import: `_attend` does, when the processes are on their way
    from .ledger.ledger import Ledger

_LOG = logging.getLogger("limner.supervisor")

_RECONCILE = 2.0  # seconds
_SHORTEST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds before a process that died is started again
_STEADY = 3.0  # seconds of work after which a process counts as sound
_TRIES = 3  # starts of a process that has never been ready
_GRACE = 15.0  # seconds that the API process has to end, and workers beyond `drain_seconds`
_PAGE = 500
_NAMED = 3  # models that an error names


@dataclass(eq=False)
class _Child:
    """A process that is kept running.

    Attributes:
        label: What it is, for the log: "api", "worker cpu".
        module: The module that it runs.
        name: Its name, which is another one at each start.
        more: Further values of its order.
        environment: Variables in addition to those of the supervisor.
        arguments: Arguments of the module.
        descriptors: Files that it inherits.
        ready, ready_at: Whether it does its work, since it was last started, and since when.
        ever_ready: Whether it ever did.
        failures: Number of times that it has died without having worked for a while before.
        not_before: When it may be started again.
    """

    label: str
    module: str
    more: Mapping[str, object]
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    descriptors: Sequence[int] = ()
    name: str = ""
    process: "subprocess.Popen[str] | None" = None
    reader: threading.Thread | None = None
    error: LimnerError | None = None
    ready: bool = False
    ready_at: float = 0.0
    ever_ready: bool = False
    failures: int = 0
    not_before: float = 0.0

    @property
    def is_worker(self) -> bool:
        return self.label != "api"

    def start(self, name: str, heard: Callable[[], None]) -> None:
        """Start the process, which imports its modules and then waits for its order."""
        self.name, self.ready, self.error = name, False, None
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
            pass_fds=self.descriptors,
            start_new_session=True,  # Ctrl-C in a terminal concerns the supervisor alone
        )
        self.reader = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self.reader.start()

    def order(self, settings: str, *, first: bool) -> None:
        """Tell the process what to do."""
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(OSError):  # it has died, which is seen elsewhere
            self.process.stdin.write(Order(settings, self.name, first, self.more).to_line())
            self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def close(self) -> None:
        """Close what was open to a process that has ended."""
        if self.process is None:
            return
        with suppress(OSError):
            self.process.stdin and self.process.stdin.close()
        if self.reader is not None:
            self.reader.join(5.0)
        self.process = None

    def _listen(self, heard: Callable[[], None]) -> None:
        process = self.process
        assert process is not None
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    self.error = error_of(message["error"])
                else:
                    self.ready_at = time.monotonic()
                    self.ready = self.ever_ready = True
                heard()


class Supervisor:
    """Runs the service until `stop` is called.

    Args:
        settings: Settings of the service.
        api: Module of the API process.
        worker: Module of a worker.
        announce: Called with the service's URL when it answers.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        api: str = "limner.server.process",
        worker: str = "limner.service.worker",
        announce: Callable[[str], None] = print,
    ) -> None:
        self._settings, self._api, self._worker = settings, api, worker
        self._announce = announce
        self._children: list[_Child] = []
        self._news, self._stopping = threading.Event(), threading.Event()
        self._hurry = False
        data = str(settings.data.absolute()).encode()
        self._prefix = f"{socket.gethostname()}-{sha256(data).hexdigest()[:6]}"

    def run(self) -> None:
        """Run the service until SIGTERM or Ctrl-C; a second one ends it at once.

        Raises:
            LimnerError: It cannot be started: a port or folder that is taken, no key where one is needed, a
                ledger or a model that cannot be used.
        """
        settings = self._settings
        self._check_safety()
        with (
            claimed(settings.data),
            listen(settings.host, settings.port) as listening,
            self._signals(),
            ExitStack() as afterwards,
        ):
            self._prepare_signing()
            self._children = [*self._workers(), self._api_process(listening)]
            try:
                for child in self._children:  # they import while this process does, and opens the ledger
                    child.start(self._new_name(child), self._news.set)
                self._attend(f"http://{address_of(listening)}", afterwards)
            finally:
                self._stopping.set()
                listening.close()
                self._end()

    def _attend(self, url: str, afterwards: ExitStack) -> None:
        """Open the ledger, have the processes begin, and keep them running.

        Args:
            afterwards: Ends what this has begun, once the processes have ended.
        """
        from .audit.sequencer import AuditLog, Sequencer
        from .ledger.ledger import Ledger
        from .storage import ImageStore
        from .tracing import Tracing

        settings = self._settings
        ledger = Ledger.open(settings.ledger_url)
        afterwards.callback(ledger.close)
        self._check_access(ledger)
        signing_key(settings.data, create=ledger.last_event() == 0)
        log = AuditLog(ledger, settings)
        log.record_policy()
        Tracing.start(enabled=settings.telemetry, process="serve").close()
        ImageStore.in_folder(settings.data / "pictures").check()
        self._give_up(ledger, self._prefix)  # of a service that was killed
        for child in self._children:
            child.order(settings.to_json(), first=True)
        reconciler = threading.Thread(
            target=self._reconcile, args=(ledger,), name="limner-reconciler", daemon=True
        )
        reconciler.start()
        afterwards.callback(reconciler.join, _GRACE)
        sequencer = Sequencer(log)
        sequencer.start()
        afterwards.callback(sequencer.stop, _GRACE)
        self._watch(ledger, url)

    def stop(self) -> None:
        """End the service; called again, at once. Any thread may call this."""
        self._hurry = self._stopping.is_set()
        self._stopping.set()
        self._news.set()

    # Processes.

    def _workers(self) -> Iterator[_Child]:
        for device in _devices(self._settings.devices):
            kind, _, index = device.partition(":")
            label = f"worker {device}"
            if kind == "cuda" and index:  # only this GPU is seen, before anything is imported
                visible = {"CUDA_VISIBLE_DEVICES": _visible(int(index))}
                yield _Child(label, self._worker, {"device": "cuda", "shown": device}, visible)
            else:
                more = {"device": device, "shown": device}
                yield _Child(label, self._worker, more, arguments=[kind])

    def _api_process(self, listening: socket.socket) -> _Child:
        return _Child("api", self._api, {"descriptor": listening.fileno()}, descriptors=(listening.fileno(),))

    def _new_name(self, child: _Child) -> str:
        return f"{self._prefix}/{child.label.rpartition(' ')[2]}/{secrets.token_hex(3)}"

    def _watch(self, ledger: "Ledger", url: str) -> None:
        """Keep all processes running until the service is to stop."""
        announced = False
        while not self._stopping.is_set():
            self._news.clear()
            now, wait = time.monotonic(), _RECONCILE
            for child in self._children:
                if child.process is None:
                    if now >= child.not_before:
                        child.start(self._new_name(child), self._news.set)
                        child.order(self._settings.to_json(), first=not child.ever_ready)
                    else:
                        wait = min(wait, child.not_before - now)
                elif child.process.poll() is not None:
                    self._bury(child, ledger)
                    wait = 0.0
            api = self._children[-1]
            if api.ready and not announced:
                announced = True
                self._announce(url)
            self._news.wait(wait)

    def _bury(self, child: _Child, ledger: "Ledger") -> None:
        """Note that a process has died, and when it may be started again.

        Raises:
            LimnerError: It cannot start at all.
        """
        assert child.process is not None
        code, name = child.process.returncode, child.name
        child.close()
        if child.error is not None and not child.ever_ready:
            raise child.error
        sound = child.ready and time.monotonic() - child.ready_at > _STEADY
        child.failures = 1 if sound else child.failures + 1
        if not child.ever_ready and child.failures >= _TRIES:
            raise InternalError(
                f"the {child.label} process died {_TRIES} times before it was ready, "
                f"the last time {_how_it_died(code)}",
                hint="the log above says why",
            )
        wait = min(_SHORTEST_WAIT * 2 ** (child.failures - 1), _LONGEST_WAIT)
        child.not_before = time.monotonic() + wait
        fields = {"process": child.label, "name": name, "reason": _how_it_died(code), "wait": wait}
        _LOG.warning("a process died and is started again", extra={"fields": fields})
        if child.is_worker:
            self._give_up(ledger, name)

    def _end(self) -> None:
        """End all processes: workers finish what they are at, as long as the settings give them time, and the
        API process, which answers until then, comes last."""
        workers = [child for child in self._children if child.is_worker]
        self._end_processes(workers, self._settings.drain_seconds + _GRACE)
        self._end_processes([child for child in self._children if not child.is_worker], _GRACE)

    def _end_processes(self, children: Sequence[_Child], seconds: float) -> None:
        """End processes, and kill those that have not ended after some seconds."""
        running = [child for child in children if child.process is not None]
        for child in running:
            child.signal(signal.SIGTERM)
            if child.process is not None and child.process.stdin is not None:
                with suppress(OSError):
                    child.process.stdin.close()  # for one that still waits for its order
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._hurry:
            if all(child.process is None or child.process.poll() is not None for child in running):
                break
            self._news.clear()
            self._news.wait(0.2)
        for child in running:
            if child.process is not None and child.process.poll() is None:
                fields = {"process": child.label, "name": child.name}
                _LOG.warning("a process did not end in time and is killed", extra={"fields": fields})
                child.signal(signal.SIGKILL)
                child.process.wait()
            child.close()

    # Housekeeping.

    def _reconcile(self, ledger: "Ledger") -> None:
        while not self._stopping.wait(_RECONCILE):
            _reconcile_once(ledger)

    def _give_up(self, ledger: "Ledger", owner: str) -> None:
        """Requeue the jobs that a dead worker had claimed, before its leases expire.

        Args:
            owner: Name of the worker, or the beginning of the names of several.
        """
        try:
            claims: dict[str, dict[str, int]] = {}
            before: str | None = None
            while True:
                page = ledger.list_jobs(None, states=["running"], limit=_PAGE, before=before)
                for job in page:
                    if job.owner is not None and job.owner.startswith(owner):
                        claims.setdefault(job.owner, {})[job.id] = job.fence
                if len(page) < _PAGE:
                    break
                before = page[-1].id
            for worker, fences in claims.items():
                ledger.renew(worker, fences, 0.0)
            ledger.forget_workers(workers_gone=[*claims, owner])
        except LimnerError as error:  # the leases end by themselves
            _LOG.warning("claims of a dead worker were not given up: %s", error)
            return
        if claims:
            _reconcile_once(ledger)

    def _check_safety(self) -> None:
        """Raise InvalidRequest for a policy that cannot be used, or none where one has to be chosen."""
        settings = self._settings
        load_policy(settings.safety_policy)
        if settings.safety is not None or settings.on_loopback:
            return
        from .catalogue import catalogue_of

        served = {*settings.models, settings.model, *map(str, settings.model_dirs)}
        served |= {one.name for one in catalogue_of(settings).entries("checkpoint") if one.problem is None}
        others = sorted(served - {*SHIPPED})
        if others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            raise InvalidRequest(
                f"{settings.host} can be reached from other machines, there are models other than the "
                f"shipped one ({', '.join(others[:_NAMED])}{more}), and no safety policy is chosen",
                hint="set `safety` to standard, strict, off, or the path of a policy file",
                fields=("safety",),
            )

    def _prepare_signing(self) -> None:
        """Make the development CA where images are to be signed without other keys.

        Raises:
            LimnerError: As `DeliverySigning.of`.
        """
        if not self._settings.sign:
            return
        from limner.safety.provenance.keys import DEVELOPMENT_CA

        from .signing import DeliverySigning

        folder = self._settings.data / DEVELOPMENT_KEYS
        known = folder.is_dir()
        DeliverySigning.of(self._settings)
        if not known and folder.is_dir():
            _LOG.warning('made "%s" in %s: its signatures prove nothing to others', DEVELOPMENT_CA, folder)

    def _check_access(self, ledger: "Ledger") -> None:
        if self._settings.on_loopback or self._settings.oidc_issuer is not None:
            return
        if not ledger.has_keys():
            raise InvalidRequest(
                f"{self._settings.host} can be reached from other machines, and there is no key",
                hint="make one with `limner keys create`, or listen on 127.0.0.1",
                fields=("host",),
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and notice the end of a process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop()

        def notice(number: int, frame: FrameType | None) -> None:
            self._news.set()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGCHLD: notice}
        if threading.current_thread() is not threading.main_thread():
            handlers = {}  # a program that runs a supervisor in a thread stops it by `stop`
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _reconcile_once(ledger: "Ledger") -> None:
    try:
        found = ledger.reconcile()
    except LimnerError as error:
        _LOG.warning("the ledger could not be reconciled: %s", error)
        return
    except Exception:  # without the reconciler jobs of lost workers would run for ever
        _LOG.exception("the ledger could not be reconciled")
        return
    if found:
        fields = {name: len(ids) for name, ids in vars(found).items() if ids}
        _LOG.info("lost jobs were queued again", extra={"fields": fields})


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"


def _devices(asked: Sequence[str]) -> list[str]:
    """The devices that workers are started for; "auto" is every CUDA device, else the CPU.

    Raises:
        InvalidRequest: A device is given twice.
    """
    found: list[str] = []
    for device in asked:
        found += _all_devices() if device == "auto" else [device]
    if twice := [device for device in found if found.count(device) > 1]:
        raise InvalidRequest(f"the device {twice[0]} is given twice", fields=("devices",))
    return found


def _all_devices() -> list[str]:
    """Names of the CUDA devices that torch can use; where there is no GPU, torch is not asked."""
    if not glob.glob("/dev/nvidia[0-9]*"):
        return ["cpu"]
    program = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    count = int(asked.stdout) if asked.returncode == 0 else 0
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def _visible(index: int) -> str:
    """CUDA_VISIBLE_DEVICES that shows one device alone."""
    given = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if not given:
        return str(index)
    if index >= len(given):
        raise InvalidRequest(
            f"there is no device cuda:{index}: CUDA_VISIBLE_DEVICES shows {len(given)}", fields=("devices",)
        )
    return given[index]
