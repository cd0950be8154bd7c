"""Each network against its namesake in diffusers or transformers, on the same random weights.

The operations are the same in the same order, so on a CPU the outputs are mostly bit-equal. 1e-5 leaves room
for other kernels: fp32 resolves 6e-8, and sums of a few hundred terms through thirty layers lose two digits.
All groups of the normalisations hold several channels: with one alone, what is added before would not show.
"""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TheirAutoencoderKL
from diffusers import UNet2DConditionModel as TheirUNet
from PIL import Image
from transformers import CLIPImageProcessor
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel as TheirTextModel
from transformers import CLIPTextModelWithProjection as TheirProjectedTextModel
from transformers import CLIPVisionConfig as TheirVisionConfig
from transformers import CLIPVisionModel as TheirVisionModel
from transformers import CLIPVisionModelWithProjection as TheirProjectedVisionModel

from limner.images.pixels import clip_pixels
from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.unet import Conditions, UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig

TOLERANCE = 1e-5

SD15_UNET = UNetConfig(
    block_out_channels=(32, 64, 64, 96), attention_head_dim=8, cross_attention_dim=48, norm_num_groups=8
)
SD21_UNET = replace(SD15_UNET, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True)
UNETS = {
    "sd15": SD15_UNET,
    "sd15-inpainting": replace(SD15_UNET, in_channels=9),
    "sd21": SD21_UNET,
    "one-block-a-level": UNetConfig(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    "xl": UNetConfig(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=48,
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    ),
}
VAES = {
    "sd": VAEConfig(block_out_channels=(32, 64, 64, 64), norm_num_groups=8),
    "8-channels": VAEConfig(
        latent_channels=8, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8
    ),
}
TEXT = CLIPTextConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=200,
    projection_dim=48,
)
TEXTS = {
    "quick_gelu": TEXT,
    "gelu": replace(TEXT, hidden_act="gelu"),
    "projection": replace(TEXT, hidden_act="gelu", projection=True),
    "40-tokens": replace(TEXT, max_position_embeddings=40, layer_norm_eps=1e-3),
}
VISION = CLIPVisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    projection_dim=48,
    image_size=42,
)
VISIONS = {
    "quick_gelu": VISION,
    "gelu": replace(VISION, hidden_act="gelu"),
    "projection": replace(VISION, projection=True),
}


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text_like(config: CLIPTextConfig, length: int) -> torch.Tensor:
    """Two rows of ids that end with the largest one, early and late, and padding behind it."""
    end = config.vocab_size - 1
    ids = torch.randint(1, end, (2, length), generator=torch.Generator().manual_seed(2))
    ids[0, 5], ids[1, length - 1] = end, end
    ids[0, 6:] = end
    return ids


def assert_same_epsilons(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """What each normalisation adds to the variance, which would show in the output of faint signals alone."""
    epsilons = {name: module.eps for name, module in ours.named_modules() if hasattr(module, "eps")}
    assert len(epsilons) > 1
    assert epsilons == {name: module.eps for name, module in theirs.named_modules() if hasattr(module, "eps")}


@pytest.fixture
def unet_pair(request, randomise):
    config = UNETS[request.param]
    ours = UNet2DConditionModel(config)
    randomise(ours, 0)
    theirs = TheirUNet.from_config(config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("unet_pair", UNETS, indirect=True)
@pytest.mark.parametrize("size", [(8, 16), (11, 9)])  # divisible by all that the levels divide by, and not
@torch.no_grad()
def test_unet(unet_pair, size, assert_close):
    ours, theirs = unet_pair
    config = ours.config
    x = noise(2, config.in_channels, *size)
    timesteps = torch.tensor([981.0, 3.25])
    context = noise(2, 77, config.cross_attention_dim, seed=3)
    more, their_more = Conditions(), None
    if config.addition_embed_type == "text_time":
        pooled = noise(2, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        sizes = torch.tensor([[1024.0, 768, 0, 64, 1024, 1024], [512, 512, 0, 0, 640, 384]])
        more, their_more = Conditions(pooled, sizes), {"text_embeds": pooled, "time_ids": sizes}
    expected = theirs(x, timesteps, context, added_cond_kwargs=their_more).sample
    assert_close(ours(x, timesteps, context, more), expected, TOLERANCE)
    assert_same_epsilons(ours, theirs)


@pytest.mark.parametrize("unet_pair", ["sd15"], indirect=True)
@torch.no_grad()
def test_unet_with_context_of_several_chunks_and_integer_timesteps(unet_pair, assert_close):
    ours, theirs = unet_pair
    x, timesteps, context = noise(1, 4, 8, 16), torch.tensor([501]), noise(1, 3 * 77, 48, seed=3)
    assert_close(ours(x, timesteps, context), theirs(x, timesteps, context).sample, TOLERANCE)


@pytest.fixture
def vae_pair(request, randomise):
    config = VAES[request.param]
    ours = AutoencoderKL(config)
    randomise(ours, 0)
    theirs = TheirAutoencoderKL.from_config(config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("vae_pair", VAES, indirect=True)
@torch.no_grad()
def test_vae(vae_pair, assert_close):
    ours, theirs = vae_pair
    downscale, latents = ours.config.downscale, noise(2, ours.config.latent_channels, 11, 9)
    assert_close(ours.decode(latents), theirs.decode(latents).sample, TOLERANCE)

    images = noise(2, 3, 11 * downscale, 9 * downscale, seed=2).tanh()
    mean, logvar = ours.encode(images)
    expected = theirs.encode(images).latent_dist
    assert mean.shape == latents.shape
    assert_close(mean, expected.mean, TOLERANCE)
    assert_close(logvar, expected.logvar, TOLERANCE)
    assert_same_epsilons(ours, theirs)


@pytest.mark.parametrize("vae_pair", ["sd"], indirect=True)
@torch.no_grad()
def test_vae_clamps_the_log_variance_alike(vae_pair, assert_close):
    ours, theirs = vae_pair
    for vae in (ours, theirs):
        vae.quant_conv.weight.mul_(40.0)
    images = noise(1, 3, 24, 40).tanh()
    _, logvar = ours.encode(images)
    assert (logvar == -30.0).any()
    assert (logvar == 20.0).any()
    assert_close(logvar, theirs.encode(images).latent_dist.logvar, TOLERANCE)


def adopt(theirs: torch.nn.Module, ours: torch.nn.Module, tower: str) -> torch.nn.Module:
    """Give a transformers model our weights: since version 5 some of its classes do not name their tower."""
    state = ours.state_dict()
    if not hasattr(theirs, tower):
        state = {name.removeprefix(f"{tower}."): tensor for name, tensor in state.items()}
    theirs.load_state_dict(state)
    return theirs.eval()


@pytest.fixture
def text_pair(request, randomise):
    config = TEXTS[request.param]
    ours = CLIPTextModel(config).eval()
    randomise(ours, 0)
    # With the id 2 of the published files it looks for the largest id instead, as the network was trained.
    their_config = TheirTextConfig(**config.to_dict(), eos_token_id=2)
    their_class = TheirProjectedTextModel if config.projection else TheirTextModel
    return ours, adopt(their_class(their_config), ours, "text_model")


@pytest.mark.parametrize("text_pair", TEXTS, indirect=True)
@pytest.mark.parametrize("length", [10, None])
@torch.no_grad()
def test_text_encoder(text_pair, length, assert_close):
    ours, theirs = text_pair
    ids = text_like(ours.config, length or ours.config.max_position_embeddings)
    expected = theirs(ids, output_hidden_states=True)
    hidden, pooled = ours(ids)
    assert_close(hidden, expected.last_hidden_state, TOLERANCE)
    assert_close(
        pooled, expected.text_embeds if ours.config.projection else expected.pooler_output, TOLERANCE
    )


@pytest.mark.parametrize("text_pair", ["quick_gelu", "projection"], indirect=True)
@torch.no_grad()
def test_clip_skip(text_pair, assert_close):
    ours, theirs = text_pair
    ids = text_like(ours.config, 77)
    states = theirs(ids, output_hidden_states=True).hidden_states
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    _, pooled = ours(ids)
    for clip_skip in (1, 2, 3):
        hidden, pooled_too = ours(ids, clip_skip)
        assert_close(hidden, norm(states[-clip_skip]), TOLERANCE)
        assert torch.equal(pooled_too, pooled)


@pytest.fixture
def vision_pair(request, randomise):
    config = VISIONS[request.param]
    ours = CLIPVisionModel(config).eval()
    randomise(ours, 0)
    their_class = TheirProjectedVisionModel if config.projection else TheirVisionModel
    return ours, adopt(their_class(TheirVisionConfig(**config.to_dict())), ours, "vision_model")


@pytest.mark.parametrize("vision_pair", VISIONS, indirect=True)
@torch.no_grad()
def test_image_encoder(vision_pair, assert_close):
    ours, theirs = vision_pair
    pixels = noise(2, 3, 42, 42)
    expected = theirs(pixels, output_hidden_states=True)
    hidden, pooled = ours(pixels)
    assert_close(hidden, expected.last_hidden_state, TOLERANCE)
    assert_close(ours(pixels, clip_skip=2)[0], expected.hidden_states[-2], TOLERANCE)
    assert_close(
        pooled, expected.image_embeds if ours.config.projection else expected.pooler_output, TOLERANCE
    )


@pytest.mark.parametrize(
    ("hidden", "intermediate", "layers", "projection"),
    [(1280, 5120, 32, 1024), (1664, 8192, 48, 1280)],
    ids=["ViT-H", "ViT-bigG"],
)
def test_image_encoders_of_full_size(hidden, intermediate, layers, projection):
    """Those of published IP-Adapters: the same names and shapes."""
    values = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": projection,
    }
    with torch.device("meta"):
        ours = CLIPVisionModel(CLIPVisionConfig.from_dict(values)).state_dict()
        theirs = TheirProjectedVisionModel(TheirVisionConfig(**values)).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("size", [(300, 211), (97, 160), (224, 224), (33, 700)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_what_an_image_encoder_is_given(size, mode):
    rows = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(rows).convert(mode)
    expected = CLIPImageProcessor()(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(clip_pixels(image, 224), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("unet_pair", ["sd15", "sd21"], indirect=True)
def test_gradients_of_the_unet(unet_pair):
    ours, theirs = unet_pair
    x, timesteps, context = noise(1, 4, 16, 16), torch.tensor([501]), noise(1, 7, 48, seed=3)
    weight = noise(1, 4, 16, 16, seed=4)
    (ours(x, timesteps, context) * weight).sum().backward()
    (theirs(x, timesteps, context).sample * weight).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - expected[name].grad).abs().max()
        # Sums over pixels and rows in an order of the backend's choice: one digit more than forward.
        assert difference <= 10 * TOLERANCE * expected[name].grad.abs().max(), name


@pytest.mark.parametrize("model", ["sd15", "sd21-768-v", "sdxl-base"])
@pytest.mark.parametrize(
    ("part", "config", "their_class"),
    [("unet", UNetConfig, TheirUNet), ("vae", VAEConfig, TheirAutoencoderKL)],
)
def test_nothing_of_a_published_config_is_lost(reference, model, part, config, their_class):
    published = json.loads((reference / "configs" / model / part / "config.json").read_text())
    ours = config.from_dict(published).to_dict()

    def meaning(values):
        """The arguments that diffusers builds the network from."""
        arguments, _, _ = their_class.extract_init_dict(dict(values))
        parameters = list(inspect.signature(their_class.__init__).parameters.values())[1:]
        full = {p.name: p.default for p in parameters} | arguments
        return {name: tuple(v) if isinstance(v, list) else v for name, v in full.items()}

    numerical_only = {"upcast_attention", "force_upcast"}  # which precision, not which network
    differing = {key for key, value in meaning(published).items() if meaning(ours)[key] != value}
    assert differing <= numerical_only
