"""The policy that a model is loaded with decides about everything that it draws."""

import json
import subprocess
import sys

import pytest

from limner import Engine, GenerationRequest, PromptRefused, load
from limner.cli.main import main
from limner.errors import InvalidRequest
from tests.unit.model.test_adapting import LAYER, write_lora

ASK = {"seed": 3, "steps": 1, "width": 64, "height": 64}


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return end.value.code


@pytest.fixture
def model(checkpoint_folder, tmp_path):
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "who.txt").write_text("naked schoolgirl\n")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nbad,hentai,\n")
    write_lora(tmp_path / "ink.safetensors", LAYER)
    (tmp_path / "ink.json").write_text(json.dumps({"activation text": "naked"}))
    return load(
        checkpoint_folder,
        precision="fp32",
        safety="standard",
        wildcards_dirs=[tmp_path / "wild"],
        styles_files=[tmp_path / "styles.csv"],
        lora_dirs=[tmp_path],
    )


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"prompt": "a hentai poster"}, "prompt"),
        ({"prompt": "a __who__", "wildcards": True}, "prompt"),
        ({"prompt": "{a|a} hen{tai|tai}", "wildcards": True}, "prompt"),
        ({"prompt": "a cat", "styles": ("bad",)}, "prompt"),
        ({"prompt": "a hen[:tai:0]"}, "prompt"),
        ({"prompt": "a little boy <lora:ink:1>"}, "loras"),
        ({"prompt": "a cat", "hires_scale": 2.0, "hires_prompt": "hentai"}, "hires_prompt"),
    ],
)
def test_every_text_of_a_request_is_checked(model, fields, source):
    request = GenerationRequest.of({**ASK, **fields})
    with pytest.raises(PromptRefused) as refused:
        model.generate(request=request)
    assert source in refused.value.fields


def test_a_resolved_request_is_checked_too(model, checkpoint_folder):
    resolved = load(checkpoint_folder, precision="fp32").resolve(
        GenerationRequest.of({**ASK, "prompt": "hentai"})
    )
    with Engine(model) as engine, pytest.raises(PromptRefused):
        engine.submit(resolved).result()


def test_a_flagged_prompt_is_drawn_with_a_warning(model):
    [picture] = model.generate("nude woman", **ASK).images
    assert any("flags the prompt by its rule nudity" in warning for warning in picture.record.warnings)


def test_a_faulty_policy_is_found_before_the_model_is_read(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no safety policy"):
        load(tmp_path / "no-model", safety=tmp_path / "none.toml")


def test_the_command_line_refuses_with_code_3(checkpoint_folder, tmp_path, capsys):
    ask = ["--model", checkpoint_folder, "--steps", 1, "--width", 64, "--height", 64, "--precision", "fp32"]
    out = tmp_path / "out"
    assert run("generate", "a hentai poster", "--safety", "strict", "--out", out, *ask) == 3
    assert "rule sexual (score 1): sexual acts: 'hentai' (prompt)" in capsys.readouterr().err
    assert not list(out.glob("*.png"))
    assert not run("generate", "a hentai poster", "--out", out, *ask)  # off where it is not asked for
    assert len(list(out.glob("*.png"))) == 1


def test_a_safety_check_of_a_prompt_loads_nothing_of_requests():
    program = (
        "import sys; from limner.cli.main import main\n"
        "try: main(['safety', 'check', 'prompt', 'a house'])\n"
        "finally: print([name for name in sys.modules if name.startswith(('limner.request', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_safety_check(capsys):
    assert run("safety", "check", "prompt", "p0rn", "--json") == 3
    assert json.loads(capsys.readouterr().out)["rule"] == "sexual"
    assert not run("safety", "check", "prompt", "a red house", "--safety", "strict")
    assert "allow" in capsys.readouterr().out
