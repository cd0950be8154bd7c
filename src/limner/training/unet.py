"""Training the U-Net on latents of captioned pictures, with its text encoder (Rombach et al. 2022)."""

import hashlib
import random
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.objectives import loss_weight, target
from limner.diffusion.plan import make_plan
from limner.diffusion.prediction import PredictionType, scalings
from limner.diffusion.samplers import SAMPLERS
from limner.errors import InvalidRequest
from limner.nn.clip import CLIPTextConfig, CLIPTextModel
from limner.nn.unet import UNet2DConditionModel, UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.pipeline.images import from_pixels
from limner.prompts.tokenizer import Tokenizer
from limner.weights.save import save_checkpoint

from .data import Cache, Pictures, drawn, seed_of, warn_of_long_captions
from .loop import Batch, Task
from .sheets import compared, stacked


def picturebook_unet(latent_channels: int, context_channels: int) -> UNetConfig:
    """The small U-Net for latents of 16 x 16."""
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
"""The small text encoder; its vocabulary is as large as the captions fill it."""


@dataclass(frozen=True)
class LatentSettings:
    """How latents and captions are shown to the networks; the rest of how is `TrainConfig`'s.

    Attributes:
        min_snr_gamma: weights of Hang et al. 2023 (5 there); None leaves the squared error unweighted. For v
            that is already a weight of SNR + 1 on x0, and min-SNR starves the high noise that decides what
            stands where.
        drop_caption: share of captions replaced by "", for classifier-free guidance (Ho & Salimans 2022).
        timesteps: "uniform", or "logit_normal" with more in the middle (Esser et al. 2024).
        guidance_scale: of the samples.
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
        train_text_encoder: the text encoder learns along; otherwise it stays as it is.
    """

    train_text_encoder: bool = True
    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = False

    def scheduler_config(self) -> dict[str, object]:
        """The hub's `scheduler_config.json`: the noise schedule, and DPM-Solver++ 2M to draw by."""
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

    What of the networks is trained is the subclass's to say.

    Args:
        scheduler: of the model: its noise schedule, what the U-Net predicts, and how samples are drawn.
        vae: encodes the pictures and decodes the samples; not trained.
        pictures, fresh: to train on; to validate on and to compare samples with.
        cache: folder for the latents.

    Raises:
        InvalidRequest: networks or pictures that do not fit each other.
    """

    def __init__(
        self,
        how: LatentSettings,
        scheduler: SchedulerConfig,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        pictures: Pictures,
        fresh: Pictures,
        cache: Path,
    ) -> None:
        channels, width = vae.config.latent_channels, text_encoder.config.hidden_size
        for what, given, expected in (
            ("U-Net's in_channels", unet.config.in_channels, channels),
            ("U-Net's out_channels", unet.config.out_channels, channels),
            ("U-Net's cross_attention_dim", unet.config.cross_attention_dim, width),
            ("pictures' size modulo the autoencoder's factor", pictures.size % vae.config.downscale, 0),
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
        """Encode the pictures, those of training into a file."""
        warn_of_long_captions(self.pictures, self.tokenizer)
        digest = hashlib.sha256()
        for parameter in (*self.vae.encoder.parameters(), *self.vae.quant_conv.parameters()):
            digest.update(parameter.detach().cpu().numpy().tobytes())
        what = {k: v for k, v in self.pictures.identity.items() if k != "count"} | {
            "encoder": digest.hexdigest()
        }
        config, size = self.vae.config, self.pictures.size // self.vae.config.downscale
        shape = (config.latent_channels, size, size)
        self.latents = Cache(
            self.cache / "latents.f16", what, len(self.pictures), shape, np.float16, self._encoded
        ).rows
        self.fresh_pictures = from_pixels(stacked(self.fresh, 64))
        self.fresh_latents = self._encode(self.fresh_pictures).float()
        self.fresh_captions = [
            self.fresh.caption(i, random.Random(i)) for i in range(len(self.fresh_latents))
        ]

    def _encoded(self, blocks: list[range]) -> Iterator[NDArray[np.float16]]:
        for pixels in drawn(self.pictures, blocks):
            yield self._encode(from_pixels(torch.from_numpy(pixels))).numpy()

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to scaled mean latents [N, C, h, w], float16 on the CPU."""
        device = next(self.vae.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            means = [self.vae.encode(part.to(device))[0] for part in torch.split(images, 32)]
        return (torch.cat(means).float() * self.vae.config.scaling_factor).half().cpu()

    def _ids(self, captions: list[str]) -> Tensor:
        return torch.tensor([self.tokenizer.encode_padded(caption)[0] for caption in captions])

    def batch(self, step: int) -> Batch:
        """{"latents": float16 [B, C, h, w], "ids": int64 [B, T]}; a caption is phrased anew each time."""
        rng = random.Random(seed_of(self.how.seed, step))
        indices = [rng.randrange(len(self.pictures)) for _ in range(self.how.batch_size)]
        captions = [
            "" if rng.random() < self.how.drop_caption else self.pictures.caption(index, rng)
            for index in indices
        ]
        return {**self._rows(indices), "ids": self._ids(captions)}

    def _rows(self, indices: list[int]) -> Batch:
        """What pictures of training are to the networks, but for their captions."""
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
        """What the U-Net predicts, which is told no more than this of a batch."""
        answer: Tensor = self.unet(x, timesteps, context)
        return answer

    def validate(self) -> dict[str, float]:
        """The error on fresh pictures, at the same noise and evenly spread timesteps each time."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.fresh_latents.shape, generator=generator)
        timesteps = torch.linspace(0, len(self.schedule) - 1, len(noise)).long()
        batch = {name: value.to(self.device) for name, value in self._fresh_batch().items()}
        return {"error": float(self._error(batch, noise.to(self.device), timesteps.to(self.device)).mean())}

    def _fresh_batch(self) -> Batch:
        """As `batch`, of the fresh pictures."""
        return {"latents": self.fresh_latents, "ids": self._ids(self.fresh_captions)}

    def samples(self) -> Image.Image:
        """Fresh pictures, and below each what is drawn for its caption."""
        count = min(16, len(self.fresh_captions))
        return compared([self.fresh_pictures[:count], self.draw(self.fresh_captions[:count]).cpu()])

    def draw(
        self, prompts: list[str], steps: int = 20, seed: int = 0, told: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One picture for each prompt, [B, 3, H, W]; the short form of what `limner.pipeline` does.

        Args:
            told: what else of a batch `_answer` takes, a row for each prompt.
        """
        plan = make_plan(self.scheduler, steps, sampler=self.scheduler.sampler or "dpmpp_2m")
        generator = torch.Generator().manual_seed(seed)
        shape = (len(prompts), *self.fresh_latents.shape[1:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        ids = self._ids(["" for _ in prompts] + prompts).to(self.device)
        context, _ = self.text_encoder(ids)
        rows = {name: torch.cat([value, value]).to(self.device) for name, value in (told or {}).items()}
        sampler = SAMPLERS[plan.sampler](noise() * plan.start_scale, plan.sigmas, noise, **plan.options)
        x, sigma = next(sampler)
        while True:
            scaling = scalings(self.scheduler.prediction_type, sigma)
            timesteps = torch.full((len(ids),), plan.timestep(sigma), device=self.device)
            answer = self._answer((scaling.c_in * x).repeat(2, 1, 1, 1), timesteps, context, rows).float()
            plain, prompted = answer.chunk(2)
            guided = plain + self.how.guidance_scale * (prompted - plain)
            try:
                x, sigma = sampler.send(scaling.denoised(x, guided))
            except StopIteration as done:
                latents: Tensor = done.value / plan.end_scale / self.vae.config.scaling_factor
                return torch.cat([self.vae.decode(part).float() for part in torch.split(latents, 16)])


class UNetTask(LatentTask):
    """A U-Net, and mostly its text encoder. Arguments and errors as of `LatentTask`."""

    how: UNetSettings

    def __init__(
        self,
        settings: UNetSettings,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        pictures: Pictures,
        fresh: Pictures,
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

    def _card(self) -> dict[str, Any]:
        """The guidance it was watched with, what it was taught to draw, and, where its vocabulary came
        from these captions, every word of them."""
        card: dict[str, Any] = {"defaults": {"guidance_scale": self.how.guidance_scale}}
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


def _captions(pictures: Pictures) -> Iterator[str]:
    """Of up to 20,000 pictures, each phrased once."""
    return (pictures.caption(i, random.Random(i)) for i in range(min(20_000, len(pictures))))


def train_tokenizer(pictures: Pictures, folder: Path, vocab_size: int, max_length: int) -> Tokenizer:
    """A vocabulary from the captions of up to 20,000 pictures, kept in `folder`."""
    if (folder / "vocab.json").exists():
        return Tokenizer.from_folder(folder)
    tokenizer = Tokenizer.train(_captions(pictures), vocab_size=vocab_size, max_length=max_length)
    tokenizer.save(folder)
    return tokenizer
