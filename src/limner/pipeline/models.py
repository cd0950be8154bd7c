"""Models in memory, as many as fit, loaded once however many ask."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition
from typing import Any

from limner.errors import OutOfMemory
from limner.request import GenerationRequest

from .loading import Source, find
from .model import Model

Key = tuple[str, str | None, str | None]


class ModelCache:
    """Loads models by name, and forgets those not used for longest to stay within a bound.

    Args:
        max_bytes: of the weights of all models together.
        find: as `limner.pipeline.loading.find`.
        **options: device, precision and backend, for `find`.
    """

    def __init__(
        self, max_bytes: int = 8 << 30, *, find: Callable[..., Source] = find, **options: Any
    ) -> None:
        self._max_bytes, self._source, self._options = max_bytes, find, options
        self._changed = Condition()
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self._loading: dict[Key, Future[Model]] = {}
        self._expected = 0  # bytes of models that are being loaded
        self._held: Counter[Model] = Counter()
        self._waiting_for_room = 0

    def find(self, request: GenerationRequest) -> Model | None:
        """The model of a request, if it is in memory."""
        key = _key(request)
        with self._changed:
            if key in self._models:
                self._models.move_to_end(key)
            return self._models.get(key)

    def get(self, request: GenerationRequest, *, beside: int = 0) -> Model:
        """The model of a request, loaded if need be, once there is room beside those that are held.

        Args:
            beside: bytes of models that the caller holds and does not let go before this returns.

        Raises:
            OutOfMemory: it is larger than the bound.
            LimnerError: as `limner.load`.
        """
        key = _key(request)
        with self._changed:
            if (model := self._models.get(key)) is not None:
                self._models.move_to_end(key)
                return model
            future = self._loading.get(key)
            if ours := future is None:
                future = self._loading[key] = Future()
        assert future is not None
        if ours:
            try:
                future.set_result(self._load(key, beside))
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._changed:
                    del self._loading[key]
        return future.result()

    def get_all(self, requests: Sequence[GenerationRequest]) -> list[Model]:
        """The models of several requests that are to be in memory together. Raises as `get`."""
        models: list[Model] = []
        try:
            for request in requests:
                together = sum(model.backend.bytes_with(()) for model in set(models))
                models.append(self.get(request, beside=together))
                self.hold(models[-1])
        finally:
            for model in models:
                self.let_go(model)
        return models

    def hold(self, model: Model) -> None:
        """Do not forget this model until it is let go as often."""
        with self._changed:
            self._held[model] += 1

    def let_go(self, model: Model) -> None:
        """Undo one `hold`."""
        with self._changed:
            self._held[model] -= 1
            if not self._held[model]:
                del self._held[model]
            self._changed.notify_all()

    @property
    def crowded(self) -> bool:
        """Whether a model waits for those that are held to be let go."""
        with self._changed:
            return self._waiting_for_room > 0

    @property
    def bytes(self) -> int:
        """Of the weights of all models that are in memory or on their way there."""
        with self._changed:
            return self._sum()

    def _load(self, key: Key, beside: int) -> Model:
        source = self._source(key[0], revision=key[1], variant=key[2], **self._options)
        if beside + source.bytes > self._max_bytes:
            more = f" beside {beside / 1e9:.1f} GB of another model" if beside else ""
            raise OutOfMemory(
                f"{key[0]} takes {source.bytes / 1e9:.1f} GB of memory{more}; "
                f"models may take {self._max_bytes / 1e9:.1f} GB",
                hint="raise the bound, or choose a lower precision",
            )
        with self._changed:
            self._waiting_for_room += 1
            try:
                self._changed.wait_for(lambda: self._make_room(source.bytes))
            finally:
                self._waiting_for_room -= 1
            self._expected += source.bytes
        try:
            model = source.load()
        finally:
            with self._changed:
                self._expected -= source.bytes
        with self._changed:
            self._models[key] = model
        return model

    def _make_room(self, size: int) -> bool:
        for key, model in list(self._models.items()):
            if self._sum() + size <= self._max_bytes:
                break
            if model not in self._held:
                del self._models[key]
        for model in self._models.values():
            if self._sum() + size <= self._max_bytes:
                break
            model.backend.forget_guests()
        return self._sum() + size <= self._max_bytes

    def _sum(self) -> int:
        return self._expected + sum(model.backend.bytes for model in self._models.values())


def _key(request: GenerationRequest) -> Key:
    return request.model, request.revision, request.variant
