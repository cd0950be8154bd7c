"""What a worker measures: its jobs, its engine and its device. Without torch."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from limner.engine.events import Cancelled, Event, Failed, Finished, ImageDone, StepDone
from limner.engine.protocol import Stats

from .jobs import Job
from .metrics import Meter

STAGES = {
    "EncodeText": "text_encode",
    "Denoise": "denoise",
    "DecodeLatents": "vae",
    "EncodeImage": "vae",
}
"""Stage of each kind of call; what is not named here counts as "conditioning"."""

_NVIDIA_SMI = ("memory.used", "memory.total", "utilization.gpu", "power.draw", "temperature.gpu")


class WorkerMeter(Meter):
    """The meter of a worker. It is one of the engine's subscribers.

    Args:
        device: The device, as the service knows it.
        price: Price of a device second.
        currency: Currency of the price.
    """

    def __init__(self, device: str, *, price: float = 0.0, currency: str = "USD") -> None:
        super().__init__()
        self.device, self._price, self._currency = device, price, currency
        self._last_step: dict[tuple[str, int], float] = {}  # by job and image, in seconds of time.monotonic
        self._polled = Stats()

    def __call__(self, event: Event) -> None:
        """Measure an event of the engine."""
        match event:
            case StepDone():
                now, key = time.monotonic(), (event.job, event.image)
                if (last := self._last_step.get(key)) is not None:
                    self.observe("limner_step_seconds", now - last, device=self.device)
                self.observe("limner_batch_size", event.batch_size, device=self.device)
                self._last_step[key] = now
            case ImageDone():
                self._last_step.pop((event.job, event.image), None)
            case Finished() | Failed() | Cancelled():
                for key in [key for key in list(self._last_step) if key[0] == event.job]:
                    self._last_step.pop(key, None)

    def claimed(self, job: Job, *, warm: bool) -> None:
        """Count a job that was claimed, and how long it has waited.

        Args:
            warm: Whether its model is in memory.
        """
        if job.attempt == 1 and job.started_at is not None:
            self.observe("limner_job_wait_seconds", job.started_at - job.created_at, lane=job.lane)
        if warm:
            self.count("limner_model_hits_total", device=self.device)

    def used(self, job: Job, device_seconds: float) -> None:
        """Count what an attempt has used, once it is in the ledger's usage."""
        self.count("limner_device_seconds_total", device_seconds, model=job.model, device=self.device)
        self.count(
            "limner_cost_total",
            device_seconds * self._price,
            model=job.model,
            device=self.device,
            currency=self._currency,
        )

    def drawn(self, job: Job) -> None:
        """Count an image that is stored and handed in."""
        self.count("limner_images_total", model=job.model, device=self.device)
        # Both clocks are this machine's, or kept together by NTP.
        self.observe("limner_job_seconds", max(0.0, time.time() - job.created_at), lane=job.lane)

    def too_late(self) -> None:
        """Count a result that was handed in after the job was lost."""
        self.count("limner_stale_finishes_total", device=self.device)

    def loaded(self, model: str, seconds: float) -> None:
        """Count a model that was loaded."""
        self.count("limner_model_loads_total", model=model, device=self.device)
        self.observe("limner_model_load_seconds", seconds, device=self.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a run of a stage outside the engine, for one image: "encode" (the file), "store" …"""
        began = time.monotonic()
        yield
        self.count("limner_stage_seconds_total", time.monotonic() - began, device=self.device, stage=name)
        self.count("limner_stage_passes_total", device=self.device, stage=name)
        self.count("limner_stage_rows_total", device=self.device, stage=name)

    def poll(self, stats: Stats) -> None:
        """Count what the engine has done since the last call."""
        before, self._polled = self._polled, stats
        for name, now, then in (
            ("limner_stage_passes_total", stats.forwards, before.forwards),
            ("limner_stage_rows_total", stats.rows, before.rows),
            ("limner_stage_seconds_total", stats.pass_seconds, before.pass_seconds),
        ):
            for kind, amount in _since(now, then):
                self.count(name, amount, device=self.device, stage=STAGES.get(kind, "conditioning"))
        busy = stats.seconds - before.seconds
        self.count("limner_device_busy_seconds_total", busy, device=self.device)


def _since(now: Mapping[str, float], before: Mapping[str, float]) -> list[tuple[str, float]]:
    return [
        (kind, value - before.get(kind, 0.0)) for kind, value in now.items() if value > before.get(kind, 0)
    ]


class DeviceMeter:
    """Measures a device: memory, utilization, and power and temperature of a GPU, as `nvidia-smi` reports.

    Of a CPU, memory is that of this process and utilization its share of the cores.

    Args:
        meter: What it fills.
        device: "cpu", "cuda" or "cuda:1" …
        gpu: How `nvidia-smi` names the GPU, such as its UUID; by default the number in `device`, which is
            wrong where CUDA_VISIBLE_DEVICES renumbers them.
    """

    def __init__(self, meter: Meter, device: str, *, gpu: str | None = None) -> None:
        self._meter, self._device = meter, device
        self._gpu = (gpu or device.partition(":")[2] or "0") if device.startswith("cuda") else None
        self._last = (time.monotonic(), time.process_time())

    def read(self) -> None:
        """Set the gauges. Takes up to two seconds where there is a GPU."""
        values = self._read_cpu() if self._gpu is None else _read_gpu(self._gpu)
        for which in ("used", "total"):
            if (amount := values.get(which)) is not None:
                self._meter.set("limner_device_memory_bytes", amount, device=self._device, which=which)
        for name in ("utilization_ratio", "power_watts", "temperature_celsius"):
            if (amount := values.get(name)) is not None:
                self._meter.set(f"limner_device_{name}", amount, device=self._device)

    def _read_cpu(self) -> dict[str, float]:
        now = (time.monotonic(), time.process_time())
        elapsed, worked = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        values = {"utilization_ratio": worked / elapsed / cores if elapsed > 0 else 0.0}
        try:
            page = resource.getpagesize()
            values["used"] = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
            values["total"] = os.sysconf("SC_PHYS_PAGES") * page
        except (OSError, ValueError, IndexError):
            pass  # not Linux
        return values


def _read_gpu(gpu: str) -> dict[str, float]:
    """What `nvidia-smi` reports of a GPU; empty if it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={gpu}", f"--query-gpu={','.join(_NVIDIA_SMI)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=2, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> dict[str, float]:
    """The values of a line such as "1234, 143771, 87, 312.5, 54"; those it does not know are left out."""
    values: dict[str, float] = {}
    scales = {
        "used": float(1 << 20),
        "total": float(1 << 20),
        "utilization_ratio": 0.01,
        "power_watts": 1.0,
        "temperature_celsius": 1.0,
    }
    for (name, scale), cell in zip(scales.items(), text.strip().split(","), strict=False):
        try:
            values[name] = float(cell) * scale
        except ValueError:
            continue  # "[N/A]"
    return values
