"""Malformed requests against a live API process: none may fail with a 500, leak, or make it grow.

    python -m benchmarks.malformed --count 10000 --seed 1

Three kinds, in equal parts: bytes that are no HTTP, or HTTP with broken headers and bodies; JSON bodies of
each API with fields removed, retyped, exaggerated or nested; and what schemathesis makes of the OpenAPI
description. The process is the API's own, without a worker. Between them its memory and open files are looked
at.
"""

import argparse
import asyncio
import base64
import copy
import io
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from limner.settings.serve import ServeSettings

PROGRAM = """
import socket, sys, uvicorn
from limner.server.app import create_app
from limner.settings.serve import ServeSettings
app = create_app(ServeSettings.from_json(sys.argv[1]))
config = uvicorn.Config(app, log_level="critical", timeout_keep_alive=5)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
"""
LEAKS = re.compile(rb"Traceback|File \"|site-packages|sqlalchemy|\.py\b|asyncio", re.IGNORECASE)
# There is no worker: what needs one is answered with 503, what waits for one with 504.
ALLOWED = {503, 504}


@dataclass
class Report:
    """What came of it.

    Attributes:
        sent: Number of requests by kind.
        statuses: Number of answers by status; 0 where the connection was closed without one.
        faults: Answers that must not be.
        memory: Resident bytes of the process in the course.
        files: Open files in the course.
    """

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def take(self, kind: str, what: str, status: int, body: bytes, folder: str) -> None:
        """Count an answer, and look for what must not be in it."""
        self.sent[kind] += 1
        self.statuses[status] += 1
        leaked = LEAKS.search(body) or (folder.encode() in body and re.search(folder.encode(), body))
        if (status >= 500 and status not in ALLOWED) or leaked:
            self.faults.append(f"{kind}: {what[:300]} -> {status} {body[:300]!r}")


@dataclass(frozen=True)
class Target:
    """A live API process."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    folder: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def look(self, report: Report) -> None:
        """Note its memory and its open files."""
        if not Path("/proc/self/statm").exists():
            return
        statm = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()
        report.memory.append(int(statm[1]) * 4096)
        report.files.append(len(list(Path(f"/proc/{self.process.pid}/fd").iterdir())))


@contextmanager
def target(data: Path, ledger: str | None = None) -> Iterator[Target]:
    """An API process without a worker.

    Args:
        ledger: URL of its ledger; by default SQLite in `data`.
    """
    settings = ServeSettings(
        data=data,
        ledger=ledger,
        cache_dir=data / "cache",
        max_body_bytes=4 << 20,
        body_timeout_seconds=0.5,
        wait_seconds=0.2,
        max_queued_jobs=500,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        arguments = [sys.executable, "-c", PROGRAM, settings.to_json(), str(listening.fileno())]
        process = subprocess.Popen(arguments, pass_fds=[listening.fileno()])
    try:
        until = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://{host}:{port}/health/live", timeout=60).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield Target(process, host, port, str(data))
    finally:
        process.kill()
        process.wait()


def _png(side: int = 64) -> str:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


BODIES: dict[str, dict[str, Any]] = {
    "/api/v1/jobs": {
        "request": {
            "prompt": "a boat",
            "negative_prompt": "rain",
            "width": 64,
            "height": 64,
            "steps": 2,
            "seed": 1,
            "num_images": 1,
            "guidance_scale": 2.0,
            "sampler": "euler",
            "loras": [],
            "image": f"data:image/png;base64,{_png()}",
            "strength": 0.5,
        },
        "lane": "batch",
        "deadline_seconds": 60,
    },
    "/api/v1/estimates": {"request": {"prompt": "a (boat:1.2)", "controls": [], "styles": []}},
    "/api/v1/prompts/analysis": {"prompt": "a (boat:1.2) [a:b:3] <lora:x:1>", "steps": 10},
    "/api/v1/accounts": {"id": "a", "quotas": {"images_per_day": 1}, "policy": {"max_steps": 2}},
    "/api/v1/moderation/rev_none/decide": {"decision": "uphold", "note": "seen"},
    "/v1/images/generations": {
        "prompt": "a boat",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
        "output_format": "png",
        "stream": False,
    },
    "/v1/images/edits": {"prompt": "a boat", "images": [{"image_url": f"data:image/png;base64,{_png()}"}]},
    "/sdapi/v1/txt2img": {"prompt": "a boat", "steps": 2, "width": 64, "height": 64, "sampler_name": "Euler"},
    "/sdapi/v1/img2img": {"init_images": [_png()], "prompt": "a boat", "steps": 2, "denoising_strength": 0.5},
    "/sdapi/v1/png-info": {"image": _png()},
    "/sdapi/v1/options": {"CLIP_stop_at_last_layers": 2},
    "/internal/progress": {"id_task": "x", "live_preview": True},
}
"""Valid bodies by path."""

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    1e308,
    -0.0,
    0.1,
    "",
    " ",
    "x",
    "\ud800",
    "\0",
    "\u202e",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest",
    "data:image/png;base64,",
    "data:image/png;base64,AAAA",
    "data:,x",
    "sha256:" + "0" * 64,
    "blob:x",
    "%s%n",
    "'; DROP TABLE jobs; --",
    "(" * 600,
    "[a|" * 200,
    "<lora:" + "x" * 300 + ":1>",
    "__a__" * 50,
    "{a|b}" * 50,
    "é" * 5000,
    "a" * 100_000,
    [],
    {},
    [[]],
    [None],
    [[[[[[]]]]]],
    {"": ""},
    {"a": {"b": {"c": []}}},
    [1, "a", None],
    float("nan"),
    float("inf"),
)


def mutated(random_: random.Random, body: Any) -> Any:
    """A body with some of its values removed, replaced, repeated or moved."""
    body = copy.deepcopy(body)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        places = list(_places(body))
        if not places:
            return random_.choice(_VALUES)
        holder, key = random_.choice(places)
        match random_.randrange(6):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2 if isinstance(holder, dict):
                holder[str(key) + random_.choice(("", "s", "_", " ", "\0", "x" * 300))] = random_.choice(
                    _VALUES
                )
            case 3 if isinstance(holder[key], str):
                text = holder[key]
                at = random_.randrange(len(text) + 1)
                holder[key] = text[:at] + random_.choice(("\0", "é", "=", '"', "\\", "")) + text[at + 1 :]
            case _:
                holder[key] = copy.deepcopy(random_.choice(_VALUES))
    return random_.choice(_VALUES) if random_.random() < 0.03 else body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def encoded(random_: random.Random, value: Any) -> bytes:
    """JSON as bytes, sometimes damaged."""
    text = json.dumps(value, ensure_ascii=random_.random() < 0.8).encode("utf-8", "surrogatepass")
    if random_.random() < 0.15:
        at = random_.randrange(len(text) + 1)
        damage = random_.choice((b"", b"\0", b"\xff", b"}", b'"', bytes([random_.randrange(256)])))
        text = text[:at] + damage + text[at + random_.randrange(3) :]
    return text


def raw_request(random_: random.Random) -> bytes:
    """Bytes in the place of a request."""
    path = random_.choice((*BODIES, "/api/v1/images/x/file", "/api/v1/events", "/", "/v1/models", "/metrics"))
    method = random_.choice(
        (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"BREW", b"get")
    )
    body = encoded(random_, BODIES.get(path, {}))
    headers = [b"host: localhost", b"content-type: application/json"]
    headers.append(b"content-length: %d" % len(body))
    target_ = path.encode()
    match random_.randrange(16):
        case 0:
            target_ += b"/" + bytes(random_.randrange(256) for _ in range(20))
        case 1:
            target_ += b"?" + b"&".join(b"a%d=%%%02x" % (n, random_.randrange(256)) for n in range(50))
        case 2:
            target_ += random_.choice((b"/../" * 30, b"?before=%00", b"/%00", b"?account=%ed%a0%80"))
        case 3:
            headers[random_.randrange(3)] = bytes(random_.randrange(1, 256) for _ in range(30))
        case 4:
            headers += [b"x-%d: y" % n for n in range(random_.choice((10, 200, 2000)))]
        case 5:
            headers[2] = b"content-length: " + random_.choice(
                (b"-1", b"1e3", b"9" * 30, b"0x10", b"5, 6", b"")
            )
        case 6:
            headers[2] = b"transfer-encoding: chunked"
            body = random_.choice((b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffff\r\n", b"5\r\nab\r\n"))
        case 7:
            headers.append(b"range: bytes=" + b",".join(b"%d-%d" % (n, n + 1) for n in range(500)))
        case 8:
            headers.append(
                b"authorization: " + random_.choice((b"Bearer", b"Basic \xff", b"Basic !!", b"x" * 9000))
            )
        case 9:
            headers.append(
                b"content-type: multipart/form-data; boundary=" + random_.choice((b"", b"x", b"\xff"))
            )
            body = random_.choice((b"--x\r\n", b"--x\r\ncontent-disposition: form-data\r\n\r\n", b"--x--"))
        case 10:
            headers += [b"host: evil.example", b"content-length: 3"]
        case 11:
            headers.append(b"last-event-id: " + bytes(random_.randrange(32, 127) for _ in range(30)))
        case 12:
            headers.append(b"x-request-id: " + bytes(random_.randrange(32, 256) for _ in range(30)))
        case 13:
            return bytes(random_.randrange(256) for _ in range(random_.randrange(1, 400)))
        case 14:
            headers.append(b"idempotency-key: " + bytes(random_.randrange(128, 256) for _ in range(10)))
        case 15:
            headers.append(b"traceparent: " + bytes(random_.randrange(32, 256) for _ in range(55)))
    version = random_.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"HTTP"))
    whole = b"%s %s %s\r\n%s\r\n\r\n%s" % (method, target_, version, b"\r\n".join(headers), body)
    if random_.random() < 0.1:
        whole = whole[: random_.randrange(len(whole))]
    return whole


async def send_raw(at: Target, data: bytes, report: Report) -> None:
    """Send bytes, some of them without their end, and read the answer. Every fourth client closes its writing
    half."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    answer = b""
    try:
        writer.write(data)
        if len(data) % 4 == 0:
            writer.write_eof()
        async with asyncio.timeout(1.5):
            while not _is_whole(answer) and (piece := await reader.read(65536)):
                answer += piece
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()
    status = int(match[1]) if (match := re.match(rb"HTTP/1\.[01] (\d{3})", answer)) else 0
    report.take("bytes", repr(data), status, answer, at.folder)


def _is_whole(answer: bytes) -> bool:
    """Whether an answer has ended, as far as its headers tell."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"content-length: (\d+)", head)
    return b"text/event-stream" in head or length is None or len(body) >= int(length[1])


async def send_json(at: Target, client: httpx.AsyncClient, random_: random.Random, report: Report) -> None:
    """Send a mutated body. One that is still valid may be waited for in vain, as there is no worker."""
    path = random_.choice(list(BODIES))
    data = encoded(random_, mutated(random_, BODIES[path]))
    headers = {"content-type": "application/json", "x-api-key": "none"}
    try:
        answer = await client.post(path, content=data, headers=headers)
    except httpx.HTTPError as error:
        report.take("json", f"{path} {data!r}: {error!r}", 0, b"", at.folder)
        return
    # What an answer repeats of the request is no leak.
    body = b"" if answer.status_code < 400 else answer.content
    report.take("json", f"{path} {data!r}", answer.status_code, body, at.folder)


async def send_many(at: Target, count: int, seed: int, report: Report, together: int = 8) -> None:
    """Send raw bytes and mutated bodies, half of each."""
    async with httpx.AsyncClient(base_url=at.url, timeout=3) as client:

        async def work(number: int) -> None:
            random_ = random.Random(seed * 1_000_003 + number)
            for index in range(number, count, together):
                await (
                    send_raw(at, raw_request(random_), report)
                    if index // together % 2
                    else send_json(at, client, random_, report)
                )
                if index % 200 == 0:
                    at.look(report)

        await asyncio.gather(*(work(number) for number in range(together)))


def send_generated(at: Target, count: int, seed: int, report: Report) -> None:
    """Send what schemathesis generates from the OpenAPI description, valid and invalid."""
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{at.url}/api/v1/openapi.json")
    operations = [
        found.ok()
        for found in schema.get_all_operations()
        if "/events" not in found.ok().path and not found.ok().path.startswith("/api/v1/keys")
    ]
    each = max(1, count // max(1, len(operations)))
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=max(1, each // 2),
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=strategy)
            def call(case: Any) -> None:
                try:
                    answer = case.call(timeout=30)
                except Exception as error:  # what no client can send
                    report.take("schema", f"{case!r}: {error!r}", 0, b"", at.folder)
                    return
                body = b"" if answer.status_code < 400 else answer.content
                report.take("schema", repr(case), answer.status_code, body, at.folder)

            try:
                call()
            except hypothesis.errors.Unsatisfiable:
                continue
        at.look(report)


def attack(count: int, seed: int, *, data: Path, ledger: str | None = None, generated: bool = True) -> Report:
    """Send `count` malformed requests to a new process.

    Raises:
        AssertionError: The process does not answer at the end.
    """
    report = Report()
    with target(data, ledger) as at:
        share = count // 3 if generated else 0
        at.look(report)
        asyncio.run(send_many(at, count - share, seed, report))
        if generated:
            send_generated(at, share, seed, report)
        at.look(report)
        answer = httpx.get(f"{at.url}/health/live", timeout=30)
        assert answer.json() == {"status": "ok"}, "the process does not answer any more"
    return report


def main() -> None:
    """Run from the command line; exit code 1 where something must not be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", help="URL of a ledger, such as postgresql+psycopg://… (default: SQLite)")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = attack(options.count, options.seed, data=Path(folder) / "data", ledger=options.ledger)
    print(f"{sum(report.sent.values())} requests in {time.monotonic() - began:.0f} s: {dict(report.sent)}")
    print(f"answers by status: {dict(sorted(report.statuses.items()))}")
    if report.memory:
        shown = report.memory[:: max(1, len(report.memory) // 12)]
        print(f"memory: {', '.join(str(one >> 20) for one in shown)} MiB")
        print(f"open files: {report.files[0]} to {max(report.files)}, {report.files[-1]} at the end")
    for fault in report.faults[:50]:
        print(fault)
    print(f"{len(report.faults)} faults")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
