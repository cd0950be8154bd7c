"""Judging: what counts as right, what does not, and how sure a share is."""

import math
import random
from dataclasses import replace

import pytest
import torch

from limner.picturebook.evaluation import (
    Mean,
    Proportion,
    judge,
    perfect_findings,
    preferred,
    psnr,
    relation_holds,
    retrieved,
    tally,
)
from limner.picturebook.probe import Seen, SeenThing
from limner.picturebook.world import Scene, Thing, World, swapped


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(3)
    return [World().sample(rng) for _ in range(500)]


def box(x: float, y: float, side: float = 0.2, kind: str = "cat", colour: str = "red") -> SeenThing:
    return SeenThing(kind, colour, x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def test_the_scene_itself_is_entirely_right(scenes):
    for scene in scenes:
        verdict = judge(scene, perfect_findings(scene))
        assert verdict.strictly_right, scene
        assert verdict.things_right == verdict.colours_right == verdict.sizes_right == len(scene.things)
        assert (verdict.relation_right is None) == (scene.relation == "alone")


def test_every_careless_reading_is_found(scenes):
    """A scene that differs in one way is not entirely right, and the figure that sees it is the right one."""
    for scene in scenes:
        for other in swapped(scene):
            verdict = judge(scene, perfect_findings(other))
            assert not verdict.all_right, (scene, other)
            looks = sorted((t.kind, t.colour) for t in scene.things)
            if looks == sorted((t.kind, t.colour) for t in other.things):
                assert verdict.relation_right is False, (scene, other)  # only sides or relation differ
                assert verdict.things_right == verdict.colours_right == verdict.asked
            elif len(other.things) != len(scene.things):
                assert not verdict.count_right
            else:
                assert verdict.count_right
                assert verdict.colours_right < verdict.asked


def test_each_part_counts_for_itself():
    scene = Scene((Thing("cat", "red", "medium", 0.5, 0.7, 0.45),), "alone", "meadow")
    [thing] = perfect_findings(scene).things
    seen = perfect_findings(scene)
    assert not judge(scene, replace(seen, setting="sea")).all_right
    assert not judge(scene, replace(seen, time="night")).all_right
    for field, value in {"weather": "rain", "style": "pixel"}.items():
        verdict = judge(scene, replace(seen, **{field: value}))
        assert verdict.all_right
        assert not verdict.strictly_right
        assert not getattr(verdict, field)
    small = replace(thing, left=thing.left + 0.1, right=thing.right - 0.1, top=thing.top + 0.1)
    verdict = judge(scene, replace(seen, things=(small,)))
    assert (verdict.all_right, verdict.sizes_right, verdict.strictly_right) == (True, 0, False)


def test_things_that_are_too_many_or_too_few():
    scene = Scene((Thing("cat", "red", "medium", 0.5, 0.7, 0.45),), "alone", "meadow")
    seen = perfect_findings(scene)
    extra = judge(scene, replace(seen, things=(*seen.things, box(0.2, 0.2, kind="dog"))))
    assert (extra.things_right, extra.count_right, extra.all_right) == (1, False, False)
    nothing = judge(scene, replace(seen, things=()))
    assert (nothing.things_right, nothing.colours_right, nothing.count_right) == (0, 0, False)


def test_one_seen_thing_serves_one_asked_thing():
    group = Scene(tuple(Thing("cat", "red", "medium", x, 0.7, 0.3) for x in (0.3, 0.7)), "group", "meadow")
    verdict = judge(group, replace(perfect_findings(group), things=(box(0.3, 0.7),)))
    assert (verdict.things_right, verdict.relation_right) == (1, False)


def test_matching_prefers_kind_then_colour_then_place():
    asked = (Thing("cat", "red", "medium", 0.3, 0.7, 0.2), Thing("cat", "blue", "medium", 0.7, 0.7, 0.2))
    scene = Scene(asked, "left of", "meadow")
    swapped_sides = (box(0.3, 0.7, colour="blue"), box(0.7, 0.7, colour="red"))
    verdict = judge(scene, replace(perfect_findings(scene), things=swapped_sides))
    assert (verdict.things_right, verdict.colours_right, verdict.relation_right) == (2, 2, False)
    one_colour = (box(0.3, 0.7, colour="red"), box(0.7, 0.7, colour="red"))
    verdict = judge(scene, replace(perfect_findings(scene), things=one_colour))
    assert (verdict.things_right, verdict.colours_right, verdict.relation_right) == (2, 1, True)


def test_a_picture_full_of_things_is_matched_as_well_and_soon():
    asked = tuple(Thing("cat", "red", "medium", x, 0.7, 0.2) for x in (0.2, 0.5, 0.8))
    scene = Scene(asked, "group", "meadow")
    crowd = tuple(box(i / 200, 0.7, 0.2, colour="blue") for i in range(200))
    right = tuple(box(x, 0.7, 0.2) for x in (0.25, 0.55, 0.85))
    verdict = judge(scene, replace(perfect_findings(scene), things=crowd + right))
    assert (verdict.things_right, verdict.colours_right, verdict.relation_right) == (3, 3, True)


def test_colour_counts_only_on_a_thing_of_the_kind():
    scene = Scene((Thing("cat", "red", "medium", 0.5, 0.7, 0.45),), "alone", "meadow")
    verdict = judge(
        scene, replace(perfect_findings(scene), things=(box(0.5, 0.7, 0.45, kind="dog", colour="red"),))
    )
    assert (verdict.things_right, verdict.colours_right) == (0, 0)


@pytest.mark.parametrize(
    ("relation", "things", "holds"),
    [
        ("left of", [box(0.3, 0.7), box(0.7, 0.5)], True),
        ("left of", [box(0.7, 0.7), box(0.3, 0.5)], False),
        ("left of", [box(0.5, 0.7), box(0.52, 0.3)], False),  # one above the other
        ("above", [box(0.5, 0.2), box(0.52, 0.7)], True),
        ("above", [box(0.5, 0.7), box(0.5, 0.2)], False),
        ("above", [box(0.3, 0.2), box(0.7, 0.7)], False),
        ("above", [box(0.5, 0.5), box(0.5, 0.7)], False),  # it stands on it
        ("on", [box(0.5, 0.5), box(0.5, 0.7)], True),
        ("on", [box(0.5, 0.55), box(0.5, 0.7)], True),  # a little sunk in
        ("on", [box(0.5, 0.6), box(0.5, 0.7)], False),
        ("on", [box(0.5, 0.4), box(0.5, 0.7)], False),
        ("row", [box(0.2, 0.7), box(0.5, 0.7), box(0.8, 0.7)], True),
        ("row", [box(0.5, 0.7), box(0.2, 0.7), box(0.8, 0.7)], False),
        ("group", [box(0.8, 0.7), box(0.2, 0.7), box(0.5, 0.7)], True),
        ("group", [box(0.5, 0.7), box(0.5, 0.3)], False),
    ],
)
def test_relations(relation, things, holds):
    assert relation_holds(relation, things) is holds


def test_tally():
    one = Scene((Thing("cat", "red", "medium", 0.5, 0.7, 0.45),), "alone", "meadow")
    two = Scene(
        (Thing("cat", "red", "medium", 0.3, 0.7, 0.2), Thing("dog", "blue", "medium", 0.7, 0.7, 0.2)),
        "left of",
        "sea",
    )
    nothing = Seen((), "sea", "day", "clear", "flat")
    figures = tally(
        [judge(one, perfect_findings(one)), judge(two, perfect_findings(two)), judge(two, nothing)]
    )
    assert figures["things"] == Proportion(3, 5)
    assert figures["relations"] == Proportion(1, 2)
    assert figures["settings"] == Proportion(3, 3)
    assert figures["entirely right"] == Proportion(2, 3)
    assert tally([judge(one, perfect_findings(one))])["relations"] == Proportion(0, 0)


def test_wilson_interval():
    # 8 of 10: the textbook value, from the closed form in Wilson 1927.
    low, high = Proportion(8, 10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Proportion(10, 10).interval[1] == pytest.approx(1.0)
    assert Proportion(10, 10).interval[0] < 0.8
    assert str(Proportion(95, 100)) == "95.0 % (88.8 to 97.8)"
    assert (math.isnan(Proportion(0, 0).value), str(Proportion(0, 0))) == (True, "none")


def test_psnr_and_its_mean():
    originals = torch.zeros(4, 3, 8, 8)
    values = psnr(originals + 0.02, originals)
    torch.testing.assert_close(values, torch.full((4,), 40.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert psnr(torch.full((1, 3, 8, 8), 9.0), torch.ones(1, 3, 8, 8)) == math.inf  # clamped
    mean = Mean.over(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mean.value == 2.5
    assert mean.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert mean.interval[0] < 2.5 < mean.interval[1]


def test_retrieval():
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(100, 64, generator=generator), dim=1)
    assert retrieved(texts, texts, among=50) == Proportion(100, 100)
    exchanged = texts[torch.arange(100) ^ 1]  # neighbours exchanged, within each group
    assert retrieved(texts, exchanged, among=50) == Proportion(0, 100)
    assert retrieved(texts, texts, among=64) == Proportion(64, 64)  # what is left over is not counted


def test_false_answers():
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    queries = answers = torch.stack([east, east, east])
    false = [north[None], torch.stack([north, east]), torch.empty(0, 2)]
    assert preferred(queries, answers, false) == Proportion(1, 2)  # a tie is no preference
