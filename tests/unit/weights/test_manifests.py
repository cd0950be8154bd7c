"""Every key and shape of the published checkpoints, without their weights."""

from pathlib import Path

import pytest
import torch

from limner.errors import InvalidCheckpoint
from limner.files import read_json
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.weights.load import load_module, text_encoder_name, unet_name, vae_name

NETWORKS = {
    "unet": (UNet2DConditionModel, UNetConfig, unet_name),
    "vae": (AutoencoderKL, VAEConfig, vae_name),
    "text_encoder": (CLIPTextModel, CLIPTextConfig, text_encoder_name),
}
MODELS = ("sd15", "sd21-768-v")


def manifest(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        return {}
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def load_from_manifest(reference: Path, model: str, part: str, shapes: dict[str, tuple[int, ...]]):
    network, config, names = NETWORKS[part]
    values = read_json(reference / "configs" / model / part / "config.json")
    # A single element seen as the whole tensor, so that full sizes cost no memory.
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    return load_module(lambda: network(config.from_dict(values)), tensors, source=Path(part), names=names)


@pytest.mark.parametrize("part", NETWORKS)
@pytest.mark.parametrize("model", MODELS)
def test_published_files_load(reference, model, part):
    shapes = manifest(reference / "keys" / "diffusers" / model / f"{part}.txt")
    extra = manifest(reference / "keys" / "diffusers" / model / f"{part}.extra.txt")
    assert extra or (model, part) != ("sd15", "text_encoder")
    module = load_from_manifest(reference, model, part, shapes | extra)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == shapes


@pytest.mark.parametrize("model", MODELS)
def test_older_names_of_the_vae_load(reference, model):
    folder = reference / "keys" / "diffusers" / model
    shapes = manifest(folder / "vae.legacy-attn.txt")
    assert "encoder.mid_block.attentions.0.query.weight" in shapes
    module = load_from_manifest(reference, model, "vae", shapes)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == manifest(folder / "vae.txt")


@pytest.mark.parametrize("model", MODELS)
def test_text_encoders_without_prefix_load(reference, model):
    shapes = manifest(reference / "keys" / "diffusers" / model / "text_encoder.txt")
    bare = {key.removeprefix("text_model."): shape for key, shape in shapes.items()}
    module = load_from_manifest(reference, model, "text_encoder", bare)
    assert module.state_dict().keys() == shapes.keys()


@pytest.mark.parametrize("part", NETWORKS)
def test_one_key_too_few_or_too_many_is_named(reference, part):
    shapes = manifest(reference / "keys" / "diffusers" / "sd15" / f"{part}.txt")
    lost = sorted(shapes)[len(shapes) // 2]
    renamed = {key if key != lost else f"{key}.renamed": shape for key, shape in shapes.items()}
    with pytest.raises(InvalidCheckpoint) as caught:
        load_from_manifest(reference, "sd15", part, renamed)
    assert f"1 missing: {lost};" in caught.value.message
    assert f"1 unexpected: {lost}.renamed" in caught.value.message
