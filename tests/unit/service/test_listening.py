"""The listening socket, and what is said when it cannot be had."""

import os
import socket

import pytest

from limner.errors import InvalidRequest
from limner.service import listening
from limner.service.listening import address_of, listen
from tests.waiting import DEADLINE


def test_a_free_port_is_taken():
    with listen("127.0.0.1", 0) as made:
        host, _, port = address_of(made).partition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), timeout=DEADLINE):
            pass


def test_an_address_of_version_6_is_written_in_brackets():
    try:
        made = listen("::1", 0)
    except InvalidRequest:
        pytest.skip("this machine has no IPv6")
    with made:
        assert address_of(made).startswith("[::1]:")


def test_a_taken_port_names_its_owner_and_a_free_one():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"port {port} is taken by ") as caught:
            listen("127.0.0.1", port)
        assert f"(pid {os.getpid()})" in caught.value.message
        assert caught.value.fields == ("port",)
        suggested = int(caught.value.hint.partition("`port=")[2].partition("`")[0])
        with listen("127.0.0.1", suggested):
            pass


def test_an_owner_that_cannot_be_seen_is_another_program(monkeypatch):
    monkeypatch.setattr(listening, "_owner", lambda port: None)
    with listen("127.0.0.1", 0) as first, pytest.raises(InvalidRequest, match="taken by another program"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "says", "field"),
    [
        ("192.0.2.1", "is no address of this machine", "host"),  # reserved for documentation
        ("no such host", "host is 'no such host'", "host"),
    ],
)
def test_a_wrong_host_is_told(host, says, field):
    with pytest.raises(InvalidRequest, match=says) as caught:
        listen(host, 0)
    assert caught.value.fields == (field,)


def test_a_port_of_the_system_is_told(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(InvalidRequest, match="may not be used") as caught:
        listen("127.0.0.1", 80)
    assert "above 1023" in caught.value.hint
