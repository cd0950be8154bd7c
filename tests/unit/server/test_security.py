"""What every request passes: hosts, origins, bodies, keys; and what every answer carries."""

import base64
import socket
import time

import httpx
import pytest

from limner.server.problems import SafeJSON
from tests.serving import serving
from tests.waiting import DEADLINE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8188"}, 200),
        ({"host": "192.168.1.20:8188"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "a b"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
    ],
)
def test_pages_of_other_origins_do_not_reach_the_service(served, headers, status):
    assert served.client.get("/api/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"public_url": "https://images.example.org"}, True),
        ({"public_url": "https://images.example.org", "require_key": True}, False),
        ({"public_url": "http://localhost:8188"}, False),
        ({}, False),
    ],
)
def test_a_public_address_without_a_key_is_warned_of(tmp_path, caplog, settings, warned):
    with serving(tmp_path, working=False, **settings) as served:
        assert ("there is no key" in caplog.text) == warned
        served.ledger.create_key("local")
    caplog.clear()
    with serving(tmp_path, working=False, **settings):
        assert "there is no key" not in caplog.text


def test_the_own_origin_and_allowed_ones_pass(tmp_path):
    with serving(tmp_path, cors_origins=("http://app.example",), allowed_hosts=("*.example",)) as served:
        own = {"origin": served.url}
        assert served.client.get("/api/v1/models", headers=own).status_code == 200
        assert served.client.get("/api/v1/models", headers={"host": "a.example"}).status_code == 200
        assert served.client.get("/api/v1/models", headers={"host": "example"}).status_code == 403
        allowed = {"origin": "http://app.example", "sec-fetch-site": "cross-site"}
        answer = served.client.get("/api/v1/models", headers=allowed)
        assert answer.headers["access-control-allow-origin"] == "http://app.example"
        assert "origin" in answer.headers["vary"].lower()
        preflight = served.client.options(
            "/api/v1/jobs",
            headers={
                **allowed,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        assert (
            served.client.options("/api/v1/jobs", headers={**allowed, "origin": "http://b"}).status_code
            == 403
        )


def test_every_answer_has_strict_headers_and_an_id(served):
    for path, caching in (
        ("/api/v1/models", "private, no-cache"),
        ("/api/v1/samplers", "no-store"),
        ("/nothing", "no-store"),
        ("/health/live", "no-store"),
    ):
        answer = served.client.get(path, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["cache-control"] == caching
    odd = served.client.get("/nothing", headers={"x-request-id": "a b\"'"})
    assert odd.headers["x-request-id"].isalnum()


@pytest.mark.parametrize("path", ["//api//v1/models", "/api/v1/models/", "/api/v1//models//"])
def test_slashes_too_many_do_not_matter(served, path):
    assert served.client.get(served.url + path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs?before=%00", "/api/v1/images/%00", "/api/v1/usage?account=a%00"]
)
def test_addresses_with_a_nul_are_refused(served, path):
    assert served.client.get(path).status_code == 400


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_unknown_routes_are_problems(served, method):
    answer = served.client.request(method, "/api/v1/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    wrong = served.client.put("/api/v1/jobs")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


def test_a_large_body_is_refused_before_it_is_read(tmp_path):
    with serving(tmp_path, max_body_bytes=1000) as served:
        headers = {"content-type": "application/json"}
        told = served.client.post("/api/v1/jobs", content=b"x" * 1001, headers=headers)
        assert (told.status_code, told.json()["code"]) == (413, "body_too_large")
        pieces = served.client.post("/api/v1/jobs", content=(b"x" * 500 for _ in range(3)), headers=headers)
        assert (pieces.status_code, pieces.json()["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_arrive_is_given_up(tmp_path):
    with serving(tmp_path, body_timeout_seconds=0.3) as served:
        host, port = served.url.removeprefix("http://").split(":")
        # In less time than there is by default.
        with socket.create_connection((host, int(port)), timeout=50) as connection:
            head = "POST /api/v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            assert b" 408 " in connection.recv(4096)


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-a: "])
def test_a_connection_without_a_request_is_closed(tmp_path, monkeypatch, sent):
    monkeypatch.setattr("limner.server.connections.REQUEST_SECONDS", 1.5)
    with serving(tmp_path, working=False) as served:
        host, port = served.url.removeprefix("http://").split(":")
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            connection.sendall(sent)
            assert connection.recv(4096) == b""
            assert time.monotonic() - began > 1.4
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            whole = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
            for _ in range(2):  # one that is used stays open
                connection.sendall(whole)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += (received := connection.recv(4096))
                    assert received, "it is closed"
                assert b" 200 " in answer
                time.sleep(1.6)
            connection.sendall(sent + b"G")
            assert connection.recv(4096) == b"", "nor does the second request of a connection take for ever"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_encoded_bodies_are_refused(served, encoding):
    answer = served.client.post("/api/v1/jobs", content=b"x", headers={"content-encoding": encoding})
    assert answer.status_code == 415


def test_keys_are_taken_in_each_form_once_there_is_one(tmp_path):
    with serving(tmp_path) as served:
        get = lambda **headers: served.client.get("/api/v1/jobs", headers=headers)  # noqa: E731
        assert get().status_code == 200
        assert get(authorization="Bearer whatever").status_code == 200, "no key is needed yet"
        secret = served.key()["authorization"].removeprefix("Bearer ")
        refused = get()
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Bearer")

        def basic(text: str) -> str:
            return f"Basic {base64.b64encode(text.encode()).decode()}"

        for value in (f"Bearer {secret}", f"bearer  {secret}", basic(f":{secret}"), basic(f"alice:{secret}")):
            assert get(authorization=value).status_code == 200, value
        assert get(**{"x-api-key": secret}).status_code == 200
        for value in (
            f"Bearer {secret}x",
            f"Bearer {secret[:-1]}",
            "Bearer",
            "Basic ???",
            basic("a:b"),
            f"Digest {secret}",
        ):
            assert get(authorization=value).status_code == 401, value
        [key] = served.state.ledger.list_keys()
        served.state.ledger.revoke_key(key.id)
        assert get(authorization=f"Bearer {secret}").status_code == 401
        assert get().status_code == 401, "losing the last key does not open the service"


def test_scopes_limit_what_a_key_is_good_for(tmp_path):
    with serving(tmp_path, working=False) as served:
        reading, submitting = served.key(scopes=("read",)), served.key(scopes=("generate",))
        body = {"request": {"prompt": "x"}}
        refused = served.client.post("/api/v1/jobs", json=body, headers=reading)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        posted = served.client.post("/api/v1/jobs", json=body, headers=submitting)
        assert posted.status_code == 202
        assert served.client.get("/api/v1/jobs", headers=submitting).status_code == 403
        cancel = f"/api/v1/jobs/{posted.json()['jobs'][0]['id']}/cancel"
        assert served.client.post(cancel, headers=reading).status_code == 403


def test_a_caller_behind_a_proxy_is_not_local(served):
    answer = served.client.get("/api/v1/jobs", headers={"x-forwarded-for": "10.0.0.1"})
    assert answer.status_code == 401


def test_a_key_is_needed_on_loopback_where_the_settings_say_so(tmp_path):
    with serving(tmp_path, require_key=True) as served:
        assert served.client.get("/api/v1/jobs").status_code == 401
        assert served.client.get("/api/v1/jobs", headers=served.key()).status_code == 200
        assert served.client.get("/health/live").status_code == 200


def test_the_limits_of_a_key_replace_those_of_its_account_and_the_server(tmp_path):
    with serving(tmp_path, working=False, limits={"max_steps": 20, "max_side": 256}) as served:
        wide = served.key(policy={"max_side": 512})
        for headers, request, status in (
            (wide, {"steps": 21}, 422),
            (wide, {"width": 512, "height": 512}, 202),
            (served.key("bob"), {"width": 512}, 422),
        ):
            body = {"request": {"prompt": "x", **request}}
            assert served.client.post("/api/v1/jobs", json=body, headers=headers).status_code == status


def test_metrics_are_for_operators_and_for_this_machine(tmp_path):
    with serving(tmp_path, working=False) as served:
        served.client.post("/api/v1/jobs", json={"request": {"prompt": "x", "num_images": 2}})
        text = served.client.get("/metrics").text
        assert 'limner_jobs_submitted_total{client="native",lane="interactive"} 2.0' in text
        assert 'limner_queue_jobs{lane="interactive"} 2.0' in text
        assert 'route="/api/v1/jobs"' in text
        proxied = {"x-forwarded-for": "10.0.0.1"}
        assert served.client.get("/metrics", headers=proxied).status_code == 401
        assert served.client.get("/metrics", headers={**proxied, **served.key()}).status_code == 403


def test_readiness_names_what_is_missing(tmp_path):
    with serving(tmp_path, working=False) as served:
        answer = served.client.get("/health/ready")
    assert (answer.status_code, answer.json()["problems"]) == (503, {"workers": "none is connected"})


def test_what_utf8_cannot_carry_is_written_all_the_same():
    answer = SafeJSON({"given": "a\ud800b", "more": ["\udfff"]})
    assert httpx.Response(200, content=answer.body).json()["given"] == "a\\ud800b"
