"""`limner batch`: three formats, what is refused, and that nothing is lost or drawn twice however it ends."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

from tests.terminals import Terminal
from tests.waiting import DEADLINE

LIMNER = Path(sysconfig.get_path("scripts")) / "limner"
TEXT = "text_encoder/model.safetensors"
DEEP = Path("deep" * 50)  # a name so long that a handful of paths fills a pipe of one page

PROMPTS = ("a house", "a boat, blue", "a tree")


def journal(folder="batch") -> list[dict]:
    """The entries of a journal, after its header."""
    return [json.loads(line) for line in (Path(folder) / "batch.jsonl").read_text().splitlines()[1:]]


def pictures(folder="batch") -> dict[str, bytes]:
    """The pixels of each picture in a folder."""
    found = {}
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as picture:
            found[path.name] = picture.tobytes()
    return found


def pictures_are_those_of_the_journal(folder="batch") -> bool:
    files = {path.name for path in Path(folder).iterdir()} - {"batch.jsonl"}
    named = [name for entry in journal(folder) for name in entry.get("pictures", ())]
    return sorted(files) == sorted(named)


@pytest.fixture
def write(limner, tmp_path):
    """Write a batch file: strings are its lines, dictionaries JSON lines."""

    def write(name, *lines):
        said = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in said), encoding="utf-8")
        return name

    return write


@pytest.fixture
def batch(limner, tiny):
    """Run `limner batch` with the tiny model and one step."""
    return lambda *arguments: limner("batch", *arguments, "--model", tiny, "--steps", 1)


# Formats


def test_three_formats_give_the_same_pictures(batch, write):
    table = io.StringIO()
    csv.writer(table).writerows([("prompt", "seed"), *((prompt, "") for prompt in PROMPTS)])
    files = (
        write("prompts.txt", "# what to draw", "", *PROMPTS),
        write("prompts.jsonl", *({"prompt": prompt} for prompt in PROMPTS)),
        write("prompts.csv", "\ufeff" + table.getvalue().rstrip()),
        write("prompts", *({"prompt": prompt} for prompt in PROMPTS)),  # recognised without a suffix
    )
    drawn = []
    for file in files:
        done = batch(file, "--seed", 7, "--exact", "--out", f"of-{file}")
        assert (done.code, done.err) == (0, "")
        assert set(done.out.splitlines()) == {f"of-{file}/{name}" for name in pictures(f"of-{file}")}
        drawn.append(list(pictures(f"of-{file}").values()))
    assert len(set(drawn[0])) == 3
    assert all(other == drawn[0] for other in drawn)
    assert list(pictures("of-prompts.csv")) == ["00002-7.png", "00003-7.png", "00004-7.png"]

    # What asks for the same is the same to the journal, in whatever format it is asked.
    done = batch("prompts.csv", "--seed", 7, "--exact", "--out", "of-prompts.txt")
    assert (done.code, done.out, done.err) == (0, "", "note: 3 of 3 lines done before\n")


def test_cells_have_the_types_of_their_fields(batch, limner, write):
    write(
        "table.csv",
        "prompt,steps,guidance_scale,guidance_interval,exact,sampler,num_images",
        '"a house, two\nlines high",2,3.5,0.5 9,true,euler,2',
        "a boat,,,,,,",
    )
    assert batch("table.csv", "--seed", 1, "--guidance-scale", 2).code == 0
    assert set(pictures()) == {"00002-1.png", "00002-2.png", "00004-1.png"}
    first, last = (
        json.loads(limner("show", f"batch/{name}", "--json").out)["request"]
        for name in ("00002-2.png", "00004-1.png")
    )
    expected = {"steps": 2, "guidance_scale": 3.5, "guidance_interval": [0.5, 9.0], "exact": True}
    assert {**first, **expected, "prompt": "a house, two\nlines high", "sampler": "euler"} == first
    assert {**last, "steps": 1, "guidance_scale": 2.0, "prompt": "a boat"} == last


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("a house\n# no\na boat\n", ()),
        ('{"prompt": "a house"}\n\n{"prompt": "a boat"}\n', ()),
        ("prompt\na house\na boat\n", ("--format", "csv")),
    ],
)
def test_standard_input(batch, monkeypatch, said, options):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
    assert batch("-", *options).code == 0
    assert len(pictures()) == 2


def test_words_without_emphasis_may_have_any_brackets(batch, write):
    assert batch(write("lines.txt", "a (house:1.2.3)"), "--emphasis", "none").code == 0


def test_a_line_may_name_its_model(batch, limner, write, tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    write("lines.jsonl", {"prompt": "a"}, {"prompt": "a", "model": str(other)}, {"prompt": "b"})
    assert batch("lines.jsonl", "--seed", 1).code == 0
    drawn = {entry["line"]: f"batch/{entry['pictures'][0]}" for entry in journal()}
    models = {
        line: json.loads(limner("show", path, "--json").out)["request"]["model"]
        for line, path in drawn.items()
    }
    assert models == {1: str(tiny), 2: str(other), 3: str(tiny)}


# Refusing


def test_every_bad_line_is_named_and_nothing_is_drawn(batch, write, tmp_path):
    write(
        "bad.jsonl",
        {"prompt": "fine"},
        {"prompt": "a", "colour": "red"},
        {"prompt": "a", "width": 100},
        "[1]",
        '{"prompt": "a", "prompt": "b"}',
        {"negative_prompt": "a"},
        {"prompt": "(a:1.2.3)"},
        {"prompt": "a", "clip_skip": 60},
        {"prompt": "a", "model": "nothing-of-this-name"},
        {"prompt": "\ud800"},
        {"prompt": "a", "hires_scale": 1.5, "hires_prompt": "(a:1.2.4)"},
    )
    done = batch("bad.jsonl")
    assert (done.code, done.out) == (2, "")
    *listed, end, _ = done.err.splitlines()
    assert [line.split(":")[2] for line in listed] == ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]
    words = ("colour", "100", "list", "twice", "missing", "1.2.3", "layers", "nothing-of", "prompt", "1.2.4")
    assert all(word in line for word, line in zip(words, listed, strict=True)), done.err
    assert "10 lines of bad.jsonl" in end
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "prompt,colour\na,red\n", "a.csv:1: colour is not a field"),
        ("a.csv", "prompt,prompt\na,b\n", "a.csv:1: a heading is given twice"),
        ("a.csv", "prompt,steps\na,2\nb\n", "a.csv:3: the row has 1 cells, the header 2"),
        ("a.csv", "prompt,steps\n\na,many\n", "a.csv:3: steps is 'many'"),
        ("a.csv", 'prompt\na\n"b\n', "a.csv:3: the row is not valid CSV"),
        ("a.txt", "a\n\udcff\n", "a.txt:2: the line is not UTF-8"),
        ("a.txt", "# nothing\n", "a.txt asks for nothing"),
    ],
)
def test_files_that_cannot_be_read(batch, tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    done = batch(name)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert not (tmp_path / "batch").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--width", "100"), "error: width is 100"),
        (("--hires-strength", "0.5"), "error: there is no second pass for hires_strength"),
        (("--device", "abacus"), "error: device is 'abacus'"),
        (("--out", "lines.txt/folder"), "lines.txt/folder cannot be written"),
        (("--out", "taken"), "taken/batch.jsonl:1 is not from the journal of a batch"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_once(batch, write, tmp_path, options, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/batch.jsonl").write_text('{"prompt": "a batch file, not a journal"}\n')
    done = batch(write("lines.txt", *PROMPTS), *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert words in done.err
    assert len(done.err.splitlines()) <= 2


# Going on


def test_what_is_finished_is_not_drawn_again(batch, write, tmp_path):
    assert batch(write("lines.txt", "a", "b", "b"), "-n", 2, "--exact").code == 0
    first, entries = pictures(), journal()
    assert len(set(first.values())) == 6  # lines without a seed differ, even if they ask for the same
    assert {entry["line"] for entry in entries} == {1, 2, 3}
    assert batch("lines.txt", "-n", 2, "--exact").out == ""

    # One changed line, one new and one moved: two lines are drawn, with names of their own.
    done = batch(write("lines.txt", "c", "new", "b", "b"), "-n", 2, "--exact", "--quiet")
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 4)
    assert {entry["line"] for entry in journal()[3:]} == {1, 2}
    assert pictures_are_those_of_the_journal()
    assert {name: pictures()[name] for name in first} == first

    # A picture that was thrown away comes back, in its place.
    name = entries[1]["pictures"][1]
    (tmp_path / "batch" / name).unlink()
    batch("lines.txt", "-n", 2, "--exact")
    assert {name: pictures()[name] for name in first} == first
    assert len(pictures()) == len(first) + 4


def test_names_of_other_pictures_are_left_alone(batch, write, tmp_path):
    """Two lines that stood at one number, and a stranger's file."""
    (tmp_path / "batch").mkdir()
    Image.new("RGB", (8, 8)).save("batch/00001-3.png")
    for prompt in "a", "b":
        assert batch(write("lines.txt", prompt), "--seed", 3).code == 0
    assert list(pictures()) == ["00001-3-2.png", "00001-3-3.png", "00001-3.png"]
    with Image.open("batch/00001-3.png") as picture:
        assert picture.size == (8, 8)


def start(tmp_path: Path, tiny: Path, lines: int, **more) -> tuple[subprocess.Popen, list[str]]:
    """A batch in a process that cannot end: its paths fill the pipe before nearly all lines are drawn."""
    (tmp_path / "many.txt").write_text("".join(f"number {i}\n" for i in range(lines)))
    command = ["batch", "many.txt", "--model", str(tiny), "--steps", "1", "--out", str(DEEP)]
    process = subprocess.Popen(
        [LIMNER, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True, pipesize=4096, **more
    )
    return process, command


def test_a_batch_goes_on_after_kill_9(limner, tiny, tmp_path):
    process, command = start(tmp_path, tiny, 60)
    with process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        second = limner(*command)
        process.kill()
    assert (second.code, second.out) == (2, "")
    assert "another batch is writing" in second.err
    assert process.returncode == -signal.SIGKILL
    whole = pictures(DEEP)  # reads all: none is a part
    assert 1 <= len(whole) < 60
    assert Path(path).name in whole
    with open(DEEP / "batch.jsonl", "a") as file:
        file.write('{"line": 60, "finger')  # as if it had been killed while it wrote

    done = limner(*command)
    assert done.code == 0, done.err
    assert sorted(entry["line"] for entry in journal(DEEP)) == list(range(1, 61))
    assert pictures_are_those_of_the_journal(DEEP)
    assert {name: pictures(DEEP)[name] for name in whole} == whole  # kept, not drawn again


def test_a_picture_whose_line_was_not_finished_is_kept(batch, write, tmp_path):
    """A kill between a picture and the journal leaves a whole file that the journal does not name."""
    assert batch(write("lines.txt", "a"), "-n", 3).code == 0
    file = tmp_path / "batch/batch.jsonl"
    header, entry = file.read_text().splitlines()
    file.write_text(f"{header}\n")
    names = json.loads(entry)["pictures"]
    (tmp_path / "batch" / names[2]).unlink()
    kept = {name: (tmp_path / "batch" / name).stat().st_ino for name in names[:2]}  # new files have new ones
    done = batch("lines.txt", "-n", 3)
    assert sorted(done.out.splitlines()) == [f"batch/{name}" for name in names]
    assert journal() == [json.loads(entry)]
    assert {name: (tmp_path / "batch" / name).stat().st_ino for name in kept} == kept


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished(limner, tiny, tmp_path):
    """On a terminal, with paths to a pipe: progress, then how to go on."""
    terminal = Terminal()
    process, command = start(tmp_path, tiny, 60, stderr=terminal.theirs)
    terminal.hand_over()
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    with process.stdout as pipe:  # `communicate` would pass over what `readline` has read ahead
        rest = pipe.read()
    process.wait(timeout=DEADLINE)
    said = terminal.close()
    assert process.returncode == 130, said
    assert b"of 60 images" in said
    assert b"stopped:" in said
    assert b"the same command goes on" in said
    assert b"Traceback" not in said
    printed = {Path(path).name for path in (first + rest).splitlines()}
    assert {name for entry in journal(DEEP) for name in entry["pictures"]} <= printed
    assert 1 <= len(printed) < 60

    assert limner(*command).code == 0
    assert len(journal(DEEP)) == 60
    assert pictures_are_those_of_the_journal(DEEP)


# Failing


def test_failures_are_listed_and_tried_again(limner, write, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    kept = (model / TEXT).read_bytes()
    tensors = safetensors.torch.load(kept)
    vocabulary = json.loads((model / "tokenizer/vocab.json").read_text())
    [name] = [name for name in tensors if name.endswith("token_embedding.weight")]
    tensors[name][vocabulary["z</w>"]] = float("nan")
    (model / TEXT).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    write("lines.txt", "a", "z", "b", "z")
    command = ("batch", "lines.txt", "--model", model, "--steps", 1)

    done = limner(*command)
    assert done.code == 1
    assert len(done.out.splitlines()) == 2
    first, second, end, hint = done.err.splitlines()
    assert first.startswith("failed: lines.txt:2: ")
    assert second.startswith("failed: lines.txt:4: ")
    assert "NaN or infinity" in first
    assert end == "error: 2 of 4 lines failed"
    assert hint.startswith("hint: the same command")
    failed = {entry["line"]: entry for entry in journal() if "error" in entry}
    assert set(failed) == {2, 4}
    assert pictures_are_those_of_the_journal()

    (model / TEXT).write_bytes(kept)
    done = limner(*command)
    assert (done.code, done.err) == (0, "note: 2 of 4 lines done before\n")
    names = [f"batch/0000{line}-{entry['seed']}.png" for line, entry in failed.items()]
    assert sorted(done.out.splitlines()) == sorted(names)
    assert pictures_are_those_of_the_journal()
