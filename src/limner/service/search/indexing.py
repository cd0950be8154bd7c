"""Indexing in the background: images when they are done, and what was missed while the service was down.

Words and settings follow at once. Vectors are made by workers that draw nothing, a few at a time; where all
draw without end, one image every few seconds, so that their meaning is not unknown for ever.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from limner.errors import InvalidRequest, LimnerError, NotFound, UnsupportedModel
from limner.service.events import JobChanged
from limner.service.hub import Hub
from limner.service.ledger.ledger import Ledger
from limner.service.storage import ImageStore

from .account import AccountSearch, Embedded
from .embedding import Embedder
from .searches import Searches
from .vectors import build_graph

T = TypeVar("T")

_LOG = logging.getLogger("limner.search")

_EVERYTHING_SECONDS = 3600.0  # between looks at all accounts
_BUSY_SECONDS = 5.0  # between images while all workers draw
_IDLE_SECONDS = 0.5  # between looks whether a worker draws nothing
_TROUBLE_SECONDS = 30.0  # until something is tried again that has failed
_TEXTS = 64  # prompts of a call
_IMAGES = 8  # images of a call
_BYTES = 4 << 20  # of the images of a call, but for one that is larger


class Indexer:
    """Keeps the indexes of all accounts up to date.

    Args:
        searches: The indexes.
        ledger: Where images are known.
        store: Where their files are.
        hub: Tells of changes, and calls workers.
    """

    def __init__(self, searches: Searches, ledger: Ledger, store: ImageStore, hub: Hub) -> None:
        self._searches, self._ledger, self._store, self._hub = searches, ledger, store, hub
        self._embedder = Embedder(hub)
        self._changed: set[str] = set()  # accounts whose images have changed
        self._wanting: dict[str, None] = {}  # accounts that may want vectors, in turn
        self._news = asyncio.Event()
        self._without_networks: set[str] = set()  # workers that make no vectors
        self._everything_at = 0.0  # when all accounts are looked at again
        self._busy_until = 0.0  # when an image is due although all workers draw

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._work())

    async def _follow(self) -> None:
        """Note which accounts have changed."""
        async with self._hub.subscribe(None, progress=False) as events:
            async for event in events:
                if not isinstance(event, JobChanged) or event.change == "done":
                    self._changed.add(event.account_id)
                    self._news.set()

    async def _work(self) -> None:
        while True:
            pause = _TROUBLE_SECONDS
            try:
                await self._look_at_everything()
                while self._changed:
                    await self._follow_ledger(self._changed.pop())
                pause = await self._embed_some()
            except LimnerError as error:
                _LOG.warning("images cannot be indexed now: %s", error)
            except Exception:  # the next round may do better
                _LOG.exception("images cannot be indexed")
            if pause:
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._news.wait()

    async def _look_at_everything(self) -> None:
        now = time.monotonic()
        if now >= self._everything_at:
            self._everything_at = now + _EVERYTHING_SECONDS
            await asyncio.to_thread(self._searches.forget_erased)
            self._changed |= {one.id for one in await asyncio.to_thread(self._ledger.list_accounts)}

    async def _follow_ledger(self, account_id: str) -> None:
        try:
            while await self._in_index(account_id, lambda search: search.catch_up()):
                pass
            await self._in_index(account_id, lambda search: search.index.clean())
        except NotFound:  # the account was erased
            return
        self._wanting[account_id] = None

    async def _embed_some(self) -> float:
        """Make some vectors. Returns the seconds until there may be more to do."""
        if not self._wanting:
            return max(0.1, self._everything_at - time.monotonic())
        workers = [one for one in self._embedder.workers if one.id not in self._without_networks]
        if not workers:
            return _IDLE_SECONDS
        worker = min(workers, key=lambda one: one.running)
        now = time.monotonic()
        if worker.running and now < self._busy_until:
            return _IDLE_SECONDS
        if worker.running:
            self._busy_until = now + _BUSY_SECONDS
        account_id = next(iter(self._wanting))
        try:
            more = await self._embed_prompts(account_id, worker.id, 1 if worker.running else _TEXTS)
            more |= await self._embed_images(account_id, worker.id, 1 if worker.running else _IMAGES)
        except UnsupportedModel:
            self._without_networks.add(worker.id)
            return 0.0
        except NotFound:  # the account was erased
            more = False
        del self._wanting[account_id]
        if more:
            self._wanting[account_id] = None  # behind the others
        return 0.0

    async def _embed_prompts(self, account_id: str, worker: str, count: int) -> bool:
        """Make the vectors of some prompts. Returns whether there may be more."""
        texts = await self._in_index(account_id, lambda search: search.prompts_without_vector(count))
        if texts:
            made = await self._embedder.texts(list(texts.values()), worker)
            vectors = dict(zip(texts, made, strict=True))
            await self._in_index(account_id, lambda search: search.put_vectors("prompt_vectors", vectors))
        return len(texts) == count

    async def _embed_images(self, account_id: str, worker: str, count: int) -> bool:
        """Make the vectors of some images. Returns whether there may be more."""
        numbers = await self._in_index(
            account_id, lambda search: search.index.missing("image_vectors", count)
        )
        files = await asyncio.to_thread(self._read, numbers)
        readable = {number: data for number, data in files.items() if data is not None}
        made: dict[int, Embedded | None] = dict.fromkeys(files)
        if readable:
            try:
                vectors = await self._embedder.images(list(readable.values()), worker)
                made |= zip(readable, vectors, strict=True)
            except InvalidRequest:  # one of them is damaged
                for number, data in readable.items():
                    with suppress(InvalidRequest):
                        [made[number]] = await self._embedder.images([data], worker)
        if made:
            await self._in_index(account_id, lambda search: search.put_vectors("image_vectors", made))
            return True
        await self._build_graphs(account_id)
        return False

    def _read(self, numbers: Sequence[int]) -> dict[int, bytes | None]:
        """The files of the first images, up to a number of bytes; None where there is no file any more."""
        files: dict[int, bytes | None] = {}
        size = 0
        keys = self._ledger.image_keys(numbers)
        for number in numbers:
            try:
                data = self._store.get(keys[number])
            except (NotFound, KeyError):
                files[number] = None
                continue
            size += len(data)
            if files and size > _BYTES:
                break
            files[number] = data
        return files

    async def _build_graphs(self, account_id: str) -> None:
        """Build the graphs that an account's vectors need. Searches go on meanwhile."""
        needed = await self._in_index(account_id, lambda search: search.needed_graphs())
        for index, kind in needed:
            await asyncio.to_thread(build_graph, index, kind)

    async def _in_index(self, account_id: str, act: Callable[[AccountSearch], T]) -> T:
        return await asyncio.to_thread(self._searches.run, account_id, act)
