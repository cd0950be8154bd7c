"""Writes openapi.json, the description of the native API that the studio's types are made from.

python web/openapi.py
"""

import json
from pathlib import Path
from tempfile import gettempdir

from limner.server.app import create_app
from limner.server.native import PREFIX
from limner.settings import ServeSettings

PATH = Path(__file__).with_name("openapi.json")


def description() -> str:
    """The text of the file: what the application says of its native API."""
    whole = create_app(ServeSettings(data=Path(gettempdir()) / "limner-openapi")).openapi()
    paths = {path: operations for path, operations in whole["paths"].items() if path.startswith(PREFIX)}
    return json.dumps({**whole, "paths": paths}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(description(), encoding="utf-8")
