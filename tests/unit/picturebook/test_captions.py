"""Captions, read back by a small parser that shares no table with the code under test."""

import random
import re

import pytest

from limner.picturebook.scene import COLOURS, KINDS, Scene, Thing
from limner.picturebook.world import World, caption, plain_caption, vocabulary

NOUNS = {kind: kind for kind in KINDS} | {
    "sailboat": "boat", "cottage": "house", "mug": "cup", "kitten": "cat", "puppy": "dog",
    "top hat": "hat", "spaceship": "rocket",
}  # fmt: skip
PLURALS = {"puppies": "dog", "butterflies": "butterfly", "snowmen": "snowman", "fish": "fish"}
PLURALS |= {noun + "s": kind for noun, kind in NOUNS.items()}
SIZES = {"small": "small", "little": "small", "tiny": "small", "big": "big", "large": "big", "huge": "big"}
THING = re.compile(
    rf"\b(a|an|two|three) (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) "
    rf"({'|'.join(sorted(NOUNS | PLURALS, key=len, reverse=True))})\b"
)
SETTING = {
    "meadow": r"\bmeadow\b|\bgrass\b|(?<!snowy )field\b", "sea": r"\bsea\b|\bwater\b|\bocean\b",
    "beach": r"\bbeach\b", "desert": r"\bdesert\b", "snow": r"in the snow\b|on snow\b|\bsnowy\b|\bwinter\b",
    "city": r"\bcity\b|\btown\b|\bbuildings\b",
    "forest": r"\bforest\b|\bwoods\b", "mountains": r"\bmountains\b",
}  # fmt: skip
TIME = {"sunset": r"sunset|dusk|evening|sun sets", "night": r"\bnight\b"}
WEATHER = {"rain": r"\brain", "snowfall": r"falling snow|it snows|snow falling", "cloudy": r"\bcloud"}
STYLE = {"pixel": r"\bpixel\b", "outlined": r"outline|cartoon"}


def the_one(patterns: dict[str, str], text: str, otherwise: str = "") -> str:
    found = [name for name, pattern in patterns.items() if re.search(pattern, text)]
    assert len(found) <= 1, (found, text)
    return found[0] if found else otherwise


def read(text: str) -> tuple[object, ...]:
    """What a caption says: its things in the order of the scene, relation (None where it leaves it
    open), setting, time, weather and style."""
    found = list(THING.finditer(text))
    looks = [
        (NOUNS.get(m[4]) or PLURALS[m[4]], m[3], SIZES.get(m[2] or "", "medium"))
        for m in found
        for _ in range({"two": 2, "three": 3}.get(m[1], 1))
    ]
    relation: str | None = "alone"
    if len(looks) > len(found):
        relation = "group"
    elif len(looks) == 3:
        relation = "row"
        if " between " in text:
            looks = [looks[1], looks[0], looks[2]]
    elif len(looks) == 2:
        between = text[found[0].end() : found[1].start()].strip()
        if between == "with":
            assert text[found[1].end() :].startswith(" on top")
        relation, turned = {
            "with": ("on", True), "on": ("on", False), "on top of": ("on", False),
            "standing on": ("on", False), "sitting on": ("on", False),
            "above": ("above", False), "over": ("above", False), "high above": ("above", False),
            "below": ("above", True), "under": ("above", True), "beneath": ("above", True),
            "next to": (None, False), "beside": (None, False), "and": (None, False),
        }.get(between, ("left of", "right" in between))  # fmt: skip
        if relation == "left of":
            assert re.fullmatch(r"(to |on )?(the )?(left|right) (side )?of", between)
        looks = looks[::-1] if turned else looks
    return (
        looks,
        relation,
        the_one(SETTING, text),
        the_one(TIME, text, "day"),
        the_one(WEATHER, text, "clear"),
        the_one(STYLE, text, "flat"),
    )


def meaning(scene: Scene) -> tuple[object, ...]:
    looks = [(thing.kind, thing.colour, thing.size) for thing in scene.things]
    return looks, scene.relation, scene.setting, scene.time, scene.weather, scene.style


def test_captions_say_exactly_what_the_scene_shows() -> None:
    rng = random.Random(0)
    open_relations = 0
    for _ in range(4000):
        scene = World().sample(rng)
        assert read(plain_caption(scene)) == meaning(scene)
        text = caption(scene, rng)
        told = read(text)
        if told[1] is None:
            open_relations += 1
            assert scene.relation == "left of"
            told = (told[0], "left of", *told[2:])
        assert told == meaning(scene), text
    assert 0 < open_relations < 200


def test_the_style_can_be_left_out_and_nothing_else() -> None:
    rng = random.Random(3)
    for _ in range(1000):
        scene = World().sample(rng)
        text = caption(scene, rng, says_style=False)
        assert not re.search(r"pixel|outline|cartoon|flat|drawing|picture|illustration", text)
        looks, relation, *place, style = read(text)
        assert style == "flat"
        assert (looks, relation or "left of", *place) == meaning(scene)[:-1], text


def test_captions_are_short_varied_and_of_few_words() -> None:
    rng = random.Random(1)
    words: set[str] = set()
    for _ in range(4000):
        text = caption(World().sample(rng), rng)
        assert re.fullmatch(r"[a-z, ]+", text)
        assert "  " not in text
        assert len(text.split()) <= 28
        words.update(re.findall(r"[a-z]+", text))
    assert words <= vocabulary()
    assert len(vocabulary()) <= 200
    scene = World().sample(rng)
    assert len({caption(scene, rng) for _ in range(100)}) > 20


@pytest.mark.parametrize(
    ("scene", "wanted"),
    [
        (
            Scene(
                (
                    Thing("house", "red", "medium", 0.3, 0.6, 0.3),
                    Thing("tree", "green", "medium", 0.7, 0.6, 0.3),
                ),
                "left of",
                "snow",
                "night",
            ),
            "a red house left of a green tree in the snow at night",
        ),
        (
            Scene((Thing("boat", "yellow", "medium", 0.5, 0.6, 0.4),), "alone", "sea", "sunset"),
            "a yellow boat on the sea at sunset",
        ),
    ],
)
def test_the_examples_can_be_phrased(scene: Scene, wanted: str) -> None:
    assert plain_caption(scene) == wanted
    rng = random.Random(2)
    assert wanted in {caption(scene, rng) for _ in range(2000)}
