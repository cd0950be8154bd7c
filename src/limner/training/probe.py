"""Training the probe, on pictures drawn as they are needed and never twice.

Centres are learned by a penalty-reduced focal loss (Law & Deng 2018; Zhou et al. 2019), sides by L1
distance and the rest by cross-entropy.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from limner.picturebook.evaluation import judge, tally
from limner.picturebook.probe import STRIDE, Probe, ProbeConfig, Seen, save_probe, see
from limner.picturebook.world import Scene, World, regions, render
from limner.pipeline.images import from_pixels

from .data import seed_of
from .loop import Batch, Task
from .sheets import sheet

_SIZE = 128
_NEAR = 1.0  # cells whose centre is nearer to a thing's, in cells, learn what it is
_SPREAD = 0.7  # standard deviation of the bump around a centre, in cells
_FRESH = 256
_FRESH_KEY = 1  # parts fresh scenes from those trained on


@dataclass(frozen=True)
class ProbeSettings:
    """What and on what; how is `TrainConfig`'s.

    Attributes:
        model: geometry and vocabulary.
        world: what is drawn; its held-out combinations too, for the probe must know what it judges.
        batch_size: pictures per step.
        shift: pictures are moved by up to so many pixels each way.
        noise: largest standard deviation of the noise added to a picture, whose values span 2.
    """

    model: ProbeConfig
    world: World
    batch_size: int = 64
    shift: int = 4
    noise: float = 0.1
    seed: int = 0


class ProbeTask(Task):
    """A probe on pictures of the world, lightly moved, blurred and made noisy, so that a picture that is
    not quite as the renderer would draw it is still read."""

    def __init__(self, settings: ProbeSettings) -> None:
        self.how = settings
        torch.manual_seed(seed_of(settings.seed))
        self.probe = Probe(settings.model)
        self.modules, self.frozen = {"probe": self.probe}, {}
        self.identity = {"kind": "probe", "model": settings.model.to_dict()}
        self.settings = {
            "batch_size": settings.batch_size,
            "world": repr(settings.world),
            "shift": settings.shift,
            "noise": settings.noise,
        }
        self.scenes = [self.scene(_FRESH_KEY, index) for index in range(_FRESH)]

    @cached_property
    def fresh(self) -> Tensor:
        """The pictures of `scenes`, which training does not see."""
        return from_pixels(torch.from_numpy(np.stack([np.asarray(render(s, _SIZE)) for s in self.scenes])))

    def scene(self, *key: int) -> Scene:
        """The scene of a key, held out of other training or not."""
        return self.how.world.sample(random.Random(seed_of(self.how.seed, *key)))

    def batch(self, step: int) -> Batch:
        """ "pictures" uint8 [B, 128, 128, 3], and `targets` of each, stacked."""
        examples = []
        for index in range(self.how.batch_size):
            scene = self.scene(0, step, index)
            rng = np.random.default_rng(seed_of(self.how.seed, step, index))
            right, down = (int(n) for n in rng.integers(-self.how.shift, self.how.shift, 2, endpoint=True))
            picture = _moved(np.asarray(render(scene, _SIZE)), right, down)
            examples.append({"pictures": picture, **targets(scene, self.how.model, right, down)})
        return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in examples[0]}

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.probe(self._spoiled(from_pixels(batch["pictures"]), generator))
        centre = _focal(said.centre, batch["centre"])
        near = (batch["kind"] >= 0).nonzero(as_tuple=True)

        def at_things(logits: Tensor) -> Tensor:
            return logits.movedim(1, -1)[near]  # [B, C, h, w] -> [cells near things, C]

        kind = F.cross_entropy(at_things(said.kind), batch["kind"][near])
        colour = F.cross_entropy(at_things(said.colour), batch["colour"][near])
        sides = (at_things(said.sides) - at_things(batch["sides"])).abs().mean()
        heads = (said.setting, said.time, said.weather, said.style)
        whole = torch.stack(
            [F.cross_entropy(logits, batch["whole"][:, i]) for i, logits in enumerate(heads)]
        ).sum()
        loss = centre + kind + colour + 20 * sides + whole
        parts = {"centre": centre, "kind": kind, "colour": colour, "sides": sides, "whole": whole}
        return loss, {name: part.detach() for name, part in parts.items()}

    def _spoiled(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Blurred, with noise as fine as a pixel and as coarse as eight: each picture by amounts of its own.

        That is about what an autoencoder does to a picture: it loses detail, and colours bleed.
        """
        count, side, device = len(pictures), pictures.shape[-1], pictures.device
        first, second, fine, coarse = torch.rand(4, count, 1, 1, 1, generator=generator, device=device)
        spoiled = pictures
        for amount in (first, second.square()):
            smooth = F.avg_pool2d(F.pad(spoiled, (1, 1, 1, 1), "replicate"), 3, stride=1)
            spoiled = torch.lerp(spoiled, smooth, amount)
        grain = torch.randn(pictures.shape, generator=generator, device=device)
        stains = torch.randn(count, 3, side // 8, side // 8, generator=generator, device=device)
        stains = F.interpolate(stains, size=(side, side), mode="bilinear")
        noise: Tensor = fine.square() * grain + coarse.square() * stains
        return spoiled + self.how.noise * noise

    def validate(self) -> dict[str, float]:
        """Shares of what the probe reads right in scenes that training does not see."""
        seen = see(self.probe, self.fresh)
        figures = tally(judge(*pair) for pair in zip(self.scenes, seen, strict=True))
        return {name.replace(" ", "_"): share.value for name, share in figures.items()}

    def samples(self) -> Image.Image:
        """Fresh pictures with what the probe sees in them."""
        pictures = self.fresh[:16]
        picture = sheet(F.interpolate(pictures, scale_factor=2), columns=4)
        draw = ImageDraw.Draw(picture)
        for index, seen in enumerate(see(self.probe, pictures)):
            _annotate(draw, seen, index % 4 * 2 * _SIZE, index // 4 * 2 * _SIZE, 2 * _SIZE)
        return picture

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`probe.json` and `probe.safetensors`, which is small and so in fp16 unless told otherwise."""
        save_probe(self.probe, folder, dtype or torch.float16)


def targets(
    scene: Scene, config: ProbeConfig, right: int = 0, down: int = 0
) -> dict[str, NDArray[np.generic]]:
    """What the probe should say of a scene's picture that was moved by so many pixels.

    Returns:
        "centre" float [h, w], 1 where a thing's centre lies and a bump around it; "kind" and "colour"
        int [h, w], -1 away from things; "sides" float [4, h, w], as in `Readings`; "whole" int [4]:
        setting, time, weather and style.
    """
    cells = _SIZE // STRIDE
    grid = np.arange(cells, dtype=np.float32) + 0.5
    centre = np.zeros((cells, cells), np.float32)
    kind, colour = np.full((2, cells, cells), -1, np.int64)
    sides = np.zeros((4, cells, cells), np.float32)
    for thing, box in zip(scene.things, regions(scene, cells), strict=True):
        left, top, right_, bottom = (
            side + moved / STRIDE for side, moved in zip(box, (right, down, right, down), strict=True)
        )
        x, y = (left + right_) / 2, (top + bottom) / 2
        distance = np.hypot(grid[None, :] - x, grid[:, None] - y)
        bump = np.exp(-np.square(distance / _SPREAD) / 2)
        bump[min(int(y), cells - 1), min(int(x), cells - 1)] = 1
        centre = np.maximum(centre, bump)
        near = distance < _NEAR
        kind[near], colour[near] = config.kinds.index(thing.kind), config.colours.index(thing.colour)
        columns, rows = np.broadcast_arrays(grid[None, :], grid[:, None])
        to_sides = np.stack([columns - left, rows - top, right_ - columns, bottom - rows]) / cells
        sides[:, near] = to_sides[:, near]
    whole = np.array(
        [
            config.settings.index(scene.setting),
            config.times.index(scene.time),
            config.weathers.index(scene.weather),
            config.styles.index(scene.style),
        ]
    )
    return {"centre": centre, "kind": kind, "colour": colour, "sides": sides, "whole": whole}


def _moved(picture: NDArray[np.uint8], right: int, down: int) -> NDArray[np.uint8]:
    """Moved by so many pixels; what comes into view repeats the edge."""
    rows = np.clip(np.arange(_SIZE) - down, 0, _SIZE - 1)
    columns = np.clip(np.arange(_SIZE) - right, 0, _SIZE - 1)
    return picture[rows[:, None], columns]


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Equation 1 of Zhou et al. 2019: `target` is 1 at centres; the nearer to 1, the less a cell matters."""
    sure, at_centre = logits.sigmoid(), target == 1
    hits = (1 - sure).square() * F.logsigmoid(logits)
    misses = (1 - target) ** 4 * sure.square() * F.logsigmoid(-logits)
    return -torch.where(at_centre, hits, misses).sum() / at_centre.sum().clamp(min=1)


def _annotate(draw: ImageDraw.ImageDraw, seen: Seen, left: int, top: int, size: int) -> None:
    for thing in seen.things:
        box = (
            left + thing.left * size,
            top + thing.top * size,
            left + thing.right * size,
            top + thing.bottom * size,
        )
        draw.rectangle(box, outline="white")
        draw.text(
            (box[0] + 2, box[1] + 1),
            f"{thing.colour} {thing.kind}",
            fill="white",
            stroke_width=1,
            stroke_fill="black",
        )
    words = f"{seen.setting}, {seen.time}, {seen.weather}, {seen.style}"
    draw.text((left + 3, top + size - 13), words, fill="white", stroke_width=1, stroke_fill="black")
