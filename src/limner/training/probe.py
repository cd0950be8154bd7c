"""Training the probe, on images that are rendered when they are needed, each once.

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

from limner.images.pixels import from_pixels
from limner.picturebook.evaluation import judge, tally
from limner.picturebook.probe import STRIDE, Probe, ProbeConfig, Seen, save_probe, see
from limner.picturebook.world import Scene, World, regions, render

from .data import seed_of
from .loop import Batch, Task
from .sheets import Sheet, sheet

_SIZE = 128
_NEAR = 1.0  # distance in cells from a thing's centre within which cells learn its kind and colour
_SPREAD = 0.7  # standard deviation of the bump around a centre, in cells
_FRESH = 256
_FRESH_KEY = 1  # separates fresh scenes from those to train on


@dataclass(frozen=True)
class ProbeSettings:
    """What is trained, and on what.

    Attributes:
        model: Geometry and vocabulary.
        world: World to render, with its held-out combinations, since the probe must judge those too.
        batch_size: Number of images per step.
        shift: Largest shift of an image in pixels, each way.
        noise: Largest standard deviation of the noise that is added to an image, whose values span 2.
        seed: Seed of weights, scenes and batches.
    """

    model: ProbeConfig
    world: World
    batch_size: int = 64
    shift: int = 4
    noise: float = 0.1
    seed: int = 0


class ProbeTask(Task):
    """A probe on images of the world, slightly shifted, blurred and with noise, so that it also reads
    images that differ a little from the renderer's."""

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
        """Images of `scenes`, which training does not see."""
        return from_pixels(torch.from_numpy(np.stack([np.asarray(render(s, _SIZE)) for s in self.scenes])))

    def scene(self, *key: int) -> Scene:
        """A scene that is a function of `key`, with or without held-out combinations."""
        return self.how.world.sample(random.Random(seed_of(self.how.seed, *key)))

    def batch(self, index: int) -> Batch:
        """ "pictures" uint8 [B, 128, 128, 3], and `targets` of each, stacked."""
        examples = []
        for image in range(self.how.batch_size):
            scene = self.scene(0, index, image)
            rng = np.random.default_rng(seed_of(self.how.seed, index, image))
            right, down = (int(n) for n in rng.integers(-self.how.shift, self.how.shift, 2, endpoint=True))
            picture = _moved(np.asarray(render(scene, _SIZE)), right, down)
            examples.append({"pictures": picture, **targets(scene, self.how.model, right, down)})
        return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in examples[0]}

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        readings = self.probe(self._degraded(from_pixels(batch["pictures"]), generator))
        centre = _focal(readings.centre, batch["centre"])
        near = (batch["kind"] >= 0).nonzero(as_tuple=True)

        def at_things(logits: Tensor) -> Tensor:
            return logits.movedim(1, -1)[near]  # [B, C, h, w] -> [cells near things, C]

        kind = F.cross_entropy(at_things(readings.kind), batch["kind"][near])
        colour = F.cross_entropy(at_things(readings.colour), batch["colour"][near])
        sides = (at_things(readings.sides) - at_things(batch["sides"])).abs().mean()
        heads = (readings.setting, readings.time, readings.weather, readings.style)
        whole = torch.stack(
            [F.cross_entropy(logits, batch["whole"][:, i]) for i, logits in enumerate(heads)]
        ).sum()
        loss = centre + kind + colour + 20 * sides + whole
        parts = {"centre": centre, "kind": kind, "colour": colour, "sides": sides, "whole": whole}
        return loss, {name: part.detach() for name, part in parts.items()}

    def _degraded(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Blurred, with noise of one and of eight pixels' size, by random amounts for each image.

        This resembles the errors of an autoencoder, which loses detail and lets colours bleed.
        """
        count, side, device = len(pictures), pictures.shape[-1], pictures.device
        first, second, fine, coarse = torch.rand(4, count, 1, 1, 1, generator=generator, device=device)
        degraded = pictures
        for amount in (first, second.square()):
            smooth = F.avg_pool2d(F.pad(degraded, (1, 1, 1, 1), "replicate"), 3, stride=1)
            degraded = torch.lerp(degraded, smooth, amount)
        grain = torch.randn(pictures.shape, generator=generator, device=device)
        stains = torch.randn(count, 3, side // 8, side // 8, generator=generator, device=device)
        stains = F.interpolate(stains, size=(side, side), mode="bilinear")
        noise: Tensor = fine.square() * grain + coarse.square() * stains
        return degraded + self.how.noise * noise

    def validate(self) -> dict[str, float]:
        """Shares of what the probe reads right in fresh scenes."""
        seen = see(self.probe, self.fresh)
        figures = tally(judge(*pair) for pair in zip(self.scenes, seen, strict=True))
        return {name.replace(" ", "_"): share.value for name, share in figures.items()}

    def samples(self) -> Sheet:
        """Fresh images, annotated with what the probe finds in them."""
        pictures = self.fresh[:16]
        made = sheet(F.interpolate(pictures, scale_factor=2), columns=4)
        for image, seen in zip(made.images, see(self.probe, pictures), strict=True):
            _annotate(image, seen)
        return made

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`probe.json` and `probe.safetensors`, in fp16 by default."""
        save_probe(self.probe, folder, dtype or torch.float16)


def targets(
    scene: Scene, config: ProbeConfig, right: int = 0, down: int = 0
) -> dict[str, NDArray[np.generic]]:
    """What the probe should output for a scene's image.

    Args:
        right, down: Shift of the image in pixels.

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
    """Shifted by `right` and `down` pixels; the edge is repeated."""
    rows = np.clip(np.arange(_SIZE) - down, 0, _SIZE - 1)
    columns = np.clip(np.arange(_SIZE) - right, 0, _SIZE - 1)
    return picture[rows[:, None], columns]


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Equation 1 of Zhou et al. 2019: `target` is 1 at centres; the nearer to 1, the less a cell counts."""
    probability, at_centre = logits.sigmoid(), target == 1
    hits = (1 - probability).square() * F.logsigmoid(logits)
    misses = (1 - target) ** 4 * probability.square() * F.logsigmoid(-logits)
    return -torch.where(at_centre, hits, misses).sum() / at_centre.sum().clamp(min=1)


def _annotate(image: Image.Image, seen: Seen) -> None:
    """Draw what was seen into a square image."""
    draw, size = ImageDraw.Draw(image), image.width
    for thing in seen.things:
        box = (thing.left * size, thing.top * size, thing.right * size, thing.bottom * size)
        draw.rectangle(box, outline="white")
        draw.text(
            (box[0] + 2, box[1] + 1),
            f"{thing.colour} {thing.kind}",
            fill="white",
            stroke_width=1,
            stroke_fill="black",
        )
    words = f"{seen.setting}, {seen.time}, {seen.weather}, {seen.style}"
    draw.text((3, size - 13), words, fill="white", stroke_width=1, stroke_fill="black")
