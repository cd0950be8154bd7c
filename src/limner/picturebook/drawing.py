"""Scenes to pixels, with Pillow. Equal scenes give equal pixels.

Shapes are filled at four times the size and averaged down; backgrounds are drawn once and kept.
"""

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

from limner.picturebook.scene import Scene, Thing
from limner.picturebook.shapes import Colour, Shape, mix

from . import scenery, things

_OVERSAMPLING = 4
_PIXEL_GRID = 64  # pixel art is drawn on a grid of this many squares a side
_INK: Colour = (38, 32, 50)
_RIM = 0.009  # width of the edge around a thing, in fractions of the picture
_LINE = 0.011  # width of the lines of the outlined style


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene in RGB.

    Args:
        size: Length of its sides in pixels, at least 32.

    Raises:
        ValueError: `size` is below 32.
    """
    if size < 32:
        raise ValueError(f"a picture of {size} pixels a side was asked for; the smallest is 32")
    pixel_art = scene.style == "pixel"
    side = min(_PIXEL_GRID, size // 2) if pixel_art else size
    picture = _background(scene.setting, scene.time, scene.weather, scene.style, scene.backdrop, side).copy()
    for thing in scene.things:
        if thing.grounded:
            _shadow(picture, thing, scene)
    for thing in scene.things:
        _paste(picture, thing, scene)
    if scene.weather in ("rain", "snowfall"):
        picture.paste(*_front(scene.weather, scene.style, scene.backdrop, side))
    return picture.resize((size, size), Image.Resampling.NEAREST) if pixel_art else picture


@lru_cache(maxsize=1024)
def _background(setting: str, time: str, weather: str, style: str, backdrop: int, side: int) -> Image.Image:
    large = side * _OVERSAMPLING
    top, horizon = scenery.sky(time, weather)
    bands = 7 if style == "pixel" else large
    gradient = Image.new("RGB", (1, bands))
    for i in range(bands):
        gradient.putpixel((0, i), mix(top, horizon, min(1.0, i / bands / 0.62)))
    picture = gradient.resize((large, large), Image.Resampling.NEAREST)
    shapes = scenery.landscape(setting, time, weather, backdrop)
    ink = mix(_INK, scenery.sky(time, weather)[0], 0.25)
    _fill(ImageDraw.Draw(picture), shapes, large, 0, 0, large * 0.007 if style == "outlined" else 0, ink)
    return picture.reduce(_OVERSAMPLING)


@lru_cache(maxsize=64)
def _front(
    weather: str, style: str, backdrop: int, side: int
) -> tuple[Image.Image, tuple[int, int], Image.Image]:
    """Rain or snow in front of the things: image, corner and mask, the arguments of `Image.paste`."""
    large = side * _OVERSAMPLING
    mask = Image.new("L", (large, large))
    shapes = scenery.falling(weather, backdrop)
    draw = ImageDraw.Draw(mask)
    for shape in shapes:
        draw.polygon([(x * large, y * large) for x, y in shape.points], fill=215)
    mask = mask.reduce(_OVERSAMPLING)
    if style == "pixel":
        mask = mask.point(lambda value: 215 if value >= 90 else 0)
    return Image.new("RGB", (side, side), shapes[0].fill), (0, 0), mask


def _shadow(picture: Image.Image, thing: Thing, scene: Scene) -> None:
    """Draw a soft flat ellipse under a thing; on the sea, a light ripple around it."""
    side = picture.width
    width, height = things.proportions(thing.kind)
    bottom = (thing.y + thing.extent * height / 2) * side
    rx, ry = thing.extent * width * 0.46 * side, max(1.6, thing.extent * 0.06 * side)
    box = (round(thing.x * side - rx), round(bottom - ry), round(thing.x * side + rx), round(bottom + ry))
    sea = scene.setting == "sea"
    strength = 110 if sea else 56
    colour = (
        mix((236, 248, 250), (90, 110, 170), 0.6 if scene.time == "night" else 0.0) if sea else (20, 20, 50)
    )
    size = (box[2] - box[0], box[3] - box[1])
    mask = _disc(size).point(lambda value: value * strength // 255)
    if scene.style == "pixel":
        mask = mask.point(lambda value: strength if value * 2 >= strength else 0)
    picture.paste(colour, box, mask)


@lru_cache(maxsize=4096)
def _disc(size: tuple[int, int]) -> Image.Image:
    large = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    mask = Image.new("L", large)
    ImageDraw.Draw(mask).ellipse((0, 0, large[0] - 1, large[1] - 1), fill=255)
    return mask.reduce(_OVERSAMPLING)


def _paste(picture: Image.Image, thing: Thing, scene: Scene) -> None:
    """Draw one thing, with a rim that separates it from the background."""
    side = picture.width
    width, height = things.proportions(thing.kind)
    outlined = scene.style == "outlined"
    rim = side * (_LINE if outlined else _RIM)
    margin = rim + 1
    left = int(thing.x * side - thing.extent * width * side / 2 - margin)
    top = int(thing.y * side - thing.extent * height * side / 2 - margin)
    columns = int(thing.extent * width * side + 2 * margin) + 2
    rows = int(thing.extent * height * side + 2 * margin) + 2
    body = things.palette(thing.colour).body
    edge = _edge(thing.colour, body, scene)
    shapes = [
        Shape(s.points, _lit(s.fill, scene.time), s.line) for s in things.draw(thing.kind, thing.colour)
    ]
    n = _OVERSAMPLING
    x, y, scale = (thing.x * side - left) * n, (thing.y * side - top) * n, thing.extent * side * n
    tile = Image.new("RGB", (columns * n, rows * n), edge)
    _fill(ImageDraw.Draw(tile), shapes, scale, x, y, rim * n if outlined else 0, edge)
    mask = Image.new("L", tile.size)
    draw = ImageDraw.Draw(mask)
    for shape in shapes:
        draw.polygon([(x + u * scale, y + v * scale) for u, v in shape.points], fill=255)
    grown = mask.filter(ImageFilter.BoxBlur(rim * n)).point(lambda value: 255 if value > 24 else 0)
    tile, mask = tile.reduce(n), grown.reduce(n)
    if scene.style == "pixel":
        mask = mask.point(lambda value: 255 if value >= 128 else 0)
    picture.paste(tile, (left, top), mask)


def _fill(
    draw: ImageDraw.ImageDraw,
    shapes: list[Shape],
    scale: float,
    x: float,
    y: float,
    width: float,
    ink: Colour,
) -> None:
    """Fill the shapes in order, and with a `width` draw their edges in ink."""
    for shape in shapes:
        points = [(x + u * scale, y + v * scale) for u, v in shape.points]
        draw.polygon(points, fill=shape.fill)
        if width and shape.line:
            draw.line([*points, points[0], points[1]], fill=ink, width=round(width))


def _lit(colour: Colour, time: str) -> Colour:
    """A thing's colour under the light of a time of day, always recognisable."""
    if time == "night":
        return (colour[0] * 93 // 100, colour[1] * 93 // 100, colour[2] * 97 // 100)
    if time == "sunset":
        return (colour[0], colour[1] * 95 // 100, colour[2] * 90 // 100)
    return colour


def _edge(colour: str, body: Colour, scene: Scene) -> Colour:
    if scene.style == "outlined":
        return (122, 120, 138) if colour == "black" else _INK
    if scene.time == "night":
        return mix(body, (226, 228, 250), 0.55)
    if colour == "black":
        return (112, 110, 126)
    return mix(body, _INK, 0.38 if colour == "white" else 0.42)
