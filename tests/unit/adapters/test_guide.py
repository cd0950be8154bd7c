"""The guide to adapters, run."""

import re
from pathlib import Path

import pytest

from limner.catalogue.shipped import SHIPPED

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "adapters.md"


def test_the_guides_program_runs(tmp_path, monkeypatch, capsys):
    if not (SHIPPED["picturebook"] / "model_index.json").is_file():
        pytest.skip("the shipped model is not in this checkout")
    monkeypatch.chdir(tmp_path)
    program = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))
    space: dict[str, object] = {}
    exec(compile(program, GUIDE.name, "exec"), space)
    assert "style ()" in capsys.readouterr().out
    assert space["prediction"].shape == space["latents"].shape
    assert len(space["changed"]) == len(space["layers"])
