"""ControlNets, T2I-Adapters and the U-Net that is told of them, against diffusers on the same random weights.

1e-5, as for the other networks.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel as TheirControlNet
from diffusers import T2IAdapter as TheirAdapter
from diffusers import UNet2DConditionModel as TheirUNet

from limner.nn.control_config import T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import Conditions, UNet2DConditionModel
from limner.nn.unet_config import UNetConfig

TOLERANCE = 1e-5
SIZES = [(8, 16), (11, 9)]  # divisible by all that the levels divide by, and not

SD1 = UNetConfig(block_out_channels=(32, 64, 96, 96), cross_attention_dim=48, norm_num_groups=8)
SD2 = replace(SD1, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True)
XL = UNetConfig(
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
)
UNETS = {"sd1": SD1, "sd2": SD2, "xl": XL}
OWN = {  # what a ControlNet's config says beyond its U-Net's
    "plain": {},
    "bgr": {"controlnet_conditioning_channel_order": "bgr", "conditioning_embedding_out_channels": (8, 16)},
    "pooled": {"global_pool_conditions": True, "conditioning_channels": 1},
    "without attention in the middle": {"mid_block_type": "UNetMidBlock2D"},
}
ADAPTERS = {
    "full": T2IAdapterConfig(channels=(32, 64, 96, 96), in_channels=1),
    "light": T2IAdapterConfig(channels=(32, 64, 96), num_res_blocks=3, adapter_type="light_adapter"),
    "xl": T2IAdapterConfig(channels=(32, 64, 96, 96), downscale_factor=16, adapter_type="full_adapter_xl"),
}


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(config, rows=2, size=(8, 16)):
    """Arguments of a forward pass, and what diffusers takes apart from them."""
    inputs = [noise(rows, config.in_channels, *size), torch.tensor([981.0, 3.25][:rows]), noise(rows, 7, 48)]
    if config.addition_embed_type is None:
        return inputs, Conditions(), None
    sizes = torch.tensor([[1024.0, 768, 0, 64, 1024, 1024], [512, 512, 0, 0, 640, 384]][:rows])
    pooled = noise(rows, 20, seed=2)
    return inputs, Conditions(pooled, sizes), {"text_embeds": pooled, "time_ids": sizes}


def unets(config, randomise):
    ours = UNet2DConditionModel(config)
    randomise(ours, 0)
    theirs = TheirUNet.from_config(config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def controls(unet, randomise, **own):
    ours = ControlNetModel.from_unet(unet, **own)
    randomise(ours, 5)
    theirs = TheirControlNet.from_config(ours.config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    ("family", "own"),
    [*((family, "plain") for family in UNETS), *(("sd1", own) for own in OWN if own != "plain")],
)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_controlnets(family, own, size, randomise, assert_close):
    own = OWN[own]
    ours, theirs = controls(UNet2DConditionModel(UNETS[family]), randomise, **own)
    factor = ours.config.downscale
    image = noise(2, ours.config.conditioning_channels, size[0] * factor, size[1] * factor).sigmoid()
    inputs, more, their_more = asked(ours.config, size=size)
    added = ours(*inputs, ours.embed(image), more)
    down, middle = theirs(*inputs, image, added_cond_kwargs=their_more, return_dict=False)
    assert len(added) == len(ours.config.skip_channels) + 1
    for one, other in zip(added, [*down, middle], strict=True):
        assert_close(one, other, TOLERANCE)


@pytest.mark.parametrize("family", UNETS)
@torch.no_grad()
def test_a_controlnet_begins_as_its_unet(family, randomise):
    unet, their_unet = unets(UNETS[family], randomise)
    ours, theirs = ControlNetModel.from_unet(unet), TheirControlNet.from_unet(their_unet)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        if name.startswith("controlnet_cond_embedding") and "conv_out" not in name:
            assert tensor.shape == expected[name].shape  # of which the beginning is random
        else:
            assert torch.equal(tensor, expected[name]), name
    for key, value in ours.config.to_dict().items():
        expected = "ControlNetModel" if key == "_class_name" else theirs.config[key]
        assert value == (list(expected) if isinstance(expected, tuple) else expected), key


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_unets_with_what_controlnets_add(family, size, randomise, assert_close):
    ours, theirs = unets(UNETS[family], randomise)
    control, _ = controls(ours, randomise)
    inputs, more, their_more = asked(ours.config, size=size)
    added = control(*inputs, control.embed(noise(2, 3, 8 * size[0], 8 * size[1])), more)
    expected = theirs(
        *inputs,
        added_cond_kwargs=their_more,
        down_block_additional_residuals=added[:-1],
        mid_block_additional_residual=added[-1],
    ).sample
    before = [each.clone() for each in added]
    found = ours(*inputs, replace(more, residuals=added))
    assert_close(found, expected, TOLERANCE)
    assert torch.equal(ours.forward_keeping(*inputs, replace(more, residuals=added))[0], found)
    assert all(torch.equal(*pair) for pair in zip(added, before, strict=True))
    assert not torch.allclose(ours(*inputs, more), expected, atol=1e-2)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("size", [(128, 64), (80, 112)])
@torch.no_grad()
def test_adapters(kind, size, randomise, assert_close):
    ours, theirs = adapters(kind, randomise)
    image = noise(2, ours.config.in_channels, *size).sigmoid()
    features, expected = ours(image), theirs(image)
    assert [each.shape[1] for each in features] == [channels for _, channels, _ in ours.config.levels]
    for one, other in zip(features, expected, strict=True):
        assert_close(one, other, TOLERANCE)


def adapters(kind, randomise):
    config = ADAPTERS[kind]
    ours = T2IAdapter(config)
    randomise(ours, 9)
    theirs = TheirAdapter.from_config(config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(("family", "kind"), [("sd1", "full"), ("sd1", "light"), ("xl", "xl")])
@pytest.mark.parametrize("size", [(8, 16), (11, 10)])
@torch.no_grad()
def test_unets_with_features(family, kind, size, randomise, assert_close):
    ours, theirs = unets(UNETS[family], randomise)
    adapter, _ = adapters(kind, randomise)
    inputs, more, their_more = asked(ours.config, size=size)
    features = adapter(noise(2, adapter.config.in_channels, 8 * size[0], 8 * size[1]).sigmoid())
    expected = theirs(
        *inputs,
        added_cond_kwargs=their_more,
        down_intrablock_additional_residuals=[each.clone() for each in features],
    ).sample
    found = ours(*inputs, replace(more, features=features))
    assert_close(found, expected, TOLERANCE)
    assert torch.equal(ours.forward_keeping(*inputs, replace(more, features=features))[0], found)
    assert not torch.allclose(ours(*inputs, more), expected, atol=1e-2)


@torch.no_grad()
def test_both_at_once(randomise, assert_close):
    ours, theirs = unets(XL, randomise)
    control, _ = controls(ours, randomise)
    adapter, _ = adapters("xl", randomise)
    inputs, more, their_more = asked(XL)
    image = noise(2, 3, 64, 128).sigmoid()
    added, features = control(*inputs, control.embed(image), more), adapter(image)
    expected = theirs(
        *inputs,
        added_cond_kwargs=their_more,
        down_block_additional_residuals=added[:-1],
        mid_block_additional_residual=added[-1],
        down_intrablock_additional_residuals=[each.clone() for each in features],
    ).sample
    assert_close(ours(*inputs, replace(more, residuals=added, features=features)), expected, TOLERANCE)
