"""Networks beside a checkpoint's own, which make room for models and requests that need it."""

from threading import Thread

import pytest
import torch

from limner import GenerationRequest, load
from limner.pipeline.engine import Engine
from limner.pipeline.limits import Limits
from limner.pipeline.loading import find
from limner.pipeline.models import ModelCache

ASK = {"prompt": "a cat", "seed": 3, "steps": 2, "width": 64, "height": 64}


def invite(model, numbers=1 << 20):
    """A guest of so many numbers."""
    return model.backend._guest("guest", lambda: torch.nn.Linear(numbers, 1, bias=False))


@pytest.fixture
def of_two(checkpoint_folder):
    """A cache with room for two models and nothing else, which is full."""
    folders = dict.fromkeys("ab", checkpoint_folder)
    size = find(checkpoint_folder, precision="fp32").bytes
    return ModelCache(
        2 * size + 1000, find=lambda name, **more: find(folders[name], precision="fp32", **more)
    )


def test_a_refiner_is_loaded_where_guests_were(of_two):
    first = of_two.get(GenerationRequest(**ASK, model="a"))
    invite(first)
    assert first.backend.guest_bytes == 4 << 20
    names = [GenerationRequest(**ASK, model=name) for name in "ab"]
    loading = Thread(target=of_two.get_all, args=(names,), daemon=True)
    loading.start()
    loading.join(30)
    assert not loading.is_alive()
    assert first.backend.guest_bytes == 0
    assert of_two.find(names[0]) is first
    assert of_two.find(names[1]) is not None


def test_a_request_is_not_refused_for_guests_of_others(checkpoint_folder):
    model = load(checkpoint_folder, precision="fp32")
    with Engine(model, limits=Limits(memory=model.backend.bytes + (16 << 20))) as engine:
        invite(model, 1 << 22)
        assert len(engine.submit(GenerationRequest(**ASK)).result().images) == 1
    assert model.backend.guest_bytes == 0
