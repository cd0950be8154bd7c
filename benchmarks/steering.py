"""`python -m benchmarks.steering`: whether each way of steering an image has its intended effect.

The shipped model runs hundreds of prompts in each way, and the probe, which was not trained on generated
images, reads the results: what a mask replaced and kept, whether things are where edges are, how a weight
changes a colour, and the results of prompts that change during sampling or are joined by AND.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .harness import Chart, Report, Spread, Table, parser, say

if TYPE_CHECKING:
    from limner.picturebook.evaluation import Proportion
    from limner.picturebook.probe import Seen, SeenThing
    from limner.picturebook.world import Scene, Thing

SHEETS = Path(__file__).parents[1] / "docs" / "pictures"
_ON_SHEET = 8
_NEAR = 0.05  # of the picture's side: how far a centre may be from where it should be
_MARGIN = 5  # pixels of a mask around a thing


@dataclass(frozen=True)
class Found:
    """Results of one experiment.

    Attributes:
        sheet: Images, row by row, `_ON_SHEET` in each.
        bars: Shares to plot.
    """

    name: str
    table: Table
    sheet: list[Image.Image]
    bars: "dict[str, Proportion]"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "", rounds=1)
    options.add_argument("--prompts", type=int, default=200, help="number of prompts for each way")
    options.add_argument("--only", nargs="*", choices=sorted(EXPERIMENTS), help="experiments to run")
    options.add_argument("--sheets", type=Path, help=f"folder of images; by default {SHEETS}, unless --quick")
    chosen = options.parse_args(arguments)
    studio = Studio(4 if chosen.quick else chosen.prompts)
    found = []
    for name, experiment in EXPERIMENTS.items():
        if chosen.only is None or name in chosen.only:
            say(name)
            found.append(experiment(studio))
    _report(studio, found).publish(chosen)
    folder = chosen.sheets or (None if chosen.quick else SHEETS)
    if folder is not None:
        for one in found:
            _on_paper(one.sheet).quantize(256).save(folder / f"steering_{one.name}.png", optimize=True)


class Studio:
    """The shipped model, its world and its probe."""

    def __init__(self, count: int) -> None:
        import limner
        from limner.allocator import keep_freed_memory
        from limner.catalogue.layout import CARD
        from limner.files import read_json
        from limner.picturebook.probe import load_probe
        from limner.picturebook.world import World

        keep_freed_memory()
        self.model, self.probe, self.count = limner.load(), load_probe(), count
        kept = read_json(self.model.checkpoint.folder / CARD)["world"]
        self.world = World(**{n: tuple(v) if isinstance(v, list) else v for n, v in kept.items()})

    def scenes(self, wanted: "Callable[[Scene], bool]" = lambda scene: True) -> "list[Scene]":
        """The first scenes that are accepted, half of them with held-out combinations."""
        from limner.picturebook.evaluation import fresh_scenes

        scenes, _ = fresh_scenes(self.world, 40 * self.count, seed=1)
        return [scene for scene in scenes if wanted(scene)][: self.count]

    def draw(self, fields: Sequence[dict[str, Any]]) -> list[Image.Image]:
        """An image for each request, with the seeds 0, 1 …"""
        from limner import GenerationRequest
        from limner.engine.engine import Engine

        requests = [GenerationRequest.of({"seed": seed, **one}) for seed, one in enumerate(fields)]
        with Engine(self.model, max_waiting=len(requests)) as engine:
            handles = [engine.submit(request) for request in requests]
            return [handle.result().images[0] for handle in handles]

    def see(self, pictures: Sequence[Image.Image]) -> "list[Seen]":
        from limner.images.pixels import to_tensor
        from limner.picturebook.probe import see

        return see(self.probe, to_tensor(list(pictures)))

    def leaning(self, pictures: Sequence[Image.Image], pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Log odds of the first of two colours against the second, for the most certain thing in each
        image: [B]."""
        from limner.images.pixels import to_tensor

        with torch.no_grad():
            readings = self.probe(to_tensor(list(pictures)))
        names, cell = self.probe.config.colours, readings.centre.flatten(1).argmax(1)
        logits = readings.colour.flatten(2)[torch.arange(len(cell)), :, cell]  # [B, colours]
        return torch.stack(
            [
                row[names.index(first)] - row[names.index(second)]
                for row, (first, second) in zip(logits, pairs, strict=True)
            ]
        )


def words(scene: "Scene", seed: int) -> str:
    from limner.picturebook.world import caption

    return caption(scene, random.Random(seed))


def share(hits: Sequence[bool]) -> "Proportion":
    from limner.picturebook.evaluation import Proportion

    return Proportion(sum(hits), len(hits))


def percent(hits: Sequence[bool]) -> str:
    return str(share(hits))


def inpainting(studio: Studio) -> Found:
    """Replace one thing of a rendered image by another kind in another colour."""
    from limner.images.opening import image_source
    from limner.picturebook.world import FLOATING, render

    scenes = studio.scenes(lambda scene: scene.relation in ("alone", "left of"))
    changed, boxes, spots = [], [], []
    for index, scene in enumerate(scenes):
        rng = random.Random(index)
        spot = rng.randrange(len(scene.things))
        old = scene.things[spot]
        kinds = [
            kind
            for kind in studio.world.kinds
            if (kind in FLOATING) == (old.kind in FLOATING) and kind not in {t.kind for t in scene.things}
        ]
        colours = [colour for colour in studio.world.colours if colour != old.colour]
        new = replace(old, kind=rng.choice(kinds), colour=rng.choice(colours))
        things = tuple(new if at == spot else thing for at, thing in enumerate(scene.things))
        changed.append(replace(scene, things=things))
        boxes.append(_around(scene, changed[-1], spot))
        spots.append(spot)
    renders = [render(scene) for scene in scenes]
    masks = [_mask(box) for box in boxes]
    asked = [
        {
            "prompt": words(scene, index),
            "image": image_source(picture),
            "mask": image_source(mask),
            "mask_blur": 0.0,
            "strength": 1.0,
        }
        for index, (scene, picture, mask) in enumerate(zip(changed, renders, masks, strict=True))
    ]
    drawn = studio.draw(asked)
    untouched = [
        bool((np.asarray(a) == np.asarray(b))[np.asarray(mask) == 0].all())
        for a, b, mask in zip(renders, drawn, masks, strict=True)
    ]
    rows = []
    bars = {}
    for name, pictures in (("before", renders), ("inpainted", drawn)):
        there, coloured, old_there, others = [], [], [], []
        for before, after, box, spot, seen in zip(
            scenes, changed, boxes, spots, studio.see(pictures), strict=True
        ):
            inside = [thing for thing in seen.things if _within(thing, box)]
            new, old = after.things[spot], before.things[spot]
            there.append(any(t.kind == new.kind for t in inside))
            coloured.append(any((t.kind, t.colour) == (new.kind, new.colour) for t in inside))
            old_there.append(any(t.kind == old.kind for t in inside))
            outside = [(t.kind, t.colour) for t in seen.things if not _within(t, box)]
            others += [(t.kind, t.colour) in outside for at, t in enumerate(before.things) if at != spot]
        rows.append((name, percent(there), percent(coloured), percent(old_there), percent(others)))
        bars |= {f"{name}: new thing": share(there), f"{name}: other things": share(others)}
    rows[0] += ("",)
    rows[1] += (percent(untouched),)
    shown = [*renders[:_ON_SHEET], *_outlined(masks[:_ON_SHEET], renders), *drawn[:_ON_SHEET]]
    columns = (
        "",
        "new thing",
        "in its colour",
        "old thing",
        "other things",
        "unmasked pixels have their bits",
    )
    title = f"Inpainting: one thing in a mask becomes another, {len(scenes)} pictures"
    return Found("inpainting", Table(title, columns, rows), shown, bars)


def _around(before: "Scene", after: "Scene", spot: int) -> tuple[int, int, int, int]:
    """A box around a thing and its replacement."""
    from limner.picturebook.world import regions

    (l1, t1, r1, b1), (l2, t2, r2, b2) = regions(before)[spot], regions(after)[spot]
    low = [max(0, int(min(pair)) - _MARGIN) for pair in ((l1, l2), (t1, t2))]
    high = [min(128, int(max(pair)) + 1 + _MARGIN) for pair in ((r1, r2), (b1, b2))]
    return low[0], low[1], high[0], high[1]


def _mask(box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (128, 128))
    mask.paste(255, box)
    return mask


def _outlined(masks: Sequence[Image.Image], pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Images whose masked part is grey."""
    shown = []
    for mask, picture in zip(masks, pictures, strict=False):
        copy = picture.copy()
        copy.paste((128, 128, 128), None, mask)
        shown.append(copy)
    return shown


def _within(thing: "SeenThing", box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = (side / 128 for side in box)
    return left <= thing.x <= right and top <= thing.y <= bottom


def edges(studio: Studio) -> Found:
    """Generate images along the edges of rendered images."""
    from limner.images.opening import image_source
    from limner.images.preprocess import preprocessed
    from limner.picturebook.evaluation import judge
    from limner.picturebook.world import render

    scenes = studio.scenes()
    renders = [render(scene) for scene in scenes]
    lines = [preprocessed(picture, "canny") for picture in renders]
    turns: dict[str, dict[str, Any]] = {
        "without": {},
        "weight 0.5": {"weight": 0.5},
        "weight 1": {},
        "guess": {"mode": "guess"},
    }
    rows, bars, shown = [], {}, [*lines[:_ON_SHEET]]
    for name, more in turns.items():
        say(f"edges, {name}")
        asked = [
            {
                "prompt": words(scene, index),
                **(
                    {}
                    if name == "without"
                    else {"controls": [{"model": "picturebook-edges", "image": image_source(line), **more}]}
                ),
            }
            for index, (scene, line) in enumerate(zip(scenes, lines, strict=True))
        ]
        drawn = studio.draw(asked)
        seen = studio.see(drawn)
        placed = [
            _is_placed(thing, what)
            for scene, what in zip(scenes, seen, strict=True)
            for thing in scene.things
        ]
        verdicts = [judge(scene, what) for scene, what in zip(scenes, seen, strict=True)]
        met = [agreement(line, preprocessed(p, "canny")) for line, p in zip(lines, drawn, strict=True)]
        things = sum(v.things_right for v in verdicts), sum(v.asked for v in verdicts)
        colours = sum(v.colours_right for v in verdicts)
        from limner.picturebook.evaluation import Proportion

        rows.append(
            (
                name,
                percent(placed),
                str(Proportion(*things)),
                str(Proportion(colours, things[1])),
                percent([v.all_right for v in verdicts]),
                f"{100 * np.mean(met):.1f} %",
            )
        )
        bars[f"{name}: in its place"] = share(placed)
        if name in ("without", "weight 1"):
            shown += drawn[:_ON_SHEET]
    columns = ("edges", "in its place", "things", "colours", "entirely right", "edges met")
    title = f"Edges: a ControlNet is given those of a rendered picture, {len(scenes)} pictures"
    return Found("edges", Table(title, columns, rows), shown, bars)


def _is_placed(thing: "Thing", seen: "Seen") -> bool:
    """Whether a thing of any kind is at the intended place, with the intended size."""
    return any(
        abs(t.x - thing.x) <= _NEAR
        and abs(t.y - thing.y) <= _NEAR
        and abs(t.extent / thing.extent - 1) <= 0.2
        for t in seen.things
    )


def agreement(first: Image.Image, second: Image.Image) -> float:
    """Agreement of two edge images within a pixel: the F1 score."""
    a, b = (torch.from_numpy(np.asarray(one.convert("L")) > 127)[None].float() for one in (first, second))
    near_a, near_b = (F.max_pool2d(one, 3, stride=1, padding=1) for one in (a, b))
    precision, recall = (b * near_a).sum() / b.sum().clamp(min=1), (a * near_b).sum() / a.sum().clamp(min=1)
    return float(2 * precision * recall / (precision + recall).clamp(min=1e-6))


def emphasis(studio: Studio) -> Found:
    """Run prompts with two colours for one thing, the first of them weighted."""
    scenes = studio.scenes(lambda scene: scene.relation == "alone")
    pairs = []
    for index in range(len(scenes)):
        first, second = random.Random(index).sample(studio.world.colours, 2)
        pairs.append((first, second))
    rows, bars, shown = [], {}, []
    for weight in (0.6, 0.8, 1.0, 1.2, 1.4):
        asked = [
            {"prompt": f"a ({first}:{weight}) and {second} {scene.things[0].kind} {_place(scene)}"}
            for (first, second), scene in zip(pairs, scenes, strict=True)
        ]
        drawn = studio.draw(asked)
        leans = studio.leaning(drawn, pairs)
        seen = studio.see(drawn)
        firsts = [
            any(t.colour == pair[0] for t in what.things) for what, pair in zip(seen, pairs, strict=True)
        ]
        seconds = [
            any(t.colour == pair[1] for t in what.things) for what, pair in zip(seen, pairs, strict=True)
        ]
        rows.append(
            (
                f"({'{first}'}:{weight:g})".replace("{first}", "red"),
                percent(firsts),
                percent(seconds),
                f"{leans.mean():+.2f}",
            )
        )
        bars[f"weight {weight:g}: in the first colour"] = share(firsts)
        if weight in (0.6, 1.0, 1.4):
            shown += drawn[:_ON_SHEET]
    columns = ("in “a (red:1.4) and blue ball”", "in the first colour", "in the second", "log odds, mean")
    title = f"Emphasis: the weight of one of two colours, {len(scenes)} prompts"
    return Found("emphasis", Table(title, columns, rows), shown, bars)


def _place(scene: "Scene") -> str:
    """A scene's setting in words."""
    from limner.picturebook.world import plain_caption

    alone = replace(scene, time="day", weather="clear", style="flat")
    thing = scene.things[0]
    text = plain_caption(alone)
    return text[text.index(thing.kind) + len(thing.kind) :].strip()


def changing(studio: Studio) -> Found:
    """Run prompts with one kind up to a fraction of the steps, and another after it."""
    scenes = studio.scenes(lambda scene: scene.relation == "alone")
    seconds = _others(studio, scenes)
    drawn = {}
    for when in ("0", "0.3", "0.5", "0.7", "0.9", "1.0"):
        say(f"changing, {when}")
        drawn[when] = studio.draw(
            [
                {
                    "prompt": f"a {one.things[0].colour} "
                    f"[{one.things[0].kind}:{second}:{when}] {_place(one)}",
                    "steps": 30,
                }
                for one, second in zip(scenes, seconds, strict=True)
            ]
        )
    rows, bars, shown = [], {}, []
    for when, pictures in drawn.items():
        seen = studio.see(pictures)
        firsts = [_shows(what, scene.things[0].kind) for what, scene in zip(seen, scenes, strict=True)]
        lasts = [_shows(what, second) for what, second in zip(seen, seconds, strict=True)]
        way = _of_the_way(pictures, drawn["0"], drawn["1.0"])
        rows.append((f"[cat:dog:{when}]", percent(firsts), percent(lasts), way.text(digits=2)))
        bars |= {f"{when}: the first kind": share(firsts), f"{when}: the second": share(lasts)}
        if when in ("0", "0.5", "0.7", "0.9", "1.0"):
            shown += pictures[:_ON_SHEET]
    columns = ("in “a red [cat:dog:0.5]”", "the first kind", "the second", "of the way from the second")
    title = f"A prompt that changes on the way, {len(scenes)} prompts"
    return Found("changing", Table(title, columns, rows), shown, bars)


def _others(studio: Studio, scenes: "Sequence[Scene]") -> list[str]:
    """The scenes with another kind of thing."""
    return [
        random.Random(index).choice([kind for kind in studio.world.kinds if kind != scene.things[0].kind])
        for index, scene in enumerate(scenes)
    ]


def _shows(seen: "Seen", kind: str) -> bool:
    return any(thing.kind == kind for thing in seen.things)


def _of_the_way(
    pictures: Sequence[Image.Image], start: Sequence[Image.Image], end: Sequence[Image.Image]
) -> Spread:
    """Position of images between two others of the same seeds, by squared differences of colours."""
    rows = [
        [np.asarray(one, dtype=np.float32) for one in three]
        for three in zip(pictures, start, end, strict=True)
    ]
    away = [float(np.square(one - first).mean()) for one, first, _ in rows]
    left = [float(np.square(one - last).mean()) for one, _, last in rows]
    shares = torch.tensor([a / max(a + b, 1e-6) for a, b in zip(away, left, strict=True)])
    anew = torch.randint(len(shares), (2000, len(shares)), generator=torch.Generator().manual_seed(0))
    means = shares[anew].mean(1).sort().values
    return Spread(float(shares.mean()), float(means[50]), float(means[-51]))


def joined(studio: Studio) -> Found:
    """Run two prompts of one thing joined by AND: the second has another kind or another time of day."""
    from limner.picturebook.world import plain_caption

    scenes = studio.scenes(lambda scene: scene.relation == "alone")
    scenes = [replace(scene, time="day", weather="clear", style="flat") for scene in scenes]
    kinds = [
        replace(scene, things=(replace(scene.things[0], kind=kind),))
        for scene, kind in zip(scenes, _others(studio, scenes), strict=True)
    ]
    nights = [replace(scene, time="night") for scene in scenes]
    firsts = [plain_caption(scene) for scene in scenes]
    rows, bars, shown = [], {}, []
    for other, seconds in (("another kind", kinds), ("at night", nights)):
        for weight in (0.0, 0.4, 0.5, 0.6, 1.0):
            say(f"AND, {other}, {weight}")
            drawn = studio.draw(
                [
                    {"prompt": f"{first} :{1 - weight:g} AND {plain_caption(second)} :{weight:g}"}
                    for first, second in zip(firsts, seconds, strict=True)
                ]
            )
            seen = studio.see(drawn)
            pairs = list(zip(scenes, seconds, seen, strict=True))
            first = [_shows(what, a.things[0].kind) for a, _, what in pairs]
            if other == "at night":
                last = [what.time == b.time for _, b, what in pairs]
            else:
                last = [_shows(what, b.things[0].kind) for _, b, what in pairs]
            both = [x and y for x, y in zip(first, last, strict=True)]
            name = f"… :{1 - weight:g} AND … {other} :{weight:g}"
            rows.append((name, percent(first), percent(last), percent(both)))
            bars |= {
                f"{other} :{weight:g}, {what}": share(hits) for what, hits in (("1", first), ("2", last))
            }
            if weight in (0.0, 0.5, 1.0):
                shown += drawn[:_ON_SHEET]
    columns = ("", "the first kind", "the second kind, or night", "both")
    return Found("and", Table(f"AND: two prompts together, {len(scenes)} pairs", columns, rows), shown, bars)


EXPERIMENTS: dict[str, Callable[[Studio], Found]] = {
    "inpainting": inpainting,
    "edges": edges,
    "emphasis": emphasis,
    "changing": changing,
    "and": joined,
}


def _on_paper(pictures: Sequence[Image.Image]) -> Image.Image:
    paper = Image.new("RGB", (128 * _ON_SHEET, 128 * -(-len(pictures) // _ON_SHEET)), "white")
    for index, picture in enumerate(pictures):
        paper.paste(picture.convert("RGB"), (index % _ON_SHEET * 128, index // _ON_SHEET * 128))
    return paper


def _spread(hits: "Proportion") -> Spread:
    low, high = hits.interval  # rounding may put it just outside of a value of 0 or 1
    return Spread(hits.value, min(low, hits.value), max(high, hits.value))


def _report(studio: Studio, found: Sequence[Found]) -> Report:
    return Report(
        name="steering",
        title="Ways to steer a picture",
        about=(
            f"The shipped model generates images for {studio.count} prompts in each way, with the seeds 0, 1 "
            "…; half of the prompts have combinations of kinds and colours that were held out of its "
            "training. The probe, which was trained only on rendered pictures, recognises what is in each "
            "image. Shares have their 95 % interval (Wilson 1927)."
        ),
        tables=[one.table for one in found],
        charts=[
            Chart(
                one.table.title.partition(",")[0],
                "share",
                {name: _spread(hits) for name, hits in one.bars.items()},
            )
            for one in found
        ],
        notes=[
            "*In its place*: the centre of a thing is within 5 % of the image's side of the intended place, "
            "and its size within a fifth of the intended one. *Edges met*: the F1 score of the given edges "
            "and those of the generated image, within a pixel.",
            "*Of the way*: the squared difference of colours from the pictures of the second prompt alone, "
            "as a share of that plus the one from those of the first, for the same seeds.",
            "*Log odds*: of the first colour against the second, by the probe.",
            "No figure here is a time, so the load of other programs does not matter.",
        ],
        data={
            "environment": studio.model.environment(),
            "shares": {one.name: {n: (h.right, h.of) for n, h in one.bars.items()} for one in found},
        },
    )


if __name__ == "__main__":
    main()
