"""`limner serve` as a program: starting, stopping, and what it says when it cannot start."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from benchmarks.faults.service import Service
from limner.service.ledger.ledger import Ledger
from tests.waiting import DEADLINE, until

FAKE = ("--device", "fake:0.02", "--log-level", "warning")
REQUEST = {"prompt": "a boat", "width": 64, "height": 64, "steps": 4}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One whose lost jobs are not found by their leases."""
    data = tmp_path_factory.mktemp("served") / "data"
    with Service(data, *FAKE, "--set", "lease_seconds=600") as running:
        yield running


def submit(service, **more):
    body = {"request": {**REQUEST, **more}}
    answer = httpx.post(f"{service.url}/api/v1/jobs", json=body, timeout=DEADLINE)
    assert answer.is_success, answer.text
    return answer.json()


def get(service, path):
    return httpx.get(f"{service.url}{path}", timeout=DEADLINE)


def state_of(service, made):
    return [job["state"] for job in get(service, f"/api/v1/sets/{made['id']}").json()["jobs"]]


def done(service, made):
    until(lambda: set(state_of(service, made)) == {"done"}, "the end of the jobs")


def serve(*options, **environment):
    """Run `limner serve` where it cannot start: its exit code and what it says."""
    came = subprocess.run(
        [sys.executable, "-m", "limner", "serve", "--device", "fake", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in came.stderr
    assert came.stdout == ""
    return came.returncode, came.stderr


def test_a_job_is_drawn(service):
    made = submit(service, num_images=3)
    done(service, made)


def test_a_worker_that_is_killed_in_the_middle_of_an_image_is_replaced(service):
    made = submit(service, steps=200)
    until(lambda: state_of(service, made) == ["running"], "the claim")
    time.sleep(0.1)
    assert service.kill("worker")
    done(service, made)
    [attempts] = [get(service, f"/api/v1/jobs/{job['id']}/attempts").json() for job in made["jobs"]]
    assert [one["outcome"] for one in attempts] == ["lost", "done"]


def test_a_connection_waits_while_the_api_process_starts_again(service):
    assert service.kill("api")
    answer = get(service, "/health/live")  # the socket is the supervisor's
    assert answer.status_code == 200


def test_clients_of_openais_api_get_their_images_while_processes_are_killed(service):
    """A stream outlasts its worker; a call whose connection is lost is repeated by the SDK."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any") as sdk:
        more = {"size": "64x64", "extra_body": {"seed": 3, "steps": 40}}
        with ThreadPoolExecutor(1) as pool:
            stream = sdk.images.generate(prompt="a boat", stream=True, **more)
            streamed = pool.submit(lambda: [event.type for event in stream])
            time.sleep(0.4)
            assert service.kill("worker")
            assert streamed.result(DEADLINE) == ["image_generation.completed"]
            called = pool.submit(sdk.images.generate, prompt="a boat", **more)
            time.sleep(0.4)
            assert service.kill("api")
            assert [one.seed for one in called.result(DEADLINE).data] == [3]


def test_a_second_server_on_the_same_folder_is_refused(service):
    code, said = serve("--data", service.data, "--port", 0)
    assert code == 2
    assert f"another server (pid {service.process.pid}) uses {service.data}" in said
    assert "--data" in said


def test_a_taken_port_names_its_owner_and_a_free_one(service, tmp_path):
    port = service.url.rpartition(":")[2]
    code, said = serve("--data", tmp_path / "other", "--port", port)
    assert code == 2
    assert f"port {port} is taken by limner serve (pid " in said
    assert "--port " in said


def test_the_running_service_is_none_the_worse(service):
    done(service, submit(service))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "/proc/limner"), "cannot be written"),
        (("--device", "fake", "--device", "fake"), "the device fake is given twice"),
        (("--port", "x"), "--port is 'x'"),
    ],
)
def test_what_cannot_start_says_why(options, said, tmp_path):
    code, told = serve("--data", tmp_path / "data", "--port", 0, *options)
    assert code == 2
    assert said in " ".join(told.split())


def test_a_broken_ledger_is_refused_and_its_processes_end(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ledger.sqlite3").write_bytes(b"no database" * 1000)
    code, said = serve("--data", tmp_path / "data", "--port", 0)
    assert code == 2
    assert "ledger" in said


def test_stopping_finishes_what_has_begun_answers_who_waits_and_keeps_the_rest(tmp_path):
    answers = []

    def wait(url):
        body, headers = {"request": {**REQUEST, "steps": 250}}, {"prefer": f"wait={DEADLINE}"}
        answers.append(httpx.post(f"{url}/api/v1/jobs", json=body, headers=headers, timeout=DEADLINE))

    device = ("--device", "fake:0.04", "--log-level", "warning")
    with Service(tmp_path / "data", *device) as service:
        thread = threading.Thread(target=wait, args=(service.url,))
        thread.start()
        until(lambda: get(service, "/api/v1/jobs?state=running").json()["items"], "the claim")
        rest = submit(service, num_images=8)
        with httpx.stream("GET", f"{service.url}/api/v1/events", timeout=DEADLINE) as stream:
            lines = stream.iter_lines()
            next(lines)
            pids = service.pids("worker") + service.pids("api")
            with ThreadPoolExecutor(1) as pool:
                stopped = pool.submit(service.stop)
                until(lambda: get(service, "/health/ready").status_code == 503, "the answer that it stops")
                late = submit(service)  # the API takes jobs for the next start until the workers have ended
                assert stopped.result() == 0
            assert '"done"' in "".join(lines)  # the stream has ended, after it told of what was finished
        thread.join(DEADLINE)
    assert answers[0].status_code == 200
    assert [job["state"] for job in answers[0].json()["jobs"]] == ["done"]
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the end of its processes")
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    jobs = ledger.get_set(rest["id"]).jobs
    ledger.close()
    assert {(job.state, job.attempt) for job in jobs} <= {("queued", 0), ("done", 1)}
    assert "queued" in {job.state for job in jobs}
    with service:
        done(service, rest)
        done(service, late)


def test_processes_end_when_their_supervisor_is_killed_and_jobs_go_on_with_the_next(tmp_path):
    service = Service(tmp_path / "data", *FAKE, "--set", "drain_seconds=0.1")
    service.start()
    made = submit(service, steps=100)
    until(lambda: state_of(service, made) == ["running"], "the claim")
    pids = service.pids("worker") + service.pids("api")
    assert len(pids) == 2
    service.kill_all()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the end of its processes")
    with service:
        done(service, made)
