"""`limner serve`: which settings it would start with."""

import json

import pytest

from limner.cli.main import main


@pytest.fixture
def shown(capsys, monkeypatch, tmp_path):
    """The settings that `limner serve` prints with some options, or what it says instead."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        with pytest.raises(SystemExit) as exit:
            main(["serve", *options, "--show-settings"])
        said = capsys.readouterr()
        return json.loads(said.out) if not exit.value.code else said.err

    return run


def test_options_variables_and_the_file_are_shown_as_they_hold(shown, monkeypatch, tmp_path):
    (tmp_path / "limner.toml").write_text('port = 1\nhost = "a"\n[prices]\ncpu = 0.5\n')
    monkeypatch.setenv("LIMNER_PORT", "2")
    monkeypatch.setenv("LIMNER_LEDGER", "postgresql://limner:swordfish@db/limner")
    found = shown("--model", "a/b", "--model", "c", "--lora-dir", "x", "--set", "lease-seconds=7")
    assert (found["port"], found["host"], found["prices"]) == (2, "a", {"cpu": 0.5})
    assert (found["models"], found["lora_dirs"], found["lease_seconds"]) == (["a/b", "c"], ["x"], 7.0)
    assert shown("--port", "3")["port"] == 3
    assert "swordfish" not in json.dumps(found)
    assert found["ledger"] == "**********"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "port"), "--set port is not of the form name=value"),
        (("--set", "prot=1"), "--prot: there is no such setting"),
        (("--port", "70000"), "--port is '70000'"),
        (("--config", "none.toml"), "there is no settings file none.toml"),
    ],
)
def test_wrong_settings_are_told(shown, options, said):
    assert said in shown(*options)
