"""Pictures to train on: folders, the world, and the caches of both."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from limner.errors import InvalidDataset
from limner.picturebook.world import World, is_held_out
from limner.training.cache import Cache, CachedPictures, drawn
from limner.training.data import Preprocessed, WorldPictures, digest, seed_of
from limner.training.folders import FolderControls, FolderPictures


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
        ("", "holds no captioned images"),
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
    with pytest.raises(InvalidDataset, match="holds no captioned images"):
        FolderPictures(tmp_path, size=4)
    picture(tmp_path / "a.png")
    with pytest.raises(InvalidDataset, match=r"a\.png has no caption: a\.txt is missing"):
        FolderPictures(tmp_path, size=4)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InvalidDataset, match=r"a\.png cannot be read as an image"):
        FolderPictures(tmp_path, size=4).pixels(0)


def test_captions_that_are_no_text_are_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidDataset, match=r"a\.txt cannot be read as UTF-8 text"):
        FolderPictures(tmp_path, size=4)
    (tmp_path / "a.txt").write_bytes("\ufeffa café".encode())
    assert said(FolderPictures(tmp_path, size=4)) == "a café"


def captioned(folder, name, colour, text="a colour", **saved):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(folder / name, **saved)
    (folder / name).with_suffix(".txt").write_text(text)


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    sideways = Image.new("RGB", (8, 16), (255, 0, 0))
    sideways.paste((0, 0, 255), (0, 8, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left by 90 degrees: its top is the picture's right
    sideways.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("blue left of red")
    pixels = FolderPictures(tmp_path, size=8).pixels(0)
    assert pixels[4, 0].tolist() == [0, 0, 255]
    assert pixels[4, 7].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.info["transparency"] = 0
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(mode).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("nothing")
    assert FolderPictures(tmp_path, size=8).pixels(0).min() == 255


def test_pictures_of_sixteen_bits_keep_their_tones(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a ramp")
    tones = FolderPictures(tmp_path, size=8).pixels(0)[..., 0].ravel()
    np.testing.assert_allclose(tones, ramp.ravel() / 257, atol=1)


def test_an_added_picture_leaves_the_others_their_cached_rows(tmp_path):
    captioned(tmp_path / "data", "b.png", (200, 200, 200))
    captioned(tmp_path / "data", "c.png", (10, 10, 10))
    before = CachedPictures(FolderPictures(tmp_path / "data", size=8), tmp_path / "cache")
    assert [before.pixels(i)[0, 0, 0] for i in range(2)] == [200, 10]
    captioned(tmp_path / "data", "a.png", (90, 90, 90))
    after = CachedPictures(FolderPictures(tmp_path / "data", size=8), tmp_path / "cache")
    assert [after.pixels(i)[0, 0, 0] for i in range(3)] == [90, 200, 10]


def test_a_changed_picture_gets_a_new_row(tmp_path):
    captioned(tmp_path / "data", "a.png", (200, 200, 200))
    first = FolderPictures(tmp_path / "data", size=8)
    assert CachedPictures(first, tmp_path / "cache").pixels(0)[0, 0, 0] == 200
    captioned(tmp_path / "data", "a.png", (90, 90, 90))
    second = FolderPictures(tmp_path / "data", size=8)
    assert CachedPictures(second, tmp_path / "cache").pixels(0)[0, 0, 0] == 90
    assert first.identity != second.identity


def test_a_changed_caption_is_another_data_set_with_the_same_rows(tmp_path):
    captioned(tmp_path, "a.png", (1, 2, 3), "a")
    first = FolderPictures(tmp_path, size=8)
    captioned(tmp_path, "a.png", (1, 2, 3), "b")
    second = FolderPictures(tmp_path, size=8)
    assert first.identity != second.identity
    assert first.key(0) == second.key(0)


def test_a_moved_folder_is_the_same_data_set(tmp_path):
    captioned(tmp_path / "one", "a.png", (1, 2, 3))
    first = FolderPictures(tmp_path / "one", size=8)
    (tmp_path / "one").rename(tmp_path / "two")
    second = FolderPictures(tmp_path / "two", size=8)
    assert first.identity == second.identity
    assert first.key(0) == second.key(0)


def test_a_changed_control_picture_gets_a_new_row(tmp_path):
    captioned(tmp_path / "data", "a.png", (1, 2, 3))
    pictures = FolderPictures(tmp_path / "data", size=8)
    captioned(tmp_path / "controls", "a.png", (50, 50, 50))
    first = FolderControls(tmp_path / "controls", pictures)
    captioned(tmp_path / "controls", "a.png", (60, 60, 60))
    second = FolderControls(tmp_path / "controls", pictures)
    assert first.key(0) != second.key(0)
    assert first.identity != second.identity
    canny, scribble = Preprocessed(pictures, "canny"), Preprocessed(pictures, "scribble")
    assert len({pictures.key(0), canny.key(0), scribble.key(0)}) == 3


def folder_of(tmp_path, count):
    for number in range(count):
        captioned(tmp_path, f"{number:03}.png", (number, 255 - number, 0), str(number))
    return FolderPictures(tmp_path, size=8)


def captions_of(pictures):
    return {said(pictures, index) for index in range(len(pictures))}


def test_validation_sees_what_training_does_not(tmp_path):
    train, fresh = folder_of(tmp_path, 100).split()
    assert not captions_of(train) & captions_of(fresh)
    assert captions_of(train) | captions_of(fresh) == set(map(str, range(100)))
    assert 3 <= len(fresh) <= 20  # about a tenth
    for index in range(len(fresh)):
        number = int(said(fresh, index))
        assert fresh.pixels(index)[0, 0].tolist() == [number, 255 - number, 0]


def test_pictures_keep_their_side_when_others_are_added(tmp_path):
    train, fresh = folder_of(tmp_path, 60).split()
    more_train, more_fresh = folder_of(tmp_path, 120).split()
    assert captions_of(train) <= captions_of(more_train)
    assert captions_of(fresh) <= captions_of(more_fresh)


def test_copies_of_a_picture_stay_on_one_side(tmp_path):
    for name in ("a", "b", "c"):
        captioned(tmp_path, f"{name}.png", (9, 9, 9), "copy")
    captioned(tmp_path, "d.png", (1, 2, 3), "other")
    train, fresh = FolderPictures(tmp_path, size=8).split()
    assert sorted([captions_of(train).pop(), captions_of(fresh).pop()]) == ["copy", "other"]


def test_one_picture_cannot_be_split(tmp_path, caplog):
    captioned(tmp_path, "a.png", (9, 9, 9))
    pictures = FolderPictures(tmp_path, size=8)
    with caplog.at_level("WARNING", "limner.training"):
        assert pictures.split() == (pictures, pictures)
    [warning] = caplog.messages
    assert "too few images to hold any out" in warning


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


def rows_of(tmp_path, keys, identity=None, made=None):
    """A cache of rows that hold their key's number twice; `made` collects what had to be made."""

    def fill(blocks):
        for block in blocks:
            if made is not None:
                made.extend(keys[index] for index in block)
            yield np.array([[keys[index], keys[index]] for index in block], np.int32)

    digests = [digest(key) for key in keys]
    return Cache(tmp_path / "x.i32", identity or {"v": 1}, digests, (2,), np.int32, fill)


def test_a_cache_is_made_once_and_grows(tmp_path):
    made = []
    first = rows_of(tmp_path, list(range(300)), made=made)
    assert (len(first), first[299].tolist(), made) == (300, [299, 299], list(range(300)))
    again, more = [], []
    rows_of(tmp_path, list(range(300)), made=again)
    rows_of(tmp_path, list(range(400)), made=more)
    assert (again, more) == ([], list(range(300, 400)))


def test_a_cache_finds_rows_by_content_whatever_their_place(tmp_path):
    rows_of(tmp_path, [10, 20, 30])
    made = []
    rows = rows_of(tmp_path, [5, 30, 10, 21, 10], made=made)
    assert made == [5, 21]
    assert [row.tolist() for row in rows[[0, 1, 2, 3, 4]]] == [[n, n] for n in (5, 30, 10, 21, 10)]


@pytest.mark.parametrize(("file", "size"), [("x.i32", 290 * 8 + 3), ("x.keys", 290 * 32 + 7)])
def test_a_torn_cache_is_completed(tmp_path, file, size):
    rows_of(tmp_path, list(range(300)))
    with (tmp_path / file).open("r+b") as opened:
        opened.truncate(size)
    made = []
    rows = rows_of(tmp_path, list(range(300)), made=made)
    assert made == list(range(290, 300))
    assert rows[list(range(300))][:, 0].tolist() == list(range(300))


def test_a_cache_of_something_else_starts_over(tmp_path):
    rows_of(tmp_path, [1, 2, 3])
    made = []
    assert len(rows_of(tmp_path, [2], {"v": 2}, made)) == 1
    assert made == [2]


def test_pictures_of_another_world_have_other_keys():
    """Captions and the number of pictures do not change their pixels, nor their keys."""

    def keys(**more):
        pictures = WorldPictures(**{"count": 9, "size": 32, "seed": 3, **more})
        return [pictures.key(index) for index in range(9)]

    assert len(set(keys())) == 9
    assert keys() == keys(count=20) == keys(says_style=False)
    for other in ({"size": 64}, {"seed": 4}, {"split": "fresh"}, {"world": World(styles=("pixel",))}):
        assert not set(keys()) & set(keys(**other))


def test_cached_pictures_are_the_pictures(squares, tmp_path):
    cached = CachedPictures(squares, tmp_path)
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
