"""A picture that was drawn with input images is drawn again, wherever these are now."""

import shutil

import pytest
from PIL import Image

import limner
from limner.cli.main import main
from limner.errors import InvalidRequest
from limner.images.assets import Assets
from limner.images.metadata import read_record

FAST = ["--steps", "2", "--seed", "5", "--strength", "0.6"]


@pytest.fixture
def run(capfd, monkeypatch):
    """Run a command, and return its exit code, output and errors."""

    def running(*arguments):
        monkeypatch.setattr("sys.argv", ["limner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        done = capfd.readouterr()
        return ended.value.code or 0, done.out, done.err

    return running


@pytest.fixture
def drawn(tmp_path, monkeypatch, run):
    """A picture that was drawn with an image named by a relative path, and that image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    photo = tmp_path / "photo.png"
    Image.effect_noise((128, 128), 90).convert("RGB").save(photo)
    code, _, errors = run("generate", "a red house", "--image", "photo.png", *FAST, "--out", "out/a.png")
    assert code == 0, errors
    return tmp_path / "out" / "a.png", photo


def test_from_where_it_was(drawn, run):
    code, _, errors = run("generate", "--from", "out/a.png", "--out", "out/b.png")
    assert code == 0
    assert "identical to out/a.png, bit for bit" in errors


def test_a_changed_image_is_mentioned(drawn, run):
    Image.new("RGB", (128, 128), "red").save(drawn[1])
    code, _, errors = run("generate", "--from", "out/a.png", "--out", "out/b.png")
    assert code == 0
    assert "photo.png has changed since out/a.png was made with it" in errors
    assert "not identical to" in errors


def test_an_image_that_has_moved_is_found_by_its_content(drawn, run, tmp_path):
    (tmp_path / "archive").mkdir()
    shutil.move(drawn[1], tmp_path / "archive" / "old.png")
    code, _, errors = run("generate", "--from", "out/a.png", "--out", "out/b.png")
    assert code == 2
    assert "out/a.png was made with photo.png, which was not found" in errors
    assert "give --image, or the folder that holds it as --assets-dir" in errors
    code, _, errors = run(
        "generate", "--from", "out/a.png", "--out", "out/b.png", "--assets-dir", tmp_path / "archive"
    )
    assert code == 0
    assert "old.png has the same content" in errors
    assert "identical to out/a.png, bit for bit" in errors
    code, _, _ = run(
        "generate", "--from", "out/a.png", "--out", "out/c.png", "--image", tmp_path / "archive" / "old.png"
    )
    assert code == 0


def test_an_image_given_in_memory_is_known_by_its_content(drawn, run, tmp_path):
    photo = Image.effect_noise((128, 128), 90).convert("RGB")
    fields = {"steps": 2, "seed": 5, "strength": 0.6}
    first = limner.load("picturebook").generate("a red house", image=photo, **fields).images[0]
    assert first.record.request.image.startswith("sha256:")
    with pytest.raises(InvalidRequest, match="no file with this content is known"):
        limner.load("picturebook").generate(request=first.record.request)
    photo.save(tmp_path / "saved.png")
    model = limner.load("picturebook", assets=Assets(folders=(tmp_path,)))
    assert model.generate(request=first.record.request).images[0].tobytes() == first.tobytes()
    stored = Assets(tmp_path / "store")
    stored.put((tmp_path / "saved.png").read_bytes())
    again = limner.load("picturebook", assets=stored)
    from_store = again.generate(
        "a red house", image=stored.put((tmp_path / "saved.png").read_bytes()), **fields
    )
    assert from_store.images[0].tobytes() == first.tobytes()
    assert from_store.images[0].record.request.image.startswith("sha256:")
    first.save(tmp_path / "out" / "first.png")
    code, _, errors = run(
        "generate", "--from", tmp_path / "out" / "first.png", "--out", "out/b.png", "--assets-dir", tmp_path
    )
    assert code == 0
    assert "identical to" in errors
    assert read_record(tmp_path / "out" / "b.png").inputs
