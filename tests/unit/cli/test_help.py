"""Help: at once, complete and true."""

import json
import re
import subprocess
import sys
from typing import get_args

import pytest

from limner import request
from limner.cli.main import COMMANDS as TABLE
from limner.cli.main import group, main
from limner.prompts.attention import PromptSyntax
from limner.request import GenerationRequest

COMMANDS = {name: command.loaded for name, command in group.commands.items()}


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
    assert set(GenerationRequest.model_fields) - {"schema_version"} <= given
    assert given - {"prompt", "grid", "source"} <= {parameter.name for parameter in COMMANDS["batch"].params}


def test_the_table_of_commands_says_what_they_say_of_themselves():
    for panel in TABLE.values():
        for name, entry in panel.items():
            said = COMMANDS[name].get_short_help_str(200)
            assert said.rstrip(".") == entry.summary.rstrip("."), name


def test_help_of_a_field_is_that_of_the_schema():
    helps = {
        parameter.name: parameter.help
        for parameter in COMMANDS["generate"].params
        if parameter.name != "help"
    }
    fields = GenerationRequest.model_fields
    assert helps["steps"].startswith(fields["steps"].description.partition(" Default")[0])
    assert "64 to 4096 pixels, a multiple of 8" in helps["width"]
    assert "--hires-height" in helps["hires_width"]
    assert all(name in helps["controls"] for name in ("model=", "image=", "preprocessor=", "end="))


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("sampler", request.SamplerName),
        ("sigma_schedule", request.SigmaScheduleName),
        ("timestep_spacing", request.Spacing),
        ("prompt_syntax", PromptSyntax),
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
