"""The command line, from words to files: what it draws, what it says, and how it refuses."""

import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin

from limner.catalogue.hashes import file_hash
from limner.catalogue.shipped import SHIPPED
from limner.weights.tensors import write_tensors
from tests.terminals import Terminal
from tests.waiting import DEADLINE, until

LIMNER = Path(sysconfig.get_path("scripts")) / "limner"
UNET = "unet/diffusion_pytorch_model.safetensors"

shipped = pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not built yet"
)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Drawing


def test_pictures_are_written_and_only_their_paths_printed(limner, tiny, tmp_path):
    done = limner(
        "generate", "a house", "--model", tiny, "--steps", 2, "--seed", 3, "-n", 2, "--grid", "--exact"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == ["pictures/00001-3.png", "pictures/00002-4.png", "pictures/grid-3.png"]
    assert files(tmp_path / "pictures") == {"00001-3.png", "00002-4.png", "grid-3.png"}
    with Image.open("pictures/00001-3.png") as picture, Image.open("pictures/grid-3.png") as sheet:
        assert picture.size == (64, 64)
        assert sheet.width > 2 * picture.width

    again = limner("generate", "a house", "--model", tiny, "--steps", 2, "--seed", 4, "--grid", "--exact")
    assert again.out.splitlines() == ["pictures/00003-4.png", "pictures/grid-4.png"]  # nothing is overwritten
    assert pixels("pictures/00003-4.png") == pixels("pictures/00002-4.png")  # a variant, drawn alone


def pixels(path: str) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_a_second_sheet_of_a_seed_gets_a_number(limner, tiny):
    for name in ("grid-3.png", "grid-3-2.png"):
        done = limner("generate", "a house", "--model", tiny, "--steps", 1, "--seed", 3, "--grid")
        assert done.out.splitlines()[-1] == f"pictures/{name}"


def test_every_option_reaches_the_record(limner, tiny):
    options = {
        "negative_prompt": "rain",
        "prompt_syntax": "literal",
        "clip_skip": 2,
        "width": 72,
        "height": 64,
        "seed": 11,
        "steps": 3,
        "guidance_scale": 3.5,
        "guidance_rescale": 0.5,
        "guidance_interval": [0.5, 9.0],
        "sampler": "dpmpp_2m",
        "sigma_schedule": "karras",
        "timestep_spacing": "trailing",
    }
    flags = []
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    done = limner("generate", "a (red) house", "--model", tiny, *flags, "--out", "own/folder/one.png")
    assert (done.code, done.out) == (0, "own/folder/one.png\n")
    record = json.loads(limner("show", "own/folder/one.png", "--json").out)
    assert {**record["request"], **options, "prompt": "a (red) house"} == record["request"]
    assert record["environment"]["threads"] == torch.get_num_threads()


def test_a_prompt_from_standard_input(limner, tiny, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a house\n"))
    limner("generate", "-", "--model", tiny, "--steps", 1, "--out", "one.png")
    assert json.loads(limner("show", "one.png", "--json").out)["request"]["prompt"] == "a house"


# Drawing again


@pytest.fixture
def original(limner, tiny) -> str:
    path = "original.png"
    assert limner("generate", "a house", "--model", tiny, "--steps", 2, "--out", path).code == 0
    return path


def test_drawn_again_it_is_the_same_file(limner, original):
    done = limner("generate", "--from", original, "--out", "again.png")
    assert done.err == f"note: identical to {original}, bit for bit\n"
    assert Path("again.png").read_bytes() == Path(original).read_bytes()
    assert limner("generate", "--from", original, "--out", "again.png", "--quiet").err == ""


def test_other_conditions_are_said(limner, original):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        done = limner("generate", "--from", original, "--out", "again.png")
    finally:
        torch.set_num_threads(threads)
    assert done.code == 0
    assert f"threads was {threads}, is {threads + 1}" in done.err


def test_other_weights_are_said(limner, tiny, original):
    unet = tiny / UNET
    kept = unet.read_bytes()
    tensors = safetensors.torch.load(kept)
    try:
        unet.write_bytes(
            safetensors.torch.save(
                {**tensors, "conv_out.bias": tensors["conv_out.bias"] + 1}, {"format": "pt"}
            )
        )
        done = limner("generate", "--from", original, "--out", "again.png")
    finally:
        unet.write_bytes(kept)
    assert "was made: the weights" in done.err
    assert "not identical to" in done.err


def test_options_override_the_record(limner, original):
    done = limner("generate", "--from", original, "--steps", 3, "--out", "other.png")
    assert (done.code, done.err) == (0, "")  # another request: nothing to compare
    request = json.loads(limner("show", "other.png", "--json").out)["request"]
    assert (request["steps"], request["prompt"]) == (3, "a house")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_keep_the_request_too(limner, tiny, suffix):
    first, second = f"first{suffix}", f"second{suffix}"
    limner("generate", "a house", "--model", tiny, "--steps", 2, "--out", first)
    done = limner("generate", "--from", first, "--out", second)
    assert f"identical to {first} before its compression as" in done.err
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_a_picture_of_another_program(limner, tiny):
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a house\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 64x72, VAE: kl-f8.safetensors",
    )
    Image.new("RGB", (8, 8)).save("webui.png", pnginfo=text)
    assert limner("show", "webui.png").out.startswith("a house\nSteps: 2")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("invokeai_metadata", json.dumps({"positive_prompt": "a cat", "steps": 9, "odd": 1}))
    Image.new("RGB", (64, 64)).save("invoke.png", pnginfo=chunks)
    done = limner("show", "invoke.png")
    assert {"program\tInvokeAI", "prompt\ta cat", "steps\t9"} <= set(done.out.splitlines())
    assert "not taken over, though it may have changed the image: odd: 1" in done.err
    assert limner("show", "invoke.png", "--json").code == 2
    done = limner("generate", "--from", "webui.png", "--model", tiny, "--out", "ours.png")
    assert done.code == 0
    assert "VAE: kl-f8.safetensors is not taken over: give the autoencoder's file with --vae" in done.err
    request = json.loads(limner("show", "ours.png", "--json").out)["request"]
    assert (request["sampler"], request["seed"], request["height"]) == ("euler_a", 5, 72)


# Showing


def test_show_prints_a_field_a_line_when_piped(limner, original):
    shown = dict(line.split("\t") for line in limner("show", original).out.splitlines())
    assert shown["prompt"] == "a house"
    assert shown["steps"] == "2"
    assert "exact" not in shown
    assert shown["generated with"].startswith("limner")
    assert len(shown["model hash"]) == 10


def test_a_record_of_the_future_is_printed_as_it_stands(limner, original):
    with Image.open(original) as picture:
        record = json.loads(picture.info["limner"])
        text = PngImagePlugin.PngInfo()
        text.add_itxt("limner", json.dumps({**record, "schema_version": 99}))
        picture.save("future.png", pnginfo=text)
    done = limner("show", "future.png")
    assert json.loads(done.out)["schema_version"] == 99
    assert done.err.startswith("warning:")
    assert limner("generate", "--from", "future.png").code == 2


def test_a_hostile_picture_cannot_write_to_the_screen(limner):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("parameters", "a \x1b]0;owned\x07\x1b[2Jhouse")
    Image.new("RGB", (8, 8)).save("hostile.png", pnginfo=text)
    assert limner("show", "hostile.png").out == "a \\x1b]0;owned\\x07\\x1b[2Jhouse\n"


def test_models_lists_what_is_installed(limner, tiny, monkeypatch):
    monkeypatch.setitem(SHIPPED, "tiny", tiny)
    headings, *rows = [line.split("\t") for line in limner("models").out.splitlines()]
    assert headings == ["name", "kind", "family", "parameters", "size", "where", "path"]
    expected = ["checkpoint", "custom", "shipped", str(tiny)]
    assert [row[1:3] + row[5:] for row in rows if row[0] == "tiny"] == [expected]
    listed = {model["name"]: model for model in json.loads(limner("models", "--json").out)}
    assert listed["tiny"]["bytes"] > listed["tiny"]["parameters"] > 0


def test_models_of_a_kind_in_folders(limner, tmp_path):
    write_tensors(tmp_path / "ink.safetensors", {"unet.a.lora_A.weight": torch.zeros(2, 3)})
    write_tensors(tmp_path / "word.safetensors", {"emb_params": torch.zeros(2, 768)})
    arguments = ["models", "--kind", "lora", "--lora-dir", tmp_path]
    [headings, row] = [line.split("\t") for line in limner(*arguments, "--hash").out.splitlines()]
    assert headings[5] == "hash"
    assert row[:2] == ["ink", "lora"]
    assert row[5] == file_hash(tmp_path / "ink.safetensors")[:10]
    [entry] = json.loads(limner("models", "--kind", "embedding", "--lora-dir", tmp_path, "--json").out)
    assert (entry["name"], entry["family"]) == ("word", "sd1")


# Refusing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampler", "foo"], "sampler is 'foo'"),
        (["--sigma-schedule", "foo"], "sigma_schedule is 'foo'"),
        (["--timestep-spacing", "foo"], "timestep_spacing is 'foo'"),
        (["--sampler", "euler", "--eta", "0.5"], "eta"),
        (["--width", "100"], "width is 100"),
        (["--height", "8"], "height is 8"),
        (["--width", "1000000000"], "width is 1000000000"),
        (["--width", "-64"], "width is -64"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "1001"], "steps is 1001"),
        (["--guidance-scale", "nan"], "guidance_scale is nan"),
        (["--guidance-scale", "inf"], "guidance_scale is inf"),
        (["--guidance-rescale", "-1"], "guidance_rescale is -1"),
        (["--eta", "nan"], "eta is nan"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**53)], "seed is 9007199254740992"),
        (["--num-images", "0"], "num_images is 0"),
        (["--clip-skip", "0"], "clip_skip is 0"),
        (["--clip-skip", "60"], "clip_skip is 60"),
        (["--prompt-syntax", "foo"], "prompt_syntax is 'foo'"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--variant", "fp16"], "no variant 'fp16'"),
        (["--revision", "main"], "revision 'main'"),
        (["--model", "nothing-of-this-name"], "no model 'nothing-of-this-name'"),
        (["--model", "."], "no model_index.json"),
        (["--out", "file.txt/folder"], "file.txt/folder cannot be written"),
        (["--out", "file.txt"], "file.txt"),
        (["--out", "file.txt/one.png"], "file.txt"),
        (["--out", "x" * 300], "cannot be written"),
        (["--out", "/proc/nowhere/deep"], "cannot be written"),
        (["--out", "one.gif"], "one.gif cannot keep the request"),
        (["--out", "one.png", "-n", "2"], "one file, one.png, for 2 images"),
        (["--from", "nowhere.png"], "nowhere.png does not exist"),
        (["--from", "file.txt"], "cannot be read as an image"),
        (["--from", "plain.png"], "contains no known generation metadata"),
    ],
)
def test_bad_input_is_refused_in_a_line(limner, tiny, tmp_path, arguments, words):
    (tmp_path / "file.txt").write_text("not a folder\n")
    Image.new("RGB", (8, 8)).save("plain.png")
    before = files(tmp_path)
    done = limner("generate", "a house", "--model", tiny, "--steps", 1, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert words in done.err
    assert len(done.err.splitlines()) <= 2  # a sentence and a hint
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments", [["--foo"], ["--width", "wide"], ["one", "two"], ["--guidance-interval", "1"]]
)
def test_usage_errors(limner, arguments):
    done = limner("generate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]


def test_no_prompt(limner):
    assert limner("generate").code == 2


@pytest.mark.parametrize(
    ("prompt", "words"), [("(" * 1_000_000, "65536"), ("(" * 60_000, "brackets"), ("(a:1.2.3)", "1.2.3")]
)
def test_prompts_that_cannot_be_read(limner, tiny, monkeypatch, tmp_path, prompt, words):
    monkeypatch.setattr("sys.stdin", io.StringIO(prompt))
    done = limner("generate", "-", "--model", tiny, "--steps", 1)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err) < 500
    assert not files(tmp_path)


@pytest.mark.parametrize("picture", ["nowhere.png", "file.txt", "plain.png"])
def test_show_refuses_what_says_nothing(limner, tmp_path, picture):
    (tmp_path / "file.txt").write_text("no picture\n")
    Image.new("RGB", (8, 8)).save("plain.png")
    done = limner("show", picture)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {picture} ")


# Broken checkpoints


def edit_unet(model: Path, change) -> None:
    tensors = safetensors.torch.load_file(model / UNET)
    change(tensors)
    safetensors.torch.save_file(tensors, model / UNET, {"format": "pt"})


def write_raw(path: Path, header: str, data: bytes = b"", length: int | None = None) -> None:
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def entry(begin: int, end: int) -> str:
    return json.dumps({"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]})


BREAKAGES = {
    "missing tensor": (lambda m: edit_unet(m, lambda t: t.pop("conv_in.bias")), "conv_in.bias"),
    "renamed tensor": (
        lambda m: edit_unet(m, lambda t: t.update({"conv_im.bias": t.pop("conv_in.bias")})),
        "conv_im.bias",
    ),
    "wrong shape": (
        lambda m: edit_unet(m, lambda t: t.update({"conv_in.bias": torch.zeros(3)})),
        "conv_in.bias",
    ),
    "truncated": (lambda m: os.truncate(m / UNET, (m / UNET).stat().st_size - 100), UNET),
    "empty": (lambda m: os.truncate(m / UNET, 0), UNET),
    "overlapping offsets": (
        lambda m: write_raw(m / UNET, f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', bytes(12)),
        "overlap",
    ),
    "duplicate keys": (
        lambda m: write_raw(m / UNET, f'{{"a": {entry(0, 8)}, "a": {entry(8, 16)}}}', bytes(16)),
        "twice",
    ),
    "giant header": (lambda m: write_raw(m / UNET, "{}", length=1 << 62), UNET),
    "pickled weights": (
        lambda m: (m / UNET).rename((m / UNET).with_suffix(".bin")),
        "pickle",
    ),
    "no weights": (lambda m: (m / UNET).unlink(), "unet"),
    "broken config": (
        lambda m: (m / "unet/config.json").write_text('{"block_out_channels": '),
        "config.json",
    ),
    "another class": (
        lambda m: (m / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
        "FluxPipeline",
    ),
    "no tokenizer": (lambda m: (m / "tokenizer/vocab.json").unlink(), "vocab.json"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_checkpoint_is_refused_by_name(limner, tiny, tmp_path, breakage):
    break_it, words = BREAKAGES[breakage]
    model = shutil.copytree(tiny, tmp_path / "model")
    break_it(model)
    done = limner("generate", "a house", "--model", model)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert words in done.err
    assert not (tmp_path / "pictures").exists()


def test_a_pickle_says_how_to_convert(limner, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    done = limner("generate", "a house", "--model", "model.ckpt")
    assert done.code == 2
    assert "pickle" in done.err
    assert "hint:" in done.err


def test_each_of_several_pictures_can_be_drawn_again_alone(tiny, limner):
    """Its rows have the same bits alone as in company, on the CPU."""
    drawn = limner("generate", "a house", "--model", tiny, "--steps", "3", "-n", "5", "--seed", "3")
    for path in drawn.out.split()[1::2]:
        again = limner("generate", "--from", path, "--out", "again")
        assert again.code == 0
        assert f"identical to {path}, bit for bit" in again.err


# The real command


@pytest.mark.usefixtures("interruptible")
def test_the_command_on_a_terminal_stopped_by_ctrl_c(tiny, tmp_path):
    """Progress goes to the terminal, paths to the pipe; what is finished is kept, and whole."""
    terminal = Terminal()
    command = [LIMNER, "generate", "a house", "--model", tiny, "--steps", "40", "-n", "200", "--seed", "3"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal.theirs, text=True
    )
    terminal.hand_over()
    assert process.stdout is not None
    first = process.stdout.readline()
    # The first picture is done: the bar after it tells that we are in mid-generation.
    seen = len(terminal.said)
    until(lambda: b"200 images" in terminal.said[seen:])
    process.send_signal(signal.SIGINT)
    with process.stdout as pipe:  # `communicate` would pass over what `readline` has read ahead
        rest = pipe.read()
    process.wait(timeout=DEADLINE)
    said = terminal.close()

    assert process.returncode == 130
    assert b"of 8000" in said
    assert b"stopped:" in said
    assert b"Traceback" not in said
    paths = (first + rest).splitlines()
    assert paths[0] == "pictures/00001-3.png"
    assert files(tmp_path / "pictures") == {Path(path).name for path in paths}
    assert f"{len(paths)} finished image" in said.decode()
    for path in paths:
        with Image.open(tmp_path / path) as picture:
            picture.load()


def test_a_reader_that_leaves_is_no_error(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("parameters", "a house\n" * 100_000)  # more than a pipe holds
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=text)
    process = subprocess.Popen(
        [LIMNER, "show", tmp_path / "long.png"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@shipped
def test_the_shipped_model_from_the_first_command_of_the_readme(tmp_path):
    words = "a red house left of a green tree in the snow at night"
    command = [LIMNER, "generate", words, "--seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    path = tmp_path / done.stdout.strip()
    again = [LIMNER, "generate", "--from", path, "--out", "again.png"]
    assert (
        "bit for bit"
        in subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    )
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, tmp_path / "again.png")}
    assert len(digests) == 1


@shipped
def test_the_shipped_model_is_listed(limner):
    listed = {model["name"]: model for model in json.loads(limner("models", "--json").out)}
    assert listed["picturebook"]["problem"] is None
    assert listed["picturebook"]["bytes"] <= 30 << 20


def test_the_package_runs_as_a_module(tmp_path):
    run = [
        subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
        for command in ([LIMNER], [sys.executable, "-m", "limner"])
    ]
    assert run[0].stdout == run[1].stdout != ""
