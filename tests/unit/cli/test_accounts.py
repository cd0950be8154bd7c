"""`limner accounts` and `limner webhooks` on a ledger."""

import io
import json
import zipfile

import pytest

from limner.cli.main import main
from limner.service.identity import LOCAL_ACCOUNT, Quotas
from limner.service.ledger.ledger import Ledger
from limner.service.secret import signing_key


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a ledger."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    ledger = Ledger.open(f"sqlite:///{folder}/ledger.sqlite3")
    if LOCAL_ACCOUNT not in {one.id for one in ledger.list_accounts()}:
        ledger.create_account(LOCAL_ACCOUNT, role="operator")
    ledger.close()
    return folder


@pytest.fixture
def run(data, capsys):
    def run(*arguments, code=0):
        with pytest.raises(SystemExit) as exit:
            main([*map(str, arguments), "--data", str(data)])
        said = capsys.readouterr()
        assert (exit.value.code or 0) == code, said.err
        return said

    return run


@pytest.fixture
def ledger(data):
    opened = Ledger.open(f"sqlite:///{data}/ledger.sqlite3")
    yield opened
    opened.close()


def test_accounts_are_made_changed_and_listed(run, ledger):
    limits = ["--quota", "images_per_day=50", "--quota", "cost_per_month=2.5", "--limit", "max_side=1024"]
    run("accounts", "create", "anna", "--weight", "2", *limits)
    anna = ledger.get_account("anna")
    assert (anna.role, anna.weight, anna.policy) == ("user", 2.0, {"max_side": 1024})
    assert anna.quotas == Quotas(images_per_day=50, cost_per_month=2.5)
    run("accounts", "change", "anna", "--role", "operator", "--quota", "images_per_day=none", "--disable")
    anna = ledger.get_account("anna")
    assert (anna.role, anna.weight, anna.disabled) == ("operator", 2.0, True)
    assert anna.quotas == Quotas(cost_per_month=2.5)
    assert anna.policy == {"max_side": 1024}
    run("accounts", "change", "anna", "--enable", "--limit", "max_side=none")
    assert (ledger.get_account("anna").disabled, ledger.get_account("anna").policy) == (False, {})
    rows = [line.split("\t") for line in run("accounts", "list").out.splitlines()]
    assert ["anna", "operator", "2", "", "cost_per_month=2.5", ""] in rows
    assert [one["id"] for one in json.loads(run("accounts", "list", "--json").out)] == ["anna", LOCAL_ACCOUNT]
    assert {row.actor for row in ledger.audit_log(subject="anna")} == {"cli"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["create", "anna", "--quota", "images=5"],
            "--quota images=5: expected NAME=VALUE with one of images_per",
        ),
        (["create", "anna", "--quota", "images_per_day=few"], "images_per_day=few: expected a number"),
        (["create", "anna", "--quota", "images_per_day=1.5"], "images_per_day=1.5: expected a number"),
        (["create", "anna", "--limit", "max_side=-1"], "max_side=-1: expected a number"),
        (["create", "a/b"], "a/b"),
        (["change", "nobody", "--weight", "2"], "nobody"),
        (["export", "nobody"], "nobody"),
        (["erase", "nobody", "--yes"], "nobody"),
        (["erase", LOCAL_ACCOUNT], "cannot be undone"),
        (["erase", LOCAL_ACCOUNT, "--yes"], "cannot be erased"),
    ],
)
def test_what_cannot_be_done_is_an_error(run, arguments, message):
    assert message in run("accounts", *arguments, code=2).err


def test_an_account_is_exported_and_erased(run, ledger, data, tmp_path):
    ledger.create_account("anna")
    ledger.put_draft("anna", "plan", {"prompt": "a plan"})
    out = run("accounts", "export", "anna", "--out", tmp_path / "all.zip").out.strip()
    archive = zipfile.ZipFile(io.BytesIO((tmp_path / "all.zip").read_bytes()))
    assert out == str(tmp_path / "all.zip")
    assert {"accounts.jsonl", "drafts.jsonl"} <= set(archive.namelist())
    run("accounts", "erase", "anna", "--yes")
    assert "anna" not in {one.id for one in ledger.list_accounts()}
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_failed_export_leaves_no_file(run, tmp_path):
    run("accounts", "export", "nobody", "--out", tmp_path / "all.zip", code=2)
    assert not (tmp_path / "all.zip").exists()


def test_a_folder_without_a_ledger_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["accounts", "list", "--data", str(tmp_path / "none")])
    assert "there is no ledger in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_secret_of_webhooks(run, data, monkeypatch):
    first = run("webhooks", "secret").out.strip()
    assert first.startswith("whsec_")
    assert run("webhooks", "secret").out.strip() == first
    old = signing_key(data, create=False)
    assert run("webhooks", "secret", "--new").out.strip() != first
    assert signing_key(data, create=False) != old
    monkeypatch.setenv("LIMNER_WEBHOOK_SECRET", "of the settings")
    assert run("webhooks", "secret").out.strip() == "of the settings"
