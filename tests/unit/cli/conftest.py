"""Commands on the ledger of a data folder."""

import pytest

from limner.cli.main import main
from limner.service.ledger.ledger import Ledger


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_DATA", str(tmp_path / "data"))

    def command(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(list(arguments))
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return command


@pytest.fixture
def ledger(tmp_path):
    """The ledger of the commands' data folder."""
    opened = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    yield opened
    opened.close()
