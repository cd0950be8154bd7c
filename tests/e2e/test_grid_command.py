"""`limner grid`: the sheet, what is kept, and how it refuses, fails and is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from tests.waiting import DEADLINE

LIMNER = Path(sysconfig.get_path("scripts")) / "limner"


@pytest.fixture
def grid(limner, tiny):
    """Run `limner grid` with the tiny model and one step."""
    return lambda *arguments: limner("grid", *arguments, "--model", tiny, "--steps", 1, "--seed", 3)


def test_a_sheet_and_only_its_path(grid, limner, tmp_path):
    done = grid("a cat", "--x", "guidance-scale=2,3", "--y", "replace=cat,dog")
    assert (done.code, done.out, done.err) == (0, "pictures/grid-3.png\n", "")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["grid-3.png"]
    shown = dict(line.split("\t") for line in limner("show", "pictures/grid-3.png").out.splitlines())
    assert shown["axis x"] == "guidance_scale=2, 3"
    assert shown["axis y"] == "replace=cat, dog"
    assert grid("a cat", "--x", "seed=1,2").out == "pictures/grid-1.png\n"
    assert grid("a cat", "--x", "clip_skip=1,2").out == "pictures/grid-3-2.png\n"  # nothing is overwritten
    refused = limner("generate", "--from", "pictures/grid-3.png")
    assert refused.code == 2
    assert "is a sheet of several images" in refused.err


def test_single_pictures_are_kept_if_asked_for(grid, limner):
    done = grid("a cat", "--x", "seed=5,6", "--y", "clip_skip=1,2", "--out", "of/cats.png", "--keep")
    names = ["00001-5.png", "00002-6.png", "00003-5.png", "00004-6.png"]
    *kept, sheet = done.out.splitlines()
    assert sorted(kept) == [f"of/cats/{name}" for name in names]
    assert sheet == "of/cats.png"
    request = json.loads(limner("show", "of/cats/00003-5.png", "--json").out)["request"]
    assert (request["seed"], request["clip_skip"]) == (5, 2)
    # What a picture's record says can be looked at from all sides.
    done = limner("grid", "--from", "of/cats/00003-5.png", "--x", "steps=1,2", "--out", "more.png")
    assert (done.code, done.out) == (0, "more.png\n")
    assert json.loads(limner("show", "more.png", "--json").out)["request"]["clip_skip"] == 2


def test_prompts_and_models_are_axes(grid, limner, tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    done = grid("--x", 'prompt="a cat, a dog",a boat', "--y", f"model={tiny},{other}", "--keep")
    assert done.code == 0
    requests = [
        json.loads(limner("show", path, "--json").out)["request"]
        for path in sorted(done.out.splitlines()[:-1])
    ]
    assert [(r["prompt"], r["model"]) for r in requests] == [
        (prompt, str(model)) for model in (tiny, other) for prompt in ("a cat, a dog", "a boat")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a cat",), "a grid needs an axis"),
        (("--x", "steps=1,2"), "there is no prompt"),
        (("a cat", "--x", "stepps=1"), "did you mean steps or styles"),
        (("a cat", "--x", "steps=1-101"), "has 101 images, more than 100"),
        (("a cat", "--x", "steps=1-3", "--limit", "2"), "--limit 3"),
        (("a cat", "--x", "steps=1,2", "-n", "2"), "num_images is 2"),
        (("a cat", "--x", "replace=dog,bird"), "contains 'dog'"),
        (("a cat", "--x", "clip_skip=1,60"), "clip_skip is 60"),
        (("a cat", "--x", "steps=1,2", "--out", "sheet.gif"), "sheet.gif cannot keep the request"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_written(grid, tmp_path, arguments, words):
    done = grid(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_leaves_its_place_empty(grid, monkeypatch):
    from limner.errors import NumericalError
    from limner.model.model import Model

    real = Model.picture

    def picture(self, image, spec, *rest):
        if spec.request.clip_skip == 2:
            raise NumericalError("no number")
        return real(self, image, spec, *rest)

    monkeypatch.setattr(Model, "picture", picture)
    done = grid("a cat", "--x", "seed=1,2", "--y", "clip_skip=1,2")
    assert (done.code, done.out) == (1, "pictures/grid-1.png\n")
    assert done.err.splitlines() == [
        "failed: seed=1, clip_skip=2: no number",
        "failed: seed=2, clip_skip=2: no number",
    ]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_a_sheet_of_what_is_finished(tiny, tmp_path):
    arguments = ["--x", "steps=1," + ",".join(["900"] * 7), "--model", tiny, "--seed", "1", "--keep"]
    command = [LIMNER, "grid", "a cat", *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "pictures/grid-1/00001-1.png\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, "pictures/grid-1.png\n"), err
    assert "stopped: a sheet with 1 of 8 images is kept" in err
    with Image.open(tmp_path / "pictures/grid-1.png") as sheet:
        assert sheet.width > 8 * 64


# Wildcards and styles, which other commands have too


@pytest.fixture
def files(tmp_path, limner):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/animal.txt").write_text("cat\ndog\nbird\nfish\n")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nInk Wash,ink of {prompt},fog\n")
    (tmp_path / "other.json").write_text('[{"name": "Oil", "prompt": "oil", "negative_prompt": ""}]')


def prompt(limner, path):
    return json.loads(limner("show", path, "--json").out)["request"]["prompt"]


@pytest.mark.usefixtures("files")
def test_wildcards_and_styles_of_the_working_folder(limner, tiny):
    options = ("--model", tiny, "--steps", 1, "--seed", 1)
    limner("generate", "a {red} __animal__", "--style", "Ink Wash", *options, "--out", "plain.png")
    assert prompt(limner, "plain.png") == "ink of a {red} __animal__"

    done = limner("generate", "a {red} __animal__", "--wildcards", "--style", "Ink Wash", *options, "-n", 5)
    prompts = [prompt(limner, path) for path in done.out.splitlines()]
    assert len(set(prompts)) > 1
    assert all(words.startswith("ink of a red ") for words in prompts)
    shown = dict(line.split("\t") for line in limner("show", done.out.splitlines()[2]).out.splitlines())
    assert shown["prompt"] == prompts[2]
    assert (shown["styles"], shown["template"]) == ("Ink Wash", "a {red} __animal__")

    again = limner("generate", "--from", done.out.splitlines()[2], "--out", "again.png")
    assert "bit for bit" in again.err


@pytest.mark.usefixtures("files")
def test_files_by_name(limner, tiny):
    options = ("--model", tiny, "--steps", 1, "--style", "Oil", "--styles-file", "other.json")
    assert limner("generate", "a cat", *options, "--out", "oil.png").code == 0
    assert prompt(limner, "oil.png") == "a cat, oil"
    refused = limner("generate", "__animal__", "--wildcards", "--wildcards-dir", "nowhere", "--model", tiny)
    assert refused.code == 2
    assert "there is no folder nowhere" in refused.err


@pytest.mark.usefixtures("files")
def test_in_a_batch(limner, tiny, tmp_path):
    lines = [
        {"prompt": "a __animal__", "wildcards": True, "num_images": 3},
        {"prompt": "a __animal__", "styles": ["Ink Wash"]},
    ]
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ("--model", tiny, "--steps", 1)
    assert limner("batch", "lines.jsonl", *options).code == 0
    paths = sorted((tmp_path / "batch").glob("*.png"))
    prompts = [prompt(limner, path) for path in paths]
    assert all(words.split()[1] in ("cat", "dog", "bird", "fish") for words in prompts[:3])
    assert prompts[3] == "ink of a __animal__"

    # A run that was killed before it noted its pictures knows them again.
    journal = tmp_path / "batch/batch.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    times = [path.stat().st_mtime_ns for path in paths]
    assert limner("batch", "lines.jsonl", *options).code == 0
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "batch").glob("*.png"))] == times

    lines = [
        {"prompt": "a __anmal__", "wildcards": True},
        {"prompt": "a", "styles": ["Oil"]},
        {"prompt": "{"},
    ]
    (tmp_path / "bad.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    refused = limner("batch", "bad.jsonl", *options, "--out", "bad")
    assert refused.code == 2
    assert "bad.jsonl:1: there is no wildcard __anmal__" in refused.err
    assert "bad.jsonl:2: there is no style 'Oil'" in refused.err
    assert "2 lines of bad.jsonl" in refused.err


def test_a_sheet_too_large_for_its_format_is_written_as_png(grid, monkeypatch, tmp_path):
    monkeypatch.setattr("limner.images.picture._MAX_SIDE", {"WEBP": 100})
    done = grid("a house", "--x", "seed=1,2", "--out", "sheet.webp")
    assert done.code == 0
    assert done.out == "sheet.png\n"
    assert "too large for .webp: it is written as PNG" in done.err
