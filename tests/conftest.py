"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden data that was made without Limner's code."""
    default = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("LIMNER_REFERENCE", default))
    if not (folder / "INTERFACES.md").is_file():
        pytest.skip(f"no golden data at {folder}; set LIMNER_REFERENCE to its folder")
    return folder
