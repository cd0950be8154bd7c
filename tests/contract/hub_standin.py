"""A stand-in for the Hugging Face hub, on the loopback interface."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories as folders, served as the hub serves them; what was asked is kept."""

    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    failing: bool = False
    slow: threading.Event | None = None  # which files wait for
    cards: dict[str, dict[str, object]] = field(default_factory=dict)  # repository -> cardData
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which its next download breaks
    swapped: dict[str, bytes] = field(default_factory=dict)  # file -> what is sent in its place
    ranges: list[str] = field(default_factory=list)  # of downloads that were resumed
    url: str = ""

    def downloads(self) -> set[str]:
        return {
            path.rpartition("/")[2]
            for method, path in map(str.split, self.asked)
            if method == "GET" and "/resolve/" in path
        }

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(f"{method} {path}")
        if self.failing:
            return 503, {}, b"down"
        if "/resolve/" not in path and "/api/models/" not in path:
            return 404, {}, b""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _api(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if rest[1:2] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        root = self.repos[repo]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        names = [path.relative_to(root).as_posix() for path in files]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
            return 200, {}, json.dumps(entries).encode()
        siblings = [_described(name, path) for name, path in zip(names, files, strict=True)]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": self.cards.get(repo, {})}
        return 200, {}, json.dumps(info).encode()

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        if self.slow is not None:
            self.slow.wait(300)
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        path = self.repos[repo] / name
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        body = self.swapped.get(name.rpartition("/")[2]) or path.read_bytes()
        return 200, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _described(name: str, path: Path) -> dict[str, object]:
    """A file with its hash, as `?blobs=true` tells it: SHA-256 of weights, Git's of all else."""
    data = path.read_bytes()
    described: dict[str, object] = {"rfilename": name, "size": len(data)}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        described["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
    else:
        described["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return described


def serve(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Have huggingface_hub ask a stand-in, and keep what it fetches in a folder."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.tokens.add(self.headers.get("Authorization"))
            status, headers, body = served.answer(self.command, self.path)
            start = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")[0]
            if status == 200 and self.command == "GET" and start and start != "0":
                served.ranges.append(f"{self.path.rpartition('/')[2]} {start}")
                headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
                status, body = 206, body[int(start) :]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                most = served.cut.pop(self.path.rpartition("/")[2], None)
                self.wfile.write(body[:most])
                self.close_connection = most is not None

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{httpd.server_port}"
    # huggingface_hub reads its settings once, at import.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the machine says
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # seconds
        monkeypatch.setattr(constants, name, 300)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    huggingface_hub.close_session()
    httpd.shutdown()
    httpd.server_close()
