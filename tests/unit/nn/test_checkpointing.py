"""Gradient checkpointing: less memory, the same gradients."""

import pytest
import torch

from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.unet import Conditions, UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig


def unet():
    network = UNet2DConditionModel(
        UNetConfig(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
        )
    )
    x, context = torch.randn(2, 4, 7, 5), torch.randn(2, 6, 16, requires_grad=True)
    return network, lambda: network(x, torch.tensor([10, 900]), context), network.mid_block.resnets[0]


def controlnet():
    """Together with its U-Net, which is not trained."""
    base, _, _ = unet()
    network = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=(4, 4, 4, 4))
    torch.nn.init.ones_(network.controlnet_mid_block.weight)  # or nothing but the zeros would be trained
    x, context, image = torch.randn(2, 4, 7, 5), torch.randn(2, 6, 16), torch.rand(2, 3, 56, 40)

    def forward():
        timesteps = torch.tensor([10, 900])
        added = network(x, timesteps, context, network.embed(image))
        return base(x, timesteps, context, Conditions(residuals=added))

    return network, forward, network.mid_block.resnets[0]


def vae():
    network = AutoencoderKL(VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4))
    images = torch.randn(1, 3, 10, 14)
    return network, lambda: network.decode(network.encode(images)[0]), network.encoder.mid_block.resnets[0]


def text():
    network = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
        )
    )
    ids = torch.tensor([[18, 4, 2, 19], [18, 3, 19, 19]])
    return (
        network,
        lambda: torch.cat([t.flatten() for t in network(ids)]),
        network.text_model.encoder.layers[0],
    )


def vision():
    network = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
    )
    pixels = torch.randn(2, 3, 8, 8)
    layer = network.vision_model.encoder.layers[0]
    return network, lambda: torch.cat([t.flatten() for t in network(pixels)]), layer


@pytest.mark.parametrize("make", [unet, controlnet, vae, text, vision])
def test_same_gradients_from_blocks_that_run_twice(make):
    torch.manual_seed(0)
    network, forward, block = make()
    runs = []
    block.register_forward_pre_hook(lambda *_: runs.append(block))

    gradients = []
    for network.gradient_checkpointing in (False, True):
        network.zero_grad()
        output = forward()
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(runs) == 1 + 2
    # The same operations on the same numbers: nothing may differ.
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(g.isfinite().all() for g in gradients[0])


@torch.no_grad()
def test_nothing_runs_twice_without_gradients():
    network, forward, block = unet()
    runs = []
    block.register_forward_pre_hook(lambda *_: runs.append(block))
    expected = forward()
    network.gradient_checkpointing = True
    assert torch.equal(forward(), expected)
    assert len(runs) == 2
