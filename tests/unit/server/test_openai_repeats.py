"""Requests that OpenAI's SDKs send again because the API process has died."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from limner.request import GenerationRequest
from limner.server.openai.bodies import read_object
from limner.service.identity import Principal
from limner.service.jobs import Completion, NewJob, Submission
from limner.service.ledger.ledger import Ledger
from limner.service.secret import signing_key
from tests.serving import Served, serving, worker_of
from tests.waiting import DEADLINE

BODY = {"prompt": "a red boat", "steps": 2, "n": 2}
AGAIN = {"x-stainless-retry-count": "1"}


def leave(url, body, count=1):
    """Sets that a process has accepted before it died."""
    ledger = Ledger.open(url)
    try:
        if not any(one.id == "local" for one in ledger.list_accounts()):
            ledger.create_account("local", role="operator")
        caller = Principal(ledger.get_account("local"))
        request = {"prompt": "a red boat", "steps": 2, "width": 64, "height": 64}
        filled = {
            **request,
            "seed": 5,
            "sampler": "euler",
            "sigma_schedule": "uniform",
            "guidance_scale": 4.0,
        }
        params = GenerationRequest.of(filled).model_dump(mode="json", exclude_none=True)
        jobs = (NewJob(params, "checkpoint:picturebook", 1.0),) * 2
        digest = read_object(body).digest
        made = [
            ledger.accept(caller, Submission(jobs, request, client="openai", digest=digest))
            for _ in range(count)
        ]
        return [one.id for one in made]
    finally:
        ledger.close()


@pytest.fixture
def url(tmp_path):
    signing_key(tmp_path, create=True)
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


def ask(served: Served, headers=None, **more):
    answer = served.client.post("/v1/images/generations", json={**BODY, **more}, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return answer


def test_a_repeated_request_takes_over_what_an_earlier_process_has_left(tmp_path, url):
    left = leave(url, BODY, count=2)
    with serving(tmp_path) as served:
        answers = [ask(served, AGAIN) for _ in range(3)]
        assert [one.json()["id"] for one in answers[:2]] == left, "each is taken over once"
        assert [one.headers.get("idempotent-replayed") for one in answers] == ["true", "true", None]
        assert len(served.ledger.list_sets(None)) == 3


def test_two_that_are_repeated_at_once_take_over_one_each(tmp_path, url):
    left = leave(url, BODY, count=2)
    with serving(tmp_path, working=False) as served, ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, served, AGAIN) for _ in range(2)]
        with worker_of(served.state.settings):
            assert sorted(one.result(DEADLINE).json()["id"] for one in asking) == sorted(left)


@pytest.mark.parametrize(
    ("headers", "more"),
    [({}, {}), (AGAIN, {"prompt": "a blue boat"}), ({**AGAIN, "idempotency-key": "k"}, {}), ({**AGAIN}, {})],
)
def test_what_is_no_repetition_is_drawn_for_itself(tmp_path, url, headers, more):
    left = leave(url, BODY)
    if headers == AGAIN and not more:  # what had ended before the process that is asked was started
        ledger = Ledger.open(url)
        for claim in ledger.claim("w", lease_seconds=60, limit=2):
            assert ledger.finish(claim.job.id, claim.job.fence, Completion(None, 1.0))
        ledger.close()
    with serving(tmp_path) as served:
        assert ask(served, headers, **more).json()["id"] not in left
        assert len(served.ledger.list_sets(None)) == 2
