"""A complete checkpoint of a few thousand weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.weights.save import save_checkpoint


@pytest.fixture
def networks() -> dict[str, torch.nn.Module]:
    """U-Net, autoencoder and text encoder, with the same random weights each time."""
    torch.manual_seed(0)
    unet = UNetConfig(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=8,
        sample_size=8,
    )
    vae = VAEConfig(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, sample_size=16)
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=514,
        max_position_embeddings=16,
    )
    return {
        "unet": UNet2DConditionModel(unet),
        "vae": AutoencoderKL(vae),
        "text_encoder": CLIPTextModel(text),
    }


@pytest.fixture
def scheduler_config() -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """Bytes, each alone and at a word's end, and no merges."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16}))
    return folder


@pytest.fixture
def checkpoint_folder(
    tmp_path: Path,
    networks: dict[str, torch.nn.Module],
    tokenizer_folder: Path,
    scheduler_config: dict[str, Any],
) -> Path:
    """All of the above, saved."""
    folder = tmp_path / "tiny"
    save_checkpoint(folder, **networks, tokenizer=tokenizer_folder, scheduler_config=scheduler_config)
    return folder
