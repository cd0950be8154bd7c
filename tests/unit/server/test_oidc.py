"""Tokens of OpenID Connect, of an issuer on loopback with keys of its own."""

import base64
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from limner.errors import InvalidRequest
from limner.server.oidc import OpenIDConnect, looks_like_token
from limner.settings.serve import ServeSettings
from tests.serving import serving


class Issuer:
    """An issuer of tokens.

    Attributes:
        key: What it signs with.
        read: Paths that were read.
    """

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        self.read: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.read.append(self.path)
                described = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                keys = KeySet([issuer.key]).as_dict(private=False)
                body = json.dumps(keys if self.path == "/keys" else described).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, key=None, algorithm="RS256", **claims) -> dict[str, str]:
        """Headers with a token."""
        said = {"iss": self.url, "aud": "limner", "sub": "ada", "exp": int(time.time()) + 600, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        text = jwt.encode({"alg": algorithm, "kid": "one"}, said, key or self.key, algorithms=[algorithm])
        return {"authorization": f"Bearer {text}"}


@pytest.fixture
def issuer():
    running = Issuer()
    yield running
    running.close()


def test_a_token_stands_for_an_account_of_its_name(tmp_path, issuer):
    settings = {"oidc_issuer": issuer.url, "oidc_audience": "limner", "oidc_operators": ("root",)}
    with serving(tmp_path, working=False, **settings) as served:
        who = lambda headers: served.client.get("/api/v1/account", headers=headers)  # noqa: E731
        assert who({}).status_code == 401, "an issuer closes the service on loopback, too"
        ada = who(issuer.token()).json()
        assert (ada["id"], ada["role"], ada["key"]) == ("oidc.ada", "user", None)
        assert who(issuer.token(sub="root")).json()["role"] == "operator"
        odd = who(issuer.token(sub="auth0|5 é")).json()["id"]
        assert odd.startswith("oidc-")
        assert who(issuer.token(sub="auth0|5 é")).json()["id"] == odd
        assert who(issuer.token(sub="local")).json()["id"] == "oidc.local"
        assert issuer.read == ["/.well-known/openid-configuration", "/keys"], "keys are read once"
        assert who(served.key("bob")).json()["id"] == "bob", "keys are still accepted"
        served.state.ledger.update_account("oidc.ada", disabled=True)
        assert who(issuer.token()).status_code == 401


def test_a_token_named_like_an_account_does_not_get_it(tmp_path, issuer):
    settings = {"oidc_issuer": issuer.url, "oidc_audience": "limner", "oidc_accounts": {"boss": "admin"}}
    with serving(tmp_path, working=False, **settings) as served:
        served.ledger.create_account("admin", role="operator")
        who = lambda name: served.client.get("/api/v1/account", headers=issuer.token(sub=name)).json()  # noqa: E731
        assert (who("admin")["id"], who("admin")["role"]) == ("oidc.admin", "user")
        assert (who("boss")["id"], who("boss")["role"]) == ("admin", "operator"), "an operator has linked it"
        hashed = who("auth0|5")["id"]
        for name in (hashed, hashed.removeprefix("oidc-"), "oidc.admin"):
            assert who(name)["id"] == f"oidc.{name}"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "another"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"nbf": 2**33},
    ],
)
def test_other_tokens_are_not_accepted(tmp_path, issuer, claims):
    with serving(tmp_path, working=False, oidc_issuer=issuer.url, oidc_audience="limner") as served:
        answer = served.client.get("/api/v1/account", headers=issuer.token(**claims))
        assert (answer.status_code, answer.json()["detail"]) == (401, "the token is not accepted")
        assert f"{issuer.url} for limner" in answer.json()["hint"]
        assert served.client.get("/api/v1/account", headers=issuer.token()).status_code == 200


def test_signatures_of_others_are_not_accepted(tmp_path, issuer):
    with serving(tmp_path, working=False, oidc_issuer=issuer.url, oidc_audience="limner") as served:
        for key, algorithm in (
            (RSAKey.generate_key(2048, {"kid": "one"}), "RS256"),
            (ECKey.generate_key("P-256", {"kid": "one"}), "ES256"),
        ):
            headers = issuer.token(key, algorithm)
            assert served.client.get("/api/v1/account", headers=headers).status_code == 401, algorithm
        # The public key as the secret of an HMAC, and no signature at all.
        head, claims, _ = issuer.token()["authorization"].removeprefix("Bearer ").split(".")
        head = base64.urlsafe_b64encode(b'{"alg": "HS256", "kid": "one"}').decode().rstrip("=")
        made = hmac.digest(issuer.key.as_pem(private=False), f"{head}.{claims}".encode(), "sha256")
        confused = f"{head}.{claims}.{base64.urlsafe_b64encode(made).decode().rstrip('=')}"
        none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.x"
        for text in (confused, none, "a.b.c", "x" * 40 + "." + "y" * 40 + "." + "z" * 40):
            headers = {"authorization": f"Bearer {text}"}
            assert served.client.get("/api/v1/account", headers=headers).status_code == 401


def test_new_keys_of_the_issuer_are_read(tmp_path, issuer, monkeypatch):
    monkeypatch.setattr("limner.server.oidc._AGAIN", 0.0)
    with serving(tmp_path, working=False, oidc_issuer=issuer.url, oidc_audience="limner") as served:
        assert served.client.get("/api/v1/account", headers=issuer.token()).status_code == 200
        issuer.key = RSAKey.generate_key(2048, {"kid": "one"})
        assert served.client.get("/api/v1/account", headers=issuer.token()).status_code == 200


def test_an_issuer_that_cannot_be_reached_accepts_nobody(tmp_path, issuer):
    with serving(tmp_path, working=False, oidc_issuer=issuer.url, oidc_audience="limner") as served:
        issuer.close()
        assert served.client.get("/api/v1/account", headers=issuer.token()).status_code == 401


def test_an_issuer_is_reached_by_https(tmp_path):
    settings = ServeSettings(data=tmp_path, oidc_issuer="http://issuer.example", oidc_audience="limner")
    with pytest.raises(InvalidRequest, match="https"):
        OpenIDConnect(settings, None)


@pytest.mark.parametrize(
    ("text", "expected"), [("a.b.c", True), ("lim_1_x", False), ("a.b", False), ("é.b.c", False)]
)
def test_tokens_are_told_from_keys(text, expected):
    assert looks_like_token(text) == expected
