"""AUTOMATIC1111's API, as the unchanged package node-sd-webui for Node calls it.

pytest -n 0 -m node tests/contract/test_sdapi_node.py
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import serving

PACKAGE = "node-sd-webui@0.0.8"
PROGRAM = Path(__file__).with_name("sdapi_clients.mjs")

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the package."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}", encoding="utf-8")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install the package: {done.stderr[-200:]}")
    return folder


def test_node_sd_webui(package, tmp_path):
    with serving(tmp_path / "service") as served:
        program = ["node", str(PROGRAM), served.url]
        done = subprocess.run(program, cwd=package, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["images"], found["seeds"], found["again"]) == (2, [5, 6], 1)
    assert (found["sampler"], found["warnings"], found["without_effect"]) == ("DPM++ 2M", [], [])
    assert found["prompt"] == "a red boat"
    assert "error" in found
