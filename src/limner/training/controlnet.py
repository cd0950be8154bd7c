"""Training a ControlNet: a copy of a model's way down, which learns to keep to control pictures.

The model itself stays as it is (Zhang et al. 2023). Its way down costs no gradients, as nothing before it is
trained: autograd records the U-Net from where the ControlNet adds to it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.errors import InvalidRequest
from limner.nn.controlnet import ControlNetModel
from limner.weights.checkpoint import Checkpoint, weights_hash
from limner.weights.control import ControlFile
from limner.weights.save import save_control

from .components import Networks, read_networks
from .data import Cache, Images, Pictures, drawn
from .loop import Batch
from .sheets import compared, stacked
from .unet import LatentSettings, LatentTask


@dataclass(frozen=True)
class ControlNetSettings(LatentSettings):
    """What is trained.

    Attributes:
        drop_caption: half, so that the control picture alone has to say what is drawn.
        embedding_channels: of the layers that bring a control picture to the latents' size; each but the
            first halves it. None takes those of Stable Diffusion, 16, 32, 96 and 256; for a U-Net that begins
            narrower than its 320 channels half as many as that has, half of these before, and so on.
    """

    drop_caption: float = 0.5
    embedding_channels: tuple[int, ...] | None = None


class ControlNetTask(LatentTask):
    """A ControlNet for a model, whose own weights stay as they are.

    Args:
        checkpoint: of the model.
        controls, fresh_controls: control pictures of `pictures` and `fresh`, in the same order.
        model: its name, for messages.
        start: a ControlNet to train further, instead of a new one that begins as the U-Net's way down.

    Raises:
        InvalidRequest: as `LatentTask`; the embedding does not lead to the latents' size; or `start` is for
            another model, or no ControlNet.
        UnsupportedModel, InvalidCheckpoint: as `read_networks`.
    """

    how: ControlNetSettings

    def __init__(
        self,
        settings: ControlNetSettings,
        checkpoint: Checkpoint,
        pictures: Pictures,
        fresh: Pictures,
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
        """Encode the pictures, and preprocess them, into files."""
        super().prepare()
        what = {k: v for k, v in self.pictures.identity.items() if k != "count"}
        what["controls"] = self.control_pictures.identity
        shape = self.control_pictures.pixels(0).shape
        fill = partial(drawn, self.control_pictures)
        self.controls = Cache(
            self.cache / "controls.u8", what, len(self.pictures), shape, np.uint8, fill
        ).rows
        self.fresh_controls = stacked(self.fresh_control_pictures, len(self.fresh_latents))

    def _rows(self, indices: list[int]) -> Batch:
        return {**super()._rows(indices), "controls": torch.from_numpy(self.controls[indices])}

    def _fresh_batch(self) -> Batch:
        return {**super()._fresh_batch(), "controls": self.fresh_controls}

    def _answer(self, x: Tensor, timesteps: Tensor, context: Tensor, batch: Batch) -> Tensor:
        embedding = self.controlnet.embed(_in_colour(batch["controls"]))
        residuals = self.controlnet(x, timesteps, context, embedding)
        answer: Tensor = self.unet(x, timesteps, context, residuals=residuals)
        return answer

    def samples(self) -> Image.Image:
        """Fresh pictures, below each its control picture, and what is drawn for that and its caption."""
        count = min(16, len(self.fresh_captions))
        controls = self.fresh_controls[:count]
        drawings = self.draw(self.fresh_captions[:count], told={"controls": controls})
        return compared([self.fresh_pictures[:count], _in_colour(controls) * 2 - 1, drawings.cpu()])

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """A folder in the layout of diffusers' ControlNetModel."""
        save_control(folder, self.controlnet, dtype=dtype, overwrite=True)


def _started(settings: ControlNetSettings, networks: Networks, start: ControlFile | None) -> ControlNetModel:
    """What training begins with."""
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
            f"an embedding with the channels {channels} makes control pictures smaller by "
            f"{controlnet.config.downscale}, but the autoencoder makes pictures so by {downscale}"
        )
    return controlnet


def _embedding_channels(width: int, downscale: int) -> tuple[int, ...]:
    """For a U-Net that begins with so many channels, and an autoencoder that makes pictures smaller."""
    if width >= 320 and downscale == 8:
        return (16, 32, 96, 256)
    halvings = downscale.bit_length() - 1
    return tuple(max(1, width >> (1 + halvings - level)) for level in range(halvings + 1))


def _in_colour(controls: Tensor) -> Tensor:
    """uint8 [B, H, W, 3], or [B, H, W] where they are gray, to float [B, 3, H, W] in [0, 1]."""
    colour = controls[..., None].expand(*controls.shape, 3) if controls.ndim == 3 else controls
    return colour.permute(0, 3, 1, 2).float() / 255.0
