"""What the intake keeps of checkpoints."""

from pathlib import Path
from types import SimpleNamespace

from limner.files import FileStamp
from limner.service import intake


def test_the_facts_are_those_of_the_checkpoint_as_it_is_now(monkeypatch):
    def entry(path, changed):
        return SimpleNamespace(id="checkpoint:m", path=Path(path), stamp=FileStamp(Path(path), 1, changed, 1))

    read = []
    monkeypatch.setattr(intake, "model_facts", lambda entry: read.append(entry.path) or f"of {entry.path}")
    one = object.__new__(intake.Intake)
    one._facts = {}
    assert [one.facts(entry("/old", 1)) for _ in range(2)] == ["of /old"] * 2
    assert [one.facts(entry("/new", 2)) for _ in range(2)] == ["of /new"] * 2
    assert one.facts(entry("/new", 3)) == "of /new"
    assert read == [Path("/old"), Path("/new"), Path("/new")]
