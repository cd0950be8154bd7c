"""Indexing in the background: what is done while workers draw nothing, and while they do."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from limner.errors import InvalidRequest, UnsupportedModel
from limner.service.hub import WorkerInfo
from limner.service.identity import Principal
from limner.service.jobs import Completion, NewJob, StoredImage, Submission
from limner.service.ledger.ledger import Ledger
from limner.service.search import indexing
from limner.service.search.indexing import Indexer
from limner.service.search.searches import Searches
from limner.service.storage import ImageStore


class Workers:
    """A hub whose worker makes vectors, and notes how many images each call has."""

    def __init__(self):
        self.running, self.calls, self.encoder = 0, [], "one"
        self.workers = (WorkerInfo("w", "cpu", 1),)
        self.networks = True

    @asynccontextmanager
    async def subscribe(self, account_id, **_):
        async def never():
            await asyncio.Event().wait()
            yield

        yield never()

    async def call(self, name, params, blobs=(), *, timeout=0, worker=None):
        if not self.networks:
            raise UnsupportedModel("no networks")
        if b"damaged" in blobs:
            raise InvalidRequest("no image")
        count = len(params.get("texts", blobs))
        self.calls.append((name, count))
        return {"encoder": self.encoder}, [np.ones(4, "<f4").tobytes()] * count

    def draw(self, running):
        self.workers = (WorkerInfo("w", "cpu", 1, running=running),)


@pytest.fixture
def service(sqlite_url, tmp_path):
    ledger = Ledger.open(sqlite_url)
    store = ImageStore.in_folder(tmp_path / "pictures")
    searches = Searches(ledger, tmp_path / "search")
    hub = Workers()
    ledger.create_account("anna")

    def draw(*files):
        for data in files:
            ledger.accept(
                Principal(ledger.get_account("anna")), Submission((NewJob({"prompt": "boat"}, "m", 1.0),), {})
            )
            [claim] = ledger.claim("w", lease_seconds=60)
            job = claim.job
            key = f"masters/anna/{job.id}/1.png"
            if data is not None:
                store.put_master("anna", job.id, 1, data)
            record = {"request": {"prompt": "boat"}}
            image = StoredImage(f"img_{job.id}", job.id, "anna", key, "00", "11", 64, 64, 1, record)
            assert ledger.finish(job.id, job.fence, Completion(image, 1.0))

    indexer = Indexer(searches, ledger, store, hub)
    yield SimpleNamespace(ledger=ledger, searches=searches, hub=hub, draw=draw, indexer=indexer)
    searches.close()
    ledger.close()


def having(service):
    """Number of images that have vectors, and of those that wait for one."""

    def count(search):
        search.catch_up()
        return len(search.images.owners), len(search.index.missing("image_vectors", 100))

    return service.searches.run("anna", count)


def rounds(service, count):
    """Runs rounds of the indexer, and returns their pauses."""

    async def run():
        await service.indexer._look_at_everything()
        while service.indexer._changed:
            await service.indexer._follow_ledger(service.indexer._changed.pop())
        return [await service.indexer._embed_some() for _ in range(count)]

    return asyncio.run(run())


def test_images_get_vectors_while_nothing_is_drawn(service):
    service.draw(*[b"image"] * 10)
    rounds(service, 6)  # of two accounts
    assert having(service) == (10, 0)
    assert sorted(service.hub.calls) == [("embed_images", 2), ("embed_images", 8), ("embed_text", 1)]


def test_while_all_workers_draw_one_image_is_taken_in_seconds(service, monkeypatch):
    monkeypatch.setattr(indexing, "_BUSY_SECONDS", 3600.0)
    service.draw(*[b"image"] * 10)
    service.hub.draw(4)
    pauses = rounds(service, 20)
    assert [count for name, count in service.hub.calls if name == "embed_images"] in ([1], [])
    assert pauses.count(0.0) == 1
    service.hub.draw(0)
    rounds(service, 6)
    assert having(service) == (10, 0)


def test_files_that_are_damaged_or_gone_are_passed_over(service):
    service.draw(b"image", b"damaged", None, b"image")
    rounds(service, 6)
    assert having(service) == (2, 0)


def test_a_worker_without_networks_is_asked_once(service):
    service.draw(b"image")
    service.hub.networks = False
    pauses = rounds(service, 6)
    assert pauses.count(0.0) <= 2
    assert having(service) == (0, 1)


def test_an_erased_account_is_left_alone(service, tmp_path):
    service.draw(b"image")
    rounds(service, 1)
    service.indexer._wanting["anna"] = None
    service.ledger.erase_account("anna")
    service.searches.forget("anna")
    rounds(service, 4)
    assert not (tmp_path / "search" / "anna").exists()
