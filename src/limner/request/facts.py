"""Facts about a model: what resolving a request and estimating its cost need to know, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from limner.diffusion.config import SchedulerConfig
from limner.nn.unet_config import UNetConfig

Kind = Literal["text", "inpainting", "edit", "depth"]
"""What the U-Net is given besides the noisy latents: nothing, a mask and the masked image, an image to edit,
or a depth map."""

Family = Literal["sd1", "sd2", "xl", "xl_refiner", "custom"]


@dataclass(frozen=True)
class ModelFacts:
    """A model, without its weights.

    Attributes:
        name, revision, variant: As the model was asked for.
        family: Architecture.
        kind: What the U-Net is given besides the noisy latents.
        unet: Geometry of the U-Net.
        scheduler: The checkpoint's noise schedule, and how it samples by default.
        sizes: How many sizes the U-Net is conditioned on: 6 (XL), 5 (its refiner) or 0.
        zero_negative: A negative prompt of None means an embedding of zeros.
        guides_itself: The guidance scale is an input of the network.
        latent_channels: Channels of the latents.
        downscale: Pixels per latent, along each side.
        scaling_factor: Factor from the autoencoder's latents to those of the U-Net.
        vae_channels: Channels of the autoencoder's feature maps at full size.
        text_layers: Layers of the text encoders that `clip_skip` can choose from.
        parameters: Number of weights in all networks.
        defaults: The model's own defaults for fields of a request.
    """

    name: str
    family: Family
    unet: UNetConfig
    scheduler: SchedulerConfig
    revision: str | None = None
    variant: str | None = None
    kind: Kind = "text"
    sizes: int = 0
    zero_negative: bool = False
    guides_itself: bool = False
    latent_channels: int = 4
    downscale: int = 8
    scaling_factor: float = 1.0
    vae_channels: int = 128
    text_layers: int = 12
    parameters: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height where a request gives neither a size nor an image."""
        side = self.unet.sample_size * self.downscale
        return self.defaults.get("width", side), self.defaults.get("height", side)

    @property
    def seamless_unit(self) -> int:
        """Sides in pixels must be a multiple of this where the two ends of an image meet."""
        return self.downscale << (len(self.unet.block_out_channels) - 1)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Shape of an image's latents, [1, C, h, w]."""
        return 1, self.latent_channels, height // self.downscale, width // self.downscale
