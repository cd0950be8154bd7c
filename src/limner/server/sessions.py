"""Sessions of browsers: a cookie that stands for a key, so that no page has to keep the key itself.

The cookie holds the key's id and when the session ends, signed with the service's signing key. It is good as
long as the key is. Scripts cannot read it (HttpOnly), and no request that another site causes carries it
(SameSite=Strict). Every change with it needs the header `X-Limner: studio` besides, which such a request
could not have either.
"""

import hmac
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from limner.service.identity import ApiKey
from limner.service.secret import derived
from limner.settings.serve import ServeSettings

MARK, STUDIO = "x-limner", "studio"
"""Header, and its value, of every change that a session makes."""

_VALUE = re.compile(r"([0-9a-f]{16})\.(\d{1,12})\.([0-9a-f]{64})")
_DAY = 86400.0


@dataclass(frozen=True)
class Session:
    """A session that a cookie has proved.

    Attributes:
        key_id: The key that it stands for, which may have been revoked meanwhile.
        ends_at: When it ends, in seconds since the epoch.
    """

    key_id: str
    ends_at: float


class Sessions:
    """Writes and reads the cookies of a service.

    Args:
        signing_key: The service's signing key.
        settings: How long sessions last, and under which address the service is reached.
        path: Paths that the cookie is sent to begin with this.

    Attributes:
        cookie: Name of the cookie. Cookies do not tell ports apart, so each service has its own.
    """

    def __init__(self, signing_key: bytes, settings: ServeSettings, path: str) -> None:
        self._secret = derived(signing_key, "session")
        self._seconds, self._path = settings.session_days * _DAY, path
        self._public = urlsplit(settings.public_url or "")
        self.cookie = f"limner_{derived(signing_key, 'session cookie').hex()[:8]}"

    def of(self, request: Request) -> Session | None:
        """The session that a request's cookie proves; None where it has none, or one that is not good."""
        match = _VALUE.fullmatch(request.cookies.get(self.cookie, ""))
        if match is None or not hmac.compare_digest(match[3], self._signature(match[1], match[2])):
            return None
        session = Session(match[1], float(match[2]))
        return session if session.ends_at > time.time() else None

    def begin(self, request: Request, response: Response, key: ApiKey) -> Session:
        """Give the client of a request a session for a key, which ends with the key at the latest."""
        now = time.time()
        ends = int(min(now + self._seconds, key.expires_at or float("inf")))
        value = f"{key.id}.{ends}.{self._signature(key.id, str(ends))}"
        self._set(request, response, value, max(0, int(ends - now)))
        return Session(key.id, float(ends))

    def renew(self, request: Request, response: Response, session: Session, key: ApiKey) -> Session:
        """Prolong a session of which more than half is over."""
        late = session.ends_at - time.time() < self._seconds / 2
        return self.begin(request, response, key) if late else session

    def end(self, request: Request, response: Response) -> None:
        """Have the client forget its session."""
        self._set(request, response, "", 0)

    def _set(self, request: Request, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            self.cookie,
            value,
            max_age=seconds,
            path=self._path,
            secure=self._is_secure(request),
            httponly=True,
            samesite="strict",
        )

    def _is_secure(self, request: Request) -> bool:
        """Whether the client came by TLS, as far as can be seen behind a proxy that ends it."""
        public = self._public.scheme == "https" and request.url.hostname == self._public.hostname
        return public or request.url.scheme == "https"

    def _signature(self, key_id: str, ends: str) -> str:
        return hmac.digest(self._secret, f"{key_id}.{ends}".encode(), "sha256").hex()
