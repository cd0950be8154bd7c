"""Scenes to captions in exact and varied English.

What a caption does not mention has a default: the time is day, the weather clear, the style flat and a size
medium.
"""

import random
import re
from collections.abc import Sequence

from limner.picturebook.scene import COLOURS, KINDS, Scene, Thing

_KIND_WORDS: dict[str, tuple[str, ...]] = {
    "boat": ("boat", "sailboat"),
    "house": ("house", "cottage"),
    "cup": ("cup", "mug"),
    "cat": ("cat", "kitten"),
    "dog": ("dog", "puppy"),
    "hat": ("hat", "top hat"),
    "rocket": ("rocket", "spaceship"),
}
_PLURALS = {"butterfly": "butterflies", "fish": "fish", "puppy": "puppies", "snowman": "snowmen"}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
_LONGEST = 28  # words of a caption
_COUNTS = {2: "two", 3: "three"}
_SETTING_WORDS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "in the meadow", "on the grass", "in a green field", "on a green meadow"),
    "sea": ("on the sea", "at sea", "on the water", "on the ocean", "on the blue sea"),
    "beach": ("on the beach", "at the beach", "on a sandy beach", "on a beach"),
    "desert": ("in the desert", "in a desert", "in the sandy desert", "among desert dunes"),
    "snow": ("in the snow", "on snow", "in a snowy field", "in a snowy landscape", "in a winter landscape"),
    "city": ("in the city", "in a city", "in town", "on a city street", "in front of tall buildings"),
    "forest": ("in the forest", "in a forest", "in the woods", "by the forest"),
    "mountains": ("in the mountains", "in front of mountains", "near the mountains", "by the mountains"),
}
_TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "during the day", "in daylight", "in the daytime"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening", "while the sun sets"),
    "night": ("at night", "at night", "by night", "in the night", "during the night"),
}
_WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("under a clear sky", "in clear weather"),
    "cloudy": ("under a cloudy sky", "under clouds", "in cloudy weather", "with clouds in the sky"),
    "rain": ("in the rain", "while it rains", "with rain falling", "in rainy weather"),
    "snowfall": ("in falling snow", "while it snows", "with snow falling", "with falling snowflakes"),
}
_STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "flat": ("a picture of", "a flat picture of", "a flat drawing of", "an illustration of"),
    "outlined": (
        "an outlined drawing of",
        "an outlined picture of",
        "a drawing with dark outlines of",
        "a cartoon of",
    ),
    "pixel": ("pixel art of", "a pixel art picture of", "a pixel drawing of"),
}
_STYLE_SUFFIXES = {
    "outlined": ("with dark outlines", "outlined", "cartoon"),
    "pixel": ("pixel art", "in pixel art style"),
}
_LEFT = ("left of", "left of", "to the left of", "on the left of", "on the left side of")
_RIGHT = ("right of", "right of", "to the right of", "on the right of", "on the right side of")
_ABOVE = ("above", "above", "over", "high above")
_BELOW = ("below", "below", "under", "beneath")
_ON = ("on", "on", "on top of", "standing on", "sitting on")


def plain_caption(scene: Scene) -> str:
    """The canonical caption of a scene; all its other captions mean the same."""
    style = {"flat": "", "outlined": "an outlined drawing of ", "pixel": "pixel art of "}[scene.style]
    time = {"day": "", "sunset": " at sunset", "night": " at night"}[scene.time]
    weather = {
        "clear": "",
        "cloudy": " under a cloudy sky",
        "rain": " in the rain",
        "snowfall": " in falling snow",
    }
    things = [_thing(thing, None) for thing in scene.things]
    if scene.relation == "group":
        subject = _group(scene.things, None)
    elif scene.relation == "row":
        subject = f"{things[0]}, {things[1]} and {things[2]} in a row"
    elif scene.relation == "alone":
        subject = things[0]
    else:
        subject = f"{things[0]} {scene.relation} {things[1]}"
    return f"{style}{subject} {_SETTING_WORDS[scene.setting][0]}{time}{weather[scene.weather]}"


def caption(scene: Scene, rng: random.Random, *, says_style: bool = True) -> str:
    """One of the scene's many exact captions, of at most 28 words.

    Args:
        says_style: Whether the caption names the style.
    """
    while True:
        words = _phrase(scene, rng, says_style)
        if len(words.split()) <= _LONGEST:
            return words


def _phrase(scene: Scene, rng: random.Random, says_style: bool) -> str:
    subject = _subject(scene, rng)
    place = [_pick(_SETTING_WORDS[scene.setting], rng)]
    if scene.time != "day" or rng.random() < 0.15:
        place.append(_pick(_TIME_WORDS[scene.time], rng))
    if scene.weather != "clear" or rng.random() < 0.08:
        place.append(_pick(_WEATHER_WORDS[scene.weather], rng))
        if rng.random() < 0.3:
            place[1:] = reversed(place[1:])
    words = f"{subject} {' '.join(place)}"
    if rng.random() < 0.08:
        # The place can come first: "in the snow at night, a red house".
        words = f"{' '.join(place)}, {subject}"
    if not says_style:
        return words
    if scene.style == "flat":
        plain = rng.random() >= 0.15 or not words.startswith(subject)
        return words if plain else f"{_pick(_STYLE_WORDS['flat'], rng)} {words}"
    if rng.random() < 0.25 or not words.startswith(subject):
        return f"{words}, {_pick(_STYLE_SUFFIXES[scene.style], rng)}"
    return f"{_pick(_STYLE_WORDS[scene.style], rng)} {words}"


def vocabulary() -> frozenset[str]:
    """Every word that occurs in captions."""
    tables = (
        _KIND_WORDS,
        _SIZE_WORDS,
        _SETTING_WORDS,
        _TIME_WORDS,
        _WEATHER_WORDS,
        _STYLE_WORDS,
        _STYLE_SUFFIXES,
    )
    phrases = [phrase for table in tables for words in table.values() for phrase in words]
    phrases += [*KINDS, *COLOURS, *_COUNTS.values(), *_LEFT, *_RIGHT, *_ABOVE, *_BELOW, *_ON]
    singular = [*KINDS, *(word for words in _KIND_WORDS.values() for word in words)]
    phrases += [_plural(word) for word in singular]
    phrases += ["a an and with on top next to beside between in a row side by side from left to right"]
    return frozenset(re.findall(r"[a-z]+", " ".join(phrases)))


def kinds_in(text: str) -> frozenset[str]:
    """The kinds of things that a text names, in the words of captions."""
    words = {kind: _KIND_WORDS.get(kind, (kind,)) for kind in KINDS}
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    return frozenset(
        kind
        for kind, its in words.items()
        if any(re.search(rf"\b({word}|{_plural(word)})\b", text) for word in its)
    )


def _subject(scene: Scene, rng: random.Random) -> str:
    if scene.relation == "group":
        return _group(scene.things, rng) + _pick(("", "", "", " side by side", " in a row"), rng)
    things = [_thing(thing, rng) for thing in scene.things]
    if scene.relation == "alone":
        return things[0]
    if scene.relation == "row":
        form = rng.randrange(3)
        if form == 0:
            return f"{things[1]} between {things[0]} and {things[2]}"
        if form == 1:
            return f"{things[0]}, {things[1]} and {things[2]} in a row"
        return f"{things[0]}, {things[1]} and {things[2]} from left to right"
    first, second = things
    if scene.relation == "left of":
        draw = rng.random()
        if draw < 0.06:
            return f"{first} {_pick(('next to', 'beside'), rng)} {second}"
        if draw < 0.12:
            return f"{first} and {second}"
        if draw < 0.56:
            return f"{first} {_pick(_LEFT, rng)} {second}"
        return f"{second} {_pick(_RIGHT, rng)} {first}"
    if scene.relation == "above":
        if rng.random() < 0.5:
            return f"{first} {_pick(_ABOVE, rng)} {second}"
        return f"{second} {_pick(_BELOW, rng)} {first}"
    if rng.random() < 0.2:
        return f"{second} with {first} on top"
    return f"{first} {_pick(_ON, rng)} {second}"


def _thing(thing: Thing, rng: random.Random | None) -> str:
    words = " ".join([*_size(thing, rng), thing.colour, _kind(thing, rng)])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _group(things: Sequence[Thing], rng: random.Random | None) -> str:
    return " ".join(
        [_COUNTS[len(things)], *_size(things[0], rng), things[0].colour, _plural(_kind(things[0], rng))]
    )


def _kind(thing: Thing, rng: random.Random | None) -> str:
    words = _KIND_WORDS.get(thing.kind, (thing.kind,))
    return words[0] if rng is None or rng.random() < 0.8 else _pick(words, rng)


def _size(thing: Thing, rng: random.Random | None) -> list[str]:
    words = _SIZE_WORDS.get(thing.size)
    if words is None:
        return []
    return [words[0] if rng is None else _pick(words, rng)]


def _plural(word: str) -> str:
    return _PLURALS.get(word, word + "s")


def _pick(choices: Sequence[str], rng: random.Random) -> str:
    return choices[rng.randrange(len(choices))]
