"""What a network is trained to predict, and how its squared error is weighted.

One training step, for latents `x0` [B, C, h, w]:

    timesteps = torch.randint(len(schedule), (B,))
    noise = torch.randn_like(x0)
    prediction = unet(schedule.add_noise(x0, noise, timesteps), timesteps, context)
    error = (prediction - target(schedule, "v_prediction", x0, noise, timesteps)) ** 2
    loss = (error.mean(dim=(1, 2, 3)) * loss_weight(schedule, "v_prediction", timesteps, gamma=5.0)).mean()
"""

import torch
from torch import Tensor

from limner.diffusion.prediction import PredictionType
from limner.diffusion.schedule import NoiseSchedule


def target(
    schedule: NoiseSchedule, prediction_type: PredictionType, x0: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the output that the network should give for `schedule.add_noise(x0, noise, timesteps)`.

    Args:
        x0: clean latents [B, ...].
        noise: The unit normal noise that was added, of the same shape.
        timesteps: integers in [0, len(schedule)), [B].

    Returns:
        [B, ...] in the dtype of `x0`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        signal_rate, noise_rate = schedule.rates_at(timesteps, x0)
        return (signal_rate * noise - noise_rate * x0).to(x0.dtype)
    raise ValueError(f"prediction_type is {prediction_type!r}; expected epsilon, v_prediction or sample")


def loss_weight(
    schedule: NoiseSchedule, prediction_type: PredictionType, timesteps: Tensor, gamma: float | None
) -> Tensor:
    """Return the min-SNR-gamma weight of each row's squared error (Hang et al. 2023, arXiv:2303.09556).

    The paper weights the error of x0 by min(SNR, gamma), SNR = a / (1 - a). An error in epsilon is one in
    x0 times sqrt(SNR), an error in v one in x0 times sqrt(SNR + 1), so the weight is divided by that factor
    squared.

    Args:
        timesteps: integers in [0, len(schedule)), [B].
        gamma: 5 in the paper; None leaves the error unweighted.

    Returns:
        float32 [B], on the device of `timesteps`.
    """
    if gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal_rate, noise_rate = schedule.rates_at(timesteps, torch.empty(0, device=timesteps.device))
    snr = (signal_rate / noise_rate) ** 2
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)  # = min(SNR, gamma) / SNR, and 1 rather than 0 / 0 at zero SNR
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1.0)
    raise ValueError(f"prediction_type is {prediction_type!r}; expected epsilon, v_prediction or sample")


def offset_noise(noise: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Return noise whose mean per channel also varies, so that very dark and very bright images are learnt.

    Source: Guttenberg 2023, "Diffusion with offset noise". `strength` is the standard deviation of the
    added mean; 0.05 to 0.1 is usual, and 0 returns `noise` itself.

    Args:
        noise: unit normal [B, C, h, w].
        generator: a generator on the device of `noise`.
    """
    if strength == 0.0:
        return noise
    shift = torch.randn(
        *noise.shape[:2], 1, 1, generator=generator, device=noise.device, dtype=noise.dtype
    )  # [B, C, 1, 1]
    return noise + strength * shift
