"""Frames on the local socket."""

import asyncio
import json
import socket
import struct

import pytest

from limner import errors
from limner.errors import InternalError, InvalidRequest, LimnerError
from limner.service.channel import (
    ChannelClosed,
    Frame,
    error_data,
    error_of,
    hub_socket,
    make_socket_folder,
    read_frame,
    receive_frame,
    send_frame,
)

FRAMES = [
    Frame("wake", {}),
    Frame("progress", {"jobs": [{"step": 3, "text": "grün \ud800"}]}, (b"\0" * 70_000, b"", b"x")),
]


@pytest.fixture
def pair():
    first, second = socket.socketpair()
    with first, second:
        yield first, second


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_arrives_as_it_was_sent(frame, pair):
    sent = frame.encode()
    reader = asyncio.new_event_loop()

    async def read():
        stream = asyncio.StreamReader()
        stream.feed_data(sent + sent)
        return await read_frame(stream), await read_frame(stream)

    assert reader.run_until_complete(read()) == (frame, frame)
    reader.close()
    send_frame(pair[0], frame)
    assert receive_frame(pair[1]) == frame


def malformed(header):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(encoded)) + encoded


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 1 << 31),
        malformed(b"{"),
        malformed([1]),
        malformed({"type": "wake", "data": {}}),
        malformed({"type": 1, "data": {}, "parts": []}),
        malformed({"type": "wake", "data": [], "parts": []}),
        malformed({"type": "wake", "data": {}, "parts": [-1]}),
        malformed({"type": "wake", "data": {}, "parts": [1 << 40]}),
        malformed(b"[" * 100_000),
        Frame("wake", {}, (b"abc",)).encode()[:-1],
        b"",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_frame_closes_the_channel(data, pair):
    async def read():
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        return await read_frame(stream)

    with pytest.raises(ChannelClosed):
        asyncio.run(read())
    pair[0].sendall(data)
    pair[0].close()
    with pytest.raises(ChannelClosed):
        receive_frame(pair[1])


def test_sending_to_nobody_closes_the_channel(pair):
    pair[1].close()
    with pytest.raises(ChannelClosed):
        send_frame(pair[0], FRAMES[1])


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LimnerError)]
)
def test_every_error_crosses_the_channel(kind):
    error = kind("width is 7", hint="give 8", fields=("width",))
    again = error_of(json.loads(json.dumps(error_data(error))))
    assert type(again) is kind
    assert (again.message, again.hint, again.fields) == ("width is 7", "give 8", ("width",))


def test_other_exceptions_become_internal_errors():
    again = error_of(error_data(ZeroDivisionError("division by zero")))
    assert type(again) is InternalError
    assert "ZeroDivisionError" in again.message
    assert type(error_of({"code": "of a later version", "message": "x"})) is InternalError
    assert type(error_of(error_data(InvalidRequest("x")))) is InvalidRequest


def test_the_socket_of_a_long_path_is_elsewhere(tmp_path):
    assert hub_socket(tmp_path / "d") == tmp_path / "d/run/hub.sock"
    deep = tmp_path / ("x" * 120)
    path = hub_socket(deep)
    assert len(str(path)) < 100
    assert path == hub_socket(deep) != hub_socket(tmp_path / ("y" * 120))


def test_the_folder_of_the_socket_is_the_users_own(tmp_path):
    path = tmp_path / "run" / "hub.sock"
    make_socket_folder(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
