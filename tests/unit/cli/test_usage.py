"""Errors in the arguments look like all others: one line of error, one of hint, exit code 2."""

import io

import pytest

from limner.cli.main import main


@pytest.fixture
def say(capsys):
    def say(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(list(arguments))
        said = capsys.readouterr()
        assert said.out == ""
        assert exit.value.code == 2
        lines = said.err.splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
        return tuple(line.partition(": ")[2] for line in lines)

    return say


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["genrate", "x"], "limner has no command 'genrate'", "did you mean generate?"),
        (["zzz"], "limner has no command 'zzz'", "`limner --help` lists the arguments and options"),
        (["generate", "x", "--stepz", "3"], "limner generate has no option --stepz", "did you mean --steps?"),
        (
            ["generate", "x", "--guidance_scale", "3"],
            "limner generate has no option --guidance_scale",
            "did you mean --guidance-scale?",
        ),
        (
            ["generate", "x", "-z"],
            "limner generate has no option -z",
            "`limner generate --help` lists the arguments and options",
        ),
        (["--verbose", "generate"], "limner has no option --verbose", "did you mean --version?"),
        (["train", "loara"], "limner train has no command 'loara'", "did you mean lora?"),
        (["batch"], "the argument FILE is missing", "usage: limner batch [OPTIONS] FILE"),
        (
            ["generate", "a", "red", "house"],
            "limner generate takes no further argument, but was given 'red house'",
            "put an argument with blanks, such as a prompt, in quotes",
        ),
        (["generate", "x", "--steps"], "--steps needs a value", None),
        (["generate", "x", "--extend", "1"], "--extend takes 4 values", None),
        (["generate", "x", "--steps", "many"], "--steps is 'many'; expected a whole number", None),
        (["generate", "x", "--strength=x"], "--strength is 'x'; expected a number", None),
        (
            ["batch", "x", "--format", "jsn"],
            "--format is 'jsn'; expected auto, json, jsonl, csv, lines",
            "did you mean json?",
        ),
    ],
)
def test_usage_errors(say, arguments, error, hint):
    said, advice = say(*arguments)
    assert said.startswith(error)
    assert hint is None or advice == hint


def test_other_errors_look_the_same(say):
    assert say("generate", "x", "--width", "100") == (
        "width is 100: input should be a multiple of 8",
        "the nearest are 96 and 104",
    )
    assert say("generate", "x", "--steps", "0")[1] == "`limner generate --help` describes the fields"
    assert say("generate")[0] == "there is no prompt"


@pytest.mark.parametrize("command", ["generate", "grid"])
def test_a_request_in_json_is_no_prompt(say, monkeypatch, command):
    text = '{"prompt": "a house"}'
    monkeypatch.setattr("sys.stdin", io.StringIO(f"[\n{text}\n]\n"))
    options = ["--x", "seed=1,2"] if command == "grid" else []
    for prompt in (text, "-"):
        error, hint = say(command, prompt, *options)
        assert error == "the prompt is JSON"
        assert "limner batch" in hint


def test_options_are_named_as_the_command_line_has_them(say, tmp_path, checkpoint_folder):
    out = [
        "--width",
        "64",
        "--height",
        "64",
        "--model",
        str(checkpoint_folder),
        "--out",
        str(tmp_path / "out"),
    ]
    assert say("generate", "x", "--strength", "0.5", *out)[1] == "give --image, or leave --strength out"
    wildcards = ["--wildcards", "--prompt-syntax", "a1111", "--wildcards-dir", str(tmp_path)]
    assert say("generate", "__none__", *wildcards, *out)[1].endswith("give another folder as --wildcards-dir")


def test_help_is_shown_where_there_are_no_arguments(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "generate" in capsys.readouterr().out
