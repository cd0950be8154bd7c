"""Scenes: what is sampled, how it is laid out, what is held out."""

import random
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from limner.errors import InvalidRequest
from limner.picturebook.scene import COLOURS, KINDS, SETTINGS, STYLES, TIMES, WEATHERS, Scene
from limner.picturebook.world import World, is_held_out, plain_caption, read_world, regions, swapped


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [World().sample(rng) for _ in range(3000)]


def combinations_in(scene: Scene) -> set[str]:
    """The combinations that the split is about, named independently of the code under test."""
    found = {f"{thing.colour} {thing.kind}" for thing in scene.things}
    if scene.relation in ("left of", "above", "on", "row"):
        word = "left of" if scene.relation == "row" else scene.relation
        found |= {f"{a.kind} {word} {b.kind}" for a, b in combinations(scene.things, 2)}
    return found


def test_sampling_is_deterministic() -> None:
    one, other = random.Random(7), random.Random(7)
    assert [World().sample(one) for _ in range(50)] == [World().sample(other) for _ in range(50)]


def test_everything_occurs(scenes: list[Scene]) -> None:
    assert {t.kind for s in scenes for t in s.things} == set(KINDS)
    assert {t.colour for s in scenes for t in s.things} == set(COLOURS)
    assert {s.setting for s in scenes} == set(SETTINGS)
    assert {s.time for s in scenes} == set(TIMES)
    assert {s.weather for s in scenes} == set(WEATHERS)
    assert {s.style for s in scenes} == set(STYLES)
    assert {s.relation for s in scenes} == {"alone", "left of", "above", "on", "row", "group"}
    few = sum(len(s.things) <= 2 for s in scenes) / len(scenes)
    assert 0.8 < few < 0.95


def test_things_lie_inside_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = regions(scene, 128)
        for left, top, right, bottom in boxes:
            # Two pixels are left for the rim.
            assert left >= 2
            assert top >= 2
            assert right <= 126
            assert bottom <= 126
            assert max(right - left, bottom - top) >= 26
        for a, b in combinations(boxes, 2):
            # A hundredth of a pixel, for positions are rounded to 1e-4 of the picture.
            apart = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
            assert apart > (-0.03 if scene.relation == "on" else 1.5), scene


def test_relations_hold_in_the_picture(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = regions(scene, 128)
        if scene.relation in ("left of", "row", "group"):
            for a, b in pairwise(boxes):
                assert a[2] < b[0]
        elif scene.relation == "above":
            assert boxes[1][1] - boxes[0][3] > 5
            assert abs(scene.things[0].x - scene.things[1].x) < 0.1
        elif scene.relation == "on":
            assert abs(boxes[0][3] - boxes[1][1]) < 0.03
            assert abs(scene.things[0].x - scene.things[1].x) < 0.01
        if scene.relation == "group":
            assert len({(t.kind, t.colour, t.size, t.extent) for t in scene.things}) == 1
        else:
            assert len({(t.kind, t.colour) for t in scene.things}) == len(scene.things)


def test_size_words_mean_sizes(scenes: list[Scene]) -> None:
    for count in (1, 2, 3):
        extents = {
            size: [t.extent for s in scenes if len(s.things) == count for t in s.things if t.size == size]
            for size in ("small", "medium", "big")
        }
        assert max(extents["small"]) < min(extents["medium"])
        assert max(extents["medium"]) < min(extents["big"], default=1)


def test_split_is_disjoint_and_fixed() -> None:
    rng = random.Random(1)
    training = [World().training_scene(rng) for _ in range(3000)]
    held_out = [World().held_out_scene(rng) for _ in range(600)]
    assert not any(map(is_held_out, training))
    assert all(map(is_held_out, held_out))
    seen = set().union(*map(combinations_in, training))
    assert all(combinations_in(scene) - seen for scene in held_out)
    # Training meets every word, only not every combination, and the split never moves.
    pairs = {f"{colour} {kind}" for colour in COLOURS for kind in KINDS} - seen
    assert len(pairs) == 20
    assert {"white cat", "red apple", "purple rocket", "orange boat"} <= pairs
    missing = Counter(word for pair in pairs for word in pair.split())
    assert max(missing.values()) <= 4


def test_a_smaller_world_stays_small() -> None:
    world = World(
        ("cat", "house"), ("red", "blue"), ("snow",), ("night",), ("clear",), ("flat",), max_things=2
    )
    rng = random.Random(2)
    scenes = [world.sample(rng) for _ in range(300)]
    assert {t.kind for s in scenes for t in s.things} == {"cat", "house"}
    assert {t.colour for s in scenes for t in s.things} == {"red", "blue"}
    assert {(s.setting, s.time, s.weather, s.style) for s in scenes} == {("snow", "night", "clear", "flat")}
    assert max(len(s.things) for s in scenes) == 2
    assert {t.kind for s in scenes if s.relation == "on" for t in s.things[1:]} == {"house"}


def test_the_smallest_worlds_can_be_sampled() -> None:
    rng = random.Random(3)
    one = World(("ball",), ("red",))
    assert {one.sample(rng).relation for _ in range(100)} == {"alone", "group"}
    with pytest.raises(InvalidRequest, match="held-out split"):
        one.held_out_scene(rng)
    assert {World(("ball",), max_things=1).sample(rng).relation for _ in range(50)} == {"alone"}


@pytest.mark.parametrize(
    "wrong", [{"kinds": ("unicorn",)}, {"colours": ()}, {"times": ("day", "day")}, {"max_things": 4}]
)
def test_a_world_of_unknown_things_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidRequest):
        World(**wrong)


def test_swapped_scenes_differ_and_can_be_drawn(scenes: list[Scene]) -> None:
    for scene in scenes[:800]:
        variants = swapped(scene)
        assert variants == swapped(scene)
        assert len(variants) >= 2
        for variant in variants:
            assert plain_caption(variant) != plain_caption(scene)
            assert variant.setting == scene.setting
            assert variant.style == scene.style
            for left, top, right, bottom in regions(variant):
                assert min(left, top) >= 2
                assert max(right, bottom) <= 126


def test_swapped_exchanges_colours_and_sides() -> None:
    rng = random.Random(4)
    scene = next(
        s
        for s in iter(lambda: World().sample(rng), None)
        if s.relation == "left of"
        and len({t.colour for t in s.things}) == len({t.kind for t in s.things}) == 2
    )
    (a, b) = scene.things
    looks = [[(t.kind, t.colour) for t in v.things] for v in swapped(scene) if v.relation == "left of"]
    assert [(a.kind, b.colour), (b.kind, a.colour)] in looks
    assert [(b.kind, b.colour), (a.kind, a.colour)] in looks


def test_a_world_is_read_from_a_file_or_from_the_card_of_a_model(tmp_path: Path) -> None:
    file, card = tmp_path / "world.json", tmp_path / "limner.json"
    file.write_text('{"kinds": ["cat", "dog"], "max_things": 2}')
    assert read_world(None, card) == read_world(None) == World()
    card.write_text('{"words": ["cat"]}')
    assert read_world(None, card) == World()
    card.write_text('{"world": {"styles": ["pixel"]}}')
    assert read_world(None, card) == World(styles=("pixel",))
    assert read_world(file, card) == World(kinds=("cat", "dog"), max_things=2)


@pytest.mark.parametrize("text", ["{", '{"dragons": true}', '{"kinds": ["unicorn"]}', '{"kinds": 3}', "[]"])
def test_fields_of_no_world_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "world.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"world\.json does not give the fields of a picturebook world"):
        read_world(file)
    with pytest.raises(InvalidRequest, match=r"gone\.json does not give"):
        read_world(tmp_path / "gone.json")
