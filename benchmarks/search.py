"""`python -m benchmarks.search`: search over the images of one account, of 10,000 and of 100,000.

Made-up prompts with the frequencies of real ones: one word in 83 % of them, some in a few per cent, many
that are rare. Vectors of 128 numbers, in clusters. Each figure is one call of what the API calls, the check
that the index agrees with the ledger included, and without the time that a worker takes to embed a text.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from limner.service.identity import LOCAL_ACCOUNT
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.schema import images, jobs, sets
from limner.service.search.account import AccountSearch, Embedded
from limner.service.search.query import parse_query
from limner.service.search.searches import Searches
from limner.service.search.vectors import build_graph

from .harness import Chart, Report, Spread, Table, parser, say

_WIDTH, _CLUSTERS = 128, 400
_WORDS = [f"{first}{second}" for first in ("ba", "lo", "mi", "ru", "te") for second in "bcdfghklmnprstvz"]
_COMMON, _FREQUENT, _RARE = "masterpiece", "boat", "zeppelin"
_PER_PROMPT = 4  # images
_INSERTED = 5000


def fill(ledger: Ledger, count: int) -> None:
    """Add images that are done."""
    rng = random.Random(0)
    now = ledger.now()
    for start in range(0, count, _INSERTED):
        numbers = range(start + 1, min(start + _INSERTED, count) + 1)
        with ledger._db.write() as tx:
            tx.execute(insert(sets), [_set(number, now) for number in numbers])
            tx.execute(insert(jobs), [_job(number, now) for number in numbers])
            prompts = {one: _prompt(one, rng) for one in {number // _PER_PROMPT for number in numbers}}
            made = {number: now - count + number for number in numbers}
            rows = [_image(number, prompts[number // _PER_PROMPT], at) for number, at in made.items()]
            tx.execute(insert(images), rows)


def _prompt(number: int, rng: random.Random) -> str:
    words = rng.sample(_WORDS, 12)
    words += [_COMMON] if rng.random() < 0.83 else []
    words += [_FREQUENT] if number % 50 == 0 else []
    words += [_RARE] if number % 1000 == 0 else []
    rng.shuffle(words)
    return f"{' '.join(words)} {number}"


def _set(number: int, now: float) -> dict[str, Any]:
    values = {"kind": "generate", "lane": "batch", "client": "native", "request": {}, "warnings": []}
    return {"id": f"set_{number}", "account_id": LOCAL_ACCOUNT, "digest": "", "created_at": now, **values}


def _job(number: int, now: float) -> dict[str, Any]:
    values = {"index": 0, "kind": "generate", "lane": "batch", "state": "done", "params": {}, "model": "m"}
    times = {"created_at": now, "queued_at": now, "predicted_seconds": 1.0, "position": float(number)}
    ids = {"id": f"job_{number}", "set_id": f"set_{number}", "account_id": LOCAL_ACCOUNT}
    return {**ids, **values, **times}


def _image(number: int, prompt: str, created_at: float) -> dict[str, Any]:
    record = {
        "request": {"prompt": prompt, "negative_prompt": "blurry", "seed": number, "steps": 20},
        "model": {"name": "m", "sha256": "0" * 64},
    }
    return {
        "id": f"img_{number}",
        "job_id": f"job_{number}",
        "account_id": LOCAL_ACCOUNT,
        "key": f"masters/{LOCAL_ACCOUNT}/job_{number}/1.png",
        "sha256": "0" * 64,
        "pixels_sha256": "0" * 64,
        "width": 768,
        "height": 512,
        "bytes": 500_000,
        "record": record,
        "created_at": created_at,
        "kept": number % 20 == 0,
    }


def clusters(count: int) -> np.ndarray:
    """Vectors of length 1 around some centres, [count, _WIDTH]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(_CLUSTERS, _WIDTH)).astype(np.float32)
    vectors = centres[rng.integers(_CLUSTERS, size=count)]
    vectors += 0.7 * rng.normal(size=vectors.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measured(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of each kind of search, and of what goes before, by name."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(f"sqlite:///{folder}/ledger.sqlite3")
        searches = Searches(ledger, Path(folder) / "search")
        try:
            say(f"{count} images")
            fill(ledger, count)
            found: dict[str, Any] = {"index all images": [_seconds(lambda: _index(searches))]}
            searches.run(LOCAL_ACCOUNT, lambda search: _store_vectors(search, clusters(count)))
            found |= searches.run(LOCAL_ACCOUNT, lambda search: _searched(search, rounds))
            searches.close()
            found["first search of a new process"] = [
                _seconds(lambda: searches.run(LOCAL_ACCOUNT, lambda search: search.find(parse_query(_RARE))))
            ]
            found["megabytes on the disk"] = (
                sum(path.stat().st_size for path in (Path(folder) / "search").rglob("*") if path.is_file())
                / 1e6
            )
        finally:
            searches.close()
            ledger.close()
    return found


def _index(searches: Searches) -> None:
    while searches.run(LOCAL_ACCOUNT, lambda search: search.catch_up()):
        pass


def _store_vectors(search: AccountSearch, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), _INSERTED):
        part = enumerate(vectors[start : start + _INSERTED], start + 1)
        search.put_vectors("image_vectors", {number: Embedded("e", one) for number, one in part})
    search.catch_up()
    if search.images.needs_graph:
        build_graph(search.index, "image_vectors")


def _searched(search: AccountSearch, rounds: int) -> dict[str, list[float]]:
    like = Embedded("e", clusters(64)[-1])

    def words(query: str, **more: Any) -> Callable[[], object]:
        return lambda: search.find(parse_query(query), **more)

    def one_more() -> object:
        number = search._newest()
        search._ledger.mark_images([str(number)], account_id=LOCAL_ACCOUNT, kept=True)
        search._ledger.mark_images([str(number)], account_id=LOCAL_ACCOUNT, kept=False)
        return search.find(parse_query(_RARE))

    kinds = {
        "a word of 0.1 % of the prompts": words(_RARE),
        "a word of 2 %": words(_FREQUENT),
        "a word of 83 %": words(_COMMON),
        "all three": words(f"{_RARE} {_FREQUENT} {_COMMON}"),
        "three words that no prompt has together": words(f"{_RARE} {_FREQUENT} nowhere"),
        "words and meaning": words(_FREQUENT, text=like),
        "likeness": words("", like=like),
        "likeness among kept images": words("kept:yes", like=like),
        "by taste": words("", order="taste"),
        "prompt memory": lambda: search.recall(_FREQUENT),
        "a rare word after an image was marked": one_more,
    }
    return {name: [_seconds(act) for _ in range(rounds + 1)][1:] for name, act in kinds.items()}


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def report(found: dict[int, dict[str, Any]]) -> Report:
    made = Report("search", "Search", " ".join((__doc__ or "").split("\n\n", 1)[1].split()))
    names = next(iter(found.values()))
    columns = ("", *(f"{count:,} images" for count in found))
    rows = []
    for name in names:
        if name != "megabytes on the disk":
            spreads = [Spread.of([1e3 * one for one in each[name]]) for each in found.values()]
            rows.append((name, *(spread.text(" ms") for spread in spreads)))
    sizes = [f"{each['megabytes on the disk']:.0f}" for each in found.values()]
    rows.append(("megabytes on the disk", *sizes))
    made.tables.append(Table("Time of a call", columns, rows))
    largest = max(found)
    bars = {
        name: Spread.of([1e3 * one for one in times])
        for name, times in found[largest].items()
        if isinstance(times, list) and len(times) > 1
    }
    made.charts.append(Chart(f"Among {largest:,} images", "ms", bars))
    made.data["searches"] = {str(count): each for count, each in found.items()}
    return made


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "", rounds=20).parse_args(argv)
    counts = (300, 600) if options.quick else (10_000, 100_000)
    rounds = 2 if options.quick else options.rounds
    report({count: measured(count, rounds) for count in counts}).publish(options)


if __name__ == "__main__":
    main()
