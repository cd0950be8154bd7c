"""Stable Diffusion 1.5 at its full size, 512x512, on random weights: as in the small, so in the large.

Some minutes on two cores, 4.3 GB of disk and at most 16 GiB of memory.
"""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from limner.engine.loaded import load
from limner.generation.calls import DecodeLatents
from limner.generation.run import watch
from limner.generation.story import picture_of
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.request import GenerationRequest
from limner.weights.save import save_checkpoint

pytestmark = pytest.mark.slow

NETWORK_TOLERANCE, PIPELINE_TOLERANCE = 1e-5, 1e-4  # as in test_networks.py and test_pipelines.py
PARTS = {
    "unet": (UNet2DConditionModel, UNetConfig),
    "vae": (AutoencoderKL, VAEConfig),
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference, randomise):
    """A checkpoint with the published configs."""
    root = tmp_path_factory.mktemp("full")
    configs = reference / "configs" / "sd15"
    shutil.copytree(configs / "tokenizer", root / "tokenizer")
    for file in ("vocab.json", "merges.txt"):
        shutil.copyfile(reference / "tokenizer" / file, root / "tokenizer" / file)
    networks = {}
    for seed, (part, (network_class, config_class)) in enumerate(PARTS.items()):
        config = config_class.from_dict(json.loads((configs / part / "config.json").read_text()))
        with torch.device("meta"):
            network = network_class(config)
        networks[part] = network.to_empty(device="cpu")
        randomise(network, seed)
    scheduler = json.loads((configs / "scheduler" / "scheduler_config.json").read_text())
    save_checkpoint(root / "sd15", **networks, tokenizer=root / "tokenizer", scheduler_config=scheduler)
    yield root / "sd15"
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def ours(folder):
    return load(folder, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def theirs(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def test_text_encoder(ours, theirs, assert_close):
    ids = theirs.tokenizer(
        ["a red house", "a green tree at night"], padding="max_length", return_tensors="pt"
    ).input_ids
    expected = theirs.text_encoder(ids)
    hidden, pooled = ours.backend.text_encoder(ids)
    assert_close(hidden, expected.last_hidden_state, NETWORK_TOLERANCE)
    assert_close(pooled, expected.pooler_output, NETWORK_TOLERANCE)


@torch.no_grad()
def test_unet(ours, theirs, assert_close):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 64, 64, generator=generator)
    context = torch.randn(1, 77, 768, generator=generator)
    timesteps = torch.tensor([501])
    expected = theirs.unet(x, timesteps, context).sample
    assert_close(ours.backend.networks.unet(x, timesteps, context), expected, NETWORK_TOLERANCE)


@torch.no_grad()
def test_vae(ours, theirs, assert_close):
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    image = theirs.vae.decode(latents).sample
    assert_close(ours.backend.networks.vae.decode(latents), image, NETWORK_TOLERANCE)
    expected = theirs.vae.encode(image).latent_dist
    mean, logvar = ours.backend.networks.vae.encode(image)
    assert_close(mean, expected.mean, NETWORK_TOLERANCE)
    assert_close(logvar, expected.logvar, NETWORK_TOLERANCE)


@torch.no_grad()
def test_pipeline(ours, theirs, assert_close):
    fields = {"prompt": "a yellow boat", "negative_prompt": "dark", "width": 512, "height": 448}
    [picture] = ours.resolve(GenerationRequest.of({**fields, "steps": 3, "seed": 5})).pictures
    [(latents, image)] = [
        (call.latents, answer.value)
        for call, answer in watch(picture_of(picture, ours.facts), ours)
        if isinstance(call, DecodeLatents)
    ]
    expected = theirs(
        **fields,
        num_inference_steps=3,
        guidance_scale=picture.passes[0].guidance_scale,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    assert_close(latents, expected, PIPELINE_TOLERANCE)
    assert_close(
        image, theirs.vae.decode(expected / theirs.vae.config.scaling_factor).sample, PIPELINE_TOLERANCE
    )
