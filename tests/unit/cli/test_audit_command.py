"""`limner audit` on the ledger of a data folder: what it prints, its exit codes and its errors."""

import json
import re
import sqlite3
from dataclasses import replace
from hashlib import sha256

import pytest

from limner.service.identity import Principal
from limner.service.jobs import Completion, LoggedPrompts, NewJob, StoredImage, Submission

PROMPT = "a zebra at midnight"


@pytest.fixture
def image(ledger, tmp_path):
    """Id of an image that the account anna has made; its file is `picture.png`."""
    (tmp_path / "picture.png").write_bytes(b"the stored file")
    caller = Principal(ledger.create_account("anna"))
    prompts = LoggedPrompts("encrypted", {"prompt": PROMPT})
    ledger.accept(caller, Submission((NewJob({}, "m", 1.0),), {"prompt": PROMPT}, prompts=prompts))
    (claim,) = ledger.claim("host-1/cpu/ab", lease_seconds=60)
    digest = sha256(b"the stored file").hexdigest()
    stored = StoredImage("img_1", claim.job.id, "", "k", digest, "11" * 32, 64, 64, 15, {})
    (tmp_path / "delivered.png").write_bytes(b"with a watermark")
    marked = {"watermark": "0123456789abcdef", "delivered_sha256": sha256(b"with a watermark").hexdigest()}
    stored = replace(stored, **marked)
    assert ledger.finish(claim.job.id, claim.job.fence, Completion(stored, 1.0))
    return "img_1"


def execute(tmp_path, statement):
    with sqlite3.connect(tmp_path / "data" / "ledger.sqlite3") as connection:
        connection.execute(statement)
    connection.close()


def test_entries_are_listed_and_shown(run, image):
    code, out, _ = run("audit", "list")
    assert (code, out.splitlines()[0]) == (0, "entry\tleaf\ttime\tactor\taction\tsubject\tdetails")
    assert [line.split("\t")[4] for line in out.splitlines()[1:]] == [
        "account.created",
        "set.accepted",
        "job.done",
    ]
    _, out, err = run("audit", "list", "--count", "1", "--actor", "anna", "--json")
    assert [row["action"] for row in json.loads(out)] == ["set.accepted"]
    _, _, err = run("audit", "list", "--count", "1")
    assert "--after 1" in err
    _, out, _ = run("audit", "show", image)
    assert "job.done" in out
    code, _, err = run("audit", "show", "img_2")
    assert (code, "the audit log has no entry about img_2" in err, "hint:" in err) == (2, True, True)


def test_reading_prompts_is_an_entry_of_its_own(run, ledger, image):
    made = ledger.list_sets("anna")[0].id
    assert PROMPT not in run("audit", "show", made)[1]
    shown = json.loads(run("audit", "show", made, "--prompts", "--json")[1])
    assert shown["prompts"] == {"prompt": PROMPT}
    assert [(row.actor, row.subject) for row in ledger.audit_log(action="prompts.read")] == [("cli", made)]
    assert "compared\tit is prompt" in run("audit", "show", made, "--compare", PROMPT)[1]
    assert "compared\tanother prompt" in run("audit", "show", made, "--compare", "a boat")[1]
    code, _, err = run("audit", "show", image, "--compare", PROMPT)
    assert (code, "has no prompts" in err) == (2, True)
    code, _, err = run("audit", "show", image, "--prompts")
    assert (code, "has no prompts" in err, "prompt_log" in err) == (2, True, True)


def test_a_proof_holds_anywhere_and_not_for_another_picture(run, image, tmp_path, monkeypatch):
    code, out, _ = run("audit", "prove", image, "--out", "proof.json")
    assert (code, out) == (0, "proof.json\n")
    document = json.loads((tmp_path / "proof.json").read_text())
    assert json.loads(run("audit", "prove", image)[1])["entry"] == document["entry"]
    key = run("audit", "key")[1].strip()
    monkeypatch.setenv("LIMNER_DATA", str(tmp_path / "elsewhere"))  # without the ledger
    code, out, err = run("audit", "verify", "proof.json", "--picture", "picture.png")
    assert (code, "proof.json: holds: entry" in out, key in err) == (0, True, True)
    assert run("audit", "verify", "proof.json", "--picture", "delivered.png")[0] == 0
    assert document["entry"]["details"]["watermark"] == "0123456789abcdef"
    code, out, err = run("audit", "verify", "proof.json", "--key", key)
    assert (code, err) == (0, "")
    (tmp_path / "other.png").write_bytes(b"another file")
    code, _, err = run("audit", "verify", "proof.json", "--picture", "other.png")
    assert (code, "the proof is not of other.png" in err) == (2, True)
    document["entry"]["details"]["sha256"] = "00" * 32
    (tmp_path / "proof.json").write_text(json.dumps(document))
    code, _, err = run("audit", "verify", "proof.json")
    assert (code, "the proof does not hold" in err) == (2, True)
    code, _, err = run("audit", "verify", "nothing.json")
    assert (code, "nothing.json" in err) == (2, True)


def test_the_log_is_verified_and_tampering_has_an_exit_code(run, image, tmp_path):
    assert run("audit", "checkpoint")[0] == 0
    code, out, _ = run("audit", "verify")
    assert code == 0
    assert re.search(r"whole: \d+ entries, 1 checkpoints\n", out)
    execute(tmp_path, "UPDATE audit_leaves SET subject = 'another' WHERE leaf = 1")
    code, out, _ = run("audit", "verify")
    assert (code, "leaf 1 was changed: entry 2, set.accepted" in out) == (1, True)


def test_any_checkpoint_is_compared_with_the_log(run, ledger, image, tmp_path):
    early = run("audit", "checkpoint")[1]
    (tmp_path / "early.txt").write_text(early)
    for number in range(5):
        ledger.audit("cli", "test.done", f"thing {number}")
    (tmp_path / "late.txt").write_text(run("audit", "checkpoint")[1])
    code, out, _ = run("audit", "verify", "early.txt", "late.txt")
    assert (code, "whole" in out) == (0, True)
    document = json.loads(run("audit", "checkpoint", "--since", "early.txt")[1])
    (tmp_path / "goes-on.json").write_text(json.dumps(document, indent=2))
    code, out, _ = run("audit", "verify", "goes-on.json")
    assert (code, "goes on in" in out) == (0, True)
    # The end of the log is cut off, with its checkpoint: only the copy tells.
    size = int(early.split("\n")[1])
    execute(tmp_path, f"DELETE FROM audit_leaves WHERE leaf >= {size}")
    execute(tmp_path, f"DELETE FROM audit_checkpoints WHERE size > {size}")
    execute(tmp_path, f"UPDATE counters SET value = {size} WHERE name = 'audit'")
    assert run("audit", "verify")[0] == 0
    code, out, _ = run("audit", "verify", "late.txt")
    assert (code, "the last ones are missing" in out) == (1, True)
    (tmp_path / "late.txt").write_text(early.replace(f"\n{size}\n", f"\n{size + 1}\n"))
    code, _, err = run("audit", "verify", "late.txt")
    assert (code, "late.txt: the signature of" in err) == (2, True)


def test_an_exported_log_is_verified_by_itself(run, image, tmp_path, monkeypatch):
    run("audit", "checkpoint")
    assert run("audit", "export") == (0, "audit.jsonl\n", "note: 4 entries\n")
    path = tmp_path / "audit.jsonl"
    text = path.read_text()
    assert "anna" not in text
    assert PROMPT not in text
    monkeypatch.setenv("LIMNER_DATA", str(tmp_path / "elsewhere"))
    code, out, _ = run("audit", "verify", "audit.jsonl")
    assert (code, out) == (0, "audit.jsonl: whole: 4 entries, 1 checkpoints\n")
    lines = text.splitlines(keepends=True)
    for changed in (lines[:-2] + lines[-1:], lines[:-1], [*lines[:-2], lines[-1], lines[-2]]):
        path.write_text("".join(changed))
        assert run("audit", "verify", "audit.jsonl")[0] == 1
    path.write_text(text.replace("job.done", "job.fine"))
    assert run("audit", "verify", "audit.jsonl")[0] == 1
    path.write_text(lines[0] + "nonsense\n")
    code, _, err = run("audit", "verify", "audit.jsonl")
    assert (code, "is no exported log" in err) == (2, True)


def test_a_lost_key_is_told_and_replaced(run, image, tmp_path):
    first = run("audit", "key")[1]
    run("audit", "checkpoint")
    (tmp_path / "data" / "keys" / "audit.key").unlink()
    code, _, err = run("audit", "verify")
    assert (code, "is missing" in err, "limner audit key --new" in err) == (2, True, True)
    code, out, err = run("audit", "key", "--new")
    assert (code, out.startswith(first), "start the service again" in err) == (0, True, True)
    assert run("audit", "verify")[0] == 0
    code, _, err = run("audit", "verify", "--key", "nonsense")
    assert (code, "no public key" in err) == (2, True)
