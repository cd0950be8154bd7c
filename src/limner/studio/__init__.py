"""The studio: the browser application that `limner serve` has at `/`.

`dist` holds the bundle that is built from `web/`, as data of this package; `limner.server.studio` serves it.
"""

from pathlib import Path

DIST = Path(__file__).parent / "dist"
"""Folder of the bundle."""
