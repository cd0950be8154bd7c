"""Traces: contexts are handed on, and spans belong together across processes."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from limner.errors import InvalidRequest
from limner.service.runs import Run, trace
from limner.service.tracing import Tracing, current_traceparent, valid_traceparent

CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (CLIENT, CLIENT),
        (f" {CLIENT} ", CLIENT),
        (f"cc{CLIENT[2:]}-what-the-future-brings", f"cc{CLIENT[2:]}"),
        (None, None),
        ("", None),
        ("ff" + CLIENT[2:], None),
        (CLIENT.upper(), None),
        ("00-" + "0" * 32 + CLIENT[35:], None),
        (CLIENT[:36] + "0" * 16 + "-01", None),
        (CLIENT + "-" + "x" * 600, None),
    ],
)
def test_a_trace_context_is_read_as_its_specification_says(header, read):
    assert valid_traceparent(header) == read


def test_without_telemetry_contexts_are_handed_on():
    tracing = Tracing.start(enabled=False, process="api")
    assert current_traceparent() is None
    with tracing.span("request", parent=CLIENT) as span:
        span.set(http_route="/x")
        assert current_traceparent() == CLIENT
        with tracing.span("inner"):
            assert current_traceparent() == CLIENT
    assert current_traceparent() is None
    with tracing.span("request"):
        assert current_traceparent() is None
    tracing.close()


def test_spans_of_two_processes_form_one_trace():
    sent = InMemorySpanExporter()
    api = Tracing.start(enabled=True, process="api", exporter=sent)
    with api.span("POST /api/v1/jobs", parent=CLIENT, server=True, http_route="/api/v1/jobs", none=None):
        with api.span("accept"):
            pass
        stored = current_traceparent()  # with the set, in the ledger
    api.close()
    worker_sent = InMemorySpanExporter()
    worker = Tracing.start(enabled=True, process="worker cpu", exporter=worker_sent)
    with pytest.raises(InvalidRequest), worker.span("job", parent=stored):
        raise InvalidRequest("a prompt that nobody else is to read")
    worker.close()
    accept, request = sent.get_finished_spans()
    [job] = worker_sent.get_finished_spans()
    assert {span.context.trace_id for span in (accept, request, job)} == {int(CLIENT[3:35], 16)}
    assert request.parent.span_id == int(CLIENT[36:52], 16)
    assert accept.parent.span_id == job.parent.span_id == request.context.span_id
    assert dict(request.attributes) == {"http.route": "/api/v1/jobs"}
    assert request.kind.name == "SERVER"
    assert dict(job.attributes) == {"error.type": "invalid_request"}
    assert "prompt" not in job.to_json()
    assert job.resource.attributes["service.instance.id"] == "worker cpu"


def test_a_trace_begins_here_where_the_client_has_none():
    sent = InMemorySpanExporter()
    tracing = Tracing.start(enabled=True, process="api", exporter=sent)
    with tracing.span("request"):
        assert valid_traceparent(current_traceparent())
    tracing.close()
    assert sent.get_finished_spans()[0].parent is None


def test_spans_that_are_over_can_be_sent_with_their_parts():
    sent = InMemorySpanExporter()
    tracing = Tracing.start(enabled=True, process="worker", exporter=sent)
    job = tracing.record("job", 10.0, 12.5, parent=CLIENT, error=InvalidRequest("no"), limner_job="job_1")
    tracing.record("queue", 9.0, 10.0, parent=job)
    tracing.close()
    whole, part = sent.get_finished_spans()
    assert (whole.start_time, whole.end_time) == (10_000_000_000, 12_500_000_000)
    assert (whole.parent.span_id, part.parent.span_id) == (int(CLIENT[36:52], 16), whole.context.span_id)
    assert dict(whole.attributes) == {"limner.job": "job_1", "error.type": "invalid_request"}
    assert Tracing().record("job", 10.0, 12.5, parent=CLIENT) is None


def test_a_run_is_traced_from_the_queue_to_the_hand_in(ledger, anna, submit):
    made = submit(anna, model="checkpoint:m", traceparent=CLIENT)
    (claim,) = ledger.claim("w", lease_seconds=10)
    run = Run(claim, batch_size=3, device_seconds=0.5, drawn_at=claim.job.started_at + 0.001)
    sent = InMemorySpanExporter()
    tracing = Tracing.start(enabled=True, process="worker", exporter=sent)
    time.sleep(0.002)
    trace(run, tracing, ledger.traceparent(made.id), None)
    tracing.close()
    spans = {span.name: span for span in sent.get_finished_spans()}
    assert list(spans) == ["job", "queue", "draw", "hand in"]
    assert spans["queue"].parent.span_id == spans["job"].parent.span_id == int(CLIENT[36:52], 16)
    assert spans["draw"].parent.span_id == spans["hand in"].parent.span_id == spans["job"].context.span_id
    assert spans["queue"].end_time == spans["job"].start_time == spans["draw"].start_time
    assert spans["draw"].end_time == spans["hand in"].start_time < spans["hand in"].end_time
    assert spans["job"].attributes["limner.model"] == "checkpoint:m"
    assert "boat" not in "".join(span.to_json() for span in spans.values())


def test_threads_that_are_given_the_context_know_the_trace():
    tracing = Tracing()
    with tracing.span("request", parent=CLIENT), ThreadPoolExecutor(1) as pool:
        assert pool.submit(copy_context().run, current_traceparent).result() == CLIENT
        assert pool.submit(current_traceparent).result() is None


def test_telemetry_without_opentelemetry_is_refused():
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from limner.service.tracing import Tracing\n"
        "from limner.errors import InvalidRequest\n"
        "Tracing.start(enabled=False, process='api')\n"
        "try: Tracing.start(enabled=True, process='api')\n"
        "except InvalidRequest as error: print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "install limner[telemetry]"
