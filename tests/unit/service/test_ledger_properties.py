"""Whatever the order in which workers, callers and the clock act: each accepted job ends exactly once, each
use is counted once, and fences only grow."""

import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from limner.errors import Conflict, NotFound
from limner.service.identity import Principal
from limner.service.jobs import FINAL_STATES, Completion, JobError, NewJob, StoredImage, Submission
from limner.service.ledger.ending import RETRY_SECONDS
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.schema import attempts, images, usage

LEASE = 10.0
FAULT = JobError("internal_error", "it broke")


class History:
    """Two callers, three workers, a reconciler and a clock, and the answers they received."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger.open(f"sqlite:///{path}")

        @event.listens_for(self.ledger._db.engine, "checkout")
        def _quick(connection, *_):
            connection.execute("PRAGMA synchronous = OFF")  # nobody pulls the plug here

        self.ledger._db._group.close()  # so that it applies to writing too
        self.now = 1000.0
        self.ledger._db.time = lambda _connection: self.now
        self.callers = [
            Principal(self.ledger.create_account("anna")),
            Principal(self.ledger.create_account("bert", weight=2.0)),
        ]
        self.jobs = []
        self.claims = []  # whatever was ever claimed: workers may speak long after they have lost a job
        self.fences = Counter()
        self.seconds = Counter()  # of the device, by job, as the ledger has confirmed
        self.done = Counter()
        self.retried = Counter()
        self.ended = {}

    # -- what can happen; `pick` chooses among what there is --

    def submit(self, pick):
        jobs = tuple(NewJob({}, pick.choice("xyz"), 1.0) for _ in range(pick.randint(1, 2)))
        lane, deadline = pick.choice(["interactive", "batch"]), pick.choice([None, None, None, 40.0])
        submission = Submission(jobs, {}, lane=lane, deadline_seconds=deadline)
        self.jobs += [job.id for job in self.ledger.accept(pick.choice(self.callers), submission).jobs]

    def claim(self, pick):
        worker, limit, warm = pick.choice("uvw"), pick.randint(1, 3), pick.choice([(), ("x",)])
        taken = self.ledger.claim(worker, lease_seconds=LEASE, limit=limit, warm=warm)
        assert len(taken) <= limit
        for claim in taken:
            assert claim.job.fence > self.fences[claim.job.id]
            self.fences[claim.job.id] = claim.job.fence
            self.claims.append((worker, claim.job.id, claim.job.fence))

    def finish(self, pick):
        _, job_id, fence = pick.choice(self.claims)
        name = f"{job_id}-{fence}"
        image = StoredImage(name, job_id, "", name, "ab", "cd", 8, 8, 10, {})
        if self.ledger.finish(job_id, fence, Completion(image, 2.0, price=0.5)):
            self.confirmed(job_id, fence, 2.0)
            self.done[job_id] += 1

    def fail(self, pick):
        _, job_id, fence = pick.choice(self.claims)
        retryable = pick.choice([True, True, False])
        if self.ledger.fail(job_id, fence, FAULT, retryable=retryable, device_seconds=1.0) is not None:
            self.confirmed(job_id, fence, 1.0)

    def stop(self, pick):
        _, job_id, fence = pick.choice(self.claims)
        if self.ledger.cancelled(job_id, fence, device_seconds=0.5):
            self.confirmed(job_id, fence, 0.5)

    def release(self, pick):
        _, job_id, fence = pick.choice(self.claims)
        if self.ledger.release(job_id, fence):
            self.confirmed(job_id, fence, 0.0)

    def renew(self, pick):
        worker, job_id, fence = pick.choice(self.claims)
        job = self.ledger.get_job(job_id)
        mine = job.state == "running" and job.fence == fence
        assert self.ledger.renew(worker, {job_id: fence}, LEASE).lost == (set() if mine else {job_id})

    def change(self, pick):
        act = pick.choice([self.ledger.cancel, self.ledger.pause, self.ledger.resume])
        act(account_id=None, job_ids=[pick.choice(self.jobs)])

    def retry(self, pick):
        job_id = pick.choice(self.jobs)
        before = self.ledger.get_job(job_id).state
        try:
            self.ledger.retry(account_id=None, job_id=job_id)
        except Conflict:
            assert before not in FINAL_STATES - {"done"}
        else:
            self.ended.pop(job_id, None)
            self.retried[job_id] += 1

    def move(self, pick):
        with suppress(Conflict, NotFound):  # not of one account, or not waiting
            self.ledger.move(pick.choice(self.jobs), before=pick.choice([None, *self.jobs]))

    def lose_the_workers(self, _pick):
        """They stop answering, and what they had is taken up; later they speak again."""
        self.now += LEASE + 1.0
        self.ledger.reconcile()
        self.now += max(RETRY_SECONDS)

    def pass_time(self, pick):
        self.now += pick.choice([1.0, 6.0, -50.0])

    # -- what must hold --

    def confirmed(self, job_id, fence, seconds):
        assert fence == self.fences[job_id], "a stale worker was heard"
        self.seconds[job_id] += seconds

    def check(self):
        found = {job.id: job for job in self.ledger.list_jobs(None, limit=1000)}
        assert found.keys() == set(self.jobs)
        with self.ledger._db.read() as connection:
            sums = select(usage.c.job_id, func.sum(usage.c.images), func.sum(usage.c.device_seconds))
            used = {one: rest for one, *rest in connection.execute(sums.group_by(usage.c.job_id))}
            kept = Counter(connection.execute(select(images.c.job_id)).scalars())
            open_attempts = select(attempts.c.job_id).where(attempts.c.ended_at.is_(None))
            running = Counter(connection.execute(open_attempts).scalars())
        for job in found.values():
            pictures, seconds = used.get(job.id, (0, 0.0))
            assert self.done[job.id] == pictures == kept[job.id] == int(job.state == "done")
            assert self.seconds[job.id] == seconds == (job.device_seconds or 0.0)
            assert running[job.id] == int(job.state == "running")
            assert job.fence == self.fences[job.id]
            if job.id in self.ended:
                assert job.state == self.ended[job.id], "an end stays, unless the owner retries"
            elif job.state in FINAL_STATES:
                self.ended[job.id] = job.state

    def end_everything(self):
        """Workers that work get everything to its end, once."""
        pick = random.Random(0)
        for _ in range(100):
            waiting = self.ledger.list_jobs(None, states=["queued", "running", "paused"], limit=1000)
            if not waiting:
                break
            self.ledger.resume(account_id=None, job_ids=[job.id for job in waiting])
            self.lose_the_workers(pick)
            for claim in self.ledger.claim("last", lease_seconds=LEASE, limit=50):
                self.fences[claim.job.id] = claim.job.fence
                self.claims = [("last", claim.job.id, claim.job.fence)]
                self.finish(pick)
        self.check()
        assert self.ended.keys() == set(self.jobs)
        events = self.ledger.events(None, after=0, limit=100_000)
        ends = Counter(one.job_id for one in events if one.change in FINAL_STATES)
        assert ends == Counter(self.jobs) + self.retried
        numbers = [one.seq for one in events]
        assert numbers == sorted(set(numbers))


ACTIONS = {
    History.submit: 3,
    History.claim: 5,
    History.finish: 3,
    History.fail: 3,
    History.lose_the_workers: 3,
    History.stop: 1,
    History.release: 1,
    History.renew: 1,
    History.change: 2,
    History.retry: 1,
    History.move: 1,
    History.pass_time: 1,
}
NEED_JOBS = {History.change, History.retry, History.move}
NEED_CLAIMS = {History.finish, History.fail, History.stop, History.release, History.renew}
steps = st.tuples(
    st.sampled_from([action for action, weight in ACTIONS.items() for _ in range(weight)]),
    st.integers(0, 2**32),
)


@settings(
    max_examples=20,
    phases=[Phase.generate],  # without shrinking, which takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(history=st.lists(steps, min_size=40, max_size=60))
def test_every_job_ends_exactly_once_in_any_interleaving(fresh_ledger, tmp_path_factory, history):
    path = tmp_path_factory.mktemp("history") / "ledger.sqlite3"
    path.write_bytes(fresh_ledger.read_bytes())
    the = History(path)
    try:
        for number, (action, seed) in enumerate(history):
            if (action in NEED_JOBS and not the.jobs) or (action in NEED_CLAIMS and not the.claims):
                continue
            action(the, random.Random(seed))
            if number % 8 == 0 or action is History.retry:
                the.check()
        the.check()
        the.end_everything()
    finally:
        the.ledger.close()
