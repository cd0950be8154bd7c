"""Pickles: tensors come out of those that PyTorch writes, and nothing that one asks for is run."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from limner.errors import InvalidCheckpoint, PickleRefused
from limner.weights.pickles import read_pickle

GENERATOR = torch.Generator().manual_seed(0)
SQUARE = torch.randn(4, 6, generator=GENERATOR)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def test_tensors_come_out_as_they_are(file):
    tensors = {str(dtype): SQUARE.to(dtype) for dtype in DTYPES}
    tensors |= {
        "transposed": SQUARE.t(),
        "window": SQUARE[1:3, 2:5],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "parameter": torch.nn.Parameter(SQUARE),
    }
    torch.save({"state_dict": OrderedDict(tensors), "global_step": 470000, "name": "a", "rate": 0.5}, file)
    held = read_pickle(file)
    assert held.values == {"global_step": 470000, "name": "a", "rate": 0.5}
    assert held.tensors.keys() == {f"state_dict.{name}" for name in tensors}
    for name, tensor in tensors.items():
        lazy = held.tensors[f"state_dict.{name}"]
        assert (lazy.dtype, lazy.shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(lazy.read(), tensor)


def test_a_textual_inversion(file):
    """As AUTOMATIC1111 writes it, and as its inventors did, in a module."""
    vectors = torch.randn(2, 768, generator=GENERATOR)
    for words in ({"*": vectors}, torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})):
        torch.save(
            {"string_to_token": {"*": 265}, "string_to_param": words, "name": "cat", "step": None}, file
        )
        held = read_pickle(file)
        assert held.values == {"string_to_token.*": 265, "name": "cat", "step": None}
        assert torch.equal(held.tensors["string_to_param.*"].read(), vectors)


def test_an_optimizers_state(file):
    weight = torch.nn.Parameter(torch.randn(3, generator=GENERATOR))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save([optimizer.state_dict()], file)
    assert torch.equal(
        read_pickle(file).tensors["0.state.0.exp_avg"].read(), optimizer.state[weight]["exp_avg"]
    )


def archive(file: Path, data: bytes, storage: bytes = b"") -> Path:
    """A file as torch.save's, around any pickle."""
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data.pkl", data)
        out.writestr("archive/data/0", storage)
    return file


class Call:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def hostile(marker: Path) -> dict[str, bytes]:
    """What a pickle would call -> the pickle."""
    command = f"touch {marker}"
    return {
        "posix.system": pickle.dumps({"state_dict": Call(os.system, command)}),
        "subprocess.Popen": pickle.dumps(Call(subprocess.Popen, ["touch", str(marker)])),
        "builtins.eval": pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')")),
        "builtins.exec": pickle.dumps(Call(exec, f"open({str(marker)!r}, 'w')")),
        "builtins.getattr": pickle.dumps(Call(getattr, "", "join")),
        "io.open": pickle.dumps(Call(io.open, str(marker), "w")),
        "os.system": f"cos\nsystem\n(V{command}\ntR.".encode(),
        "__builtin__.eval": f"c__builtin__\neval\n(Vopen({str(marker)!r}, 'w')\ntR.".encode(),
        "posix.fork": f"(V{command}\niposix\nfork\n.".encode(),  # another way to call
        "collections.OrderedDict.__init__": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(V\ntR.",  # a pickle within
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_hostile_pickles_do_nothing_and_are_named(file, tmp_path, name):
    marker = tmp_path / "marker"
    archive(file, hostile(marker)[name])
    with pytest.raises(PickleRefused, match=f"would call {name}, which no tensors need"):
        read_pickle(file)
    assert not marker.exists()


def test_the_same_pickles_do_harm_where_they_are_simply_opened(tmp_path):
    """A guard of the test above."""
    marker = tmp_path / "marker"
    for name in ("posix.system", "builtins.eval", "os.system"):
        program = f"import pickle; pickle.loads({hostile(marker)[name]!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
        assert marker.exists()
        marker.unlink()


def doubled(times: int):
    """Two of two of two …: exponentially many."""
    tree = [1]
    for _ in range(times):
        tree = [tree, tree]
    return tree


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"N",
        pickle.dumps(object),
        pickle.dumps(doubled(40)),
        b"]q\x00h\x00a.",  # a list that holds itself
        b"(" * 100_000 + b"l" * 100_000 + b".",
        pickle.dumps(b"bytes"),
        pickle.dumps({"a.b": 1, "a": {"b": 2}}),
        b"X\xff\xff\xff\xff",
        b"I" + b"9" * 5000 + b"\n.",
    ],
    ids=["empty", "cut", "endless", "class", "doubled", "loop", "deep", "bytes", "twice", "long", "digits"],
)
def test_other_pickles_are_refused(file, data):
    with pytest.raises(InvalidCheckpoint, match=r"the pickle in .* (holds something else|would call)"):
        read_pickle(archive(file, data))


def described(dtype="FloatStorage", key="0", elements=6, offset=0, shape=(2, 3), stride=(3, 1)) -> bytes:
    """A pickle of one tensor, as the archive's file 0 would hold it."""
    numbers = ["".join(f"I{number}\n" for number in several) for several in (shape, stride)]
    storage = f"(Vstorage\nctorch\n{dtype}\nV{key}\nVcpu\nI{elements}\ntQ"
    window = f"{storage}I{offset}\n({numbers[0]}t({numbers[1]}t"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({window}I00\nNtR.".encode()


def test_a_described_tensor_is_read(file):
    """A guard of the test below."""
    data = torch.arange(6.0)
    [tensor] = read_pickle(archive(file, described(), data.numpy().tobytes())).tensors.values()
    assert torch.equal(tensor.read(), data.view(2, 3))


@pytest.mark.parametrize(
    "lie",
    [
        {"dtype": "DoubleStorage"},
        {"key": "1"},
        {"key": "../data.pkl"},
        {"elements": 7},
        {"elements": -6},
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 3)},
        {"shape": (-2, -3)},
        {"stride": (1, 4)},
        {"stride": (-3, 1)},
        {"stride": (3,)},
        {"shape": (10**9, 10**9), "stride": (0, 0)},
    ],
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(file, lie):
    with pytest.raises(InvalidCheckpoint, match="does not hold what its pickle says"):
        read_pickle(archive(file, described(**lie), bytes(24)))


def test_many_windows_onto_one_storage_are_refused(file):
    torch.save({"a": SQUARE, "b": SQUARE, "c": SQUARE.repeat(50, 50)}, file)
    assert len(read_pickle(file).tensors) == 3  # tied weights
    large = SQUARE.repeat(50, 50)
    torch.save({str(index): large for index in range(10)}, file)
    with pytest.raises(InvalidCheckpoint, match="its tensors would take"):
        read_pickle(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><body>Sign in</body></html>", r"is a web page \(HTML\)"),
        (b'{"error":"Unauthorized"}', "is a JSON text"),
        ((2).to_bytes(8, "little") + b"{}", "is a safetensors file under another name"),
    ],
)
def test_what_is_no_pickle_is_named(file, content, message):
    file.write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match=message):
        read_pickle(file)


def test_other_files_are_refused(file, tmp_path):
    torch.save({"a": SQUARE}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidCheckpoint, match="is no archive as") as caught:
        read_pickle(file)
    assert "before PyTorch 1.6" in caught.value.hint
    for content in (b"", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(InvalidCheckpoint, match="no archive"):
            read_pickle(file)
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        read_pickle(tmp_path / "absent")
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("readme", "hello")
    with pytest.raises(InvalidCheckpoint, match="is a zip archive"):
        read_pickle(file)


def test_a_packed_pickle_is_read_no_further_than_the_largest_known(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", bytes(100 << 20))
    with pytest.raises(InvalidCheckpoint, match="not as any known checkpoint"):
        read_pickle(file)
