"""Key maps between the hub's layout and single files, against maps that were measured without our code."""

import hashlib
from pathlib import Path

import pytest
import torch

from limner.files import read_json
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.control_config import ControlNetConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.weights.keymaps import (
    Entry,
    by_single,
    clip_entries,
    controlnet_entries,
    openclip_entries,
    single_shapes,
    unet_entries,
    unet_modules,
    vae_entries,
)

REFINER = UNetConfig(
    block_out_channels=(384, 768, 1536, 1536),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(6, 12, 24, 24),
    cross_attention_dim=1280,
    transformer_layers_per_block=4,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2560,
    sample_size=128,
)
BIG_G = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
    projection=True,
)
# Part -> where the published model's text encoder of it is in single files, and whether by OpenCLIP's names.
TEXTS = {
    "sd15": {"text_encoder": (clip_entries, "cond_stage_model.transformer.")},
    "sd21-768-v": {"text_encoder": (openclip_entries, "cond_stage_model.model.")},
    "sdxl-base": {
        "text_encoder": (clip_entries, "conditioner.embedders.0.transformer."),
        "text_encoder_2": (openclip_entries, "conditioner.embedders.1.model."),
    },
}


def config(reference: Path, model: str, part: str, cls):
    return cls.from_dict(read_json(reference / "configs" / model / part / "config.json"))


def entries_of(reference: Path, model: str) -> list[Entry]:
    entries = unet_entries(config(reference, model, "unet", UNetConfig))
    entries += vae_entries(config(reference, model, "vae", VAEConfig))
    for part, (text_entries, prefix) in TEXTS[model].items():
        entries += text_entries(config(reference, model, part, CLIPTextConfig), part, prefix)
    return entries


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    lines = [f"{key}\t{shape_text(shapes[key])}\n" for key in sorted(shapes, key=str.encode)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def indexed(reference: Path, manifest: str) -> str:
    [line] = [
        line for line in (reference / "keys/INDEX.tsv").read_text().splitlines() if line.startswith(manifest)
    ]
    return line.split("\t")[-1]


def as_line(entry: Entry, totals: dict[str, tuple[int, ...]]) -> str:
    transform = {"same": "same", "conv1x1": "conv1x1->linear", "transpose": "transpose"}[entry.transform]
    if entry.rows:
        transform = f"rows[{entry.rows[0]}:{entry.rows[1]}]"
    name = entry.name if entry.part == "controlnet" else f"{entry.part}/{entry.name}"
    return "\t".join(
        (entry.single, name, transform, shape_text(totals[entry.single]), shape_text(entry.shape))
    )


def pairs(reference: Path, model: str) -> list[str]:
    lines = (reference / "pairs" / f"{model}.tsv").read_text().splitlines()
    return [line for line in lines if not line.startswith("#") and "no counterpart" not in line]


def is_in_reference(line: str) -> bool:
    """The lines that were kept back are chosen by their hash, as the reference's README says."""
    key = "\t".join(line.split("\t")[:2])
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 10 < 7


@pytest.mark.parametrize("model", TEXTS)
def test_every_measured_pair_and_no_other(reference, model):
    entries = entries_of(reference, model)
    totals = single_shapes(entries)
    lines = [as_line(entry, totals) for entry in entries]
    assert len(lines) > 1000
    assert sorted(filter(is_in_reference, lines)) == sorted(pairs(reference, model))


@pytest.mark.parametrize("model", TEXTS)
def test_whole_manifests_of_published_single_files(reference, model):
    shapes = single_shapes(entries_of(reference, model))
    lines = (reference / "keys/single" / f"{model}.txt").read_text().splitlines()
    rest = set(lines) - {f"{key}\t{shape_text(shape)}" for key, shape in shapes.items()}
    assert len(lines) - len(rest) == len(shapes)
    unused = ("logit_scale", "text_projection", "resblocks.23.") if model != "sd15" else ()
    assert all(any(word in line for word in unused) for line in rest)


def test_manifests_that_were_kept_back(reference):
    vae = vae_entries(VAEConfig())
    text = clip_entries(CLIPTextConfig(), "text_encoder", "cond_stage_model.transformer.")
    inpainting = single_shapes([*unet_entries(UNetConfig(in_channels=9)), *vae, *text])
    assert digest(inpainting) == indexed(reference, "keys/single/sd15-inpainting.txt")

    prefix = "conditioner.embedders.0.model."
    text = openclip_entries(BIG_G, "text_encoder_2", prefix)
    refiner = single_shapes([*unet_entries(REFINER), *vae, *text]) | {f"{prefix}logit_scale": ()}
    assert digest(refiner) == indexed(reference, "keys/single/sdxl-refiner.txt")


def test_controlnet(reference):
    lines = (reference / "keys/diffusers/controlnet-sd15-canny/model.txt").read_text().splitlines()
    shapes = {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in lines)}
    entries = controlnet_entries(ControlNetConfig())
    assert {entry.name: entry.shape for entry in entries} == shapes
    assert digest(single_shapes(entries)) == indexed(reference, "keys/single/controlnet-sd15.txt")
    measured = [as_line(entry, single_shapes(entries)) for entry in entries]
    assert sorted(filter(is_in_reference, measured)) == sorted(pairs(reference, "controlnet-sd15"))


def test_modules_are_those_that_kohya_names(reference):
    modules = unet_modules(config(reference, "sdxl-base", "unet", UNetConfig))
    names = {f"lora_unet_{single.replace('.', '_')}" for single in modules.values()}
    lines = (reference / "lora/kohya-sdxl-lora-r16-a8.txt").read_text().splitlines()
    kohya = {line.partition(".")[0] for line in lines if line.startswith("lora_unet")}
    assert len(kohya) == 722
    assert kohya <= names


SMALL = UNetConfig(
    block_out_channels=(32, 64, 96),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=3,
    attention_head_dim=4,
    cross_attention_dim=48,
    transformer_layers_per_block=(1, 2, 3),
    use_linear_projection=True,
    time_cond_proj_dim=8,
)


@pytest.mark.parametrize(
    "entries",
    [
        unet_entries(SMALL),
        vae_entries(VAEConfig(block_out_channels=(32, 64, 64), layers_per_block=1)),
        openclip_entries(
            CLIPTextConfig(32, 64, 2, 4, vocab_size=99, projection=True, projection_dim=24),
            "text_encoder",
            "",
        ),
    ],
    ids=["unet", "vae", "openclip"],
)
def test_there_and_back_is_identity_and_every_tensor_has_a_place(entries):
    shapes = single_shapes(entries)
    tensors = {key: torch.randn(shape) for key, shape in shapes.items()}
    hub = {entry.name: entry.from_single(tensors[entry.single]) for entry in entries}
    assert len(hub) == len(entries)
    for entry in entries:
        assert hub[entry.name].shape == entry.shape
        storages = [t.untyped_storage().data_ptr() for t in (hub[entry.name], tensors[entry.single])]
        assert storages[0] == storages[1]  # a view
    for key, held in by_single(entries).items():
        assert torch.equal(torch.cat([entry.to_single(hub[entry.name]) for entry in held]), tensors[key])
