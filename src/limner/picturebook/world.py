"""The picture world: which scenes there are, how their things are laid out, and which are held out.

Sampling is rejection over a few independent draws. A fixed set of combinations (a kind in a colour; two
kinds in a relation), chosen by a hash, is kept from training: to draw one takes composition, not memory.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from limner.errors import InvalidCheckpoint, InvalidRequest
from limner.files import read_json
from limner.picturebook.captions import caption, plain_caption, vocabulary
from limner.picturebook.drawing import render
from limner.picturebook.scene import (
    COLOURS,
    KINDS,
    SETTINGS,
    STYLES,
    TIMES,
    WEATHERS,
    Relation,
    Scene,
    Size,
    Thing,
)
from limner.picturebook.things import proportions

__all__ = [
    "Scene",
    "Thing",
    "World",
    "caption",
    "is_held_out",
    "plain_caption",
    "read_world",
    "regions",
    "render",
    "swapped",
    "vocabulary",
]

FLOATING = frozenset({"balloon", "kite", "star", "butterfly", "heart"})  # in the air without support
SUPPORTS = frozenset({"house", "tree", "mushroom", "car", "ball", "cup", "hat", "castle", "lamp", "snowman"})

_EXTENTS: dict[int, dict[Size, float]] = {  # by the number of things in the picture
    1: {"small": 0.28, "medium": 0.45, "big": 0.6},
    2: {"small": 0.245, "medium": 0.35, "big": 0.44},
    3: {"small": 0.215, "medium": 0.275},
}
_RELATIONS: dict[Relation, float] = {
    "alone": 0.35,
    "left of": 0.24,
    "above": 0.1,
    "on": 0.11,
    "group": 0.13,
    "row": 0.07,
}
_HELD_OUT_PERCENT = 8
_MARGIN = 0.025  # between a thing and the picture's edge
_TRIES = 10_000

Look = tuple[str, str, Size]  # kind, colour, size


@dataclass(frozen=True)
class World:
    """What may be drawn: by default everything.

    Attributes:
        kinds, colours, settings, times, weathers, styles: Values that scenes take, each a subset of the
            constant of that name in `picturebook.scene`.
        max_things: Largest number of things in a scene, 1 to 3.

    Raises:
        InvalidRequest: An unknown or repeated value, none at all, or another number of things.
    """

    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = COLOURS
    settings: tuple[str, ...] = SETTINGS
    times: tuple[str, ...] = TIMES
    weathers: tuple[str, ...] = WEATHERS
    styles: tuple[str, ...] = STYLES
    max_things: int = 3

    def __post_init__(self) -> None:
        for name, known in (
            ("kinds", KINDS),
            ("colours", COLOURS),
            ("settings", SETTINGS),
            ("times", TIMES),
            ("weathers", WEATHERS),
            ("styles", STYLES),
        ):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
                raise InvalidRequest(
                    f"a world's {name} were given as {chosen!r}; expected distinct ones of {', '.join(known)}"
                )
        if not 1 <= self.max_things <= 3:
            raise InvalidRequest(f"max_things is {self.max_things}; expected 1, 2 or 3")

    def sample(self, rng: random.Random) -> Scene:
        """A random scene of this world, held out or not."""
        relation, looks = self._things(rng)
        setting = rng.choice(self.settings)
        return Scene(
            things=arrange(looks, relation, rng),
            relation=relation,
            setting=setting,
            time=_favour_first(self.times, 0.5, rng),
            weather=_favour_first(self.weathers, 0.7, rng),
            style=_favour_first(self.styles, 0.64, rng),
            backdrop=rng.randrange(4),
        )

    def training_scene(self, rng: random.Random) -> Scene:
        """A random scene without held-out combinations."""
        return self._sample_where(lambda scene: not is_held_out(scene), rng)

    def held_out_scene(self, rng: random.Random) -> Scene:
        """A random scene with a combination that training never shows."""
        return self._sample_where(is_held_out, rng)

    def _sample_where(self, wanted: Callable[[Scene], bool], rng: random.Random) -> Scene:
        for _ in range(_TRIES):
            scene = self.sample(rng)
            if wanted(scene):
                return scene
        raise InvalidRequest(
            f"{self} has no such scene on its side of the held-out split", hint="name more kinds or colours"
        )

    def _things(self, rng: random.Random) -> tuple[Relation, list[Look]]:
        relations = [r for r in _RELATIONS if self._allows(r)]
        relation = rng.choices(relations, [_RELATIONS[r] for r in relations])[0]
        if relation == "group":
            count = 2 if self.max_things == 2 or rng.random() < 0.6 else 3
            sizes: tuple[Size, ...] = ("small", "medium", "big") if count == 2 else ("small", "medium")
            return relation, [self._look(self.kinds, sizes, rng)] * count
        if relation == "row":
            return relation, [(k, rng.choice(self.colours), "medium") for k in rng.sample(self.kinds, 3)]
        if relation == "alone":
            return relation, [
                (
                    rng.choice(self.kinds),
                    rng.choice(self.colours),
                    _favour_medium(("small", "medium", "big"), rng),
                )
            ]
        stacked = relation == "on"
        any_size: tuple[Size, ...] = ("small", "medium", "big")
        while True:
            first = self._look(self.kinds, any_size[:2] if stacked else any_size, rng)
            below = [kind for kind in self.kinds if kind in SUPPORTS] if stacked else self.kinds
            second = self._look(below, any_size[1:] if stacked else any_size, rng)
            both_big = first[2] == second[2] == "big"
            if first[:2] != second[:2] and (relation == "left of" or not both_big):
                return relation, [first, second]

    def _look(self, kinds: Sequence[str], sizes: Sequence[Size], rng: random.Random) -> Look:
        return rng.choice(kinds), rng.choice(self.colours), _favour_medium(sizes, rng)

    def _allows(self, relation: Relation) -> bool:
        if relation == "alone":
            return True
        if relation == "row":
            return self.max_things >= 3 and len(self.kinds) >= 3
        if self.max_things < 2:
            return False
        if relation == "on":
            # Two alike cannot stand on each other, so one supporting kind needs a second look.
            return not SUPPORTS.isdisjoint(self.kinds) and len(self.kinds) * len(self.colours) > 1
        return relation == "group" or len(self.kinds) * len(self.colours) > 1


def read_world(file: Path | None, card: Path | None = None) -> World:
    """The world that a JSON file describes by its fields, or without one, the "world" of a model's card.

    Args:
        file: Path of the JSON file.
        card: Path of a `limner.json`, which may be missing or name no world: then it is the whole world.

    Raises:
        InvalidRequest: `file` cannot be read, or the fields are not those of a world.
        InvalidCheckpoint: `card` cannot be read.
    """
    try:
        if file is not None:
            values = read_json(file)
        else:
            values = read_json(card).get("world", {}) if card is not None and card.is_file() else {}
    except InvalidCheckpoint as error:
        if file is None:
            raise
        raise InvalidRequest(f"{file} does not give the fields of a picturebook world: {error}") from None
    try:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return World(**fields)
    except (TypeError, AttributeError, InvalidRequest) as error:
        raise InvalidRequest(
            f"{file or card} does not give the fields of a picturebook world: {error}"
        ) from None


def _favour_first(choices: Sequence[str], share: float, rng: random.Random) -> str:
    """The first choice with probability `share`, otherwise one of the others."""
    return choices[0] if len(choices) == 1 or rng.random() < share else rng.choice(choices[1:])


def _favour_medium(sizes: Sequence[Size], rng: random.Random) -> Size:
    return "medium" if rng.random() < 0.6 else rng.choice([size for size in sizes if size != "medium"])


def arrange(looks: Sequence[Look], relation: Relation, rng: random.Random) -> tuple[Thing, ...]:
    """Things placed so that the relation holds, none overlap and all lie inside the picture."""
    extents = [_EXTENTS[len(looks)][size] * rng.uniform(0.96, 1.04) for _, _, size in looks]
    if relation == "group":
        extents = [extents[0]] * len(looks)
    widths = [extent * proportions(kind)[0] for extent, (kind, _, _) in zip(extents, looks, strict=True)]
    heights = [extent * proportions(kind)[1] for extent, (kind, _, _) in zip(extents, looks, strict=True)]
    if relation in ("above", "on"):
        grounded = [False, True]
        gap = 0.0 if relation == "on" else min(rng.uniform(0.06, 0.14), 0.94 - sum(heights))
        low = max(0.84, sum(heights) + gap + _MARGIN)
        bottom = rng.uniform(low, max(low, 0.94))
        ys = [bottom - heights[1] - gap - heights[0] / 2, bottom - heights[1] / 2]
        x = rng.uniform(0.4, 0.6)
        xs = [x if relation == "on" else x + rng.uniform(-0.03, 0.03), x]
    else:
        grounded = [kind not in FLOATING for kind, _, _ in looks]
        baseline = rng.uniform(0.82, 0.92)
        ys = []
        for height, stands in zip(heights, grounded, strict=True):
            highest = max(_MARGIN + height / 2, 0.36) if len(looks) == 1 else 0.56
            floating = rng.uniform(highest, max(highest, 0.54)) if len(looks) == 1 else baseline - 0.2
            ys.append(
                baseline - height / 2 + rng.uniform(-0.01, 0.01)
                if stands
                else min(floating, 0.95 - height / 2)
            )
        xs = _spread(widths, rng)
    return tuple(
        Thing(kind, colour, size, round(x, 4), round(y, 4), round(extent, 4), stands)
        for (kind, colour, size), x, y, extent, stands in zip(looks, xs, ys, extents, grounded, strict=True)
    )


def _spread(widths: Sequence[float], rng: random.Random) -> list[float]:
    """Centres from left to right; free space goes to the edges and the gaps."""
    room = 1 - 2 * _MARGIN - sum(widths)
    gap = min(0.14, 0.7 * room / max(1, len(widths) - 1)) if len(widths) > 1 else 0.0
    spare = room - gap * (len(widths) - 1)
    left = _MARGIN + spare / 2 + max(-spare / 2, min(spare / 2, rng.uniform(-0.08, 0.08)))
    centres = []
    for width in widths:
        centres.append(left + width / 2)
        left += width + gap
    return centres


def regions(scene: Scene, size: int = 128) -> list[tuple[float, float, float, float]]:
    """The bounding box of each thing, in order: left, top, right, bottom in pixels of a picture of `size`."""
    boxes = []
    for thing in scene.things:
        width, height = (side * thing.extent / 2 for side in proportions(thing.kind))
        box = (thing.x - width, thing.y - height, thing.x + width, thing.y + height)
        boxes.append((box[0] * size, box[1] * size, box[2] * size, box[3] * size))
    return boxes


@cache
def _chosen(combination: str) -> bool:
    digest = hashlib.sha256(f"picturebook held out: {combination}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _HELD_OUT_PERCENT


def is_held_out(scene: Scene) -> bool:
    """Whether a scene has a kind in a colour, or two kinds in a relation, that training never shows."""
    if any(_chosen(f"{thing.colour} {thing.kind}") for thing in scene.things):
        return True
    if scene.relation in ("alone", "group"):
        return False
    relation = "left of" if scene.relation == "row" else scene.relation
    return any(_chosen(f"{a.kind} {relation} {b.kind}") for a, b in combinations(scene.things, 2))


def swapped(scene: Scene, world: World | None = None) -> list[Scene]:
    """Scenes that differ from this one in a single way, for false captions.

    Colours or sides are exchanged, the relation is another, a colour or kind is replaced, or a group has one
    more or one fewer. The same scene always gives the same list.
    """
    world = world or World()
    rng = random.Random(repr(scene))
    looks: list[Look] = [(thing.kind, thing.colour, thing.size) for thing in scene.things]
    variants: list[tuple[Relation, list[Look]]] = []
    if len(looks) > 1 and scene.relation != "group":
        first, second, *rest = looks
        if first[1] != second[1]:
            variants.append(
                (scene.relation, [(first[0], second[1], first[2]), (second[0], first[1], second[2]), *rest])
            )
        # Sizes stay in place: small on big is drawable, big on small may not be.
        turned: list[Look] = [(second[0], second[1], first[2]), (first[0], first[1], second[2]), *rest]
        if scene.relation != "on" or first[0] in SUPPORTS:
            variants.append((scene.relation, turned))
        if scene.relation == "left of" and "big" not in (first[2], second[2]):
            variants.append(("above", looks))
        if scene.relation in ("above", "on"):
            variants.append(("left of", looks))
    if scene.relation == "group" and world.max_things == 3 and looks[0][2] != "big":
        variants.append(("group", [looks[0]] * (5 - len(looks))))
    spot = rng.randrange(len(looks))
    kind, colour, size = looks[spot]
    taken = {(k, c) for k, c, _ in looks}
    colours = [c for c in world.colours if (kind, c) not in taken]
    kinds = [k for k in world.kinds if (k, colour) not in taken and k not in {look[0] for look in looks}]
    if scene.relation == "on" and spot == 1:
        kinds = [k for k in kinds if k in SUPPORTS]
    for choices, other in ((colours, True), (kinds, False)):
        if choices:
            choice = rng.choice(choices)
            look: Look = (kind, choice, size) if other else (choice, colour, size)
            changed = [look] * len(looks) if scene.relation == "group" else list(looks)
            changed[spot] = look
            variants.append((scene.relation, changed))
    return [
        replace(scene, relation=relation, things=arrange(things, relation, rng))
        for relation, things in variants
    ]
