"""Webhooks: where they may go, how they are signed, and that what is due is delivered or given up."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from limner.errors import InvalidRequest, NotFound
from limner.service.jobs import Completion, Job, JobError, JobSet, StoredImage
from limner.service.ledger.keeping import Delivery
from limner.service.metrics import Metrics
from limner.service.webhooks import (
    Webhooks,
    check_webhook,
    payload,
    retry_delay,
    sign,
    verify,
    webhook_secret,
)
from limner.settings import ServeSettings
from tests.waiting import DEADLINE

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def a_set(*states):
    """A set of ended jobs."""
    image = StoredImage(
        "img_1", "job_0", "a", "masters/a/job_0/3.png", "00ff", "11ee", 64, 32, 900, {"x": 1}, 5.0
    )
    jobs = tuple(
        Job(
            id=f"job_{index}",
            set_id="set_1",
            index=index,
            account_id="a",
            key_id=None,
            kind="generate",
            lane="interactive",
            state=state,
            params={"prompt": "a secret plan"},
            model="picturebook",
            predicted_seconds=1.0,
            position=0.0,
            attempt=1,
            fence=3,
            cancel_requested=False,
            created_at=1.0,
            finished_at=5.0 + index,
            error=JobError("invalid_request", "no", None, ("steps",)) if state == "failed" else None,
            device_seconds=2.0,
            cost=0.5,
            image=image if state == "done" else None,
        )
        for index, state in enumerate(states)
    )
    return JobSet("set_1", "a", "generate", "interactive", "native", {"prompt": "a secret plan"}, 1.0, jobs)


class Ledger:
    """Deliveries in memory, as the ledger keeps them."""

    def __init__(self, *deliveries, sets=None):
        self.due = list(deliveries)
        self.sets = {"set_1": a_set("done", "failed")} if sets is None else sets
        self.recorded = []

    def due_deliveries(self, *, limit=20, hold_seconds=60.0):
        taken, self.due = self.due[:limit], self.due[limit:]
        return taken

    def record_delivery(self, delivery_id, *, status, error, retry_in):
        self.recorded.append((delivery_id, status, error, retry_in))

    def get_set(self, set_id):
        if set_id not in self.sets:
            raise NotFound("there is no such set")
        return self.sets[set_id]


@contextmanager
def receiver(*statuses, location=None):
    """A server that answers with these statuses in turn, and keeps what it was sent."""
    received, answers = [], list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(answers.pop(0))
            if location:
                self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def due(delivery_id, set_id, webhook, attempts=1):
    return Delivery(delivery_id, set_id, "a", webhook, 0.0, attempts)


def delivering(url, *, ledger=None, attempts=1, **settings):
    """The ledger and metrics after one round with one delivery."""
    webhook = {"url": url, "secret": SECRET}
    ledger = ledger or Ledger(due("dlv_1", "set_1", webhook, attempts))
    metrics = Metrics()
    own = ServeSettings(**{"webhook_hosts": ("127.0.0.1",), "webhook_timeout_seconds": DEADLINE, **settings})
    count = Webhooks(ledger, own, metrics, secret="whsec_AAAA").deliver_due()
    return ledger, metrics, count


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/x?y=1",
        "http://a.b.example.com/",
        "http://localhost:9000",
        "http://127.0.0.1:5/x",
        "https://[::1]:7/x",
        "HTTPS://HOOKS.EXAMPLE.ORG",
    ],
)
def test_allowed_hosts_are_called(url):
    hosts = ("hooks.example.org", "*.example.com", "localhost:9000", "127.0.0.1", "[::1]")
    check_webhook({"url": url}, hosts)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/", "may not be sent to example.com"),
        ("https://evil-hooks.example.org/", "may not be sent to evil-hooks.example.org"),
        ("http://localhost:9001/", "may not be sent to localhost"),
        ("https://hooks.example.org.evil.net/", "may not be sent to"),
        ("https://hooks.example.org@evil.net/", "holds a user or password"),
        ("https://user:password@hooks.example.org/", "holds a user or password"),
        ("file:///etc/passwd", "is no http"),
        ("gopher://hooks.example.org/", "is no http"),
        ("hooks.example.org/x", "is no http"),
        ("https://hooks.example.org/\r\nX: y", "is no http"),
        ("https://hooks.example.org:port/", "is malformed"),
        ("", "is no http"),
    ],
)
def test_others_are_not(url, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_webhook({"url": url}, ("hooks.example.org", "*.example.com", "localhost:9000"))
    assert caught.value.fields == ("webhook",)


def test_without_hosts_there_are_no_webhooks():
    with pytest.raises(InvalidRequest, match="sends no webhooks"):
        check_webhook({"url": "https://example.com"}, ())


def test_signatures_are_those_of_standard_webhooks():
    """The example of the specification's reference libraries."""
    body = b'{"test": 2432232314}'
    signature = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": f"v1,AAAA {signature}",
    }
    assert verify(SECRET, headers, body, now=1614265400)
    assert not verify(SECRET, headers, body, now=1614265330 + 301)
    assert not verify(SECRET, headers, body + b" ", now=1614265330)
    assert not verify("whsec_AAAA", headers, body, now=1614265330)
    assert not verify(SECRET, {**headers, "webhook-id": "msg_2"}, body, now=1614265330)
    assert not verify(SECRET, {**headers, "webhook-timestamp": "x"}, body, now=1614265330)
    assert not verify(SECRET, {}, body)


def test_a_secret_may_be_any_text():
    expected = base64.b64encode(hmac.digest(b"whsec_?", b"i.5.b", hashlib.sha256)).decode()
    assert sign("whsec_?", "i", 5, b"b") == f"v1,{expected}"


def test_the_service_s_secret_is_that_of_the_settings_or_of_its_key():
    own = webhook_secret(ServeSettings(), b"k" * 32)
    assert own.startswith("whsec_")
    assert len(base64.b64decode(own.removeprefix("whsec_"))) == 32
    assert webhook_secret(ServeSettings(), b"j" * 32) != own
    assert webhook_secret(ServeSettings(webhook_secret="mine"), b"k" * 32) == "mine"


def test_a_delivery_is_signed_and_says_what_has_ended():
    with receiver(204) as (url, received):
        ledger, metrics, count = delivering(f"{url}/hook?x=1", public_url="https://images.example.org")
    [(path, headers, body)] = received
    assert (count, path) == (1, "/hook?x=1")
    assert verify(SECRET, headers, body)
    assert (headers["webhook-id"], headers["content-type"]) == ("dlv_1", "application/json")
    data = json.loads(body)["data"]
    assert (data["id"], data["states"]) == ("set_1", {"done": 1, "failed": 1})
    assert data["jobs"][0]["image"]["url"] == "https://images.example.org/api/v1/images/img_1/file"
    assert data["jobs"][1]["error"]["fields"] == ["steps"]
    assert b"secret plan" not in body
    assert ledger.recorded == [("dlv_1", 204, None, None)]
    assert metrics.value("limner_webhook_deliveries_total", outcome="delivered") == 1


def test_a_request_without_a_secret_is_signed_with_the_service_s():
    with receiver(200) as (url, received):
        delivering(url, ledger=Ledger(due("dlv_1", "set_1", {"url": url})))
    assert verify("whsec_AAAA", *received[0][1:])


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_failure_is_tried_again_later(status):
    with receiver(status, location="http://127.0.0.1:1/elsewhere") as (url, received):
        ledger, metrics, _ = delivering(url, attempts=3)
    assert ledger.recorded == [("dlv_1", status, f"the receiver answered {status}", 80.0)]
    assert len(received) == 1  # redirects are not followed
    assert metrics.value("limner_webhook_deliveries_total", outcome="failed") == 1


def test_a_receiver_that_is_not_there_is_tried_again():
    with receiver() as (url, _):
        pass
    ledger, _, _ = delivering(url)
    [(_, status, error, retry_in)] = ledger.recorded
    assert (status, retry_in) == (None, 5.0)
    assert "ConnectionRefusedError" in error


def test_a_receiver_that_answers_byte_by_byte_does_not_hold_the_sender():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = threading.Event()

        def trickle():
            connection, _ = listening.accept()
            with connection:
                while not done.is_set() and time.monotonic() < began + DEADLINE:
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return
                    time.sleep(0.01)

        began = time.monotonic()
        thread = threading.Thread(target=trickle)
        thread.start()
        ledger, _, _ = delivering(
            f"http://127.0.0.1:{listening.getsockname()[1]}", webhook_timeout_seconds=0.2
        )
        done.set()
        thread.join()
    assert ledger.recorded == [("dlv_1", None, "the receiver did not answer within 0.2 s", 5.0)]


def test_a_delivery_that_cannot_be_sent_is_given_up_in_the_end(monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("limner.service.webhooks.send", broken)
    for attempts, delay in ((1, 5.0), (10, None)):
        ledger, _, _ = delivering("http://127.0.0.1:9", attempts=attempts)
        assert ledger.recorded == [("dlv_1", None, "it cannot be sent: RuntimeError", delay)]


def test_a_secret_that_only_begins_like_one_of_standard_webhooks_is_a_secret():
    for secret in ("whsec_é€", "whsec_%%%", "whsec_AAA"):
        assert sign(secret, "dlv_1", 1, b"{}").startswith("v1,")


def test_after_the_last_attempt_a_delivery_is_given_up(caplog):
    with receiver(500) as (url, _):
        ledger, metrics, _ = delivering(url, attempts=10)
    assert ledger.recorded[0][3] is None
    assert metrics.value("limner_webhook_deliveries_total", outcome="given_up") == 1
    assert "webhook given up" in caplog.text


def test_a_receiver_that_is_gone_is_left_alone():
    with receiver(410) as (url, _):
        ledger, _, _ = delivering(url)
    assert ledger.recorded == [("dlv_1", 410, "the receiver answered 410", None)]


def test_a_host_that_is_no_longer_allowed_is_not_called():
    with receiver(200) as (url, received):
        ledger, _, _ = delivering(url, webhook_hosts=("example.org",))
    assert not received
    assert ledger.recorded[0][2:] == ("webhooks may not be sent to 127.0.0.1", None)


def test_a_deleted_set_ends_its_deliveries():
    with receiver(200) as (url, received):
        ledger, _, _ = delivering(
            url, ledger=Ledger(Delivery("dlv_1", "set_2", "a", {"url": url}, 0, 0), sets={})
        )
    assert not received
    assert ledger.recorded[0][2:] == ("the set has been deleted", None)


def test_many_deliveries_go_out_side_by_side():
    with receiver(*[200] * 20) as (url, received):
        ids = {f"dlv_{index}" for index in range(20)}
        ledger, _, count = delivering(url, ledger=Ledger(*(due(one, "set_1", {"url": url}) for one in ids)))
    assert count == len(received) == 20
    assert {entry[0] for entry in ledger.recorded} == ids


def test_the_end_of_a_set_in_the_ledger_is_reported_once(ledger, anna, submit, stored, monkeypatch):
    monkeypatch.setattr("limner.service.webhooks.retry_delay", lambda _: 3600.0)
    with receiver(500, 200) as (url, received):
        made = submit(anna, webhook={"url": url, "secret": SECRET})
        own = ServeSettings(webhook_hosts=("127.0.0.1",), webhook_timeout_seconds=DEADLINE)
        webhooks = Webhooks(ledger, own, Metrics(), secret="whsec_AAAA")
        assert webhooks.deliver_due() == 0
        (claim,) = ledger.claim("w", lease_seconds=10)
        ledger.finish(claim.job.id, claim.job.fence, Completion(stored(claim.job.id), 2.0))
        assert (webhooks.deliver_due(), webhooks.deliver_due()) == (1, 0)  # it waits
        [delivery] = ledger.list_deliveries(made.id)
        assert (delivery.status, delivery.attempts, delivery.delivered_at) == (500, 1, None)
        assert delivery.due_at > ledger.now() + 1800
        ledger.record_delivery(delivery.id, error="as if the time had come", retry_in=0.0)
        assert (webhooks.deliver_due(), webhooks.deliver_due()) == (1, 0)
    assert len({headers["webhook-id"] for _, headers, _ in received}) == 1
    assert all(verify(SECRET, headers, body) for _, headers, body in received)
    assert ledger.list_deliveries(made.id)[0].delivered_at is not None


def test_delays_grow_to_six_hours_and_span_about_a_day():
    delays = [retry_delay(attempts) for attempts in range(1, 10)]
    assert delays[:3] == [5, 20, 80]
    assert delays == sorted(delays)
    assert delays[-1] == retry_delay(10**6) == 6 * 3600
    assert 16 < sum(delays) / 3600 < 24


def test_paths_serve_where_the_public_url_is_not_known():
    assert json.loads(payload(a_set("done"), None))["data"]["url"] == "/api/v1/sets/set_1"
