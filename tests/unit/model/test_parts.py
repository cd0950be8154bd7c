"""Parts of a model in the place of its own, by path: each alone, of the same model and of another."""

import json
import re
import shutil
from dataclasses import fields, replace

import pytest
import torch

import limner
from limner.cli.options import ModelOptions
from limner.errors import InvalidCheckpoint, ModelNotFound
from limner.images.metadata import read_record
from limner.model.options import PARTS, LoadOptions
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.weights.save import save_checkpoint

ASK = {"prompt": "a cat", "seed": 3, "steps": 2, "width": 64, "height": 64}
OWN = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")


def draw(reference, **options):
    return limner.load(reference, precision="fp32", **options).generate(**ASK).images[0]


@pytest.fixture
def other(checkpoint_folder, networks, scheduler_config, tokenizer_folder, tmp_path):
    """A checkpoint of the shapes of `checkpoint_folder`, but other weights, tokens and noise schedule."""
    torch.manual_seed(1)
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data += torch.randn_like(parameter) * 0.1
    folder = tmp_path / "other"
    save_checkpoint(folder, tokenizer=tokenizer_folder, scheduler_config=scheduler_config, **networks)
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    vocab |= {"a</w>": vocab["b</w>"], "b</w>": vocab["a</w>"]}
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab))
    config = {**scheduler_config, "beta_end": 0.02}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("part", OWN)
def test_a_copy_of_a_part_draws_the_same_and_another_does_not(checkpoint_folder, other, tmp_path, part):
    own = draw(checkpoint_folder)
    copied = shutil.copytree(checkpoint_folder / part, tmp_path / "elsewhere")
    for place in (copied, checkpoint_folder):  # the part alone, and a checkpoint that has it
        copy = draw(checkpoint_folder, **{part: place})
        assert copy.tobytes() == own.tobytes()
        assert f"part {part}" in copy.record.model
    replaced = draw(checkpoint_folder, **{part: str(other)})
    assert replaced.tobytes() != own.tobytes()
    assert replaced.record.model[f"part {part}"] != copy.record.model[f"part {part}"]
    differs = replaced.record.model["sha256"] != own.record.model["sha256"]
    assert differs == (part in ("unet", "text_encoder", "vae"))
    assert not any(name.startswith("part ") for name in own.record.model)
    replaced.save(tmp_path / "one.png")
    assert read_record(tmp_path / "one.png").model == replaced.record.model


def test_all_parts_of_another_model_draw_as_it_does(checkpoint_folder, other):
    replaced = draw(checkpoint_folder, **dict.fromkeys(OWN, other))
    assert replaced.tobytes() == draw(other).tobytes()


@pytest.mark.parametrize("part", OWN)
def test_a_part_that_is_given_may_be_missing(checkpoint_folder, tmp_path, part):
    own, kept = draw(checkpoint_folder), shutil.move(checkpoint_folder / part, tmp_path / "kept")
    index = json.loads((checkpoint_folder / "model_index.json").read_text())
    del index[part]
    (checkpoint_folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidCheckpoint, match=part):
        limner.load(checkpoint_folder)
    assert draw(checkpoint_folder, **{part: kept}).tobytes() == own.tobytes()


def test_files_are_parts(checkpoint_folder):
    given = {
        "unet": "unet/diffusion_pytorch_model.safetensors",
        "text_encoder": "text_encoder/model.safetensors",
        "tokenizer": "tokenizer/vocab.json",
        "scheduler": "scheduler/scheduler_config.json",
        "vae": "vae/diffusion_pytorch_model.safetensors",
    }
    given = {part: checkpoint_folder / file for part, file in given.items()}
    assert draw(checkpoint_folder, **given).tobytes() == draw(checkpoint_folder).tobytes()


def test_parts_that_do_not_fit_are_named(checkpoint_folder, networks, tokenizer_folder, tmp_path, other):
    wide = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=514,
            max_position_embeddings=16,
        )
    )
    unet = UNet2DConditionModel(replace(networks["unet"].config, cross_attention_dim=64))
    folder = tmp_path / "wide"
    save_checkpoint(
        folder,
        unet=unet,
        vae=networks["vae"],
        text_encoder=wide,
        tokenizer=tokenizer_folder,
        scheduler_config=json.loads((checkpoint_folder / "scheduler/scheduler_config.json").read_text()),
    )
    for part, widths in {"text_encoder": "32 and 64", "unet": "64 and 32"}.items():
        with pytest.raises(InvalidCheckpoint, match=f"cross_attention_dim.*hidden_size.*{widths}") as refused:
            limner.load(checkpoint_folder, **{part: folder})
        assert part in refused.value.hint
        assert str(folder) in refused.value.hint
    with pytest.raises(InvalidCheckpoint, match=r"hidden_size.* 32 and 64"):
        limner.load(checkpoint_folder, text_encoder_2=other / "text_encoder")
    with pytest.raises(InvalidCheckpoint, match="has no text_encoder_2 for the tokenizer_2"):
        limner.load(checkpoint_folder, tokenizer_2=other / "tokenizer")
    # Both fit each other.
    draw(checkpoint_folder, unet=folder, text_encoder=folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_nowhere(checkpoint_folder, tmp_path, part):
    for nowhere in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelNotFound, match=re.escape(str(nowhere))):
            limner.load(checkpoint_folder, **{part: nowhere})


def test_a_scheduler_of_another_prediction_type_is_followed_with_a_warning(checkpoint_folder, other):
    path = other / "scheduler/scheduler_config.json"
    config = {**json.loads(path.read_text()), "prediction_type": "epsilon"}
    path.write_text(json.dumps(config))
    model = limner.load(checkpoint_folder, scheduler=path)
    assert model.scheduler.prediction_type == "epsilon"
    assert any("predicts epsilon" in warning for warning in model.warnings)


def test_generate_takes_the_options_of_load(checkpoint_folder, other):
    drawn = limner.generate(model=checkpoint_folder, precision="fp32", unet=other, **ASK).images[0]
    assert drawn.tobytes() == draw(checkpoint_folder, unet=other).tobytes()
    with pytest.raises(TypeError, match="unett"):
        limner.load(checkpoint_folder, unett=other)


def test_each_option_of_load_is_an_option_of_the_command_line():
    names = {field.name for field in fields(ModelOptions)} - {"low_vram", "assets_dirs"}
    elsewhere = {"reference", "revision", "variant", "cache_dir", "assets", "catalogue"}
    assert names == {field.name for field in fields(LoadOptions)} - elsewhere
