"""Pixels to tensors and back."""

import torch
from PIL import Image

from limner.pipeline.images import to_images, to_tensor


def test_every_byte_survives_the_round_trip():
    levels = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    [back] = to_images(to_tensor([levels]))
    assert back.tobytes() == levels.tobytes()
    assert (to_tensor([levels]).min(), to_tensor([levels]).max()) == (-1, 1)


def test_what_is_too_bright_or_dark_is_clamped():
    image = to_images(torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1))[0]
    assert image.getpixel((0, 0)) == (0, 128, 255)
