"""The order of claims: shares of accounts and lanes, loaded models first within bounds, nobody forgotten."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.service.ledger.order import (
    LANE_WEIGHTS,
    MAX_PASSED_SECONDS,
    MAX_PASSES,
    Candidate,
    Flow,
    Queue,
    charges,
    choose,
    upcoming,
)


class Waiting:
    """Waiting jobs and the tags, changed as the ledger's tables are."""

    def __init__(self):
        self.jobs = {}  # by lane and account
        self.weights = {}
        self.finish = Counter()
        self.start = Counter()
        self.virtual = Counter()
        self.count = 0
        self.now = 0.0

    def add(self, account, *seconds, lane="interactive", model="", weight=1.0):
        self.weights[account] = weight
        for one in seconds:
            self.count += 1
            self.jobs.setdefault((lane, account), []).append(Candidate(self.count, model, one))

    def queues(self):
        return [
            Queue(
                lane,
                self.start[lane, ""],
                self.finish[lane, ""],
                self.virtual[lane],
                tuple(
                    Flow(account, self.weights[account], self.finish[lane, account], tuple(its))
                    for (of, account), its in self.jobs.items()
                    if of == lane and its
                ),
            )
            for lane in ("interactive", "batch")
        ]

    def serve(self, count=1, warm=()):
        """Claims jobs: what was chosen."""
        queues = self.queues()
        chosen = choose(queues, count=count, warm=warm, now=self.now)
        for charge in charges(queues, chosen):
            key = (charge.lane, charge.account_id)
            self.finish[key] = max(self.finish[key], charge.floor) + charge.amount
            self.start[key] = max(self.start[key], charge.start)
            if not charge.account_id:
                self.virtual[charge.lane] = max(self.virtual[charge.lane], charge.virtual)
        for choice in chosen:
            its = self.jobs[choice.lane, choice.account_id]
            its[:] = [job for job in its if job.seq != choice.job.seq]
            for key, waiting in self.jobs.items():
                self.jobs[key] = [
                    job._replace(
                        passed_over=job.passed_over + 1,
                        passed_since=self.now if job.passed_since is None else job.passed_since,
                    )
                    if job.seq in choice.passed
                    else job
                    for job in waiting
                ]
        return chosen

    def served(self, count, **more):
        return [choice.account_id for _ in range(count) for choice in self.serve(**more)]


def test_an_account_alone_is_served_in_its_own_order():
    waiting = Waiting()
    waiting.add("a", 3.0, 1.0, 2.0)
    assert [choice.job.seq for choice in waiting.serve(count=5)] == [1, 2, 3]


def test_device_seconds_and_not_jobs_are_shared():
    waiting = Waiting()
    waiting.add("long", *[4.0] * 50)
    waiting.add("short", *[1.0] * 200)
    counts = Counter(waiting.served(100))
    assert counts["short"] == pytest.approx(4 * counts["long"], abs=4)


def test_shares_are_as_the_weights():
    waiting = Waiting()
    waiting.add("a", *[1.0] * 100, weight=3.0)
    waiting.add("b", *[1.0] * 100, weight=1.0)
    counts = Counter(waiting.served(40))
    assert counts == {"a": 30, "b": 10}


def test_one_with_a_thousand_jobs_does_not_delay_a_newcomer():
    waiting = Waiting()
    waiting.add("a", *[1.0] * 1000)
    waiting.served(100)
    waiting.add("b", 1.0)
    assert "b" in waiting.served(2)


def test_turns_are_not_saved_up_while_idle():
    waiting = Waiting()
    waiting.add("a", *[1.0] * 1000)
    waiting.add("b", 1.0)
    waiting.served(500)
    waiting.add("b", *[1.0] * 100)
    assert Counter(waiting.served(20))["a"] >= 9


def test_interactive_jobs_go_first_and_batch_jobs_always_move():
    waiting = Waiting()
    waiting.add("a", *[1.0] * 200, lane="interactive")
    waiting.add("b", *[1.0] * 200, lane="batch")
    lanes = [waiting.serve()[0].lane for _ in range(100)]
    share = LANE_WEIGHTS["batch"] / sum(LANE_WEIGHTS.values())
    assert lanes.count("batch") == pytest.approx(100 * share, abs=1)
    gaps = "".join(lane[0] for lane in lanes).split("b")
    assert max(len(gap) for gap in gaps) <= 5


def test_the_first_interactive_job_after_a_pause_is_next():
    waiting = Waiting()
    waiting.add("b", *[10.0] * 50, lane="batch")
    waiting.served(20)
    waiting.add("a", 1.0)
    assert waiting.served(1) == ["a"]
    assert waiting.served(2) == ["b", "b"]  # an idle lane leaves the device to the other


def test_jobs_claimed_together_are_those_claimed_one_by_one():
    def filled():
        waiting = Waiting()
        waiting.add("a", 2.0, 1.0, 5.0, 1.0, weight=2.0)
        waiting.add("b", 1.0, 1.0, 3.0)
        waiting.add("c", 2.0, 2.0, lane="batch")
        return waiting

    together = [choice.job.seq for choice in filled().serve(count=9)]
    one_by_one = filled()
    assert [one_by_one.serve()[0].job.seq for _ in range(9)] == together


def test_a_loaded_model_goes_first_only_so_often():
    waiting = Waiting()
    waiting.add("a", 1.0, model="cold")
    waiting.add("b", *[1.0] * 200, model="warm")
    served = waiting.served(MAX_PASSES + 1, warm={"warm"})
    assert served == ["b"] * MAX_PASSES + ["a"]


def test_a_loaded_model_goes_first_only_so_long():
    waiting = Waiting()
    waiting.add("a", 1.0, model="cold")
    waiting.add("b", *[1.0] * 50, model="warm")
    assert waiting.served(2, warm={"warm"}) == ["b", "b"]
    waiting.now += MAX_PASSED_SECONDS
    assert waiting.served(1, warm={"warm"}) == ["a"]


def test_a_cold_job_is_taken_at_once_when_nothing_else_waits():
    waiting = Waiting()
    waiting.add("a", 1.0, model="cold")
    assert waiting.served(1, warm={"warm"}) == ["a"]
    assert waiting.served(1) == []


def test_jobs_of_a_loaded_model_are_found_behind_the_first():
    waiting = Waiting()
    waiting.add("a", 1.0, 1.0, model="cold")
    waiting.add("a", 1.0, model="warm")
    assert [waiting.serve(warm={"warm"})[0].job.seq for _ in range(3)] == [3, 1, 2]


flows = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(
        st.sampled_from([0.5, 1.0, 3.0]),
        st.lists(st.floats(0.1, 8.0), min_size=60, max_size=60),
    ),
    min_size=2,
)


@settings(max_examples=25)
@given(flows=flows, count=st.integers(1, 4))
def test_those_who_always_have_work_get_equal_service_by_weight(flows, count):
    """The bound of start-time fair queuing: two flows with work always differ by at most one job each."""
    waiting = Waiting()
    for account, (weight, seconds) in flows.items():
        waiting.add(account, *seconds, weight=weight)
    service = Counter()
    for _ in range(20):
        for choice in waiting.serve(count=count):
            service[choice.account_id] += choice.job.seconds / flows[choice.account_id][0]
        if any(len(its) == 0 for its in waiting.jobs.values()):
            return
        for one in flows:
            for other in flows:
                bound = sum(max(flows[name][1]) / flows[name][0] for name in (one, other))
                assert abs(service[one] - service[other]) <= bound + 1e-9


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["interactive", "batch"]),
            st.sampled_from(["x", "y", "z", ""]),
            st.floats(0.1, 9.0),
        ),
        max_size=40,
    ),
    st.lists(st.tuples(st.integers(1, 4), st.sets(st.sampled_from("xyz"))), min_size=1),
)
def test_everything_that_waits_is_chosen_once(jobs, claims):
    waiting = Waiting()
    for account, lane, model, seconds in jobs:
        waiting.add(account, seconds, lane=lane, model=model)
    chosen = []
    for _ in range(len(jobs) + 1):
        for count, warm in claims:
            chosen += [choice.job.seq for choice in waiting.serve(count=count, warm=warm)]
    assert sorted(chosen) == list(range(1, len(jobs) + 1))


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["interactive", "batch"]), st.floats(0.1, 9.0)),
        max_size=40,
    ),
    st.integers(0, 10),
)
def test_what_is_upcoming_is_what_is_chosen(jobs, served):
    waiting = Waiting()
    for number, (account, lane, seconds) in enumerate(jobs):
        waiting.add(account, seconds, lane=lane, weight=1.0 + number % 2)
    waiting.serve(count=served)
    queues = waiting.queues()
    assert list(upcoming(queues)) == choose(queues, count=len(jobs))
