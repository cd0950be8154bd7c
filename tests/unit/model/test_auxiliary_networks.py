"""Networks beside a checkpoint's own, which make room for models and requests that need it."""

from dataclasses import replace
from threading import Thread

import pytest
import torch
from PIL import Image

from limner import GenerationRequest, load
from limner.backends import auxiliary
from limner.engine.engine import Engine
from limner.engine.memory import Limits
from limner.engine.models import ModelCache
from limner.errors import OutOfMemory
from limner.images.opening import image_source
from limner.model.loading import find
from limner.model.options import LoadOptions
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.unet_config import attended_layers
from limner.request.estimate import picture_bytes
from limner.weights.control import read_control
from limner.weights.save import save_control, write_json
from limner.weights.tensors import write_tensors
from tests.clocks import time_with
from tests.waiting import DEADLINE

PICTURE = image_source(Image.new("RGB", (64, 64), "gray"))
ASK = {"prompt": "a cat", "seed": 3, "steps": 2, "width": 64, "height": 64}


def invite(model, numbers=1 << 20):
    """An auxiliary network of so many numbers."""
    return model.backend.networks.auxiliary_network(
        "network", lambda: torch.nn.Linear(numbers, 1, bias=False)
    )


@pytest.fixture
def of_two(checkpoint_folder):
    """A cache with room for two models and nothing else, which is full."""
    folders = dict.fromkeys("ab", checkpoint_folder)
    size = find(LoadOptions(checkpoint_folder, precision="fp32")).bytes
    return ModelCache(
        2 * size + 1000,
        find=lambda options: find(replace(options, reference=folders[options.reference], precision="fp32")),
    )


def test_a_refiner_takes_the_place_of_auxiliary_networks(of_two):
    first = of_two.get(GenerationRequest(**ASK, model="a"))
    invite(first)
    assert first.backend.idle_bytes() == 4 << 20
    request = GenerationRequest(**ASK, model="a", refiner="b", refiner_start=0.5)
    loading = Thread(target=of_two.get_all, args=(request,), daemon=True)
    loading.start()
    loading.join(DEADLINE)
    assert not loading.is_alive()
    assert first.backend.idle_bytes() == 0
    models = of_two.find_all(request)
    assert models["model"] is first
    assert models["refiner"] is not first


def test_a_request_is_not_refused_for_auxiliary_networks_others(checkpoint_folder):
    model = load(checkpoint_folder, precision="fp32")
    with Engine(model, limits=Limits(memory=model.backend.bytes + (16 << 20))) as engine:
        invite(model, 1 << 22)
        assert len(engine.submit(GenerationRequest(**ASK)).result().images) == 1
    assert model.backend.idle_bytes() == 0


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


@pytest.fixture
def nets(tmp_path, networks):
    """Two ControlNets, as requests name them, and the bytes that each takes."""
    fields = []
    for name in ("one", "other"):
        network = ControlNetModel.from_unet(networks["unet"], conditioning_embedding_out_channels=(8, 16))
        save_control(tmp_path / name, network)
        fields.append({"controls": [f"model={tmp_path / name},image={PICTURE}"]})
    return fields, 4 * read_control(tmp_path / "one").parameters


@pytest.fixture
def seeing(tmp_path, model):
    """An IP-Adapter with its encoder, as a request names it, and the bytes that they take."""
    unet = model.checkpoint.unet_config
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
        projection_dim=24, projection=True,
    )  # fmt: skip
    widths = tuple(attended_layers(unet).values())
    encoder = CLIPVisionModel(config).state_dict()
    geometry = IPAdapterConfig("linear", 24, unet.cross_attention_dim, widths, tokens=4)
    adapter = IPAdapter(geometry).state_dict()
    folder, file = tmp_path / "image_encoder", tmp_path / "adapter.safetensors"
    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    write_tensors(folder / "model.safetensors", encoder)
    write_tensors(file, adapter)
    size = 4 * sum(tensor.numel() for tensor in (*encoder.values(), *adapter.values()))
    return {"image_prompts": [f"model={file},image={PICTURE}"]}, size


def enough(model, extra, controls):
    """Memory for a model, auxiliary networks of so many bytes, and one guided picture's forward passes."""
    [picture] = model.resolve(GenerationRequest(**ASK)).pictures
    made = picture_bytes(replace(picture, controls=(None,) * controls), model.facts, 4)
    return 4 * model.checkpoint.parameters + extra + made


def drawn_together(model, memory, asks):
    """The most pictures that were under way at once, and the most weights in memory, in bytes."""
    drawing, resident, answer = [], [], model.answer

    def watched(calls):
        drawing.append(engine.stats().running)
        answers = answer(calls)
        resident.append(model.backend.bytes)
        return answers

    object.__setattr__(model, "answer", watched)
    with Engine(model, limits=Limits(memory)) as engine:
        handles = [engine.submit(GenerationRequest.of({**ASK, "steps": 10, **fields})) for fields in asks]
        assert all(handle.result() for handle in handles)
    return max(drawing), max(resident)


@pytest.mark.parametrize("kind", ["control", "image prompt"])
def test_what_never_fits_with_its_networks_is_refused_before_they_are_read(model, nets, seeing, kind):
    fields, size = (nets[0][0], nets[1]) if kind == "control" else seeing
    request, memory = GenerationRequest.of({**ASK, **fields}), enough(model, size, int(kind == "control"))
    with Engine(model, limits=Limits(memory - 1)) as engine:
        with pytest.raises(OutOfMemory, match="pixels and the networks that the request names") as caught:
            engine.submit(request).result()
        assert "fewer or smaller networks" in caught.value.hint
        assert engine.stats().forwards == {}
        assert engine.submit(GenerationRequest(**ASK)).result()
    assert model.backend.idle_bytes() == 0
    with Engine(model, limits=Limits(memory)) as engine:
        assert engine.submit(request).result()
    assert model.backend.idle_bytes() == size


@pytest.mark.parametrize("rooms", [1, 2])
def test_a_request_waits_until_its_networks_fit_beside_those_at_work(model, nets, rooms):
    [one, other], size = nets
    most, resident = drawn_together(model, enough(model, rooms * size, 1), [one, other, {}])
    assert resident == 4 * model.checkpoint.parameters + rooms * size
    assert most == rooms + 1  # the last one needs none, but is not drawn before those that came first


def test_the_same_network_has_room_once_for_all_and_idle_ones_make_room(model, nets):
    [named, _], size = nets
    invite(model, 1 << 10)
    most, _ = drawn_together(model, enough(model, size, 1), [{**named, "seed": seed} for seed in range(3)])
    assert most == 3
    assert model.backend.idle_bytes() == size


def test_many_large_networks_are_kept_while_they_are_in_use(model, monkeypatch):
    now, read = 100.0, []
    monkeypatch.setattr(auxiliary, "_KEPT_BYTES", 1000)
    monkeypatch.setattr(auxiliary, "time", time_with(monotonic=lambda: now))

    def use(name, numbers=200):
        def load():
            read.append(name)
            return torch.nn.Linear(numbers, 1, bias=False)

        model.backend.networks.auxiliary_network(name, load)

    for _ in range(3):  # steps
        for name in "abc":
            use(name)
        now += 10
    assert read == ["a", "b", "c"]
    now += 55  # since the last use of these
    use("d")
    assert model.backend.idle_bytes() == 800  # of d alone
    use("c")
    assert read == ["a", "b", "c", "d", "c"]
