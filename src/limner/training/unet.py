"""Training the U-Net on latents of captioned images, with its text encoder (Rombach et al. 2022)."""

import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner.backends.device import fast_in_bf16
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.guidance import ClassifierFreeGuidance
from limner.diffusion.objectives import loss_weight, target
from limner.diffusion.plan import make_plan
from limner.diffusion.prediction import PredictionType, scalings
from limner.diffusion.samplers import SAMPLERS
from limner.errors import InvalidRequest
from limner.generation.calls import Answer, Call, Conditioning, Denoise, Denoised
from limner.generation.passes import StepRange
from limner.generation.preview import LatentPreview
from limner.generation.run import run
from limner.generation.sampling import denoised
from limner.generation.speed import SPEEDS
from limner.images.pixels import from_pixels
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.prompts.tokenizer import Tokenizer
from limner.weights.save import save_checkpoint

from .cache import Cache, drawn
from .components import weights_digest
from .data import Dataset, seed_of, warn_of_long_captions
from .loop import Batch, Task
from .sheets import Sheet, compared, stacked

_PREVIEW_PICTURES = 16  # that the map for previews is fitted to


def picturebook_unet(latent_channels: int, context_channels: int) -> UNetConfig:
    """The small preset of the U-Net, for latents of 16 x 16."""
    return UNetConfig(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(4, 6),
        norm_num_groups=16,
        cross_attention_dim=context_channels,
        use_linear_projection=True,
        sample_size=16,
    )


PICTUREBOOK_TEXT = CLIPTextConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    hidden_act="gelu",
    projection_dim=192,
    vocab_size=1024,
    max_position_embeddings=40,
)
"""The small preset of the text encoder; its vocabulary may be smaller, if the captions fill no more."""


@dataclass(frozen=True)
class LatentSettings:
    """How a U-Net is trained on latents and captions.

    Attributes:
        batch_size: Number of images per step.
        min_snr_gamma: Gamma of the loss weights of Hang et al. 2023 (5 there); None leaves the squared error
            unweighted. Of v that is already a weight of SNR + 1 on x0, and min-SNR takes away the high noise
            at which the layout is decided.
        drop_caption: Share of captions replaced by "", for classifier-free guidance (Ho & Salimans 2022).
        timesteps: Distribution of the timesteps: "uniform", or "logit_normal" with more in the middle (Esser
            et al. 2024).
        guidance_scale: Guidance scale of the samples.
        seed: Seed of batches and captions.
    """

    batch_size: int = 64
    min_snr_gamma: float | None = None
    drop_caption: float = 0.1
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    guidance_scale: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class UNetSettings(LatentSettings):
    """What is trained.

    Attributes:
        train_text_encoder: Whether the text encoder is trained with the U-Net.
        prediction_type: Output of the U-Net.
        zero_terminal_snr: Whether the last timestep is pure noise (Lin et al. 2023).
    """

    train_text_encoder: bool = True
    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = False

    def scheduler_config(self) -> dict[str, object]:
        """The hub's `scheduler_config.json`: the noise schedule, with DPM-Solver++ 2M as the sampler."""
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            "algorithm_type": "dpmsolver++",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.zero_terminal_snr,
            "solver_order": 2,
            "steps_offset": 1,
            "timestep_spacing": "trailing",
        }


class LatentTask(Task):
    """Clean latents from noise and a caption, on latents that are encoded once into a file.

    Subclasses choose which networks are trained.

    Args:
        scheduler: Noise schedule, prediction type and sampler of the model.
        vae: Autoencoder for images and samples; not trained.
        pictures: Images to train on.
        fresh: Images to validate on and to compare samples with; the first 64 are used.
        cache: Folder for the latents.

    Raises:
        InvalidRequest: Networks or images that do not fit each other.
    """

    def __init__(
        self,
        how: LatentSettings,
        scheduler: SchedulerConfig,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        pictures: Dataset,
        fresh: Dataset,
        cache: Path,
    ) -> None:
        channels, width = vae.config.latent_channels, text_encoder.config.hidden_size
        for what, given, expected in (
            ("U-Net's in_channels", unet.config.in_channels, channels),
            ("U-Net's out_channels", unet.config.out_channels, channels),
            ("U-Net's cross_attention_dim", unet.config.cross_attention_dim, width),
            ("images' size modulo the autoencoder's factor", pictures.size % vae.config.downscale, 0),
        ):
            if given != expected:
                raise InvalidRequest(f"the {what} is {given}, but {expected} fits the other networks")
        self.how, self.scheduler, self.schedule = how, scheduler, scheduler.noise_schedule
        self.unet, self.text_encoder, self.tokenizer, self.vae = unet, text_encoder, tokenizer, vae
        self.pictures, self.fresh, self.cache = pictures, fresh, cache
        self.settings = {
            **{name: value for name, value in vars(how).items() if name != "guidance_scale"},
            "pictures": pictures.identity,
        }

    def prepare(self) -> None:
        """Encode the images, those to train on into a file."""
        warn_of_long_captions(self.pictures, self.tokenizer)
        config, size = self.vae.config, self.pictures.size // self.vae.config.downscale
        self.latents = Cache(
            self.cache / "latents.f16",
            {
                "encoder": weights_digest(self.vae.encoder, self.vae.quant_conv),
                "scaling_factor": config.scaling_factor,
            },
            [self.pictures.key(index) for index in range(len(self.pictures))],
            (config.latent_channels, size, size),
            np.float16,
            self._encoded,
        )
        self.fresh_pictures = from_pixels(stacked(self.fresh, 64))
        self.fresh_latents = self._encode(self.fresh_pictures).float()
        self.fresh_captions = [
            self.fresh.caption(i, random.Random(i)) for i in range(len(self.fresh_latents))
        ]

    def _encoded(self, blocks: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float16]]:
        for pixels in drawn(self.pictures, blocks):
            yield self._encode(from_pixels(torch.from_numpy(pixels))).numpy()

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to scaled mean latents [N, C, h, w], float16 on the CPU."""
        device = next(self.vae.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_in_bf16(device)):
            means = [self.vae.encode(part.to(device))[0] for part in torch.split(images, 32)]
        return (torch.cat(means).float() * self.vae.config.scaling_factor).half().cpu()

    def _ids(self, captions: list[str]) -> Tensor:
        return torch.tensor([self.tokenizer.encode_padded(caption)[0] for caption in captions])

    def batch(self, index: int) -> Batch:
        """{"latents": float16 [B, C, h, w], "ids": int64 [B, T]}; captions are chosen at random for each
        batch."""
        rng = random.Random(seed_of(self.how.seed, index))
        indices = [rng.randrange(len(self.pictures)) for _ in range(self.how.batch_size)]
        captions = [
            "" if rng.random() < self.how.drop_caption else self.pictures.caption(chosen, rng)
            for chosen in indices
        ]
        return {**self._rows(indices), "ids": self._ids(captions)}

    def _rows(self, indices: list[int]) -> Batch:
        """The rows of images to train on, without captions."""
        return {"latents": torch.from_numpy(self.latents[indices])}

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        shape, device = batch["latents"].shape, batch["latents"].device
        noise = torch.randn(shape, generator=generator, device=device)
        if self.how.timesteps == "uniform":
            share = torch.rand(len(noise), generator=generator, device=device)
        else:
            share = torch.randn(len(noise), generator=generator, device=device).sigmoid()
        timesteps = (share * len(self.schedule)).long().clamp(max=len(self.schedule) - 1)
        error = self._error(batch, noise, timesteps)
        weight = loss_weight(self.schedule, self.scheduler.prediction_type, timesteps, self.how.min_snr_gamma)
        return (error * weight).mean(), {"error": error.mean().detach()}

    def _error(self, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of each row [B]."""
        x0 = batch["latents"].float()
        noisy = self.schedule.add_noise(x0, noise, timesteps)
        context, _ = self.text_encoder(batch["ids"])
        answer = self._answer(noisy, timesteps, context, batch).float()
        wanted = target(self.schedule, self.scheduler.prediction_type, x0, noise, timesteps)
        return (answer - wanted).square().mean((1, 2, 3))

    def _answer(self, x: Tensor, timesteps: Tensor, context: Tensor, batch: Batch) -> Tensor:
        """The U-Net's output [B, C, h, w]; subclasses may use more of the batch."""
        answer: Tensor = self.unet(x, timesteps, context)
        return answer

    def validate(self) -> dict[str, float]:
        """The error on fresh images, with fixed noise and evenly spread timesteps."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.fresh_latents.shape, generator=generator)
        timesteps = torch.linspace(0, len(self.schedule) - 1, len(noise)).long()
        batch = {name: value.to(self.device) for name, value in self._fresh_batch().items()}
        return {"error": float(self._error(batch, noise.to(self.device), timesteps.to(self.device)).mean())}

    def _fresh_batch(self) -> Batch:
        """As `batch`, for the fresh images."""
        return {"latents": self.fresh_latents, "ids": self._ids(self.fresh_captions)}

    def samples(self) -> Sheet:
        """Fresh images; below each an image generated from its caption."""
        count = min(16, len(self.fresh_captions))
        return compared([self.fresh_pictures[:count], self.draw(self.fresh_captions[:count]).cpu()])

    def draw(
        self, prompts: list[str], steps: int = 20, seed: int = 0, rows: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One image for each prompt, [B, 3, H, W], sampled as by `limner generate`, in one batch.

        Args:
            rows: Further entries of a batch for `_answer`, with a row for each prompt.
        """
        plan = make_plan(self.scheduler, steps)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(prompts), *self.fresh_latents.shape[1:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        context, _ = self.text_encoder(self._ids(["" for _ in prompts] + prompts).to(self.device))
        negative, positive = map(Conditioning, context.chunk(2))
        guidance = ClassifierFreeGuidance(self.how.guidance_scale)
        x = noise() * plan.start_scale
        walk = denoised(
            SAMPLERS[plan.sampler](x, plan.sigmas, noise, **plan.options),
            plan,
            (StepRange(steps, {}, guidance),),
            ({"positive": positive, "negative": negative},),
            SPEEDS["exact"],
            Denoise(x, plan.sigmas[0], 0.0, {}, guidance, 0, steps),
        )
        extra = {name: value.to(self.device) for name, value in (rows or {}).items()}
        latents = run(walk, _Sampled(self, extra)) / plan.end_scale / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part).float() for part in torch.split(latents, 16)])


class _Sampled:
    """Answers the calls of a sampler by the networks in training.

    Args:
        rows: Further entries of a batch for the U-Net, with a row for each image.
    """

    def __init__(self, task: LatentTask, rows: Mapping[str, Tensor]) -> None:
        self.task, self.rows = task, rows

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        return [Answer(self._denoised(call)) for call in calls if isinstance(call, Denoise)]

    def _denoised(self, call: Denoise) -> Denoised:
        scaling = scalings(self.task.scheduler.prediction_type, call.sigma)
        count = len(call.branches)
        context = torch.cat([call.conditionings[branch].context for branch in call.branches])
        outputs = self.task._answer(
            (scaling.c_in * call.x).repeat(count, 1, 1, 1),
            torch.full((len(context),), call.timestep, device=call.x.device),
            context,
            {name: torch.cat([value] * count) for name, value in self.rows.items()},
        )
        estimates = [scaling.denoised(call.x, output) for output in outputs.float().chunk(count)]
        by_branch = dict(zip(call.branches, estimates, strict=True))
        return Denoised(call.guidance.combine(by_branch, call.x, call.sigma, scaling))


class UNetTask(LatentTask):
    """A U-Net, and usually its text encoder. Arguments and errors are those of `LatentTask`."""

    how: UNetSettings

    def __init__(
        self,
        settings: UNetSettings,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        pictures: Dataset,
        fresh: Dataset,
        cache: Path,
    ) -> None:
        scheduler = SchedulerConfig.from_dict(settings.scheduler_config())
        super().__init__(settings, scheduler, unet, text_encoder, tokenizer, vae, pictures, fresh, cache)
        self.modules = {"unet": unet}
        self.frozen = {"vae": vae}
        (self.modules if settings.train_text_encoder else self.frozen)["text_encoder"] = text_encoder
        self.identity = {
            "kind": "unet",
            "unet": unet.config.to_dict(),
            "text_encoder": text_encoder.config.to_dict(),
            "train_text_encoder": settings.train_text_encoder,
        }

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """A whole checkpoint in the hub's layout, which `limner.load` and diffusers open."""
        with tempfile.TemporaryDirectory() as tokenizer:
            self.tokenizer.save(tokenizer)
            save_checkpoint(
                folder,
                unet=self.unet,
                vae=self.vae,
                text_encoder=self.text_encoder,
                tokenizer=Path(tokenizer),
                scheduler_config=self.how.scheduler_config(),
                card=self._card(),
                dtype=dtype,
                overwrite=True,
            )

    def _preview(self) -> LatentPreview:
        """The map from latents to previews, fitted to what the autoencoder makes of fresh images."""
        latents = self._encode(from_pixels(stacked(self.fresh, _PREVIEW_PICTURES))).float()
        scaled = (latents / self.vae.config.scaling_factor).to(next(self.vae.parameters()).device)
        images = torch.cat([self.vae.decode(part).float().cpu() for part in torch.split(scaled, 4)])
        return LatentPreview.fit(latents, images)

    def _card(self) -> dict[str, Any]:
        """The content of `limner.json`: the guidance scale of the samples, the map for previews, the world of
        the images and, if the vocabulary was made from their captions, all words of these."""
        card: dict[str, Any] = {
            "defaults": {"guidance_scale": self.how.guidance_scale},
            "preview": self._preview().to_dict(),
        }
        if self.tokenizer.vocab_size <= PICTUREBOOK_TEXT.vocab_size:
            words = (
                word
                for caption in _captions(self.pictures)
                for word in re.findall(r"[a-z]+", caption.lower())
            )
            card["words"] = sorted(set(words))
        if "world" in self.pictures.identity:
            card["world"] = self.pictures.identity["world"]
        return card


def _captions(pictures: Dataset) -> Iterator[str]:
    """One caption of each image, of at most 20,000."""
    return (pictures.caption(i, random.Random(i)) for i in range(min(20_000, len(pictures))))


def train_tokenizer(pictures: Dataset, folder: Path, vocab_size: int, max_length: int) -> Tokenizer:
    """The tokenizer in `folder`, or a new one from the captions of at most 20,000 images, kept there."""
    if (folder / "vocab.json").exists():
        return Tokenizer.from_folder(folder)
    tokenizer = Tokenizer.train(_captions(pictures), vocab_size=vocab_size, max_length=max_length)
    tokenizer.save(folder)
    return tokenizer
