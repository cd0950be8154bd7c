"""`limner generate --watermark`, `limner batch --watermark` and `limner detect`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from limner.catalogue.shipped import SHIPPED
from limner.safety.watermark import detect

KEY = "0123456789abcdef-own"
# The shipped model, as what the tiny one draws is noise, in which no mark can be read.
DRAWN = ("--width", 256, "--height", 256, "--steps", 2, "--exact")

pytestmark = pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not built yet"
)


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_WATERMARK_KEY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_marked_image_is_detected_in_copies_and_drawn_again(limner):
    drawn = ("generate", "a house", "--seed", 3, *DRAWN)
    assert limner(*drawn, "--out", "plain.png").code == 0
    done = limner(*drawn, "--out", "marked.png", "--watermark")
    assert (done.code, done.err) == (0, "")
    assert pixels("plain.png") != pixels("marked.png")

    with Image.open("marked.png") as image:
        image.crop((9, 5, 240, 250)).save("copy.jpg", quality=75)
    found = limner("detect", "marked.png", "copy.jpg", "--json", "--no-scales")
    assert (found.code, found.err) == (0, "")
    original, copy = map(json.loads, found.out.splitlines())
    assert original["record"]["request"]["prompt"] == "a house"
    assert original["of_record"] is True
    assert original["watermark"]["id"] == original["record"]["watermark"]["id"] == copy["watermark"]["id"]
    assert original["watermark"]["key"] == "published"
    assert (copy["record"], copy["of_record"], copy["watermark"]["scale"]) == (None, None, 1.0)

    shown = limner("detect", "marked.png").out.splitlines()
    assert f"watermark\t{copy['watermark']['id']} (64 bits, published key)" in shown
    assert any(line.endswith("is that of the pixels") for line in shown)

    again = limner("generate", "--from", "marked.png", "--out", "again.png")
    assert "identical to marked.png before its watermark, bit for bit" in again.err
    assert pixels("again.png") == pixels("plain.png")


def test_exit_codes_say_what_was_not_found(limner):
    assert limner("generate", "a house", "--out", "plain.png", *DRAWN).code == 0
    plain = limner("detect", "plain.png", "--no-scales")
    assert (plain.code, "watermark\tnone found" in plain.out) == (1, True)
    Path("text.png").write_text("no image")
    mixed = limner("detect", "text.png", "plain.png", "--no-scales", "--json")
    assert (mixed.code, json.loads(mixed.out)["watermark"]) == (2, None)
    assert "text.png cannot be read as an image" in mixed.err
    Image.new("RGB", (20, 20)).save("tiny.png")
    assert "can be found from 32 pixels" in limner("detect", "tiny.png").err


def test_only_the_own_key_finds_marks_made_with_it(limner, tmp_path, monkeypatch):
    file = tmp_path / "data" / "limner" / "watermark.key"
    file.parent.mkdir(parents=True)
    file.write_text(f"{KEY}\n")
    assert limner("generate", "a", "--out", "own.png", "--watermark", *DRAWN).code == 0
    assert json.loads(limner("detect", "own.png", "--json").out)["watermark"]["key"] == "own"
    with Image.open("own.png") as image:
        assert detect(image) is None
    file.unlink()
    assert limner("detect", "own.png", "--no-scales").code == 1
    monkeypatch.setenv("LIMNER_WATERMARK_KEY", KEY)
    assert limner("detect", "own.png", "--no-scales").code == 0
    monkeypatch.setenv("LIMNER_WATERMARK_KEY", "short")
    refused = limner("detect", "own.png")
    assert "LIMNER_WATERMARK_KEY has 5 characters; expected at least 16" in refused.err


def test_images_that_are_too_small_are_refused_before_anything_is_drawn(limner, tiny, tmp_path):
    refused = limner("generate", "a", "--model", tiny, "--watermark")
    assert refused.code == 2
    assert "the image is 64 x 64; a watermark needs 128 pixels a side" in refused.err
    assert not (tmp_path / "pictures").exists()
    Path("prompts.txt").write_text("a house\n")
    refused = limner("batch", "prompts.txt", "--model", tiny, "--watermark")
    assert (refused.code, "a watermark needs 128 pixels a side" in refused.err) == (2, True)


def test_the_images_of_a_batch_and_of_a_sheet_are_marked(limner):
    Path("prompts.txt").write_text("a house\n")
    done = limner("batch", "prompts.txt", "--watermark", *DRAWN)
    assert done.code == 0
    assert limner("detect", *done.out.splitlines(), "--no-scales").code == 0

    drawn = limner("generate", "a", "-n", 2, "--grid", "--watermark", *DRAWN)
    *paths, sheet = drawn.out.splitlines()
    with Image.open(sheet) as image, Image.open(paths[1]) as second:
        left = 8 + 256 + 8
        assert image.crop((left, 8, left + 256, 8 + 256)).tobytes() == second.tobytes()
