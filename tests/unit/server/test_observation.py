"""What is kept of requests: events in the log, metrics, and traces that go on in the ledger."""

import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from limner.server.observation import Traced
from limner.service.tracing import Tracing, current_traceparent
from tests.serving import serving
from tests.waiting import DEADLINE, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = f"00-{TRACE}-00f067aa0ba902b7-01"
JOB = {"request": {"prompt": "a red boat in secret", "steps": 2, "width": 64, "height": 64}}


@pytest.fixture
def logged(caplog):
    """Fields of the access log's events."""
    caplog.set_level(logging.DEBUG, "limner.access")
    logger = logging.getLogger("limner")
    before, logger.propagate = logger.propagate, True
    yield lambda: [one.fields for one in list(caplog.records) if one.name == "limner.access"]
    logger.propagate = before


def scraped(served):
    text = served.client.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_access_log_names_routes_and_callers_but_no_content(served, logged):
    answer = served.client.post("/api/v1/jobs?prompt=secret", json=JOB, headers={"x-request-id": "r-17"})
    assert answer.status_code == 202
    set_id = answer.json()["id"]
    served.client.get(f"/api/v1/sets/{set_id}")
    served.client.get("/no/such%0Aroute")
    served.client.get("/health/live")
    until(lambda: len(logged()) >= 4)
    first, second, third, fourth = logged()[:4]
    assert (first["method"], first["route"], first["status"]) == ("POST", "/api/v1/jobs", 202)
    assert (first["request_id"], first["account"]) == ("r-17", "local")
    assert (second["route"], second["path"]) == ("/api/v1/sets/{set_id}", f"/api/v1/sets/{set_id}")
    assert (third["route"], third["status"]) == ("none", 404)
    assert fourth["route"] == "/health/live"
    assert "secret" not in json.dumps(logged())


def test_a_job_can_be_followed_in_the_metrics(served):
    until(lambda: all(one.state == "done" for one in served.ledger.list_jobs(None)))  # of other tests
    before, waiting = scraped(served), {"prefer": f"wait={DEADLINE}"}
    assert served.client.post("/api/v1/jobs", json=JOB, headers=waiting).status_code == 200
    submitted = ("limner_jobs_submitted_total", ("client", "native"), ("lane", "interactive"))
    done = ("limner_jobs_finished_total", ("outcome", "done"), ("reason", ""))
    until(lambda: scraped(served).get(done, 0) == before.get(done, 0) + 1)
    after = scraped(served)
    assert after[submitted] == before.get(submitted, 0) + 1
    assert after["limner_queue_jobs", ("lane", "interactive")] == 0
    assert after["limner_disk_free_bytes",] > 0


def test_jobs_are_refused_where_the_disk_is_nearly_full(tmp_path):
    with serving(tmp_path, working=False, min_free_bytes=1 << 60) as full:
        answer = full.client.post("/api/v1/jobs", json=JOB)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_error")
        ready = full.client.get("/health/ready")
        assert ready.status_code == 503
        assert "disk" in ready.json()["problems"]
        assert (
            scraped(full)["limner_jobs_rejected_total", ("client", "native"), ("reason", "storage_error")]
            == 1
        )
        assert scraped(full)["limner_ready",] == 0


def test_open_event_streams_are_a_gauge(served):
    with served.client.stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        until(lambda: scraped(served)["limner_event_streams",] == 1)
    until(lambda: scraped(served)["limner_event_streams",] == 0)


@pytest.mark.parametrize("header", [CLIENT, None, "nonsense"])
def test_a_set_keeps_the_trace_that_it_was_submitted_in(served, header):
    headers = {} if header is None else {"traceparent": header}
    made = served.client.post("/api/v1/jobs", json=JOB, headers=headers).json()
    assert served.state.ledger.traceparent(made["id"]) == (CLIENT if header == CLIENT else None)


def test_a_request_is_a_span_named_by_its_route():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    sent = InMemorySpanExporter()
    tracing = Tracing.start(enabled=True, process="api", exporter=sent)
    inside = []

    def fine(request):
        inside.append(current_traceparent())
        return PlainTextResponse("")

    def broken(request):
        raise OSError("a secret")

    app = Starlette(routes=[Route("/jobs/{job_id}", fine), Route("/broken", broken)])
    traced = Traced(app, tracing, lambda scope: "/broken" if scope["path"] == "/broken" else "/jobs/{job_id}")
    with TestClient(traced, raise_server_exceptions=False) as client:
        client.get("/jobs/7", headers={"traceparent": CLIENT})
        client.get("/broken")
    tracing.close()
    first, second = sent.get_finished_spans()
    assert first.name == "GET /jobs/{job_id}"
    assert dict(first.attributes) == {
        "http.request.method": "GET",
        "http.route": "/jobs/{job_id}",
        "limner.request": "",
    }
    assert f"{first.context.trace_id:032x}" == TRACE
    assert inside == [f"00-{TRACE}-{first.context.span_id:016x}-01"]
    assert (second.name, second.attributes["error.type"]) == ("GET /broken", "OSError")
    assert "a secret" not in second.to_json()
