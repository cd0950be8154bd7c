"""The audit log in the ledger: leaves, checkpoints, proofs, what tampering leaves behind, and erasure."""

import json
import signal
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import event, text

from limner.errors import InvalidRequest, NotFound
from limner.service.audit.canonical import canonical
from limner.service.audit.checking import check_ledger
from limner.service.audit.merkle import leaf_hash, root_of
from limner.service.audit.notes import open_checkpoint
from limner.service.audit.proofs import check_document
from limner.service.audit.sequencer import AuditLog, Sequencer
from limner.service.identity import Principal
from limner.service.jobs import Completion, LoggedPrompts, NewJob, Submission
from limner.service.ledger import auditing
from limner.service.ledger.ledger import Ledger
from limner.settings.serve import ServeSettings
from tests.concurrency import at_once
from tests.waiting import DEADLINE, until


@pytest.fixture
def settings(tmp_path):
    return ServeSettings(data=tmp_path / "data")


@pytest.fixture
def log(ledger, settings):
    return AuditLog(ledger, settings)


def checked(ledger):
    """The result of checking the whole log."""
    return check_ledger(ledger, ledger.audit_signers())


def write(ledger, count, action="test.done"):
    for number in range(count):
        ledger.audit("cli", action, f"thing {number}", number=number)


def entry_of(ledger, leaf):
    """The number of the entry that a leaf is, as text: PostgreSQL's go on from test to test."""
    return str(ledger.audit_leaf(leaf).entry["id"])


def change(ledger, *statements):
    with ledger._db.write() as tx:
        for statement in statements:
            tx.execute(text(statement))


# -- leaves and checkpoints --


def test_entries_become_leaves_in_order_and_are_signed(ledger, log):
    write(ledger, 7)
    assert [row.leaf for row in ledger.audit_log()] == [None] * 8
    assert log.sequence() == 8
    assert log.sequence() == 0
    rows = ledger.audit_log()
    assert [row.action for row in rows] == ["audit.key_made", *["test.done"] * 7]
    assert [row.leaf for row in rows] == list(range(8))
    leaves = list(ledger.audit_leaves())
    assert [leaf.entry["details"].get("number") for leaf in leaves] == [None, *range(7)]
    point = open_checkpoint(ledger.checkpoint(), [log.key])
    assert (point.origin, point.size) == (log.key.name, 8)
    assert point.root == root_of([leaf_hash(canonical(leaf.entry)) for leaf in leaves])
    assert checked(ledger) == replace(checked(ledger), size=8, checkpoints=1, faults=(), signed=8)


def test_a_job_leaves_an_entry_for_each_decision(ledger, log, submit, stored, anna):
    made = submit(anna)
    (claim,) = ledger.claim("host-1/cpu/ab", lease_seconds=60)
    ledger.finish(claim.job.id, claim.job.fence, Completion(stored(claim.job.id), 1.0))
    image = ledger.get_job(claim.job.id).image.id
    key, _ = ledger.create_key("anna")
    ledger.revoke_key(key.id)
    ledger.update_account("anna", policy={"max_steps": 3})
    ledger.mark_images([image], account_id="anna", deleted=True)
    ledger.delete_image(image, account_id="anna")
    log.sequence()
    told = {row.action: row for row in ledger.audit_log()}
    assert told.keys() >= {"account.created", "set.accepted", "job.done", "key.created", "key.revoked"}
    assert told.keys() >= {"account.updated", "images.deleted", "image.deleted"}
    assert (told["set.accepted"].actor, told["set.accepted"].subject) == ("anna", made.id)
    assert told["job.done"].details["image"] == image
    assert told["job.done"].details["pixels_sha256"] == "11" * 32
    assert told["key.created"].details["account"] == told["account.created"].subject == "anna"
    assert told["account.updated"].details == {"policy": {"max_steps": 3}}
    assert told["images.deleted"].details == {"images": [image]}
    assert checked(ledger).faults == ()


def test_batches_continue_each_other_and_nodes_are_stored(ledger, log):
    with ledger._db.write() as tx:
        for number in range(700):
            ledger._audit(tx, 5.0, "cli", "test.done", f"thing {number}", number=number)
    other = Ledger.open(ledger._db.engine.url.render_as_string(hide_password=False))
    try:
        while AuditLog(other, log._settings).sequence() or log.sequence():  # from two processes
            pass
        assert ledger.audit_nodes().keys() == {(8, 0), (8, 1)}
        assert checked(other).faults == ()
        assert [leaf.number for leaf in other.audit_leaves()] == list(range(701))
        for leaf in (0, 255, 256, 511, 600, 700):
            document = log.prove(entry_of(ledger, leaf))
            assert check_document(json.dumps(document), [log.key]).leaf == leaf
    finally:
        other.close()


def test_checkpoints_are_kept_a_minute_apart_and_the_newest_always(ledger, log, monkeypatch):
    for _ in range(5):
        write(ledger, 2)
        log.sequence()
    assert [size for size, _ in ledger.checkpoints()] == [3, 11]
    monkeypatch.setattr(auditing, "KEEP_SECONDS", 0.0)
    for _ in range(2):
        write(ledger, 2)
        log.sequence()
    assert [size for size, _ in ledger.checkpoints()] == [3, 11, 13, 15]
    assert ledger.checkpoint(beyond=14) is not None
    assert ledger.checkpoint(beyond=15) is None
    assert checked(ledger).checkpoints == 4


def test_an_entry_that_json_cannot_hold_does_not_stop_the_log(ledger, log, submit, anna):
    ledger.audit("cli", "test.done", "thing", large=10**30, text="\ud800", many={"x": [2**60 + 1]})
    ledger.audit("cli", "test.done", "thing", fine=True)
    assert log.sequence() == 4
    assert checked(ledger).faults == ()


# -- the key --


def test_the_key_is_made_once_for_the_owner_alone(ledger, log, settings):
    path = settings.data / "keys" / "audit.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert AuditLog(ledger, settings).key == log.key
    assert [row.action for row in ledger.audit_log()] == ["audit.key_made"]


def test_a_lost_key_is_told_with_the_way_out(ledger, log, settings):
    write(ledger, 3)
    log.sequence()
    before = ledger.checkpoint()
    path = settings.data / "keys" / "audit.key"
    path.unlink()
    with pytest.raises(InvalidRequest, match=r"key of the audit log .* is missing") as caught:
        AuditLog(ledger, settings)
    assert "limner audit key --new" in caught.value.hint
    path.write_text("00" * 32)
    with pytest.raises(InvalidRequest, match="is not the one that the audit log was signed with last"):
        AuditLog(ledger, settings)
    path.write_text("a password")
    with pytest.raises(InvalidRequest, match="holds no key of the audit log"):
        AuditLog(ledger, settings)
    new = AuditLog.with_new_key(ledger, settings, actor="cli")
    assert new.key.name == log.key.name
    write(ledger, 3)
    new.sequence()
    assert ledger.audit_signers() == [log.key, new.key]
    assert checked(ledger).faults == ()
    assert open_checkpoint(before, [log.key]).size == 4
    assert open_checkpoint(ledger.checkpoint(), [new.key]).size == 8
    assert check_document(json.dumps(new.prove(entry_of(ledger, 1)))).key == new.key


# -- proofs --


def test_an_image_is_proved_without_showing_others(ledger, log, submit, stored, anna, bert):
    images = []
    for who in (anna, bert, anna):
        submit(who)
        (claim,) = ledger.claim("host-1/cpu/ab", lease_seconds=60)
        ledger.finish(claim.job.id, claim.job.fence, Completion(stored(claim.job.id), 1.0))
        images.append((claim.job.id, f"img_{claim.job.id}_1"))
    job, image = images[1]
    document = json.dumps(log.prove(image))
    found = check_document(document, [log.key])
    assert (found.entry["action"], found.entry["subject"]) == ("job.done", job)
    assert found.entry["details"]["sha256"] == "00" * 32
    assert found.checkpoint.size == ledger.audit_size()
    for other, its_image in (images[0], images[2]):
        assert other not in document
        assert its_image not in document
    assert "anna" not in document
    assert "bert" not in document
    assert check_document(json.dumps(log.prove(job))).entry == found.entry
    ledger.delete_image(image)
    assert check_document(json.dumps(log.prove(image))).entry == found.entry
    with pytest.raises(NotFound, match="no entry about img_nothing") as caught:
        log.prove("img_nothing")
    assert "limner audit list" in caught.value.hint


def test_a_proof_that_was_changed_does_not_hold(ledger, log):
    write(ledger, 20)
    log.sequence()
    document = log.prove(entry_of(ledger, 6))
    assert check_document(json.dumps(document), [log.key]).leaf == 6

    def changed(**values):
        return json.dumps({**document, **values})

    entry = {**document["entry"], "subject": "another"}
    for wrong in (
        changed(entry=entry),
        changed(leaf=7),
        changed(path=document["path"][:-1]),
        changed(path=[*document["path"], document["path"][0]]),
        changed(checkpoint=document["checkpoint"].replace("\n21\n", "\n22\n")),
        changed(format="another"),
        changed(path="x"),
        "{}",
        "[]",
        "no JSON",
    ):
        with pytest.raises(InvalidRequest):
            check_document(wrong)
    with pytest.raises(InvalidRequest, match="not signed by a known key"):
        check_document(json.dumps(document), [replace(log.key, key=bytes(32))])


def test_a_log_continues_its_checkpoints(ledger, log):
    write(ledger, 9)
    early = log.checkpoint()
    write(ledger, 9)
    document = log.prove_consistency(early)
    found = check_document(json.dumps(document), [log.key])
    assert (found.old.size, found.checkpoint.size) == (10, 19)
    assert check_document(json.dumps(log.prove_consistency(log.checkpoint()))).old.size == 19
    document["path"][0] = document["path"][-1]
    with pytest.raises(InvalidRequest, match="does not continue"):
        check_document(json.dumps(document))
    late = log.checkpoint()
    change(
        ledger,
        "DELETE FROM audit_leaves WHERE leaf > 10",
        "UPDATE counters SET value = 11 WHERE name='audit'",
    )
    change(ledger, "DELETE FROM audit_checkpoints WHERE size > 10")
    with pytest.raises(InvalidRequest, match="is of 19 entries, and the log has 10"):
        log.prove_consistency(late)


# -- tampering --

TAMPERING = {
    "changed": (
        ["UPDATE audit_leaves SET subject = 'another' WHERE leaf = 7"],
        "leaf 7 was changed: entry ",
    ),
    "details changed": (
        ["UPDATE audit_leaves SET details = '{\"number\": 77}' WHERE leaf = 7"],
        "leaf 7 was changed",
    ),
    "dropped": (["DELETE FROM audit_leaves WHERE leaf = 7"], "leaf 7 is missing"),
    "the first dropped": (["DELETE FROM audit_leaves WHERE leaf < 2"], "leaf 0 to 1 is missing"),
    "the last dropped": (
        [
            "DELETE FROM audit_leaves WHERE leaf > 17",
            "UPDATE counters SET value = 18 WHERE name = 'audit'",
        ],
        "the log has 18 leaves, but a checkpoint was signed over 21: the last ones are missing",
    ),
    "dropped and closed up": (
        [
            "DELETE FROM audit_leaves WHERE leaf = 15",
            "UPDATE audit_leaves SET leaf = leaf + 1000 WHERE leaf > 15",
            "UPDATE audit_leaves SET leaf = leaf - 1001 WHERE leaf > 15",
        ],
        "the last ones are missing",
    ),
    "reordered": (
        [
            "UPDATE audit_leaves SET leaf = 1003 WHERE leaf = 3",
            "UPDATE audit_leaves SET leaf = 3 WHERE leaf = 4",
            "UPDATE audit_leaves SET leaf = 4 WHERE leaf = 1003",
        ],
        "the checkpoint of size 11 was signed over another log: among leaves 0 to 10",
    ),
}


@pytest.mark.parametrize(("statements", "fault"), TAMPERING.values(), ids=list(TAMPERING))
def test_tampering_is_found(ledger, log, statements, fault):
    write(ledger, 10)
    log.sequence()
    write(ledger, 10)
    log.sequence()
    assert checked(ledger).faults == ()
    change(ledger, *statements)
    assert any(fault in found for found in checked(ledger).faults), checked(ledger).faults


def test_an_entry_that_was_changed_with_its_hash_is_found(ledger, log):
    """By the next checkpoint, and named by the leaves since the one before."""
    for _ in range(2):
        write(ledger, 10)
        log.sequence()
    leaf = ledger.audit_leaf(15)
    forged = {**leaf.entry, "subject": "another"}
    with ledger._db.write() as tx:
        values = {"hash": leaf_hash(canonical(forged))}
        tx.execute(text("UPDATE audit_leaves SET subject = 'another', hash = :hash WHERE leaf = 15"), values)
    [fault] = checked(ledger).faults
    assert "the checkpoint of size 21 was signed over another log: among leaves 11 to 20" in fault


def test_a_wrong_inner_node_is_found(ledger, log):
    with ledger._db.write() as tx:
        for number in range(300):
            ledger._audit(tx, 5.0, "cli", "test.done", f"thing {number}")
    log.sequence()
    assert checked(ledger).faults == ()
    change(ledger, "DELETE FROM audit_nodes")
    assert checked(ledger).faults == ("the stored node over leaves 0 to 255 is wrong",)
    with pytest.raises(NotFound, match="lacks hashes: level 8 has 0 of 1 at 0") as caught:
        log.prove(entry_of(ledger, 299))
    assert "limner audit verify" in caught.value.hint


def test_many_faults_are_counted(ledger, log):
    write(ledger, 40)
    log.sequence()
    change(ledger, "UPDATE audit_leaves SET subject = 'another'")
    assert len(checked(ledger).faults) == 21
    assert checked(ledger).faults[-1] == "and 21 more faults"


# -- names and prompts --

PROMPT = "a zebra crossing at midnight 417"


def accept(ledger, who, keep="encrypted", prompt=PROMPT):
    prompts = LoggedPrompts(keep, {"prompt": prompt, "negative_prompt": f"not {prompt}"})
    job = NewJob({"prompt": prompt}, "m", 1.0)
    return ledger.accept(who, Submission((job,), {"prompt": prompt}, prompts=prompts))


def raw(ledger):
    """All that the tables of the log hold, as text."""
    with ledger._db.read() as connection:
        tables = ("audit", "audit_leaves", "audit_aliases", "audit_keys", "audit_checkpoints")
        return "".join(
            str(row) for table in tables for row in connection.execute(text(f"SELECT * FROM {table}"))
        )


@pytest.mark.parametrize("keep", ["encrypted", "hashed", "plain"])
def test_prompts_are_kept_as_the_setting_says(ledger, log, anna, keep):
    made = accept(ledger, anna, keep)
    log.sequence()
    entry = ledger.last_audit_entry(made.id)
    read = log.prompts_of(str(entry.id))
    texts = {"prompt": PROMPT, "negative_prompt": f"not {PROMPT}"}
    assert PROMPT not in json.dumps(ledger.audit_leaf(entry.leaf).entry)
    assert (PROMPT in raw(ledger)) == (keep == "plain")
    if keep == "hashed":
        assert read.keys() == {"month", "hashed"}
    else:
        assert read == texts
    assert log.fields_with(str(entry.id), PROMPT) == ("prompt",)
    assert log.fields_with(str(entry.id), "another") == ()
    assert log.prompts_of(entry_of(ledger, 0)) is None


def test_prompts_can_be_kept_out_of_the_log(ledger, log, anna):
    ledger.accept(anna, Submission((NewJob({}, "m", 1.0),), {"prompt": PROMPT}))
    log.sequence()
    assert "prompts" not in ledger.audit_log(action="set.accepted")[0].details
    assert PROMPT not in raw(ledger)


@pytest.mark.parametrize("keep", ["encrypted", "hashed", "plain"])
def test_an_erased_account_leaves_no_name_and_no_prompt_in_a_log_that_verifies(ledger, log, anna, bert, keep):
    mine = accept(ledger, anna, keep)
    his = accept(ledger, bert, keep, "a boat")
    ledger.create_key("anna")
    log.sequence()
    late = accept(ledger, anna, keep)  # no leaf yet
    ledger.audit("bert", "test.done", "anna", account="anna")
    before = json.dumps(log.prove(mine.id))
    accept(ledger, anna, keep)
    ledger.erase_account("anna", actor="anna")
    for _ in range(2):
        assert "anna" not in raw(ledger)
        assert PROMPT not in raw(ledger)
        log.sequence()
    assert checked(ledger).faults == ()
    assert check_document(before, [log.key]).leaf is not None
    assert log.prompts_of(str(ledger.last_audit_entry(mine.id).id)) == {"erased": True}
    assert log.fields_with(mine.id, PROMPT) is None
    assert log.fields_with(his.id, "a boat") == ("prompt",)
    assert ledger.last_audit_entry(mine.id).actor == ledger.last_audit_entry(late.id).actor == "erased"
    erased = ledger.audit_log(action="account.erased")[0]
    assert (erased.actor, erased.subject) == ("erased", "erased")
    assert {row.actor for row in ledger.audit_log(subject=his.id)} == {"bert"}


def test_a_new_account_of_an_erased_name_is_another(ledger, log, anna):
    first = accept(ledger, anna)
    log.sequence()
    ledger.erase_account("anna")
    second = accept(ledger, Principal(ledger.create_account("anna")))
    log.sequence()
    assert [row.subject for row in ledger.audit_log(actor="anna")] == [second.id]
    assert ledger.last_audit_entry(first.id).actor == "erased"


def test_an_entry_that_comes_after_the_erasure_gets_no_name(ledger, log, anna):
    ledger.erase_account("anna")
    ledger.audit("anna", "image.viewed", "img_1", account="anna")
    ledger.audit("cli", "account.updated", "anna")
    log.sequence()
    assert "anna" not in raw(ledger)
    assert {row.actor for row in ledger.audit_log(action="image.viewed")} == {"erased"}


def test_keys_are_read_once_and_those_of_accounts_that_are_gone_are_not_shared(ledger, log, bert):
    log.sequence()
    for _ in range(3):
        accept(ledger, bert, "hashed")
    for _ in range(2):
        prompts = LoggedPrompts("hashed", {"prompt": PROMPT})
        ledger.audit("nobody", "request.refused", "nobody", prompts=prompts)
    read = []

    @event.listens_for(ledger._db.engine, "before_cursor_execute")
    def _note(_connection, _cursor, statement, *_more):
        if statement.startswith("SELECT audit_keys"):
            read.append(statement)

    log.sequence()
    his, gone = (ledger.audit_log(action=action) for action in ("set.accepted", "request.refused"))
    assert (len(his), len(gone), len(read)) == (3, 2, 1 + 2)
    assert len({row.details["prompts"]["hashed"]["prompt"] for row in his}) == 1
    assert len({row.details["prompts"]["hashed"]["prompt"] for row in gone}) == 2
    assert [log.fields_with(str(row.id), PROMPT) for row in his] == [("prompt",)] * 3
    assert [log.prompts_of(str(row.id)) for row in gone] == [{"erased": True}] * 2


def test_prompts_are_forgotten_after_their_days(ledger, log, anna):
    kept, sealed = accept(ledger, anna, "plain"), accept(ledger, anna, "encrypted")
    change(ledger, "UPDATE audit SET at = at - 100 * 86400")
    new = accept(ledger, anna, "encrypted")
    log.sequence()
    assert ledger.forget_prompts(older_than=200 * 86400.0) == 0
    assert ledger.forget_prompts(older_than=50 * 86400.0) == 2
    assert ledger.forget_prompts(older_than=50 * 86400.0) == 0
    for one in (kept, sealed):
        assert log.prompts_of(str(ledger.last_audit_entry(one.id).id)) == {"erased": True}
    assert log.prompts_of(str(ledger.last_audit_entry(new.id).id))["prompt"] == PROMPT
    assert checked(ledger).faults == ()


def test_prompts_after_a_lost_key_are_readable_and_those_before_are_not(ledger, log, settings, anna):
    before = accept(ledger, anna)
    log.sequence()
    new = AuditLog.with_new_key(ledger, settings, actor="cli")
    after = accept(ledger, anna)
    new.sequence()
    assert new.prompts_of(str(ledger.last_audit_entry(before.id).id)) == {"erased": True}
    assert new.prompts_of(str(ledger.last_audit_entry(after.id).id))["prompt"] == PROMPT


def test_the_entries_of_an_account_are_exported_with_its_name(ledger, log, anna, bert):
    accept(ledger, anna)
    log.sequence()
    accept(ledger, anna)
    accept(ledger, bert)
    rows = list(ledger.audit_of_account("anna"))
    assert [(row.actor, row.action) for row in rows if row.action == "set.accepted"] == [
        ("anna", "set.accepted")
    ] * 2
    assert "bert" not in str(rows)


# -- faults --

WRITER = """
import sys, threading
from pathlib import Path
from limner.service.audit.sequencer import AuditLog
from limner.service.ledger.ledger import Ledger
from limner.settings.serve import ServeSettings

ledger = Ledger.open(sys.argv[1])
log = AuditLog(ledger, ServeSettings(data=Path(sys.argv[2])))

def write(name):
    number = 0
    while True:
        ledger.audit("cli", "test.done", name, number=number)
        number += 1

for name in ("one", "two"):
    threading.Thread(target=write, args=(name,), daemon=True).start()
print("ready", flush=True)
while True:
    log.sequence()
"""


@pytest.mark.long
def test_a_kill_at_any_time_leaves_no_gap_and_nothing_twice(ledger, log, ledger_url, settings):
    size = 0
    for _ in range(4):
        program = [sys.executable, "-c", WRITER, ledger_url, str(settings.data)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                grown = ledger.audit_size() + 150
                until(lambda grown=grown: ledger.audit_size() >= grown)
            finally:
                process.send_signal(signal.SIGKILL)
        assert ledger.audit_size() > size
        size = ledger.audit_size()
    log.sequence()
    assert checked(ledger).faults == ()
    ids = [leaf.entry["id"] for leaf in ledger.audit_leaves()]
    assert len(set(ids)) == len(ids) == ledger.audit_size()
    with ledger._db.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM audit")).scalar() == 0


def test_writers_and_sequencers_at_once(ledger, log, ledger_url, settings):
    others = [Ledger.open(ledger_url) for _ in range(2)]
    accounts = [Principal(ledger.create_account(name)) for name in ("anna", "bert")]

    def writing(own, who):
        for _ in range(30):
            accept(own, who)

    def sequencing(own):
        for _ in range(30):
            AuditLog(own, settings).sequence()

    try:
        at_once(
            *(lambda own=own, who=who: writing(own, who) for own, who in zip(others, accounts, strict=True)),
            *(lambda own=own: sequencing(own) for own in (ledger, others[0])),
        )
        log.sequence()
    finally:
        for one in others:
            one.close()
    assert checked(ledger).faults == ()
    assert len(ledger.audit_log(action="set.accepted")) == 60
    assert len({leaf.entry["id"] for leaf in ledger.audit_leaves()}) == ledger.audit_size() == 63


# -- the thread --


def test_the_sequencer_runs_and_copies_checkpoints(ledger, settings, tmp_path, caplog):
    copies = tmp_path / "copies"
    log = AuditLog(ledger, settings.model_copy(update={"audit_checkpoints": copies}))
    write(ledger, 5)
    sequencer = Sequencer(log)
    sequencer.start()
    until(copies.is_dir)
    write(ledger, 2)
    sequencer.stop(DEADLINE)
    notes = {path.name: path.read_text() for path in copies.iterdir()}
    assert "checkpoint-000000000008.txt" in notes
    assert open_checkpoint(notes["checkpoint-000000000008.txt"], [log.key]).size == 8
    assert ledger.audit_size() == 8
    assert caplog.text == ""


def test_a_folder_that_cannot_be_written_stops_nothing(ledger, settings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = AuditLog(ledger, settings.model_copy(update={"audit_checkpoints": tmp_path / "file" / "copies"}))
    write(ledger, 5)
    sequencer = Sequencer(log)
    sequencer.start()
    sequencer.stop(DEADLINE)
    assert ledger.audit_size() == 6
    assert "which is tried again" in caplog.text


def test_a_changed_policy_is_recorded_once(ledger, settings):
    for steps in (10, 10, 20):
        AuditLog(ledger, settings.model_copy(update={"limits": {"max_steps": steps}})).record_policy()
    changes = ledger.audit_log(action="policy.changed")
    assert [row.details["limits"] for row in changes] == [{"max_steps": 10}, {"max_steps": 20}]
