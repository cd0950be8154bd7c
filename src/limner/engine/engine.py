"""The engine that users have: requests in, handles out. The engine of the device runs them."""

from collections.abc import Sequence

from limner.model.model import Model

from .device import engine_of
from .events import Subscriber
from .front import Desk, Front
from .handle import Handle
from .jobs import Client, DeviceJob, Review
from .memory import Limits
from .models import ModelCache, OneModel


class Engine(Front):
    """Runs any number of requests together. Safe to use from any thread.

        with Engine(limner.load("picturebook")) as engine:
            handles = [engine.submit(request) for request in requests]
            results = [handle.result() for handle in handles]

    Leaving the block waits for what was submitted, or cancels it if the block raised. All engines whose
    models are on one device share its thread, and their requests share forward passes where they can.

    Args:
        models: One model for every request, or a cache that the requests' models are loaded into.
        limits: Limits of batches and memory for this engine's requests; by default most of the device's
            memory, less the models of all engines there, and estimates of worthwhile batch sizes.
        max_waiting: Number of requests that may wait at once.
        subscribers: Called with each `Event`.
        review: Reviews finished images before they are recorded, as a safety checker does.
    """

    def __init__(
        self,
        models: Model | ModelCache | None = None,
        *,
        limits: Limits | None = None,
        max_waiting: int = 4096,
        subscribers: Sequence[Subscriber] = (),
        review: Review | None = None,
    ) -> None:
        super().__init__(Desk(max_waiting, subscribers))
        source = OneModel(models) if isinstance(models, Model) else ModelCache() if models is None else models
        self._device = source.device
        own = Limits.of(self._device, source.cache_dir) if limits is None else limits
        self._client = Client(self._desk, source, own, limits is None, review)

    def _start(self, handle: Handle, rank: tuple[int, int], deadline: float) -> None:
        job = DeviceJob(handle, rank, deadline, client=self._client)
        self._desk.accept(job)
        engine_of(self._device).submit(job)

    def _wake(self) -> None:
        engine_of(self._device).wake()

    def _is_own_thread(self) -> bool:
        return engine_of(self._device).is_own_thread()
