"""Sessions of browsers: what a cookie is good for, and what ends it."""

import time

import httpx
import pytest

from tests.clocks import time_with
from tests.serving import serving
from tests.waiting import DEADLINE

STUDIO = {"x-limner": "studio"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A service that needs keys."""
    with serving(tmp_path_factory.mktemp("data"), require_key=True, public_url="https://draw.example") as one:
        yield one


@pytest.fixture
def browser(locked):
    with httpx.Client(base_url=locked.url, headers={"sec-fetch-dest": "empty"}, timeout=DEADLINE) as client:
        yield client


def sign_in(browser, key):
    return browser.post("/api/v1/session", json={"key": key["authorization"].removeprefix("Bearer ")})


def test_on_this_machine_nobody_signs_in_before_the_first_key(served):
    told = served.client.get("/api/v1/session").json()
    assert (told["needed"], told["signed_in"], told["account"]["id"]) == (False, True, "local")
    assert told["features"]["max_image_pixels"] == 40_000_000


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(locked, browser):
    stranger = browser.get("/api/v1/session")
    assert (stranger.json()["needed"], stranger.json()["signed_in"]) == (True, False)
    assert "set-cookie" not in stranger.headers
    key = locked.key("anna", scopes=("read", "generate"))
    answer = sign_in(browser, key)
    assert (answer.status_code, answer.json()["account"]["id"]) == (200, "anna")
    cookie = answer.headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/api/v1"} <= parts
    assert "secure" not in parts
    assert key["authorization"].split("_")[-1] not in cookie  # not the secret
    seen = browser.get("/api/v1/session").json()
    assert seen == answer.json()
    assert seen["scopes"] == ["read", "generate"]
    assert browser.get("/api/v1/account").json()["key"]["account_id"] == "anna"


def test_by_tls_the_cookie_is_for_tls_alone(locked, browser):
    key = locked.key("anna")["authorization"].removeprefix("Bearer ")
    answer = browser.post("/api/v1/session", json={"key": key}, headers={"host": "draw.example"})
    assert "Secure" in answer.headers["set-cookie"]


def test_changes_by_a_cookie_need_the_studios_header(locked, browser):
    sign_in(browser, locked.key("anna"))
    assert browser.put("/api/v1/drafts/a", json={}).json()["code"] == "forbidden"
    assert browser.put("/api/v1/drafts/a", json={}, headers={"x-limner": "other"}).status_code == 403
    assert browser.put("/api/v1/drafts/a", json={}, headers=STUDIO).status_code == 200
    foreign = {**STUDIO, "origin": "http://evil.example"}
    assert browser.put("/api/v1/drafts/a", json={}, headers=foreign).json()["code"] == "origin_not_allowed"
    assert browser.get("/api/v1/drafts/a").status_code == 200


def test_event_streams_take_the_cookie(locked, browser):
    sign_in(browser, locked.key("anna"))
    with browser.stream("GET", "/api/v1/events", headers={"accept": "text/event-stream"}) as stream:
        assert next(stream.iter_lines()) == "retry: 1000"


def test_scopes_of_the_key_are_those_of_the_session(locked, browser):
    sign_in(browser, locked.key("anna", scopes=("read",)))
    answer = browser.post("/api/v1/jobs", json={"request": {"prompt": "a boat"}}, headers=STUDIO)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_a_session_ends_with_its_key(locked, browser):
    key = locked.key("bert")
    sign_in(browser, key)
    locked.ledger.revoke_key(browser.get("/api/v1/account").json()["key"]["id"])
    answer = browser.get("/api/v1/account")
    assert (answer.status_code, answer.json()["detail"]) == (401, "the session has ended")
    told = browser.get("/api/v1/session")
    assert told.json()["signed_in"] is False
    assert not browser.cookies  # the answer deletes it


def test_signing_out_makes_the_browser_forget(locked, browser):
    sign_in(browser, locked.key("anna"))
    assert browser.cookies
    assert browser.delete("/api/v1/session", headers=STUDIO).status_code == 204
    assert not browser.cookies
    assert browser.get("/api/v1/account").status_code == 401


@pytest.mark.parametrize("body", [{"key": "lim_0123456789abcdef_" + "x" * 43}, {"key": "wrong"}])
def test_unknown_keys_are_refused_and_no_browser_asks_for_a_password(locked, browser, body):
    answer = browser.post("/api/v1/session", json=body)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="limner"'
    assert "set-cookie" not in answer.headers
    program = httpx.get(f"{locked.url}/api/v1/account", timeout=DEADLINE)
    assert "Basic" in program.headers["www-authenticate"]


def test_a_cookie_is_good_only_as_it_was_signed_and_while_it_lasts(locked, browser, monkeypatch):
    sign_in(browser, locked.key("anna"))
    [(name, value)] = browser.cookies.items()
    key_id, ends, signature = value.split(".")
    other = locked.ledger.create_key("local")[0].id
    forged = (
        f"{other}.{ends}.{signature}",
        f"{key_id}.{int(ends) + 1}.{signature}",
        f"{key_id}.{ends}.{'0' * 64}",
        "x",
    )
    for one in forged:
        answer = httpx.get(
            f"{locked.url}/api/v1/account", headers={"cookie": f"{name}={one}"}, timeout=DEADLINE
        )
        assert answer.status_code == 401, one
    now = time.time()
    monkeypatch.setattr("limner.server.sessions.time", time_with(time=lambda: now + 31 * 86400))
    assert browser.get("/api/v1/account").status_code == 401


def test_a_session_in_use_is_prolonged_and_ends_with_its_key_at_the_latest(locked, browser, monkeypatch):
    sign_in(browser, locked.key("anna"))
    assert "set-cookie" not in browser.get("/api/v1/session").headers
    first, now = browser.get("/api/v1/session").json()["ends_at"], time.time()
    short = sign_in(browser, locked.key("anna", expires_in=3600.0)).json()["ends_at"]
    assert now + 3500 < short < now + 3700
    sign_in(browser, locked.key("anna"))
    monkeypatch.setattr("limner.server.sessions.time", time_with(time=lambda: now + 16 * 86400))
    later = browser.get("/api/v1/session")
    assert later.json()["ends_at"] > first
    assert "set-cookie" in later.headers


def test_services_on_one_host_do_not_take_each_others_cookies(locked, tmp_path):
    with serving(tmp_path, working=False, require_key=True) as other:
        names = {one.state.sessions.cookie for one in (locked, other)}
        assert len(names) == 2
