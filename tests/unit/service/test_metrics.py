"""Metrics: what meters count, what they hand over, and what Prometheus reads."""

import json
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from limner.engine.events import Finished, ImageDone, StepDone
from limner.engine.fake import FakeEngine
from limner.engine.protocol import Stats
from limner.request import GenerationRequest
from limner.service.events import JobChanged
from limner.service.measuring import DeviceMeter, WorkerMeter, parse_nvidia_smi
from limner.service.metrics import METRICS, Meter, Metrics, metrics_page
from tests.clocks import time_with

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/metrics.md"


def parsed(metrics, accept=""):
    text, media_type = metrics.exposition(accept)
    assert media_type.startswith("text/plain")
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for one in families
        for sample in one.samples
    }


def test_names_follow_the_conventions_of_prometheus():
    for name, metric in METRICS.items():
        assert re.fullmatch(r"limner_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert not {"account", "user", "job", "prompt", "key"} & set(metric.labels)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_prometheus_reads_counters_gauges_and_cumulative_buckets():
    metrics = Metrics()
    metrics.count("limner_images_total", 2, model="a", device="cpu")
    metrics.count("limner_images_total", model="a", device="cpu")
    metrics.set("limner_queue_jobs", 4, lane="batch")
    for rows in (1, 3, 3, 100):
        metrics.observe("limner_batch_size", rows, device="cpu")
    read = parsed(metrics)
    assert read["limner_images_total", ("device", "cpu"), ("model", "a")] == 3
    assert read["limner_queue_jobs", ("lane", "batch")] == 4
    buckets = {
        le: read["limner_batch_size_bucket", ("device", "cpu"), ("le", le)] for le in ("1", "2", "3", "64")
    }
    assert buckets == {"1": 1, "2": 1, "3": 3, "64": 3}
    assert read["limner_batch_size_bucket", ("device", "cpu"), ("le", "+Inf")] == 4
    assert read["limner_batch_size_count", ("device", "cpu")] == 4
    assert read["limner_batch_size_sum", ("device", "cpu")] == 107


def test_a_scrape_names_every_metric_and_those_of_the_process():
    text = Metrics().exposition()[0].decode()
    families = {one.name for one in text_string_to_metric_families(text)}
    assert {name.removesuffix("_total") for name in METRICS} <= families
    assert "process_cpu_seconds" in families
    assert b"# EOF" in Metrics().exposition("application/openmetrics-text")[0]


def test_what_a_worker_drains_adds_up_in_the_api_process():
    metrics, meter = Metrics(), Meter()
    for _ in range(2):
        meter.count("limner_images_total", model="a", device="cpu")
        meter.observe("limner_step_seconds", 0.3, device="cpu")
        meter.set("limner_device_power_watts", 7, device="cpu")
        metrics.absorb(json.loads(json.dumps(meter.drain())))
    assert meter.drain() == []
    assert metrics.value("limner_images_total", model="a", device="cpu") == 2
    assert metrics.value("limner_step_seconds", device="cpu") == 2
    assert metrics.value("limner_device_power_watts", device="cpu") == 7
    assert parsed(metrics)["limner_step_seconds_sum", ("device", "cpu")] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "entry",
    [
        ["limner_nothing_total", [], 1],
        ["limner_images_total", ["a"], 1],
        ["limner_images_total", ["a", "cpu"], "many"],
        ["limner_batch_size", ["cpu"], [1], 1],
        [],
    ],
)
def test_measurements_that_do_not_fit_harm_nothing(entry, caplog):
    metrics = Metrics()
    metrics.absorb([entry, ["limner_images_total", ["a", "cpu"], 1]])
    assert metrics.value("limner_images_total", model="a", device="cpu") == 1
    assert len(caplog.records) == 1


def test_wrong_labels_and_kinds_are_faults_of_the_program():
    with pytest.raises(KeyError, match="counter with the labels model, device"):
        Meter().count("limner_images_total", model="a")
    with pytest.raises(KeyError, match="is a counter"):
        Meter().set("limner_images_total", 1, model="a", device="cpu")


def test_gauges_of_a_device_that_is_gone_are_forgotten():
    metrics = Metrics()
    metrics.set("limner_device_power_watts", 7, device="cuda:0")
    metrics.set("limner_device_power_watts", 8, device="cuda:1")
    metrics.count("limner_device_busy_seconds_total", 9, device="cuda:0")
    metrics.forget(device="cuda:0")
    read = parsed(metrics)
    assert ("limner_device_power_watts", ("device", "cuda:0")) not in read
    assert read["limner_device_power_watts", ("device", "cuda:1")] == 8
    assert read["limner_device_busy_seconds_total", ("device", "cuda:0")] == 9


def test_a_source_that_fails_spoils_no_scrape(caplog):
    def broken(_):
        raise OSError("the database is gone")

    metrics = Metrics([broken, lambda meter: meter.set("limner_running_jobs", 3)])
    assert parsed(metrics)["limner_running_jobs",] == 3
    assert "a source of metrics failed" in caplog.text


def test_events_of_the_ledger_are_counted_by_outcome_and_reason():
    metrics = Metrics()

    def change(what, **data):
        metrics.job_changed(JobChanged(1, "a", "s", "j", 0, what, 0.0, data))

    change("queued")
    change("done")
    change("failed", error={"code": "invalid_request", "message": "…"})
    change("requeued", error={"code": "worker_lost", "message": "…"})
    change("dead", error={"code": "worker_lost", "message": "…"})
    finished = {
        outcome: metrics.value("limner_jobs_finished_total", outcome=outcome, reason=reason)
        for outcome, reason in (("done", ""), ("failed", "invalid_request"), ("dead", "worker_lost"))
    }
    assert finished == {"done": 1, "failed": 1, "dead": 1}
    assert metrics.value("limner_jobs_requeued_total", reason="worker_lost") == 1
    assert metrics.value("limner_leases_expired_total") == 2


def test_requests_are_counted_by_route_and_never_by_path():
    metrics = Metrics()
    metrics.http("GET", "/api/v1/jobs/{job_id}", 200, 0.02)
    metrics.http("BREW", "none", 405, 0.01)
    metrics.http("POST", "/v1/images/generations", 0, 3.0)
    read = parsed(metrics)
    requests = {dict(key[1:])["api"]: dict(key[1:]) for key in read if key[0] == "limner_http_requests_total"}
    assert requests["native"]["route"] == "/api/v1/jobs/{job_id}"
    assert (requests["other"]["method"], requests["openai"]["status"]) == ("other", "499")
    assert metrics.value("limner_http_seconds", api="openai", route="/v1/images/generations") == 1
    metrics.http("GET", "/api/v1/events", 200, 3600.0)
    assert metrics.value("limner_http_seconds", api="native", route="/api/v1/events") == 0


def test_an_engine_is_measured_step_by_step():
    meter = WorkerMeter("cpu")
    with FakeEngine(step_seconds=0.002, subscribers=[meter]) as engine:
        engine.submit(GenerationRequest(prompt="a", steps=5, num_images=2)).result()
    assert meter.value("limner_batch_size", device="cpu") == 10
    assert meter.value("limner_step_seconds", device="cpu") == 8  # between five steps, twice
    assert not meter._last_step


def test_steps_of_two_jobs_are_not_mixed_up(monkeypatch):
    meter = WorkerMeter("cpu")
    clock = iter([1.0, 1.5, 2.0, 3.5])
    monkeypatch.setattr("limner.service.measuring.time", time_with(monotonic=lambda: next(clock)))
    for job in ("a", "b", "a", "b"):
        meter(StepDone(job=job, image=1, step=1, steps=2, batch_size=2, device_seconds=0.1))
    [entry] = [one for one in meter.drain() if one[0] == "limner_step_seconds"]
    assert entry[3] == pytest.approx((2.0 - 1.0) + (3.5 - 1.5))
    meter(ImageDone(job="a", image=1, batch_size=1, device_seconds=0.2, picture=None))
    meter(Finished(job="b", images=1, seconds=1, device_seconds=0.2))
    assert not meter._last_step


def test_statistics_become_stages_and_busy_seconds():
    meter = WorkerMeter("cpu")
    first = Stats(forwards={"Denoise": 2}, rows={"Denoise": 8}, pass_seconds={"Denoise": 0.5})
    second = Stats(
        forwards={"Denoise": 3, "DecodeLatents": 1, "EncodeImage": 1},
        rows={"Denoise": 12, "DecodeLatents": 4, "EncodeImage": 2},
        pass_seconds={"Denoise": 0.75, "DecodeLatents": 0.25, "EncodeImage": 0.125},
    )
    for stats in (first, first, second):
        meter.poll(stats)
    began = time.monotonic()
    with meter.stage("encode"):
        time.sleep(0.005)
    longest = time.monotonic() - began

    def of(stage):
        names = ("limner_stage_passes_total", "limner_stage_rows_total", "limner_stage_seconds_total")
        return [meter.value(name, device="cpu", stage=stage) for name in names]

    assert (of("denoise"), of("vae"), of("encode")[:2]) == ([3, 12, 0.75], [2, 6, 0.375], [1, 1])
    assert 0.004 < of("encode")[2] <= longest
    assert meter.value("limner_device_busy_seconds_total", device="cpu") == pytest.approx(1.125)


def test_a_cpu_has_memory_and_utilization():
    meter = Meter()
    device = DeviceMeter(meter, "cpu")
    sum(range(200_000))
    device.read()
    used, total = (
        meter.value("limner_device_memory_bytes", device="cpu", which=w) for w in ("used", "total")
    )
    assert 10e6 < used < total
    assert 0 < meter.value("limner_device_utilization_ratio", device="cpu") <= 1.5


def test_what_nvidia_smi_prints_is_read():
    assert parse_nvidia_smi("1024, 2048, 87, [N/A], 54\n") == {
        "used": 1024 * 2**20,
        "total": 2048 * 2**20,
        "utilization_ratio": pytest.approx(0.87),
        "temperature_celsius": 54,
    }
    assert parse_nvidia_smi("") == {}


def test_a_job_is_measured_from_its_claim_to_its_image(anna, submit, ledger):
    submit(anna, lane="batch", model="checkpoint:m")
    meter = WorkerMeter("cuda:1", price=0.5, currency="EUR")
    (claim,) = ledger.claim("w", lease_seconds=10)
    meter.claimed(claim.job, warm=True)
    meter.used(claim.job, 3.0)
    meter.drawn(claim.job)
    meter.loaded("checkpoint:m", 2.0)
    meter.too_late()
    at = {"model": "checkpoint:m", "device": "cuda:1"}
    assert meter.value("limner_job_wait_seconds", lane="batch") == 1
    assert meter.value("limner_job_seconds", lane="batch") == 1
    assert meter.value("limner_model_hits_total", device="cuda:1") == 1
    assert meter.value("limner_device_seconds_total", **at) == 3
    assert meter.value("limner_cost_total", **at, currency="EUR") == 1.5
    assert meter.value("limner_images_total", **at) == meter.value("limner_model_loads_total", **at) == 1
    assert meter.value("limner_stale_finishes_total", device="cuda:1") == 1


def test_the_reference_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == metrics_page(), "limner schema --metrics > " + PAGE.name
