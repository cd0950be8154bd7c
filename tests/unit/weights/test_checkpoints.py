"""Reading a folder in the diffusers layout, and saying what is wrong with one."""

import json
import os
import shutil

import pytest
import torch

from limner.catalogue.layout import WEIGHT_STEMS
from limner.catalogue.pipelines import choose_weights
from limner.errors import InvalidCheckpoint, LimnerError, ModelNotFound, PickleRefused, UnsupportedModel
from limner.weights.checkpoint import (
    load_text_encoder,
    load_unet,
    load_vae,
    read_checkpoint,
    weights_hash,
)
from limner.weights.tensors import open_tensors, write_tensors


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "drop"}))


def test_what_is_told_without_loading(checkpoint_folder, networks):
    checkpoint = read_checkpoint(checkpoint_folder)
    assert checkpoint.family == "custom"
    assert checkpoint.parameters == sum(p.numel() for n in networks.values() for p in n.parameters())
    assert checkpoint.size == sum(p.stat().st_size for p in checkpoint_folder.rglob("*.safetensors"))
    assert checkpoint.warnings == ()


def test_published_configs(reference, tmp_path):
    for model, family in (("sd15", "sd1"), ("sd21-768-v", "sd2")):
        folder = tmp_path / model
        shutil.copytree(reference / "configs" / model, folder)
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        for part, stem in (
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
        ):
            write_tensors(folder / part / f"{stem}.safetensors", {"a": torch.ones(1)})
        checkpoint = read_checkpoint(folder)
        assert checkpoint.family == family
        assert checkpoint.scheduler_config["steps_offset"] == 1
        with pytest.raises(InvalidCheckpoint, match="1 unexpected: a"):
            load_unet(checkpoint)


def test_older_names_load_to_the_same_weights(checkpoint_folder):
    checkpoint = read_checkpoint(checkpoint_folder)
    vae, text = load_vae(checkpoint).state_dict(), load_text_encoder(checkpoint).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key):
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    assert len({renamed(key) for key in vae} - vae.keys()) == 16
    older = {renamed(key): tensor.clone() for key, tensor in vae.items()}
    write_tensors(checkpoint.parts["vae"].source, older)
    bare = {key.removeprefix("text_model."): tensor.clone() for key, tensor in text.items()}
    write_tensors(
        checkpoint.parts["text_encoder"].source, bare | {"embeddings.position_ids": torch.arange(16)[None]}
    )
    for before, after in ((vae, load_vae(checkpoint)), (text, load_text_encoder(checkpoint))):
        assert before.keys() == after.state_dict().keys()
        assert all(torch.equal(tensor, after.state_dict()[key]) for key, tensor in before.items())


PARTS = ("unet", "vae", "text_encoder")


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusion3Pipeline"},
            UnsupportedModel,
            "StableDiffusion3Pipeline",
        ),
        ("model_index.json", {"unet": ["diffusers", "UNet3D"]}, UnsupportedModel, "UNet3D.*expected UNet2D"),
        ("model_index.json", {"unet": []}, UnsupportedModel, "expected UNet2D"),
        (
            "model_index.json",
            {"prior": ["diffusers", "PriorTransformer"]},
            UnsupportedModel,
            "'prior'",
        ),
        ("model_index.json", {"vae": [None, None]}, InvalidCheckpoint, "names no 'vae'"),
        ("model_index.json", {"tokenizer": "drop"}, InvalidCheckpoint, "names no 'tokenizer'"),
        (
            "unet/config.json",
            {"class_embed_type": "timestep"},
            UnsupportedModel,
            "class_embed_type is 'timestep'",
        ),
        ("unet/config.json", {"from_the_future": 1}, UnsupportedModel, "unknown key 'from_the_future'"),
        (
            "unet/config.json",
            {"norm_num_groups": 0},
            InvalidCheckpoint,
            "modulo by zero",
        ),
        (
            "vae/config.json",
            {"latent_channels": 0},
            InvalidCheckpoint,
            "latent_channels is 0, expected a positive",
        ),
        ("unet/config.json", {"block_out_channels": 5}, InvalidCheckpoint, r"unet/config\.json"),
        ("unet/config.json", {"in_channels": 7}, UnsupportedModel, "takes 7 channels"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, InvalidCheckpoint, "takes 0 numbers"),
        ("vae/config.json", {"latent_channels": 8}, InvalidCheckpoint, "must agree, but are 4 and 8"),
        ("text_encoder/config.json", {"hidden_size": 64}, InvalidCheckpoint, "must agree, but are 32 and 64"),
    ],
)
def test_configs_that_do_not_fit(checkpoint_folder, file, changes, error, message):
    edit(checkpoint_folder / file, **changes)
    with pytest.raises(LimnerError, match=message) as caught:
        read_checkpoint(checkpoint_folder)
    assert type(caught.value) is error
    assert str(checkpoint_folder) in caught.value.message


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"transformer_layers_per_block": 10**9}),
        ("unet", {"transformer_layers_per_block": [1, 10**9]}),
        ("unet", {"layers_per_block": 900, "transformer_layers_per_block": 900}),
        ("unet", {"layers_per_block": -1}),
        ("unet", {"layers_per_block": "2"}),
        ("unet", {"out_channels": 4.0}),
        ("unet", {"block_out_channels": [2**61, 2**61]}),
        ("vae", {"layers_per_block": 10**9}),
        ("vae", {"in_channels": 10**18}),
        ("vae", {"in_channels": 10**30}),
        ("vae", {"in_channels": 0}),
        ("vae", {"block_out_channels": [0]}),
        ("vae", {"block_out_channels": [[16], [16]]}),
        ("text_encoder", {"num_hidden_layers": 10**9}),
        ("text_encoder", {"num_hidden_layers": 1}),
        ("text_encoder", {"vocab_size": 2**62}),
        ("text_encoder", {"intermediate_size": None, "vocab_size": "x"}),
    ],
)
def test_hostile_configs_are_refused_soon(checkpoint_folder, part, changes):
    edit(checkpoint_folder / part / "config.json", **changes)
    load = {"unet": load_unet, "vae": load_vae, "text_encoder": load_text_encoder}[part]
    with pytest.raises((InvalidCheckpoint, UnsupportedModel)):
        load(read_checkpoint(checkpoint_folder))


@pytest.mark.parametrize(
    ("version", "written", "size"),
    [("0.4.1", 32, 64), ("0.8.1", 32, 64), ("0.9.0.dev0", 32, 32), ("0.4.1", 96, 96), (None, 32, 32)],
)
def test_sample_sizes_of_2022(checkpoint_folder, version, written, size):
    edit(checkpoint_folder / "unet/config.json", sample_size=written, _diffusers_version=version or "drop")
    checkpoint = read_checkpoint(checkpoint_folder)
    assert checkpoint.unet_config.sample_size == size
    assert [f"sample_size {written}" in warning for warning in checkpoint.warnings] == [True] * (
        size != written
    )


@pytest.mark.parametrize(
    ("pipeline", "changes", "expected"),
    [
        ("StableDiffusionPipeline", {"steps_offset": 0, "clip_sample": True}, (1, False)),
        ("StableDiffusionPipeline", {"steps_offset": "drop", "clip_sample": "drop"}, (1, False)),
        ("StableDiffusionInpaintPipeline", {"steps_offset": "drop"}, (1, False)),
        ("StableDiffusionDepth2ImgPipeline", {"steps_offset": 0}, (0, False)),
        ("StableDiffusionPipeline", {}, (1, False)),
    ],
)
def test_schedulers_of_2022_are_corrected_as_pipelines_do(checkpoint_folder, pipeline, changes, expected):
    edit(checkpoint_folder / "model_index.json", _class_name=pipeline)
    edit(checkpoint_folder / "scheduler/scheduler_config.json", **changes)
    checkpoint = read_checkpoint(checkpoint_folder)
    read = checkpoint.scheduler_config
    assert (read.get("steps_offset", 0), read.get("clip_sample")) == expected
    corrected = changes and "Depth" not in pipeline
    assert len(checkpoint.warnings) == (len(changes) if corrected else 0)


def test_parts_from_elsewhere(checkpoint_folder, tmp_path):
    whole = read_checkpoint(checkpoint_folder)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoint_folder, elsewhere)
    for part in PARTS:
        stem = WEIGHT_STEMS[part]
        places = [elsewhere, elsewhere / part, elsewhere / part / f"{stem}.safetensors"]
        lacking = tmp_path / f"without_{part}"
        shutil.copytree(checkpoint_folder, lacking)
        shutil.rmtree(lacking / part)
        with pytest.raises(InvalidCheckpoint, match=f"no weights of its {part}"):
            read_checkpoint(lacking)
        for place in places:
            read = read_checkpoint(lacking, parts={part: place})
            assert read.parts[part].config == whole.parts[part].config
            assert all(map(torch.equal, read.tensors(part).values(), whole.tensors(part).values()))
    edit(elsewhere / "vae/config.json", latent_channels=8)
    with pytest.raises(InvalidCheckpoint, match="VAE latent_channels must agree, but are 4 and 8"):
        read_checkpoint(checkpoint_folder, parts={"vae": elsewhere})
    with pytest.raises(ModelNotFound, match="there is no vae at"):
        read_checkpoint(checkpoint_folder, parts={"vae": tmp_path / "none"})


def test_missing_files(checkpoint_folder, tmp_path):
    for file in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"):
        (checkpoint_folder / file).rename(tmp_path / "aside")
        with pytest.raises(InvalidCheckpoint, match=f"{file} is missing"):
            read_checkpoint(checkpoint_folder)
        (tmp_path / "aside").rename(checkpoint_folder / file)
    (checkpoint_folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        InvalidCheckpoint, match=r"no weights of its vae: expected vae/diffusion_pytorch_model\.safe"
    ):
        read_checkpoint(checkpoint_folder)


def test_truncated_weights_are_named(checkpoint_folder):
    checkpoint = read_checkpoint(checkpoint_folder)
    path = checkpoint.parts["unet"].source
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InvalidCheckpoint, match=f"{path}: is truncated"):
        load_unet(checkpoint)


def test_pickles_are_refused(checkpoint_folder, tmp_path):
    weights = checkpoint_folder / "unet" / "diffusion_pytorch_model.safetensors"
    beside = weights.with_suffix(".bin")
    beside.write_bytes(b"\x80\x02.")
    read_checkpoint(checkpoint_folder)  # both there: the safetensors file is taken
    weights.unlink()
    with pytest.raises(
        PickleRefused, match=r"unet only as a pickle \(unet/diffusion_pytorch_model\.bin\)"
    ) as caught:
        read_checkpoint(checkpoint_folder)
    assert "--allow-pickle" in caught.value.hint
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.ckpt").write_bytes(b"PK")
    with pytest.raises(PickleRefused, match=r"model\.ckpt"):
        read_checkpoint(tmp_path / "old")


def test_folders_that_are_no_checkpoint(checkpoint_folder, tmp_path):
    with pytest.raises(InvalidCheckpoint, match=r"has no model_index\.json") as caught:
        read_checkpoint(tmp_path)
    assert "there is one in tiny" in caught.value.hint
    with pytest.raises(InvalidCheckpoint, match=r"has no model_index\.json") as caught:
        read_checkpoint(checkpoint_folder / "vae")
    assert "diffusion_pytorch_model.safetensors may be" in caught.value.hint


def test_variants(checkpoint_folder):
    for path in list(checkpoint_folder.rglob("*.safetensors")):
        half = {name: tensor.half() for name, tensor in open_tensors(path).items()}
        if path.parent.name != "vae":
            write_tensors(path.with_suffix(".fp16.safetensors"), half)
    checkpoint = read_checkpoint(checkpoint_folder, "fp16")
    assert load_unet(checkpoint).conv_in.weight.dtype == torch.float16
    assert load_vae(checkpoint).quant_conv.weight.dtype == torch.float32
    assert "no 'fp16' variant of its vae" in checkpoint.warnings[0]
    with pytest.raises(ModelNotFound, match="no variant 'bf16': it has only fp16"):
        read_checkpoint(checkpoint_folder, "bf16")
    (checkpoint_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="unet only in the variant fp16") as caught:
        read_checkpoint(checkpoint_folder)
    assert caught.value.hint == 'ask for variant "fp16"'


def test_choice_among_the_names_in_the_field():
    stem = "diffusion_pytorch_model"
    files = [
        f"unet/{stem}.safetensors.index.json",
        f"unet/{stem}-00001-of-00002.safetensors",
        f"unet/{stem}.safetensors.index.fp16.json",
        f"unet/{stem}.fp16-00001-of-00002.safetensors",
        f"vae/{stem}.safetensors",
        f"vae/{stem}.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
    ]
    assert choose_weights(files, PARTS, None, source="x") == (
        {"unet": files[0], "vae": files[4], "text_encoder": files[6]},
        (),
    )
    assert choose_weights(files, PARTS, "fp16", source="x") == (
        {"unet": files[2], "vae": files[5], "text_encoder": files[7]},
        (),
    )
    with pytest.raises(ModelNotFound, match="it has only fp16"):
        choose_weights(files, PARTS, "00001-of-00002", source="x")


def test_hash_follows_the_bytes_of_the_weights(checkpoint_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    first = weights_hash(read_checkpoint(checkpoint_folder))
    assert len(list((tmp_path / "cache" / "sha256").iterdir())) == 3
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_folder, copy)
    assert weights_hash(read_checkpoint(copy)) == weights_hash(read_checkpoint(checkpoint_folder)) == first
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_hash(read_checkpoint(copy)) != first
    monkeypatch.setenv("LIMNER_CACHE", "/dev/null/nowhere")
    assert weights_hash(read_checkpoint(checkpoint_folder)) == first
