"""Texts and images as vectors, by the networks of a worker."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from limner.errors import WorkerUnavailable
from limner.service.hub import WorkerInfo

from .account import Embedded

_FOR_AN_IMAGE = 30.0  # seconds that a search by an image waits for a worker: nothing else can answer it
_BACKGROUND = 120.0  # seconds that indexing does


class Caller(Protocol):
    """What is needed of `limner.service.hub.Hub`."""

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """The connected workers."""

    async def call(
        self,
        name: str,
        params: Mapping[str, Any],
        blobs: Sequence[bytes] = (),
        *,
        timeout: float = 60.0,
        worker: str | None = None,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Have a worker answer a question."""


class Embedder:
    """Has workers make vectors.

    Args:
        patience: Seconds that a search by words waits for a worker, before it goes by the words alone.
    """

    def __init__(self, hub: Caller, *, patience: float = 3.0) -> None:
        self._hub, self.patience = hub, patience

    @property
    def workers(self) -> list[WorkerInfo]:
        """Workers that can be asked."""
        return [one for one in self._hub.workers if not one.draining]

    async def text(self, text: str) -> Embedded:
        """The vector of a text that somebody searches for.

        Raises:
            WorkerUnavailable: No worker answers in time.
            LimnerError: The worker cannot do it.
        """
        self._check()
        [vector] = await self._embed("embed_text", {"texts": [text]}, (), self.patience, None)
        return vector

    async def image(self, data: bytes) -> Embedded:
        """The vector of an image file that somebody searches by. Raises as `text`."""
        self._check()
        [vector] = await self._embed("embed_images", {}, (data,), _FOR_AN_IMAGE, None)
        return vector

    async def texts(self, texts: Sequence[str], worker: str) -> list[Embedded]:
        """The vectors of texts to be indexed, by a worker. Raises as `text`."""
        return await self._embed("embed_text", {"texts": list(texts)}, (), _BACKGROUND, worker)

    async def images(self, files: Sequence[bytes], worker: str) -> list[Embedded]:
        """The vectors of image files to be indexed, by a worker. Raises as `text`."""
        return await self._embed("embed_images", {}, files, _BACKGROUND, worker)

    def _check(self) -> None:
        if not self.workers:
            raise WorkerUnavailable("no worker is connected", hint="try again in some seconds")

    async def _embed(
        self, call: str, params: Mapping[str, Any], blobs: Sequence[bytes], timeout: float, worker: str | None
    ) -> list[Embedded]:
        answer, vectors = await self._hub.call(call, params, blobs, timeout=timeout, worker=worker)
        return embedded_of(answer, vectors)


def embedded_of(answer: Mapping[str, Any], vectors: Sequence[bytes]) -> list[Embedded]:
    """The vectors in an answer of `limner.service.judges.Judges`."""
    return [Embedded(str(answer["encoder"]), np.frombuffer(one, "<f4")) for one in vectors]
