"""Contact sheets: several images side by side, labelled."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .picture import Picture

_GAP, _LABEL = 8, 18  # pixels


def contact_sheet(pictures: Sequence[Picture], columns: int) -> Image.Image:
    """Images row by row, each above its seed."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    cell_width, cell_height = width + _GAP, height + _LABEL + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    labels = [f"seed {picture.seed}" for picture in pictures]
    widest = max(ImageFont.load_default(12).getlength(label) for label in labels)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12 * min(1, width / widest))
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = _GAP + index % columns * cell_width, _GAP + index // columns * cell_height
        sheet.paste(picture, (left, top))
        draw.text((left, top + height + 3), label, fill="black", font=font)
    return sheet
