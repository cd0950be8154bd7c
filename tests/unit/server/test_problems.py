"""Errors of the service itself as answers: callers learn what they can do, and the log has the rest."""

import pytest

from limner.errors import InternalError, LedgerError, LedgerUnavailable, StorageError
from limner.server.problems import for_callers
from tests.serving import serving


def _internal() -> InternalError:
    error = InternalError("OSError: /srv/limner/x cannot be read")
    error.__cause__ = OSError("x")
    return error


@pytest.mark.parametrize(
    "error",
    [
        LedgerError("the ledger /srv/limner/ledger.sqlite3 is broken", hint="see /srv/limner"),
        LedgerUnavailable("the ledger postgresql+psycopg://limner@db/srv cannot be reached", retry_after=3.0),
        StorageError("the image store cannot write masters/a/b/1.png: /srv/limner/pictures is full"),
        _internal(),
    ],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/v1/models", "/sdapi/v1/samplers"])
def test_no_place_is_named_to_callers_and_the_log_has_it(tmp_path, monkeypatch, caplog, error, path):
    with serving(tmp_path, working=False) as served:

        def fail(*args, **more):
            raise error

        monkeypatch.setattr(served.ledger, "find_keyless", fail)
        answer = served.client.get(path)
    assert answer.status_code >= 500
    assert "srv" not in answer.text
    assert "log has the cause" in answer.text
    assert error.message in caplog.text


def test_what_names_no_place_is_told():
    error = StorageError("2 MiB are free on the service's disk; 256 MiB are needed", hint="make room")
    assert for_callers(error) is error
    error = InternalError("the engine ended the job without an image")
    assert for_callers(error) is error
