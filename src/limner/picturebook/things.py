"""Catalogue of the things: each kind as a list of shapes, in the palette of its colour.

The named colour covers most of each thing; accents are few and small. Silhouettes are distinct at 30 pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from limner.picturebook.shapes import (
    Colour,
    Points,
    Shape,
    arc,
    blob,
    ellipse,
    mirrored,
    mix,
    rectangle,
    ring,
    rounded,
    scallop,
    stroke,
)

INK: Colour = (44, 38, 54)
PAPER: Colour = (255, 246, 224)
GLASS: Colour = (196, 230, 246)
WOOD: Colour = (124, 84, 56)
LEAF: Colour = (70, 142, 78)
GOLD: Colour = (250, 196, 60)
CARROT: Colour = (244, 140, 50)

PIGMENTS: dict[str, Colour] = {
    "red": (222, 48, 52),
    "orange": (250, 140, 30),
    "yellow": (254, 216, 48),
    "green": (52, 158, 72),
    "blue": (40, 104, 222),
    "purple": (138, 62, 190),
    "pink": (250, 142, 190),
    "brown": (136, 84, 48),
    "white": (252, 252, 250),
    "black": (44, 42, 52),
}


@dataclass(frozen=True)
class Palette:
    """Tones of one colour."""

    body: Colour
    light: Colour  # a highlight
    shade: Colour  # clearly apart from the body, still the same colour
    trim: Colour  # stripes and spots
    ink: Colour  # eyes and thin lines, readable on the body


def palette(colour: str) -> Palette:
    """The tones of one of `COLOURS`."""
    body = PIGMENTS[colour]
    if colour == "black":
        return Palette(body, (92, 90, 104), (72, 70, 84), PAPER, (236, 232, 226))
    if colour == "white":
        return Palette(body, (255, 255, 255), (218, 224, 235), (212, 219, 231), INK)
    # Dark yellow is brown to the eye, so yellow's shade stays close.
    depth = 0.13 if colour == "yellow" else 0.18
    return Palette(body, mix(body, (255, 255, 255), 0.38), mix(body, (34, 16, 40), depth), PAPER, INK)


@cache
def draw(kind: str, colour: str) -> tuple[Shape, ...]:
    """The shapes of a kind of thing in a colour, first to last, scaled so that the longer side of
    their bounding box is 1 and its centre lies at the origin."""
    shapes = _KINDS[kind](palette(colour))
    xs = [x for shape in shapes for x, _ in shape.points]
    ys = [y for shape in shapes for _, y in shape.points]
    scale = max(max(xs) - min(xs), max(ys) - min(ys))
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    return tuple(
        Shape(tuple(((x - cx) / scale, (y - cy) / scale) for x, y in s.points), s.fill, s.line)
        for s in shapes
    )


@cache
def proportions(kind: str) -> tuple[float, float]:
    """Width and height of a kind's bounding box; the longer one is 1."""
    points = [p for shape in draw(kind, "red") for p in shape.points]
    width = max(x for x, _ in points) - min(x for x, _ in points)
    return width, max(y for _, y in points) - min(y for _, y in points)


def _house(p: Palette) -> list[Shape]:
    return [
        Shape(rectangle(0.12, 0.42, 0.88, 1), p.body),
        Shape(((-0.02, 0.46), (0.2, 0.04), (0.8, 0.04), (1.02, 0.46)), p.shade),
        Shape(rounded(0.42, 0.64, 0.6, 1, 0.06), p.trim),
        Shape(rectangle(0.2, 0.58, 0.35, 0.75), p.trim),
        Shape(rectangle(0.67, 0.58, 0.82, 0.75), p.trim),
        Shape(ellipse(0.51, 0.26, 0.07), p.trim),
        Shape(ellipse(0.565, 0.83, 0.018), WOOD, line=False),
    ]


def _tree(p: Palette) -> list[Shape]:
    trunk = mix(WOOD, INK, 0.35) if p.body == PIGMENTS["brown"] else WOOD
    return [
        Shape(((0.44, 0.6), (0.56, 0.6), (0.6, 1), (0.4, 1)), trunk),
        Shape(scallop(0.5, 0.36, 0.42, 0.36, 9), p.body),
        Shape(ellipse(0.37, 0.25, 0.09, 0.06, -30), p.light, line=False),
        Shape(ellipse(0.64, 0.46, 0.1, 0.06, -20), p.shade, line=False),
        Shape(ellipse(0.36, 0.5, 0.07, 0.045), p.shade, line=False),
    ]


def _boat(p: Palette) -> list[Shape]:
    return [
        Shape(rectangle(0.47, 0.02, 0.51, 0.72), WOOD),
        Shape(((0.54, 0.04), (0.68, 0.3), (0.94, 0.62), (0.54, 0.62)), p.body),
        Shape(((0.44, 0.14), (0.3, 0.4), (0.08, 0.62), (0.44, 0.62)), p.shade),
        Shape(
            blob([(-0.02, 0.7), (0.5, 0.73), (1.02, 0.7), (0.86, 0.96), (0.5, 1.0), (0.14, 0.96)], 4), p.body
        ),
        Shape(((0.07, 0.82), (0.93, 0.82), (0.9, 0.88), (0.1, 0.88)), p.trim, line=False),
    ]


def _cat(p: Palette) -> list[Shape]:
    ear: Points = ((0.24, 0.34), (0.23, 0.02), (0.47, 0.18))
    inner: Points = ((0.28, 0.26), (0.27, 0.1), (0.39, 0.19))
    return [
        Shape(stroke([(0.66, 0.94), (0.92, 0.9), (0.97, 0.68), (0.86, 0.56)], 0.13, 0.1), p.shade),
        Shape(
            blob([(0.5, 0.5), (0.7, 0.62), (0.78, 0.9), (0.66, 1.0), (0.34, 1.0), (0.22, 0.9), (0.3, 0.62)]),
            p.body,
        ),
        Shape(ellipse(0.5, 0.82, 0.13, 0.15), p.light, line=False),
        Shape(ear, p.body),
        Shape(mirrored(ear), p.body),
        Shape(ellipse(0.5, 0.38, 0.31, 0.25), p.body),
        Shape(inner, p.shade, line=False),
        Shape(mirrored(inner), p.shade, line=False),
        Shape(ellipse(0.38, 0.36, 0.045, 0.06), p.ink, line=False),
        Shape(ellipse(0.62, 0.36, 0.045, 0.06), p.ink, line=False),
        Shape(ellipse(0.5, 0.47, 0.09, 0.065), PAPER, line=False),
        Shape(ellipse(0.5, 0.445, 0.035, 0.025), INK, line=False),
    ]


def _dog(p: Palette) -> list[Shape]:
    return [
        Shape(stroke([(0.86, 0.52), (0.98, 0.44), (1.02, 0.26)], 0.1, 0.06), p.body),
        Shape(rounded(0.38, 0.7, 0.49, 0.98, 0.04), p.shade),
        Shape(rounded(0.7, 0.7, 0.81, 0.98, 0.04), p.shade),
        Shape(
            blob(
                [(0.3, 0.46), (0.6, 0.47), (0.88, 0.46), (0.94, 0.62), (0.86, 0.8), (0.6, 0.78), (0.36, 0.8)]
            ),
            p.body,
        ),
        Shape(rounded(0.28, 0.66, 0.41, 1, 0.05), p.body),
        Shape(rounded(0.79, 0.66, 0.92, 1, 0.05), p.body),
        Shape(
            blob(
                [
                    (0.3, 0.12),
                    (0.48, 0.26),
                    (0.46, 0.5),
                    (0.26, 0.56),
                    (-0.02, 0.5),
                    (-0.03, 0.36),
                    (0.12, 0.31),
                ]
            ),
            p.body,
        ),
        Shape(blob([(0.36, 0.14), (0.5, 0.22), (0.52, 0.48), (0.42, 0.54), (0.36, 0.36)]), p.shade),
        Shape(ellipse(-0.02, 0.37, 0.06, 0.05), INK, line=False),
        Shape(ellipse(0.22, 0.29, 0.04, 0.05), p.ink, line=False),
        Shape(
            stroke([(0.3, 0.57), (0.4, 0.6), (0.48, 0.56)], 0.05),
            GOLD if p.body != PIGMENTS["yellow"] else PAPER,
        ),
    ]


def _bird(p: Palette) -> list[Shape]:
    beak = GOLD if p.body not in (PIGMENTS["yellow"], PIGMENTS["orange"]) else PAPER
    return [
        Shape(stroke([(0.44, 0.78), (0.42, 1.0)], 0.04), CARROT),
        Shape(stroke([(0.58, 0.78), (0.58, 1.0)], 0.04), CARROT),
        Shape(((0.2, 0.44), (-0.1, 0.3), (-0.12, 0.42), (-0.04, 0.5), (0.2, 0.66)), p.shade),
        Shape(((0.86, 0.22), (1.08, 0.33), (0.86, 0.42)), beak),
        Shape(
            blob(
                [
                    (0.7, 0.06),
                    (0.9, 0.18),
                    (0.92, 0.36),
                    (0.84, 0.68),
                    (0.56, 0.86),
                    (0.26, 0.76),
                    (0.1, 0.5),
                    (0.32, 0.42),
                    (0.52, 0.18),
                ]
            ),
            p.body,
        ),
        Shape(
            blob([(0.6, 0.42), (0.64, 0.6), (0.48, 0.72), (0.24, 0.62), (0.14, 0.5), (0.38, 0.46)]), p.shade
        ),
        Shape(ellipse(0.76, 0.26, 0.065), PAPER, line=False),
        Shape(ellipse(0.775, 0.26, 0.04), INK, line=False),
    ]


def _fish(p: Palette) -> list[Shape]:
    return [
        Shape(
            blob([(0.7, 0.5), (0.96, 0.22), (1.04, 0.28), (0.94, 0.5), (1.04, 0.72), (0.96, 0.78)]), p.shade
        ),
        Shape(blob([(0.28, 0.3), (0.42, 0.08), (0.62, 0.16), (0.64, 0.34)]), p.shade),
        Shape(
            blob(
                [
                    (0.0, 0.52),
                    (0.18, 0.3),
                    (0.46, 0.22),
                    (0.7, 0.36),
                    (0.84, 0.5),
                    (0.7, 0.64),
                    (0.46, 0.78),
                    (0.18, 0.72),
                ]
            ),
            p.body,
        ),
        Shape(stroke([(0.42, 0.25), (0.37, 0.5), (0.42, 0.75)], 0.06), p.trim, line=False),
        Shape(stroke([(0.6, 0.31), (0.56, 0.5), (0.6, 0.69)], 0.055), p.trim, line=False),
        Shape(ellipse(0.2, 0.45, 0.075), PAPER, line=False),
        Shape(ellipse(0.185, 0.45, 0.045), INK, line=False),
    ]


def _butterfly(p: Palette) -> list[Shape]:
    upper = blob([(0.5, 0.46), (0.32, 0.1), (0.06, 0.04), (-0.02, 0.26), (0.1, 0.5), (0.36, 0.56)])
    lower = blob([(0.49, 0.52), (0.28, 0.52), (0.1, 0.68), (0.18, 0.92), (0.36, 0.92), (0.48, 0.7)])
    spots = (ellipse(0.18, 0.26, 0.09), ellipse(0.27, 0.73, 0.07))
    antenna = stroke([(0.5, 0.3), (0.45, 0.14), (0.38, 0.08)], 0.025)
    dark = p.shade if p.body == PIGMENTS["black"] else INK
    return [
        Shape(antenna, dark, line=False),
        Shape(mirrored(antenna), dark, line=False),
        *(Shape(wing, p.shade) for wing in (lower, mirrored(lower))),
        *(Shape(wing, p.body) for wing in (upper, mirrored(upper))),
        *(Shape(spot, p.trim, line=False) for s in spots for spot in (s, mirrored(s))),
        Shape(ellipse(0.5, 0.52, 0.05, 0.27), dark),
    ]


def _flower(p: Palette) -> list[Shape]:
    centre = WOOD if p.body in (PIGMENTS["yellow"], PIGMENTS["orange"]) else GOLD
    stem = mix(LEAF, INK, 0.3)
    leaf = blob([(0.5, 0.92), (0.62, 0.72), (0.84, 0.68), (0.74, 0.88)])
    petals = [
        ellipse(0.5 + 0.21 * math.sin(a), 0.32 - 0.21 * math.cos(a), 0.115, 0.145, math.degrees(a))
        for a in (math.tau * i / 6 for i in range(6))
    ]
    return [
        Shape(stroke([(0.5, 0.4), (0.5, 1.0)], 0.06), stem),
        Shape(leaf, stem),
        Shape(mirrored(leaf), stem),
        *(Shape(petal, p.body) for petal in petals),
        Shape(ellipse(0.5, 0.32, 0.115), centre),
    ]


def _mushroom(p: Palette) -> list[Shape]:
    return [
        Shape(
            blob([(0.38, 0.5), (0.62, 0.5), (0.64, 0.8), (0.7, 0.98), (0.5, 1.0), (0.3, 0.98), (0.36, 0.8)]),
            PAPER,
        ),
        Shape((*arc(0.5, 0.56, 0.5, 0.52, 180, 360), *arc(0.5, 0.56, 0.5, 0.09, 0, 180)), p.body),
        Shape(ellipse(0.42, 0.24, 0.1, 0.085), p.trim, line=False),
        Shape(ellipse(0.18, 0.46, 0.075, 0.08), p.trim, line=False),
        Shape(ellipse(0.64, 0.46, 0.09, 0.075), p.trim, line=False),
        Shape(ellipse(0.76, 0.26, 0.055, 0.05), p.trim, line=False),
    ]


def _car(p: Palette) -> list[Shape]:
    return [
        Shape(((0.18, 0.5), (0.3, 0.22), (0.7, 0.22), (0.86, 0.5)), p.body),
        Shape(((0.27, 0.48), (0.35, 0.29), (0.48, 0.29), (0.48, 0.48)), GLASS),
        Shape(((0.53, 0.48), (0.53, 0.29), (0.66, 0.29), (0.76, 0.48)), GLASS),
        Shape(rounded(0.0, 0.46, 1.04, 0.74, 0.1), p.body),
        Shape(rectangle(0.02, 0.62, 1.02, 0.67), p.shade, line=False),
        *(Shape(ellipse(x, 0.74, 0.13), INK) for x in (0.24, 0.8)),
        *(Shape(ellipse(x, 0.74, 0.06), PAPER, line=False) for x in (0.24, 0.8)),
        Shape(ellipse(0.99, 0.55, 0.045), GOLD, line=False),
    ]


def _train(p: Palette) -> list[Shape]:
    return [
        Shape(((0.12, 0.42), (0.08, 0.12), (0.3, 0.12), (0.26, 0.42)), p.shade),
        Shape(rounded(0.02, 0.36, 0.68, 0.72, 0.1), p.body),
        Shape(rounded(0.4, 0.27, 0.54, 0.5, 0.06), p.shade),
        Shape(rectangle(0.6, 0.1, 0.98, 0.74), p.body),
        Shape(rounded(0.54, 0.02, 1.04, 0.12, 0.04), p.shade),
        Shape(rectangle(0.68, 0.2, 0.9, 0.42), GLASS),
        Shape(((0.02, 0.68), (1.0, 0.68), (1.0, 0.8), (-0.06, 0.8)), p.shade),
        *(Shape(ellipse(x, 0.87, 0.1), INK) for x in (0.18, 0.42)),
        Shape(ellipse(0.78, 0.83, 0.15), INK),
        *(
            Shape(ellipse(x, y, 0.045), PAPER, line=False)
            for x, y in ((0.18, 0.87), (0.42, 0.87), (0.78, 0.83))
        ),
    ]


def _rocket(p: Palette) -> list[Shape]:
    fin: Points = ((0.32, 0.52), (0.12, 0.74), (0.12, 0.9), (0.36, 0.76))
    flame = CARROT if p.body != PIGMENTS["orange"] else GOLD
    return [
        Shape(blob([(0.38, 0.76), (0.62, 0.76), (0.58, 0.92), (0.5, 1.04), (0.42, 0.92)]), flame),
        Shape(fin, p.shade),
        Shape(mirrored(fin), p.shade),
        Shape(
            blob([(0.5, -0.02), (0.65, 0.2), (0.7, 0.5), (0.64, 0.8), (0.36, 0.8), (0.3, 0.5), (0.35, 0.2)]),
            p.body,
        ),
        Shape(ellipse(0.5, 0.36, 0.115), p.shade),
        Shape(ellipse(0.5, 0.36, 0.08), GLASS, line=False),
        Shape(rectangle(0.33, 0.64, 0.67, 0.69), p.trim, line=False),
    ]


def _balloon(p: Palette) -> list[Shape]:
    return [
        Shape(stroke([(0.5, 0.7), (0.46, 0.82), (0.54, 0.92), (0.5, 1.04)], 0.025), INK, line=False),
        Shape(((0.5, 0.64), (0.57, 0.73), (0.43, 0.73)), p.shade),
        Shape(
            blob(
                [
                    (0.5, 0.0),
                    (0.74, 0.1),
                    (0.82, 0.34),
                    (0.7, 0.56),
                    (0.5, 0.68),
                    (0.3, 0.56),
                    (0.18, 0.34),
                    (0.26, 0.1),
                ]
            ),
            p.body,
        ),
        Shape(ellipse(0.36, 0.22, 0.05, 0.1, 25), p.light, line=False),
    ]


def _kite(p: Palette) -> list[Shape]:
    return [
        Shape(stroke([(0.5, 0.66), (0.42, 0.78), (0.56, 0.88), (0.48, 1.02)], 0.03), INK, line=False),
        *(
            Shape(
                (
                    (x - 0.08, y - 0.05),
                    (x, y),
                    (x + 0.08, y - 0.05),
                    (x + 0.08, y + 0.05),
                    (x, y),
                    (x - 0.08, y + 0.05),
                ),
                p.shade,
            )
            for x, y in ((0.44, 0.79), (0.52, 0.93))
        ),
        Shape(((0.5, 0.0), (0.8, 0.28), (0.5, 0.7)), p.body),
        Shape(((0.5, 0.0), (0.2, 0.28), (0.5, 0.7)), p.shade),
        Shape(rectangle(0.485, 0.01, 0.515, 0.69), p.trim, line=False),
        Shape(rectangle(0.22, 0.265, 0.78, 0.295), p.trim, line=False),
    ]


def _star(p: Palette) -> list[Shape]:
    points = tuple(
        (0.5 + r * math.sin(math.pi * i / 5), 0.52 - r * math.cos(math.pi * i / 5))
        for i in range(10)
        for r in ((0.52, 0.25)[i % 2],)
    )
    return [
        Shape(points, p.body),
        Shape(ellipse(0.41, 0.47, 0.035, 0.05), p.ink, line=False),
        Shape(ellipse(0.59, 0.47, 0.035, 0.05), p.ink, line=False),
        Shape(stroke(arc(0.5, 0.55, 0.09, 0.07, 20, 160, 6), 0.03), p.ink, line=False),
    ]


def _ball(p: Palette) -> list[Shape]:
    return [
        Shape(ellipse(0.5, 0.5, 0.5), p.body),
        Shape(
            (*arc(0.5, 0.5, 0.5, 0.5, 155, 25, 12), *arc(0.5, 0.5, 0.5, 0.3, 25, 155, 12)),
            p.shade,
            line=False,
        ),
        Shape((*arc(0.5, 0.32, 0.48, 0.26, 175, 5, 12), *arc(0.5, 0.48, 0.48, 0.26, 5, 175, 12)), p.trim),
        Shape(ellipse(0.32, 0.24, 0.09, 0.06, -40), p.light, line=False),
    ]


def _apple(p: Palette) -> list[Shape]:
    return [
        Shape(
            blob(
                [(0.5, 0.3), (0.7, 0.22), (0.94, 0.36), (0.96, 0.64), (0.78, 0.94), (0.6, 1.0),
                 (0.5, 0.96), (0.4, 1.0), (0.22, 0.94), (0.04, 0.64), (0.06, 0.36), (0.3, 0.22)]
            ),
            p.body,
        ),
        Shape(stroke([(0.5, 0.34), (0.5, 0.18), (0.56, 0.04)], 0.06), WOOD),
        Shape(blob([(0.54, 0.2), (0.66, 0.04), (0.9, 0.04), (0.78, 0.2)]), LEAF),
        Shape(ellipse(0.24, 0.46, 0.06, 0.12, 20), p.light, line=False),
    ]  # fmt: skip


def _cup(p: Palette) -> list[Shape]:
    return [
        Shape(ring(0.8, 0.52, 0.24, 0.25, 0.09), p.shade),
        Shape(
            (
                *arc(0.43, 0.18, 0.41, 0.1, 180, 360),
                *arc(0.64, 0.86, 0.14, 0.14, 0, 90, 6),
                *arc(0.22, 0.86, 0.14, 0.14, 90, 180, 6),
            ),
            p.body,
        ),
        Shape(ellipse(0.43, 0.18, 0.41, 0.1), p.shade),
        Shape(ellipse(0.43, 0.2, 0.34, 0.065), WOOD, line=False),
        Shape(ellipse(0.2, 0.52, 0.045, 0.17, -4), p.light, line=False),
    ]


def _hat(p: Palette) -> list[Shape]:
    return [
        Shape(ellipse(0.5, 0.86, 0.56, 0.12), p.shade),
        Shape(
            ((0.22, 0.1), (0.78, 0.1), (0.74, 0.86), *arc(0.5, 0.86, 0.24, 0.05, 0, 180, 8), (0.26, 0.86)),
            p.body,
        ),
        Shape(((0.252, 0.66), (0.748, 0.66), (0.74, 0.82), (0.26, 0.82)), p.trim),
    ]


def _umbrella(p: Palette) -> list[Shape]:
    edge = [point for x in (0.875, 0.625, 0.375, 0.125) for point in arc(x, 0.5, 0.125, 0.08, 0, -180, 6)]
    middle = [point for x in (0.625, 0.375) for point in arc(x, 0.5, 0.125, 0.08, 0, -180, 6)]
    dome = arc(0.5, 0.5, 0.5, 0.42, 180, 360)
    panel = arc(0.5, 0.5, 0.25, 0.42, 180, 360)
    return [
        Shape(stroke([(0.5, 0.4), (0.5, 0.7), (0.5, 0.9), (0.58, 0.98), (0.66, 0.9)], 0.05), WOOD),
        Shape(rectangle(0.48, 0.02, 0.52, 0.12), WOOD),
        Shape((*dome, *edge), p.body),
        Shape((*panel, *middle), p.shade),
    ]


def _key(p: Palette) -> list[Shape]:
    return [
        Shape(ring(0.24, 0.5, 0.26, 0.26, 0.12), p.body),
        Shape(
            (
                (0.47, 0.43),
                (1.04, 0.43),
                (1.04, 0.74),
                (0.94, 0.74),
                (0.94, 0.57),
                (0.86, 0.57),
                (0.86, 0.68),
                (0.76, 0.68),
                (0.76, 0.57),
                (0.47, 0.57),
            ),
            p.body,
        ),
        Shape(rectangle(0.44, 0.38, 0.52, 0.62), p.shade),
    ]


def _castle(p: Palette) -> list[Shape]:
    def battlement(left: float, right: float, top: float, bottom: float) -> Points:
        """A tower with three teeth."""
        step = (right - left) / 5
        teeth = [
            (left + step * (i + side), top + (0.08 if i % 2 else 0.0)) for i in range(5) for side in (0, 1)
        ]
        return (*teeth, (right, bottom), (left, bottom))

    return [
        Shape(battlement(0.28, 0.72, 0.1, 1), p.shade),
        Shape(rectangle(0.1, 0.62, 0.9, 1), p.body),
        Shape(battlement(-0.02, 0.28, 0.28, 1), p.body),
        Shape(battlement(0.72, 1.02, 0.28, 1), p.body),
        Shape((*arc(0.5, 0.78, 0.13, 0.13, 180, 360, 10), (0.63, 1.0), (0.37, 1.0)), WOOD),
        *(Shape(rounded(x - 0.045, 0.48, x + 0.045, 0.62, 0.04), p.trim) for x in (0.13, 0.87)),
        Shape(rounded(0.45, 0.3, 0.55, 0.46, 0.045), p.trim),
    ]


def _chair(p: Palette) -> list[Shape]:
    return [
        *(Shape(rectangle(x, 0.64, x + 0.09, 0.9), p.shade) for x in (0.24, 0.67)),
        *(Shape(rounded(0.24, y, 0.76, y + 0.11, 0.02), p.shade) for y in (0.06, 0.27)),
        *(Shape(rounded(x, -0.02, x + 0.11, 0.56, 0.04), p.body) for x in (0.17, 0.72)),
        Shape(((0.16, 0.5), (0.84, 0.5), (0.92, 0.62), (0.08, 0.62)), p.light),
        Shape(rectangle(0.08, 0.61, 0.92, 0.71), p.body),
        *(Shape(rectangle(x, 0.7, x + 0.11, 1.0), p.body) for x in (0.08, 0.81)),
    ]


def _lamp(p: Palette) -> list[Shape]:
    return [
        Shape(rectangle(0.46, 0.5, 0.54, 0.92), p.shade),
        Shape((*arc(0.5, 0.98, 0.26, 0.12, 180, 360, 12), (0.76, 1.0), (0.24, 1.0)), p.shade),
        Shape(ellipse(0.5, 0.54, 0.09, 0.08), (255, 240, 150)),
        Shape(((0.32, 0.02), (0.68, 0.02), (0.9, 0.5), (0.1, 0.5)), p.body),
        Shape(((0.12, 0.45), (0.88, 0.45), (0.9, 0.5), (0.1, 0.5)), p.shade, line=False),
        Shape(((0.36, 0.08), (0.44, 0.08), (0.36, 0.4), (0.23, 0.4)), p.light, line=False),
    ]


def _snowman(p: Palette) -> list[Shape]:
    scarf = CARROT if p.body in (PIGMENTS["red"], PIGMENTS["pink"]) else (214, 62, 70)
    dark = p.light if p.body == PIGMENTS["black"] else INK
    return [
        Shape(stroke([(0.3, 0.62), (0.04, 0.46)], 0.035), WOOD),
        Shape(stroke([(0.7, 0.62), (0.96, 0.46)], 0.035), WOOD),
        Shape(ellipse(0.5, 0.75, 0.29, 0.25), p.body),
        Shape(ellipse(0.5, 0.36, 0.2, 0.19), p.body),
        Shape(stroke([(0.33, 0.5), (0.5, 0.55), (0.67, 0.5)], 0.08), scarf),
        Shape(rectangle(0.36, 0.0, 0.64, 0.18), dark),
        Shape(rectangle(0.26, 0.16, 0.74, 0.22), dark),
        *(Shape(ellipse(x, 0.33, 0.028, 0.034), p.ink, line=False) for x in (0.42, 0.58)),
        Shape(
            ((0.49, 0.37), (0.66, 0.41), (0.49, 0.44)),
            CARROT if p.body != PIGMENTS["orange"] else GOLD,
            line=False,
        ),
        *(Shape(ellipse(0.5, y, 0.03), p.ink, line=False) for y in (0.66, 0.78, 0.9)),
    ]


def _heart(p: Palette) -> list[Shape]:
    half = [
        (
            16 * math.sin(t) ** 3,
            -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t),
        )
        for t in (math.tau * i / 48 for i in range(48))
    ]
    return [
        Shape(tuple((0.5 + x / 32, 0.45 + y / 32) for x, y in half), p.body),
        Shape(ellipse(0.26, 0.28, 0.1, 0.055, -45), p.light, line=False),
    ]


def _crown(p: Palette) -> list[Shape]:
    jewel = PAPER if p.body != PIGMENTS["white"] else GOLD
    return [
        Shape(
            ((0.08, 0.86), (-0.02, 0.3), (0.26, 0.54), (0.5, 0.16), (0.74, 0.54), (1.02, 0.3), (0.92, 0.86)),
            p.body,
        ),
        Shape(rounded(0.06, 0.78, 0.94, 0.94, 0.03), p.shade),
        *(Shape(ellipse(x, y, 0.065), p.shade) for x, y in ((-0.02, 0.28), (0.5, 0.14), (1.02, 0.28))),
        *(Shape(ellipse(x, 0.86, 0.045), jewel, line=False) for x in (0.26, 0.5, 0.74)),
        Shape(ellipse(0.5, 0.58, 0.06, 0.09), jewel, line=False),
    ]


_KINDS: dict[str, Callable[[Palette], list[Shape]]] = {
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "cat": _cat,
    "dog": _dog,
    "bird": _bird,
    "fish": _fish,
    "butterfly": _butterfly,
    "flower": _flower,
    "mushroom": _mushroom,
    "car": _car,
    "train": _train,
    "rocket": _rocket,
    "balloon": _balloon,
    "kite": _kite,
    "star": _star,
    "ball": _ball,
    "apple": _apple,
    "cup": _cup,
    "hat": _hat,
    "umbrella": _umbrella,
    "key": _key,
    "castle": _castle,
    "chair": _chair,
    "lamp": _lamp,
    "snowman": _snowman,
    "heart": _heart,
    "crown": _crown,
}
