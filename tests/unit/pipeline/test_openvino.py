"""The cases of `openvino_cases.py`, in a process of their own.

After OpenVINO and NNCF have run, PyTorch's training crashes in the same process, in a library of theirs or
PyTorch's. Nobody who draws trains in the same process, but the tests would.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(not (find_spec("openvino") and find_spec("nncf")), reason="needs limner[openvino]")
def test_openvino():
    cases = Path(__file__).with_name("openvino_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(cases)]
    run = subprocess.run(command, cwd=cases.parents[3], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
