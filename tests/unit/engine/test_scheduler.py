"""The engine's policy on plain data: who begins, who shares a forward pass, who pays for it."""

import pytest

from limner.engine.scheduler import Admission, Decision, Demand, Pending, bytes_of, choose, shares


def weigh(model, auxiliary):
    """100 bytes of each model, and 10 of each auxiliary network."""
    return 100 + 10 * len(auxiliary)


def demand(batch_key="a", rows=2, most_rows=4, auxiliary=(), pass_bytes=5, memory=1000):
    return Demand(batch_key, rows, most_rows, {batch_key[0]: frozenset(auxiliary)}, pass_bytes, memory)


def call(group="a", rank=0, since=0, **more):
    return Pending(group=group, rank=(rank,), since=since, **more)


def test_as_many_images_begin_as_share_a_forward_pass():
    admission = Admission([], weigh)
    assert [admission.ask(demand()) for _ in range(3)] == [
        Decision.BEGIN,
        Decision.BEGIN,
        Decision.BATCH_FULL,
    ]
    assert admission.ask(demand("b")) is Decision.BEGIN


def test_images_that_have_begun_take_their_places():
    assert Admission([demand(), demand()], weigh).ask(demand()) is Decision.BATCH_FULL
    assert Admission([demand(), demand("b")], weigh).ask(demand()) is Decision.BEGIN


def test_a_smaller_image_does_not_overtake_a_larger_one_at_a_place():
    admission = Admission([demand(rows=2)], weigh)
    assert admission.ask(demand(rows=3)) is Decision.BATCH_FULL
    assert admission.is_full("a")
    assert admission.ask(demand(rows=1)) is Decision.BATCH_FULL


def test_an_image_waits_for_room_for_its_networks():
    running = demand(auxiliary="x", memory=115)
    admission = Admission([running], weigh)
    assert admission.ask(demand(auxiliary="y", memory=115)) is Decision.NO_MEMORY
    assert admission.ask(demand(auxiliary="x", memory=115)) is Decision.BEGIN  # shares the one at work
    assert Admission([], weigh).ask(demand(auxiliary="y", memory=1)) is Decision.BEGIN  # nothing to wait for


def test_memory_counts_each_network_once_and_the_largest_pass():
    together = [demand(auxiliary="x"), demand(auxiliary="xy", pass_bytes=7), demand("b")]
    assert bytes_of(together, weigh) == 100 + 20 + 100 + 7
    admission = Admission(together, weigh)
    assert admission.networks == {"a": frozenset("xy"), "b": frozenset()}
    assert admission.spare(1000) == 773


def test_the_group_that_has_waited_longest_goes_first():
    old, young, other = call("a", rank=5, since=1), call("a", rank=1, since=3), call("b", rank=0, since=2)
    assert choose([other, young, old], lambda _: 9) == [young, old]
    assert choose([], lambda _: 9) == []


def test_what_is_first_goes_before_all_else_and_then_rank_decides():
    prompt, waiting = call("text", rank=9, since=5, first=True), call("a", since=0)
    assert choose([waiting, prompt], lambda _: 9) == [prompt]
    high, low = call("a", rank=-1), call("b", rank=0)
    assert choose([low, high], lambda _: 9) == [high]


@pytest.mark.parametrize(("most", "taken"), [(0, 1), (1, 1), (2, 2), (9, 3)])
def test_no_more_calls_than_fit_share_a_pass_but_always_one(most, taken):
    calls = [call(rank=rank) for rank in range(3)]
    assert choose(reversed(calls), lambda _: most) == calls[:taken]


def test_seconds_are_shared_by_rows():
    assert shares(6.0, [2, 1, 3]) == [2.0, 1.0, 3.0]
