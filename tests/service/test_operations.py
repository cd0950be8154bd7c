"""A running service as its operator sees it: metrics, cost, webhooks, logs, traces, a lost signing key."""

import http.server
import json
import subprocess
import sys
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.faults.service import Service
from limner.service.secret import KEY_FILE
from limner.service.webhooks import verify
from tests.waiting import DEADLINE, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
REQUEST = {"prompt": "a secret zebra", "width": 64, "height": 64, "steps": 4, "num_images": 3}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PRICE = 0.5


@pytest.fixture(scope="module")
def received():
    """What is posted to the receiver of webhooks and traces: path, headers, body."""
    posts = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    posts_of = lambda path: [one for one in list(posts) if one[0] == path]  # noqa: E731
    yield f"127.0.0.1:{server.server_port}", posts_of
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(tmp_path_factory, received):
    """A service that has drawn a set of three images."""
    host, _ = received
    options = {"prices": f"fake={PRICE}", "webhook_hosts": host, "telemetry": "true", "currency": "EUR"}
    sets = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{host}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        data = tmp_path_factory.mktemp("operated") / "data"
        with Service(data, "--device", "fake:0.01", "--log-format", "json", *sets) as running:
            answer = httpx.post(
                f"{running.url}/api/v1/jobs",
                json={"request": REQUEST, "webhook": {"url": f"http://{host}/hook", "secret": SECRET}},
                headers={"prefer": f"wait={DEADLINE}", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
                timeout=DEADLINE + 10,
            )
            assert answer.status_code == 200, answer.text
            running.made = answer.json()
            yield running


def get(service, path):
    return httpx.get(f"{service.url}{path}", timeout=DEADLINE)


def scraped(service):
    text = get(service, "/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


def total(service, name):
    return sum(value for key, value in scraped(service).items() if key[0] == name)


def test_seconds_and_cost_are_the_same_in_jobs_usage_records_and_metrics(service):
    until(lambda: total(service, "limner_images_total") == 3, "the worker's report")
    jobs = get(service, f"/api/v1/sets/{service.made['id']}").json()["jobs"]
    seconds, cost = sum(job["device_seconds"] for job in jobs), sum(job["cost"] for job in jobs)
    assert seconds > 0
    assert cost == pytest.approx(seconds * PRICE)
    assert total(service, "limner_device_seconds_total") == pytest.approx(seconds)
    assert total(service, "limner_cost_total") == pytest.approx(cost)
    assert {dict(key[1:])["currency"] for key in scraped(service) if key[0] == "limner_cost_total"} == {"EUR"}
    usage = get(service, "/api/v1/usage").json()
    rows = usage["items"] if isinstance(usage, dict) else usage
    assert sum(row["cost"] for row in rows) == pytest.approx(cost)
    image = get(service, f"/api/v1/images/{jobs[0]['image']['id']}").json()
    assert image["record"]["notes"]["cost"] == f"{jobs[0]['cost']:.6f} EUR"


def test_the_metrics_follow_the_jobs(service):
    until(lambda: total(service, "limner_images_total") == 3, "the worker's report")
    read = scraped(service)
    assert read["limner_jobs_finished_total", ("outcome", "done"), ("reason", "")] == 3
    assert read["limner_job_wait_seconds_count", ("lane", "interactive")] == 3
    assert read["limner_job_seconds_count", ("lane", "interactive")] == 3
    [device] = {dict(key[1:])["device"] for key in read if key[0] == "limner_workers"}
    assert read["limner_batch_size_count", ("device", device)] == 3 * 4
    assert read["limner_stage_passes_total", ("device", device), ("stage", "store")] == 3
    assert read["limner_ready",] == 1


def test_the_end_of_the_set_is_reported_with_its_signature(service, received):
    _, posts_of = received
    until(lambda: posts_of("/hook"), "the webhook")
    [(_, headers, body)] = posts_of("/hook")
    assert verify(SECRET, headers, body)
    assert json.loads(body)["data"]["states"] == {"done": 3}


def test_spans_of_the_api_and_the_worker_belong_to_the_client_s_trace(service, received):
    _, posts_of = received

    def names():
        bodies = b"".join(body for _, _, body in posts_of("/v1/traces") if bytes.fromhex(TRACE) in body)
        return [name for name in (b"POST /api/v1/jobs", b"queue", b"draw") if name in bodies]

    until(lambda: len(names()) == 3, "the spans")
    assert not any(b"zebra" in body for _, _, body in posts_of("/v1/traces"))


def test_the_log_is_json_of_all_processes_and_holds_no_content(service):
    text = service.log.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert {event["process"].partition(" ")[0] for event in events} >= {"api", "worker"}
    access = [event for event in events if event["logger"] == "limner.access"]
    assert any(event["route"] == "/api/v1/jobs" and event["status"] == 200 for event in access)
    assert "zebra" not in text
    assert SECRET not in text


def test_a_lost_signing_key_is_noticed_before_anything_starts(service, tmp_path):
    """Of a copy of the data folder, as the service goes on."""
    copy = tmp_path / "data"
    copy.mkdir()
    for name in ("ledger.sqlite3", "ledger.sqlite3-wal"):
        if (service.data / name).exists():
            (copy / name).write_bytes((service.data / name).read_bytes())
    options = ["--device", "fake", "--data", str(copy), "--port", "0"]
    command = [sys.executable, "-m", "limner", "serve", *options]
    came = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert came.returncode == 2
    assert f"error: the signing key {copy / KEY_FILE} is missing" in came.stderr
    assert "limner webhooks secret --new" in came.stderr
    assert "Traceback" not in came.stderr
