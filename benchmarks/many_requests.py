"""`python -m benchmarks.many_requests`: many requests to the shipped model, at once and one by one.

Simultaneous requests go to Limner's engine, to diffusers as one static batch, and to Limner one by one.
Requests that arrive at random times, with different numbers of steps, go to the engine and to a queue that
processes one at a time, with the same arrivals. Then: how long a cancelled request still occupies the
engine, and with --soak whether memory grows.
"""

import argparse
import gc
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from .contestant import Contestant
from .harness import Chart, Report, Spread, Table, alternate, parser, ratio, say

if TYPE_CHECKING:
    from limner.request import GenerationRequest

_GUIDANCE, _STEPS = 4.0, 20
_MIXED_STEPS = (8, 20, 30, 50)
_LOAD = 0.9  # fraction of the throughput of a queue that runs one request at a time
_MOST_ALONE = 8  # requests a turn one by one, whose rate does not depend on how many there are
_PRECISIONS = {
    "default": "Limner in auto precision and diffusers in fp32, the defaults of both",
    "fp32": "both in fp32",
    "bf16": "both in bf16",
}
_IN_FLIGHT = 16  # requests of the soak at once


def captions(count: int, seed: int) -> list[str]:
    """Different prompts in the shipped model's own words."""
    from limner.picturebook.world import World, caption

    rng = random.Random(seed)
    return [caption(World().training_scene(rng), rng) for _ in range(count)]


class Limner:
    """The shipped model and its engine."""

    def __init__(self, precision: Any) -> None:
        import limner
        from limner.allocator import keep_freed_memory

        keep_freed_memory()
        self.model = limner.load(precision=precision)

    def requests(self, steps: Sequence[int], seed: int) -> "list[GenerationRequest]":
        """One request for each number of steps."""
        from limner.request import GenerationRequest

        return [
            GenerationRequest(
                prompt=prompt,
                prompt_syntax="literal",
                steps=number,
                guidance_scale=_GUIDANCE,
                seed=seed + index,
            )
            for index, (prompt, number) in enumerate(zip(captions(len(steps), seed), steps, strict=True))
        ]

    def together(self, steps: Sequence[int], seed: int) -> tuple[float, list[np.ndarray]]:
        """Submit all at once: seconds until the last is done, and the images."""
        from limner.engine.engine import Engine

        requests = self.requests(steps, seed)
        with Engine(self.model) as engine:
            began = time.perf_counter()
            handles = [engine.submit(request) for request in requests]
            images = [handle.result().images[0] for handle in handles]
            seconds = time.perf_counter() - began
        return seconds, [np.asarray(image) for image in images]

    def alone(self, steps: Sequence[int], seed: int) -> tuple[float, list[np.ndarray]]:
        """Run one after another: seconds for all, and the images."""
        requests = self.requests(steps, seed)
        began = time.perf_counter()
        images = [self.model.generate(request=request).images[0] for request in requests]
        return time.perf_counter() - began, [np.asarray(image) for image in images]

    def stream(self, how: str, arrivals: Sequence[float], steps: Sequence[int], seed: int) -> list[float]:
        """Submit requests at these times; seconds from the arrival of each until it is done.

        Args:
            how: "engine", or "queue" for one at a time in the order of arrival.
        """
        return (self._by_engine if how == "engine" else self._by_queue)(arrivals, self.requests(steps, seed))

    def _by_engine(self, arrivals: Sequence[float], requests: "Sequence[GenerationRequest]") -> list[float]:
        from limner.engine.engine import Engine

        done = [0.0] * len(arrivals)

        def note(index: int) -> None:
            done[index] = time.perf_counter()

        with Engine(self.model) as engine:
            began = time.perf_counter()
            for index, (at, request) in enumerate(zip(arrivals, requests, strict=True)):
                _sleep_until(began + at)
                engine.submit(request).when_done(partial(note, index))
        return [end - began - at for end, at in zip(done, arrivals, strict=True)]

    def _by_queue(self, arrivals: Sequence[float], requests: "Sequence[GenerationRequest]") -> list[float]:
        queue: SimpleQueue[GenerationRequest] = SimpleQueue()
        done: list[float] = []

        def draw() -> None:
            for _ in requests:
                self.model.generate(request=queue.get())
                done.append(time.perf_counter())

        thread = threading.Thread(target=draw)
        thread.start()
        began = time.perf_counter()
        for at, request in zip(arrivals, requests, strict=True):
            _sleep_until(began + at)
            queue.put(request)
        thread.join()
        return [end - began - at for end, at in zip(done, arrivals, strict=True)]

    def cancel(self, steps: int, seed: int) -> tuple[int, float]:
        """Cancel a request at a random step: forward passes started afterwards, seconds until its end."""
        from limner.engine.engine import Engine

        [request] = self.requests([steps], seed)
        at = random.Random(seed).randint(1, steps - 1)
        with Engine(self.model) as engine:
            handle = engine.submit(request)
            next(progress for progress in handle if progress.step >= at)
            before = engine.stats().forwards["Denoise"]
            began = time.perf_counter()
            handle.cancel()
            engine.drain()
            return engine.stats().forwards["Denoise"] - before, time.perf_counter() - began

    def soak(self, marks: Sequence[int], steps: Sequence[int], seed: int) -> list[float]:
        """Resident MiB after a number of requests, a third of them cancelled at random times."""
        from limner.engine.engine import Engine

        rng = random.Random(seed)
        requests = self.requests(rng.choices(steps, k=max(marks)), seed)
        resident = []
        with Engine(self.model) as engine:
            flying: deque[Any] = deque()
            for number, request in enumerate(requests, start=1):
                handle = engine.submit(request)
                flying.append(handle)
                if rng.random() < 1 / 3:
                    threading.Timer(rng.random(), handle.cancel).start()
                while len(flying) >= (1 if number in marks else _IN_FLIGHT):
                    _wait(flying.popleft())
                if number in marks:
                    gc.collect()
                    resident.append(_resident())
        return resident


class Diffusers:
    """diffusers' pipeline on the same folder, for batches of a fixed size."""

    def __init__(self, precision: str) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        from limner.allocator import keep_freed_memory
        from limner.catalogue.shipped import SHIPPED

        keep_freed_memory()
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED["picturebook"], torch_dtype=dtype)
        self.pipeline.set_progress_bar_config(disable=True)

    def together(self, steps: Sequence[int], seed: int) -> tuple[float, list[np.ndarray]]:
        """As `Limner.together`, but all requests have the first one's number of steps."""
        import torch

        prompts = captions(len(steps), seed)
        began = time.perf_counter()
        images = self.pipeline(
            prompts,
            num_inference_steps=steps[0],
            guidance_scale=_GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed + index) for index in range(len(steps))],
        ).images
        return time.perf_counter() - began, [np.asarray(image) for image in images]


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _wait(handle: Any) -> None:
    from concurrent.futures import CancelledError

    with suppress(CancelledError):
        handle.result()


def _resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def arrivals_of(number: int, rate: float, seed: int, mixed: Sequence[int]) -> tuple[list[float], list[int]]:
    """Arrival times of a Poisson process, and the number of steps of each request."""
    rng, moment, moments = random.Random(seed), 0.0, []
    for _ in range(number):
        moment += rng.expovariate(rate)
        moments.append(moment)
    return moments, rng.choices(mixed, k=number)


def rate(who: Contestant, method: str, steps: Sequence[int]) -> Callable[[], float]:
    """A turn that runs these requests with new prompts each time, and returns images per second."""
    seeds = count(1 if method == "alone" else 1_000_000, 1000)
    return lambda: len(steps) / who.ask(method, steps, next(seeds))[0]


def at_once(
    limner: Contestant, diffusers: Contestant, sizes: Sequence[int], rounds: int, steps: int
) -> dict[int, dict[str, Any]]:
    """Images per second of each contestant for each number of requests, and how the images differ."""
    found = {}
    for size in sizes:
        say(f"{size} at once")
        work, few = [steps] * size, [steps] * min(size, _MOST_ALONE)
        turns = {
            "diffusers static batch": rate(diffusers, "together", work),
            "limner one by one": rate(limner, "alone", few),
            "limner engine": rate(limner, "together", work),
        }
        ours, theirs = (who.ask("together", work, 0)[1] for who in (limner, diffusers))
        apart = np.abs(np.stack(ours).astype(np.int16) - np.stack(theirs))
        found[size] = {
            "images per second": alternate(turns, rounds),
            "largest difference": int(apart.max()),
            "mean difference": float(apart.mean()),
        }
    return found


def arriving(limner: Contestant, requests: int, rounds: int, mixed: Sequence[int]) -> dict[str, Any]:
    """Seconds that each request took, with the engine and with a queue, for the same streams of arrivals."""
    calibration = [*mixed, *mixed]
    limner.ask("alone", calibration, 1)
    service = limner.ask("alone", calibration, 2)[0] / len(calibration)
    rate = _LOAD / service
    latencies: dict[str, list[list[float]]] = {"queue": [], "engine": []}
    for number in range(rounds):
        say(f"stream {number + 1} of {rounds}: {requests} requests at {rate:.2f}/s")
        moments, steps = arrivals_of(requests, rate, number, mixed)
        for how in ("queue", "engine") if number % 2 == 0 else ("engine", "queue"):
            latencies[how].append(limner.ask("stream", how, moments, steps, 100 * number))
    return {
        "requests": requests,
        "steps": list(mixed),
        "rate": rate,
        "seconds alone": service,
        "latencies": latencies,
    }


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))


def report(options: argparse.Namespace, data: dict[str, Any], steps: int) -> Report:
    found = Report(
        "many_requests",
        "Many requests",
        f"The shipped model, 128 x 128, {_PRECISIONS[options.precision]}, guidance {_GUIDANCE:g}, the "
        "checkpoint's own sampler, another prompt and seed for each request. Every ratio is of one round, "
        "with a 95 % interval.",
        data=data,
    )
    rows = []
    for size, figures in data["at once"].items():
        rates = figures["images per second"]
        engine = rates["limner engine"]
        rows.append(
            (
                str(size),
                *(Spread.of(rate).text() for rate in rates.values()),
                ratio(engine, rates["limner one by one"]).text("×"),
                ratio(engine, rates["diffusers static batch"]).text("×"),
                f"{figures['mean difference']:.2g} / {figures['largest difference']}",
            )
        )
        found.charts.append(
            Chart(f"{size} at once", "images/s", {n: Spread.of(rate) for n, rate in rates.items()})
        )
    columns = ("requests", "diffusers static batch", "limner one by one", "limner engine")
    columns += ("engine ÷ one by one", "engine ÷ diffusers", "mean / largest difference")
    found.tables.append(Table(f"Images per second, {steps} steps", columns, rows))
    found.notes.append(
        "The last column: difference of the engine's images from diffusers', of 255. A static batch needs "
        "all its requests at the start and the same number of steps for all; the engine needs neither."
    )

    stream = data["stream"]
    rows, whiskers = [], {}
    measures = {
        "p50": partial(percentile, share=0.5),
        "p95": partial(percentile, share=0.95),
        "longest": max,
    }
    for name, measure in measures.items():
        queue, engine = ([measure(one) for one in stream["latencies"][how]] for how in ("queue", "engine"))
        ratios = ratio(queue, engine).text("×")
        rows.append((name, Spread.of(queue).text(" s"), Spread.of(engine).text(" s"), ratios))
        whiskers |= {f"queue {name}": Spread.of(queue), f"limner {name}": Spread.of(engine)}
    load = f"{stream['rate']:.2f} requests/s, {_LOAD:.0%} of what one at a time can do"
    columns = ("latency", "queue, one at a time", "engine", "queue ÷ engine")
    found.tables.append(Table(f"{stream['requests']} random arrivals, {load}", columns, rows))
    found.charts.append(Chart("Latency of random arrivals", "s", whiskers))
    mix = ", ".join(map(str, stream["steps"]))
    found.notes.append(f"Arrivals are a Poisson process; each has {mix} steps, with equal chances.")

    passes, seconds = zip(*data["cancel"], strict=True)
    step = stream["seconds alone"] / statistics.mean(stream["steps"])
    found.notes.append(
        f"After a cancel the engine began at most {max(passes)} forward passes for that request, and was "
        f"rid of it after the time of {statistics.median(seconds) / step:.2f} steps (median), "
        f"{max(seconds) / step:.2f} at most."
    )
    if "soak" in data:
        text = ", ".join(f"{mebibytes:.0f} MiB after {mark}" for mark, mebibytes in data["soak"].items())
        found.notes.append(f"Resident memory over requests, a third of them cancelled: {text}.")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument(
        "--precision",
        choices=("default", "fp32", "bf16"),
        default="default",
        help="precision of both programs; by default fp32 for diffusers, auto for Limner",
    )
    options.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of requests")
    options.add_argument("--requests", type=int, default=300, help="requests in a stream of arrivals")
    options.add_argument("--streams", type=int, default=2, help="number of streams of arrivals")
    options.add_argument("--soak", action="store_true", help="also measure memory over a thousand requests")
    given = options.parse_args(argv)
    sizes, steps, rounds, streams = given.at_once, _STEPS, given.rounds, given.streams
    marks, mixed, cancels = (100, 1000), _MIXED_STEPS, 20
    if given.quick:
        sizes, steps, rounds, streams, given.requests = [1, 2], 2, 1, 1, 4
        marks, mixed, cancels = (1, 4), (2, 4), 2

    ours, theirs = {"default": ("auto", "fp32")}.get(given.precision, (given.precision, given.precision))
    with Contestant(partial(Limner, ours)) as limner:
        with Contestant(partial(Diffusers, theirs)) as diffusers:
            data: dict[str, Any] = {"at once": at_once(limner, diffusers, sizes, rounds, steps)}
        data["stream"] = arriving(limner, given.requests, streams, mixed)
        say("cancelling")
        data["cancel"] = [limner.ask("cancel", max(mixed), seed) for seed in range(cancels)]
        if given.soak or given.quick:
            say("soaking")
            data["soak"] = dict(zip(marks, limner.ask("soak", marks, mixed, 0), strict=True))
    report(given, data, steps).publish(given)


if __name__ == "__main__":
    main()
