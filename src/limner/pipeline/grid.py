"""A grid: one request drawn with every value of one, two or three axes, on one labelled sheet.

    sheet = limner.grid(model, request, x="steps=10,20,30", y="sampler=euler,dpmpp_2m")
    sheet.image.save("sheet.png")

All pictures go through one engine, so they share forward passes. What differs along x stands side by side,
along y one below the other, and z makes several such tables.
"""

import secrets
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from math import ceil, prod, sqrt
from queue import SimpleQueue

from PIL import Image, ImageDraw, ImageFont

from limner.errors import InvalidRequest
from limner.prompts.chunks import encode_prompt
from limner.request import NEW_SEEDS, GenerationRequest

from .axes import Axis, requests_of
from .engine import Engine
from .metadata import Picture
from .model import Model
from .models import ModelCache

LIMIT = 100  # pictures, where nothing else is said
_GAP = 8  # pixels between pictures
_MOST_PIXELS = 80_000_000  # of a sheet: PIL takes larger files for attacks
_MOST_LINES = 8  # of a label
_EMPTY = "#dddddd"
_OTHER_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf")


@dataclass(frozen=True)
class Grid:
    """A grid, drawn or on its way.

    Attributes:
        x, y, z: its axes.
        pictures: by place, counted row by row, table after table; places that are not drawn are missing.
        errors: why a place could not be drawn.
    """

    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    errors: Mapping[int, BaseException] = field(default_factory=dict)

    @property
    def axes(self) -> dict[str, Axis]:
        """Those that it has, by "x", "y" and "z"."""
        named = {"x": self.x, "y": self.y, "z": self.z}
        return {name: axis for name, axis in named.items() if axis is not None}

    @cached_property
    def image(self) -> Picture:
        """All pictures on a sheet, with labels. Its record is that of the first one, and says the axes.

        Raises:
            InvalidRequest: no picture is drawn.
        """
        if not self.pictures:
            raise InvalidRequest("no picture of the grid is drawn", hint="`errors` says why")
        first = self.pictures[min(self.pictures)].record
        said = {name: {axis.name: axis.texts} for name, axis in self.axes.items()}
        return Picture(_sheet(self), first.model_copy(update={"grid": said}))

    @property
    def scale(self) -> float:
        """Of the pictures on the sheet; below 1 where it would be too large for most programs."""
        count = prod(len(axis.values) for axis in self.axes.values())
        largest = max((picture.width * picture.height for picture in self.pictures.values()), default=1)
        return min(1.0, sqrt(_MOST_PIXELS / (count * largest)))


def grid(
    models: Model | ModelCache,
    request: GenerationRequest,
    *,
    x: Axis | str | None = None,
    y: Axis | str | None = None,
    z: Axis | str | None = None,
    limit: int = LIMIT,
) -> Grid:
    """Draw a request with all values of the axes, and wait for the pictures.

    Args:
        models: a model for all of them, or, for an axis of models, a cache that they are loaded into.
        request: what all have in common. All have one seed, drawn if it gives none, unless seeds are an axis.
        x, y, z: an `Axis`, or a text such as "steps=10,20,30".
        limit: the most pictures.

    Raises:
        InvalidRequest: before anything is drawn: a value that makes no request, or one that is beyond the
            model; more pictures than the limit.
        LimnerError: as `load`. What happens to single pictures is in the grid's `errors`.
    """
    given = {name: axis for name, axis in (("x", x), ("y", y), ("z", z)) if axis is not None}
    axes = {name: Axis.read(axis) if isinstance(axis, str) else axis for name, axis in given.items()}
    requests = plan(request, axes.values(), limit)
    check(requests, models)
    drawn: dict[int, Picture] = {}
    errors: dict[int, BaseException] = {}
    for place, outcome in draw(requests, models):
        if isinstance(outcome, Picture):
            drawn[place] = outcome
        else:
            errors[place] = outcome
    return Grid(**axes, pictures=drawn, errors=errors)


def plan(request: GenerationRequest, axes: Collection[Axis], limit: int = LIMIT) -> list[GenerationRequest]:
    """The request of each place, with one seed where seeds are no axis.

    Args:
        axes: x, which changes fastest, first.

    Raises:
        InvalidRequest: more pictures than the limit, or as `requests_of`.
    """
    if not axes:
        raise InvalidRequest("a grid needs an axis", hint="--x steps=10,20,30")
    count = prod(len(axis.values) for axis in axes)
    if count > limit:
        sizes = f"{' x '.join(str(len(axis.values)) for axis in axes)} = " if len(axes) > 1 else ""
        raise InvalidRequest(
            f"the grid has {sizes}{count} pictures, more than {limit}",
            hint=f"raise the limit: --limit {count}",
        )
    seeds = {"seed": secrets.randbelow(NEW_SEEDS)} if request.seed is None else {}
    if request.variation_strength and request.variation_seed is None:
        seeds["variation_seed"] = secrets.randbelow(NEW_SEEDS)
    return requests_of(request.model_copy(update=seeds), axes)


def check(requests: Sequence[GenerationRequest], models: Model | ModelCache) -> None:
    """Find what cannot be drawn, loading the models.

    Raises:
        InvalidRequest: naming what is beyond its model, or is no prompt.
        LimnerError: as `load`.
    """
    if isinstance(models, Model) and len({_model_of(request) for request in requests}) > 1:
        raise InvalidRequest("one model was given for an axis of models", hint="give a ModelCache")
    for _, of_one in groupby(sorted(requests, key=_model_of), _model_of):
        model = None
        for request in of_one:
            model = model or (models if isinstance(models, Model) else models.get(request))
            own = model.worded(model.resolve(request))
            syntax = "literal" if own.emphasis == "none" else own.prompt_syntax
            for text in own.prompts:
                encode_prompt(text, next(iter(model.tokenizers.values())), syntax)


def draw(
    requests: Sequence[GenerationRequest], models: Model | ModelCache
) -> Generator[tuple[int, Picture | BaseException]]:
    """Draw requests for one picture each, yielding each place's picture, or why there is none, as it ends.

    Closing this stops.
    """
    ended: SimpleQueue[int] = SimpleQueue()
    with Engine(models, max_waiting=len(requests)) as engine:
        handles = {}
        # The pictures of one model come one after another, so that none is loaded twice.
        for place in sorted(range(len(requests)), key=lambda place: _model_of(requests[place])):
            handles[place] = engine.submit(requests[place])
            handles[place].when_done(partial(ended.put, place))
        for _ in requests:
            place = ended.get()
            error = handles[place].exception()
            yield place, handles[place].result().images[0] if error is None else error


def _model_of(request: GenerationRequest) -> tuple[str, str, str]:
    return request.model, request.revision or "", request.variant or ""


def _sheet(grid: Grid) -> Image.Image:
    """All tables of a grid, labelled, about as wide as high."""
    xs, ys, zs = (("",) if axis is None else axis.labels for axis in (grid.x, grid.y, grid.z))
    width = round(grid.scale * max(picture.width for picture in grid.pictures.values()))
    height = round(grid.scale * max(picture.height for picture in grid.pictures.values()))
    pen = _Pen(min(40, max(13, width // 20)), "".join((*xs, *ys, *zs)))
    column = max(width, 6 * pen.size)
    tops, sides = [pen.lines(x, column) for x in xs], [pen.lines(y, column) for y in ys]
    row = max(height, *map(pen.height, sides))
    top = max(map(pen.height, tops))
    left = max(pen.width(lines) for lines in sides)
    left += _GAP * bool(left)
    table_width = left + len(xs) * (column + _GAP) + _GAP
    titles = [pen.lines(z, table_width - 2 * _GAP) for z in zs]
    title = max(map(pen.height, titles))
    table_height = title + top + len(ys) * (row + _GAP) + _GAP
    across = min(range(1, len(zs) + 1), key=lambda n: max(n * table_width, -(-len(zs) // n) * table_height))
    sheet = Image.new("RGB", (across * table_width, -(-len(zs) // across) * table_height), "white")
    draw = ImageDraw.Draw(sheet)
    for table in range(len(zs)):
        x0, y0 = table % across * table_width + _GAP, table // across * table_height + _GAP // 2
        pen.write(draw, titles[table], x0, y0)
        for index, lines in enumerate(tops):
            pen.write(draw, lines, x0 + left + index * (column + _GAP), y0 + title, column)
        for line in range(len(ys)):
            y = y0 + title + top + line * (row + _GAP)
            pen.write(draw, sides[line], x0, y + (row - pen.height(sides[line])) // 2)
            for index in range(len(xs)):
                x = x0 + left + index * (column + _GAP)
                place = (table * len(ys) + line) * len(xs) + index
                picture = grid.pictures.get(place)
                if picture is None:
                    draw.rectangle((x, y, x + column - 1, y + row - 1), fill=_EMPTY)
                    why = grid.errors.get(place)
                    pen.write(draw, pen.lines("" if why is None else str(why), column), x, y, column)
                    continue
                image = picture.convert("RGB")
                if grid.scale < 1.0:
                    image.thumbnail((width, height))
                sheet.paste(image, (x + (column - image.width) // 2, y + (row - image.height) // 2))
    return sheet


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's font, which has the letters of ASCII, or one of the system's that has more of a text's."""
    fonts = [ImageFont.load_default(size)]
    for name in () if text.isascii() else _OTHER_FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))

    def lacking(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
        box = bytes(font.getmask("\U0010ffff"))  # no font has this
        return sum(bytes(font.getmask(letter)) == box for letter in {*text} if letter.isprintable())

    return min(fonts, key=lacking)


class _Pen:
    """Writes labels of one size, in pixels.

    Args:
        text: whose letters the font is to have.
    """

    def __init__(self, size: int, text: str) -> None:
        self.size = size
        self._font = _font(size, text)
        self._line = size * 5 // 4

    def lines(self, text: str, width: int) -> list[str]:
        """A text in lines of at most this width, broken between words where that can be."""
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self._font.getlength(joined) <= width:
                lines[-1] = joined
                continue
            lines.append("")
            for letter in word:
                if self._font.getlength(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "…"]

    def width(self, lines: Sequence[str]) -> int:
        return max((ceil(self._font.getlength(line)) for line in lines), default=0)

    def height(self, lines: Sequence[str]) -> int:
        return len(lines) * self._line + self.size // 2 if lines else 0

    def write(self, draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, width: int = 0) -> None:
        """Lines from a corner on, in the middle of a width if one is given."""
        for number, line in enumerate(lines):
            indent = (width - self.width([line])) // 2 if width else 0
            draw.text((x + indent, y + number * self._line), line, fill="black", font=self._font)
