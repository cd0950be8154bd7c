"""Estimates of time, memory and work of a resolved request, from its model's facts alone.

The engine plans its memory by the same formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limner.nn.unet_config import UNetConfig

from .facts import ModelFacts
from .networks import UsedControl

if TYPE_CHECKING:
    from .resolve import PassSpec, PictureSpec, ResolvedRequest

TILE = 64  # side of a tile of the autoencoder, in latents
_CONTROL_CHANNELS = 64  # feature maps of a control network at the image's full size, all together
_TOKENS = 77  # length of a text of one chunk
_DECODER, _ENCODER = 9.6e6, 4.3e6  # operations of SD's autoencoder per pixel of the image


@dataclass(frozen=True)
class Device:
    """A device that images are generated on.

    Attributes:
        flops: Floating-point operations per second that it sustains in the networks.
        memory: Bytes that may be used; None for no limit.
        bytes_per_weight: Bytes of a weight and of a number in a feature map: 4 for fp32, 2 for bf16 and fp16.
        price: Cost of one second.
    """

    flops: float
    memory: int | None = None
    bytes_per_weight: int = 4
    price: float = 0.0


DEVICES = {
    "cpu": Device(flops=1e11, bytes_per_weight=4),
    "cpu-amx": Device(flops=1.5e12, bytes_per_weight=2),
    "cuda": Device(flops=5e13, bytes_per_weight=2),
}
"""Orders of magnitude, for devices of which nothing was measured."""


@dataclass(frozen=True)
class Cost:
    """What an image takes, whatever the device.

    Attributes:
        flops: Floating-point operations.
        weights: Number of weights of the networks that it needs.
        numbers: Most numbers in feature maps that a forward pass makes at once.
    """

    flops: float
    weights: int
    numbers: int


@dataclass(frozen=True)
class Estimate:
    """What a request takes, about.

    Attributes:
        flops: Floating-point operations of all images.
        seconds: Time on the device alone, without queueing and loading.
        memory: Bytes of the weights and of the most demanding forward pass of one image.
        fits: Whether that is within the device's memory.
        cost: Price of the time.
    """

    flops: float
    seconds: float
    memory: int
    fits: bool
    cost: float


def estimate(resolved: "ResolvedRequest", facts: ModelFacts, device: Device) -> Estimate:
    """Estimate a resolved request on a device, for a model with these facts."""
    costs = [
        cost_of(one.passes, one.controls, facts, encodes=one.request.image is not None)
        for one in resolved.pictures
    ]
    return estimate_of(costs, device)


def estimate_of(costs: Sequence[Cost], device: Device) -> Estimate:
    """Estimate images on a device, which draws them one after another."""
    flops, size = sum(cost.flops for cost in costs), device.bytes_per_weight
    memory = max(cost.weights + cost.numbers for cost in costs) * size
    seconds = flops / device.flops
    fits = device.memory is None or memory <= device.memory
    return Estimate(flops, seconds, memory, fits, seconds * device.price)


def cost_of(
    passes: Sequence["PassSpec"], controls: Sequence[UsedControl], facts: ModelFacts, *, encodes: bool
) -> Cost:
    """The cost of an image.

    Args:
        encodes: Whether it starts from an image.
    """
    flops, extra = 0.0, sum(bool(control.residuals) for control in controls)
    for one in passes:
        *_, height, width = facts.latent_shape(one.width, one.height)
        row = unet_flops(facts.unet, height, width)
        # A ControlNet runs the way down and the middle once more: about two fifths of a U-Net.
        flops += one.run_steps * one.rows * row * (1.0 + 0.4 * extra)
    decoded = passes[-1].width * passes[-1].height
    encoded = decoded if encodes else 0
    flops += (decoded * _DECODER + encoded * _ENCODER) * (facts.vae_channels / 128) ** 2
    networks = {control.path: control.parameters for control in controls}
    weights = facts.parameters + sum(networks.values())
    return Cost(flops, weights, _largest_pass(passes, len(controls), facts, 1))


def unet_flops(config: UNetConfig, height: int, width: int, tokens: int = _TOKENS) -> float:
    """Floating-point operations of one row of the U-Net: convolutions, linear layers and attention.

    Args:
        height, width: Size of the latents.
        tokens: Length of the text.
    """
    widths, layers = config.block_out_channels, config.layers_per_block
    total, places = 0.0, float(height * width)
    skips = list(config.skip_channels)
    total += 9 * (config.in_channels + config.out_channels) * widths[0] * places
    before = widths[0]
    for level, channels in enumerate(widths):
        here = places / 4**level
        for index in range(layers):
            total += _resnet(before if index == 0 else channels, channels) * here
            total += config.down_depths[level] * _transformer(channels, here, tokens, config)
        before = channels
        if level < len(widths) - 1:
            total += 9 * channels**2 * here / 4
    deepest = places / 4 ** (len(widths) - 1)
    total += 2 * _resnet(before, before) * deepest
    total += config.middle_depth * _transformer(before, deepest, tokens, config)
    for step, channels in enumerate(reversed(widths)):
        here = places / 4 ** (len(widths) - 1 - step)
        for _ in range(layers + 1):
            total += _resnet(before + skips.pop(), channels) * here
            total += config.up_depths[step] * _transformer(channels, here, tokens, config)
            before = channels
        if step < len(widths) - 1:
            total += 9 * channels**2 * here * 4
    return float(2 * total)  # a multiplication and an addition each


def _resnet(channels: int, out: int) -> float:
    """Multiplications of a residual block per place: two 3x3 convolutions, and 1x1 where widths differ."""
    return 9 * channels * out + 9 * out * out + (channels * out if channels != out else 0)


def _transformer(channels: int, places: float, tokens: int, config: UNetConfig) -> float:
    """Multiplications of a transformer block: self-attention, cross-attention and the feed-forward layers."""
    linear = (4 + 2 + 12) * channels**2 * places  # q, k, v, out; q, out; the gated layers are 8 + 4 wide
    text = 2 * config.cross_attention_dim * channels * tokens
    attention = 2 * channels * places * (places + tokens)
    return linear + text + attention


def picture_bytes(picture: "PictureSpec", facts: ModelFacts, size: int) -> int:
    """Bytes that the most demanding forward pass of one image makes, if it is decoded in tiles.

    Args:
        size: Bytes of a number.
    """
    return _largest_pass(picture.passes, len(picture.controls), facts, size)


def _largest_pass(passes: Sequence["PassSpec"], controls: int, facts: ModelFacts, size: int) -> int:
    needed = 0
    for one in passes:
        *_, height, width = facts.latent_shape(one.width, one.height)
        unet = one.rows * unet_bytes(facts, height, width, size, controls)
        needed = max(needed, unet, vae_bytes(facts, height, width, size, tiled=True))
        if controls:
            needed = max(needed, control_bytes(one.height, one.width, size))
    return needed


def unet_bytes(facts: ModelFacts, height: int, width: int, size: int, controls: int = 0) -> int:
    """Bytes that one row of the U-Net makes at once, for latents of height x width.

    The feature maps of the first level dominate: those kept for the way up, the two that are joined, and
    the eightfold width inside the feed-forward layers. Control networks keep what they add.
    """
    return (24 + 8 * (controls > 0)) * facts.unet.block_out_channels[0] * height * width * size


def vae_bytes(facts: ModelFacts, height: int, width: int, size: int, tiled: bool = False) -> int:
    """Bytes that the autoencoder makes at once for one image, for latents of height x width: its feature maps
    at full size dominate."""
    if tiled:
        height, width = min(height, TILE), min(width, TILE)
    return 10 * facts.vae_channels * (facts.downscale * height) * (facts.downscale * width) * size


def control_bytes(height: int, width: int, size: int) -> int:
    """Bytes that a control network makes at once of an image of height x width pixels."""
    return _CONTROL_CHANNELS * height * width * size
