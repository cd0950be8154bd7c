"""Networks that requests name beside their model, fetched while others are drawn; the hub is a stand-in."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_standin import Hub
from PIL import Image

from limner import GenerationRequest, load
from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.engine.engine import Engine
from limner.engine.handle import Handle
from limner.errors import DeadlineExceeded, ModelNotFound, UnsupportedModel
from limner.images.opening import image_source
from limner.model.model import Model
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.unet_config import attended_layers
from limner.weights.save import write_json
from limner.weights.tensors import write_tensors
from tests.waiting import until

PICTURE = image_source(Image.new("RGB", (64, 64), "gray"))
NETWORK = {"controls": [{"model": "someone/edges", "image": PICTURE}]}
ADAPTER = {"image_prompts": [{"model": "someone/adapters:models/plain.safetensors", "images": [PICTURE]}]}
REFINER = {"refiner": "someone/picturebook", "refiner_start": 0.5}
SOON = 120.0  # seconds: much more than is needed, and less than files wait for at a slow hub


@pytest.fixture
def model() -> Model:
    return load("picturebook", precision="fp32")


@pytest.fixture
def repos(server: Hub, model: Model, tmp_path: Path) -> Hub:
    """The shipped networks, and an IP-Adapter with its encoder, as on the hub."""
    server.repos["someone/edges"] = SHIPPED_NETWORKS["picturebook-edges"]
    unet = model.checkpoint.unet_config
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
        projection_dim=24, projection=True,
    )  # fmt: skip
    encoder = tmp_path / "adapters" / "models" / "image_encoder"
    encoder.mkdir(parents=True)
    write_json(encoder / "config.json", config.to_dict())
    write_tensors(encoder / "model.safetensors", CLIPVisionModel(config).state_dict())
    widths = tuple(attended_layers(unet).values())
    adapter = IPAdapter(IPAdapterConfig("linear", 24, unet.cross_attention_dim, widths, tokens=4))
    write_tensors(encoder.parent / "plain.safetensors", adapter.state_dict())
    server.repos["someone/adapters"] = tmp_path / "adapters"
    server.repos["someone/picturebook"] = SHIPPED["picturebook"]
    return server


@pytest.fixture
def slow(repos: Hub) -> Iterator[threading.Event]:
    """No file arrives before this is set."""
    repos.slow = threading.Event()
    yield repos.slow
    repos.slow.set()


def ask(**fields: object) -> GenerationRequest:
    return GenerationRequest.of({"prompt": "a red house", "steps": 2, "seed": 1, **fields})


def fetching(repos: Hub, handle: Handle) -> Handle:
    """One whose file was asked for."""
    until(lambda: any("/resolve/" in path for path in repos.asked))
    assert not handle.done()
    return handle


@pytest.mark.parametrize(
    ("fields", "differs"),
    [(NETWORK, True), (ADAPTER, True), (REFINER, False)],  # which refines what is its own
)
def test_others_are_drawn_while_a_network_arrives(model, repos, slow, fields, differs):
    with Engine(model) as engine:
        under_way = engine.submit(ask(steps=10, seed=2))
        steered = fetching(repos, engine.submit(ask(**fields)))
        plain, local = engine.submit(ask()), {"model": "picturebook-edges", "image": PICTURE}
        beside = engine.submit(ask(controls=[local]))
        assert plain.result(SOON).images[0].tobytes() != beside.result(SOON).images[0].tobytes()
        assert under_way.result(SOON)
        assert not steered.done()
        slow.set()
        with_it, without = (handle.result(SOON).images[0].tobytes() for handle in (steered, plain))
        assert (with_it != without) == differs


def test_it_is_fetched_once_however_many_ask_and_then_found_without_the_hub(model, repos, slow):
    with Engine(model) as engine:
        handles = [engine.submit(ask(seed=seed, **NETWORK)) for seed in range(4)]
        fetching(repos, handles[0])
        slow.set()
        assert all(handle.result(SOON) for handle in handles)
        weights = [path for path in repos.asked if path.startswith("GET") and path.endswith(".safetensors")]
        assert len(weights) == 1
        repos.asked.clear()
        assert engine.submit(ask(**NETWORK)).result(SOON)
        assert repos.asked == []


def test_cancelled_or_late_while_it_is_fetched(model, repos, slow):
    engine = Engine(model)
    late = engine.submit(ask(**NETWORK), timeout=1.5)
    cancelled, kept = (fetching(repos, engine.submit(ask(seed=seed, **NETWORK))) for seed in (2, 3))
    began, busy = time.monotonic(), time.process_time()
    with pytest.raises(DeadlineExceeded):
        late.result(SOON)
    waited = time.monotonic() - began
    assert time.process_time() - busy < 0.5 * waited + 0.2  # it sleeps, and does not spin
    assert cancelled.cancel()
    until(lambda: engine.stats().cancelled)
    with pytest.raises(CancelledError):
        cancelled.result()
    assert not kept.done()  # which waits for the same file
    slow.set()
    assert kept.result(SOON)
    assert (engine.stats().done, engine.stats().failed) == (1, 1)


def test_an_engine_is_closed_while_a_network_is_fetched(model, repos, slow):
    engine = Engine(model)
    handle = fetching(repos, engine.submit(ask(**NETWORK)))
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < SOON  # which is not when the file is there
    assert handle.cancelled()
    assert engine.drain(SOON)


def test_what_cannot_be_fetched_is_that_requests_error(model, repos, monkeypatch):
    with Engine(model) as engine:
        missing = engine.submit(ask(controls=[{"model": "nobody/edges", "image": PICTURE}]))
        encoderless = engine.submit(
            ask(image_prompts=[{**ADAPTER["image_prompts"][0], "image_encoder": "nobody/encoder:e"}])
        )
        assert engine.submit(ask(**NETWORK)).result(SOON)
        with pytest.raises(ModelNotFound, match="no model nobody/edges on the hub") as caught:
            missing.result(SOON)
        assert "HF_TOKEN" in caught.value.hint
        with pytest.raises(ModelNotFound, match="no model nobody/encoder on the hub") as caught:
            encoderless.result(SOON)
        assert "image_encoder" in caught.value.hint
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids asking") as caught:
            engine.submit(ask(**NETWORK)).result(SOON)
        assert "unset HF_HUB_OFFLINE" in caught.value.hint
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assert engine.submit(ask(**NETWORK)).result(SOON)  # what failed once is tried again


def test_it_is_refused_for_what_it_is_once_it_is_there(repos, model):
    repos.repos["someone/model"] = SHIPPED["picturebook"] / "unet"
    with Engine(model) as engine:
        wrong = engine.submit(ask(controls=[{"model": "someone/model", "image": PICTURE}]))
        with pytest.raises(UnsupportedModel, match="describes a 'UNet2DConditionModel'"):
            wrong.result(SOON)
