"""Settings: what the environment says, and that nothing else reads it."""

import os
import re
from pathlib import Path

import pytest

import limner
from limner.errors import InvalidRequest
from limner.settings import CONFIG_VARIABLE, VARIABLES, ServeSettings, Settings, default_cache_dir
from limner.settings.serve import variable

SOURCE = Path(limner.__file__).parent
PAGE = Path(__file__).resolve().parents[2] / "docs/reference/settings.md"
OF_KUBERNETES = {"LIMNER_SERVICE"}  # a prefix of variables that it sets for a service named `limner`


def test_what_the_environment_says():
    settings = Settings.read(
        {
            "LIMNER_CACHE": "/cache",
            "LIMNER_LORA_DIR": os.pathsep.join(["/a", "/b c"]),
            "LIMNER_STYLES_FILE": "x.csv",
            "LIMNER_EMBEDDING_DIR": "",
            "LIMNER_LOG_LEVEL": "DEBUG",
            "LIMNER_LOG_FORMAT": "json",
        }
    )
    assert settings.cache_dir == Path("/cache")
    assert settings.lora_dirs == (Path("/a"), Path("/b c"))
    assert (settings.styles_files, settings.embedding_dirs) == ((Path("x.csv"),), ())
    assert (settings.log_level, settings.log_format) == ("debug", "json")


def test_folders_of_the_settings_file_hold_for_all_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "limner.toml").write_text(
        """
        lora_dirs = ["/a:b", "/c"]
        styles_files = ["s.csv"]
        cache_dir = "/cache"
        log_level = "debug"
        port = 1
        """
    )
    settings = Settings.read({"LIMNER_STYLES_FILE": "own.csv"})
    assert settings.lora_dirs == (Path("/a:b"), Path("/c"))
    assert (settings.styles_files, settings.cache_dir) == ((Path("own.csv"),), Path("/cache"))
    assert settings.log_level is None  # that of the file is the service's
    assert Settings.read({"LIMNER_CONFIG": "", "LIMNER_CACHE": "/other"}).cache_dir == Path("/other")
    (tmp_path / "limner.toml").write_text("port = ")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Settings.read({})
    with pytest.raises(InvalidRequest, match="there is no settings file none"):
        Settings.read({"LIMNER_CONFIG": "none"})


def test_the_cache_is_in_the_folder_of_the_system():
    assert default_cache_dir({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/limner")
    assert default_cache_dir({"LIMNER_CACHE": ""}) == Path.home() / ".cache/limner"
    assert Settings.read({}) == Settings(cache_dir=default_cache_dir({}))


@pytest.mark.parametrize(("name", "what"), [("LIMNER_LOG_LEVEL", "level"), ("LIMNER_LOG_FORMAT", "format")])
def test_unknown_values_are_refused(name, what):
    with pytest.raises(InvalidRequest, match=f"the log {what} is 'loud'; expected"):
        Settings.read({name: "loud"})
    with pytest.raises(InvalidRequest, match=f"the log {what} is 'loud'; expected"):
        Settings.read({}, **{f"log_{what}": "loud"})


def test_every_variable_is_on_a_reference_page():
    page = PAGE.read_text(encoding="utf-8")
    of_service = {variable(name) for name in ServeSettings.model_fields} | {CONFIG_VARIABLE}
    named = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"LIMNER_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert set(VARIABLES.values()) == set(re.findall(r"^\| `(LIMNER_\w+)`", page, re.MULTILINE))
    assert named - OF_KUBERNETES <= of_service | set(VARIABLES.values())


def test_only_settings_read_the_environment():
    reading = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bos\.environ\b|\bgetenv\b", path.read_text(encoding="utf-8"))
    }
    # The supervisor hands the environment on, and tells each worker which GPU is its own.
    assert reading == {"settings/__init__.py", "settings/serve.py", "service/supervisor.py"}
