"""`limner moderation`, on the ledger and the image store of a data folder."""

import json

import numpy as np
import pytest
from PIL import Image

from limner.images.picture import Picture, encode
from limner.images.record import Record
from limner.request import GenerationRequest
from limner.safety.images import blurred
from limner.service.identity import Principal
from limner.service.jobs import JobError, NewJob, NewReview, StoredImage, Submission
from limner.service.storage import ImageStore
from tests.checked_images import pattern, pixels

DECISION = {"action": "block", "rule": "own", "score": 0.9, "version": "own-1", "reason": "a known pattern"}


@pytest.fixture
def image(tmp_path, ledger):
    """An image of anna's that the policy blocks."""
    request = GenerationRequest(prompt="a boat", sampler="euler", sigma_schedule="uniform")
    record = Record(request=request, model={"name": "m"}, environment={"limner": "0"})
    anna = Principal(ledger.create_account("anna"))
    [job] = ledger.accept(anna, Submission((NewJob({"prompt": "a boat"}, "m", 1.0),), {})).jobs
    [claim] = ledger.claim("w", lease_seconds=60)
    data = encode(Picture(Image.fromarray(pattern("a boat")), record), "png")
    store = ImageStore.in_folder(tmp_path / "data" / "pictures")
    key = store.put_master("anna", job.id, claim.job.fence, data)
    said = record.model_dump(mode="json")
    made = StoredImage("img_1", job.id, "anna", key, "00", "11", 128, 128, len(data), said, safety=DECISION)
    refused = JobError("image_refused", "it is blocked")
    found = NewReview("image", DECISION, made)
    assert ledger.fail(job.id, claim.job.fence, refused, retryable=False, review=found) == "failed"
    return made


def test_the_queue_is_listed_opened_decided_and_reversed(run, ledger, image, tmp_path):
    [review] = json.loads(run("moderation", "list", "--state", "open", "--json")[1])
    assert (review["image_id"], review["delivery"]) == ("img_1", "withheld")
    code, out, err = run("moderation", "list", "--account", "anna", "--action", "block")
    assert (code, review["id"] in out, "open: 1 block" in err) == (0, True, True)
    assert run("moderation", "list", "--state", "upheld", "--json")[1].strip() == "[]"
    assert "a known pattern" in run("moderation", "show", review["id"])[1]

    assert (
        run("moderation", "open", review["id"], "--blurred", "--out", "covered.png")[1].strip()
        == "covered.png"
    )
    covered = pixels((tmp_path / "covered.png").read_bytes())
    assert np.array_equal(covered, blurred(Image.fromarray(pattern("a boat"))))
    assert not [row for row in ledger.audit_log() if row.action == "image.opened"]
    assert run("moderation", "open", review["id"])[1].strip() == f"{review['id']}.png"
    assert np.array_equal(pixels((tmp_path / f"{review['id']}.png").read_bytes()), pattern("a boat"))
    assert [(row.actor, row.subject) for row in ledger.audit_log() if row.action == "image.opened"] == [
        ("cli", "img_1")
    ]

    assert run("moderation", "decide", review["id"], "release", "--note", " ")[0] == 2
    code, out, _ = run("moderation", "decide", review["id"], "release", "--note", "harmless")
    assert (code, "cli: release: harmless" in out) == (0, True)
    assert ledger.get_image("img_1").job_id == image.job_id
    code, _, err = run("moderation", "decide", review["id"], "block", "--note", "no")
    assert (code, "reverse that decision first" in err) == (2, True)
    reversed_ = json.loads(run("moderation", "reverse", review["id"], "--note", "a mistake", "--json")[1])
    assert (reversed_["state"], reversed_["delivery"]) == ("open", "withheld")
    assert [one["decision"] for one in reversed_["decisions"]] == ["release", "reverse"]
    assert run("moderation", "show", "rev_none")[0] == 2
