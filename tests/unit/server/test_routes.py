"""Every route of every API, called on a live process: none fails, and none makes the process load torch."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from limner.service.ledger.ledger import Ledger
from limner.settings.serve import ServeSettings
from tests.serving import worker_of
from tests.waiting import DEADLINE

PROGRAM = """
import socket, sys, uvicorn
from limner.server.app import create_app
from limner.settings.serve import ServeSettings
app = create_app(ServeSettings.from_json(sys.argv[1]))
config = uvicorn.Config(app, log_level="critical")
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
"""
SDAPI = Path(__file__).parents[2] / "golden/sdapi/facts.json"
METHODS = ("get", "post", "put", "patch", "delete")
# They need a worker, and wait for one to connect.
OF_WORKERS = re.compile(r"/sdapi/v1/(interrogate|extra-.*)|/controlnet/detect")


@pytest.fixture
def process(tmp_path):
    """A process that serves, its address, and the data folder."""
    settings = ServeSettings(data=tmp_path / "data", cache_dir=tmp_path / "cache")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = listening.fileno()
        command = [sys.executable, "-c", PROGRAM, settings.to_json(), str(descriptor)]
        running = subprocess.Popen(command, pass_fds=[descriptor], stderr=subprocess.PIPE)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield running, url, settings
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")
    return data.getvalue()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has loaded is read in /proc")
def test_no_route_fails_or_loads_torch(process):
    running, url, settings = process
    source = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    with httpx.Client(base_url=url, timeout=DEADLINE + 10) as client:
        description = client.get("/api/v1/openapi.json").json()
        ledger = Ledger.open(settings.ledger_url)
        client.headers["authorization"] = f"Bearer {ledger.create_key('local')[1]}"
        with worker_of(settings):
            body = {"request": {"prompt": "a (boat:1.2)", "steps": 2, "image": source}}
            done = client.post("/api/v1/jobs", json=body, headers={"prefer": f"wait={DEADLINE}"}).json()
            assert done["ended"], done
            body = {"prompt": "a boat", "size": "64x64", "stream": True, "partial_images": 1}
            drawn = client.post("/v1/images/generations", json=body)
            assert "image_generation.completed" in drawn.text
            body = {"prompt": "a boat", "image": source, "output_format": "webp", "response_format": "url"}
            drawn = client.post("/v1/images/edits", json=body)
            assert client.get(drawn.json()["data"][0]["url"]).status_code == 200
            drawn = client.post("/sdapi/v1/txt2img", json={"prompt": "a boat", "steps": 1})
            assert drawn.status_code in (200, 404), drawn.text
        ids = {
            "set_id": done["id"],
            "job_id": done["jobs"][0]["id"],
            "image_id": done["jobs"][0]["image"]["id"],
            "sha256": done["request"]["image"],
            "model_id": "picturebook",
            "key_id": "none",
            "account_id": "local",
            "name": "draft",
        }
        client.put("/api/v1/drafts/draft", json={"prompt": "x"})
        called = 0
        for path, operations in description["paths"].items():
            if OF_WORKERS.fullmatch(path):
                continue
            filled = re.sub(r"{(\w+)(?::\w+)?}", lambda match: ids.get(match[1], "none"), path)
            for method in METHODS:
                if method in operations and (method, path) != ("get", "/api/v1/events"):
                    content = {"json": {}} if method not in ("get", "delete") else {}
                    answer = client.request(method, filled, **content)
                    assert answer.status_code < 500 or path == "/health/ready", (method, path, answer.text)
                    assert answer.status_code != 401, (method, path)
                    called += 1
        assert called > 30
        for method, path, _ in json.loads(SDAPI.read_text(encoding="utf-8"))["routes"]:
            if path != "/sdapi/v1/txt2img":  # called above: without a worker it waits
                answer = client.request(method, path, json={})
                assert answer.status_code < 500, (method, path, answer.text)
        with client.stream("GET", "/api/v1/events", params={"after": 0}) as stream:
            assert stream.status_code == 200, stream.read()
            changes = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            assert next(changes)["change"] == "queued"
    ledger.close()
    loaded = Path(f"/proc/{running.pid}/maps").read_text(encoding="utf-8")
    assert "pydantic_core" in loaded, "the maps say what is loaded"
    assert not re.search(r"libtorch|/torch/|libcudart|openvino", loaded)
    running.send_signal(signal.SIGTERM)
    running.wait(DEADLINE)
