"""What the networks promise besides agreeing with their namesakes."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.control_config import T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import Conditions, UNet2DConditionModel, timestep_embedding
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig

UNET = UNetConfig(
    block_out_channels=(16, 32, 32),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=16,
    norm_num_groups=4,
)
TEXT = CLIPTextConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    vocab_size=20,
    max_position_embeddings=12,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 13), (3, 2)])
@torch.no_grad()
def test_unet_takes_latents_of_any_size(size):
    unet = UNet2DConditionModel(UNET)
    assert unet(torch.randn(2, 4, *size), torch.tensor([1, 2]), torch.randn(2, 3, 16)).shape == (2, 4, *size)


@torch.no_grad()
def test_each_row_of_a_unet_batch_has_its_own_timestep_and_context():
    unet = UNet2DConditionModel(UNET)
    x, timesteps, context = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1), [999, 20, 20], torch.randn(3, 5, 16)
    together = unet(x, torch.tensor(timesteps), context)
    for row in range(3):
        alone = unet(x[row : row + 1], torch.tensor(timesteps[row : row + 1]), context[row : row + 1])
        # Batched and single matrix products round differently.
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2
    assert (together[1] - together[2]).abs().max() > 1e-2


@torch.no_grad()
def test_a_context_repeated_whole_changes_nothing():
    unet = UNet2DConditionModel(UNET)
    x, timesteps, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 16)
    torch.testing.assert_close(
        unet(x, timesteps, context.repeat(1, 3, 1)), unet(x, timesteps, context), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_an_xl_unet_wants_pooled_text_and_sizes():
    config = UNetConfig(
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
    )
    unet = UNet2DConditionModel(config)
    x, timesteps, context = torch.randn(2, 4, 4, 4), torch.tensor([3, 3]), torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match="give both"):
        unet(x, timesteps, context)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    assert unet(x, timesteps, context, Conditions(torch.randn(2, 10), sizes)).shape == x.shape


@pytest.mark.parametrize("more", [{}, {"in_channels": 9}, {"time_cond_proj_dim": 8}])
@torch.no_grad()
def test_a_controlnet_begins_by_adding_nothing(more):
    """To a U-Net for inpainting, or one that is told a guidance scale, too, though it is given neither."""
    unet = UNet2DConditionModel(replace(UNET, **more))
    control = ControlNetModel.from_unet(unet)
    assert (control.config.in_channels, control.config.downscale) == (4, 8)
    weights = unet.state_dict()
    assert torch.equal(control.conv_in.weight, weights["conv_in.weight"][:, :4])
    x, timesteps, context = torch.randn(2, 4, 5, 7), torch.tensor([1, 999]), torch.randn(2, 3, 16)
    added = control(x, timesteps, context, control.embed(torch.rand(2, 3, 40, 56)))
    assert not any(each.any() for each in added)
    given = Conditions(guidance=torch.tensor([7.5, 7.5]) if "time_cond_proj_dim" in more else None)
    x = torch.randn(2, unet.config.in_channels, 5, 7)
    assert torch.equal(
        unet(x, timesteps, context, replace(given, residuals=added)), unet(x, timesteps, context, given)
    )


@torch.no_grad()
def test_each_row_is_told_of_its_own_picture():
    unet = UNet2DConditionModel(UNET)
    control = ControlNetModel.from_unet(unet)
    adapter = T2IAdapter(T2IAdapterConfig(channels=(16, 32, 32)))
    for parameter in control.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    x, context, image = torch.randn(2, 4, 4, 6), torch.randn(2, 3, 16), torch.rand(2, 3, 32, 48)

    def told(rows):
        timesteps = torch.tensor([700, 30])[rows]
        added = control(x[rows], timesteps, context[rows], control.embed(image[rows]))
        return unet(
            x[rows], timesteps, context[rows], Conditions(residuals=added, features=adapter(image[rows]))
        )

    together = told(slice(None))
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], told(slice(row, row + 1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_adapter_continues_sides_that_are_no_multiples():
    adapter = T2IAdapter(T2IAdapterConfig(channels=(8, 8, 8), downscale_factor=16, in_channels=1))
    image = torch.rand(1, 1, 24, 40)
    wider = torch.nn.functional.pad(image, (0, 8, 0, 8), mode="replicate")
    assert [tuple(each.shape[2:]) for each in adapter(image)] == [(2, 3), (1, 2), (1, 1)]
    for one, other in zip(adapter(image), adapter(wider), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_features_of_another_number_of_levels_are_an_error():
    unet, x = UNet2DConditionModel(UNET), torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="2 features were given, expected one for each of 3 levels"):
        unet(x, torch.tensor([1]), torch.randn(1, 3, 16), Conditions(features=[x, x]))


def test_timestep_embedding():
    embedded = timestep_embedding(torch.tensor([0.0, 1.5]), 8)
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    assert embedded[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = torch.tensor(frequencies) * 1.5
    torch.testing.assert_close(embedded[1], torch.cat([angles.cos(), angles.sin()]))


@torch.no_grad()
def test_vae_shapes_and_clamped_log_variance():
    config = VAEConfig(
        block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=5
    )
    vae = AutoencoderKL(config)
    assert config.downscale == 4
    mean, logvar = vae.encode(torch.randn(2, 3, 12, 20))
    assert mean.shape == logvar.shape == (2, 5, 3, 5)
    vae.quant_conv.bias[5:] = torch.tensor([1e3, -1e3, 0, 0, 0])
    _, logvar = vae.encode(torch.randn(2, 3, 12, 20))
    assert (logvar[:, 0] == 20).all()
    assert (logvar[:, 1] == -30).all()
    assert vae.decode(mean).shape == (2, 3, 12, 20)


@torch.no_grad()
def test_text_encoder_looks_back_only_and_pools_at_the_first_end_token():
    text = CLIPTextModel(TEXT)
    ids = torch.tensor([[18, 5, 6, 19, 19, 19], [18, 5, 6, 7, 8, 19]])
    hidden, pooled = text(ids)
    assert hidden.shape == (2, 6, 16)
    torch.testing.assert_close(hidden[0, :3], hidden[1, :3])
    assert (hidden[0, 3] - hidden[1, 3]).abs().max() > 1e-2
    assert torch.equal(pooled, hidden[[0, 1], [3, 5]])


@torch.no_grad()
def test_clip_skip_counts_from_the_last_layer():
    text = CLIPTextModel(TEXT)
    ids = torch.tensor([[18, 5, 19]])
    hidden, pooled = text(ids, clip_skip=2)
    del text.text_model.encoder.layers[2]
    shorter, _ = text(ids)
    assert torch.equal(hidden, shorter)
    assert pooled.shape == (1, 16)


@pytest.mark.parametrize("clip_skip", [0, 4, -1])
def test_clip_skip_out_of_range(clip_skip):
    with pytest.raises(ValueError, match=f"clip_skip is {clip_skip}; this text encoder has 3 layers"):
        CLIPTextModel(TEXT)(torch.tensor([[18, 19]]), clip_skip)


@pytest.mark.parametrize("projection", [False, True])
@torch.no_grad()
def test_image_encoder_shapes(projection):
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        projection_dim=6,
        projection=projection,
    )
    hidden, pooled = CLIPVisionModel(config)(torch.randn(2, 3, 12, 12))
    assert hidden.shape == (2, 1 + 9, 16)
    assert pooled.shape == (2, 6 if projection else 16)


def test_image_size_must_be_a_multiple_of_the_patches():
    with pytest.raises(ValueError, match="image_size 225 must be a multiple of patch_size 14"):
        CLIPVisionModel(CLIPVisionConfig(image_size=225))


@torch.no_grad()
def test_low_rank_terms_are_what_merged_weights_give():
    """Of every linear layer and 1x1 convolution at once, and each of them alone changes the output."""
    unet = UNet2DConditionModel(replace(UNET, time_cond_proj_dim=8, use_linear_projection=False))
    x, timesteps, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 16)
    given = Conditions(guidance=torch.tensor([7.5]))
    low_rank, merged = {}, copy.deepcopy(unet)
    for name, layer in unet.named_modules():
        if not isinstance(layer, nn.Linear) and getattr(layer, "kernel_size", None) != (1, 1):
            continue
        weight = merged.get_parameter(f"{name}.weight")
        down, up = torch.randn(2, weight.shape[1]), 0.02 * torch.randn(weight.shape[0], 2)
        low_rank[name] = [(down, up)]
        weight += (up @ down).reshape(weight.shape)
    assert len(low_rank) > 50
    found = unet(x, timesteps, context, replace(given, low_rank=low_rank))
    torch.testing.assert_close(found, merged(x, timesteps, context, given), rtol=1e-4, atol=1e-4)
    plain = unet(x, timesteps, context, given)
    for name, terms in low_rank.items():
        assert not torch.equal(unet(x, timesteps, context, replace(given, low_rank={name: terms})), plain), (
            name
        )
    assert torch.equal(unet(x, timesteps, context, given), plain)


def test_conditions_of_some_rows_in_another_dtype():
    def numbered(*shape):
        return torch.arange(3.0).reshape(3, *[1] * len(shape)).expand(3, *shape)

    full = Conditions(
        numbered(5),
        numbered(6),
        numbered(),
        [numbered(2, 4, 4)],
        [numbered(2, 4, 4)] * 2,
        [numbered(2, 4, 8)],
        {"a.b": [(torch.full((2, 4), float(row)), torch.full((4, 2), float(row))) for row in range(3)]},
    )
    assert full.present == {field.name for field in fields(Conditions)}
    assert Conditions().present == frozenset()
    some = full.rows(torch.tensor([2, 0])).to(torch.device("cpu"), torch.bfloat16)
    assert some.sizes is not None
    assert some.guidance is not None
    assert some.sizes.dtype == some.guidance.dtype == torch.float32
    downs, ups = (torch.stack(factors) for factors in zip(*some.low_rank["a.b"], strict=True))
    narrow = [some.pooled, *some.residuals, *some.features, *some.image_prompts, downs, ups]
    assert len(narrow) == 7
    assert all(tensor is not None and tensor.dtype == torch.bfloat16 for tensor in narrow)
    for tensor in (*narrow, some.sizes, some.guidance):
        assert tensor is not None
        assert tensor.reshape(2, -1)[:, 0].tolist() == [2, 0]
