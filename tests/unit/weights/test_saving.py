"""What is saved comes back the same, here and in diffusers."""

import json

import pytest
import torch

from limner.catalogue.headers import files_of, read_infos
from limner.errors import OutputError
from limner.weights.checkpoint import load_text_encoder, load_unet, load_vae, read_checkpoint
from limner.weights.save import save_checkpoint

LOADERS = {"unet": load_unet, "vae": load_vae, "text_encoder": load_text_encoder}


def test_save_then_load_is_identity(checkpoint_folder, networks, scheduler_config):
    checkpoint = read_checkpoint(checkpoint_folder)
    for part, network in networks.items():
        loaded = LOADERS[part](checkpoint)
        assert loaded.config == network.config
        assert loaded.state_dict().keys() == network.state_dict().keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    assert checkpoint.scheduler_config == scheduler_config
    assert sorted(p.name for p in checkpoint_folder.parent.iterdir()) == ["tiny", "tokenizer"]


def test_saving_over_the_folder_it_was_loaded_from(checkpoint_folder):
    checkpoint = read_checkpoint(checkpoint_folder)
    parts = {part: load(checkpoint) for part, load in LOADERS.items()}
    arguments = {
        **parts,
        "tokenizer": checkpoint.tokenizers["text_encoder"],
        "scheduler_config": checkpoint.scheduler_config,
    }
    with pytest.raises(OutputError, match="not empty"):
        save_checkpoint(checkpoint_folder, **arguments)
    before = {p: p.read_bytes() for p in checkpoint_folder.rglob("*") if p.is_file()}
    save_checkpoint(checkpoint_folder, **arguments, overwrite=True)
    assert {p: p.read_bytes() for p in checkpoint_folder.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in checkpoint_folder.parent.iterdir()) == ["tiny", "tokenizer"]


def test_half_precision_in_small_files(tmp_path, networks, tokenizer_folder, scheduler_config):
    folder = tmp_path / "small"
    limit = 40 << 10
    save_checkpoint(
        folder,
        **networks,
        tokenizer=tokenizer_folder,
        scheduler_config=scheduler_config,
        dtype=torch.float16,
        max_file_bytes=limit,
    )
    checkpoint = read_checkpoint(folder)
    shards = files_of(checkpoint.parts["unet"].source)
    assert len(shards) > 2
    assert max(file.stat().st_size for file in shards) <= limit
    assert {
        info.dtype for part in checkpoint.parts.values() for info in read_infos(part.source).values()
    } == {"F16"}
    loaded = load_unet(checkpoint, torch.float32)
    for name, tensor in networks["unet"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    assert json.loads((folder / "unet" / "config.json").read_text())["block_out_channels"] == [32, 32]


def test_nothing_is_left_of_a_save_that_fails(tmp_path, networks, tokenizer_folder, scheduler_config):
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="max_file_bytes"):
        save_checkpoint(
            folder,
            **networks,
            tokenizer=tokenizer_folder,
            scheduler_config=scheduler_config,
            max_file_bytes=5000,
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="something else than a checkpoint"):
        save_checkpoint(
            tmp_path,
            **networks,
            tokenizer=tokenizer_folder,
            scheduler_config=scheduler_config,
            overwrite=True,
        )
    with pytest.raises(OutputError, match="is a file"):
        save_checkpoint(
            tmp_path / "file", **networks, tokenizer=tokenizer_folder, scheduler_config=scheduler_config
        )
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(
            tmp_path / "file" / "x", **networks, tokenizer=tokenizer_folder, scheduler_config=scheduler_config
        )
    with pytest.raises(ValueError, match="_class_name"):
        save_checkpoint(folder, **networks, tokenizer=tokenizer_folder, scheduler_config={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "tokenizer"]


@pytest.mark.filterwarnings("default")  # other libraries' deprecations are not ours to mend
@pytest.mark.parametrize("max_file_bytes", [None, 80 << 10])
def test_diffusers_opens_it_and_computes_the_same(
    tmp_path, networks, tokenizer_folder, scheduler_config, max_file_bytes
):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "saved"
    save_checkpoint(
        folder,
        **networks,
        tokenizer=tokenizer_folder,
        scheduler_config=scheduler_config,
        max_file_bytes=max_file_bytes,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert (type(pipeline.scheduler).__name__, pipeline.scheduler.config.prediction_type) == (
        "DDIMScheduler",
        "v_prediction",
    )
    ids = torch.tensor([pipeline.tokenizer("a cat", padding="max_length").input_ids])
    assert ids.shape == (1, 16)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        hidden = networks["text_encoder"](ids)[0]
        pairs = {
            "text": (hidden, pipeline.text_encoder(ids)[0]),
            "unet": (networks["unet"](x, t, hidden), pipeline.unet(x, t, hidden).sample),
            "vae": (networks["vae"].decode(x), pipeline.vae.decode(x).sample),
        }
    for name, (ours, theirs) in pairs.items():
        # Same weights and same operations: only the order of sums may differ, in fp32.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a cat", num_inference_steps=2, height=16, width=16, output_type="np").images
    assert picture.shape == (1, 16, 16, 3)
