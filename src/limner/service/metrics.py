"""What the service measures: one table of metrics, a meter for each process, and what Prometheus reads.

A worker has a `Meter` and sends what `drain` returns to the API process, whose `Metrics` absorbs it and
answers `/metrics`. No label holds a prompt, an account or a job, so the number of series stays small.

Cost per image is `increase(limner_cost_total[1h]) / increase(limner_images_total[1h])`.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from limner import __version__

from .events import JobChanged

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

_LOG = logging.getLogger("limner.service")

MetricKind = Literal["counter", "gauge", "histogram"]

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LONG = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 10800)
_STEP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Metric:
    """A metric of the service.

    Attributes:
        name: Its name in Prometheus.
        kind: "counter", "gauge" or "histogram".
        help: What it counts or measures.
        labels: Names of its labels.
        buckets: Upper bounds of a histogram's buckets, without infinity.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, "histogram", help, labels, buckets)


METRICS = {
    metric.name: metric
    for metric in (
        _gauge("limner_build_info", "Always 1; the version is a label.", "version"),
        # HTTP
        _counter("limner_http_requests_total", "Requests answered.", "api", "route", "method", "status"),
        _histogram("limner_http_seconds", "Seconds of answering a request.", _QUICK, "api", "route"),
        _gauge("limner_event_streams", "Event streams that are open."),
        # Jobs
        _counter("limner_jobs_submitted_total", "Jobs accepted.", "client", "lane"),
        _counter("limner_jobs_rejected_total", "Requests for jobs that were refused.", "client", "reason"),
        _counter(
            "limner_jobs_replayed_total", "Requests answered with an earlier set of their key.", "client"
        ),
        _counter("limner_jobs_finished_total", "Jobs that have ended.", "outcome", "reason"),
        _counter(
            "limner_jobs_requeued_total", "Attempts given up and jobs put back into the queue.", "reason"
        ),
        _counter("limner_leases_expired_total", "Attempts whose worker no longer answered."),
        _counter("limner_stale_finishes_total", "Results handed in too late, and not counted.", "device"),
        _gauge("limner_queue_jobs", "Jobs that wait.", "lane"),
        _gauge("limner_queue_seconds", "Predicted device seconds of the jobs that wait.", "lane"),
        _gauge("limner_queue_oldest_seconds", "Age of the job that has waited longest.", "lane"),
        _gauge("limner_running_jobs", "Jobs that workers have claimed."),
        _histogram("limner_job_wait_seconds", "Seconds from acceptance to the first claim.", _LONG, "lane"),
        _histogram("limner_job_seconds", "Seconds from acceptance to the stored image.", _LONG, "lane"),
        # Safety
        _counter(
            "limner_safety_decisions_total",
            "Decisions of the safety policy: about prompts and images, and about requests that it refused.",
            "stage",
            "action",
            "rule",
        ),
        _gauge("limner_reviews_open", "Images in the moderation queue that nobody has decided.", "action"),
        _counter(
            "limner_review_decisions_total",
            "Decisions about images in the moderation queue by the API.",
            "action",
            "decision",
        ),
        # Work
        _counter("limner_images_total", "Images finished and stored.", "model", "device"),
        _counter("limner_device_seconds_total", "Device seconds of jobs that have ended.", "model", "device"),
        _counter("limner_cost_total", "Cost of these device seconds.", "model", "device", "currency"),
        _counter("limner_device_busy_seconds_total", "Seconds of forward passes.", "device"),
        _counter("limner_stage_seconds_total", "Seconds spent in a stage of the work.", "device", "stage"),
        _counter("limner_stage_passes_total", "Forward passes or runs of a stage.", "device", "stage"),
        _counter("limner_stage_rows_total", "Images that these passes or runs worked on.", "device", "stage"),
        _histogram("limner_step_seconds", "Seconds between an image's steps.", _STEP, "device"),
        _histogram("limner_batch_size", "Images that shared a step's forward pass.", _ROWS, "device"),
        _counter("limner_model_loads_total", "Models loaded into memory.", "model", "device"),
        _histogram("limner_model_load_seconds", "Seconds of loading a model.", _LONG, "device"),
        _counter("limner_model_hits_total", "Jobs whose model was in memory.", "device"),
        _counter("limner_engine_calls_total", "Engine calls of the API.", "call", "outcome"),
        # Devices and workers
        _gauge("limner_workers", "Workers that are connected.", "device"),
        _counter("limner_worker_starts_total", "Workers that have connected.", "device"),
        _gauge("limner_device_memory_bytes", "Memory of a device, used and in all.", "device", "which"),
        _gauge("limner_device_utilization_ratio", "Share of the time that a device computes.", "device"),
        _gauge("limner_device_power_watts", "Power that a GPU draws.", "device"),
        _gauge("limner_device_temperature_celsius", "Temperature of a GPU.", "device"),
        # Housekeeping
        _counter("limner_webhook_deliveries_total", "Attempts to deliver a webhook.", "outcome"),
        _counter("limner_pictures_deleted_total", "Files deleted from the image store.", "reason"),
        _gauge("limner_disk_free_bytes", "Free bytes of the disk that holds the data folder."),
        _gauge("limner_ready", "Whether the service is ready: 1 or 0."),
    )
}
"""All metrics of the service, by name."""

_APIS = {
    "/api/v1": "native",
    "/v1": "openai",
    "/sdapi": "sdapi",
    "/internal": "sdapi",
    "/controlnet": "sdapi",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # others are made up by clients


def metrics_page() -> str:
    """The page `docs/reference/metrics.md`."""
    lines = [
        "# Metrics of `limner serve`",
        "",
        "Made by `limner schema --metrics`. `/metrics` has them in Prometheus' text format or as",
        "OpenMetrics, with those of the API process (`process_…`, `python_…`). No label holds a prompt,",
        "an account or a job. See [operations](../guides/operations.md).",
        "",
        "| Metric | Kind | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


Labels = tuple[str, ...]  # values, in the order of the metric's labels


@dataclass
class _Distribution:
    """What a histogram has seen: counts of each bucket and of values above all, and the sum of the values."""

    counts: list[int]
    sum: float = 0.0


class Meter:
    """Counts and measures. Safe to use from any thread.

    Metrics and labels are those of `METRICS`; a wrong one raises KeyError.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[str, Labels], float] = {}
        self._distributions: dict[tuple[str, Labels], _Distribution] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        key = _key(name, "counter", labels)
        with self._lock:
            self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        key = _key(name, "gauge", labels)
        with self._lock:
            self._numbers[key] = value

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Add to a gauge, which begins at 0."""
        key = _key(name, "gauge", labels)
        with self._lock:
            self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
        """Enter a value into a histogram."""
        key = _key(name, "histogram", labels)
        buckets = METRICS[name].buckets
        with self._lock:
            into = self._distributions.setdefault(key, _Distribution([0] * (len(buckets) + 1)))
            into.counts[bisect_left(buckets, value)] += times
            into.sum += value * times

    def forget(self, **labels: str) -> None:
        """Drop the gauges that have all these labels, as those of a device that is gone."""
        with self._lock:
            for name, values in list(self._numbers):
                metric = METRICS[name]
                given = dict(zip(metric.labels, values, strict=True))
                if metric.kind == "gauge" and labels.items() <= given.items():
                    del self._numbers[name, values]

    def drain(self) -> list[Any]:
        """What was counted and measured since the last call, as plain data for `absorb`."""
        with self._lock:
            numbers, self._numbers = self._numbers, {}
            distributions, self._distributions = self._distributions, {}
        return [[name, list(labels), value] for (name, labels), value in numbers.items()] + [
            [name, list(labels), [*one.counts], one.sum] for (name, labels), one in distributions.items()
        ]

    def absorb(self, drained: Iterable[Sequence[Any]]) -> None:
        """Take over what another meter has drained. What does not fit `METRICS` is logged and left out."""
        for entry in drained:
            try:
                self._absorb(*entry)
            except (KeyError, TypeError, ValueError) as error:
                _LOG.warning("a measurement cannot be used", extra={"fields": {"error": repr(error)}})

    def _absorb(self, name: str, labels: Sequence[str], value: Any, total: float = 0.0) -> None:
        metric = METRICS[name]
        if len(labels) != len(metric.labels):
            raise ValueError(f"{name} has the labels {metric.labels}")
        given = dict(zip(metric.labels, map(str, labels), strict=True))
        match metric.kind:
            case "counter":
                self.count(name, float(value), **given)
            case "gauge":
                self.set(name, float(value), **given)
            case "histogram":
                if len(value) != len(metric.buckets) + 1:
                    raise ValueError(f"{name} has {len(metric.buckets)} buckets")
                with self._lock:
                    key = _key(name, "histogram", given)
                    into = self._distributions.setdefault(key, _Distribution([0] * len(value)))
                    into.counts = [a + int(b) for a, b in zip(into.counts, value, strict=True)]
                    into.sum += float(total)

    def value(self, name: str, **labels: str) -> float:
        """Value of a counter or gauge, or number of values in a histogram; 0 where there is none."""
        key = _key(name, METRICS[name].kind, labels)
        with self._lock:
            if METRICS[name].kind == "histogram":
                return float(sum(one.counts)) if (one := self._distributions.get(key)) else 0.0
            return self._numbers.get(key, 0.0)


def _key(name: str, kind: MetricKind, labels: Mapping[str, str]) -> tuple[str, Labels]:
    metric = METRICS[name]
    if metric.kind != kind or labels.keys() != set(metric.labels):
        raise KeyError(f"{name} is a {metric.kind} with the labels {', '.join(metric.labels) or 'none'}")
    return name, tuple(labels[label] for label in metric.labels)


Source = Callable[[Meter], None]
"""Sets gauges that are read when they are asked for, such as the length of the queue. May raise."""


class Metrics(Meter):
    """The meter of the API process, with the text that Prometheus reads.

    Args:
        sources: Called at each scrape, in the thread of it. One that fails is logged, and its gauges keep
            what they were.
    """

    def __init__(self, sources: Sequence[Source] = ()) -> None:
        super().__init__()
        self.sources = list(sources)
        self.set("limner_build_info", 1.0, version=__version__)

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: Template of the path, such as "/api/v1/jobs/{job_id}"; "none" for a path without a route.
            status: 0 where the client hung up before the answer.
        """
        api = next((api for start, api in _APIS.items() if route.startswith(start)), "other")
        known = method if method in _METHODS else "other"
        self.count(
            "limner_http_requests_total", api=api, route=route, method=known, status=str(status or 499)
        )
        if not route.endswith("/events"):  # a stream, which lasts as long as somebody watches
            self.observe("limner_http_seconds", seconds, api=api, route=route)

    def job_changed(self, event: JobChanged) -> None:
        """Count an event of the ledger."""
        reason = _reason(event)
        if event.change in ("done", "failed", "cancelled", "dead"):
            self.count("limner_jobs_finished_total", outcome=event.change, reason=reason)
        elif event.change == "requeued":
            self.count("limner_jobs_requeued_total", reason=reason)
        if reason == "worker_lost" and event.change in ("requeued", "dead"):
            self.count("limner_leases_expired_total")

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and the media type. Blocks as the sources do.

        Args:
            accept: Accept header of the request, which may ask for OpenMetrics.
        """
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        for source in self.sources:
            try:
                source(self)
            except Exception:
                _LOG.exception("a source of metrics failed")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    def collect(self) -> Iterator["Family"]:
        """The metrics as prometheus_client's families, those without a value included."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        with self._lock:
            numbers = dict(self._numbers)
            distributions = {key: ([*one.counts], one.sum) for key, one in self._distributions.items()}
        for metric in METRICS.values():
            own = {labels: value for (name, labels), value in numbers.items() if name == metric.name}
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for (name, labels), (counts, total) in distributions.items():
                    if name == metric.name:
                        histogram.add_metric(labels, _cumulative(metric.buckets, counts), total)
                yield histogram
                continue
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in own.items() if metric.labels else {(): own.get((), 0.0)}.items():
                family.add_metric(labels, value)
            yield family


def _cumulative(buckets: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus' buckets: the number of values up to each bound."""
    bounds, so_far = [*(format(bound, "g") for bound in buckets), "+Inf"], 0
    pairs = []
    for bound, count in zip(bounds, counts, strict=True):
        so_far += count
        pairs.append((bound, float(so_far)))
    return pairs


def _reason(event: JobChanged) -> str:
    """Code of the error that a change was made for; "" for none."""
    error = event.data.get("error")
    if isinstance(error, Mapping):
        return str(error.get("code", ""))
    return str(event.data.get("reason") or "")
