"""Adversarial loss for an autoencoder: a discriminator of patches, and hinge losses.

After VQGAN (Esser et al. 2021, section 3.1), which Stable Diffusion's autoencoder follows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Tells real patches from decoded ones (Isola et al. 2017): [B, 3, H, W] -> [B, 1, h, w]."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *widths), widths, strict=False):
            norm = [nn.GroupNorm(8, width)] if before != 3 else []
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), *norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits: above 0 where a patch looks real."""
        logits: Tensor = self.layers(images)
        return logits


def discriminator_loss(discriminator: nn.Module, real: Tensor, decoded: Tensor) -> Tensor:
    """Hinge loss that trains the discriminator alone."""
    real_logits, decoded_logits = discriminator(real), discriminator(decoded.detach())
    loss: Tensor = (F.relu(1 - real_logits).mean() + F.relu(1 + decoded_logits).mean()) / 2
    return loss


def decoder_loss(discriminator: nn.Module, decoded: Tensor) -> Tensor:
    """Loss that trains what made `decoded` to look real; the discriminator gets no gradient."""
    fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    logits: Tensor = torch.func.functional_call(discriminator, fixed, (decoded,))
    return -logits.mean()


def balance(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Factor that gives both losses equal gradients at the decoder's last layer; at most 10,000."""
    wanted, given = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    )
    factor: Tensor = wanted / (given + 1e-4)
    return factor.clamp(max=1e4).detach()
