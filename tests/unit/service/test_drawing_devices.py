"""What a worker draws with: models, adapters and images of the operator's choice alone."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from limner.errors import InvalidRequest, LimnerError, ModelNotFound
from limner.images.assets import Assets
from limner.service.data_folder import prepare
from limner.service.drawing import TorchDevice
from limner.service.jobs import Job
from limner.service.measuring import WorkerMeter
from limner.settings.serve import ServeSettings
from limner.weights.tensors import write_tensors
from tests.unit.conftest import checkpoint_folder, networks, scheduler_config, tokenizer_folder

__all__ = ["checkpoint_folder", "networks", "scheduler_config", "tokenizer_folder"]

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
ASK = {"prompt": "a cat", "seed": 3, "steps": 3, "width": 64, "height": 64}


def write_lora(path, width=32, layer=LAYER):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{layer}.lora_up.weight": torch.randn(32, 2, generator=generator),
        f"{layer}.lora_down.weight": torch.randn(2, width, generator=generator),
    }
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, tensors)


@pytest.fixture
def place(tmp_path, checkpoint_folder):
    """The service's folders: a checkpoint `tiny`, a LoRA `ink`, and one outside of them."""
    (tmp_path / "models").mkdir()
    shutil.move(checkpoint_folder, tmp_path / "models" / "tiny")
    write_lora(tmp_path / "loras" / "ink.safetensors")
    write_lora(tmp_path / "elsewhere" / "secret.safetensors")
    return tmp_path


@pytest.fixture
def device(place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    settings = ServeSettings(
        data=place / "data",
        cache_dir=place / "cache",
        model_dirs=(place / "models",),
        lora_dirs=(place / "loras",),
        control_dirs=(place / "loras",),
        precision="fp32",
    )
    prepare(settings.data)
    made = TorchDevice(settings, "cpu", (), WorkerMeter("cpu", price=0.0, currency="USD"))
    yield made
    made.engine.close()


def job(model="checkpoint:tiny", **params):
    return Job(
        id="job1",
        set_id="set1",
        index=0,
        account_id="anna",
        key_id=None,
        kind="generate",
        lane="interactive",
        state="running",
        params={**ASK, **params},
        model=model,
        predicted_seconds=1.0,
        position=0.0,
        attempt=1,
        fence=1,
        cancel_requested=False,
        created_at=0.0,
    )


def draw(device, **given):
    return device.engine.submit(device.request(job(**given))).result(60).images[0]


def test_a_model_is_known_by_its_id_and_recorded_by_its_name(device, place):
    picture = draw(device, revision="main", variant="fp16")
    alone = limner.load(place / "models" / "tiny", precision="fp32").generate(**ASK).images[0]
    assert picture.tobytes() == alone.tobytes()
    assert picture.record.request.model == "tiny"
    assert picture.record.model["name"] == "tiny"
    assert device.models() == ("checkpoint:tiny",)
    assert device.memory()["models"] > 0


@pytest.mark.parametrize("model", ["checkpoint:none", "/etc", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_a_model_outside_of_the_catalogue_is_neither_opened_nor_fetched(model, device, place):
    with pytest.raises(ModelNotFound, match="in the catalogue"):
        draw(device, model=model)
    with pytest.raises(ModelNotFound):
        device.load(model)
    with pytest.raises(ModelNotFound):
        draw(device, refiner=model, refiner_start=0.5)
    assert not (place / "hub").exists()


def test_a_new_model_is_found_while_the_worker_runs(device, place):
    draw(device)
    shutil.copytree(place / "models" / "tiny", place / "models" / "other")
    assert draw(device, model="checkpoint:other").record.request.model == "other"


def test_a_model_that_was_removed_fails_and_one_in_memory_goes_on(device, place):
    before = draw(device)
    shutil.rmtree(place / "models" / "tiny")
    assert draw(device).tobytes() == before.tobytes()
    device._cache._models.clear()
    with pytest.raises(LimnerError) as caught:
        draw(device)
    assert not caught.value.retryable


@pytest.mark.parametrize("asked", [{"loras": ["ink"]}, {"prompt": "a cat <lora:ink:1>"}])
def test_an_adapter_of_the_catalogue_is_applied(asked, device):
    picture = draw(device, **asked)
    assert picture.tobytes() != draw(device).tobytes()
    assert picture.record.request.loras[0].name == "ink"
    assert "lora ink" in picture.record.model


def test_an_adapter_by_its_path_is_refused(device, place):
    path = place / "elsewhere" / "secret.safetensors"
    for asked in (
        {"loras": [str(path)]},
        {"prompt": f"a cat <lora:{path}:1>"},
        {"loras": ["../elsewhere/secret"]},
    ):
        with pytest.raises(ModelNotFound, match="in the catalogue") as caught:
            draw(device, **asked)
        assert caught.value.fields == ("loras",)


def test_an_adapter_of_another_family_is_refused(device, place):
    write_lora(place / "loras" / "big.safetensors", layer="lora_unet_input_blocks_4_1_proj_in", width=640)
    with pytest.raises(LimnerError) as caught:
        draw(device, loras=["big"])
    assert not caught.value.retryable


@pytest.mark.parametrize("name", ["org/name", "/etc", "secret"])
def test_networks_are_looked_up_in_the_catalogue_alone(name, device, place):
    image = Assets(store=place / "data" / "uploads").put(png())
    control = {"model": name, "image": image}
    with pytest.raises(ModelNotFound, match="in the catalogue") as caught:
        draw(device, controls=[control])
    assert caught.value.fields == ("controls",)
    with pytest.raises(ModelNotFound, match="in the catalogue") as caught:
        draw(device, image_prompts=[{"model": name, "images": [image]}])
    assert caught.value.fields == ("image_prompts",)
    assert not (place / "hub").exists()


def png():
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")
    return data.getvalue()


def test_input_images_are_uploads(device, place):
    (place / "picture.png").write_bytes(png())
    reference = Assets(store=place / "data" / "uploads").put(png())
    picture = draw(device, image=reference, strength=0.7)
    assert picture.record.request.image == reference
    for source in (str(place / "picture.png"), "sha256:" + "0" * 64):
        with pytest.raises(InvalidRequest) as caught:
            draw(device, image=source)
        assert caught.value.fields == ("image",)


def test_a_running_image_is_decoded(device):
    request = device.request(job(steps=3))
    steps = []
    handle = device.engine.submit(request)
    handle.listen(lambda progress: progress and progress.picture is None and steps.append(progress))
    picture = handle.result(60).images[0]
    last, first = (device.unfinished(request, one, 60.0) for one in (steps[-1], steps[0]))
    assert last.size == picture.size
    off = [np.abs(np.asarray(one).astype(int) - np.asarray(picture)).mean() for one in (last, first)]
    assert off[0] < 1.0 < off[1]  # the estimate of the last step is the image, but for rounding


def test_calls_are_answered(device):
    assert {"preprocess", "interrogate", "embed_text", "embed_images"} <= device.calls.keys()
