"""File stamps and the cache of values read from files; files and folders written whole, under free names."""

import math
import os
import threading
from pathlib import Path

import pytest

from limner.errors import InvalidCheckpoint, OutputError
from limner.files import (
    FileStamp,
    StampCache,
    free_numbers,
    numbered,
    only_writer,
    read_json,
    walk_folder,
    whole_file,
    whole_folder,
    write_first_free,
)
from tests.waiting import DEADLINE


def test_stamp_changes_with_size_time_and_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    first = FileStamp.of(file)
    assert FileStamp.of(file) == first
    os.utime(file, ns=(0, first.mtime_ns + 1))
    assert FileStamp.of(file) != first
    file.write_text("longer")
    os.utime(file, ns=(0, first.mtime_ns))
    assert FileStamp.of(file) != first
    other = tmp_path / "b"
    other.write_text("two")
    os.utime(other, ns=(0, first.mtime_ns))
    os.replace(other, file)  # same size and time, another file
    assert FileStamp.of(file) != first


def test_stamp_of_a_folder_covers_its_files(tmp_path: Path) -> None:
    empty = FileStamp.of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    first = FileStamp.of(tmp_path)
    assert first != empty
    assert first.size == 2
    os.utime(tmp_path / "config.json", ns=(0, first.mtime_ns + 5))
    assert FileStamp.of(tmp_path).mtime_ns == first.mtime_ns + 5
    with pytest.raises(FileNotFoundError):
        FileStamp.of(tmp_path / "none")


def test_cache_reads_again_only_what_changed_and_drops_the_least_recently_used(tmp_path: Path) -> None:
    read: list[str] = []

    def content(path: Path) -> str:
        read.append(path.name)
        return path.read_text()

    cache = StampCache(content, max_entries=2)
    for name in "abc":
        (tmp_path / name).write_text(name)
    for name in "abacab":  # c drops b, and b is read again
        assert cache.get(tmp_path / name) == name
    assert read == ["a", "b", "c", "b"]
    (tmp_path / "a").write_text("changed")
    assert cache.get(tmp_path / "a") == "changed"


def test_threads_that_read_at_once_share_one_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    barrier = threading.Barrier(2)

    def read(path: Path) -> list[str]:
        barrier.wait(timeout=DEADLINE)
        return [path.read_text()]

    cache: StampCache[list[str]] = StampCache(read)
    values: list[list[str]] = []
    threads = [threading.Thread(target=lambda: values.append(cache.get(tmp_path / "a"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values[0] is values[1]


def together(number, work):
    """Run `work` in so many threads at once."""
    barrier = threading.Barrier(number)

    def run(index):
        barrier.wait()
        work(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")  # as FAT has it


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_files_written_at_once_take_names_of_their_own(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    paths = []
    together(
        8,
        lambda index: paths.append(
            write_first_free((tmp_path / f"{n:05d}-1.png" for n in free_numbers(tmp_path)), b"%d" % index)
        ),
    )
    assert sorted(path.name for path in paths) == sorted(os.listdir(tmp_path))
    assert sorted(path.read_bytes() for path in paths) == [b"%d" % index for index in range(8)]


def test_processes_take_names_of_their_own(tmp_path):
    children = []
    for index in range(8):
        if (child := os.fork()) == 0:
            write_first_free(numbered(tmp_path / "a.png"), b"%d" % index)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"%d" % index for index in range(8)]


def test_numbers_go_on_after_the_largest(tmp_path):
    for name in ("00007-3.png", "100000-3.png", "9-3.png", "00123.png", "notes"):
        (tmp_path / name).touch()
    assert next(free_numbers(tmp_path)) == 100_001


def test_a_broken_link_is_a_name_that_is_taken(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    assert write_first_free(numbered(tmp_path / "a.png"), b"") == tmp_path / "a-2.png"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_first_free(numbered(tmp_path / "missing" / "a.png"), b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "a"

    def write():
        with whole_file(path, overwrite=False) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        write()
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_filled_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "a"

    def write():
        with whole_folder(path, overwrite=False):
            path.mkdir()
            (path / "theirs").touch()

    with pytest.raises(OutputError, match="is not empty"):
        write()
    assert os.listdir(path) == ["theirs"]
    assert os.listdir(tmp_path) == ["a"]


def test_folders_written_over_each_other_at_once_leave_one_whole(tmp_path):
    path = tmp_path / "a"

    def write(index):
        with whole_folder(path, overwrite=True) as temporary:
            for part in ("x", "y"):
                (temporary / part).write_text(str(index))

    together(8, write)
    assert os.listdir(tmp_path) == ["a"]
    assert (path / "x").read_text() == (path / "y").read_text()


def test_one_process_at_a_time_is_the_writer(tmp_path):
    lock = tmp_path / "lock"
    other = pytest.raises(OutputError, match="another batch is writing")
    with only_writer(lock, "batch"), other, only_writer(lock, "batch"):
        pass
    with only_writer(lock, "batch"):
        pass


def test_a_walk_follows_links_and_lists_each_folder_once(tmp_path: Path) -> None:
    top, disk = tmp_path / "top", tmp_path / "disk"
    for file in ("top/a", "top/deep/b", "disk/c", "top/.hidden/d", "top/.e"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (top / "linked").symlink_to(disk)
    (top / "again").symlink_to(disk)
    (top / "back").symlink_to(top)
    (disk / "back").symlink_to(top)
    (top / "alias").symlink_to(top / "deep")  # before it by name, but a link
    (top / "nowhere").symlink_to(tmp_path / "gone")
    (top / "self").symlink_to(top / "self")
    (top / "f").symlink_to(disk / "c")
    found = {at.relative_to(top).as_posix(): [file.name for file in files] for at, files in walk_folder(top)}
    assert found == {".": ["a", "f"], "deep": ["b"], "again": ["c"]}
    assert walk_folder(tmp_path / "gone") == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a": -Infinity, "b": Infinity}', {"a": -math.inf, "b": math.inf}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_json_is_read_as_python_reads_it(tmp_path: Path, raw: bytes, expected: dict[str, float]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    assert read_json(path) == expected


def test_json_with_nan_or_comments(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": NaN}')
    assert math.isnan(read_json(path)["a"])
    path.write_bytes(b'{"a": 1} // one')
    with pytest.raises(InvalidCheckpoint, match="is not valid JSON"):
        read_json(path)
