"""Training the autoencoder: reconstruction + kl_weight * KL (Kingma & Welling 2014; Rombach et al. 2022)."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.errors import InvalidRequest
from limner.nn.vae import AutoencoderKL, VAEConfig
from limner.pipeline.images import from_pixels

from .components import read_vae, write_component
from .data import Pictures, seed_of
from .loop import Batch, Task
from .sheets import sheet, stacked

PICTUREBOOK = VAEConfig(
    block_out_channels=(32, 64, 96, 128),
    layers_per_block=1,
    norm_num_groups=16,
    latent_channels=8,
    sample_size=128,
)


@dataclass(frozen=True)
class VAESettings:
    """What and on what; how is `TrainConfig`'s.

    Attributes:
        model: geometry of the autoencoder.
        batch_size: crops per step.
        crop: side of the random square crops that are trained on, in pixels.
        kl_weight: of the KL divergence from a unit Gaussian, per latent value; the reconstruction
            (L1 + MSE) is per pixel value. Stable Diffusion's is in the order of 1e-6.
        decoder_only: the encoder stays as it is, so that latents keep their meaning for a U-Net that
            was trained on them while pictures become sharper.
    """

    model: VAEConfig
    batch_size: int = 32
    crop: int = 64
    kl_weight: float = 1e-5
    decoder_only: bool = False
    seed: int = 0


class VAETask(Task):
    """An autoencoder on random crops of pictures.

    Args:
        pictures: to train on.
        fresh: to validate on, whole; no more than 64 are used.
        init: folder of an autoencoder with the same geometry to start from, not from random weights.

    Raises:
        InvalidRequest: sizes that do not fit each other.
    """

    def __init__(
        self, settings: VAESettings, pictures: Pictures, fresh: Pictures, init: Path | None = None
    ) -> None:
        unit, side = settings.model.downscale, pictures.size
        if settings.crop % unit or side % unit or not settings.crop <= side:
            raise InvalidRequest(
                f"crops of {settings.crop} pixels from pictures of {side} were asked for; expected crops no "
                f"larger than the pictures, and both multiples of {unit}, the autoencoder's factor"
            )
        self.how, self.pictures = settings, pictures
        torch.manual_seed(seed_of(settings.seed))
        self.vae = AutoencoderKL(settings.model)
        if init is not None:
            self.vae.load_state_dict(read_vae(init).state_dict())
        self.modules, self.frozen = {"vae": self.vae}, {}
        if settings.decoder_only:
            self.modules = {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
            self.frozen = {"vae": self.vae.requires_grad_(False)}
        self.identity = {
            "kind": "vae",
            "model": settings.model.to_dict(),
            **({"decoder_only": True} if settings.decoder_only else {}),
        }
        self.settings = {
            "batch_size": settings.batch_size,
            "crop": settings.crop,
            "kl_weight": settings.kl_weight,
            "pictures": pictures.identity,
        }
        self.fresh_pictures = fresh

    def prepare(self) -> None:
        self.pictures.pixels(0)  # draws a cache, rather than the first batch

    @cached_property
    def fresh(self) -> Tensor:
        return from_pixels(stacked(self.fresh_pictures, 64))

    def batch(self, step: int) -> Batch:
        """{"crops": uint8 [B, crop, crop, 3]}."""
        rng = np.random.default_rng(seed_of(self.how.seed, step))
        size, crops = self.how.crop, []
        for index in rng.integers(len(self.pictures), size=self.how.batch_size):
            picture = self.pictures.pixels(int(index))
            top, left = (int(rng.integers(side - size + 1)) for side in picture.shape[:2])
            crops.append(picture[top : top + size, left : left + size])
        return {"crops": torch.from_numpy(np.stack(crops))}

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = from_pixels(batch["crops"])
        mean, logvar = (moment.float() for moment in self.vae.encode(images))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        error = self.vae.decode(mean + (0.5 * logvar).exp() * noise).float() - images
        mse = error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error.abs().mean() + mse + self.how.kl_weight * kl
        return loss, {"psnr": psnr(mse.detach()), "kl": kl.detach()}

    def validate(self) -> dict[str, float]:
        """PSNR of whole fresh pictures, in dB, through the mean latents, and how spread those are."""
        errors, latents = [], []
        for images in torch.split(self.fresh.to(self.device), 16):
            mean = self.vae.encode(images)[0].float()
            error = self.vae.decode(mean).float().clamp(-1, 1) - images
            errors.append(error.square().mean((1, 2, 3)))
            latents.append(mean)
        return {
            "psnr": float(psnr(torch.cat(errors)).mean()),
            "latent_std": float(torch.cat(latents).std()),
        }

    def samples(self) -> Image.Image:
        """Fresh pictures above their reconstructions."""
        images = self.fresh[:8].to(self.device)
        return sheet(torch.cat([images, self.vae.decode(self.vae.encode(images)[0]).float()]), columns=8)

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`folder/vae` in the hub's layout, with the scaling_factor that gives the latents unit variance."""
        config = self.how.model
        if not self.how.decoder_only:
            config = replace(config, scaling_factor=round(1 / self.validate()["latent_std"], 5))
        write_component(folder / "vae", self.vae, config.to_dict(), dtype)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], whose peak-to-peak is 2."""
    return 10 * torch.log10(4 / mse)
