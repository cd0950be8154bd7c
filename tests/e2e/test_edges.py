"""The ControlNet that ships: things stand where its edges are."""

import random

import numpy as np
import pytest

import limner
from limner.catalogue.layout import CARD
from limner.files import read_json
from limner.images.pixels import to_tensor
from limner.picturebook.evaluation import fresh_scenes
from limner.picturebook.probe import load_probe, see
from limner.picturebook.world import World, caption, render


@pytest.fixture(scope="module")
def model():
    return limner.load()


@pytest.mark.long
def test_things_stand_where_the_edges_are(model):
    kept = read_json(model.checkpoint.folder / CARD)["world"]
    world = World(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
    scenes = [s for s in fresh_scenes(world, 40, seed=7)[0] if s.relation == "alone"][:10]

    def distances(steered):
        asks = []
        for index, scene in enumerate(scenes):
            edges = {"model": "picturebook-edges", "image": render(scene), "preprocessor": "canny"}
            fields = {"controls": [edges]} if steered else {}
            asks.append(
                model.generate(caption(scene, random.Random(index)), seed=index, steps=12, **fields).images[0]
            )
        seen = see(load_probe(), to_tensor(asks))
        return [
            min((np.hypot(t.x - s.things[0].x, t.y - s.things[0].y) for t in what.things), default=1.0)
            for what, s in zip(seen, scenes, strict=True)
        ]

    free, steered = distances(False), distances(True)
    assert np.median(steered) < 0.03
    assert np.median(steered) < 0.7 * np.median(free)
