"""Settings of the service: where they come from, what is refused, and that secrets stay secret."""

import dataclasses
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import limner
from limner.errors import InvalidRequest
from limner.request.policy import RequestPolicy
from limner.service.identity import Quotas
from limner.settings import ServeSettings
from limner.settings.reference import settings_page
from limner.settings.serve import GROUPS, SECRETS
from limner.settings.values import DEFAULT_LIMITS, LIMIT_NAMES, QUOTA_NAMES

SOURCE = Path(limner.__file__).parent
PAGE = Path(__file__).resolve().parents[2] / "docs/reference/serve-settings.md"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder without a `limner.toml`."""
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path):
    (tmp_path / "limner.toml").write_text('host = "a"\nport = 1\ncurrency = "EUR"\n[aliases]\n"x" = "y"\n')
    settings = ServeSettings.read({"LIMNER_HOST": "b", "LIMNER_PORT": "2"}, port=3, currency=None)
    assert (settings.host, settings.port, settings.currency) == ("b", 3, "EUR")
    assert settings.aliases == {"x": "y"}


def test_the_constructor_reads_nothing_but_its_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMNER_PORT", "9")
    (tmp_path / "limner.toml").write_text("port = 10")
    assert ServeSettings().port == 8188


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_named_file_must_be_there(tmp_path, how):
    missing = tmp_path / "none.toml"
    environment = {"LIMNER_CONFIG": str(missing)} if how == "variable" else {}
    with pytest.raises(InvalidRequest, match=r"there is no settings file .*none\.toml"):
        ServeSettings.read(environment, config=missing if how == "argument" else None)
    missing.write_text("port = 7")
    assert ServeSettings.read(environment, config=missing if how == "argument" else None).port == 7


def test_text_becomes_lists_tables_sizes_and_switches():
    settings = ServeSettings.read(
        {
            "LIMNER_LORA_DIR": "/a:/b c",
            "LIMNER_CACHE": "/cache",
            "LIMNER_DEVICES": "cpu, cuda:1",
            "LIMNER_PRICES": "cuda=0.25,cuda:1=0.5",
            "LIMNER_LIMITS": "max_side=512",
            "LIMNER_MAX_BODY_BYTES": "3MiB",
            "LIMNER_PREVIEWS": "off",
            "LIMNER_ALLOWED_HOSTS": "",
        },
        models="a/b,c",
    )
    assert settings.lora_dirs == (Path("/a"), Path("/b c"))
    assert (settings.cache_dir, settings.devices, settings.models) == (
        Path("/cache"),
        ("cpu", "cuda:1"),
        ("a/b", "c"),
    )
    assert [settings.price_of(device) for device in ("cuda:0", "cuda:1", "cuda", "cpu")] == [
        0.25,
        0.5,
        0.25,
        0,
    ]
    assert (settings.limits, settings.max_body_bytes, settings.previews) == (
        {**DEFAULT_LIMITS, "max_side": 512},
        3 << 20,
        False,
    )
    assert settings.allowed_hosts == ()


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({"LIMNER_PORT": "high"}, {}, "LIMNER_PORT is 'high': .*integer"),
        ({}, {"lease_seconds": "0"}, "--lease-seconds is '0': .*greater than or equal to 1"),
        ({}, {"pott": 1}, "--pott: there is no such setting"),
        ({"LIMNER_LIMITS": "max_sides=5"}, {}, "LIMNER_LIMITS is .*: 'max_sides' is none of max_side, "),
        ({"LIMNER_PRICES": "cuda"}, {}, "'cuda' is not of the form name=value"),
        ({"LIMNER_CORS_ORIGINS": "example.org"}, {}, "'example.org' is not an origin such as"),
        ({"LIMNER_PUBLIC_URL": "example.org"}, {}, "'example.org' is not a URL such as"),
        ({"LIMNER_OIDC_ISSUER": "https://id.example.org"}, {}, "oidc_issuer needs oidc_audience"),
        ({"LIMNER_LOG_LEVEL": "loud"}, {}, "LIMNER_LOG_LEVEL is 'loud'"),
    ],
)
def test_wrong_values_are_refused_with_their_place(environment, flags, message):
    with pytest.raises(InvalidRequest, match=message):
        ServeSettings.read(environment, **flags)


def test_an_unknown_key_or_broken_file_is_refused(tmp_path):
    file = tmp_path / "limner.toml"
    file.write_text("prices_ = 1")
    with pytest.raises(InvalidRequest, match=r"limner\.toml: prices_: there is no such setting") as caught:
        ServeSettings.read({})
    assert caught.value.hint == "the nearest is prices"
    file.write_text("port = ")
    with pytest.raises(InvalidRequest, match=r"limner\.toml cannot be read"):
        ServeSettings.read({})


def test_an_unknown_variable_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "limner.settings"):
        ServeSettings.read({"LIMNER_PROT": "1", "LIMNER_PORT": "2", "LIMNER_STYLES_FILE": "x"})
    assert [record.fields["variable"] for record in caplog.records] == ["LIMNER_PROT"]
    assert caplog.records[0].fields["nearest"] == ["LIMNER_PORT"]


def test_variables_that_kubernetes_sets_for_a_service_are_not_settings(caplog):
    given = {
        "LIMNER_PORT": "tcp://10.0.0.1:8188",
        "LIMNER_SERVICE_HOST": "10.0.0.1",
        "LIMNER_PORT_8188_TCP_PORT": "8188",
    }
    assert ServeSettings.read(given).port == 8188
    assert not caplog.records


def test_secrets_are_handed_over_but_never_shown():
    url = "postgresql+psycopg://limner:swordfish@db/limner"
    settings = ServeSettings.read({"LIMNER_LEDGER": url, "LIMNER_WEBHOOK_SECRET": "swordfish"})
    assert SECRETS == ("ledger", "civitai_token", "watermark_key", "webhook_secret")
    assert "swordfish" not in f"{settings!r} {settings} {settings.shown()}"
    again = ServeSettings.from_json(settings.to_json())
    assert again == settings
    assert again.ledger_url == url
    with pytest.raises(InvalidRequest) as caught:
        ServeSettings.read({}, ledger=("swordfish",))
    assert "swordfish" not in str(caught.value)


def test_the_ledger_is_in_the_data_folder_by_default(tmp_path):
    assert ServeSettings(data=tmp_path).ledger_url == f"sqlite:///{tmp_path}/ledger.sqlite3"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("images.lan", False)],
)
def test_which_addresses_only_this_machine_reaches(host, expected):
    assert ServeSettings(host=host).on_loopback is expected


def test_tables_have_the_names_of_what_they_set():
    assert tuple(field.name for field in dataclasses.fields(RequestPolicy)) == LIMIT_NAMES
    assert tuple(field.name for field in dataclasses.fields(Quotas)) == QUOTA_NAMES


def test_every_setting_is_described_under_a_heading_and_the_page_is_current():
    for name, field in ServeSettings.model_fields.items():
        assert re.search(r"[.)]$", field.description), name
        assert field.json_schema_extra["group"] in GROUPS
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "limner schema --settings > " + PAGE.name


def test_settings_are_light_until_those_of_the_service_are_used():
    program = (
        "import limner.settings, sys; print('pydantic' in sys.modules, 'pydantic_settings' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_setting_is_read_somewhere():
    """A setting without effect would promise what nobody does."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if "settings" not in path.relative_to(SOURCE).parts
    ]
    read = set(re.findall(r"\b(?:_?settings|read|own)\.(\w+)\b", "\n".join(texts)))
    by_methods = {
        "prices": "price_of",
        "default_model": "model",
        "ledger": "ledger_url",
        "host": "on_loopback",
    }
    assert not [name for name in ServeSettings.model_fields if by_methods.get(name, name) not in read]
