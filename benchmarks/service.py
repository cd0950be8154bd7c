"""`python -m benchmarks.service`: what `limner serve` costs, and what it gains.

The shipped model behind the service is compared with the engine that is fed directly, and with diffusers'
pipeline behind FastAPI and a lock. Then: how long it takes to accept a job, what an idle server costs, how
long the first image takes from nothing, and the ledger alone. `--only` runs some of the parts, and keeps the
others of a page of the same machine.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from . import service_ledger
from .contestant import Contestant
from .faults.service import Service, until
from .harness import RESULTS, Chart, Report, Spread, Table, alternate, machine, parser, ratio, say
from .many_requests import arrivals_of, captions
from .service_clients import (
    Connection,
    Draw,
    Listeners,
    accepting,
    arriving,
    closed_loop,
    cpu_seconds,
    draw_with_limner,
    draw_with_peer,
)

_GUIDANCE, _STEPS = 4.0, 20
_LOAD = 0.9  # of what the peer can just do
_STREAMS = 200
_SIMULATED = 5.0  # seconds of an image on the simulated device
Data = dict[str, Any]


def requests_of(number: int, seed: int, steps: int = _STEPS) -> list[dict[str, Any]]:
    """Requests in the shipped model's own words, each with another prompt and seed."""
    return [
        {"prompt": prompt, "prompt_syntax": "literal", "steps": steps, "guidance_scale": _GUIDANCE}
        | {"seed": seed + index}
        for index, prompt in enumerate(captions(number, seed))
    ]


class Direct:
    """The engine, fed directly."""

    def __init__(self, precision: Any) -> None:
        import limner
        from limner.allocator import keep_freed_memory

        keep_freed_memory()
        self.model = limner.load(precision=precision)

    def closed_loop(self, requests: Sequence[Mapping[str, Any]], clients: int) -> tuple[float, float]:
        """Wall and CPU seconds for all images, with so many requests at once."""
        from limner.engine.engine import Engine
        from limner.request import GenerationRequest

        waiting, lock = iter([GenerationRequest.of(one) for one in requests]), threading.Lock()

        def submit() -> None:
            with lock:
                request = next(waiting, None)
            if request is not None:
                engine.submit(request).when_done(submit)

        with Engine(self.model) as engine:
            began, used = time.perf_counter(), time.process_time()
            for _ in range(clients):
                submit()
            while engine.stats().done < len(requests):
                time.sleep(0.002)
            return time.perf_counter() - began, time.process_time() - used


class Peer:
    """diffusers' pipeline behind FastAPI and a lock, as most people would write it."""

    def __init__(self, precision: str) -> None:
        import io

        import torch
        import uvicorn
        from diffusers import StableDiffusionPipeline
        from fastapi import FastAPI, Response

        from limner.catalogue.shipped import SHIPPED

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED["picturebook"], torch_dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        app, lock = FastAPI(), threading.Lock()

        def generate(request: dict[str, Any]) -> Response:
            with lock:
                [image] = pipeline(
                    request["prompt"],
                    num_inference_steps=request["steps"],
                    guidance_scale=request["guidance_scale"],
                    generator=torch.Generator("cpu").manual_seed(request["seed"]),
                ).images
            file = io.BytesIO()
            image.save(file, "PNG")
            return Response(file.getvalue(), media_type="image/png")

        app.post("/generate")(generate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        threading.Thread(target=server.run, args=([self._socket],), daemon=True).start()

    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"


def started(stack: ExitStack, *options: str) -> Service:
    """A running `limner serve` with a data folder of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(Service(folder / "data", "--log-level", "warning", *options))


def throughput(sizes: Mapping[int, int], rounds: int, precision: str) -> Data:
    """Images per second of the service and of the engine alone, and the service's own CPU time.

    Args:
        sizes: Number of clients -> of images that they draw together.
    """
    found: Data = {}
    with ExitStack() as stack:
        service = started(stack, "--precision", precision)
        direct = stack.enter_context(Contestant(partial(Direct, precision)))
        seeds = count(0, 10_000)

        def alone(clients: int, images: int) -> tuple[float, float]:
            return direct.ask("closed_loop", requests_of(images, next(seeds)), clients)  # type: ignore[no-any-return]

        def through(clients: int, images: int, previews: bool) -> tuple[float, float]:
            pids = [service.process.pid, *service.pids("api"), *service.pids("worker")]
            work = requests_of(images, next(seeds))
            with Listeners(service.url, int(previews), "?previews=true"):
                used = cpu_seconds(pids)
                seconds = closed_loop(service.url, draw_with_limner, work, clients)
                return seconds, cpu_seconds(pids) - used

        def turns(clients: int, images: int) -> dict[str, Callable[[], tuple[float, float]]]:
            return {
                "engine": partial(alone, clients, images),
                "service": partial(through, clients, images, False),
                "service with previews": partial(through, clients, images, True),
            }

        alternate(turns(min(sizes), min(sizes)), rounds=0)  # to warm up
        for clients, images in sizes.items():
            say(f"{clients} clients")
            answers = alternate(turns(clients, images), rounds, warmup=0)
            found[str(clients)] = {
                name: {
                    "images per second": [images / seconds for seconds, _ in times],
                    "own CPU ms per image": [
                        1000 * (used - engine) / images
                        for (_, used), (_, engine) in zip(times, answers["engine"], strict=True)
                    ],
                }
                for name, times in answers.items()
            }
    return found


def simulated(seconds: float, images: int) -> Data:
    """The share of a slow device's time that the service keeps it busy."""
    with ExitStack() as stack:
        service = started(stack, "--device", f"fake:{seconds / _STEPS}")
        closed_loop(service.url, draw_with_limner, requests_of(1, 0, 1), 1)
        taken = closed_loop(service.url, draw_with_limner, requests_of(images, 1), 16)
    return {"seconds of an image": seconds, "images": images, "busy": images * seconds / taken}


def acceptance(streams: int, number: int) -> Data:
    """Seconds to accept a job while event streams are open: with an idle device, and under full load."""
    found: Data = {"streams": streams}
    with ExitStack() as stack:
        service = started(stack, "--device", "fake")
        stack.enter_context(Listeners(service.url, streams))
        accepting(service.url, requests_of(5, 0, 1), 0.0)
        found["idle device"] = accepting(service.url, requests_of(number, 10, 1), 0.05)
    with ExitStack() as stack:
        service = started(stack)
        stack.enter_context(Listeners(service.url, streams))
        ahead = accepting(service.url, requests_of(32, 500), 0.0)
        stop = threading.Event()

        def keep_busy() -> None:
            for index in count():
                if stop.is_set():
                    return
                closed_loop(service.url, draw_with_limner, requests_of(16, 10_000 + 100 * index), 16)

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            found["full load"] = accepting(service.url, requests_of(number, 2000, 4), 0.2)
        finally:
            stop.set()
            thread.join()
        found["ahead"] = len(ahead)
    return found


def idle(streams: Sequence[int], seconds: float) -> Data:
    """Share of a core that the API process uses while nothing happens."""
    found = {}
    with ExitStack() as stack:
        service = started(stack)
        for number in streams:
            with Listeners(service.url, number):
                time.sleep(2.0)
                used = cpu_seconds(service.pids("api"))
                time.sleep(seconds)
                found[str(number)] = (cpu_seconds(service.pids("api")) - used) / seconds
    return found


def first_image(rounds: int) -> Data:
    """Seconds from nothing to an image: `limner serve` and one request, and `limner generate`."""
    request = requests_of(1, 7)[0]

    def by_service() -> float:
        with ExitStack() as stack:
            began = time.perf_counter()
            service = started(stack)
            connection = Connection(service.url)
            draw_with_limner(connection, request)
            taken = time.perf_counter() - began
            connection.close()
        return taken

    def by_command() -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "limner", "generate", request["prompt"], "--out", folder]
            command += ["--steps", str(_STEPS), "--seed", str(request["seed"])]
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - began

    return alternate({"limner serve": by_service, "limner generate": by_command}, rounds)


def against_peer(clients: int, images: int, rounds: int, precisions: Mapping[str, tuple[str, str]]) -> Data:
    """Images per second and latencies of the service and of diffusers behind FastAPI and a lock.

    Args:
        precisions: Name of the comparison -> precision of Limner, and of the peer.
    """
    found: Data = {}
    for name, (ours, theirs) in precisions.items():
        say(f"against the peer, {name}")
        with ExitStack() as stack:
            service = started(stack, "--precision", ours)
            peer = stack.enter_context(Contestant(partial(Peer, theirs)))
            url, seeds = peer.ask("url"), count(0, 10_000)
            until(lambda url=url: _answers(url), 30.0, "the start of the peer")
            drawn = partial(_images_per_second, images, clients, seeds)
            for warm_url, draw in ((url, draw_with_peer), (service.url, draw_with_limner)):
                _images_per_second(2, 2, seeds, warm_url, draw)
            rates = alternate(
                {
                    "peer": partial(drawn, url, draw_with_peer),
                    "limner": partial(drawn, service.url, draw_with_limner),
                },
                rounds,
                warmup=0,
            )
            rate = _LOAD * float(np.median(rates["peer"]))
            late: dict[str, list[float]] = {"peer": [], "limner": []}
            for number in range(rounds):
                moments, _ = arrivals_of(images, rate, number, [_STEPS])
                work = requests_of(images, next(seeds))
                late["peer"].append(_p95(arriving(url, draw_with_peer, work, moments)))
                late["limner"].append(_p95(arriving(service.url, draw_with_limner, work, moments)))
            found[name] = {"images per second": rates, "rate": rate, "p95": late}
    return found


def _images_per_second(images: int, clients: int, seeds: Iterator[int], url: str, draw: Draw) -> float:
    return images / closed_loop(url, draw, requests_of(images, next(seeds)), clients)


def _answers(url: str) -> bool:
    try:
        Connection(url).close()
    except OSError:
        return False
    return True


def _p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95))


def _milliseconds(values: Sequence[float]) -> tuple[str, str]:
    return tuple(f"{1000 * float(np.quantile(values, share)):.1f} ms" for share in (0.5, 0.99))  # type: ignore[return-value]


def compared_precisions(quick: bool) -> dict[str, tuple[str, str]]:
    """The comparisons with the peer: name -> precision of Limner, and of the peer."""
    from limner.backends.device import computes_in_bf16

    first = {"as each comes": ("auto", "fp32")}
    if quick:
        return first
    if not computes_in_bf16():  # bf16 would be emulated, and "auto" is fp32
        return {"fp32, as each comes on this CPU": ("auto", "fp32")}
    return {**first, "fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16")}


def report(options: argparse.Namespace, data: Data) -> Report:
    found = Report(
        "service",
        "The service",
        f"`limner serve` with the shipped model, 128 x 128, {_STEPS} steps, guidance {_GUIDANCE:g}; clients, "
        "service and device share this machine. Ratios are of one round, with a 95 % interval.",
        data=data,
    )
    if "throughput" in data:
        rows = []
        for clients, contestants in data["throughput"].items():
            engine = contestants["engine"]["images per second"]
            for name, figures in contestants.items():
                rate = figures["images per second"]
                own = "" if name == "engine" else Spread.of(figures["own CPU ms per image"]).text(" ms")
                rows.append(
                    (f"{clients}: {name}", Spread.of(rate).text(), ratio(rate, engine).text("×"), own)
                )
            bars = {
                ("limner " if name != "engine" else "") + name: Spread.of(figures["images per second"])
                for name, figures in contestants.items()
            }
            found.charts.append(Chart(f"{clients} clients", "images/s", bars))
        columns = ("clients", "images per second", "÷ engine fed directly", "the service's own CPU per image")
        found.tables.append(Table("Against the engine fed directly", columns, rows))
    if "simulated" in data:
        figures = data["simulated"]
        found.tables.append(
            Table(
                f"A simulated device of {figures['seconds of an image']:g} s per image, 16 clients",
                ("images", "share of the device's time in use"),
                [(str(figures["images"]), f"{figures['busy']:.2%}")],
            )
        )
    if "acceptance" in data:
        figures = data["acceptance"]
        rows = [(how, *_milliseconds(figures[how])) for how in ("idle device", "full load")]
        found.tables.append(
            Table(f"Accepting a job, with {figures['streams']} event streams", ("", "p50", "p99"), rows)
        )
    if "idle" in data:
        rows = [(number, f"{share:.2%}") for number, share in data["idle"].items()]
        found.tables.append(Table("The API process at rest", ("event streams", "share of a core"), rows))
    if "first" in data:
        serve, command = data["first"]["limner serve"], data["first"]["limner generate"]
        found.tables.append(
            Table(
                "From nothing to an image",
                ("limner serve and a request", "limner generate", "ratio"),
                [
                    (
                        Spread.of(serve).text(" s"),
                        Spread.of(command).text(" s"),
                        ratio(serve, command).text("×"),
                    )
                ],
            )
        )
    if "peer" in data:
        rows = []
        for name, figures in data["peer"].items():
            rates, late = figures["images per second"], figures["p95"]
            rows.append(
                (
                    name,
                    *(Spread.of(rates[who]).text() for who in ("peer", "limner")),
                    ratio(rates["limner"], rates["peer"]).text("×"),
                    *(Spread.of(late[who]).text(" s") for who in ("peer", "limner")),
                    ratio(late["limner"], late["peer"]).text("×"),
                )
            )
            bars = {f"{who}": Spread.of(rates[who]) for who in ("peer", "limner")}
            found.charts.append(Chart(f"diffusers behind a lock, and limner serve: {name}", "images/s", bars))
        found.tables.append(
            Table(
                f"Against diffusers behind FastAPI and a lock; p95 at {_LOAD:.0%} of the peer's capacity",
                ("precision", "peer images/s", "limner images/s", "ratio", "peer p95", "limner p95", "ratio"),
                rows,
            )
        )
    if "ledger" in data:
        found.tables += service_ledger.tables(data["ledger"])
        found.charts += service_ledger.charts(data["ledger"])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=3)
    parts = ("throughput", "simulated", "acceptance", "idle", "first", "peer", "ledger")
    options.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run anew")
    given = options.parse_args(argv)
    quick = given.quick
    run: dict[str, Callable[[], Data]] = {
        "throughput": lambda: throughput({2: 4} if quick else {16: 64, 64: 128}, given.rounds, "auto"),
        "simulated": lambda: simulated(0.2 if quick else _SIMULATED, 3 if quick else 16),
        "acceptance": lambda: acceptance(5 if quick else _STREAMS, 5 if quick else 200),
        "idle": lambda: idle([0] if quick else [0, _STREAMS], 0.5 if quick else 20.0),
        "first": lambda: first_image(1 if quick else given.rounds),
        "peer": lambda: against_peer(
            2 if quick else 16,
            2 if quick else 48,
            1 if quick else given.rounds,
            compared_precisions(quick),
        ),
    }
    run["ledger"] = lambda: service_ledger.measured(quick)
    earlier = {} if quick else earlier_parts(given.out or RESULTS, parts)
    data: Data = {}
    for name in parts:
        if name in given.only:
            say(name)
            data[name] = run[name]()
        elif name in earlier:
            data[name] = earlier[name]
    report(given, data).publish(given)


def earlier_parts(folder: Path, parts: Sequence[str]) -> Data:
    """The figures of the parts that were measured before on the same CPU and with the same versions."""
    try:
        known = json.loads((folder / "service.json").read_text())
    except FileNotFoundError:
        return {}
    here = machine()
    same = all(known["machine"][name] == here[name] for name in ("CPU", "versions"))
    return {name: known[name] for name in parts if name in known} if same else {}


if __name__ == "__main__":
    main()
