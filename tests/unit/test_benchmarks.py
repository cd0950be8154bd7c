"""The benchmarks still run, and what they share computes what it says."""

import importlib
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from benchmarks.contestant import Contestant, Unavailable
from benchmarks.harness import Spent, Spread, alternate, ratio, share_of_others, spent
from benchmarks.lora_style import ink, of_the_way
from benchmarks.networks import Entry, difference, heats

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "networks": (),
    "first_picture": (),
    "many_requests": ("--precision", "fp32"),
    "training": (),
    "adapters": (),
    "search": (),
    "steering": ("--only", "emphasis"),
    "watermark": (),
    "prompt_policy": (),
    "safety": (),
}


class InThisProcess(Contestant):
    """A contestant without a process of its own, which takes longer to start than all that it computes.

    What goes to a process and comes from it is pickled as it would be.
    """

    def __enter__(self):
        self._it = pickle.loads(pickle.dumps(self._make))()
        return self

    def __exit__(self, kind, error, trace):
        del self._it

    def ask(self, method, *arguments):
        given = pickle.loads(pickle.dumps(arguments))
        return pickle.loads(pickle.dumps(getattr(self._it, method)(*given)))


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")  # within diffusers
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("default")  # of other programs
def test_every_command_runs(name, tmp_path, capsys, monkeypatch):
    command = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if hasattr(command, "Contestant"):
        monkeypatch.setattr(command, "Contestant", InThisProcess)
    command.main(["--quick", "--out", str(tmp_path), *COMMANDS[name]])
    check(name, tmp_path, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_in_processes_of_its_own(name, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", tmp_path, *COMMANDS[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check(name, tmp_path, done.stdout)


def check(name, out, said):
    """Check what a command has printed and written."""
    assert (out / f"{name}.md").read_text() == said
    assert "nan" not in said
    assert (out / f"{name}.png").stat().st_size > 5000
    found = json.loads((out / f"{name}.json").read_text())
    assert "torch" in found["machine"]["versions"]
    if name == "networks":
        for contestants in found["networks"].values():
            assert contestants["limner torch fp32"]["largest difference"] < 1e-5
        assert found["skipped"] == {}
    if name == "first_picture":
        assert found["difference"]["limner fp32"].startswith(("0 of 255", "1 of 255"))
    if name == "many_requests":
        assert all(figures["largest difference"] <= 1 for figures in found["at once"].values())
    if name == "training":
        ours, theirs = found["losses"].values()
        assert ours == pytest.approx(theirs, rel=0.02)  # bf16


def test_turns_alternate_and_their_order_turns_round():
    calls = []

    def turn(name):
        calls.append(name)
        return len(calls)

    answers = alternate({name: partial(turn, name) for name in "abc"}, rounds=2)
    assert "".join(calls) == "cba" + "abc" + "cba"
    assert answers == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}


def test_a_ratio_is_of_the_same_round():
    drifting = [1.0, 2.0, 4.0, 8.0]
    twice = ratio([2 * value for value in drifting], drifting)
    assert twice == Spread(2.0, 2.0, 2.0)
    noisy = ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert noisy.low < noisy.middle == 2.0 < noisy.high


def test_others_are_noticed(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before, after = Spent(clock=10, all=100, own=5), Spent(clock=20, all=130, own=15)
    assert share_of_others(before, after) == pytest.approx(20 / 40)
    assert share_of_others(None, after) is None
    now = spent()
    assert now is None or now.all >= now.own > 0


def test_heats_fit_into_memory_and_hold_the_baseline():
    entries = [Entry(str(i), precision, dict) for i, precision in enumerate(["fp32", "fp32", "bf16", "int8"])]
    groups = heats(entries, weights=100, budget=1200)  # 600, 600, 300 and 150 bytes
    assert [[entry.name for entry in group] for group in groups] == [["0", "1"], ["0", "2", "3"]]


def test_differences_are_relative():
    largest, rms = difference(np.array([3.0, 5.0]), np.array([3.0, 4.0]))
    assert (largest, rms) == (pytest.approx(1 / 4), pytest.approx(1 / 5))


def test_ink_is_of_thin_dark_lines():
    pictures = torch.ones(4, 3, 64, 64)
    pictures[1, :, :, 20] = -1.0  # a black line on white
    pictures[2, :, :, 20:30] = -1.0  # a black thing on white
    pictures[3] *= -1.0
    pictures[3, :, :, 20] = 1.0  # a white line on black
    assert ink(pictures).tolist() == [0.0, 1 / 64, 0.0, 0.0]


def test_the_way_is_of_the_same_prompts():
    none, full = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0])
    assert of_the_way((none + full) / 2, none, full) == Spread(0.5, 0.5, 0.5)
    assert of_the_way(none + torch.tensor([0.0, 0.0, 3.0]), none, full).low < 0.1


def unavailable():
    raise Unavailable("not here")


def test_a_contestant_is_asked_in_a_process_of_its_own():
    with Contestant(partial(list, "abc")) as letters:
        assert letters.ask("pop") == "c"
        assert letters._process.pid != os.getpid()
        assert not letters._process.daemon  # it may start processes, as training does to draw pictures
        assert letters.ask("__len__") == 2
        with pytest.raises(RuntimeError, match="IndexError"):
            letters.ask("pop", 9)
    with pytest.raises(Unavailable, match="not here"), Contestant(unavailable):
        pass
    with pytest.raises(RuntimeError, match="ValueError: invalid"), Contestant(partial(int, "no")):
        pass
