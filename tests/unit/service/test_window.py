"""How many jobs a worker claims, against engines of known capacity."""

import pytest

from limner.service.window import FIRST, MOST, ClaimWindow, ahead


def claim(window, capacity, rounds=30):
    """Let an engine with so many places draw long jobs; returns what is claimed after each round."""
    begun = waiting = 0
    claimed = []
    for _ in range(rounds):
        room = max(0, window.room(begun, waiting, settled=room_was_zero(claimed)))
        waiting += room
        begun, waiting = min(capacity, begun + waiting), max(0, begun + waiting - capacity)
        claimed.append(begun + waiting)
    return claimed


def room_was_zero(claimed):
    return len(claimed) > 1 and claimed[-1] == claimed[-2]


@pytest.mark.parametrize("capacity", [1, 2, 4, 7, 16, 32, 100])
def test_the_engine_is_filled_soon_and_little_waits(capacity):
    window = ClaimWindow()
    claimed = claim(window, capacity)
    assert min(claimed[10:]) >= capacity
    assert max(claimed) <= max(FIRST, capacity + capacity // 2 + 2)
    assert window.size <= max(FIRST, capacity + ahead(capacity))  # what it shrinks to


def test_places_that_become_free_are_refilled_up_to_the_window():
    window = ClaimWindow()
    claim(window, 16)
    assert window.size == 18
    assert window.room(0, 2, settled=False) == 16  # all images were done at the same step
    assert window.room(16, 2, settled=False) == 0


def test_a_window_shrinks_for_larger_images_and_grows_again():
    window = ClaimWindow()
    claim(window, 32)
    assert window.room(4, 36, settled=True) < 0
    assert window.size == 6
    assert claim(window, 32)[-1] >= 32


def test_there_is_a_most():
    window = ClaimWindow()
    assert max(claim(window, 10_000)) == MOST
