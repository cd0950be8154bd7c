"""Whole pipelines: diffusers opens a folder that Limner saved, and draws the same picture from the same seed.

1e-4 of their standard deviation for latents and pictures: the networks agree to some 1e-6, and a dozen guided
calls, each fed with the last one's result, amplify that.
"""

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from limner.catalogue.shipped import SHIPPED
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

# From inside their schedulers, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a red house (left) of a [green] tree, at night!", "blurry: it's dark"
WIDTH, HEIGHT = 104, 72  # 13x9 latents

SD15_UNET = UNetConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    attention_head_dim=8,
    cross_attention_dim=32,
    norm_num_groups=4,
)
SD15_TEXT = CLIPTextConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=32
)
VAE = VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)
CHECKPOINTS = {  # epsilon and PNDM; v-prediction and DDIM, as their scheduler_config.json say
    "sd15": (SD15_UNET, SD15_TEXT),
    "sd21-768-v": (
        replace(SD15_UNET, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True),
        replace(SD15_TEXT, hidden_act="gelu"),
    ),
}

THEIR_CLASSES = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
SIGMA_SCHEDULES = {
    "uniform": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}


def draw(model, **fields):
    """Final latents and unclamped picture of ours."""
    [picture] = model.resolve(GenerationRequest.of({"prompt_syntax": "literal", **fields})).pictures
    [drawn] = [
        (call.latents, answer.value)
        for call, answer in watch(picture_of(picture, model.facts), model)
        if isinstance(call, DecodeLatents)
    ]
    return drawn


class Pair:
    """The same checkpoint in both programs."""

    def __init__(self, folder):
        self.folder = folder
        self.ours = load(folder, precision="fp32")
        self.theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        self.theirs.set_progress_bar_config(disable=True)
        self.scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())

    def own_scheduler(self):
        return getattr(diffusers, self.scheduler_config["_class_name"]).from_config(self.scheduler_config)

    @torch.no_grad()
    def draw_theirs(self, scheduler, *, seed, steps, **fields):
        """Final latents and unclamped picture of theirs."""
        self.theirs.scheduler = scheduler
        latents = self.theirs(
            generator=torch.Generator("cpu").manual_seed(seed),
            num_inference_steps=steps,
            output_type="latent",
            **fields,
        ).images
        vae = self.theirs.vae
        return latents, vae.decode(latents / vae.config.scaling_factor).sample

    def scheduler(self, sampler, **changes):
        if sampler == "lms":
            pytest.importorskip("scipy", reason="diffusers' LMSDiscreteScheduler integrates with SciPy")
        name, implied = THEIR_CLASSES[sampler]
        return getattr(diffusers, name).from_config({**self.scheduler_config, **implied, **changes})

    def compare(self, *, sampler="ddim", spacing=None, sigma_schedule=None, eta=0.0, clip_skip=1, **fields):
        fields = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "width": WIDTH,
            "height": HEIGHT,
            "seed": 7,
            "steps": 6,
            "guidance_scale": 7.5,
        } | fields
        own = {
            "timestep_spacing": spacing,
            "sigma_schedule": sigma_schedule,
            **({"eta": eta} if sampler == "ddim" else {}),  # of theirs, others take none
            "clip_skip": clip_skip,
        }
        latents, image = draw(self.ours, **fields, sampler=sampler, **own)

        changes = SIGMA_SCHEDULES[sigma_schedule or "uniform"]
        if spacing is not None:
            changes = {**changes, "timestep_spacing": spacing}
        if clip_skip > 1:
            # Their own clip_skip leaves the negative prompt at the last layer, and fails with transformers 5.
            fields["prompt_embeds"] = self.embed(fields.pop("prompt"), clip_skip)
            fields["negative_prompt_embeds"] = self.embed(fields.pop("negative_prompt"), clip_skip)
        expected = self.draw_theirs(self.scheduler(sampler, **changes), eta=eta, **fields)
        for what, a, b in zip(("latents", "image"), (latents, image), expected, strict=True):
            assert a.shape == b.shape
            assert b.std() > 0.1
            difference = (a - b).abs().max() / b.std()
            assert difference <= TOLERANCE, f"{what} differ by {difference:.1e} of their standard deviation"

    @torch.no_grad()
    def embed(self, text, clip_skip):
        """The hidden states that their network has `clip_skip - 1` layers before the last, then the norm."""
        ids = self.theirs.tokenizer(
            text, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        encoder = self.theirs.text_encoder
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
        return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, reference, randomise):
    diffusers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for seed, (name, (unet_config, text_config)) in enumerate(CHECKPOINTS.items()):
        tokenizer = root / f"{name}-tokenizer"
        shutil.copytree(reference / "configs" / name / "tokenizer", tokenizer)
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(reference / "tokenizer" / file, tokenizer / file)
        networks = {
            "unet": UNet2DConditionModel(unet_config),
            "vae": AutoencoderKL(VAE),
            "text_encoder": CLIPTextModel(text_config),
        }
        for number, network in enumerate(networks.values()):
            randomise(network, 10 * seed + number)
        scheduler = reference / "configs" / name / "scheduler" / "scheduler_config.json"
        save_checkpoint(
            root / name,
            **networks,
            tokenizer=tokenizer,
            scheduler_config=json.loads(scheduler.read_text()),
        )
        made[name] = Pair(root / name)
    return made


@pytest.fixture(params=CHECKPOINTS)
def pair(request, pairs):
    return pairs[request.param]


@pytest.mark.long
@pytest.mark.parametrize("sampler", THEIR_CLASSES)
def test_every_sampler(pair, sampler):
    pair.compare(sampler=sampler)


@pytest.mark.long
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_spacings(pair, sampler, spacing):
    pair.compare(sampler=sampler, spacing=spacing, steps=7)


@pytest.mark.long
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_sigma_schedules(pair, sampler, sigma_schedule):
    pair.compare(sampler=sampler, sigma_schedule=sigma_schedule)


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.5, "guidance_rescale": 0.7},
        {"sampler": "ddim", "eta": 1.0},
        {"clip_skip": 2},
        {"clip_skip": 2, "guidance_scale": 1.0},
        {"negative_prompt": None, "sampler": "pndm"},
        {"width": 64, "height": 64, "steps": 1},
        {"steps": 16, "sampler": "dpmpp_2m"},  # with fewer than 15 the last step is of first order
    ],
    ids=lambda fields: "-".join(f"{name}={value}" for name, value in fields.items()),
)
def test_options(pair, fields):
    pair.compare(**fields)


def test_the_checkpoint_s_own_sampler_draws_the_same_picture(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    fields = {"width": WIDTH, "height": HEIGHT, "guidance_scale": 5.0}
    ours = pair.ours.generate("a cat, 猫", steps=5, seed=3, prompt_syntax="literal", **fields).images[0]
    pair.theirs.scheduler = pair.own_scheduler()
    theirs = pair.theirs(
        "a cat, 猫", num_inference_steps=5, generator=torch.Generator("cpu").manual_seed(3), **fields
    ).images[0]
    assert ours.size == theirs.size == (WIDTH, HEIGHT)
    difference = np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16))
    # A value that lies within 1e-4 of the middle between two levels may round either way.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert np.asarray(ours).std() > 10


def test_a_folder_that_diffusers_saved_draws_the_same_picture(pair, tmp_path):
    pair.theirs.scheduler = pair.own_scheduler()
    pair.theirs.save_pretrained(tmp_path / "theirs")
    fields = {"prompt": PROMPT, "width": 64, "height": 64, "steps": 2, "seed": 1}
    for again, expected in zip(
        draw(load(tmp_path / "theirs", precision="fp32"), **fields), draw(pair.ours, **fields), strict=True
    ):
        assert torch.equal(again, expected)


def test_diffusers_opens_the_shipped_folder_without_a_dtype():
    """Its files are of float16, which transformers and diffusers load in different dtypes unless told."""
    pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED["picturebook"])
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    [picture] = pipeline("a red boat", num_inference_steps=1, generator=generator).images
    assert picture.size == (128, 128)
