"""Pictures of every mode, depth and colour space are opened as what they show."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from limner.errors import InvalidRequest
from limner.images.inputs import InputImages
from limner.images.opening import (
    image_info,
    image_source,
    normalised,
    open_image,
    to_gray,
    to_mask,
    to_rgb,
)
from limner.images.pixels import depth_map

GRAY = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (32, 1))  # [32, 60]


def tiff_of_unsigned(path, values):
    """Pillow writes 32 bits as signed numbers only, which the entry 339, SampleFormat, says."""
    Image.fromarray(values.view(np.int32)).save(path)
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, value, 0) for value in (2, 1))
    assert signed in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(signed, unsigned))


def deep(path, kind):
    """The picture GRAY in a file of more than 8 bits."""
    match kind:
        case "16-bit PNG":
            Image.fromarray(GRAY.astype(np.uint16) * 257).save(path.with_suffix(".png"))
            return path.with_suffix(".png")
        case "16-bit TIFF, big endian":
            image = Image.frombytes("I;16B", (60, 32), (GRAY.astype(">u2") * 257).tobytes())
            image.save(path)
        case "32 bits of 16":
            Image.fromarray(GRAY.astype(np.int32) * 257).save(path)
        case "32 bits of 8":
            Image.fromarray(GRAY.astype(np.int32)).save(path)
        case "32 bits, signed":
            Image.fromarray((GRAY * (2.0**31 - 1) / 255).astype(np.int32)).save(path)
        case "32 bits, unsigned":
            bright = np.maximum(GRAY, 1)
            tiff_of_unsigned(path, (bright * (2.0**32 - 1) / 255).astype(np.uint32))
        case "floats to 1":
            Image.fromarray((GRAY / 255).astype(np.float32)).save(path)
        case "floats to 255":
            Image.fromarray(GRAY.astype(np.float32)).save(path)
        case "floats to 65535":
            Image.fromarray(GRAY.astype(np.float32) * 257).save(path)
    return path


DEEP = [
    *("16-bit PNG", "16-bit TIFF, big endian", "32 bits of 16", "32 bits of 8", "32 bits, signed"),
    *("32 bits, unsigned", "floats to 1", "floats to 255", "floats to 65535"),
]


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pictures_masks_and_depth_maps_keep_their_shades(tmp_path, kind):
    path = deep(tmp_path / "a.tif", kind)
    expected = np.maximum(GRAY, 1) if kind == "32 bits, unsigned" else GRAY
    image = open_image(path)
    assert image.mode == "F"
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], expected)
    np.testing.assert_array_equal(np.asarray(to_mask(open_image(path, values=True))), expected)
    np.testing.assert_allclose(to_gray(image), expected, atol=1e-4)
    source = image_source(Image.open(path))  # as a picture in memory is given
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(source)))[..., 0], expected)
    assert InputImages().warnings(str(path)) == ()
    depth = depth_map(open_image(str(path), values=True), (64, 64))
    assert depth.shape == (1, 1, 64, 64)
    assert float(depth[0, 0, 32, 62]) == pytest.approx(expected[16, 58] / 255, abs=0.02)


def test_depth_maps_of_16_bits_keep_all_of_them(tmp_path):
    fine = np.tile(np.arange(30_000, 30_064, dtype=np.uint16), (64, 1))
    Image.fromarray(fine).save(tmp_path / "a.png")
    assert len(np.unique(to_gray(open_image(tmp_path / "a.png")))) == 64


def test_the_few_lights_of_a_high_dynamic_range_are_cut_off_with_a_warning(tmp_path):
    values = (GRAY / 255).astype(np.float32)
    values[0, :10] = 40.0
    Image.fromarray(values).save(tmp_path / "a.tif")
    shown = np.asarray(to_rgb(open_image(tmp_path / "a.tif")))[..., 0]
    np.testing.assert_array_equal(shown[1:], GRAY[1:])
    assert (shown[0, :10] == 255).all()
    [warning] = InputImages().warnings(str(tmp_path / "a.tif"))
    assert "numbers from 0 to 40: they are read as 0 to 1, and what is beyond is cut off" in warning


def test_floats_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InvalidRequest, match="not finite"):
        open_image(tmp_path / "a.tif")


def shown(mode):
    """A picture in a mode: red left, transparent or black right."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        image.info["transparency"] = image.getpixel((7, 0))
        return image
    return image.convert("RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "P"])
def test_what_is_transparent_counts_as_white(mode):
    image = to_rgb(shown(mode))
    assert image.getpixel((1, 1)) == (255, 0, 0)
    assert image.getpixel((6, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "1", "L", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_every_mode_becomes_what_it_shows(mode):
    gray = Image.new("RGB", (8, 8), "white")
    gray.paste((0, 0, 0), (0, 0, 4, 8))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        image = ImageCms.applyTransform(gray, to_lab)
    elif mode == "PA":
        image = gray.convert("L").convert("PA")
    elif mode == "La":
        image = gray.convert("LA").convert("La")
    else:
        image = gray.convert(mode)
    pixels = np.asarray(to_rgb(image)).astype(int)
    assert np.abs(pixels - np.asarray(gray).astype(int)).max() <= 1
    assert normalised(image).mode in ("L", "RGB", "RGBA")
    again = to_rgb(open_image(image_source(image)))
    assert np.abs(np.asarray(again).astype(int) - pixels).max() <= 1


def test_masks_may_be_strokes_on_a_transparent_layer():
    for colour in ("white", "black", "red"):
        layer = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        ImageDraw.Draw(layer).rectangle((2, 2, 5, 5), fill=colour)
        mask = to_mask(layer)
        assert (mask.getpixel((3, 3)), mask.getpixel((0, 0))) == (255, 0)
    soft = Image.new("LA", (8, 8), (255, 100))
    assert to_mask(soft).getpixel((0, 0)) == 100


def test_masks_of_grays_with_transparency_and_without():
    image = Image.new("LA", (8, 8), (255, 255))
    image.paste((0, 255), (0, 0, 4, 8))
    assert to_mask(image).getpixel((7, 0)) == 255
    assert to_mask(image).getpixel((0, 0)) == 0
    image.paste((200, 0), (4, 0, 8, 4))  # transparent there
    assert to_mask(image).getpixel((7, 0)) == 0


def test_a_coloured_picture_with_holes_is_no_mask():
    image = Image.effect_noise((8, 8), 90).convert("RGBA")
    image.paste((255, 0, 0, 255), (0, 0, 4, 4))
    image.paste((0, 0, 0, 0), (5, 5, 8, 8))
    with pytest.raises(InvalidRequest, match="not clear what it masks"):
        to_mask(image)


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def swapped():
    """A profile whose red is sRGB's green, as its header says in the order of its tags."""
    data = bytearray(profile("sRGB"))
    count = int.from_bytes(data[128:132])
    tags = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = (
        data[green + 4 : green + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"\0s\0R\0G\0B", b"\0o\0t\0h\0e")


def test_colours_of_another_profile_are_converted(tmp_path):
    image = Image.new("RGBA", (8, 8), (250, 20, 10, 128))
    image.save(tmp_path / "a.png", icc_profile=swapped())
    opened = open_image(tmp_path / "a.png")
    red, green, blue, alpha = opened.getpixel((0, 0))
    assert np.abs(np.subtract((red, green, blue), (20, 250, 10))).max() <= 6
    assert alpha == 128
    assert "icc_profile" not in opened.info
    assert InputImages().warnings(str(tmp_path / "a.png")) == ()
    as_values = open_image(tmp_path / "a.png", values=True)
    assert as_values.getpixel((0, 0)) == (250, 20, 10, 128)


def test_srgb_pictures_keep_their_bits(tmp_path):
    noise = Image.effect_noise((16, 16), 90).convert("RGB")
    noise.save(tmp_path / "a.png", icc_profile=profile("sRGB"))
    assert open_image(tmp_path / "a.png").tobytes() == noise.tobytes()


@pytest.mark.parametrize(
    ("mode", "data", "fault"),
    [
        ("RGB", b"no profile", "is broken"),
        ("L", profile("sRGB"), "is of the colour space RGB, but the image is L"),
        ("RGB", profile("LAB"), "is of the colour space Lab"),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(tmp_path, mode, data, fault):
    Image.new(mode, (8, 8), 90 if mode == "L" else (90, 80, 70)).save(tmp_path / "a.png", icc_profile=data)
    [warning] = InputImages().warnings(str(tmp_path / "a.png"))
    assert fault in warning
    assert to_rgb(open_image(tmp_path / "a.png")).getpixel((0, 0))[0] == 90
    assert InputImages().warnings(str(tmp_path / "a.png"), values=True) == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path, orientation):
    corner = Image.new("RGB", (6, 4))
    corner.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert open_image(tmp_path / "a.png").tobytes() == ImageOps.exif_transpose(image).tobytes()


def test_sizes_are_those_of_pictures_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "a.jpg", exif=exif)
    assert image_info(str(tmp_path / "a.jpg")).size == open_image(tmp_path / "a.jpg").size == (32, 64)


@pytest.mark.parametrize("read", [open_image, image_info])
def test_what_is_no_picture_is_an_error(tmp_path, read):
    (tmp_path / "a.png").write_bytes(b"<html>")
    with pytest.raises(InvalidRequest, match="there is no image"):
        read(str(tmp_path / "missing.png"))
    with pytest.raises(InvalidRequest, match="cannot be read as an image"):
        read(str(tmp_path / "a.png"))
    with pytest.raises(InvalidRequest, match="cannot be read as an image"):
        read("data:image/png;base64,????")


def test_data_urls_are_pictures():
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "PNG")
    assert open_image(image_source(Image.open(encoded))).getpixel((0, 0)) == (255, 0, 0)
