"""OpenAI's Images API, as the unchanged SDKs for Node call it: OpenAI's own and Vercel's.

pytest -n 0 -m node tests/contract/test_openai_node.py
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import NumericalError
from tests.serving import Painter, serving

PACKAGES = ("openai@7", "ai@6", "@ai-sdk/openai@3")
PROGRAM = Path(__file__).with_name("openai_clients.mjs")

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    install = ["npm", "install", "--no-audit", "--no-fund", *PACKAGES]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install the packages: {done.stderr[-200:]}")
    return folder


def test_sdks_for_node(packages, tmp_path):
    picture = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(picture)
    painter = Painter(step_seconds=0.005, failures={"a fault": NumericalError("the networks produced NaN")})
    with serving(tmp_path / "service", painter=painter) as live:
        program = ["node", str(PROGRAM), live.url, str(picture)]
        done = subprocess.run(program, cwd=packages, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seeds"] == [4, 5]
    assert found["tokens"] == 3 + 2 * 16
    assert found["events"] == [
        ["image_generation.partial_image", "64x64"],
        ["image_generation.completed", "64x64"],
    ]
    assert found["edits"] == [["96x64", 24]] * 4
    assert found["errors"] == [
        ["BadRequestError", 400, "size", "invalid_value"],
        ["NotFoundError", 404, "model", "model_not_found"],
        ["APIError", None, None, "numerical_error"],
    ]
    assert found["models"] == ["picturebook"]
    assert found["vercel"] == ["image/png"] * 2
    assert found["vercel_edit"] == ["image/png"]
