"""Single files at their full size, of random weights: loading takes little more memory than the weights.

2 to 7 GB of disk each, and as much memory.
"""

import json
import subprocess
import sys

import pytest
import torch

from limner.weights.tensors import write_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

LOAD = """
import json, sys, time
from pathlib import Path
import limner
from limner.engine.loaded import load
from limner.weights import hub

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

path, tokenizer = map(Path, sys.argv[1:])
hub.clip_tokenizer = lambda: tokenizer
before, began = memory("VmRSS"), time.perf_counter()
with path.open("rb") as file:
    while file.read(1 << 24):
        pass
read = time.perf_counter() - began
began = time.perf_counter()
model = load(path, device="cpu")
told = {"seconds": time.perf_counter() - began, "reading": read, "weights": model.backend.bytes}
print(json.dumps(told | {"peak": memory("VmHWM") - before, "after": memory("VmRSS") - before}))
"""


@pytest.mark.parametrize("name", ["sd15", "sd21-768-v", "sdxl-base"])
def test_memory_of_loading(reference, tmp_path, name):
    tensors = {}
    for line in (reference / "keys" / "single" / f"{name}.txt").read_text().splitlines():
        key, shape = line.split("\t")
        sides = [] if shape == "scalar" else [int(side) for side in shape.split("x")]
        tensors[key] = torch.empty(sides, dtype=torch.float16).uniform_(-0.03, 0.03)
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    del tensors
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, reference / "tokenizer"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    print(name, told)
    path.unlink()
    assert told["peak"] < 1.2 * told["weights"]
