"""A tiny data set, and tiny tasks on it that train in milliseconds."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.prompts.tokenizer import Tokenizer
from limner.training.clip import CLIPSettings, CLIPTask
from limner.training.controlnet import ControlNetSettings, ControlNetTask
from limner.training.data import Preprocessed, digest
from limner.training.loop import Task
from limner.training.lora import ATTENTION, LoRASettings, LoRATask
from limner.training.perceptual import FeatureConfig, FeatureNetwork, FeatureSettings, FeatureTask
from limner.training.unet import UNetSettings, UNetTask
from limner.training.vae import VAESettings, VAETask
from limner.weights.checkpoint import read_checkpoint

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
SIZE = 16


class Squares:
    """Pictures of one colour with a dark corner; the caption says the colour."""

    def __init__(self, count=8):
        self.count, self.size = count, SIZE
        self.identity = {"squares": "plain", "count": count}

    def __len__(self):
        return self.count

    def pixels(self, index):
        picture = np.full((SIZE, SIZE, 3), list(COLOURS.values())[index % len(COLOURS)], np.uint8)
        picture[:4, : 4 + index // len(COLOURS)] = 0
        return picture

    def key(self, index):
        return digest("squares", index)

    def caption(self, index, rng: random.Random):
        return f"{rng.choice(['a', 'one'])} {list(COLOURS)[index % len(COLOURS)]} square"

    def false_captions(self, index, rng: random.Random):
        return [f"a {list(COLOURS)[(index + 1) % len(COLOURS)]} square"]


VAE = VAEConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=2, sample_size=SIZE
)


def tokenizer() -> Tokenizer:
    captions = [Squares().caption(i, random.Random(i)) for i in range(8)]
    return Tokenizer.train(captions, vocab_size=530, max_length=8)


def text_encoder(words: Tokenizer, **more) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=words.vocab_size,
            max_position_embeddings=8,
            **more,
        )
    )


def make_vae_task() -> Task:
    return VAETask(VAESettings(VAE, batch_size=4, crop=8), Squares(), Squares())


def adversarial_vae_task() -> Task:
    """With every part of the loss; the adversarial one begins at the third batch."""
    torch.manual_seed(1)
    settings = VAESettings(VAE, batch_size=4, crop=8, perceptual_weight=1.0, adversarial_from=2)
    features = FeatureNetwork(FeatureConfig(widths=(4, 8), projection=4))
    return VAETask(settings, Squares(), Squares(), features=features)


def feature_task() -> Task:
    settings = FeatureSettings(FeatureConfig(widths=(4, 8), projection=4), batch_size=8, crop=8)
    return FeatureTask(settings, Squares(), Squares())


def unet_task(folder, **settings) -> Task:
    torch.manual_seed(0)
    words = tokenizer()
    unet = UNet2DConditionModel(
        UNetConfig(
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
            sample_size=8,
        )
    )
    return UNetTask(
        UNetSettings(batch_size=4, **settings),
        unet,
        text_encoder(words),
        words,
        AutoencoderKL(VAE),
        Squares(),
        Squares(),
        folder / "cache",
    )


def clip_task(**settings) -> Task:
    words = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=4,
        projection_dim=8,
        projection=True,
    )
    text = text_encoder(words, projection=True, projection_dim=8)
    return CLIPTask(
        CLIPSettings(batch_size=4, **settings), text, CLIPVisionModel(vision), words, Squares(), Squares()
    )


def lora_task(checkpoint, folder, **settings) -> Task:
    torch.manual_seed(0)
    return LoRATask(
        LoRASettings(**{"batch_size": 4, "targets": f"{ATTENTION}|conv_out", **settings}),
        read_checkpoint(checkpoint),
        Squares(),
        Squares(),
        folder / "cache",
        model="tiny",
        name="squares",
    )


def controlnet_task(checkpoint, folder, **settings) -> Task:
    torch.manual_seed(0)
    edges = Preprocessed(Squares(), "canny")
    return ControlNetTask(
        ControlNetSettings(**{"batch_size": 4, **settings}),
        read_checkpoint(checkpoint),
        Squares(),
        Squares(),
        edges,
        edges,
        folder / "cache",
        model="tiny",
    )


@pytest.fixture(params=["vae", "adversarial_vae", "features", "unet", "lora", "controlnet", "clip"])
def make_task(request, tmp_path, checkpoint_folder):
    """A function that makes the same task anew."""

    def make() -> Task:
        torch.manual_seed(0)
        tasks = {
            "vae": make_vae_task,
            "adversarial_vae": adversarial_vae_task,
            "features": feature_task,
            "unet": lambda: unet_task(tmp_path),
            "lora": lambda: lora_task(checkpoint_folder, tmp_path),
            "controlnet": lambda: controlnet_task(checkpoint_folder, tmp_path),
            "clip": clip_task,
        }
        return tasks[request.param]()

    return make


@pytest.fixture
def vae_task():
    """The same, of the autoencoder alone: for what does not depend on the task."""
    return make_vae_task


@pytest.fixture
def make_adversarial_vae_task():
    return adversarial_vae_task


@pytest.fixture
def make_feature_task():
    return feature_task


@pytest.fixture
def make_unet_task():
    return unet_task


@pytest.fixture
def make_lora_task(checkpoint_folder, tmp_path):
    return partial(lora_task, checkpoint_folder, tmp_path)


@pytest.fixture
def make_controlnet_task(checkpoint_folder, tmp_path):
    return partial(controlnet_task, checkpoint_folder, tmp_path)


@pytest.fixture
def make_clip_task():
    return clip_task


@pytest.fixture
def squares():
    return Squares()
