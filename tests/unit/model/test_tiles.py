"""Pictures decoded in tiles are whole, and no seam shows where the tiles meet."""

import pytest
import torch
import torch.nn.functional as F

import limner
from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.engine.memory import Limits
from limner.generation.calls import DecodeLatents
from limner.model import tiles
from limner.model.tiles import TILE, decode_in_tiles, encode_in_tiles
from limner.request import GenerationRequest


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 64), (200, 70), (10, 300), (1, 1)])
def test_every_pixel_comes_from_its_place(height, width):
    latents = torch.randn(1, 3, height, width)
    decoded = []

    def decode(part):
        decoded.append(part.shape[2:])
        return part.repeat_interleave(8, 2).repeat_interleave(8, 3)

    picture = decode_in_tiles(decode, latents, 8)
    assert torch.allclose(picture, decode(latents), atol=1e-5)
    assert all(rows <= TILE and columns <= TILE for rows, columns in decoded[:-1])


@pytest.mark.parametrize("around", ["", "x", "xy"])
def test_a_picture_is_encoded_in_tiles(around):
    picture = torch.randn(1, 3, 8 * 70, 8 * 130)
    mean = F.avg_pool2d(picture, 8)

    def encode(part):
        return F.avg_pool2d(part, 8), -F.avg_pool2d(part, 8)

    found, negated = encode_in_tiles(encode, picture, 8, around)
    assert torch.allclose(found, mean, atol=1e-5)
    assert torch.allclose(negated, -mean, atol=1e-5)


def test_no_seam_shows(monkeypatch):
    """A picture twice as large as a tile is near the whole one, and changes nowhere more abruptly."""
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "_OVERLAP", 6)
    model = limner.load("picturebook", precision="fp32")
    request = GenerationRequest(prompt="two red boats on the sea", width=256, height=128, seed=3, steps=8)
    latents = []
    for progress in model.engine.submit(request):
        latents.append(progress.latents)
    whole, tiled = (
        model.answer([DecodeLatents(latents[-1], tiled=tiled)])[0].value for tiled in (False, True)
    )
    difference = (whole - tiled).abs().mean((0, 1, 2))  # of each column
    assert 10 * torch.log10(4 / (whole - tiled).square().mean()) > 30
    jumps = (whole - tiled).diff(dim=3).abs().mean((0, 1, 2))
    borders = [8 * int(span[0]) + side for span in tiles._spans(32)[1:] for side in (-1, 0)]
    assert jumps[borders].max() < 3 * jumps.median() + 1e-3
    assert difference.max() < 0.1


def test_what_does_not_fit_is_decoded_in_tiles_and_says_so(checkpoint_folder):
    class Tight(Limits):
        def needs(self, model, call):
            whole = isinstance(call, DecodeLatents) and not call.tiled
            return 1 << 40 if whole else super().needs(model, call)

    model = load(checkpoint_folder, precision="fp32")
    request = GenerationRequest(prompt="a house", width=96, height=96, steps=2, seed=1)
    with Engine(model, limits=Tight(1 << 30)) as engine:
        tiled = engine.submit(request).result()
    [warning] = tiled.warnings
    assert "in tiles" in warning
    assert not model.generate(request=request).warnings


def test_running_out_of_memory_is_answered_by_tiles(checkpoint_folder, monkeypatch):
    model = load(checkpoint_folder, precision="fp32")
    decode, full = model.backend.decode, [True]

    def short(latents):
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(model.backend, "decode", short)
    request = GenerationRequest(prompt="a house", width=64, height=64, steps=2, seed=1)
    assert "in tiles" in model.generate(request=request).warnings[0]


def test_tiles_on_request(checkpoint_folder, monkeypatch):
    """Without a warning, and the same bits again from the record."""
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "_OVERLAP", 6)
    model = load(checkpoint_folder, precision="fp32")
    ask = {"prompt": "a house", "width": 64, "height": 64, "steps": 2, "seed": 1, "hires_scale": 1.5}
    sizes = []
    for name in ("decode", "encode"):
        run = getattr(model.backend, name)
        monkeypatch.setattr(model.backend, name, lambda x, run=run: sizes.append(x.shape[3]) or run(x))
    result = model.generate(**ask, hires_upscaler="lanczos", vae_tiling=True)
    assert set(sizes) == {16, 32}  # latents to decode, pixels to encode
    assert not result.warnings
    again = model.generate(request=result.images[0].record.request)
    assert again.images[0].tobytes() == result.images[0].tobytes()
