"""Polygons, the only primitive of the picture world, and the curves that they are made from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = tuple[Point, ...]


@dataclass(frozen=True)
class Shape:
    """A filled polygon.

    Attributes:
        points: Corners, in fractions of the picture or of the unit square of a thing.
        fill: Colour.
        line: Whether the outlined style draws its edge.
    """

    points: Points
    fill: Colour
    line: bool = True


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour between `a` (share 0) and `b` (share 1)."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """A rectangle from its sides."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def rounded(left: float, top: float, right: float, bottom: float, radius: float) -> Points:
    """A rectangle with round corners."""
    corners = (
        (right - radius, top + radius, -90),
        (right - radius, bottom - radius, 0),
        (left + radius, bottom - radius, 90),
        (left + radius, top + radius, 180),
    )
    return tuple(p for x, y, start in corners for p in arc(x, y, radius, radius, start, start + 90, 6))


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 24) -> Points:
    """Points along an ellipse from angle `start` to `end`, in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles)


def ellipse(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0) -> Points:
    """An ellipse, turned clockwise by `turn` degrees. Without `ry`, a circle."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = arc(0, 0, rx, rx if ry is None else ry, 0, 360, 36)
    return tuple((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in points)


def ring(x: float, y: float, rx: float, ry: float, width: float) -> Points:
    """An ellipse with a hole, as one polygon with a seam."""
    return arc(x, y, rx, ry, 0, 360, 36) + arc(x, y, rx - width, ry - width, 360, 0, 36)


def scallop(x: float, y: float, rx: float, ry: float, bumps: int, depth: float = 0.16) -> Points:
    """An ellipse whose edge is a row of round bumps, like a crown of leaves or a cloud."""
    points = []
    for i in range(bumps * 8):
        angle = 2 * math.pi * i / (bumps * 8)
        reach = 1 - depth + depth * abs(math.sin(angle * bumps / 2))
        points.append((x + rx * reach * math.sin(angle), y - ry * reach * math.cos(angle)))
    return tuple(points)


def curve(points: Sequence[Point], steps: int = 8) -> Points:
    """An open Catmull-Rom curve through the points."""
    padded = [points[0], *points, points[-1]]
    out = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for i in range(steps):
            t = i / steps
            out.append((_spline(a[0], b[0], c[0], d[0], t), _spline(a[1], b[1], c[1], d[1], t)))
    return (*out, points[-1])


def blob(points: Sequence[Point], steps: int = 8) -> Points:
    """A closed Catmull-Rom curve through the points."""
    n = len(points)
    out = []
    for k in range(n):
        a, b, c, d = (points[(k + j) % n] for j in (-1, 0, 1, 2))
        for i in range(steps):
            t = i / steps
            out.append((_spline(a[0], b[0], c[0], d[0], t), _spline(a[1], b[1], c[1], d[1], t)))
    return tuple(out)


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def stroke(points: Sequence[Point], width: float, end_width: float | None = None) -> Points:
    """A smooth line through the points as a polygon, tapering from `width` to `end_width`."""
    path = curve(points)
    last = width if end_width is None else end_width
    left, right = [], []
    for i, (x, y) in enumerate(path):
        (x0, y0), (x1, y1) = path[max(i - 1, 0)], path[min(i + 1, len(path) - 1)]
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        half = (width + (last - width) * i / (len(path) - 1)) / 2
        nx, ny = -(y1 - y0) / length * half, (x1 - x0) / length * half
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return (*left, *reversed(right))


def mirrored(points: Points, axis: float = 0.5) -> Points:
    """Points reflected at the vertical line x = axis."""
    return tuple((2 * axis - x, y) for x, y in points)
