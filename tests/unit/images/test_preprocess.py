"""Control pictures, beside OpenCV itself, known drawings and the conventions of ControlNet's own tools."""

import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from limner.errors import InvalidRequest
from limner.images.preprocess import (
    PREPROCESSORS,
    inpaint_condition,
    option_names,
    preprocessed,
    preprocessor,
)

NEED_OPENCV = {"canny", "lineart", "scribble", "softedge", "blur", "binary", "shuffle", "normal"}


@pytest.fixture
def photo():
    """Something with edges and gradients, 96 wide and 64 high."""
    rows, columns = np.mgrid[:64, :96]
    pixels = np.stack([columns * 2, rows * 3, (rows + columns) % 256], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 10, 60, 50), fill=(250, 240, 30), outline=(0, 0, 0))
    draw.rectangle((70, 20, 90, 60), fill=(20, 30, 200))
    return image


@pytest.fixture
def drawing():
    """A black line three pixels wide on white paper."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).line((10, 32, 54, 32), fill="black", width=3)
    return image


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_the_control_picture_is_as_large_as_the_picture(name, photo):
    for image in (photo, photo.convert("L"), photo.convert("RGBA"), photo.convert("P")):
        control = preprocessed(image, name)
        assert control.size == photo.size
        assert control.mode in ("L", "RGB")
        assert control.tobytes() == preprocessed(image, name).tobytes()


@pytest.mark.parametrize(("low", "high"), [(100, 200), (20, 60), (0, 0)])
def test_canny_is_opencvs(photo, low, high):
    edges = np.asarray(preprocessed(photo, "canny", low=low, high=high))
    assert np.array_equal(edges, cv2.Canny(np.asarray(photo), low, high))
    assert set(np.unique(edges)) == {0, 255}


def test_lines_become_white_on_black(drawing):
    for name in ("lineart", "scribble", "invert", "softedge", "canny"):
        control = np.asarray(preprocessed(drawing, name).convert("L"))
        assert control[30:35, 20:40].max() > 100, name
        assert not control[:12].any(), name
    # The median line becomes middle gray.
    assert np.asarray(preprocessed(drawing, "lineart"))[31:34, 20:40] == pytest.approx(127, abs=5)
    strokes = np.asarray(preprocessed(drawing, "scribble"))
    assert set(np.unique(strokes)) == {0, 255}
    assert np.asarray(preprocessed(drawing, "scribble", level=450)).sum() < strokes.sum()


@pytest.mark.parametrize("name", ["lineart", "scribble", "softedge", "canny"])
def test_an_empty_picture_has_no_edges(name):
    assert not np.asarray(preprocessed(Image.new("RGB", (32, 32), (90, 160, 40)), name)).any()


def test_levels(photo):
    pixels = np.asarray(photo)
    above = np.asarray(preprocessed(photo, "threshold", level=50))
    assert np.array_equal(above == 255, pixels.min(axis=2) > 50)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(np.asarray(preprocessed(photo, "binary", level=100)) == 255, gray > 100)
    otsu, _ = cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)
    assert np.array_equal(np.asarray(preprocessed(photo, "binary")) == 255, gray > otsu)


def test_tile_takes_details_away(photo):
    assert np.array_equal(preprocessed(photo, "tile", factor=1), photo)
    assert np.array_equal(preprocessed(photo, "tile_resample"), photo)  # AUTOMATIC1111's default is 1
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    spread = [np.asarray(preprocessed(noise, "tile", factor=factor)).std() for factor in (1, 2, 8)]
    assert spread == sorted(spread, reverse=True)
    assert np.asarray(preprocessed(noise, "blur")).std() < spread[0] / 4


def test_color_is_a_grid_as_diffusers_documents_it():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
    grid = image.resize((8, 8)).resize((512, 512), resample=Image.Resampling.NEAREST)
    assert np.array_equal(preprocessed(image, "color"), grid)
    small = Image.new("RGB", (32, 48), (9, 8, 7))
    assert np.array_equal(preprocessed(small, "color"), small)


def test_shuffling_keeps_colours_and_depends_on_its_seed(photo):
    first, second = (np.asarray(preprocessed(photo, "shuffle", seed=seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, photo)
    pixels = np.asarray(photo)
    assert first.min() >= pixels.min()
    assert first.max() <= pixels.max()


def test_normals_of_a_slope_and_of_the_background():
    depth = np.zeros((40, 40), np.uint8)
    depth[:, 20:] = 200 + np.arange(20)  # rises by one a pixel to the right
    normals = np.asarray(preprocessed(Image.fromarray(depth), "normal")).astype(float) / 127.5 - 1
    np.testing.assert_allclose(normals[20, 5], [0, 0, 1], atol=0.01)
    slope = np.array([8, 0, 2 * np.pi])  # Sobel's kernel sums to 8
    np.testing.assert_allclose(normals[20, 30], slope / np.linalg.norm(slope), atol=0.01)
    deep = Image.fromarray(depth.astype(np.uint16) * 257)
    assert np.array_equal(preprocessed(deep, "normal"), preprocessed(Image.fromarray(depth), "normal"))


def test_the_condition_of_inpainting_is_minus_one_under_the_mask(photo):
    mask = Image.new("L", photo.size)
    mask.paste(255, (10, 5, 30, 25))
    condition = inpaint_condition(photo, mask)
    assert condition.shape == (64, 96, 3)
    assert condition.dtype == np.float32
    white = np.asarray(mask) == 255
    assert (condition[white] == -1).all()
    np.testing.assert_allclose(condition[~white], np.asarray(photo)[~white] / 255)
    with pytest.raises(InvalidRequest, match="mask"):
        inpaint_condition(photo, mask.resize((8, 8)))


def test_ready_made_maps_of_16_bits_keep_their_range():
    depth = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    expected = np.round(depth / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(preprocessed(Image.fromarray(depth), "none"))[..., 0], expected)


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.array_equal(preprocessed(image, "none"), Image.new("RGB", (8, 8), "white"))


def test_names_that_other_programs_have(photo):
    for theirs, ours in {
        "lineart_standard": "lineart",
        "lineart_standard (from white bg & black line)": "lineart",
        "invert (from white bg & black line)": "invert",
        "scribble_xdog": "scribble",
        "blur_gaussian": "blur",
        "t2ia_color_grid": "color",
    }.items():
        assert preprocessed(photo, theirs).tobytes() == preprocessed(photo, ours).tobytes()
    assert option_names("canny") == ("low", "high")


def test_a_name_may_carry_its_options(photo):
    assert preprocessor("canny:50:150") == ("canny", {"low": 50.0, "high": 150.0})
    assert preprocessor("tile_resample") == ("tile", {"factor": 1.0})
    assert preprocessor("tile_resample:2") == ("tile", {"factor": 2.0})
    assert preprocessor("shuffle:32:7") == ("shuffle", {"cell": 32, "seed": 7})
    written, given = preprocessed(photo, "canny:50"), preprocessed(photo, "canny", low=50)
    assert written.tobytes() == given.tobytes()


@pytest.mark.parametrize(
    "name",
    [
        *("depth_midas", "depth_anything_v2", "normal_bae", "openpose_full", "dw_openpose_full", "mlsd"),
        *("lineart_realistic", "lineart_anime", "softedge_hed", "softedge_pidinet", "scribble_hed"),
        *("seg_ofade20k", "mediapipe_face", "t2ia_sketch_pidi"),
    ],
)
def test_what_takes_a_network_is_refused_by_name(name, photo):
    with pytest.raises(InvalidRequest, match=f"preprocessor {name} is a network") as error:
        preprocessed(photo, name)
    assert 'ready-made image, with the preprocessor "none"' in error.value.hint


def test_what_is_refused(photo):
    for name, options, message in (
        ("cany", {}, "there is no preprocessor cany"),
        ("canny", {"sigma": 1}, "canny has no option sigma"),
        ("canny", {"low": 200, "high": 100}, "low is 200 and high is 100"),
        ("canny", {"low": -1}, "low is -1"),
        ("canny:nan", {}, "low is nan"),
        ("canny:high", {}, "given as canny:high"),
        ("canny:1:2:3", {}, "gives 3 options, but canny has 2"),
        ("inpaint_only", {}, "needs a mask"),
        ("tile", {"factor": 0.5}, "factor is 0.5"),
        ("blur", {"sigma": 0}, "sigma is 0"),
        ("lineart", {"sigma": 1000}, "sigma is 1000"),
        ("softedge", {"sigma": -1}, "sigma is -1"),
        ("scribble", {"level": 511}, "level is 511"),
        ("threshold", {"level": 256}, "level is 256"),
        ("binary", {"level": -2}, "level is -2"),
        ("shuffle", {"cell": 1}, "cell is 1"),
        ("color", {"cell": 0}, "cell is 0"),
        ("normal", {"background": 2}, "background is 2"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            preprocessed(photo, name, **options)
    with pytest.raises(InvalidRequest) as error:
        preprocessed(photo, "cany")
    assert error.value.hint == "did you mean canny?"


def test_without_opencv_the_extra_is_named(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in PREPROCESSORS:
        if name in NEED_OPENCV:
            with pytest.raises(InvalidRequest, match="OpenCV") as error:
                preprocessed(photo, name)
            assert error.value.hint == 'pip install "limner[control]"'
        else:
            preprocessed(photo, name)
