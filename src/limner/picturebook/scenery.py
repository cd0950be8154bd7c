"""Backgrounds, drawn in fractions of the picture.

They are pale and quiet, so that things stand out, and each setting has only four layouts (two, and
their mirror images), so that a small model can learn them.
"""

from limner.picturebook.shapes import (
    Colour,
    Shape,
    arc,
    blob,
    ellipse,
    mirrored,
    mix,
    rectangle,
    scallop,
    stroke,
)

_SKY: dict[str, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "day": ((138, 204, 242), (226, 243, 250)),
    "sunset": ((150, 112, 178), (255, 190, 122)),
    "night": ((24, 28, 68), (66, 76, 138)),
}
_OVERCAST: dict[str, tuple[Colour, Colour]] = {
    "day": ((158, 176, 192), (220, 226, 230)),
    "sunset": ((142, 112, 146), (236, 178, 136)),
    "night": ((30, 34, 56), (68, 74, 108)),
}
_CLOUD: dict[str, Colour] = {"day": (250, 251, 253), "sunset": (250, 206, 178), "night": (96, 104, 146)}


def lit(colour: Colour, time: str) -> Colour:
    """A colour of the landscape under the light of a time of day."""
    if time == "sunset":
        return mix((colour[0], colour[1] * 86 // 100, colour[2] * 90 // 100), (252, 122, 124), 0.15)
    if time == "night":
        dark = (colour[0] * 52 // 100, colour[1] * 58 // 100, colour[2] * 72 // 100)
        return mix(dark, (24, 32, 92), 0.2)
    return colour


def sky(time: str, weather: str) -> tuple[Colour, Colour]:
    """The sky's colours at the top of the picture and at the horizon."""
    return (_SKY if weather == "clear" else _OVERCAST)[time]


def landscape(setting: str, time: str, weather: str, backdrop: int) -> list[Shape]:
    """Everything behind the things except the sky's gradient, back to front."""
    layout = backdrop % 2
    shapes = [*_lights(time, weather), *_clouds(time, weather)]
    shapes += [Shape(s.points, lit(s.fill, time), s.line) for s in _SETTINGS[setting](layout)]
    if time == "night" and setting == "city":
        shapes += _windows(layout)
    return [Shape(mirrored(s.points), s.fill, s.line) for s in shapes] if backdrop >= 2 else shapes


def _lights(time: str, weather: str) -> list[Shape]:
    """Sun, moon and stars, which an overcast sky hides."""
    if weather != "clear":
        return []
    if time == "day":
        return [
            Shape(ellipse(0.97, 0.03, 0.21), (236, 240, 214), line=False),
            Shape(ellipse(0.97, 0.03, 0.14), (255, 240, 168), line=False),
        ]
    if time == "sunset":
        return [
            Shape(ellipse(0.8, 0.56, 0.21), (255, 204, 132), line=False),
            Shape(ellipse(0.8, 0.56, 0.14), (255, 226, 150), line=False),
        ]
    dots = (
        (0.08, 0.1),
        (0.22, 0.27),
        (0.34, 0.07),
        (0.5, 0.2),
        (0.63, 0.06),
        (0.71, 0.33),
        (0.93, 0.36),
        (0.05, 0.38),
    )
    moon = (*arc(0.87, 0.13, 0.085, 0.085, -110, 110, 16), *arc(0.835, 0.13, 0.072, 0.08, 80, -80, 16))
    return [
        *(Shape(ellipse(x, y, 0.009), (236, 236, 214), line=False) for x, y in dots),
        Shape(moon, (248, 238, 190), line=False),
    ]


def _clouds(time: str, weather: str) -> list[Shape]:
    white = _CLOUD[time]
    if weather == "clear":
        return []
    if weather != "cloudy":
        white = mix(white, (92, 100, 122), 0.42)
    return [
        Shape(scallop(x, y, rx, ry, 8, 0.22), white)
        for x, y, rx, ry in ((0.2, 0.1, 0.2, 0.09), (0.56, 0.06, 0.17, 0.08), (0.88, 0.14, 0.18, 0.09))
    ]


def _meadow(layout: int) -> list[Shape]:
    tilt = (0.05, -0.03)[layout]
    tufts = ((0.08, 0.76), (0.3, 0.93), (0.55, 0.8), (0.72, 0.95), (0.92, 0.82))
    return [
        Shape(
            blob(
                [
                    (-0.3, 0.62 - tilt),
                    (0.2, 0.55 + tilt),
                    (0.6, 0.6 - tilt),
                    (1.3, 0.56),
                    (1.4, 1.3),
                    (-0.4, 1.3),
                ]
            ),
            (186, 218, 148),
        ),
        Shape(
            blob([(-0.3, 0.66 + tilt), (0.3, 0.69), (0.8, 0.66 - tilt), (1.3, 0.7), (1.4, 1.3), (-0.4, 1.3)]),
            (164, 208, 122),
        ),
        *(
            Shape(
                ((x - 0.025, y), (x - 0.02, y - 0.04), (x, y - 0.012), (x + 0.008, y - 0.05), (x + 0.022, y)),
                (136, 188, 100),
                line=False,
            )
            for x, y in tufts
        ),
    ]


def _sea(layout: int) -> list[Shape]:
    shift = 0.1 * layout
    waves = [
        (x + shift, y)
        for x, y in ((0.1, 0.66), (0.62, 0.64), (0.34, 0.75), (0.86, 0.78), (0.08, 0.87), (0.56, 0.93))
    ]
    return [
        Shape(rectangle(-0.1, 0.55, 1.1, 0.7), (142, 202, 220)),
        Shape(
            blob([(-0.3, 0.7), (0.1, 0.69), (0.5, 0.71), (0.9, 0.69), (1.3, 0.7), (1.4, 1.3), (-0.4, 1.3)]),
            (118, 186, 212),
            line=False,
        ),
        *(
            Shape(
                stroke(
                    [(x - 0.07, y), (x - 0.03, y - 0.02), (x, y), (x + 0.04, y - 0.02), (x + 0.07, y)], 0.013
                ),
                (206, 236, 242),
                line=False,
            )
            for x, y in waves
        ),
    ]


def _beach(layout: int) -> list[Shape]:
    tilt = (0.03, -0.03)[layout]
    return [
        Shape(rectangle(-0.1, 0.5, 1.1, 0.75), (126, 196, 216)),
        Shape(
            blob(
                [
                    (-0.3, 0.65 + tilt),
                    (0.2, 0.67 + tilt),
                    (0.7, 0.65 - tilt),
                    (1.3, 0.66),
                    (1.4, 1.3),
                    (-0.4, 1.3),
                ]
            ),
            (240, 248, 246),
            line=False,
        ),
        Shape(
            blob(
                [
                    (-0.3, 0.68 + tilt),
                    (0.2, 0.7 + tilt),
                    (0.7, 0.68 - tilt),
                    (1.3, 0.69),
                    (1.4, 1.3),
                    (-0.4, 1.3),
                ]
            ),
            (246, 226, 178),
        ),
        *(
            Shape(ellipse(x, y, 0.016, 0.009), (226, 198, 146), line=False)
            for x, y in ((0.1, 0.84), (0.36, 0.95), (0.6, 0.82), (0.88, 0.92))
        ),
    ]


def _desert(layout: int) -> list[Shape]:
    x = (0.12, 0.9)[layout]
    cactus = [
        Shape(stroke([(x, 0.68), (x, 0.44)], 0.05), (150, 180, 142)),
        Shape(stroke([(x - 0.07, 0.51), (x - 0.06, 0.58), (x, 0.6)], 0.035), (150, 180, 142)),
        Shape(stroke([(x + 0.07, 0.48), (x + 0.06, 0.55), (x, 0.57)], 0.035), (150, 180, 142)),
    ]
    return [
        Shape(
            blob([(-0.2, 0.68), (0.2, 0.52), (0.45, 0.6), (0.8, 0.54), (1.2, 0.62), (1.4, 1.3), (-0.4, 1.3)]),
            (240, 206, 150),
        ),
        *cactus,
        Shape(
            blob([(-0.3, 0.68), (0.25, 0.66), (0.7, 0.71), (1.3, 0.66), (1.4, 1.3), (-0.4, 1.3)]),
            (230, 188, 124),
        ),
        Shape(stroke([(0.08, 0.84), (0.25, 0.81), (0.42, 0.85)], 0.012), (208, 164, 102), line=False),
        Shape(stroke([(0.58, 0.92), (0.76, 0.88), (0.95, 0.92)], 0.012), (208, 164, 102), line=False),
    ]


def _snow(layout: int) -> list[Shape]:
    tilt = (0.05, -0.05)[layout]
    pines = ((0.06, 0.6), (0.17, 0.62), (0.93, 0.6))
    return [
        Shape(
            blob(
                [
                    (-0.3, 0.6 - tilt),
                    (0.25, 0.54 + tilt),
                    (0.7, 0.58 - tilt),
                    (1.3, 0.55),
                    (1.4, 1.3),
                    (-0.4, 1.3),
                ]
            ),
            (214, 228, 240),
        ),
        *(
            Shape(((x, y - 0.17), (x + 0.06, y + 0.04), (x - 0.06, y + 0.04)), (176, 204, 208))
            for x, y in pines
        ),
        Shape(
            blob([(-0.3, 0.66 + tilt / 2), (0.3, 0.69), (0.75, 0.65), (1.3, 0.68), (1.4, 1.3), (-0.4, 1.3)]),
            (238, 244, 250),
        ),
        Shape(stroke([(0.05, 0.84), (0.22, 0.81), (0.4, 0.84)], 0.012), (208, 220, 236), line=False),
        Shape(stroke([(0.58, 0.92), (0.76, 0.89), (0.95, 0.92)], 0.012), (208, 220, 236), line=False),
    ]


_SKYLINES = (  # left, right and top of each building
    ((-0.02, 0.12, 0.36), (0.12, 0.24, 0.22), (0.24, 0.38, 0.42), (0.38, 0.5, 0.3),
     (0.5, 0.64, 0.45), (0.64, 0.76, 0.26), (0.76, 0.9, 0.38), (0.9, 1.02, 0.28)),
    ((-0.02, 0.1, 0.24), (0.1, 0.24, 0.4), (0.24, 0.35, 0.28), (0.35, 0.5, 0.44),
     (0.5, 0.62, 0.24), (0.62, 0.76, 0.4), (0.76, 0.88, 0.3), (0.88, 1.02, 0.42)),
)  # fmt: skip


def _panes(layout: int) -> list[tuple[float, float]]:
    return [
        (left + (right - left) * share, top + 0.06 + 0.085 * row)
        for left, right, top in _SKYLINES[layout]
        for row in range(4)
        for share in (0.3, 0.7)
        if top + 0.06 + 0.085 * row < 0.62
    ]


def _city(layout: int) -> list[Shape]:
    greys = ((190, 198, 216), (206, 208, 222), (178, 190, 212))
    return [
        *(
            Shape(rectangle(left, top, right, 0.8), greys[i % 3])
            for i, (left, right, top) in enumerate(_SKYLINES[layout])
        ),
        *(
            Shape(rectangle(x - 0.016, y - 0.02, x + 0.016, y + 0.02), (226, 230, 238), line=False)
            for x, y in _panes(layout)
        ),
        Shape(rectangle(-0.1, 0.68, 1.1, 0.75), (214, 210, 206)),
        Shape(rectangle(-0.1, 0.74, 1.1, 1.1), (170, 172, 182)),
        *(
            Shape(rectangle(x, 0.865, x + 0.13, 0.885), (238, 234, 214), line=False)
            for x in (0.02, 0.3, 0.58, 0.86)
        ),
    ]


def _windows(layout: int) -> list[Shape]:
    """Some of the city's windows, lit."""
    return [
        Shape(rectangle(x - 0.016, y - 0.02, x + 0.016, y + 0.02), (226, 196, 122), line=False)
        for i, (x, y) in enumerate(_panes(layout))
        if i % 5 in (0, 3)
    ]


def _forest(layout: int) -> list[Shape]:
    shift = 0.045 * layout
    far = [(-0.06 + 0.135 * i + shift, 0.2 + 0.05 * (i * 5 % 3)) for i in range(9)]
    near = [(-0.02 + 0.26 * i + shift, 0.26 + 0.06 * (i * 2 % 3)) for i in range(5)]
    return [
        Shape(rectangle(-0.1, 0.45, 1.1, 0.8), (150, 186, 168), line=False),
        *(Shape(((x, y), (x + 0.1, 0.72), (x - 0.1, 0.72)), (164, 198, 176)) for x, y in far),
        *(
            Shape(
                (
                    (x, y),
                    (x + 0.075, y + 0.2),
                    (x + 0.045, y + 0.2),
                    (x + 0.11, 0.72),
                    (x - 0.11, 0.72),
                    (x - 0.045, y + 0.2),
                    (x - 0.075, y + 0.2),
                ),
                (134, 176, 154),
            )
            for x, y in near
        ),
        Shape(
            blob([(-0.3, 0.68), (0.2, 0.7), (0.6, 0.67), (1.3, 0.7), (1.4, 1.3), (-0.4, 1.3)]),
            (168, 186, 132),
        ),
        *(
            Shape(ellipse(x, y, 0.03, 0.012), (146, 168, 112), line=False)
            for x, y in ((0.1, 0.8), (0.34, 0.93), (0.62, 0.8), (0.9, 0.9))
        ),
    ]


def _mountains(layout: int) -> list[Shape]:
    peaks = (((0.16, 0.3), (0.84, 0.36), (0.52, 0.16)), ((0.1, 0.36), (0.68, 0.3), (0.32, 0.14)))[layout]
    greys = ((190, 192, 212), (190, 192, 212), (168, 174, 202))
    shapes = []
    for (x, y), grey in zip(peaks, greys, strict=True):
        cap = (
            (x, y),
            (x + 0.09, y + 0.13),
            (x + 0.04, y + 0.11),
            (x, y + 0.15),
            (x - 0.04, y + 0.11),
            (x - 0.09, y + 0.13),
        )
        shapes += [
            Shape(((x, y), (x + 0.38, 0.75), (x - 0.38, 0.75)), grey),
            Shape(cap, (246, 248, 252), line=False),
        ]
    return [
        *shapes,
        Shape(
            blob([(-0.3, 0.66), (0.3, 0.64), (0.7, 0.67), (1.3, 0.64), (1.4, 1.3), (-0.4, 1.3)]),
            (178, 198, 158),
        ),
        *(
            Shape(
                blob([(x - 0.035, y), (x - 0.015, y - 0.03), (x + 0.02, y - 0.025), (x + 0.04, y)], 3),
                (164, 168, 164),
                line=False,
            )
            for x, y in ((0.08, 0.78), (0.4, 0.95), (0.93, 0.84))
        ),
    ]


_SETTINGS = {
    "meadow": _meadow,
    "sea": _sea,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "forest": _forest,
    "mountains": _mountains,
}


def falling(weather: str, backdrop: int) -> list[Shape]:
    """Rain or snow in front of everything, as sparse streaks or flakes on a jittered grid."""
    if weather == "rain":
        drops = [
            (0.06 + 0.17 * column + 0.07 * (row % 2), 0.06 + 0.19 * row + 0.05 * (column % 2))
            for row in range(5)
            for column in range(6)
        ]
        shapes = [
            Shape(
                ((x, y), (x + 0.012, y), (x - 0.008, y + 0.075), (x - 0.02, y + 0.075)),
                (214, 234, 252),
                line=False,
            )
            for x, y in drops
        ]
    elif weather == "snowfall":
        flakes = [
            (0.05 + 0.18 * column + 0.08 * (row % 2), 0.06 + 0.17 * row + 0.06 * (column % 2))
            for row in range(6)
            for column in range(6)
        ]
        shapes = [Shape(ellipse(x, y, 0.015), (255, 255, 255), line=False) for x, y in flakes]
    else:
        return []
    return [Shape(mirrored(s.points), s.fill, s.line) for s in shapes] if backdrop >= 2 else shapes
