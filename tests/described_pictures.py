"""Pictures as programs write them: with a description of how they were made."""

import io
import json
from typing import Any

from PIL import Image, PngImagePlugin


def picture(format: str = "PNG", size: tuple[int, int] = (128, 96), **chunks: Any) -> bytes:
    """A black picture that says how it was made, in texts of a PNG; a JPEG has `parameters` alone."""
    data = io.BytesIO()
    if format == "JPEG":
        exif = Image.Exif()
        comment = b"UNICODE\0" + chunks["parameters"].encode("utf-16-be")
        exif.get_ifd(0x8769)[0x9286] = comment
        Image.new("RGB", size).save(data, "JPEG", exif=exif)
        return data.getvalue()
    texts = PngImagePlugin.PngInfo()
    for key, value in chunks.items():
        texts.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", size).save(data, format, pnginfo=texts)
    return data.getvalue()
