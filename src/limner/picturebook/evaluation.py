"""Judging pictures: the requested scene against what the probe found, and shares with their uncertainty.

Nothing here draws or runs a network: from scenes, findings and embeddings it computes figures.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Self

import torch
from torch import Tensor

from limner.picturebook.probe import Seen, SeenThing
from limner.picturebook.scene import Relation, Scene, Thing
from limner.picturebook.world import World, caption, regions

_SLACK = 0.04  # largest overlap of boxes side by side, in fractions of the picture's side
_TOUCHING = 0.03  # largest gap between a thing and what it stands on; "above" is a larger gap
_SUNK = 0.06  # largest overlap of a thing with what it stands on
_OFF_AXIS = 0.1  # largest horizontal distance of the centres for "above" and "on"
_SIZE_TOLERANCE = 0.125  # of the requested extent; half the difference between the closest two sizes


def fresh_scenes(world: World, count: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes to evaluate on and a caption of each: every second scene has a held-out combination."""
    scenes, words = [], []
    for index in range(count):
        rng = random.Random(f"evaluate {seed} {index}")
        scenes.append(world.held_out_scene(rng) if index % 2 else world.training_scene(rng))
        words.append(caption(scenes[-1], random.Random(f"words {seed} {index}")))
    return scenes, words


@dataclass(frozen=True)
class Verdict:
    """How much of its scene a picture shows.

    Attributes:
        asked: Number of things in the scene.
        things_right: Number of those that were found, by kind; each found thing counts once.
        colours_right, sizes_right: Number of those that were found in their colour; at their size.
        relation_right: Whether all things were found and their relation holds; None for one thing.
        count_right: Whether as many things were found as the scene has.
        setting, time, weather, style: Whether each was found as in the scene.
        all_right: Whether kinds, colours, relation, setting and time are right, and no other thing was found.
        strictly_right: Whether each size, the weather and the style are right too.
    """

    asked: int
    things_right: int
    colours_right: int
    sizes_right: int
    relation_right: bool | None
    count_right: bool
    setting: bool
    time: bool
    weather: bool
    style: bool
    all_right: bool
    strictly_right: bool


def judge(scene: Scene, seen: Seen) -> Verdict:
    """Compare what was found in a picture with its scene."""
    pairs = _matched(scene.things, seen.things)
    found = [(asked, thing) for asked, thing in pairs if thing is not None]
    colours = [asked.colour == thing.colour for asked, thing in found]
    sizes = [abs(thing.extent / asked.extent - 1) <= _SIZE_TOLERANCE for asked, thing in found]
    relation = None
    if scene.relation != "alone":
        relation = len(found) == len(pairs) and relation_holds(scene.relation, [thing for _, thing in found])
    setting, time = seen.setting == scene.setting, seen.time == scene.time
    weather, style = seen.weather == scene.weather, seen.style == scene.style
    looks = Counter((t.kind, t.colour) for t in seen.things) == Counter(
        (t.kind, t.colour) for t in scene.things
    )
    all_right = looks and relation is not False and setting and time
    return Verdict(
        asked=len(pairs),
        things_right=len(found),
        colours_right=sum(colours),
        sizes_right=sum(sizes),
        relation_right=relation,
        count_right=len(seen.things) == len(scene.things),
        setting=setting,
        time=time,
        weather=weather,
        style=style,
        all_right=all_right,
        strictly_right=all_right and all(sizes) and weather and style,
    )


def _matched(asked: Sequence[Thing], seen: Sequence[SeenThing]) -> list[tuple[Thing, SeenThing | None]]:
    """Each thing of a scene with a found one of its kind: most pairs first, then colour, then distance."""

    def cost(a: Thing, index: int | None) -> tuple[int, int, float]:
        if index is None:
            return 1, 0, 0.0
        thing = seen[index]
        return 0, int(thing.colour != a.colour), math.hypot(thing.x - a.x, thing.y - a.y)

    choices: list[list[int | None]] = []
    for a in asked:
        alike = [i for i, thing in enumerate(seen) if thing.kind == a.kind]
        # The others can take away no more than all but one of the best, so no more need be tried.
        choices.append([*sorted(alike, key=lambda i: cost(a, i))[: len(asked)], None])

    def total(chosen: Sequence[int | None]) -> tuple[float, ...]:
        return tuple(map(sum, zip(*(cost(a, i) for a, i in zip(asked, chosen, strict=True)), strict=True)))

    apart = (c for c in product(*choices) if len(set(c) - {None}) == len(c) - c.count(None))
    best = min(apart, key=total)
    return [(a, None if i is None else seen[i]) for a, i in zip(asked, best, strict=True)]


def relation_holds(relation: Relation, things: Sequence[SeenThing]) -> bool:
    """Whether things stand in a relation, from the first to the last; those of a group in any order."""
    if relation == "alone":
        return len(things) == 1
    if relation in ("above", "on"):
        upper, lower = things
        gap = lower.top - upper.bottom
        aligned = abs(upper.x - lower.x) <= _OFF_AXIS
        return aligned and (gap > _TOUCHING if relation == "above" else -_SUNK <= gap <= _TOUCHING)
    ordered = sorted(things, key=lambda thing: thing.x) if relation == "group" else things
    return all(a.x < b.x and a.right <= b.left + _SLACK for a, b in pairwise(ordered))


@dataclass(frozen=True)
class Proportion:
    """A number of correct items out of all."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """Between 0 and 1; NaN where there are none at all."""
        return self.right / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval (Wilson 1927)."""
        if not self.of:
            return 0.0, 1.0
        z, n = 1.959964, self.of
        middle = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.value * (1 - self.value) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        """Like "95.0 % (93.5 to 96.2)"."""
        if not self.of:
            return "none"
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def tally(verdicts: Iterable[Verdict]) -> dict[str, Proportion]:
    """Shares over many pictures: among things for things, colours and sizes, among pictures for the rest."""
    verdicts = list(verdicts)
    things = sum(v.asked for v in verdicts)
    related = [v.relation_right for v in verdicts if v.relation_right is not None]
    pictures = len(verdicts)
    return {
        "things": Proportion(sum(v.things_right for v in verdicts), things),
        "colours": Proportion(sum(v.colours_right for v in verdicts), things),
        "sizes": Proportion(sum(v.sizes_right for v in verdicts), things),
        "relations": Proportion(sum(related), len(related)),
        "counts": Proportion(sum(v.count_right for v in verdicts), pictures),
        "settings": Proportion(sum(v.setting for v in verdicts), pictures),
        "times": Proportion(sum(v.time for v in verdicts), pictures),
        "weathers": Proportion(sum(v.weather for v in verdicts), pictures),
        "styles": Proportion(sum(v.style for v in verdicts), pictures),
        "entirely right": Proportion(sum(v.all_right for v in verdicts), pictures),
        "strictly right": Proportion(sum(v.strictly_right for v in verdicts), pictures),
    }


def perfect_findings(scene: Scene) -> Seen:
    """The findings of a perfect probe for the picture of a scene."""
    boxes = [[side / 128 for side in box] for box in regions(scene, 128)]
    things = [SeenThing(t.kind, t.colour, *box) for t, box in zip(scene.things, boxes, strict=True)]
    return Seen(tuple(things), scene.setting, scene.time, scene.weather, scene.style)


@dataclass(frozen=True)
class Mean:
    """Mean of independent values, with its standard error."""

    value: float
    error: float  # standard error
    of: int

    @classmethod
    def over(cls, values: Tensor) -> Self:
        """From at least two values [N]."""
        spread = float(values.double().std())
        return cls(float(values.double().mean()), spread / math.sqrt(len(values)), len(values))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of a normal mean."""
        return self.value - 1.959964 * self.error, self.value + 1.959964 * self.error


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of pictures [B, 3, H, W] in [-1, 1], in dB: [B]."""
    error = (pictures.clamp(-1, 1).double() - originals.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)  # 4 is the square of the values' range


def retrieved(queries: Tensor, answers: Tensor, among: int = 64) -> Proportion:
    """Proportion of queries whose own answer is the nearest of `among` answers.

    Args:
        queries, answers: Unit vectors [N, D], paired row by row. They are compared in groups of `among`; an
            incomplete last group is not counted.
    """
    right = total = 0
    for start in range(0, len(queries) - among + 1, among):
        group = slice(start, start + among)
        nearest = (queries[group] @ answers[group].T).argmax(1)
        right += int((nearest == torch.arange(among)).sum())
        total += among
    return Proportion(right, total)


def preferred(queries: Tensor, answers: Tensor, false: Sequence[Tensor]) -> Proportion:
    """How often a query is nearer to its answer than to each of its false ones.

    Args:
        queries, answers: Unit vectors [N, D], paired row by row.
        false: For each query, unit vectors [M, D] of wrong answers; a query with none is not counted.
    """
    tried = [(q, a, f) for q, a, f in zip(queries, answers, false, strict=True) if len(f)]
    return Proportion(sum(bool((q @ a > f @ q).all()) for q, a, f in tried), len(tried))
