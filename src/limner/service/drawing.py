"""What a worker draws with: an engine, the models behind it, and its answers to calls.

`TorchDevice` is the real one. It knows models by their ids in the catalogue alone, opens input images among
the uploads alone, and never asks the hub. A worker in tests has another one, without torch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from limner.catalogue.catalogue import Catalogue, Entry
from limner.engine.events import Subscriber
from limner.engine.handle import Progress
from limner.engine.protocol import EngineProtocol
from limner.errors import InvalidRequest, ModelNotFound
from limner.images.assets import Assets
from limner.request import GenerationRequest
from limner.settings.serve import ServeSettings

from .catalogue import catalogue_of, folders_of
from .jobs import Job
from .judges import Judges
from .measuring import WorkerMeter
from .worker_calls import CALLS, Handler

if TYPE_CHECKING:
    from limner.model.loading import Source
    from limner.model.model import Model
    from limner.model.options import LoadOptions

_LOG = logging.getLogger("limner.worker")


class DrawingDevice(Protocol):
    """What a worker draws with."""

    @property
    def engine(self) -> EngineProtocol:
        """Draws requests."""

    @property
    def calls(self) -> Mapping[str, Handler]:
        """Answers the calls of the API process, by name."""

    def models(self) -> tuple[str, ...]:
        """Ids of the checkpoints in memory."""

    @property
    def gpu(self) -> str | None:
        """The GPU, as `nvidia-smi` names it; None for another device."""

    def memory(self) -> dict[str, int]:
        """Bytes: "models", and "limit" for them."""

    def load(self, name: str) -> None:
        """Load a checkpoint of the catalogue. Raises LimnerError."""

    def request(self, job: Job) -> GenerationRequest:
        """The request of a job, as the engine takes it. Raises LimnerError."""

    def unfinished(
        self, request: GenerationRequest, progress: Progress, seconds: float
    ) -> Image.Image | None:
        """The image of a running request as far as it is; None where it cannot be decoded in so many seconds.

        Raises:
            LimnerError: Decoding failed.
        """


DeviceFactory = Callable[[ServeSettings, str, Sequence[Subscriber], WorkerMeter], DrawingDevice]
"""Settings, the device's name, subscribers of the engine, a meter -> what the worker draws with."""


def request_of(job: Job) -> GenerationRequest:
    """The request of a job, with the id of its checkpoint as its model.

    Raises:
        InvalidRequest: The job's parameters are no request for one image.
    """
    request = GenerationRequest.of(job.params)
    if request.num_images != 1:
        raise InvalidRequest(
            f"num_images is {request.num_images}; a job has one image", fields=("num_images",)
        )
    return request.model_copy(update={"model": job.model, "revision": None, "variant": None})


class TorchDevice:
    """An engine over a cache of the catalogue's models.

    Args:
        settings: Settings of the service.
        device: Name of the device, as torch knows it in this process.
        subscribers: Called with each event of the engine.
        meter: Counts what is loaded.
    """

    def __init__(
        self, settings: ServeSettings, device: str, subscribers: Sequence[Subscriber], meter: WorkerMeter
    ) -> None:
        from limner.engine.engine import Engine
        from limner.engine.models import ModelCache

        self._meter = meter
        self._catalogue: Catalogue = catalogue_of(settings)
        self._ids: dict[tuple[str, str | None], str] = {}  # by the name and variant of a model
        self._cache = ModelCache(
            find=self._find,
            loaded=self._loaded,
            device=device,
            precision=settings.precision,
            backend=settings.backend,
            lora_dirs=folders_of(settings, "lora"),
            embedding_dirs=folders_of(settings, "embedding"),
            control_dirs=(*folders_of(settings, "controlnet"), *folders_of(settings, "t2i_adapter")),
            image_prompt_dirs=(*folders_of(settings, "ip_adapter"), *folders_of(settings, "image_encoder")),
            wildcards_dirs=settings.wildcards_dirs,
            styles_files=settings.styles_files,
            cache_dir=settings.cache_dir,
            assets=Assets(store=settings.data / "uploads", allow_paths=False),
            catalogue=self._catalogue,
        )
        self.engine: EngineProtocol = Engine(self._cache, subscribers=subscribers)
        self.calls: Mapping[str, Handler] = {**CALLS, **Judges().calls}

    def models(self) -> tuple[str, ...]:
        """Ids of the checkpoints in memory."""
        names = [(model.name, model.variant) for model in self._cache.models()]
        return tuple(self._ids[name] for name in names if name in self._ids)

    @property
    def gpu(self) -> str | None:
        """The UUID of the GPU, as `nvidia-smi` names it; None for another device."""
        import torch

        if self._cache.device.type != "cuda":
            return None
        return f"GPU-{torch.cuda.get_device_properties(self._cache.device).uuid}"

    def memory(self) -> dict[str, int]:
        """Bytes: "models", and "limit" for them."""
        return {"models": self._cache.bytes, "limit": self._cache.max_bytes}

    def load(self, name: str) -> None:
        """Load a checkpoint of the catalogue.

        Raises:
            LimnerError: There is none of this name, or it cannot be loaded.
        """
        self._cache.get(GenerationRequest(prompt="", model=self._entry(name).id))

    def request(self, job: Job) -> GenerationRequest:
        """The request of a job, as the engine takes it. Raises as `request_of`."""
        return request_of(job)

    def unfinished(
        self, request: GenerationRequest, progress: Progress, seconds: float
    ) -> Image.Image | None:
        """The image of a running request as far as it is, decoded before the other work of the device; None
        where it cannot be decoded in so many seconds.

        Raises:
            LimnerError: Decoding failed.
        """
        from limner.engine.device import engine_of
        from limner.generation.calls import DecodeLatents
        from limner.images.pixels import to_images

        models = self._cache.find_all(request)
        if models is None or progress.latents is None:
            return None
        model = models["model"]
        call = DecodeLatents(progress.latents, request.vae_tiling, request.tiling)
        engine = engine_of(model.backend.device)
        try:
            [answer] = engine.answer(model, [call], first=True, timeout=seconds)
        except TimeoutError:
            return None
        if answer.error is not None:
            raise answer.error
        [image] = to_images(answer.value)
        return image

    def _loaded(self, model: "Model", seconds: float) -> None:
        self._meter.loaded(self._ids[model.name, model.variant], seconds)
        _LOG.info("model loaded", extra={"fields": {"model": model.name, "seconds": round(seconds, 2)}})

    def _entry(self, name: str) -> Entry:
        """A checkpoint of the catalogue by its id or name. The folders are searched again for a new one."""
        try:
            entry = self._catalogue.find("checkpoint", name)
        except ModelNotFound:
            self._catalogue.refresh()
            entry = self._catalogue.find("checkpoint", name)
        if entry.problem is not None:
            raise ModelNotFound(f"the checkpoint {entry.name} cannot be used: {entry.problem}")
        return entry

    def _find(self, options: "LoadOptions") -> "Source":
        """As `limner.model.loading.find`, by ids and names of the catalogue."""
        from limner.model.loading import find

        entry = self._entry(str(options.reference))
        path = Path(entry.path)
        source = find(replace(options, reference=path, variant=entry.variant, revision=None))
        named = replace(source.options, variant=entry.variant, revision=entry.revision)
        self._ids[entry.name, entry.variant] = entry.id
        return replace(source, name=entry.name, options=named)
