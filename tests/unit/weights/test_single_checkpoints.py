"""Single files as checkpoints: they draw what a folder of the same weights draws."""

from pathlib import Path

import pytest
import torch

from limner import load
from limner.errors import InvalidRequest, ModelNotFound
from limner.nn.vae import AutoencoderKL
from limner.weights.checkpoint import read_checkpoint, weights_hash
from limner.weights.hub import _TOKENIZER_REPO, locate_model
from limner.weights.tensors import write_tensors

FAMILIES = ("sd1", "sd2", "xl", "xl_refiner")
ASK = {"prompt": "a cat!", "negative_prompt": "fog", "seed": 3, "steps": 3, "width": 64, "height": 64}


@pytest.fixture
def cached_tokenizer(tmp_path, tokenizer_folder, monkeypatch):
    """CLIP's tokenizer in a hub cache, here one that only knows bytes; and no hub."""
    commit = "0" * 40
    repo = tmp_path / "cache" / f"models--{_TOKENIZER_REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.parent.mkdir()
    tokenizer_folder.rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def draw(path: Path, **options):
    model = load(path, precision="fp32", **options)
    return model, model.generate(**ASK).images[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws(path, small_single, cached_tokenizer, family):
    write_tensors(path, small_single(family))
    model, picture = draw(path)
    assert model.family.removeprefix("xl_") in (family, family.removeprefix("xl_"), "custom")
    assert [model.tokenizers[part].pad for part in model.tokenizers] == {
        "sd1": [513],
        "sd2": [0],
        "xl": [513, 0],
        "xl_refiner": [0],
    }[family]
    assert picture.size == (64, 64)
    assert picture.record.model["sha256"] == weights_hash(read_checkpoint(path, tokenizer=cached_tokenizer))
    assert picture.record.infotext().count(f"Model hash: {picture.record.model['sha256'][:10]}") == 1


def test_another_autoencoder(path, small_single, cached_tokenizer, tmp_path):
    tensors = small_single("sd1")
    write_tensors(path, tensors)
    prefix = "first_stage_model."
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    other = {key.removeprefix(prefix): torch.randn_like(tensor) * 0.1 for key, tensor in own.items()}
    vae = tmp_path / "vae.safetensors"
    write_tensors(vae, other)
    plain, first = draw(path)
    model, second = draw(path, vae=vae)
    assert first.tobytes() != second.tobytes()
    assert isinstance(model.backend.vae, AutoencoderKL)
    assert first.record.model["sha256"] != second.record.model["sha256"]
    write_tensors(vae, {key.removeprefix(prefix): tensor for key, tensor in own.items()})
    assert draw(path, vae=vae)[1].tobytes() == first.tobytes()
    assert plain.backend.bytes == model.backend.bytes


def test_the_prediction_type_can_be_given(path, small_single, cached_tokenizer):
    write_tensors(path, small_single("sd2"))
    model, first = draw(path)
    assert any("give the prediction type" in warning for warning in model.warnings)
    told, second = draw(path, prediction_type="epsilon")
    assert told.scheduler.prediction_type == "epsilon"
    assert not told.warnings
    assert first.tobytes() != second.tobytes()


def test_without_a_tokenizer_or_with_a_variant(path, small_single, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_tensors(path, small_single("sd1"))
    with pytest.raises(ModelNotFound, match="holds no tokenizer") as caught:
        locate_model(path)
    assert _TOKENIZER_REPO in caught.value.hint
    with pytest.raises(InvalidRequest, match="no variants"):
        locate_model(path, variant="fp16")
