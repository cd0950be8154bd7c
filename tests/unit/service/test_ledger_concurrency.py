"""Many claimers and readers at once: nothing is done twice, and no event is missed."""

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from limner.errors import QuotaExceeded
from limner.service.identity import Principal, Quotas
from limner.service.jobs import Completion, StoredImage
from limner.service.ledger.ledger import Ledger
from tests.concurrency import at_once
from tests.waiting import DEADLINE


def work(ledger, name, submitted, *, limit, claimed):
    """Claims and finishes until everything is done."""
    while len(claimed) < submitted:
        for claim in ledger.claim(name, lease_seconds=60, limit=limit, warm=["m"]):
            claimed.append((claim.job.id, claim.job.fence))
            key = f"{claim.job.id}/{claim.job.fence}"
            image = StoredImage(key, claim.job.id, "", key, "ab", "cd", 8, 8, 10, {})
            assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, 1.0))


def test_claimers_share_the_jobs_and_a_reader_sees_every_event_once(ledger, anna, bert, submit):
    count = 60
    submit(anna, count // 2)
    submit(bert, count // 2)
    claimed, seen = [], []
    stop = threading.Event()

    def read():
        after = 0
        while True:
            ended = stop.is_set()
            events = ledger.events(None, after=after, limit=7)
            seen.extend(events)
            after = events[-1].seq if events else after
            if ended and not events:
                return

    workers = [
        partial(work, ledger, f"w{index}", count, limit=1 + index % 3, claimed=claimed) for index in range(6)
    ]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            at_once(*workers)
        finally:
            stop.set()
    reading.result()
    assert len(claimed) == len({job for job, _ in claimed}) == count
    assert {fence for _, fence in claimed} == {1}
    assert ledger.usage()[0].images == count
    changes = Counter((event.job_id, event.change) for event in seen)
    assert set(changes.values()) == {1}
    assert len(changes) == 3 * count
    numbers = [event.seq for event in seen]
    assert numbers == sorted(set(numbers))
    for event in seen:  # a job's own events are in order
        if event.change == "done":
            started = next(one for one in seen if one.job_id == event.job_id and one.change == "started")
            assert started.seq < event.seq


def test_the_same_idempotency_key_at_once_makes_one_set(ledger, anna, submit):
    made = at_once(*[partial(submit, anna, 2, idempotency_key="k", digest="d")] * 6)
    assert len({one.id for one in made}) == 1
    assert sum(not one.replayed for one in made) == 1
    assert len(ledger.list_jobs("anna")) == 2


def test_quotas_hold_when_many_submit_at_once(ledger, anna, submit):
    caller = Principal(ledger.update_account("anna", quotas=Quotas(queued_jobs=5)))

    def is_refused():
        try:
            submit(caller)
        except QuotaExceeded:
            return True
        return False

    refused = at_once(*[is_refused] * 12)
    assert (sum(refused), len(ledger.list_jobs("anna"))) == (7, 5)


_PROGRAM = """
import sys
from limner.errors import QuotaExceeded
from limner.service.identity import Principal, Quotas
from limner.service.jobs import Completion, StoredImage
from limner.service.ledger.ledger import Ledger
from tests.concurrency import at_once
from tests.waiting import DEADLINE
ledger = Ledger.open(sys.argv[1])
while claims := ledger.claim(sys.argv[2], lease_seconds=60, limit=2):
    for claim in claims:
        image = StoredImage(claim.job.id, claim.job.id, "", claim.job.id, "ab", "cd", 8, 8, 10, {})
        assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, 1.0))
        print(claim.job.id)
"""


def test_processes_share_the_jobs(ledger_url, ledger, anna, submit):
    made = submit(anna, 30)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, ledger_url, f"w{index}"], stdout=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    done = [line for worker in workers for line in worker.communicate(timeout=DEADLINE)[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(done) == sorted(job.id for job in made.jobs)
    assert {job.state for job in ledger.get_set(made.id).jobs} == {"done"}


def test_what_was_accepted_is_there_after_a_kill(sqlite_url, tmp_path):
    """The process is killed the moment it has said so; the ledger is whole and has it."""
    program = (
        "import os, sys; from limner.service.ledger.ledger import Ledger; "
        "from limner.service.jobs import *; from limner.service.identity import *; "
        "ledger = Ledger.open(sys.argv[1]); caller = Principal(ledger.get_account('local'))\n"
        "for n in range(5):\n"
        "    print(ledger.accept(caller, Submission((NewJob({}, 'm', 1.0),), {})).id, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, sqlite_url], capture_output=True, text=True)
    assert done.returncode == -9
    ledger = Ledger.open(sqlite_url)
    assert [one.id for one in ledger.list_sets(None)][::-1] == done.stdout.split()
    ledger.close()
