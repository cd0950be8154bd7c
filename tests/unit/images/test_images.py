"""Pixels to tensors and back."""

import numpy as np
import torch
from PIL import Image

from limner.images.opening import open_image
from limner.images.pixels import depth_map, to_images, to_tensor


def test_every_byte_survives_the_round_trip():
    levels = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    [back] = to_images(to_tensor([levels]))
    assert back.tobytes() == levels.tobytes()
    assert (to_tensor([levels]).min(), to_tensor([levels]).max()) == (-1, 1)


def test_what_is_too_bright_or_dark_is_clamped():
    image = to_images(torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1))[0]
    assert image.getpixel((0, 0)) == (0, 128, 255)


def test_depth_maps_of_16_bits_keep_their_range(tmp_path):
    steps = np.linspace(0, 65535, 64, dtype=np.uint16)
    Image.fromarray(np.tile(steps, (64, 1))).save(tmp_path / "depth.png")
    depth = depth_map(open_image(str(tmp_path / "depth.png"), values=True), (64, 64))
    torch.testing.assert_close(depth[0, 0, 7], torch.linspace(0, 1, 64), atol=1e-4, rtol=0)
