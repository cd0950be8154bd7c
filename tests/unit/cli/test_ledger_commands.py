"""`limner keys`, `jobs` and `usage`, directly on the ledger of a data folder."""

import json

import pytest

from limner.cli.moments import moment, seconds
from limner.errors import InvalidRequest
from limner.service.identity import Principal
from limner.service.jobs import Completion, JobError, NewJob, StoredImage, Submission


def submit(ledger, account="local", count=1, prompt="a red boat"):
    jobs = tuple(NewJob({"prompt": prompt}, "picturebook", 2.0) for _ in range(count))
    return ledger.accept(Principal(ledger.get_account(account)), Submission(jobs, {"prompt": prompt}))


def test_a_key_that_is_made_opens_the_account(run, ledger):
    code, out, err = run(
        "keys", "create", "--account", "anna", "--name", "phone", "--scope", "read", "--expires", "30d"
    )
    assert code == 0
    caller = ledger.authenticate(out.strip())
    assert (caller.account.id, caller.account.role, caller.key.name) == ("anna", "user", "phone")
    assert caller.scopes == ("read",)
    assert caller.key.expires_at == pytest.approx(ledger.now() + 30 * 86400, abs=60)
    assert out.strip() not in err


def test_limits_and_operators(run, ledger):
    out = run("keys", "create", "--account", "anna", "--limit", "max_steps=30", "--limit", "max_side=512")[1]
    assert ledger.authenticate(out.strip()).policy == {"max_steps": 30, "max_side": 512}
    assert ledger.authenticate(run("keys", "create")[1].strip()).account.id == "local"
    out = run("keys", "create", "--account", "anna", "--operator", "--json")[1]
    assert ledger.authenticate(json.loads(out)["secret"]).is_operator
    code, _, err = run("keys", "create", "--account", "anna", "--limit", "max_colours=3")
    assert code == 2
    assert "max_steps" in err


def test_keys_are_listed_without_secrets_and_revoked_by_id_or_by_themselves(run, ledger):
    first = run("keys", "create", "--account", "anna", "--name", "phone")[1].strip()
    second = run("keys", "create", "--account", "bert")[1].strip()
    out = run("keys", "list")[1]
    assert "phone" in out
    assert first.split("_", 2)[2] not in out
    assert [
        key["account_id"] for key in json.loads(run("keys", "list", "--account", "bert", "--json")[1])
    ] == ["bert"]
    key_id = ledger.authenticate(first).key.id
    assert run("keys", "revoke", key_id, second)[0] == 0
    assert ledger.authenticate(first) is ledger.authenticate(second) is None
    assert run("keys", "list")[1].count("revoked") == 2
    code, _, err = run("keys", "revoke", "nothing")
    assert code == 2
    assert "limner keys list" in err


def test_jobs_are_listed_shown_cancelled_and_tried_again(run, ledger):
    made = submit(ledger, count=3)
    assert len(ledger.claim("w", lease_seconds=60)) == 1
    first, second, third = (job.id for job in made.jobs)
    ledger.fail(
        first, 1, JobError("out_of_memory", "it is too large", hint="make it smaller"), retryable=False
    )
    code, out, err = run("jobs", "list")
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()[1:]] == ["queued", "queued", "failed"]
    assert "a red boat" in out
    assert "2 interactive" in err
    assert [job["id"] for job in json.loads(run("jobs", "list", "--state", "failed", "--json")[1])] == [first]
    shown = run("jobs", "show", first)[1]
    assert "out_of_memory: it is too large (make it smaller)" in shown
    assert "attempt 1" in shown
    assert len(json.loads(run("jobs", "show", made.id, "--json")[1])) == 3
    assert run("jobs", "pause", second)[0] == 0
    assert run("jobs", "cancel", third)[0] == 0
    assert [job.state for job in ledger.get_set(made.id).jobs] == ["failed", "paused", "cancelled"]
    assert run("jobs", "resume", made.id)[0] == 0
    assert run("jobs", "retry", made.id)[0] == 0
    assert [job.state for job in ledger.get_set(made.id).jobs] == ["queued"] * 3
    assert run("jobs", "retry", first)[0] == 2
    assert run("jobs", "cancel", made.id)[2].startswith("note: 3 of 3")
    code, _, err = run("jobs", "show", "job_1")
    assert code == 2
    assert "limner jobs list" in err


def test_usage_is_summed_by_what_is_asked(run, ledger):
    for account in ("anna", "bert"):
        ledger.create_account(account)
        submit(ledger, account)
        (claim,) = ledger.claim("w", lease_seconds=60)
        image = StoredImage(claim.job.id, claim.job.id, "", claim.job.id, "ab", "cd", 8, 8, 10, {})
        ledger.finish(claim.job.id, 1, Completion(image, 2.5, price=0.1))
    code, out, err = run("usage", "--by", "account,model", "--since", "1d")
    assert code == 0
    assert out.splitlines()[1].split("\t") == ["anna", "picturebook", "1", "1", "2.500", "0.250000"]
    assert "5.0 device seconds" in err
    assert json.loads(run("usage", "--by", "key", "--json")[1]) == [
        {"key": None, "images": 2, "jobs": 2, "device_seconds": 5.0, "cost": 0.5}
    ]
    assert run("usage", "--since", "1d", "--until", "1h")[1] == ""
    code, _, err = run("usage", "--by", "colour")
    assert code == 2
    assert "limner usage --help" in err


def test_nothing_is_made_where_there_is_no_service(run, tmp_path):
    for command in (["jobs", "list"], ["keys", "list"], ["usage"]):
        code, _, err = run(*command)
        assert code == 2
        assert "there is no ledger" in err
        assert "--data" in err
    assert not (tmp_path / "data").exists()


def test_durations_and_moments():
    assert [seconds(text, "x") for text in ("90m", "1.5h", "2w")] == [5400, 5400, 14 * 86400]
    for wrong in ("", "30", "d", "-1d", "0d", "9999999d"):
        with pytest.raises(InvalidRequest):
            seconds(wrong, "x")
    assert moment("1970-01-02", "x") == 86400
    assert moment("1970-01-01T01:00+01:00", "x") == 0
    with pytest.raises(InvalidRequest):
        moment("yesterday", "x")
