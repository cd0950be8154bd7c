"""A library of many pictures without drawing them: rows of the ledger, and thumbnails for some designs."""

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from sqlalchemy import insert

from limner.service.identity import LOCAL_ACCOUNT
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.schema import images, jobs, sets
from limner.service.storage import ImageStore

SIZES = ((512, 512), (768, 512), (512, 768), (640, 512), (896, 512))
_PER_INSERT = 2000
_DAY = 86_400.0
_SUBJECTS = ("boat on a lake", "house in the snow", "fox under a tree", "tower at night", "bowl of pears")
_COLOURS = ("red", "blue", "green", "amber", "grey")


def fill(data: Path, count: int, *, days: float = 300) -> None:
    """Add pictures to the local account of a data folder, the newest now and the oldest `days` ago.

    Number `n` has the prompt of `prompt_of(n)` and the size `SIZES[n % 5]`; each twentieth is kept.
    """
    ledger = Ledger.open(f"sqlite:///{data}/ledger.sqlite3")
    store = ImageStore.in_folder(data / "pictures")
    now = ledger.now()
    designs = [_thumbnail(number) for number in range(25)]
    try:
        for start in range(1, count + 1, _PER_INSERT):
            numbers = range(start, min(start + _PER_INSERT, count + 1))
            with ledger._db.write() as tx:
                tx.execute(insert(sets), [_set(number, now) for number in numbers])
                tx.execute(insert(jobs), [_job(number, now) for number in numbers])
                made = {number: now - (count - number) * days * _DAY / count for number in numbers}
                tx.execute(insert(images), [_image(number, at) for number, at in made.items()])
            for number in numbers:
                store.put_thumbnail(_key(number), designs[number % 25])
        kept = [str(number) for number in range(20, count + 1, 20)]
        ledger.mark_images(kept, account_id=LOCAL_ACCOUNT, kept=True)  # tells the service of the change
    finally:
        ledger.close()


def prompt_of(number: int) -> str:
    """The prompt of a picture."""
    return f"a {_COLOURS[number // 5 % 5]} {_SUBJECTS[number % 5]}"


def _thumbnail(number: int) -> bytes:
    width, height = (side // 2 for side in SIZES[number % 5])
    rng = random.Random(number)
    sky, ground, thing = (tuple(rng.randrange(30, 230) for _ in "rgb") for _ in range(3))
    drawn = Image.new("RGB", (width, height), sky)
    pen = ImageDraw.Draw(drawn)
    pen.rectangle((0, height * 0.6, width, height), fill=ground)
    pen.ellipse((width * 0.3, height * 0.35, width * 0.7, height * 0.75), fill=thing)
    encoded = io.BytesIO()
    drawn.save(encoded, "WEBP", quality=60)
    return encoded.getvalue()


def _key(number: int) -> str:
    return f"masters/{LOCAL_ACCOUNT}/job_filled{number}/1.png"


def _request(number: int) -> dict[str, Any]:
    width, height = SIZES[number % 5]
    return {"prompt": prompt_of(number), "seed": number, "steps": 20, "width": width, "height": height}


def _set(number: int, now: float) -> dict[str, Any]:
    values = {"kind": "generate", "lane": "batch", "client": "native", "request": {}, "warnings": []}
    return {
        "id": f"set_filled{number}",
        "account_id": LOCAL_ACCOUNT,
        "digest": "",
        "created_at": now,
        **values,
    }


def _job(number: int, now: float) -> dict[str, Any]:
    values: dict[str, Any] = {"index": 0, "kind": "generate", "lane": "batch", "state": "done"}
    values |= {"model": "picturebook", "params": _request(number)}
    times = {"created_at": now, "queued_at": now, "predicted_seconds": 1.0, "position": float(number)}
    ids = {"id": f"job_filled{number}", "set_id": f"set_filled{number}", "account_id": LOCAL_ACCOUNT}
    return {**ids, **values, **times}


def _image(number: int, created_at: float) -> dict[str, Any]:
    width, height = SIZES[number % 5]
    record = {"request": _request(number), "model": {"name": "picturebook", "sha256": "0" * 64}}
    return {
        "id": f"img_filled{number}",
        "job_id": f"job_filled{number}",
        "account_id": LOCAL_ACCOUNT,
        "key": _key(number),
        "sha256": f"{number:064x}",
        "pixels_sha256": f"{number:064x}",
        "width": width,
        "height": height,
        "bytes": 500_000,
        "record": record,
        "created_at": created_at,
    }
