"""The search index of an account: words, settings, vectors, and what a kill leaves of it."""

import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from limner.service.search.index import AccountIndex, IndexBroken, IndexedImage
from limner.service.search.query import parse_query
from limner.service.search.vectors import Vectors, build_graph


def image(number, prompt="a red boat", *, model="picturebook", created_at=0.0, **request):
    record = {
        "request": {"prompt": prompt, "seed": number, "steps": 20, **request},
        "model": {"name": model, "sha256": "abcdef123456"},
    }
    return IndexedImage(number, record, 64, 128, created_at)


@pytest.fixture
def index(tmp_path):
    opened = AccountIndex(tmp_path / "anna")
    yield opened
    opened.close()


def found(index, *words):
    """Numbers of the images whose prompts match."""
    numbers, prompts = index.images()
    return set(numbers[np.isin(prompts, index.match(words).prompts)].tolist())


def test_words_are_found_in_every_form_and_script(index):
    index.add(
        [
            image(1, "two red boats, (masterpiece:1.2)"),
            image(2, "a café by the sea", negative_prompt="boat"),
            image(3, "海辺の白い家"),
            image(4, "a red boat"),
            image(5, "a red boat"),
        ]
    )
    assert found(index, "boat") == {1, 4, 5}
    assert found(index, "CAFE") == {2}
    assert found(index, "白い") == {3}
    assert found(index, "red boat") == {1, 4, 5}
    assert found(index, "boat red") == set()
    assert found(index, "mast*") == {1}
    for odd in ('"; DROP', "red\0boat NEAR(", "*", "AND"):
        assert found(index, odd) == set()
    some = index.match(["red", "lighthouse"])
    assert not some.every
    assert len(some.prompts) == 2  # prompts of the same words are one
    assert len(index.prompts(some.prompts)) == 2


def test_settings_fit_or_do_not(index):
    index.add(
        [
            image(1, model="Ink Wash", loras=[{"name": "styles/ink"}], steps=30, created_at=100.0),
            image(2, created_at=200.0),
        ]
    )

    def fitting(text):
        numbers = index.fitting(parse_query(text))
        return None if numbers is None else set(numbers.tolist())

    assert fitting("boat") is None
    assert fitting("model:ink") == fitting("lora:INK") == fitting("steps:>20") == {1}
    assert fitting("model:abcdef1") == fitting("size:64x128") == fitting("date:1970") == {1, 2}
    assert fitting("seed:2") == fitting("seed:2 seed:7") == {2}
    assert fitting(f"steps:{'9' * 20}") == fitting(f"seed:{'9' * 20}") == set()
    assert fitting("seed:2 lora:ink") == fitting("size:128x64") == fitting("date:>1970") == set()


def test_a_word_of_most_prompts_is_a_condition_and_no_rank(index, monkeypatch):
    monkeypatch.setattr(AccountIndex, "RANKED", 20)
    index.add([image(n, f"masterpiece number {n}" + (" boat" * (n % 10 == 0))) for n in range(1, 101)])
    index.add([image(101, "a boat that is plain")])
    asked = []
    index._connection.set_trace_callback(asked.append)
    alone = index.match(["masterpiece"])
    assert (len(alone.prompts), alone.ranked) == (100, ())
    assert not any("bm25" in one for one in asked)
    both = index.match(["masterpiece", "boat"])
    assert len(both.prompts) == 10
    assert set(both.prompts.tolist()) <= set(both.ranked)
    assert not any("bm25" in one and "masterpiece" in one for one in asked)


def test_what_is_removed_leaves_no_text_behind(index):
    index.add([image(1, "the secret zeppelin"), image(2, "a boat"), image(3, "a boat")])
    index.put_vectors("image_vectors", "e", {1: np.ones(4, np.float32), 2: np.ones(4, np.float32)})
    index.remove([1, 2])
    assert found(index, "zeppelin") == set()
    assert found(index, "boat") == {3}
    assert index.vectors("image_vectors", [1, 2, 3])[0].tolist() == []
    index.clean()
    index.close()
    data = b"".join(path.read_bytes() for path in index.folder.iterdir())
    assert b"zeppelin" not in data
    assert b"boat" in data


def test_vectors_of_another_encoder_are_dropped(index):
    index.add([image(1), image(2)])
    index.put_vectors("image_vectors", "one", {1: np.ones(4, np.float32)})
    vectors = Vectors(index, "image_vectors")
    vectors.refresh()
    assert vectors.owners.tolist() == [1]
    assert index.missing("image_vectors", 10) == [2]
    index.put_vectors("image_vectors", "two", {2: np.ones(8, np.float32), 3: np.ones(8, np.float32), 1: None})
    vectors.refresh()
    assert index.encoder == "two"
    assert vectors.owners.tolist() == [2]  # 3 is no image, and 1 cannot be encoded
    assert index.missing("image_vectors", 10) == []


def test_a_damaged_file_says_so(index, tmp_path):
    index.add([image(n, f"prompt {n}") for n in range(200)])
    index.close()
    path = index.folder / "index.sqlite3"
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    with pytest.raises(IndexBroken):
        AccountIndex(index.folder)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE meta (name TEXT, value TEXT)")
        other.execute("INSERT INTO meta VALUES ('format', 'of the future')")
    with pytest.raises(IndexBroken, match="another version"):
        AccountIndex(index.folder)


KILLED = """
import sys
from pathlib import Path
from tests.unit.service.test_search_index import image
from limner.service.search.index import AccountIndex
index = AccountIndex(Path(sys.argv[1]))
for start in range(0, 100_000, 50):
    index.add([image(n, f"boat number {n}") for n in range(start, start + 50)])
    print(start + 50, flush=True)
"""


def test_a_killed_writer_leaves_whole_transactions(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "anna")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as running:
        confirmed = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGKILL)
    index = AccountIndex(tmp_path / "anna")
    numbers, _ = index.images()
    assert len(numbers) >= int(confirmed[-1])
    assert len(numbers) % 50 == 0
    assert found(index, "boat") == set(numbers.tolist()) == set(range(len(numbers)))
    index.close()


def clustered(count, width=32, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(50, width))
    vectors = centres[generator.integers(50, size=count)] + 0.3 * generator.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def filled(index, count):
    vectors = clustered(count)
    index.add([image(n, f"p {n}") for n in range(count)])
    index.put_vectors("image_vectors", "e", dict(enumerate(vectors)))
    return vectors


def test_the_nearest_are_found_in_order_and_among_the_allowed(index):
    vectors = filled(index, 300)
    table = Vectors(index, "image_vectors")
    table.refresh()
    allowed = np.arange(0, 300, 2)
    owners, cosines = table.nearest(vectors[10], allowed, 5)
    right = allowed[np.argsort(-(vectors[allowed] @ vectors[10]))[:5]]
    assert owners.tolist() == right.tolist()
    assert owners[0] == 10
    assert cosines[0] == pytest.approx(1.0, abs=2e-3)  # stored as f16
    assert table.nearest(vectors[0], np.zeros(0, np.int64), 5)[0].tolist() == []


def test_a_graph_finds_them_as_well(index):
    pytest.importorskip("usearch", reason="pip install 'limner[memory]'")
    vectors = filled(index, 2000)
    table = Vectors(index, "image_vectors", exact=100)
    table.refresh()
    assert table.needs_graph
    build_graph(index, "image_vectors")
    table.refresh()
    assert not table.needs_graph
    index.remove([7])
    index.add([image(5000)])
    index.put_vectors("image_vectors", "e", {5000: vectors[7]})  # the graph lacks it, and has what is gone
    for opened in (table, Vectors(index, "image_vectors", exact=100)):
        opened.refresh()
        everything = np.array([*range(2000), 5000])
        owners, _ = opened.nearest(vectors[7], everything, 10)
        assert owners[0] == 5000
        assert 7 not in owners
        right = np.argsort(-(vectors @ vectors[7]))[1:10]
        assert len(set(owners.tolist()) & set(right.tolist())) >= 8
        few = np.arange(1000, 1050)
        assert opened.nearest(vectors[7], few, 1)[0] == few[np.argmax(vectors[few] @ vectors[7])]
        wide = np.arange(1000, 1400)
        assert (
            opened.nearest(vectors[7], wide, 3)[0].tolist()
            == wide[np.argsort(-(vectors[wide] @ vectors[7]))][:3].tolist()
        )
    index.put_vectors("image_vectors", "other", {0: vectors[0]})
    table.refresh()
    assert table.nearest(vectors[0], everything, 5)[0].tolist() == [0]
