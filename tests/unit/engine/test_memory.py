"""What is counted before it is in memory: layers with merged adapters, forward passes repeated in fp32; and
what a cache of models may take."""

from types import SimpleNamespace

import pytest
import torch

import limner
from limner.engine.engine import Engine
from limner.engine.memory import Limits, device_memory, element_size, resident_bytes, weigh
from limner.engine.models import ModelCache, OneModel
from limner.engine.plan import opens_files, plan_request
from limner.engine.scheduler import bytes_of
from limner.errors import OutOfMemory
from limner.request import GenerationRequest
from tests.unit.model.test_adapting import LAYER, TEXT_LAYER, write_lora

FIELDS = {"prompt": "a cat <lora:one>", "width": 64, "height": 64, "steps": 2, "seed": 1}
LAYER_BYTES = 4 * 32 * 32


@pytest.fixture
def model(checkpoint_folder, tmp_path):
    write_lora(tmp_path / "one.safetensors", LAYER, TEXT_LAYER)
    return limner.load(checkpoint_folder, precision="fp32", lora_dirs=[tmp_path])


@pytest.mark.parametrize(("exact", "layers"), [(True, 2), (False, 1)])
def test_layers_with_merged_adapters_are_counted_before_they_are_made(model, exact, layers):
    """By row, as adapters of small models are applied unless exact, only the text encoder's are merged."""
    request = GenerationRequest.of({**FIELDS, "exact": exact})
    plain = plan_request(
        request.model_copy(update={"prompt": "a cat"}), {"model": model}, Limits(1 << 40), one_model=True
    )
    needed = model.backend.bytes + layers * LAYER_BYTES + plain.demands[0].pass_bytes
    with Engine(model, limits=Limits(needed - 1)) as engine, pytest.raises(OutOfMemory, match="networks"):
        engine.submit(request).result()
    with Engine(model, limits=Limits(needed)) as engine:
        assert engine.submit(request).result()
    assert resident_bytes(model) >= model.backend.bytes + LAYER_BYTES * layers


def test_idle_layers_with_merged_adapters_make_room(model):
    request = GenerationRequest.of({**FIELDS, "exact": True})
    model.generate(request=request)
    assert model.executor.merged_in_memory() > 0
    plain = plan_request(
        request.model_copy(update={"prompt": "a cat"}), {"model": model}, Limits(1 << 40), one_model=True
    )
    with Engine(model, limits=Limits(model.backend.bytes + plain.demands[0].pass_bytes)) as engine:
        assert engine.submit(plain.request).result()
    assert model.executor.merged_in_memory() == 0


def test_what_each_image_takes_is_counted_where_wildcards_choose_its_adapters(checkpoint_folder, tmp_path):
    write_lora(tmp_path / "one.safetensors", LAYER)
    write_lora(tmp_path / "two.safetensors", LAYER, TEXT_LAYER)
    (tmp_path / "more").mkdir()
    write_lora(tmp_path / "more" / "two.safetensors", LAYER, seed=1)
    model = limner.load(checkpoint_folder, precision="fp32", lora_dirs=[tmp_path])
    fields = {**FIELDS, "prompt": "a cat {<lora:one>|<lora:two>}", "wildcards": True, "num_images": 8}
    request = GenerationRequest.of({**fields, "exact": True})
    plan = plan_request(request, {"model": model}, Limits(1 << 40), one_model=True)
    chosen = [picture.passes[0].adapters[0].path.stem for picture in plan.resolved.pictures]
    assert {*chosen} == {"one", "two"}
    assert chosen[0] == "one", "the images after the first one matter too"
    for name, demand in zip(chosen, plan.demands, strict=True):
        [auxiliary] = demand.networks.values()
        [merged] = auxiliary
        assert [used.path.stem for used in merged.adapters] == [name]
        assert merged.bytes == LAYER_BYTES * {"one": 1, "two": 2}[name]
    [warning] = plan.warnings
    assert "two.safetensors" in warning
    fitting = bytes_of(plan.demands[:1], weigh)
    with pytest.raises(OutOfMemory):
        plan_request(request, {"model": model}, Limits(fitting), one_model=True)


def test_files_that_a_request_names_are_opened_beside_the_devices_thread():
    plain = GenerationRequest.of({**FIELDS, "prompt": "a cat"})
    assert not opens_files(plain)
    for name in ("prompt", "negative_prompt", "hires_prompt"):
        assert opens_files(plain.model_copy(update={name: "a cat <lora:one>"}))


@pytest.mark.parametrize(
    ("precision", "fp32_bytes", "size"), [("fp32", 0, 4), ("fp16", 0, 2), ("bf16", 0, 2), ("bf16", 1000, 4)]
)
def test_once_a_pass_was_repeated_in_fp32_passes_are_counted_in_it(precision, fp32_bytes, size):
    backend, executor = SimpleNamespace(precision=precision), SimpleNamespace(fp32_bytes=fp32_bytes)
    assert element_size(SimpleNamespace(backend=backend, executor=executor)) == size


def test_a_cache_of_models_is_bounded_by_the_device(model):
    cache = ModelCache(device="cpu")
    assert cache.device == torch.device("cpu")
    assert 0 < cache.max_bytes < device_memory(cache.device)
    assert ModelCache(5).max_bytes == 5


def test_one_model_keeps_the_refiner_that_was_named_last(checkpoint_folder, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.symlink_to(checkpoint_folder)
    source = OneModel(limner.load(checkpoint_folder, precision="fp32", attention="sliced"))
    alone = GenerationRequest(**FIELDS)
    first, second = (
        GenerationRequest(**FIELDS, refiner=str(folder), refiner_start=0.5) for folder in folders
    )
    assert source.find_all(first) is None
    models = source.get_all(first)
    refiner = models["refiner"]
    assert (refiner.name, refiner.backend.precision) == (str(folders[0]), "fp32")
    assert refiner.options.attention == "sliced"  # it is loaded as the model was
    assert source.get_all(first) == source.find_all(first) == models
    assert source.find_all(alone) == source.get_all(alone) == {"model": models["model"]}
    assert [*source.models()] == [*models.values()]
    assert source.find_all(second) is None
    replaced = source.get_all(second)
    assert [*source.models()] == [models["model"], replaced["refiner"]]
    assert source.find_all(first) is None
