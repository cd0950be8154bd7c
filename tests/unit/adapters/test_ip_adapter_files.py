"""Files of IP-Adapters: every published form, by names and shapes at full size, and what is refused."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from limner.adapters.ip_adapter import read_image_encoder, read_ip_adapter
from limner.errors import InvalidCheckpoint, PickleRefused, UnsupportedModel
from limner.files import read_json
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig, attended_layers
from limner.weights.load import build_on_meta
from limner.weights.save import write_json
from limner.weights.tensors import write_tensors

VISION = CLIPVisionConfig(
    hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
    projection_dim=24, projection=True,
)  # fmt: skip


@pytest.fixture
def unet_of(reference):
    def unet_of(model):
        return UNetConfig.from_dict(read_json(reference / "configs" / model / "unet" / "config.json"))

    return unet_of


def shapes_of(config):
    """Names and shapes of a file."""
    network = build_on_meta(lambda: IPAdapter(config))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def small(unet, form):
    """A config of each form for a U-Net."""
    layers = tuple(attended_layers(unet).values())
    context = unet.cross_attention_dim
    return {
        "linear": IPAdapterConfig("linear", 24, context, layers, tokens=4),
        "mlp": IPAdapterConfig("mlp", 48, context, layers),
        "resampler": IPAdapterConfig("resampler", 48, context, layers, 5, channels=40, heads=2, depth=2),
    }[form]


@pytest.fixture
def unet(networks):
    return networks["unet"].config


def test_numbers_of_attentions(reference, unet_of):
    lines = (reference / "keys" / "single" / "ip-adapter-sd15.order.txt").read_text().splitlines()
    numbered = dict(line.split("\t") for line in lines)
    found = attended_layers(unet_of("sd15"))
    assert list(found) == [name for name in numbered.values() if name.endswith("attn2")]
    for model in ("sd15", "sdxl-base"):
        config = unet_of(model)
        network = build_on_meta(lambda config=config: UNet2DConditionModel(config))
        own = {name: m.to_q.out_features for name, m in network.named_modules() if name.endswith("attn2")}
        assert attended_layers(config) == own


def test_a_published_file(reference, hollow, unet_of):
    lines = (reference / "keys" / "single" / "ip-adapter-sd15.txt").read_text().splitlines()
    shapes = {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in lines)}
    file = read_ip_adapter(hollow("ip-adapter_sd15.safetensors", shapes), unet_of("sd15"))
    assert (file.config.form, file.config.tokens, file.config.image_channels) == ("linear", 4, 1024)
    assert shapes_of(file.config) == shapes


def test_the_manifest_of_xl(reference, unet_of):
    unet = unet_of("sdxl-base")
    config = IPAdapterConfig("linear", 1280, 2048, tuple(attended_layers(unet).values()), tokens=4)
    shapes = shapes_of(config)
    text = "".join(f"{name}\t{'x'.join(map(str, shapes[name]))}\n" for name in sorted(shapes))
    index = (reference / "keys" / "INDEX.tsv").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("form", ["linear", "mlp", "resampler"])
def test_each_form(random_file, tmp_path, unet, form, suffix):
    config = small(unet, form)
    path = random_file(shapes_of(config))
    file = read_ip_adapter(path, unet)
    if suffix == ".bin":
        nested = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in file.tensors.items():
            part, _, rest = name.partition(".")
            nested[part][rest] = tensor.half()
        path = tmp_path / "adapter.bin"
        torch.save(nested, path)
        file = read_ip_adapter(path, unet)
    assert file.config == config
    network = file.load()
    with torch.inference_mode():
        seen = torch.randn(2, 24) if form == "linear" else torch.randn(2, 7, 48)
        pairs = network.float()(seen)
    tokens = {"linear": 4, "mlp": 7, "resampler": 5}[form]
    assert pairs.shape == (2, 2, tokens, sum(config.layers))


def test_what_is_refused(random_file, tmp_path, unet):
    shapes = shapes_of(small(unet, "linear"))
    with pytest.raises(InvalidCheckpoint, match="no IP-Adapter"):
        read_ip_adapter(random_file({"lora_unet_x.alpha": 1.0}), unet)
    wide = shapes_of(replace(small(unet, "linear"), context_channels=2048))
    with pytest.raises(UnsupportedModel, match="2048 channels, which is for Stable Diffusion XL"):
        read_ip_adapter(random_file(wide), unet)
    without = {name: shape for name, shape in shapes.items() if name != "ip_adapter.1.to_k_ip.weight"}
    with pytest.raises(InvalidCheckpoint, match=r"1 missing: ip_adapter\.1\.to_k_ip\.weight"):
        read_ip_adapter(random_file(without), unet)
    with pytest.raises(InvalidCheckpoint, match=r"1 unexpected: image_proj\.more"):
        read_ip_adapter(random_file({**shapes, "image_proj.more": (3,)}), unet)
    with pytest.raises(InvalidCheckpoint, match=r"image_proj\.norm\.weight is missing"):
        read_ip_adapter(random_file({"image_proj.proj.weight": (8, 8)}), unet)
    with pytest.raises(InvalidCheckpoint, match="neither"):
        read_ip_adapter(random_file({"image_proj.latent": (8, 8)}), unet)
    with pytest.raises(InvalidCheckpoint, match="expected 3 dimensions"):
        read_ip_adapter(random_file({"image_proj.latents": (8, 8)}), unet)
    torch.save({"image_proj": nn.Linear(2, 2)}, tmp_path / "evil.bin")
    with pytest.raises(PickleRefused):
        read_ip_adapter(tmp_path / "evil.bin", unet)


@pytest.mark.parametrize(
    "names",
    [
        ("image_proj.proj.0.weight", "image_proj.proj.2.weight", "image_proj.norm.weight"),
        ("image_proj.proj.0.weight", "image_proj.perceiver_resampler.proj_in.weight"),
        ("image_proj.proj.weight", "ip_adapter.0.to_q_lora.down.weight"),
    ],
)
def test_adapters_of_faces_are_refused_by_name(random_file, unet, names):
    with pytest.raises(UnsupportedModel, match="FaceID"):
        read_ip_adapter(random_file(dict.fromkeys(names, (4, 4))), unet)


def test_image_encoders(tmp_path, unet):
    network = CLIPVisionModel(VISION)
    tensors = {**network.state_dict(), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    write_json(tmp_path / "config.json", VISION.to_dict())
    write_tensors(tmp_path / "model.safetensors", tensors)
    encoder = read_image_encoder(tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    for _ in range(2):
        with torch.inference_mode():
            for ours, own in zip(encoder.load()(pixels), network(pixels), strict=True):
                # Kernels of some CPUs round by where a tensor lies in memory.
                torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)
        bare = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
        write_tensors(tmp_path / "model.safetensors", bare)
    assert all(encoder.fits(small(unet, form)) for form in ("linear", "mlp", "resampler"))
    assert not encoder.fits(replace(small(unet, "linear"), image_channels=48))
    write_json(tmp_path / "config.json", {**VISION.to_dict(), "num_hidden_layers": 3})
    with pytest.raises(InvalidCheckpoint, match="missing"):
        read_image_encoder(tmp_path).load()
