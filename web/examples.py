"""Draws the small pictures of the studio's examples, side by side in one file.

python web/examples.py
"""

import json
from pathlib import Path

from PIL import Image

import limner

FOLDER = Path(__file__).with_name("src") / "screens" / "create"
SIDE = 128
"""Width and height of a picture in pixels: the model's own."""


def main() -> None:
    """Draw each request of examples.json with the shipped model."""
    requests = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
    model = limner.load("picturebook")
    sprite = Image.new("RGB", (SIDE * len(requests), SIDE))
    for place, request in enumerate(requests):
        image = model.generate(**request).images[0]
        sprite.paste(image.resize((SIDE, SIDE)), (SIDE * place, 0))
    sprite.save(FOLDER / "examples.webp", quality=85, method=6)


if __name__ == "__main__":
    main()
