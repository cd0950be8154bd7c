"""Webhooks: the end of a set reported to a URL, signed, at least once.

Deliveries are rows of the ledger, written in the transaction that ends the set, so none is lost. A receiver
may see one twice: `webhook-id` is then the same. The form is that of Standard Webhooks
(https://www.standardwebhooks.com), for which receivers have libraries: the headers `webhook-id`,
`webhook-timestamp`, and `webhook-signature`, which is HMAC-SHA256 over "id.timestamp.body".

Only hosts that the operator has named are called; redirects are not followed, and answers are not read
beyond their status.
"""

import base64
import hmac
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from limner import __version__
from limner.errors import InvalidRequest, NotFound
from limner.settings.serve import ServeSettings

from .jobs import Job, JobSet
from .ledger.keeping import Delivery
from .ledger.ledger import Ledger
from .metrics import Meter
from .secret import derived

_LOG = logging.getLogger("limner.webhooks")

_SENDERS = 8  # deliveries at once
_FIRST_DELAY, _GROWTH, _LONGEST_DELAY = 5.0, 4.0, 6 * 3600.0  # seconds until a delivery is tried again
_GONE = 410  # the receiver wants no more of it


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    Attributes:
        status: Status of the answer; None without one.
        error: Why it failed; None for a success.
    """

    status: int | None
    error: str | None = None


def webhook_secret(settings: ServeSettings, key: bytes) -> str:
    """The secret of webhooks that have none of their own: that of the settings, else one of the signing key,
    in the form that receivers' libraries take, "whsec_…"."""
    if settings.webhook_secret is not None:
        return settings.webhook_secret.get_secret_value()
    return "whsec_" + base64.b64encode(derived(key, "webhooks")).decode()


def check_webhook(webhook: Mapping[str, str], hosts: Sequence[str]) -> None:
    """Check where a request wants its webhook to be sent.

    Args:
        webhook: {"url": …, "secret": …}.
        hosts: The setting `webhook_hosts`.

    Raises:
        InvalidRequest: Not a URL of an allowed host.
    """
    field = ("webhook",)
    url = webhook.get("url", "")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise InvalidRequest(f"the webhook's url {url[:100]!r} is malformed", fields=field) from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or any(c <= " " for c in url):
        raise InvalidRequest(f"the webhook's url {url[:100]!r} is no http(s) URL", fields=field)
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "the webhook's url holds a user or password", hint="check the signature instead", fields=field
        )
    if not any(_matches(one, host, port or _default_port(parts)) for one in hosts):
        raise InvalidRequest(
            f"webhooks may not be sent to {host}" if hosts else "this service sends no webhooks",
            hint="an operator allows hosts by the setting webhook_hosts",
            fields=field,
        )


def sign(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of a body.

    Args:
        secret: "whsec_" and base64, or any other text, whose UTF-8 bytes are the key.
    """
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()


def verify(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None, tolerance: float = 300
) -> bool:
    """Whether a body that was received is signed with the secret, and recently. For receivers in Python.

    Args:
        headers: Headers of the request, names in lower case.
        tolerance: Seconds that the sender's clock may differ.
    """
    delivery_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not stamp.isascii() or not stamp.isdigit():
        return False
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance:
        return False
    expected = sign(secret, delivery_id, int(stamp), body).encode()
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(expected, one.encode()) for one in given)


def retry_delay(attempts: int) -> float:
    """Seconds until a delivery is tried again, after a number of attempts: 5, 20, 80 … up to six hours."""
    return float(min(_FIRST_DELAY * _GROWTH ** (min(attempts, 20) - 1), _LONGEST_DELAY))


def payload(ended: JobSet, public_url: str | None) -> bytes:
    """The body of a delivery: what has ended, and how.

    Args:
        public_url: Base of the URLs in it; None: they are paths.
    """
    base = public_url or ""
    states = [job.state for job in ended.jobs]
    last = max((job.finished_at or 0.0 for job in ended.jobs), default=ended.created_at)
    body = {
        "type": "set.ended",
        "timestamp": datetime.fromtimestamp(last, UTC).isoformat(timespec="milliseconds"),
        "data": {
            "id": ended.id,
            "url": f"{base}/api/v1/sets/{ended.id}",
            "external_id": ended.external_id,
            "kind": ended.kind,
            "states": {state: states.count(state) for state in dict.fromkeys(states)},
            "jobs": [_job(job, base) for job in ended.jobs],
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def send(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Outcome:
    """Post a body. A status from 200 to 299 is a success.

    Args:
        timeout: Seconds for all of it, however slowly the receiver answers.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _default_port(parts)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        secure = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=secure)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    late = threading.Event()
    timer = threading.Timer(timeout, _cut, (connection, late))
    timer.daemon = True
    timer.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, dict(headers))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        slow = f"the receiver did not answer within {timeout:g} s"
        return Outcome(None, slow if late.is_set() else f"{type(error).__name__}: {error}")
    finally:
        timer.cancel()
        connection.close()
    if 200 <= status < 300:
        return Outcome(status)
    return Outcome(status, f"the receiver answered {status}")


class Webhooks:
    """Delivers what is due in the ledger.

    Args:
        secret: Secret of webhooks without one of their own.
    """

    def __init__(self, ledger: Ledger, settings: ServeSettings, meter: Meter, *, secret: str) -> None:
        self._ledger, self._settings, self._meter, self._secret = ledger, settings, meter, secret

    def deliver_due(self) -> int:
        """Make an attempt at each delivery that is due, and return their number."""
        hold = 4 * self._settings.webhook_timeout_seconds + 60  # of all that are before one in the pool
        due = self._ledger.due_deliveries(limit=_SENDERS * 4, hold_seconds=hold)
        if due:
            with ThreadPoolExecutor(min(_SENDERS, len(due)), "limner-webhook") as pool:
                list(pool.map(self._attempt, due))
        return len(due)

    def _attempt(self, delivery: Delivery) -> None:
        try:
            outcome = self._sent(delivery)
        except NotFound:
            outcome = Outcome(_GONE, "the set has been deleted")
        except InvalidRequest as error:  # the host is no longer allowed
            outcome = Outcome(_GONE, error.message)
        except Exception as error:  # or it would be due again for ever
            _LOG.exception("a webhook cannot be sent")
            outcome = Outcome(None, f"it cannot be sent: {type(error).__name__}")
        attempts, delay = delivery.attempts, None
        if outcome.error is not None and outcome.status != _GONE:
            delay = retry_delay(attempts) if attempts < self._settings.webhook_attempts else None
        given_up = outcome.error is not None and delay is None
        self._ledger.record_delivery(delivery.id, status=outcome.status, error=outcome.error, retry_in=delay)
        what = "delivered" if outcome.error is None else "given_up" if given_up else "failed"
        self._meter.count("limner_webhook_deliveries_total", outcome=what)
        fields = {"delivery": delivery.id, "set": delivery.set_id, "attempt": attempts}
        _LOG.log(
            logging.WARNING if given_up else logging.INFO,
            f"webhook {what.replace('_', ' ')}",
            extra={"fields": {**fields, "status": outcome.status, "error": outcome.error}},
        )

    def _sent(self, delivery: Delivery) -> Outcome:
        settings = self._settings
        check_webhook(delivery.webhook, settings.webhook_hosts)
        body = payload(self._ledger.get_set(delivery.set_id), settings.public_url)
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": f"limner/{__version__}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(
                delivery.webhook.get("secret") or self._secret, delivery.id, timestamp, body
            ),
        }
        return send(delivery.webhook["url"], headers, body, settings.webhook_timeout_seconds)


def _job(job: Job, base: str) -> dict[str, Any]:
    image, error = job.image, job.error
    return {
        "id": job.id,
        "index": job.index,
        "state": job.state,
        "device_seconds": job.device_seconds,
        "cost": job.cost,
        "image": image
        and {
            "id": image.id,
            "url": f"{base}/api/v1/images/{image.id}/file",
            "sha256": image.sha256,
            "width": image.width,
            "height": image.height,
            "bytes": image.bytes,
        },
        "error": error
        and {"code": error.code, "message": error.message, "hint": error.hint, "fields": [*error.fields]},
    }


def _matches(allowed: str, host: str, port: int) -> bool:
    name, _, own_port = allowed.lower().partition(":") if not allowed.startswith("[") else (allowed, "", "")
    if own_port and own_port != str(port):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:])
    return host == name.strip("[]")


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """End a connection that another thread reads from. `late` is set before that thread notices."""
    late.set()
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _default_port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80


def _key(secret: str) -> bytes:
    """The bytes of a secret."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            pass  # somebody's own secret that happens to begin so
    return secret.encode()
