"""`limner verify --replay`: an image is drawn again from its record, and compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from limner.catalogue.shipped import SHIPPED
from limner.images.metadata import read_record
from limner.images.picture import Picture, pixel_hash

DRAWN = ("--width", 128, "--height", 128, "--steps", 2, "--exact")
SIZE = ("--width", 64, "--height", 64, "--steps", 2)


@pytest.fixture(autouse=True)
def _own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LIMNER_WATERMARK_KEY", raising=False)


@pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not built yet"
)
def test_a_picture_is_drawn_again_with_its_bits(limner):
    """Drawn in a batch of three, watermarked and compressed, and drawn again alone."""
    done = limner("generate", "a house", "-n", 3, "--seed", 3, *DRAWN, "--watermark")
    paths = done.out.splitlines()
    found = limner("verify", *paths[1:], "--replay", "--json")
    assert (found.code, found.err) == (0, "")
    for line in found.out.splitlines():
        replay = json.loads(line)["replay"]
        assert (replay["holds"], replay["same"], replay["file"]) == (True, True, "watermarked")
        assert replay["differences"] == []
    assert limner("generate", "a house", "--seed", 3, *DRAWN, "--out", "a.jpg").code == 0
    rows = limner("verify", "a.jpg", "--replay").out.splitlines()
    assert "drawn again\tthe same pixels as recorded" in rows
    assert "the file\tthe file's pixels are these after compression, bit for bit" in rows


def test_a_changed_pixel_and_a_changed_record(limner, tiny):
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "a.png").code == 0
    record = read_record("a.png")
    with Image.open("a.png") as image:
        assert record.pixels == pixel_hash(image)
        pixels = np.array(image)
    assert limner("verify", "a.png", "--replay").code == 0
    pixels[3, 4, 0] ^= 8
    Picture(Image.fromarray(pixels), record).save("changed.png")
    found = limner("verify", "changed.png", "--replay", "--difference", "map.png")
    assert found.code == 1
    rows = found.out.splitlines()
    assert "drawn again\tthe same pixels as recorded" in rows
    assert any(row.startswith("the file\tdiffers by up to 8 of 255") for row in rows)
    assert any(row.startswith("explained by\tthe file was changed") for row in rows)
    with Image.open("map.png") as image:
        assert np.argwhere(np.asarray(image)).tolist() == [[3, 4, 0]]

    environment = {**record.environment, "torch": "1.0"}
    model = {**record.model, "sha256": "0" * 64}
    forged = record.model_copy(
        update={
            "request": record.request.model_copy(update={"seed": 77}),
            "environment": environment,
            "model": model,
        }
    )
    with Image.open("a.png") as image:
        Picture(image.copy(), forged).save("forged.png")
    found = limner("verify", "forged.png", "--replay", "--json")
    replay = json.loads(found.out)["replay"]
    assert (found.code, replay["holds"], replay["same"], replay["file"]) == (1, False, False, "other")
    assert [one["name"] for one in replay["differences"]] == ["weights", "torch"]
    rows = limner("verify", "forged.png", "--replay").out.splitlines()
    assert any(row.startswith("explained by\ttorch was 1.0, is ") for row in rows)


def test_input_images_and_embeddings_are_compared_by_their_content(limner, tiny, tmp_path):
    from safetensors.torch import save_file
    from torch import ones

    words = tmp_path / "words"
    words.mkdir()
    save_file({"emb_params": ones(1, 32)}, words / "sketchy.safetensors")
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save("input.png")
    with_words = ("--embedding-dir", words)
    drawn = ("generate", "a sketchy", "--model", tiny, *SIZE, "--image", "input.png", *with_words)
    done = limner(*drawn, "--out", "drawn/a.png")
    assert done.code == 0
    assert len(read_record("drawn/a.png").model["embedding sketchy"]) == 64
    Path("moved").mkdir()
    Path("input.png").rename("moved/other.png")
    missing = limner("verify", "drawn/a.png", "--replay", *with_words)
    assert (missing.code, "was made with input.png, which was not found" in missing.err) == (2, True)
    found = limner("verify", "drawn/a.png", "--replay", *with_words, "--assets-dir", "moved", "--json")
    assert (found.code, json.loads(found.out)["replay"]["differences"]) == (0, [])
    save_file({"emb_params": -ones(1, 32)}, words / "sketchy.safetensors")
    found = limner("verify", "drawn/a.png", "--replay", *with_words, "--assets-dir", "moved", "--json")
    replay = json.loads(found.out)["replay"]
    assert [one["name"] for one in replay["differences"]] == ["embedding sketchy"]


def test_a_model_is_loaded_as_recorded_unless_options_say_otherwise(limner, tiny):
    drawn = ("generate", "a", "--model", tiny, *SIZE, "--out", "a.png")
    assert limner(*drawn, "--prediction-type", "epsilon").code == 0
    assert limner("verify", "a.png", "--replay").code == 0
    found = limner("verify", "a.png", "--replay", "--prediction-type", "v_prediction")
    assert found.code == 1
    assert "explained by\tprediction_type was epsilon, is v_prediction" in found.out.splitlines()
    assert "identical to a.png, bit for bit" in limner("generate", "--from", "a.png", "--out", "b.png").err


def test_what_cannot_be_drawn_again(limner, tiny):
    Image.new("RGB", (64, 64)).save("plain.png")
    refused = limner("verify", "plain.png", "--replay")
    assert (refused.code, "holds no record of Limner's" in refused.err) == (2, True)
    assert limner("verify", "plain.png", "--difference", "map.png").code == 2
    assert limner("verify", "plain.png", "plain.png", "--replay", "--difference", "map.png").code == 2
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "a.png").code == 0
    record = read_record("a.png")
    named = record.model_copy(
        update={"request": record.request.model_copy(update={"model": "./nowhere/model"})}
    )
    with Image.open("a.png") as image:
        Picture(image.copy(), named).save("named.png")
    assert limner("verify", "named.png", "--replay").code == 2
    assert limner("verify", "named.png", "--replay", "--model", tiny).code == 0


def test_a_file_is_decoded_once(limner, tiny, monkeypatch):
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "a.png").code == 0
    decoded, end = [], PngImageFile.load_end

    def counted(image):
        decoded.append(image.filename)
        end(image)

    monkeypatch.setattr(PngImageFile, "load_end", counted)
    assert limner("verify", "a.png", "--replay").code == 0
    assert list(map(str, decoded)) == ["a.png"]
    decoded.clear()
    assert limner("generate", "--from", "a.png", "--out", "b.png").code == 0
    assert list(map(str, decoded)) == ["a.png"]
