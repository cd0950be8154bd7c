"""What event streams share: turns, texts, and looks at keys."""

import asyncio

import pytest

from limner.server import event_streams
from limner.server.event_streams import EventStreams
from limner.service.events import JobProgress
from limner.service.identity import Account, Principal

ANNA = Principal(Account("anna"))


def test_a_few_streams_write_at_once():
    async def scenario():
        streams = EventStreams()
        streams.count("anna", 20)
        turn = streams.turn()
        with pytest.raises(StopIteration):
            turn.send(None)  # without giving way to anything

    asyncio.run(scenario())


def test_many_streams_write_in_rounds_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(event_streams, "_PAUSE_PER_STREAM", 0.0)

    async def scenario():
        streams, written, between = EventStreams(), [], []
        streams.count("anna", 30)

        async def write(number):
            await streams.turn()
            written.append(number)

        async def other_work():
            while len(written) < 30:
                between.append(len(written))
                await asyncio.sleep(0)

        await asyncio.gather(*map(write, range(30)), other_work())
        assert written == list(range(30))
        assert max(after - before for before, after in zip(between, [*between[1:], 30], strict=True)) <= 8
        await asyncio.gather(*map(write, range(3)))  # and again
        assert written[30:] == [0, 1, 2]

    asyncio.run(scenario())


def test_a_stream_that_is_closed_while_it_waits_holds_up_none(monkeypatch):
    monkeypatch.setattr(event_streams, "_PAUSE_PER_STREAM", 0.0)

    async def scenario():
        streams = EventStreams()
        streams.count("anna", 30)
        turns = [asyncio.create_task(streams.turn()) for _ in range(3)]
        await asyncio.sleep(0)
        turns[0].cancel()
        await asyncio.gather(*turns[1:])

    asyncio.run(scenario())


def test_a_text_is_made_once_for_all_streams():
    streams, made = EventStreams(), []

    def make(event, previews):
        made.append((event, previews))
        return f"{event.step} {previews}"

    first, second = (JobProgress("anna", "set1", "job1", 0, step, 4, 1.0) for step in (1, 2))
    texts = [streams.text(one, previews, make) for one in (first, second) for previews in (True, False, True)]
    assert texts == ["1 True", "1 False", "1 True", "2 True", "2 False", "2 True"]
    assert len(made) == 4


def test_a_key_is_looked_at_once_for_all_streams_and_again_after_a_failure():
    async def scenario():
        streams, looks = EventStreams(), []

        async def look():
            looks.append(1)
            await asyncio.sleep(0)
            if len(looks) == 1:
                raise OSError("locked")
            return True

        failed = await asyncio.gather(
            *(streams.may_read(ANNA, look) for _ in range(3)), return_exceptions=True
        )
        assert [type(one) for one in failed] == [OSError] * 3
        assert await asyncio.gather(*(streams.may_read(ANNA, look) for _ in range(3))) == [True] * 3
        assert len(looks) == 2

    asyncio.run(scenario())
