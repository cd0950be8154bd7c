"""Training a ControlNet: a copy of a model's down blocks that learns to follow control images.

The model itself does not change (Zhang et al. 2023). Its down blocks need no gradients, since nothing before
them is trained: autograd records the U-Net from where the ControlNet's residuals are added.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.errors import InvalidRequest
from limner.nn.controlnet import ControlNetModel
from limner.nn.unet import Conditions
from limner.weights.checkpoint import Checkpoint, weights_hash
from limner.weights.control import ControlFile
from limner.weights.save import save_control

from .cache import Cache, drawn
from .components import Networks, read_networks
from .data import Dataset, Images
from .loop import Batch
from .sheets import Sheet, compared, stacked
from .unet import LatentSettings, LatentTask


@dataclass(frozen=True)
class ControlNetSettings(LatentSettings):
    """What is trained.

    Attributes:
        drop_caption: Share of empty captions: half, so that often the control image alone decides.
        embedding_channels: Channels of the layers that reduce a control image to the latents' size; each
            but the first halves the resolution. None takes Stable Diffusion's 16, 32, 96 and 256, or, for a
            U-Net whose first level has fewer than 320 channels, half of those, a quarter before, and so on.
    """

    drop_caption: float = 0.5
    embedding_channels: tuple[int, ...] | None = None


class ControlNetTask(LatentTask):
    """A ControlNet for a model whose own weights do not change.

    Args:
        checkpoint: Checkpoint of the model.
        controls, fresh_controls: Control images of `pictures` and `fresh`, in the same order.
        model: Name of the model, for messages.
        start: ControlNet to train further; None starts with a copy of the U-Net's down blocks.

    Raises:
        InvalidRequest: As `LatentTask`; the embedding does not lead to the latents' size; or `start` is for
            another model, or no ControlNet.
        UnsupportedModel, InvalidCheckpoint: As `read_networks`.
    """

    how: ControlNetSettings

    def __init__(
        self,
        settings: ControlNetSettings,
        checkpoint: Checkpoint,
        pictures: Dataset,
        fresh: Dataset,
        controls: Images,
        fresh_controls: Images,
        cache: Path,
        *,
        model: str,
        start: ControlFile | None = None,
    ) -> None:
        networks = read_networks(checkpoint, model, "a ControlNet")
        unet, text, vae = networks.unet, networks.text_encoder, networks.vae
        super().__init__(
            settings, networks.scheduler, unet, text, networks.tokenizer, vae, pictures, fresh, cache
        )
        self.control_pictures, self.fresh_control_pictures = controls, fresh_controls
        self.controlnet = controlnet = _started(settings, networks, start)
        self.modules = {"controlnet": controlnet}
        self.frozen = {"vae": vae, "unet": unet, "text_encoder": text}
        self.identity = {
            "kind": "controlnet",
            "base": weights_hash(checkpoint),
            "controlnet": controlnet.config.to_dict(),
        }
        self.settings["controls"] = controls.identity

    def prepare(self) -> None:
        """Encode the images and make their control images, into files."""
        super().prepare()
        self.controls = Cache(
            self.cache / "controls.u8",
            {},
            [self.control_pictures.key(index) for index in range(len(self.pictures))],
            self.control_pictures.pixels(0).shape,
            np.uint8,
            partial(drawn, self.control_pictures),
        )
        self.fresh_controls = stacked(self.fresh_control_pictures, len(self.fresh_latents))

    def _rows(self, indices: list[int]) -> Batch:
        return {**super()._rows(indices), "controls": torch.from_numpy(self.controls[indices])}

    def _fresh_batch(self) -> Batch:
        return {**super()._fresh_batch(), "controls": self.fresh_controls}

    def _answer(self, x: Tensor, timesteps: Tensor, context: Tensor, batch: Batch) -> Tensor:
        embedding = self.controlnet.embed(_in_colour(batch["controls"]))
        residuals = self.controlnet(x, timesteps, context, embedding)
        answer: Tensor = self.unet(x, timesteps, context, Conditions(residuals=residuals))
        return answer

    def samples(self) -> Sheet:
        """Fresh images; below each its control image, and an image generated from that and the
        caption."""
        count = min(16, len(self.fresh_captions))
        controls = self.fresh_controls[:count]
        drawn = self.draw(self.fresh_captions[:count], rows={"controls": controls})
        return compared([self.fresh_pictures[:count], _in_colour(controls) * 2 - 1, drawn.cpu()])

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """A folder in the layout of diffusers' ControlNetModel."""
        save_control(folder, self.controlnet, dtype=dtype, overwrite=True)


def _started(settings: ControlNetSettings, networks: Networks, start: ControlFile | None) -> ControlNetModel:
    """The network that training starts with."""
    unet, downscale = networks.unet, networks.vae.config.downscale
    if start is not None:
        if (misfit := start.misfit(unet.config, downscale)) is not None:
            raise InvalidRequest(f"{start.path} cannot be trained further: {misfit}")
        network = start.load(torch.float32)
        if not isinstance(network, ControlNetModel):
            raise InvalidRequest(f"{start.path} is a T2I-Adapter; a ControlNet can be trained further")
        return network
    channels = settings.embedding_channels
    if channels is None:
        channels = _embedding_channels(unet.config.block_out_channels[0], downscale)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    if controlnet.config.downscale != downscale:
        raise InvalidRequest(
            f"an embedding with the channels {channels} makes control images smaller by "
            f"{controlnet.config.downscale}, but the autoencoder makes images so by {downscale}"
        )
    return controlnet


def _embedding_channels(width: int, downscale: int) -> tuple[int, ...]:
    """Default channels of the embedding.

    Args:
        width: Channels of the first level of the U-Net.
        downscale: Factor of the autoencoder.
    """
    if width >= 320 and downscale == 8:
        return (16, 32, 96, 256)
    halvings = downscale.bit_length() - 1
    return tuple(max(1, width >> (1 + halvings - level)) for level in range(halvings + 1))


def _in_colour(controls: Tensor) -> Tensor:
    """uint8 [B, H, W, 3], or [B, H, W] if they are gray, to float [B, 3, H, W] in [0, 1]."""
    colour = controls[..., None].expand(*controls.shape, 3) if controls.ndim == 3 else controls
    return colour.permute(0, 3, 1, 2).float() / 255.0
