"""The service's folder and its lock."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limner.errors import OutputError
from limner.service.data_folder import FOLDERS, claimed, prepare


def test_all_folders_are_made_and_secrets_are_the_owners_own(tmp_path):
    with claimed(tmp_path / "a" / "data"):
        made = tmp_path / "a" / "data"
        assert {name for name in FOLDERS if (made / name).is_dir()} == set(FOLDERS)
        assert (made / "keys").stat().st_mode & 0o077 == 0
        assert (made / "run").stat().st_mode & 0o077 == 0
    prepare(made)  # again


def test_a_new_folder_is_the_owners_own(tmp_path):
    data = tmp_path / "data"
    with claimed(data):
        assert data.stat().st_mode & 0o077 == 0, "others could read prompts and images"


def test_one_server_at_a_time_uses_it(tmp_path):
    with claimed(tmp_path):
        with pytest.raises(OutputError, match=rf"another server \(pid {os.getpid()}\) uses") as caught:
            claimed(tmp_path).__enter__()
        assert "`data`" in caught.value.hint
    with claimed(tmp_path):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    program = "import sys, time\nfrom pathlib import Path\nfrom limner.service.data_folder import claimed\n"
    program += "with claimed(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match=f"pid {holder.pid}"):
        claimed(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may write"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_says_why(code, hint, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        prepare(tmp_path / "data")
    assert hint in caught.value.hint


def test_a_file_in_its_place_is_told(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        claimed(tmp_path / "data").__enter__()


def test_a_disk_that_is_full_when_the_lock_is_written_is_told(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        claimed(tmp_path).__enter__()
    assert "free some space" in caught.value.hint
