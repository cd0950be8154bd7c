"""A LoRA from training to its file, and from there into pictures."""

from dataclasses import replace

import pytest
import torch

import limner
from limner.adapters.adapter import patched_weights, read_adapter
from limner.catalogue.headers import read_header
from limner.errors import InvalidRequest, InvalidTrainingState, UnsupportedModel
from limner.training.loop import TrainConfig, train
from limner.training.lora import ATTENTION, LoRASettings, LoRATask
from limner.weights.checkpoint import load_text_encoder, load_unet, read_checkpoint

# Without the average, what is exported is what the task holds when it ends.
FEW = TrainConfig(steps=8, lr=1e-2, warmup=0, log_steps=1, ema_decay=0.0, precision="fp32")


@pytest.fixture
def trained(make_lora_task, tmp_path):
    """With layers of all kinds, in both networks."""
    task = make_lora_task(
        targets=rf"{ATTENTION}|conv_out|.*\.conv1", rank=2, alpha=3.0, train_text_encoder=True
    )
    train(task, FEW, tmp_path / "run")
    return task, tmp_path / "run/export/squares.safetensors"


def test_the_file_makes_of_the_model_what_training_made(trained, checkpoint_folder):
    task, path = trained
    checkpoint = read_checkpoint(checkpoint_folder)
    unet, text = load_unet(checkpoint, torch.float32), load_text_encoder(checkpoint, torch.float32)
    adapter = read_adapter(path, task.targets)
    assert adapter.unapplied == ()
    assert {part: len(patches) for part, patches in adapter.patches.items()} == {
        part: len(layers) for part, layers in task.layers.items()
    }

    ids, x, timesteps = (
        task._ids(["a red square", "one blue"]),
        torch.randn(2, 4, 8, 8),
        torch.tensor([7, 900]),
    )
    with torch.no_grad():
        weights = {
            part: patched_weights([(adapter, {part: 1.0})], part, network.get_parameter)
            for part, network in (("unet", unet), ("text_encoder", text))
        }
        context, _ = torch.func.functional_call(text, weights["text_encoder"], (ids,))
        drawn = torch.func.functional_call(unet, weights["unet"], (x, timesteps, context))
        # Two products instead of one: float32 through some twenty layers.
        torch.testing.assert_close(context, task.text_encoder(ids)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(drawn, task.unet(x, timesteps, context), rtol=1e-3, atol=1e-4)
        assert (unet(x, timesteps, text(ids)[0]) - drawn).abs().max() > 0.01


def test_the_model_stays_as_it_is(trained, checkpoint_folder):
    task, _ = trained
    checkpoint = read_checkpoint(checkpoint_folder)
    for wrapped, before in (
        (task.unet, load_unet(checkpoint)),
        (task.text_encoder, load_text_encoder(checkpoint)),
    ):
        kept = {name.replace(".base.", "."): w for name, w in wrapped.state_dict().items()}
        assert all(torch.equal(kept[name], weight) for name, weight in before.state_dict().items())


def test_the_file_says_what_it_is(trained):
    _, path = trained
    header = read_header(path)
    assert header.metadata["ss_network_module"] == "networks.lora"
    assert header.metadata["ss_network_dim"] == "2"
    assert header.metadata["ss_network_alpha"] == "3.0"
    assert header.metadata["ss_network_args"] == '{"conv_dim": "2", "conv_alpha": "3.0"}'
    assert header.metadata["ss_base_model_version"] == "tiny"
    assert header.metadata["ss_output_name"] == "squares"
    assert all(isinstance(value, str) for value in header.metadata.values())
    assert {key.split("_")[1] for key in header.tensors} == {"unet", "te"}


def test_it_draws_in_a_model_that_asks_for_it(trained, checkpoint_folder):
    _, path = trained
    model = limner.load(checkpoint_folder, precision="fp32", lora_dirs=[path.parent])

    def drawn(*loras):
        result = model.generate("a red square", width=64, height=64, steps=2, seed=1, loras=loras)
        assert not [warning for warning in result.warnings if "adapter" in warning]
        return result.images[0].tobytes()

    assert drawn("squares") != drawn() == drawn("squares:0")


def test_diffusers_makes_the_same_of_the_file(trained, checkpoint_folder):
    pytest.importorskip("peft", reason="diffusers reads adapters by it")
    from diffusers import StableDiffusionPipeline

    task, path = trained
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint_folder, safety_checker=None)
    theirs.load_lora_weights(path)
    ids, x = task._ids(["a red square"]), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        context = theirs.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(task.text_encoder(ids)[0], context, rtol=1e-3, atol=1e-4)
        expected = theirs.unet(x, 7, context).sample
        torch.testing.assert_close(task.unet(x, torch.tensor([7]), context), expected, rtol=1e-3, atol=1e-4)


def test_the_model_says_what_its_unet_predicts(make_lora_task):
    assert make_lora_task().scheduler.prediction_type == "v_prediction"
    assert make_lora_task().scheduler.sampler == "ddim"


def test_what_is_refused(make_lora_task, checkpoint_folder, squares, tmp_path):
    for targets, message in ((r"to_q", "no module"), (r"conv_norm_out", "GroupNorm"), (r"(", "targets")):
        with pytest.raises(InvalidRequest, match=message):
            make_lora_task(targets=targets)
    checkpoint = read_checkpoint(checkpoint_folder)
    sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": checkpoint.text_configs["text_encoder"].hidden_size + 6 * 8,
    }
    unet = replace(checkpoint.parts["unet"], config=replace(checkpoint.unet_config, **sizes))
    xl = replace(checkpoint, parts={**checkpoint.parts, "unet": unet})
    with pytest.raises(UnsupportedModel, match="family xl"):
        LoRATask(LoRASettings(), xl, squares, squares, tmp_path, model="xl", name="xl")


def test_another_model_is_another_run(make_lora_task, tmp_path):
    train(make_lora_task(), FEW, tmp_path / "run")
    other = make_lora_task()
    other.identity = {**other.identity, "base": "0"}
    with pytest.raises(InvalidTrainingState, match="base was"):
        train(other, FEW, tmp_path / "run", resume=True)
