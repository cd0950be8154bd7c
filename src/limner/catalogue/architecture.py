"""The networks of a model as their configs describe them: the family, and what the U-Net takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.request.facts import Family, Kind


@dataclass(frozen=True)
class Architecture:
    """The networks of a model, without their weights.

    Attributes:
        unet, vae: Geometry of the U-Net and of the autoencoder.
        texts: Text encoder -> its geometry. With two, the U-Net attends to the hidden states of both, joined
            along the channels in this order.
    """

    unet: UNetConfig
    vae: VAEConfig
    texts: Mapping[str, CLIPTextConfig]

    @property
    def family(self) -> Family:
        """SD 1.x and 2.x differ in the width of their text encoder; "custom" is any other width."""
        if self.sizes:
            return "xl" if self.sizes == 6 else "xl_refiner"
        families: dict[int, Family] = {768: "sd1", 1024: "sd2"}
        return families.get(self.unet.cross_attention_dim, "custom")

    @property
    def kind(self) -> Kind:
        """What the U-Net takes besides the noisy latents: nothing, a mask and the masked image's latents, the
        latents of an image to edit, or a depth map."""
        latent = self.vae.latent_channels
        kinds: dict[int, Kind] = {0: "text", latent + 1: "inpainting", latent: "edit", 1: "depth"}
        return kinds[self.unet.in_channels - latent]

    @property
    def pooled_channels(self) -> int:
        """Width of the pooled text embedding that the U-Net takes; 0 for none."""
        if self.unet.addition_embed_type is None:
            return 0
        last = list(self.texts.values())[-1]
        return last.projection_dim if last.projection else last.hidden_size

    @property
    def sizes(self) -> int:
        """Number of size conditions that the U-Net takes: 6, 5 (the refiner of XL) or 0."""
        if self.unet.addition_embed_type is None:
            return 0
        rest = (self.unet.projection_class_embeddings_input_dim or 0) - self.pooled_channels
        return rest // (self.unet.addition_time_embed_dim or 1)

    @property
    def skipped_layers(self) -> int:
        """Number of last layers of the text encoders that are unused: XL takes the last but one, unnormed."""
        return 1 if self.family.startswith("xl") else 0

    def check(self, source: Path) -> None:
        """Raise InvalidCheckpoint or UnsupportedModel unless the networks fit together.

        Args:
            source: The checkpoint, for messages.
        """
        unet, latent, texts = self.unet, self.vae.latent_channels, self.texts.values()
        for what, given, expected in (
            ("U-Net out_channels and VAE latent_channels", unet.out_channels, latent),
            (
                "U-Net cross_attention_dim and the text encoders' hidden_size",
                unet.cross_attention_dim,
                sum(text.hidden_size for text in texts),
            ),
        ):
            if given != expected:
                raise InvalidCheckpoint(f"{source}: {what} must agree, but are {given} and {expected}")
        if unet.in_channels - latent not in (0, 1, latent, latent + 1):
            raise UnsupportedModel(
                f"{source}: the U-Net takes {unet.in_channels} channels, a latent has {latent}",
                hint=f"expected {latent}, {latent + 1} (depth), {2 * latent} (editing) or {2 * latent + 1} "
                "(inpainting)",
            )
        if unet.addition_embed_type is not None:
            joint, one = unet.projection_class_embeddings_input_dim or 0, unet.addition_time_embed_dim or 0
            pooled = self.pooled_channels
            if one <= 0 or joint not in (pooled + 5 * one, pooled + 6 * one):
                raise InvalidCheckpoint(
                    f"{source}: the U-Net takes {joint} numbers besides the timestep, expected those of the "
                    f"pooled text, {pooled}, and 5 or 6 times addition_time_embed_dim, {one}"
                )
        elif len(texts) > 1:
            raise UnsupportedModel(f"{source} has two text encoders, but not the U-Net of XL")
