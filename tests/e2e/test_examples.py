"""The Python of the guides runs as it stands, with a tiny model in the place of the shipped one."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from limner.catalogue.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore:the prompt is cut")  # the tiny model reads letter by letter
@pytest.mark.parametrize(
    ("page", "picture"),
    [
        ("README.md", "boat.png"),
        ("docs/guides/python-api.md", "boat.png"),
        ("docs/guides/grid.md", "sheet.png"),
        pytest.param(
            "docs/guides/provenance.md",
            "house.webp",
            marks=pytest.mark.skipif(find_spec("c2pa") is None, reason="limner[provenance] is not installed"),
        ),
    ],
)
def test_examples_run(page, picture, tiny, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setitem(SHIPPED, "picturebook", tiny)
    monkeypatch.chdir(tmp_path)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "example"})
    assert (tmp_path / picture).is_file()
