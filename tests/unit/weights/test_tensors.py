"""Safetensors files: what is read, what is written, and that nothing hostile gets further than its header."""

import hashlib
import json
import random
import resource
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch

from limner.catalogue.headers import ITEM_SIZES, MAX_HEADER_BYTES, files_of, read_header, read_infos
from limner.errors import InvalidCheckpoint, OutputError, PickleRefused
from limner.weights.tensors import DTYPES, open_tensors, write_tensors

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t.{dtype}".replace("torch.", ""): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for dtype in DTYPES.values()
    }
    return {
        **tensors,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "strided": torch.randn(4, 6, generator=generator).t(),
        "ключ \U0001f3a8": torch.randn(2, generator=generator).half(),
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a[name], b[name])]
        assert torch.equal(*bits), name


def write_raw(
    path: Path, header: str | bytes | dict, data: bytes = bytes(24), length: int | None = None
) -> Path:
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def test_save_then_load_is_identity_and_the_library_agrees(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = sample()
    write_tensors(path, tensors, {"format": "pt", "note": 'ünïcode " \\'})
    assert_same(open_tensors(path), tensors)
    assert_same(safetensors.torch.load_file(path), tensors)
    assert read_header(path).metadata == {"format": "pt", "note": 'ünïcode " \\'}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_reads_what_the_library_writes(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in sample().items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    assert_same(open_tensors(path), tensors)
    assert read_infos(path)["strided"].elements == 24


def test_same_tensors_give_the_same_bytes(tmp_path):
    metadata = {str(i): "x" for i in range(8)}
    digests = set()
    for i, names in enumerate((sorted(sample()), sorted(sample(), reverse=True))):
        write_tensors(tmp_path / f"{i}", {name: sample()[name] for name in names}, metadata)
        digests.add(hashlib.sha256((tmp_path / f"{i}").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_tensors_are_mapped_and_private(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"big": torch.zeros(64 << 20, dtype=torch.uint8)})
    before = path.read_bytes()[:200]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    start = resident()
    big = open_tensors(path)["big"]
    assert resident() - start < 16 << 20
    big[0] = 7
    assert path.read_bytes()[:200] == before


def test_odd_offsets_are_legal(tmp_path):
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "float": {"dtype": "F32", "shape": [], "data_offsets": [1, 5]},
    }
    path = write_raw(tmp_path / "a", header, b"\x07" + struct.pack("<f", 2.5))
    assert open_tensors(path)["float"].item() == 2.5


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"a": {**F32, "shape": [2, 2]}},
            r"'a' is F32 of shape \[2, 2\], 16 bytes, but its data_offsets are \[0, 24\]",
        ),
        ({"a": {**F32, "shape": [-2, -3]}}, "none negative"),
        ({"a": {**F32, "shape": [True, 6]}}, "none negative"),
        ({"a": {**F32, "shape": [2.0, 3]}}, "none negative"),
        ({"a": {**F32, "shape": [2**62, 2**62]}}, "bytes, but its data_offsets"),
        ({"a": {**F32, "shape": [10**40]}}, "none negative"),
        ({"a": {**F32, "shape": [1] * 9}}, "at most 8"),
        ({"a": {**F32, "shape": "2x3"}}, "expected a list"),
        ({"a": {**F32, "dtype": "F33"}}, "'a' has dtype 'F33', expected one of"),
        ({"a": {**F32, "dtype": 5}}, "expected a string"),
        ({"a": {**F32, "data_offsets": [24, 0]}}, r"data_offsets are \[24, 0\]"),
        ({"a": {**F32, "data_offsets": [0, 24, 48]}}, "two data_offsets"),
        ({"a": {**F32, "extra": 1}}, "unknown field 'extra'"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, "lacks"),
        ({"a": F32, "b": F32}, "'b' starts at byte 0 of the data and overlaps"),
        (
            {"a": F32, "b": {**F32, "data_offsets": [12, 36]}},
            "'b' starts at byte 12 of the data and overlaps",
        ),
        ({"a": {**F32, "data_offsets": [4, 28]}}, "'a' starts at byte 4 of the data and leaves a gap"),
        ({"a": {**F32, "shape": [4, 3], "data_offsets": [0, 48]}}, "truncated"),
        ({"a": {**F32, "shape": [1, 3], "data_offsets": [0, 12]}}, "belong to no tensor"),
        ({"a": F32, "__metadata__": {"n": 1}}, "expected a string"),
        ({"a": F32, "__metadata__": ["n"]}, "expected '{'"),
        ({"a": []}, "expected '{'"),
        ("[]", "expected '{'"),
        ("", "expected '{' at character 0 of the header, found its end"),
        ('{"a":' + json.dumps(F32) + ',"a":' + json.dumps(F32) + "}", "gives 'a' twice"),
        ('{"a":{"dtype":"F32","dtype":"F32"}}', "gives 'dtype' twice"),
        ('{"a":{"dtype":NaN}}', "expected a string"),
        ('{"a":{"shape":[NaN]}}', "expected a list"),
        ('{"a":' * 100_000, "expected|unknown field"),
        ("[" * 1_000_000, "expected '{'"),
        ('{"a":{"shape":' + "[" * 1_000_000, "expected a list"),
        ('{"\xff":1}'.encode("latin-1"), "not UTF-8 at its byte 2"),
        ('{"a":' + json.dumps(F32) + "} x", "goes on after its end"),
        ('{"a', "not valid JSON"),
        ('{"a":' + json.dumps(F32), "expected '}'"),
        ('{"a":' + json.dumps(F32) + ",}", "expected a string"),
        ('{"a":{"shape":[01]}}', "expected a list"),
        ('{"a":{"shape":[١]}}', "expected a list"),
    ],
)
def test_defects_are_named(tmp_path, header, message):
    path = write_raw(tmp_path / "bad.safetensors", header)
    with pytest.raises(InvalidCheckpoint, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "only 2 follow"),
        (struct.pack("<Q", 100) + b"{}", "only 2 follow"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><title>Log in</title></html>" * 40, r"is a web page \(HTML\)"),
        (b"\r\n\r\n  <HTML lang=en>" + b"<meta>" * 400, r"is a web page \(HTML\)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML text"),
        (b'{"error":"Unauthorized","message":"log in first"}', r"is a JSON text \(.*Unauthorized"),
        (b"Entry not found", r"is a text \('Entry not found'\)"),
        ("Zugriff verweigert: für dich".encode() * 100, "is a text"),
        (b"PK\x03\x04" + bytes(22) + b"\x09\0\0\0model.txt" + bytes(99), "is a zip archive"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(900_000), "is a gzip archive"),
        (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is an image"),
        (bytes(4096), "is zeros only"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match=message):
        open_tensors(path)


def test_pickle_under_another_name(tmp_path):
    for name, legacy in (("zip", True), ("legacy", False)):
        path = tmp_path / f"{name}.safetensors"
        torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=legacy)
        with pytest.raises(PickleRefused):
            open_tensors(path)


def test_missing_or_unreadable(tmp_path):
    with pytest.raises(InvalidCheckpoint, match="missing"):
        open_tensors(tmp_path / "none.safetensors")
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        open_tensors(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_tensors(tmp_path / "no folder" / "a.safetensors", {"a": torch.ones(1)})


def test_headers_and_torch_agree_on_sizes():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_SIZES


def test_giant_headers_cost_neither_time_nor_memory(tmp_path):
    """Headers just under and just over the limit, made of what costs a JSON parser most."""
    room = MAX_HEADER_BYTES - 64
    headers = {
        "lists": '{"a":[' + "[]," * (room // 3),
        "spaces": "{" + " " * room,
        "entries": "{" + "".join(f'"{i:06}":{{}},' for i in range(room // 12)),
        "strings": '{"__metadata__":{' + "".join(f'"{i:06}":"",' for i in range(room // 12)),
        "too long": " " * (MAX_HEADER_BYTES + 1),
    }
    for name, header in headers.items():
        path = write_raw(tmp_path / name, header)
        start = time.process_time()
        tracemalloc.start()
        with pytest.raises(InvalidCheckpoint):
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The header itself, as bytes and as text, is 32 MiB; json.loads takes up to 350 more.
        assert peak < 80 << 20, name
        assert time.process_time() - start < 5, name


def test_mutated_files_load_alike_or_are_refused(tmp_path):
    """Random damage: either refused, or read exactly as the reference library reads it."""
    rng = random.Random(0)
    source = tmp_path / "source.safetensors"
    write_tensors(source, {f"layer.{i}.weight": torch.randn(2, i + 1) for i in range(4)}, {"format": "pt"})
    whole = source.read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    tokens = [
        b"-1",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"true",
        b"1e9",
        b"\\u0041",
        b"F64",
        b"\xff",
        b" ",
        b"0",
    ]
    accepted, refusals = 0, []
    for i in range(600):
        data = bytearray(whole)
        kind = i % 4
        if kind == 0:  # flip bytes, mostly where it hurts
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(header_end if rng.random() < 0.8 else len(data))] = rng.randrange(256)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:  # a token put over or into the header, its length kept true half of the time
            at, token = rng.randrange(8, header_end), rng.choice(tokens)
            data[at : at + rng.choice((0, len(token)))] = token
            if rng.random() < 0.5:
                data[:8] = struct.pack("<Q", header_end - 8 + len(data) - len(whole))
        else:
            digits = [at for at in range(8, header_end) if 48 <= data[at] <= 57]
            data[rng.choice(digits)] = rng.randrange(48, 58)
        path = tmp_path / "mutated.safetensors"
        path.write_bytes(data)
        try:
            tensors = open_tensors(path)
        except InvalidCheckpoint as error:
            refusals.append(error.message)
        else:
            accepted += 1
            assert_same(tensors, safetensors.torch.load_file(path))
    assert 50 < accepted < 500
    assert all(str(path) in message for message in refusals)


def write_sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    write_tensors(folder / "m-00001-of-00002.safetensors", {"a": torch.ones(1), "b": torch.ones(2)})
    write_tensors(folder / "m-00002-of-00002.safetensors", {"c": torch.ones(3)})
    weight_map = weight_map or {
        "a": "m-00001-of-00002.safetensors",
        "b": "m-00001-of-00002.safetensors",
        "c": "m-00002-of-00002.safetensors",
    }
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    return path


def test_sharded(tmp_path):
    path = write_sharded(tmp_path)
    assert sorted(open_tensors(path)) == sorted(read_infos(path)) == ["a", "b", "c"]
    assert len(files_of(path)) == 2


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../m.safetensors"}, "plain name"),
        ({"a": "/etc/passwd"}, "plain name"),
        ({"a": "sub/m.safetensors"}, "plain name"),
        ({"a": "m.bin"}, "plain name"),
        ({"a": 3}, "plain name"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
        ({"a": "m-00001-of-00002.safetensors"}, "'b' is in the shard but not in the index"),
        (
            {"d": "m-00002-of-00002.safetensors", "c": "m-00002-of-00002.safetensors"},
            "'d' is in the index but not",
        ),
        ([], "weight_map"),
    ],
)
def test_defects_of_an_index(tmp_path, weight_map, message):
    path = write_sharded(tmp_path)
    path.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidCheckpoint, match=message):
        open_tensors(path)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"weight_map": NaN}', '{"a": 1, "a": 1}', "[]", "{", "\x00", "9" * 5000]
)
def test_indexes_that_are_no_json(tmp_path, text):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(InvalidCheckpoint, match=r"m\.safetensors\.index\.json"):
        open_tensors(path)
