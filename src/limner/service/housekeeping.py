"""Background tasks of the API process: delivers webhooks, deletes expired data, finds new models."""

import logging
import threading
from collections.abc import Callable

from limner.settings.serve import ServeSettings

from .ledger.ledger import Ledger
from .metrics import Meter
from .retention import Retention
from .storage import StoredFiles
from .webhooks import Webhooks, webhook_secret

_LOG = logging.getLogger("limner.housekeeping")

_WEBHOOK_SECONDS = 1.0
_RETENTION_SECONDS = 600.0
_LEFTOVERS_SECONDS = 3600.0
_CATALOGUE_SECONDS = 60.0


class Housekeeping:
    """Threads that each repeat one task.

    What fails is logged, and tried again in the next round. Any number of processes may keep
    house on one ledger at once.

    Args:
        signing_key: The service's signing key.
        refresh: Searches the folders of models again.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ledger: Ledger,
        store: StoredFiles,
        meter: Meter,
        *,
        signing_key: bytes,
        refresh: Callable[[], object] = lambda: None,
    ) -> None:
        secret = webhook_secret(settings, signing_key)
        self.webhooks = Webhooks(ledger, settings, meter, secret=secret)
        self.retention = Retention(ledger, store, settings, meter)
        self._stopping = threading.Event()
        self._threads = [
            self._thread("limner-webhooks", self.webhooks.deliver_due, _WEBHOOK_SECONDS),
            self._thread("limner-retention", self.retention.run, _RETENTION_SECONDS),
            self._thread("limner-leftovers", self.retention.collect, _LEFTOVERS_SECONDS),
            self._thread("limner-catalogue", refresh, _CATALOGUE_SECONDS),
        ]

    def start(self) -> None:
        """Start. The first round begins at once."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Start no further round, and wait some seconds for the current one."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def _thread(self, name: str, work: Callable[[], object], seconds: float) -> threading.Thread:
        def run() -> None:
            while not self._stopping.is_set():
                try:
                    work()
                except Exception:
                    _LOG.exception("%s failed", name.removeprefix("limner-"))
                self._stopping.wait(seconds)

        return threading.Thread(target=run, name=name, daemon=True)
