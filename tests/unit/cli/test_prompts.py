"""`limner prompts`, on the ledger of a data folder without a running service."""

import json

from limner.service.identity import Principal
from limner.service.jobs import Completion, NewJob, StoredImage, Submission


def draw(ledger, *prompts, account="local"):
    for prompt in prompts:
        jobs = (NewJob({"prompt": prompt}, "m", 1.0),)
        ledger.accept(Principal(ledger.get_account(account)), Submission(jobs, {}))
        [claim] = ledger.claim("w", lease_seconds=60)
        record = {"request": {"prompt": prompt}, "model": {"name": "m"}}
        image = StoredImage(
            f"img_{claim.job.id}", claim.job.id, account, claim.job.id, "00", "11", 64, 64, 1, record
        )
        assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, 1.0))


def test_prompts_are_found_by_words_and_by_meaning(run, ledger):
    ledger.create_account("anna")
    draw(ledger, "a red boat at sea", "a red boat at sea", "a green house in the snow")
    draw(ledger, "a boat of anna", account="anna")
    ledger.mark_images(["1"], account_id="local", kept=True)

    code, out, err = run("prompts", "search", "red", "bo")
    assert code == 0
    assert "a red boat at sea" in out
    assert "house" not in out + err
    assert "1 prompts" in err
    found = json.loads(run("prompts", "search", "boat", "--account", "anna", "--json")[1])
    assert [(one["prompt"], one["kept"], one["drawn"]) for one in found] == [("a boat of anna", 0, 1)]
    assert json.loads(run("prompts", "search", "snow", "--kept", "--json")[1]) == []

    for _ in range(2):  # the vectors are made at the first time
        found = json.loads(run("prompts", "similar", "a sailboat on the red sea", "--json")[1])
        assert (found[0]["prompt"], found[0]["drawn"]) == ("a red boat at sea", 2)
        assert found[0]["score"] > found[-1]["score"]
    code, _, err = run("prompts", "search", "boat", "--account", "nobody")
    assert code == 2
    assert "nobody" in err
