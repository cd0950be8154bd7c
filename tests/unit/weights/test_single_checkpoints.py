"""Single files as checkpoints: they draw what a folder of the same weights draws."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner import load
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
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


EXTRAS = {  # keys that files of the field have besides those of the networks
    "model_ema.diffusion_modelinput_blocks00weight": (64, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 16),
    "cond_stage_model.model.logit_scale": (),
    "cond_stage_model.model.text_projection": (64, 48),
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 16),
    "conditioner.embedders.1.model.logit_scale": (),
    "alphas_cumprod": (1000,),
    "ztsnr": (0,),
}
METADATA = {"modelspec.resolution": "320x320", "modelspec.prediction_type": "v"}


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "with extras"])
@pytest.mark.parametrize(
    ("family", "channels"), [*((family, 4) for family in FAMILIES), ("sd1", 9), ("sd1", 8), ("sd2", 5)]
)
def test_facts_without_loading(path, small_single, cached_tokenizer, tmp_path, family, channels, extras):
    tensors = small_single(family, channels)
    if extras:
        added = {key: torch.zeros(shape) for key, shape in EXTRAS.items() if key not in tensors}
        layouts = {"sd1": "cond_stage_model.tr", "sd2": "cond_stage_model.mo", "xl": "conditioner"}
        layout = layouts.get(family, "conditioner.embedders.0.model")
        own = ("model_ema", "alphas", "ztsnr", layout)
        tensors |= {key: tensor for key, tensor in added.items() if key.startswith(own)}
    write_tensors(path, tensors, METADATA if extras else {})
    catalogue = Catalogue({"checkpoint": [path.parent]}, cache=tmp_path / "catalogue")
    facts, loaded = model_facts(catalogue.find("checkpoint", "model")), load(path, precision="fp32")
    assert facts == replace(loaded.facts, name="model")
    assert (facts.unet.sample_size == 320 // 2) is extras  # the small autoencoder halves


def test_facts_without_torch(path, small_single):
    write_tensors(path, small_single("xl"))
    program = f"""
import sys
from pathlib import Path
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
folder = Path({str(path.parent)!r})
catalogue = Catalogue({{"checkpoint": [folder]}}, cache=folder / "cache")
assert model_facts(catalogue.find("checkpoint", "model")).sizes == 6
assert not {{"torch", "numpy", "huggingface_hub"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


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
    assert isinstance(model.backend.networks.vae, AutoencoderKL)
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
