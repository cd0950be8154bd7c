"""Cache of loaded models: each is loaded once; the least recently used are dropped at a limit."""

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Condition, Lock
from typing import Any, Protocol

import torch

from limner.backends.device import pick_device
from limner.errors import OutOfMemory
from limner.forks import renew_after_fork
from limner.generation.calls import Role
from limner.model.loading import Source, find
from limner.model.model import Model
from limner.model.options import LoadOptions
from limner.request import GenerationRequest

from .memory import device_memory
from .plan import Models, wanted_models

_WEIGHTS_SHARE = 0.6  # share of a device's memory for the weights of all models

Key = tuple[str, str | None, str | None, bool]  # model, revision, variant, own_parts: see `_key`


class ModelSource(Protocol):
    """Provides the models of an engine. Safe to use from any thread."""

    @property
    def device(self) -> torch.device:
        """The device that all its models are on."""

    @property
    def cache_dir(self) -> Path | None:
        """Folder of what was measured on this machine; None is the user's cache."""

    @property
    def single(self) -> bool:
        """Whether all requests use one model, whatever they name."""

    @property
    def crowded(self) -> bool:
        """Whether a model cannot be loaded before models in use are released."""

    @property
    def expected(self) -> int:
        """Bytes of models that are being loaded."""

    def models(self) -> Iterable[Model]:
        """All models in memory."""

    def find_all(self, request: GenerationRequest) -> Models | None:
        """The models of a request, if all are in memory."""

    def get_all(self, request: GenerationRequest) -> Models:
        """The models of a request, loaded if need be. They are held; call `let_go` once. Raises as
        `limner.load`."""

    def hold(self, models: Models) -> None:
        """Keep these models in memory until `let_go` is called as often as `hold`."""

    def let_go(self, models: Models) -> None:
        """Undo one `hold`."""


class OneModel:
    """A `ModelSource` of one model, and of the refiner that requests named last."""

    single, crowded, expected = True, False, 0

    def __init__(self, model: Model) -> None:
        self._model, self.device = model, model.backend.device
        self.cache_dir: Path | None = model.cache_dir
        self._refiner: tuple[Key, Model] | None = None
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: keep the models that are in memory."""
        self._loading = Lock()

    def models(self) -> Iterable[Model]:
        refiner = self._refiner
        return [self._model] if refiner is None else [self._model, refiner[1]]

    def find_all(self, request: GenerationRequest) -> Models | None:
        wanted = wanted_models(request).get("refiner")
        if wanted is None:
            return {"model": self._model}
        refiner = self._refiner
        if refiner is None or refiner[0] != _key(wanted):
            return None
        return {"model": self._model, "refiner": refiner[1]}

    def get_all(self, request: GenerationRequest) -> Models:
        with self._loading:
            found = self.find_all(request)
            if found is not None:
                return found
            wanted = wanted_models(request)["refiner"]
            self._refiner = None  # its memory is free before the next one is read
            refiner = find(self._model.options.of_refiner(wanted.model, wanted.variant)).load()
            self._refiner = _key(wanted), refiner
            return {"model": self._model, "refiner": refiner}

    def hold(self, models: Models) -> None:
        """No effect: the model stays."""

    def let_go(self, models: Models) -> None:
        """No effect: the model stays."""


class ModelCache:
    """Loads models onto one device by name, and drops the least recently used to stay within a limit.

    Args:
        max_bytes: Bytes of the weights of all models together; by default a share of the device's memory.
        find: As `limner.model.loading.find`.
        loaded: Called with each model that was loaded and the seconds that it took.
        **options: Fields of `LoadOptions`: device, precision, backend … Parts replace those of each model,
            but not of refiners.
    """

    single = False

    def __init__(
        self,
        max_bytes: int | None = None,
        *,
        find: Callable[[LoadOptions], Source] = find,
        loaded: Callable[[Model, float], None] = lambda _model, _seconds: None,
        **options: Any,
    ) -> None:
        self._source, self._loaded, self._options = find, loaded, LoadOptions(**options)
        self.device = pick_device(self._options.device, self._options.backend)
        self.max_bytes = int(_WEIGHTS_SHARE * device_memory(self.device)) if max_bytes is None else max_bytes
        cache_dir = self._options.cache_dir
        self.cache_dir: Path | None = None if cache_dir is None else Path(os.path.expanduser(cache_dir))
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: keep the models that are in memory, and forget what the parent is loading."""
        self._changed = Condition()
        self._loading: dict[Key, Future[None]] = {}  # done once the model is in memory, or the error
        self._expected = 0  # bytes of models that are being loaded
        self._held: Counter[Model] = Counter()
        self._waiting_for_room = 0

    def find(self, request: GenerationRequest, role: Role = "model") -> Model | None:
        """The model of a request, if it is in memory."""
        key = self._key(request, role)
        with self._changed:
            if key in self._models:
                self._models.move_to_end(key)
            return self._models.get(key)

    def get(self, request: GenerationRequest, role: Role = "model", *, other_bytes: int = 0) -> Model:
        """The model of a request, loaded if need be, once there is room next to those that are held.

        Args:
            role: What it is loaded for.
            other_bytes: Bytes of models that the caller holds until this returns.

        Raises:
            OutOfMemory: It is larger than the limit.
            LimnerError: As `limner.load`.
        """
        return self._get(request, role, other_bytes, hold=False)

    def models(self) -> Iterable[Model]:
        """All models in memory."""
        with self._changed:
            return list(self._models.values())

    def find_all(self, request: GenerationRequest) -> Models | None:
        """The models of a request, if all are in memory."""
        found = {role: self.find(one, role) for role, one in wanted_models(request).items()}
        known = {role: model for role, model in found.items() if model is not None}
        return known if len(known) == len(found) else None

    def get_all(self, request: GenerationRequest) -> Models:
        """The models of a request, in memory together. They are held; call `let_go` once. Raises as `get`."""
        models: Models = {}
        try:
            for role, one in wanted_models(request).items():
                together = sum(model.backend.bytes_with(()) for model in {*models.values()})
                models = {**models, role: self._get(one, role, together, hold=True)}
        except BaseException:
            self.let_go(models)
            raise
        return models

    def hold(self, models: Models) -> None:
        """Do not forget these models until they are let go as often."""
        with self._changed:
            self._held.update(models.values())

    def let_go(self, models: Models) -> None:
        """Undo one `hold`."""
        with self._changed:
            self._held.subtract(models.values())
            self._held = +self._held
            self._changed.notify_all()

    @property
    def expected(self) -> int:
        """Bytes of models that are being loaded."""
        with self._changed:
            return self._expected

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

    def _key(self, request: GenerationRequest, role: Role) -> Key:
        options = self._options
        replaced = bool(options.parts) or options.prediction_type is not None
        return _key(request, own_parts=role == "refiner" and replaced)

    def _get(self, request: GenerationRequest, role: Role, other_bytes: int, hold: bool) -> Model:
        """As `get`; the model may be held, before another thread can forget it."""
        key = self._key(request, role)
        while True:
            with self._changed:
                if (model := self._models.get(key)) is not None:
                    self._models.move_to_end(key)
                    if hold:
                        self._held[model] += 1
                    return model
                future = self._loading.get(key)
                if future is None:
                    ours = self._loading[key] = Future()
                    break
            future.result()  # of another thread; the model may have been forgotten again
        try:
            model = self._load(key, other_bytes, hold)
        except BaseException as error:
            ours.set_exception(error)
            raise
        else:
            ours.set_result(None)
            return model
        finally:
            with self._changed:
                del self._loading[key]

    def _load(self, key: Key, other_bytes: int, hold: bool) -> Model:
        name, revision, variant, own_parts = key
        options = self._options if not own_parts else self._options.of_refiner(name, variant)
        source = self._source(replace(options, reference=name, revision=revision, variant=variant))
        if other_bytes + source.bytes > self.max_bytes:
            more = f" in addition to {other_bytes / 1e9:.1f} GB of another model" if other_bytes else ""
            raise OutOfMemory(
                f"{name} takes {source.bytes / 1e9:.1f} GB of memory{more}; "
                f"models may take {self.max_bytes / 1e9:.1f} GB",
                hint="raise the limit, or choose a lower precision",
            )
        with self._changed:
            self._waiting_for_room += 1
            try:
                self._changed.wait_for(lambda: self._make_room(source.bytes))
            finally:
                self._waiting_for_room -= 1
            self._expected += source.bytes
        began = time.monotonic()
        try:
            model = source.load()
            self._loaded(model, time.monotonic() - began)
        except BaseException:
            with self._changed:
                self._expected -= source.bytes
                self._changed.notify_all()
            raise
        with self._changed:
            self._expected -= source.bytes
            self._models[key] = model
            if hold:
                self._held[model] += 1
        return model

    def _make_room(self, size: int) -> bool:
        for key, model in list(self._models.items()):
            if self._sum() + size <= self.max_bytes:
                break
            if model not in self._held:
                del self._models[key]
        for model in self._models.values():
            if self._sum() + size <= self.max_bytes:
                break
            model.backend.forget_auxiliary()
        return self._sum() + size <= self.max_bytes

    def _sum(self) -> int:
        return self._expected + sum(model.backend.bytes for model in self._models.values())


def _key(request: GenerationRequest, *, own_parts: bool = False) -> Key:
    """
    Args:
        own_parts: Whether the model keeps its own parts although the cache's options replace parts.
    """
    return request.model, request.revision, request.variant, own_parts
