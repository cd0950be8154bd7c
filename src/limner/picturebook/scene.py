"""What a picture shows: the vocabulary of the picture world, `Thing` and `Scene`.

A scene holds everything that the renderer and the captions need, so equal scenes give equal pixels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Relation = Literal["alone", "left of", "above", "on", "row", "group"]
Size = Literal["small", "medium", "big"]

KINDS = (
    "house", "tree", "boat", "cat", "dog", "bird", "fish", "butterfly", "flower", "mushroom",
    "car", "train", "rocket", "balloon", "kite", "star", "ball", "apple", "cup", "hat",
    "umbrella", "key", "castle", "chair", "lamp", "snowman", "heart", "crown",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
SIZES: tuple[Size, ...] = get_args(Size)
SETTINGS = ("meadow", "sea", "beach", "desert", "snow", "city", "forest", "mountains")
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "cloudy", "rain", "snowfall")
STYLES = ("flat", "outlined", "pixel")


@dataclass(frozen=True)
class Thing:
    """One thing in a picture.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        size: Size as captions name it.
        x: Centre of its bounding box from the left, in fractions of the picture's side.
        y: The same from the top.
        extent: Longer side of its bounding box, in fractions of the picture's side.
        grounded: Whether it stands on the ground and casts a shadow there.
    """

    kind: str
    colour: str
    size: Size
    x: float
    y: float
    extent: float
    grounded: bool = True


@dataclass(frozen=True)
class Scene:
    """A whole picture.

    Attributes:
        things: The things in it, one to three.
        relation: How the things stand to each other: "alone" is one thing; "left of", "above" and "on" hold
            from the first to the second; "row" is different things from left to right; "group" is two or
            three of one kind, colour and size, side by side.
        setting: One of `SETTINGS`.
        time: One of `TIMES`.
        weather: One of `WEATHERS`.
        style: One of `STYLES`.
        backdrop: Layout of the setting, 0 to 3.
    """

    things: tuple[Thing, ...]
    relation: Relation
    setting: str
    time: str = "day"
    weather: str = "clear"
    style: str = "flat"
    backdrop: int = 0
