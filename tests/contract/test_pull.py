"""`limner models pull` against stand-ins of the hub and of Civitai: licences, hashes, resumed downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest
import torch
from hub_standin import Hub

from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.cli.main import main
from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, PickleRefused, UnsupportedModel
from limner.service.catalogue import catalogue_of
from limner.settings.serve import ServeSettings
from limner.weights import download as downloads
from limner.weights.civitai import find_file
from limner.weights.download import download
from limner.weights.pulling import pull
from limner.weights.tensors import write_tensors


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between attempts, and no settings of this machine."""
    monkeypatch.setattr(downloads, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("LIMNER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache-of-limner"))
    monkeypatch.chdir(tmp_path)


@dataclass
class Civitai:
    """Models by number, as the API tells them; files by path."""

    models: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)  # bytes after which the next downloads break
    answers: list[int] = field(default_factory=list)  # statuses of the next downloads
    ranged: bool = True
    login: bool = False  # whether downloads lead to the login page
    secret: str | None = None
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)  # path, key, range
    url: str = ""
    other: str = ""  # address of the storage, on another port

    def add(self, number: int, name: str, data: bytes, **version: Any) -> None:
        """A model of one version and file."""
        self.files[f"/files/{name}"] = data
        file = {
            "name": name,
            "type": "Model",
            "primary": True,
            "sizeKB": len(data) / 1024,
            "hashes": {"SHA256": hashlib.sha256(data).hexdigest().upper()},
            "downloadUrl": f"{self.url}/api/download/{name}",
        }
        self.models[number] = {
            "id": number,
            "name": "Ink",
            "allowCommercialUse": ["Image", "RentCivit"],
            "allowNoCredit": False,
            "allowDerivatives": True,
            "allowDifferentLicense": False,
            "modelVersions": [
                {
                    "id": number * 10,
                    "name": "v2",
                    "baseModel": "SD 1.5",
                    "trainedWords": ["ink style"],
                    "files": [file],
                    **version,
                }
            ],
        }


@pytest.fixture
def civitai() -> Iterator[Civitai]:
    served = Civitai()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, key = urlsplit(self.path).path, self.headers.get("Authorization")
            served.asked.append((path, key, self.headers.get("Range")))
            if path.startswith("/files/"):
                self.file(served.files[path])
            elif served.secret and key != f"Bearer {served.secret}":
                self.answer(401, b"{}")
            elif path == "/login":
                self.answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
            elif path.startswith("/api/download/") and served.login:
                self.answer(307, b"", {"Location": f"{served.url}/login?reason=download-auth"})
            elif path.startswith("/api/download/"):
                self.answer(
                    302, b"", {"Location": f"{served.other}/files/{path.rpartition('/')[2]}?signed=1"}
                )
            elif (number := path.rpartition("/")[2]).isdigit() and int(number) in served.models:
                self.answer(200, json.dumps(served.models[int(number)]).encode())
            else:
                self.answer(404, b"{}")

        def file(self, data: bytes) -> None:
            if served.answers and (status := served.answers.pop(0)) != 200:
                self.answer(status, b"")
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if served.ranged else 0
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            self.answer(
                206 if start else 200, data[start:], headers, served.cut.pop(0) if served.cut else None
            )

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, most: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:most])
            self.close_connection = most is not None

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    served.url, served.other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def lora(tmp_path: Path) -> bytes:
    """A LoRA of SD 1.x."""
    down = torch.arange(768 * 4, dtype=torch.float32).reshape(4, 768)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    write_tensors(
        tmp_path / "lora.safetensors",
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": torch.zeros(320, 4)},
    )
    return (tmp_path / "lora.safetensors").read_bytes()


def fetch(civitai: Civitai, reference: str, folder: Path, **more: Any) -> Any:
    return pull(reference, folder=lambda kind: folder / kind, civitai_url=civitai.url, **more)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["models", "pull", *arguments])
    return int(exit.value.code or 0)


# The hub.


def test_a_model_of_the_hub_is_fetched_checked_and_served(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repos["someone/picturebook"] = SHIPPED["picturebook"]
    server.cards["someone/picturebook"] = {"license": "creativeml-openrail-m"}
    assert run("someone/picturebook") == 0
    said = capsys.readouterr()
    page = "https://huggingface.co/someone/picturebook"
    assert f"Licence: creativeml-openrail-m ({page})" in said.err
    assert "files checked by hash" in said.err
    folder = Path(said.out.strip())
    assert (folder / "model_index.json").is_file()
    entry = catalogue_of(ServeSettings.read()).find("checkpoint", "someone/picturebook")
    assert entry.problem is None


def test_a_network_of_the_hub_is_fetched(server: Hub, tmp_path: Path) -> None:
    server.repos["someone/edges"] = SHIPPED_NETWORKS["picturebook-edges"]
    lines: list[str] = []
    pulled = pull(
        "someone/edges", folder=lambda kind: tmp_path, announce=lambda title, said: lines.extend(said)
    )
    assert (pulled.path / "config.json").is_file()
    assert pulled.files == 2
    assert lines == ["No licence is named; see https://huggingface.co/someone/edges"]


def test_a_file_of_the_hub_is_fetched(server: Hub, tmp_path: Path, lora: bytes) -> None:
    (tmp_path / "repo" / "style").mkdir(parents=True)
    (tmp_path / "repo" / "style" / "ink.safetensors").write_bytes(lora)
    server.repos["someone/loras"] = tmp_path / "repo"
    with pytest.raises(UnsupportedModel) as caught:
        pull("someone/loras", folder=lambda kind: tmp_path)
    assert caught.value.hint == "name one of its files: someone/loras:style/ink.safetensors"
    pulled = pull("someone/loras:style/ink.safetensors", folder=lambda kind: tmp_path)
    assert (pulled.kind, pulled.files, pulled.path.read_bytes()) == ("lora", 1, lora)


def test_an_interrupted_download_of_the_hub_goes_on_where_it_stopped(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # else 10 MB
    server.repos["someone/edges"] = SHIPPED_NETWORKS["picturebook-edges"]
    server.cut["diffusion_pytorch_model.safetensors"] = 1_000_000
    assert pull("someone/edges", folder=lambda kind: tmp_path).files == 2
    assert server.ranges == ["diffusion_pytorch_model.safetensors 1000000"]


def test_a_file_with_another_hash_is_deleted(server: Hub, tmp_path: Path) -> None:
    server.repos["someone/edges"] = SHIPPED_NETWORKS["picturebook-edges"]
    weights = SHIPPED_NETWORKS["picturebook-edges"] / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    server.swapped[weights.name] = bytes(data)
    with pytest.raises(InvalidCheckpoint, match="is not what the hub says"):
        pull("someone/edges", folder=lambda kind: tmp_path)
    del server.swapped[weights.name]
    pulled = pull("someone/edges", folder=lambda kind: tmp_path)
    assert (pulled.path / weights.name).read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("reference", ["someone/nothing", "someone/nothing:x.safetensors"])
def test_what_is_not_on_the_hub_is_an_error(server: Hub, tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelNotFound):
        pull(reference, folder=lambda kind: tmp_path)


@pytest.mark.parametrize("reference", ["nonsense", "../x/y", "https://example.org/x", "a/b/c"])
def test_other_references_are_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelNotFound, match="is no model that can be fetched"):
        pull(reference, folder=lambda kind: tmp_path)


# Civitai.


def test_a_file_of_civitai_goes_to_the_folder_of_its_kind_and_is_served(
    civitai: Civitai, lora: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    civitai.add(12, "ink.safetensors", lora)
    civitai.secret = "sesame"
    monkeypatch.setenv("LIMNER_CIVITAI_URL", civitai.url)
    assert run("civitai:12") == 2
    assert "set LIMNER_CIVITAI_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("LIMNER_CIVITAI_TOKEN", "sesame")
    assert run("civitai:12") == 0
    said = capsys.readouterr()
    for line in ("Ink v2 (civitai:12@120)", "Commercial use: Image, RentCivit.", "The author must be named."):
        assert line in said.err
    settings = ServeSettings.read()
    path = settings.data / "models" / "lora" / "ink.safetensors"
    assert said.out.strip() == str(path)
    assert path.read_bytes() == lora
    entry = catalogue_of(settings).find("lora", "ink")
    assert (entry.trigger_words, entry.family) == (("ink style",), "sd1")
    assert not (settings.data / "models" / ".incoming" / "civitai-12@120").exists()
    keys = {(path.startswith("/files/"), key) for path, key, _ in civitai.asked}
    assert (True, "Bearer sesame") not in keys  # the storage on another host does not get the key
    before = len(civitai.asked)
    assert run("civitai:12@120") == 0
    assert len(civitai.asked) == before + 1  # it is there already


def test_a_login_page_is_no_model(civitai: Civitai, tmp_path: Path, lora: bytes) -> None:
    civitai.add(12, "ink.safetensors", lora)
    civitai.login = True
    with pytest.raises(ModelNotFound, match="only to accounts"):
        fetch(civitai, "civitai:12", tmp_path / "models")
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_an_interrupted_download_goes_on_where_it_stopped(civitai: Civitai, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    civitai.add(1, "x.bin", data)
    civitai.cut = [1000, 1000, 0]
    civitai.answers = [200, 200, 200, 503, 200]
    seen: list[tuple[int, int | None]] = []
    digest = hashlib.sha256(data).hexdigest()
    download(
        f"{civitai.other}/files/x.bin", tmp_path / "x.bin", sha256=digest, size=len(data),
        progress=lambda done, whole: seen.append((done, whole)),
    )  # fmt: skip
    assert (tmp_path / "x.bin").read_bytes() == data
    ranges = [asked for _, _, asked in civitai.asked]
    assert ranges == [None, "bytes=1000-", "bytes=2000-", "bytes=2000-", "bytes=2000-"]
    assert seen[-1] == (len(data), len(data))
    assert [path.name for path in tmp_path.glob("x.bin*")] == ["x.bin"]


def test_another_call_resumes_what_is_there(civitai: Civitai, tmp_path: Path) -> None:
    data = bytes(5000)
    civitai.add(1, "x.bin", data)
    civitai.cut = [1000]
    civitai.answers = [200, *[503] * 5]
    with pytest.raises(ModelNotFound, match="interrupted") as caught:
        download(f"{civitai.other}/files/x.bin", tmp_path / "x.bin")
    assert "goes on where it stopped" in str(caught.value.hint)
    assert (tmp_path / "x.bin.part").stat().st_size == 1000
    download(f"{civitai.other}/files/x.bin", tmp_path / "x.bin")
    assert civitai.asked[-1][2] == "bytes=1000-"
    assert (tmp_path / "x.bin").read_bytes() == data


@pytest.mark.parametrize("ranged", [True, False])
def test_what_was_begun_of_another_version_is_fetched_anew(
    civitai: Civitai, tmp_path: Path, ranged: bool
) -> None:
    data = b"new" * 1000
    civitai.add(1, "x.bin", data)
    civitai.ranged = ranged
    (tmp_path / "x.bin.part").write_bytes(b"old" * 300)
    download(
        f"{civitai.other}/files/x.bin", tmp_path / "x.bin", sha256=hashlib.sha256(data).hexdigest(), size=3000
    )
    assert (tmp_path / "x.bin").read_bytes() == data


def test_a_file_that_is_not_what_it_should_be_is_deleted(
    civitai: Civitai, tmp_path: Path, lora: bytes
) -> None:
    civitai.add(12, "ink.safetensors", lora)
    civitai.files["/files/ink.safetensors"] = lora[:-1] + b"x"
    with pytest.raises(InvalidCheckpoint, match="SHA-256"):
        fetch(civitai, "civitai:12", tmp_path / "models")
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_what_is_no_model_is_not_kept(civitai: Civitai, tmp_path: Path) -> None:
    civitai.add(12, "ink.safetensors", b"not a model at all")
    with pytest.raises(InvalidCheckpoint):
        fetch(civitai, "civitai:12", tmp_path / "models")
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_pickles_are_refused_before_anything_is_fetched(civitai: Civitai, tmp_path: Path) -> None:
    civitai.add(12, "ink.ckpt", b"pickle")
    with pytest.raises(PickleRefused, match=r"its files: ink\.ckpt"):
        fetch(civitai, "civitai:12", tmp_path)
    assert [path for path, _, _ in civitai.asked] == ["/api/v1/models/12"]


def test_names_of_files_cannot_leave_the_folder(civitai: Civitai, tmp_path: Path, lora: bytes) -> None:
    civitai.add(12, "x.safetensors", lora)
    civitai.models[12]["modelVersions"][0]["files"][0]["name"] = "../..\\..\\.in k;rm\n.safetensors"
    pulled = fetch(civitai, "civitai:12", tmp_path / "models")
    assert pulled.path == tmp_path / "models" / "lora" / "in k_rm_.safetensors"


@pytest.mark.parametrize("address", ["http://evil.example/x", "file:///etc/passwd", ""])
def test_downloads_come_from_civitai_alone(
    civitai: Civitai, tmp_path: Path, lora: bytes, address: str
) -> None:
    civitai.add(12, "x.safetensors", lora, downloadUrl=address)
    civitai.models[12]["modelVersions"][0]["files"][0]["downloadUrl"] = address
    with pytest.raises(ModelNotFound, match="not its own"):
        fetch(civitai, "civitai:12", tmp_path)


def test_versions_and_files_are_chosen(civitai: Civitai, lora: bytes) -> None:
    civitai.add(12, "a.safetensors", lora)
    newest = civitai.models[12]["modelVersions"][0]
    primary = newest["files"][0]
    newest["files"] = [
        {**primary, "name": "vae.safetensors", "type": "VAE", "primary": False, "sizeKB": 0.1},
        {**primary, "name": "b.safetensors", "primary": False, "sizeKB": 1.0},
        primary,
    ]
    older = {**newest, "id": 7, "name": "v1", "files": newest["files"][:2], "trainedWords": None}
    civitai.models[12]["modelVersions"].append(older)
    found = find_file("civitai:12", url=civitai.url)
    assert (found.name, found.reference) == ("a.safetensors", "civitai:12@120")
    assert found.sha256 == hashlib.sha256(lora).hexdigest()
    found = find_file("civitai:12@7", url=civitai.url)
    assert (found.name, found.title, found.trained_words) == ("b.safetensors", "Ink v1", ())
    with pytest.raises(ModelNotFound, match="has no version 8") as caught:
        find_file("civitai:12@8", url=civitai.url)
    assert caught.value.hint == "its versions: 120 (v2), 7 (v1)"


@pytest.mark.parametrize("reference", ["civitai:", "civitai:x", "civitai:1@", "civitai:1@2@3"])
def test_malformed_references_are_refused(reference: str) -> None:
    with pytest.raises(InvalidRequest, match="is no model on Civitai"):
        find_file(reference)


def test_models_that_are_not_there_are_an_error(civitai: Civitai) -> None:
    with pytest.raises(ModelNotFound, match="Civitai has not the model 99"):
        find_file("civitai:99", url=civitai.url)
    with pytest.raises(ModelNotFound, match="cannot be asked"):
        find_file("civitai:99", url="http://127.0.0.1:9")
