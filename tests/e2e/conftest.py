"""A checkpoint of a few thousand random weights, and the command line to draw with it."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.weights.save import save_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, in the diffusers layout. It draws noise, 64 pixels wide, in no time."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
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
        vae = VAEConfig(
            block_out_channels=(16, 16, 16, 16), layers_per_block=1, norm_num_groups=8, sample_size=64
        )
        text = CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=514,
            max_position_embeddings=16,
        )
        save_checkpoint(
            folder,
            unet=UNet2DConditionModel(unet),
            vae=AutoencoderKL(vae),
            text_encoder=CLIPTextModel(text),
            tokenizer=_bytes_tokenizer(tmp_path_factory.mktemp("tokenizer")),
            scheduler_config={
                "_class_name": "DDIMScheduler",
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "clip_sample": False,
                "num_train_timesteps": 1000,
                "prediction_type": "v_prediction",
                "set_alpha_to_one": False,
                "steps_offset": 1,
            },
        )
    return folder


def _bytes_tokenizer(folder: Path) -> Path:
    """Bytes, each alone and at a word's end, and no merges."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16}))
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a command has left: its exit code and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches programs that a test starts, also where the tests ignore it, as in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which programs do not inherit
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def limner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run `limner` with these arguments in this process, in an empty folder."""
    from limner.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return Outcome(exit.value.code or 0, said.out, said.err)

    return run
