"""The supervisor over processes of a few lines each."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from limner.errors import InternalError, InvalidRequest, ModelNotFound
from limner.service import supervisor as module
from limner.service.identity import Principal
from limner.service.jobs import NewJob, Submission
from limner.service.ledger.ledger import Ledger
from limner.service.supervisor import Supervisor, _devices, _how_it_died, _visible
from limner.settings.serve import ServeSettings
from tests.waiting import DEADLINE, until

ORDERLY = """
import threading
from limner.service.processes import Line
stopping = threading.Event()
line = Line(stopping.set)
order = line.order()
"""
SERVES = ORDERLY + "line.ready()\nstopping.wait()\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a supervisor over programs in a thread; returns it, its thread, its URLs and its errors."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(module.__file__).parents[2]}")
    started = []

    def start(api=SERVES, worker=SERVES, **settings):
        (tmp_path / "own_api.py").write_text(api)
        (tmp_path / "own_worker.py").write_text(worker)
        given = ServeSettings(
            **{"data": tmp_path / "data", "port": 0, "devices": ("fake",), "drain_seconds": 0.5, **settings}
        )
        urls, errors = [], []
        made = Supervisor(given, api="own_api", worker="own_worker", announce=urls.append)

        def target():
            try:
                made.run()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        started.append((made, thread))
        return made, thread, urls, errors

    yield start
    for made, thread in started:
        made.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_a_process_that_dies_is_started_again_and_its_claims_are_given_up(run, tmp_path):
    made, _, urls, errors = run(lease_seconds=3600)
    until(lambda: urls)
    worker = until(lambda: [one for one in made._children if one.is_worker and one.ready])[0]
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    try:
        jobs = tuple(NewJob({"prompt": str(i)}, "m", 1.0) for i in range(2))
        principal = Principal(ledger.get_account("local"))
        accepted = ledger.accept(principal, Submission(jobs, {}))
        ledger.claim(worker.name, lease_seconds=3600, limit=1)
        ledger.claim("elsewhere", lease_seconds=3600, limit=1)
        name, process = worker.name, worker.process
        process.send_signal(signal.SIGKILL)
        until(lambda: worker.name != name and worker.ready)
        first, second = ledger.get_set(accepted.id).jobs
        assert (first.state, second.state) == ("queued", "running")
        assert [one.outcome for one in ledger.attempts(first.id)] == ["lost"]
    finally:
        ledger.close()
    assert errors == []


def test_an_error_at_the_start_is_the_services_own(run):
    failing = ORDERLY.replace(
        "import threading", "import sys, threading\nfrom limner.errors import ModelNotFound"
    )
    failing += 'line.failed(ModelNotFound("there is no boat", hint="build one"))\nsys.exit(2)\n'
    _, thread, _, errors = run(worker=failing)
    thread.join(DEADLINE)
    [error] = errors
    assert isinstance(error, ModelNotFound)
    assert (error.message, error.hint) == ("there is no boat", "build one")


def test_a_process_that_never_gets_ready_ends_the_service(run):
    _, thread, _, errors = run(api="import sys\nsys.exit(7)\n")
    thread.join(DEADLINE)
    [error] = errors
    assert isinstance(error, InternalError)
    assert "died 3 times before it was ready, the last time with code 7" in error.message


def test_what_a_process_prints_does_not_disturb_the_line(run):
    noisy = ORDERLY + 'print("{}")\nprint("hello")\nline.ready()\nstopping.wait()\n'
    made, _, urls, errors = run(worker=noisy)
    until(lambda: urls and all(one.ready for one in made._children))
    assert errors == []


def test_processes_get_time_to_end_and_no_more(run):
    stubborn = ORDERLY + "import time\nline.ready()\nstopping.wait()\ntime.sleep(600)\n"
    made, thread, urls, errors = run(worker=stubborn, drain_seconds=600)
    until(lambda: urls and all(one.ready for one in made._children))
    made.stop()
    time.sleep(0.3)
    assert thread.is_alive()
    made.stop()  # the second time it ends at once
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert errors == []


def test_settings_reach_the_processes_with_their_secrets(run, tmp_path):
    telling = (
        ORDERLY
        + f"""
from limner.settings.serve import ServeSettings
settings = ServeSettings.from_json(order.settings)
open({str(tmp_path / "told")!r}, "w").write(f"{{settings.webhook_secret.get_secret_value()}} {{order.first}}")
line.ready()
stopping.wait()
"""
    )
    _, _, urls, _ = run(worker=telling, webhook_secret="hush")
    until(lambda: urls and (tmp_path / "told").exists() and (tmp_path / "told").read_text())
    assert (tmp_path / "told").read_text() == "hush True"


def test_other_addresses_need_a_key(run):
    _, thread, _, errors = run(host="0.0.0.0")
    thread.join(DEADLINE)
    [error] = errors
    assert isinstance(error, InvalidRequest)
    assert error.fields == ("host",)


def test_an_issuer_of_tokens_stands_for_a_key(run):
    settings = {"oidc_issuer": "https://issuer.example", "oidc_audience": "limner"}
    _, _, urls, errors = run(host="0.0.0.0", **settings)
    until(lambda: urls or errors)
    assert not errors


def test_devices(monkeypatch):
    assert _devices(["cpu", "cuda:1"]) == ["cpu", "cuda:1"]
    monkeypatch.setattr(module.glob, "glob", lambda pattern: [])
    assert _devices(["auto"]) == ["cpu"]
    with pytest.raises(InvalidRequest, match="given twice"):
        _devices(["auto", "cpu"])


def test_every_gpu_is_found(monkeypatch):
    class Asked:
        returncode, stdout = 0, "2\n"

    monkeypatch.setattr(module.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: Asked)
    assert _devices(["auto"]) == ["cuda:0", "cuda:1"]
    Asked.returncode = 1
    assert _devices(["auto"]) == ["cpu"]


def test_a_worker_sees_its_own_gpu_alone(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert _visible(1) == "GPU-abc"
    with pytest.raises(InvalidRequest, match="shows 2"):
        _visible(2)


def test_how_a_process_died():
    assert _how_it_died(3) == "with code 3"
    assert _how_it_died(-9) == "by SIGKILL"
    assert _how_it_died(-250) == "by signal 250"
    assert sys.platform != "win32"
