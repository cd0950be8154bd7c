"""The sheet of a grid: its images in tables, with labels."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil

from PIL import Image, ImageDraw, ImageFont

_GAP = 8  # pixels between images
_MOST_LINES = 8  # of a label
_EMPTY = "#dddddd"
_OTHER_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf")


def sheet_of(
    labels: Sequence[Sequence[str]],
    images: Mapping[int, Image.Image],
    errors: Mapping[int, str],
    scale: float,
) -> Image.Image:
    """All tables of a grid on one sheet, about as wide as high.

    Args:
        labels: Of the values of x, y and z; a single empty one for an axis that is missing.
        images: By cell, counted row by row, table after table.
        errors: Texts for cells without an image.
        scale: Factor on the size of the images, at most 1.
    """
    xs, ys, zs = labels
    width = round(scale * max(image.width for image in images.values()))
    height = round(scale * max(image.height for image in images.values()))
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
                cell = (table * len(ys) + line) * len(xs) + index
                if cell not in images:
                    draw.rectangle((x, y, x + column - 1, y + row - 1), fill=_EMPTY)
                    pen.write(draw, pen.lines(errors.get(cell, ""), column), x, y, column)
                    continue
                image = images[cell].convert("RGB")
                if scale < 1.0:
                    image.thumbnail((width, height))
                sheet.paste(image, (x + (column - image.width) // 2, y + (row - image.height) // 2))
    return sheet


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's font, which has the letters of ASCII, or the system's font that lacks fewest of the text's."""
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
        text: All letters that the font needs.
    """

    def __init__(self, size: int, text: str) -> None:
        self.size = size
        self._font = _font(size, text)
        self._line = size * 5 // 4

    def lines(self, text: str, width: int) -> list[str]:
        """A text in lines of at most this width, broken between words where possible."""
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
        """Write lines from the corner (x, y) down, centred in a width if one is given."""
        for number, line in enumerate(lines):
            indent = (width - self.width([line])) // 2 if width else 0
            draw.text((x + indent, y + number * self._line), line, fill="black", font=self._font)
