"""`python -m benchmarks.training`: images per second of a training loop.

Limner's loop for the U-Net and its text encoder, against an equivalent loop on diffusers' U-Net and
transformers' text encoder. Both start from the shipped model's weights and use the same batches, timesteps
and noise, so equal losses show that they do the same work. The other loop has its batches prepared in
advance; Limner's makes them during training.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.allocator import keep_freed_memory
from limner.catalogue.shipped import SHIPPED
from limner.prompts.tokenizer import Tokenizer
from limner.training.components import read_text_encoder, read_unet, read_vae
from limner.training.data import WorldPictures, seed_of
from limner.training.loop import Batch, TrainConfig, train
from limner.training.unet import UNetSettings, UNetTask

from .contestant import Contestant
from .harness import Chart, Report, Spread, Table, alternate, parser, ratio, say

_FOLDER = SHIPPED["picturebook"]
_PICTURES = 512
_UNCOUNTED = 2  # steps at the start of each turn


def config_of(steps: int) -> TrainConfig:
    """The configuration of both loops. Neither writes anything before the last step."""
    return TrainConfig(steps=steps, lr=1e-4, lr_schedule="constant", warmup=0, checkpoint_minutes=1e9)


class Watched(UNetTask):
    """Further training of the shipped model, with the times at which losses are computed.

    The time after the last step does not count.
    """

    def __init__(self, folder: Path, batch_size: int, pictures: int) -> None:
        super().__init__(
            UNetSettings(batch_size),
            read_unet(_FOLDER / "unet"),
            read_text_encoder(_FOLDER / "text_encoder"),
            Tokenizer.from_folder(_FOLDER / "tokenizer"),
            read_vae(_FOLDER / "vae"),
            WorldPictures(pictures),
            WorldPictures(8, split="fresh"),
            folder / "cache",
        )
        self.began: list[float] = []
        self.losses: list[Tensor] = []

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.began.append(time.perf_counter())
        loss, metrics = super().loss(batch, generator)
        self.losses.append(loss.detach())
        return loss, metrics

    def validate(self) -> dict[str, float]:
        return {}

    def samples(self) -> Image.Image | None:
        return None

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        pass


class Limner:
    """`limner.training.loop.train`, unchanged."""

    def __init__(self, folder: Path, batch_size: int, pictures: int) -> None:
        keep_freed_memory()
        self.folder, self.arguments = folder, (folder, batch_size, pictures)

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Images per second, and the losses."""
        task = Watched(*self.arguments)
        # The beginning of one step more is the end of the last that counts.
        train(task, config_of(steps + 1), self.folder / "run", resume=False)
        return speed(task.began, task.how.batch_size), [float(loss) for loss in task.losses[:steps]]


class Diffusers:
    """The loop of diffusers' examples, computing the same as Limner's."""

    def __init__(self, folder: Path, batch_size: int, pictures: int) -> None:
        from diffusers import DDPMScheduler

        keep_freed_memory()
        self.task = Watched(folder, batch_size, pictures)
        self.task.prepare()  # the latents, which both read from one file
        self.batches: list[Batch] = []
        self.noise_scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
        )

    def train(self, steps: int) -> tuple[float, list[float]]:
        """As `Limner.train`."""
        from diffusers import UNet2DConditionModel
        from diffusers.training_utils import EMAModel
        from transformers import CLIPTextModel

        config, schedule = config_of(steps), self.noise_scheduler
        self.batches += [self.task.batch(step) for step in range(len(self.batches), steps)]
        unet = UNet2DConditionModel.from_pretrained(_FOLDER / "unet", torch_dtype=torch.float32).train()
        text_encoder = CLIPTextModel.from_pretrained(_FOLDER / "text_encoder").float().train()
        params = [*unet.parameters(), *text_encoder.parameters()]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )
        ema = EMAModel(params, decay=config.ema_decay, foreach=True)
        generator = torch.Generator()
        began: list[float] = []
        losses: list[Tensor] = []
        for step, batch in enumerate(self.batches[:steps]):
            began.append(time.perf_counter())
            generator.manual_seed(seed_of(config.seed, step, 0))
            with torch.autocast("cpu", torch.bfloat16):
                latents = batch["latents"].float()
                noise = torch.randn(latents.shape, generator=generator)
                timesteps = (torch.rand(len(latents), generator=generator) * 1000).long()
                noisy = schedule.add_noise(latents, noise, timesteps)
                context = text_encoder(batch["ids"])[0]
                answer = unet(noisy, timesteps, context, return_dict=False)[0]
                loss = F.mse_loss(answer.float(), schedule.get_velocity(latents, noise, timesteps))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(params)
            losses.append(loss.detach())
        began.append(time.perf_counter())
        return speed(began, self.task.how.batch_size), [float(value) for value in losses]


def speed(began: Sequence[float], batch_size: int) -> float:
    """Images per second, from the times at which steps start, without the first few."""
    counted = began[_UNCOUNTED:]
    return batch_size * (len(counted) - 1) / (counted[-1] - counted[0])


def report(options: argparse.Namespace, answers: dict[str, list[tuple[float, list[float]]]]) -> Report:
    rates = {name: [rate for rate, _ in turns] for name, turns in answers.items()}
    losses = {name: turns[-1][1] for name, turns in answers.items()}
    found = Report(
        "training",
        "Training",
        f"The shipped model's U-Net and text encoder, batches of {options.batch}, bf16 autocast, AdamW, "
        f"gradient clipping and an average of the weights: {options.steps} steps a turn, of which the first "
        f"{_UNCOUNTED} do not count. Medians with the extremes; the ratio is of the same round, with a "
        "95 % interval.",
        data={"pictures per second": rates, "losses": losses},
    )
    rows = [
        (
            name,
            Spread.of(rates[name]).text(),
            ratio(rates[name], rates["diffusers"]).text("×"),
            f"{losses[name][0]:.5f}",
            f"{losses[name][-1]:.5f}",
        )
        for name in answers
    ]
    columns = ("", "pictures/s", "it ÷ diffusers", "first loss", "last loss")
    found.tables.append(Table("Pictures per second", columns, rows))
    found.charts.append(Chart("Training", "pictures/s", {n: Spread.of(rate) for n, rate in rates.items()}))
    apart = max(abs(a - b) / b for a, b in zip(losses["limner"], losses["diffusers"], strict=True))
    found.notes.append(f"The losses of the same step differ by at most {apart:.1e} of themselves.")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--batch", type=int, default=64, help="images per step")
    options.add_argument("--steps", type=int, default=12, help="steps of each turn")
    given = options.parse_args(argv)
    rounds, pictures = given.rounds, _PICTURES
    if given.quick:
        rounds, given.batch, given.steps, pictures = 1, 2, 4, 8
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (Path(scratch), given.batch, pictures)
        say("encoding pictures")
        with (
            Contestant(partial(Diffusers, *arguments)) as diffusers,
            Contestant(partial(Limner, *arguments)) as limner,
        ):
            turns: dict[str, Callable[[], Any]] = {
                "diffusers": partial(diffusers.ask, "train", given.steps),
                "limner": partial(limner.ask, "train", given.steps),
            }
            say("training")
            answers = alternate(turns, rounds, warmup=0)
    report(given, answers).publish(given)


if __name__ == "__main__":
    main()
