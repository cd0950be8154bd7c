"""Help: at once, complete and true."""

import json
import re
import subprocess
import sys
from typing import get_args

import pytest
import typer.main

from limner import request
from limner.cli.main import app, main
from limner.request import GenerationRequest

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["batch", "--help"], ["train", "--help"], ["--version"]]
)
def test_nothing_heavy_is_imported(arguments):
    program = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from limner.cli.main import main
main({arguments})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "PIL", "huggingface_hub", "safetensors", "tokenizers"}
    assert not heavy & set(json.loads(done.stderr))


def test_each_field_of_a_request_can_be_given():
    given = {parameter.name for parameter in COMMANDS["generate"].params}
    assert set(GenerationRequest.model_fields) <= given
    assert given - {"prompt", "grid", "source"} <= {parameter.name for parameter in COMMANDS["batch"].params}


def test_the_commands_are_in_the_order_of_their_use():
    commands = typer.main.get_command(app)
    listed = commands.list_commands(commands.make_context("limner", [], resilient_parsing=True))
    assert listed[:5] == ["generate", "grid", "batch", "show", "models"]
    assert listed[-2:] == ["train", "evaluate"]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("sampler", request.SamplerName),
        ("sigma_schedule", request.SigmaScheduleName),
        ("timestep_spacing", request.Spacing),
        ("prompt_syntax", request.PromptSyntax),
    ],
)
def test_help_lists_every_choice(option, names):
    [parameter] = [parameter for parameter in COMMANDS["generate"].params if parameter.name == option]
    assert all(name in parameter.help for name in get_args(names))


def test_every_command_and_option_is_explained():
    for command in COMMANDS.values():
        assert command.get_short_help_str()
        assert all(
            getattr(parameter, "help", None) or parameter.name == "help" for parameter in command.params
        )


def test_no_word_is_cut_on_a_narrow_terminal():
    """At 80 columns, explanations have about 40."""
    for command in ("generate", "grid", "batch"):
        helps = [parameter.help for parameter in COMMANDS[command].params if getattr(parameter, "help", None)]
        assert max(len(word) for text in helps for word in text.split()) <= 40


@pytest.mark.parametrize(
    "command", [*COMMANDS.items(), *COMMANDS["train"].commands.items()], ids=lambda it: it[0]
)
def test_no_option_is_cut_on_a_narrow_terminal(command, monkeypatch, capsys):
    name, found = command
    path = ["train", name] if name in COMMANDS["train"].commands else [name]
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    shown = capsys.readouterr().out
    options = [parameter for parameter in found.params if parameter.param_type_name == "option"]
    names = [name for option in options for name in (*option.opts, *option.secondary_opts)]
    assert not [name for name in names if not re.search(rf"{name}[ ,│]", shown)]


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert not exit.value.code
    assert capsys.readouterr().out == "limner 0.1.0\n"
