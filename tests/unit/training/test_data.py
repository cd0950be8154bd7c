"""Pictures to train on: folders, the world, and the caches of both."""

import json
import random
from functools import partial

import numpy as np
import pytest
from PIL import Image

from limner.errors import InvalidDataset
from limner.picturebook.world import World, is_held_out
from limner.training.data import (
    Cache,
    CachedPictures,
    FolderPictures,
    WorldPictures,
    drawn,
    seed_of,
)


def picture(path, size=(8, 8), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def said(pictures, index=0):
    return pictures.caption(index, random.Random(0))


def test_a_folder_with_metadata(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "in" / "a.png", colour=(0, 0, 255))
    lines = [{"file_name": "in/a.png", "text": "blue"}, {"file_name": "b.png", "text": "red", "more": 1}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    pictures = FolderPictures(tmp_path, size=4)
    assert [said(pictures, i) for i in range(len(pictures))] == ["red", "blue"]
    assert pictures.pixels(1).tolist() == [[[0, 0, 255]] * 4] * 4


def test_a_folder_with_texts_beside(tmp_path):
    picture(tmp_path / "cat.JPG")
    (tmp_path / "cat.txt").write_text(" a cat\n")
    (tmp_path / "notes.md").write_text("not a picture")
    assert said(FolderPictures(tmp_path, size=4)) == "a cat"


def test_the_shorter_side_is_scaled_and_the_centre_kept(tmp_path):
    wide = Image.new("RGB", (32, 8), (0, 0, 0))
    wide.paste((255, 255, 255), (12, 0, 20, 8))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("a bar")
    assert FolderPictures(tmp_path, size=8).pixels(0).min() == 255
    assert FolderPictures(tmp_path, size=16).pixels(0).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", r"metadata\.jsonl, line 1"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png"}', r"line 2: .*text"),
        ('{"file_name": "a.png", "text": 3}', r"line 1: text is 3, expected a string"),
        ('{"file_name": "gone.png", "text": "x"}', r"gone\.png does not exist"),
        ("", "holds no captioned pictures"),
        ("[1]", "line 1"),
    ],
)
def test_bad_metadata_is_named(tmp_path, metadata, message):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(metadata)
    with pytest.raises(InvalidDataset, match=message):
        FolderPictures(tmp_path, size=4)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InvalidDataset, match=r"gone is not a folder"):
        FolderPictures(tmp_path / "gone", size=4)
    with pytest.raises(InvalidDataset, match="holds no captioned pictures"):
        FolderPictures(tmp_path, size=4)
    picture(tmp_path / "a.png")
    with pytest.raises(InvalidDataset, match=r"a\.png has no caption: a\.txt is missing"):
        FolderPictures(tmp_path, size=4)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InvalidDataset, match=r"a\.png cannot be read as a picture"):
        FolderPictures(tmp_path, size=4).pixels(0)


def test_world_pictures_are_functions_of_their_index():
    first, second = WorldPictures(8, size=32, seed=3), WorldPictures(8, size=32, seed=3)
    assert first.identity == second.identity
    np.testing.assert_array_equal(first.pixels(5), second.pixels(5))
    assert first.caption(5, random.Random(1)) == second.caption(5, random.Random(1))
    assert first.scene(5) != WorldPictures(8, size=32, seed=4).scene(5)
    assert first.scene(5) != WorldPictures(8, size=32, seed=3, split="fresh").scene(5)
    assert first.caption(5, random.Random(1)) not in first.false_captions(5, random.Random(1))


def test_world_pictures_whose_captions_leave_out_the_style():
    world = World(styles=("pixel",))
    said, unsaid = (WorldPictures(8, size=32, world=world, says_style=says) for says in (True, False))
    assert unsaid.identity == {**said.identity, "says_style": False}
    for index in range(8):
        np.testing.assert_array_equal(said.pixels(index), unsaid.pixels(index))
        assert "pixel" in said.caption(index, random.Random(1))
        rng = random.Random(1)
        captions = [unsaid.caption(index, rng), *unsaid.false_captions(index, rng)]
        assert not any("pixel" in caption for caption in captions)


@pytest.mark.parametrize("split", ["train", "fresh", "held_out"])
def test_only_the_held_out_split_shows_what_is_held_out(split):
    pictures = WorldPictures(50, size=32, split=split)
    assert {is_held_out(pictures.scene(i)) for i in range(50)} == {split == "held_out"}


def counting(calls, blocks):
    for block in blocks:
        calls.append(block)
        yield np.arange(block.start, block.stop, dtype=np.int32)[:, None] * [1, 10]


def test_a_cache_is_made_once_grows_and_resumes(tmp_path):
    def rows(count, identity, calls):
        return Cache(tmp_path / "x.i32", identity, count, (2,), np.int32, partial(counting, calls)).rows

    first, again, more, torn, other = [], [], [], [], []
    assert rows(300, {"v": 1}, first)[299].tolist() == [299, 2990]
    assert first == [range(256), range(256, 300)]
    rows(300, {"v": 1}, again)
    assert again == []
    assert rows(400, {"v": 1}, more).shape == (400, 2)
    assert more == [range(300, 400)]
    with (tmp_path / "x.i32").open("r+b") as file:
        file.truncate(390 * 8 + 3)
    assert rows(400, {"v": 1}, torn)[395].tolist() == [395, 3950]
    assert torn == [range(390, 400)]
    rows(2, {"v": 2}, other)
    assert other == [range(2)]


def test_cached_pictures_are_the_pictures(squares, tmp_path):
    cached = CachedPictures(squares, 16, tmp_path)
    for index in range(len(squares)):
        np.testing.assert_array_equal(cached.pixels(index), squares.pixels(index))
    assert said(cached) == said(squares)


def test_other_processes_draw_the_same_in_order():
    pictures = WorldPictures(20, size=32)
    blocks = [range(12), range(12, 20)]
    for block, rows in zip(blocks, drawn(pictures, blocks), strict=True):
        np.testing.assert_array_equal(rows, np.stack([pictures.pixels(i) for i in block]))


def test_seeds_differ_and_stay():
    seeds = {seed_of(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 1) == seed_of(0, 1) != seed_of(1, 0)
