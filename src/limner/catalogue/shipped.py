"""The models that come with Limner."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1] / "picturebook"

SHIPPED = {"picturebook": _FOLDER / "model"}
"""Name -> folder of a checkpoint."""

SHIPPED_NETWORKS = {"picturebook-edges": _FOLDER / "edges"}
"""Name -> folder of a ControlNet."""
