"""Training the autoencoder (Kingma & Welling 2014; Rombach et al. 2022, section 3.1).

The loss is reconstruction (L1 + MSE) + kl_weight * KL, on request with a perceptual distance and, late, an
adversarial loss.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.errors import InvalidRequest
from limner.images.pixels import from_pixels
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig

from .adversarial import PatchDiscriminator, balance, decoder_loss, discriminator_loss
from .components import read_vae, weights_digest, write_component
from .data import Dataset, seed_of
from .loop import Batch, Task
from .perceptual import FeatureNetwork
from .sheets import Sheet, sheet, stacked

PICTUREBOOK = VAEConfig(
    block_out_channels=(32, 64, 96, 128),
    layers_per_block=1,
    norm_num_groups=16,
    latent_channels=8,
    sample_size=128,
)


_ADVERSARIAL_RISE = 1000  # batches over which the adversarial loss rises to its weight


@dataclass(frozen=True)
class VAESettings:
    """What is trained, and on what.

    Attributes:
        model: Geometry of the autoencoder.
        batch_size: Crops per step.
        crop: Side of the random square crops, in pixels.
        kl_weight: Weight of the KL divergence from a unit Gaussian, per latent value; the reconstruction
            loss (L1 + MSE) is per pixel value. Stable Diffusion's is in the order of 1e-6.
        perceptual_weight: Weight of the perceptual distance, where a feature network is given.
        adversarial_from: First batch with the adversarial loss, which comes late, once colours and shapes
            stand; None for a training without it.
        adversarial_weight: Weight of the adversarial loss after its gradient is brought to the size of the
            reconstruction's; it rises to this over the first thousand batches.
        decoder_only: Whether the encoder stays as it is, so that latents keep their meaning for a U-Net
            that was trained on them.
        seed: Seed of weights and batches.
    """

    model: VAEConfig
    batch_size: int = 32
    crop: int = 64
    kl_weight: float = 1e-5
    perceptual_weight: float = 0.1
    adversarial_from: int | None = None
    adversarial_weight: float = 0.5
    decoder_only: bool = False
    seed: int = 0


class VAETask(Task):
    """An autoencoder on random crops of images.

    Args:
        pictures: Dataset to train on.
        fresh: Dataset to validate on, whole; the first 64 are used.
        init: Folder of an autoencoder with the same geometry to start from; None starts from random weights.
        features: Feature network of the perceptual loss; None trains without it.

    Raises:
        InvalidRequest: Sizes that do not fit each other.
    """

    def __init__(
        self,
        settings: VAESettings,
        pictures: Dataset,
        fresh: Dataset,
        init: Path | None = None,
        features: FeatureNetwork | None = None,
    ) -> None:
        unit, side = settings.model.downscale, pictures.size
        if settings.crop % unit or side % unit or not settings.crop <= side:
            raise InvalidRequest(
                f"crops of {settings.crop} pixels from images of {side} were asked for; expected crops no "
                f"larger than the images, and both multiples of {unit}, the autoencoder's factor"
            )
        self.how, self.pictures, self.fresh_pictures, self.features = settings, pictures, fresh, features
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
        if features is not None:
            self.frozen["features"] = features
            self.settings["perceptual_weight"] = settings.perceptual_weight
            self.settings["features"] = weights_digest(features)
        if settings.adversarial_from is not None:
            self.modules["discriminator"] = self.discriminator = PatchDiscriminator()
            self.identity["adversarial"] = True
            self.settings["adversarial_from"] = settings.adversarial_from
            self.settings["adversarial_weight"] = settings.adversarial_weight

    def prepare(self) -> None:
        self.pictures.pixels(0)  # fills a cache before the first batch waits for it

    @cached_property
    def fresh(self) -> Tensor:
        return from_pixels(stacked(self.fresh_pictures, 64))

    def batch(self, index: int) -> Batch:
        """{"crops": uint8 [B, crop, crop, 3]} and, once the adversarial loss is on, its weight."""
        rng = np.random.default_rng(seed_of(self.how.seed, index))
        size, crops = self.how.crop, []
        for chosen in rng.integers(len(self.pictures), size=self.how.batch_size):
            picture = self.pictures.pixels(int(chosen))
            top, left = (int(rng.integers(side - size + 1)) for side in picture.shape[:2])
            crops.append(picture[top : top + size, left : left + size])
        batch = {"crops": torch.from_numpy(np.stack(crops))}
        start = self.how.adversarial_from
        if start is not None and index >= start:
            rise = min(1.0, (index - start) / _ADVERSARIAL_RISE)
            batch["adversarial_weight"] = torch.tensor(rise * self.how.adversarial_weight)
        return batch

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = from_pixels(batch["crops"])
        mean, logvar = (moment.float() for moment in self.vae.encode(images))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise).float()
        error = decoded - images
        mse = error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        metrics = {"psnr": psnr(mse), "kl": kl}
        reconstruction = error.abs().mean() + mse
        if self.features is not None:
            metrics["perceptual"] = self.features.distance(decoded, images)
            reconstruction = reconstruction + self.how.perceptual_weight * metrics["perceptual"]
        loss = reconstruction + self.how.kl_weight * kl
        if (weight := batch.get("adversarial_weight")) is not None:
            metrics["discriminator"] = discriminator_loss(self.discriminator, images, decoded)
            metrics["adversarial"] = decoder_loss(self.discriminator, decoded)
            factor = balance(reconstruction, metrics["adversarial"], self.vae.decoder.conv_out.weight)
            loss = loss + weight * factor * metrics["adversarial"] + metrics["discriminator"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def validate(self) -> dict[str, float]:
        """PSNR in dB of whole fresh images through the mean latents, the latents' standard deviation and,
        with a feature network, the perceptual distance."""
        errors, latents, distances = [], [], []
        for images in torch.split(self.fresh.to(self.device), 8):
            mean = self.vae.encode(images)[0].float()
            decoded = self.vae.decode(mean).float().clamp(-1, 1)
            errors.append((decoded - images).square().mean((1, 2, 3)))
            latents.append(mean)
            if self.features is not None:
                distances.append(self.features.distance(decoded, images) * len(images))
        figures = {
            "psnr": float(psnr(torch.cat(errors)).mean()),
            "latent_std": float(torch.cat(latents).std()),
        }
        if distances:
            figures["perceptual"] = float(torch.stack(distances).sum()) / len(self.fresh)
        return figures

    def samples(self) -> Sheet:
        """Fresh images above their reconstructions."""
        images = self.fresh[:8].to(self.device)
        return sheet(torch.cat([images, self.vae.decode(self.vae.encode(images)[0]).float()]), columns=8)

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`folder/vae` in the hub's layout, with the scaling_factor that gives the latents unit variance."""
        config = self.how.model
        if not self.how.decoder_only:
            config = replace(config, scaling_factor=round(1 / self.validate()["latent_std"], 5))
        write_component(folder / "vae", self.vae, config.to_dict(), dtype)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], whose peak-to-peak is 2."""
    return 10 * torch.log10(4 / mse)
