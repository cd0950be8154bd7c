"""Errors, full queues, clients that hang up and repeat, and other clients of OpenAI's Images API."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest

from limner.errors import ModelNotFound
from limner.service.identity import Quotas
from tests.concurrency import at_once
from tests.openai_kit import opened, photo, record_of
from tests.serving import Painter, Served, serving
from tests.waiting import DEADLINE, until


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"n": 11}, "n"),
        ({"size": "100x100"}, "size"),
        ({"size": "8192x8192"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"quality": "best"}, "quality"),
        ({"style": "natural"}, "style"),
        ({"extra_body": {"frame_count": 4}}, "frame_count"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"steps": 100_000}}, "steps"),
        ({"extra_body": {"steps": 900}}, "steps"),
        ({"extra_body": {"strength": 0.5}}, "strength"),
        ({"extra_body": {"loras": [{"name": "no such"}]}}, "loras"),
        ({"extra_body": {"controls": [{"model": "x", "image": "/etc/passwd"}]}}, "controls"),
        ({"extra_body": {"seed": 2**60}}, "seed"),
    ],
)
def test_bad_parameters_are_the_sdks_bad_request(sdk, live, values, param):
    before = live.ledger.last_event()
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="x", **values)
    error = caught.value
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.request_id
    assert live.ledger.last_event() == before


def test_a_failed_image_is_not_drawn_again(sdk, live):
    before = len(live.ledger.list_jobs(None, limit=500))
    with pytest.raises(openai.InternalServerError, match="NaN") as caught:
        sdk.images.generate(prompt="a fault", n=1)
    jobs = live.ledger.list_jobs(None, limit=500)
    assert len(jobs) == before + 1
    assert (jobs[0].state, jobs[0].attempt) == ("failed", 1)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/images/variations", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/images/generations", 405),
        ("POST", "/v1/models", 405),
    ],
)
def test_routes_that_are_not_there_answer_in_openais_shape(live, method, path, status):
    answer = httpx.request(method, live.url + path, timeout=DEADLINE)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b"\xff", "application/json"),
        (b'{"prompt": "\\u0000"}', "application/json"),
        (b'{"prompt": "\\ud800"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"", "application/json"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=y"),
        (b"--y\r\n\r\n", "multipart/form-data; boundary=y"),
        (
            b'--y\r\ncontent-disposition: form-data; name="a[b"\r\n\r\nx\r\n--y--\r\n',
            "multipart/form-data; boundary=y",
        ),
        (b"prompt=x&n=2", "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("route", ["generations", "edits"])
def test_bodies_that_cannot_be_read_are_bad_requests(live, route, content, kind):
    answer = httpx.post(
        f"{live.url}/v1/images/{route}", content=content, headers={"content-type": kind}, timeout=DEADLINE
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_paths_with_other_slashes(live):
    """Complaint 17."""
    body = {"prompt": "x", "size": "64x64", "steps": 1}
    for path in ("/v1//images/generations", "//v1/images/generations/"):
        assert httpx.post(live.url + path, json=body, timeout=DEADLINE).status_code == 200
    assert httpx.get(f"{live.url}/v1/models/", timeout=DEADLINE).json()["object"] == "list"
    with openai.OpenAI(base_url=f"{live.url}/v1/", api_key="x") as slashed:
        assert slashed.models.list().data


def hang_up(live: Served, body: dict, after: float | None = None, **headers: str) -> None:
    """Ask for images, and close the connection after some seconds, or once the first one is being drawn."""
    content, steps = json.dumps(body).encode(), live.painter.steps
    lines = ["POST /v1/images/generations HTTP/1.1", f"host: {live.url.removeprefix('http://')}"]
    lines += [f"content-length: {len(content)}", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        if after is None:
            until(lambda: live.painter.steps > steps)
        else:
            time.sleep(after)


def test_hanging_up_stops_the_work(tmp_path):
    """Complaint 4, of a plain call and of a stream."""
    with serving(tmp_path, painter=Painter(step_seconds=0.02)) as live:
        for stream in (False, True):
            hang_up(live, {"prompt": "x", "size": "64x64", "steps": 250, "stream": stream, "n": 2})
            until(lambda: {job.state for job in live.ledger.list_jobs(None, limit=2)} == {"cancelled"})
        steps = live.painter.steps
        time.sleep(0.1)
        assert live.painter.steps <= steps + 1  # one may just have begun


def test_hanging_up_before_the_work_begins_leaves_none_behind(tmp_path):
    with serving(tmp_path, painter=Painter(step_seconds=0.02)) as live:
        for moment in range(12):
            body = {"prompt": "x", "size": "64x64", "steps": 250, "stream": moment % 2 == 0}
            hang_up(live, body, after=moment * 0.004)

        def ended() -> bool:
            return {job.state for job in live.ledger.list_jobs(None, limit=20)} <= {"cancelled"}

        time.sleep(0.1)  # what was read is accepted
        until(ended)
        until(lambda: live.state.waiting == {})


def test_a_full_queue_says_when_to_come_again(tmp_path):
    with (
        serving(tmp_path, painter=Painter(step_seconds=0.02), max_queued_jobs=2) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.images.generate(prompt="x", n=4, size="64x64")
        headers = caught.value.response.headers
        assert int(headers["retry-after"]) >= 1
        assert headers["x-should-retry"] == "true"
        assert caught.value.code == "rate_limit_exceeded"


def test_keys_guard_every_route(tmp_path):
    """Complaint 15."""
    public = "https://images.example.org/limner"
    with serving(tmp_path, public_url=public) as live:
        live.ledger.create_account("someone")
        _, secret = live.ledger.create_key("someone")
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong") as wrong:
            for call in (
                lambda: wrong.models.list(),
                lambda: wrong.models.retrieve("picturebook"),
                lambda: wrong.images.generate(prompt="x"),
                lambda: wrong.images.edit(prompt="x", image=photo()),
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    call()
                assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=secret) as right:
            answer = right.images.generate(
                prompt="x", size="64x64", response_format="url", extra_body={"steps": 1}
            )
        address = answer.data[0].url
        assert address.startswith(f"{public}/v1/images/")
        assert httpx.get(address.replace(public, live.url), timeout=DEADLINE).status_code == 200
        assert httpx.get(f"{live.url}/v1/models", timeout=DEADLINE).status_code == 401


def test_what_an_account_may_not_do_has_its_own_errors(tmp_path):
    with serving(tmp_path) as live:
        live.ledger.create_account("reader")
        live.ledger.create_account("poor", quotas=Quotas(images_per_day=1), policy={"max_side": 128})
        _, reading = live.ledger.create_key("reader", scopes=("read",))
        _, secret = live.ledger.create_key("poor")
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=reading) as sdk:
            assert sdk.models.list().data
            with pytest.raises(openai.PermissionDeniedError):
                sdk.images.generate(prompt="x")
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=secret) as sdk:
            with pytest.raises(openai.BadRequestError) as caught:
                sdk.images.generate(prompt="x", size="256x64")
            assert caught.value.param == "size"
            sdk.images.generate(prompt="x", size="64x64", extra_body={"steps": 1})
            with pytest.raises(openai.RateLimitError) as spent:
                sdk.images.generate(prompt="x", size="64x64")
            assert spent.value.code == "insufficient_quota"
            assert spent.value.response.headers["x-should-retry"] == "false"


def test_openais_names_can_be_turned_off(tmp_path):
    with (
        serving(tmp_path, openai_names=False, aliases={"dall-e-2": "picturebook"}) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x") as sdk,
    ):
        sdk.images.generate(
            prompt="x", model="dall-e-2", size="64x64", response_format="b64_json", extra_body={"steps": 1}
        )
        with pytest.raises(openai.NotFoundError):
            sdk.images.generate(prompt="x", model="dall-e-3")


def test_an_idempotency_key_draws_once(sdk, live):
    headers = {"Idempotency-Key": "one"}
    first, again = (
        sdk.images.generate(prompt="x", size="64x64", extra_body={"steps": 1}, extra_headers=headers)
        for _ in range(2)
    )
    assert first.data[0].b64_json == again.data[0].b64_json
    one, two = (
        sdk.images.edit(
            image=photo(), prompt="x", extra_body={"steps": 2}, extra_headers={"Idempotency-Key": "two"}
        )
        for _ in range(2)
    )
    assert one.data[0].model_extra["id"] == two.data[0].model_extra["id"]
    before = live.ledger.last_event()
    with pytest.raises(openai.ConflictError):
        sdk.images.generate(prompt="y", extra_headers=headers)
    assert live.ledger.last_event() == before


def test_an_idempotency_key_goes_on_after_hanging_up(tmp_path):
    with serving(tmp_path, painter=Painter(step_seconds=0.02)) as live:
        body = {"prompt": "x", "size": "64x64", "steps": 250}
        headers = {"idempotency-key": "one"}
        hang_up(live, body, **headers)
        until(lambda: [job.state for job in live.ledger.list_jobs(None)] == ["cancelled"])
        live.painter.step_seconds = 0.0
        url = f"{live.url}/v1/images/generations"
        answer = httpx.post(url, json=body, headers=headers, timeout=DEADLINE)
        assert answer.status_code == 200
        assert answer.headers["idempotent-replayed"] == "true"
        assert len(live.ledger.list_jobs(None)) == 1


def test_an_idempotency_key_does_not_go_on_with_what_its_user_cancelled(tmp_path):
    with serving(tmp_path, working=False) as live:
        body = {"prompt": "x", "size": "64x64", "steps": 3}
        headers = {"idempotency-key": "one"}
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(live.client.post, "/v1/images/generations", json=body, headers=headers)
            until(lambda: live.ledger.list_jobs(None))
            [job] = live.ledger.list_jobs(None)
            live.ledger.cancel(account_id=job.account_id, job_ids=[job.id])
            assert asking.result().status_code >= 400
        again = live.client.post("/v1/images/generations", json=body, headers=headers)
        assert again.status_code >= 400
        assert "cancelled" in again.json()["error"]["message"]
        assert [one.state for one in live.ledger.list_jobs(None)] == ["cancelled"]


def test_two_who_repeat_at_once_after_hanging_up_get_the_same(tmp_path, monkeypatch):
    with serving(tmp_path, painter=Painter(step_seconds=0.01)) as live:
        body = {"prompt": "x", "size": "64x64", "steps": 30}
        headers = {"idempotency-key": "one"}
        hang_up(live, body, **headers)
        until(lambda: [job.state for job in live.ledger.list_jobs(None)] == ["cancelled"])
        retry = live.ledger.retry
        both, retried = threading.Barrier(2), []

        def retry_with_the_other(**given):
            both.wait(DEADLINE)
            retried.append(given["job_id"])
            return retry(**given)

        monkeypatch.setattr(live.ledger, "retry", retry_with_the_other)
        url = f"{live.url}/v1/images/generations"
        ask = partial(httpx.post, url, json=body, headers=headers, timeout=DEADLINE)
        answers = at_once(ask, ask)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert len(retried) == 2
        assert len(live.ledger.list_jobs(None)) == 1


def test_what_was_accepted_is_answered_though_its_model_is_gone(tmp_path, monkeypatch):
    with serving(tmp_path) as live:
        body = {"prompt": "x", "size": "64x64", "steps": 2}
        headers = {"idempotency-key": "one"}
        first = live.client.post("/v1/images/generations", json=body, headers=headers)
        assert first.status_code == 200

        def gone(*_, **__):
            raise ModelNotFound("there is no checkpoint of this name")

        monkeypatch.setattr(live.state.intake, "find_model", gone)
        again = live.client.post("/v1/images/generations", json=body, headers=headers)
        assert again.status_code == 200
        assert again.json()["data"] == first.json()["data"]
        assert live.client.post("/v1/images/generations", json=body).status_code == 404


def test_an_idempotency_key_waits_for_what_is_about_to_be_stopped(tmp_path):
    with serving(tmp_path, painter=Painter(step_seconds=0.25)) as live:
        body = {"prompt": "x", "size": "64x64", "steps": 3, "seed": 5}
        hang_up(live, body, **{"idempotency-key": "one"})
        url, headers = f"{live.url}/v1/images/generations", {"idempotency-key": "one"}
        answer = httpx.post(url, json=body, headers=headers, timeout=DEADLINE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["seed"] == 5
        answer = httpx.post(url, json=body, headers={"idempotency-key": "k" * 256}, timeout=DEADLINE)
        assert answer.status_code == 400
        assert "Idempotency-Key" in answer.json()["error"]["message"]


def test_the_async_client_draws_many_at_once(live):
    async def draw() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x") as sdk:
            plain = [
                sdk.images.generate(prompt="x", size="64x64", extra_body={"seed": seed, "steps": 2})
                for seed in range(8)
            ]

            async def streamed(seed: int) -> str:
                stream = await sdk.images.generate(
                    prompt="x", size="64x64", stream=True, extra_body={"seed": seed, "steps": 2}
                )
                return [event.b64_json async for event in stream][-1]

            answers = await asyncio.gather(*plain, *map(streamed, range(8)))
        return [opened(one if isinstance(one, str) else one.data[0].b64_json).tobytes() for one in answers]

    drawn = asyncio.run(draw())
    assert drawn[:8] == drawn[8:]
    assert len(set(drawn)) == 8


def test_a_client_like_open_webui(live):
    """Bare bytes, `image` for one picture, text values, its own headers, an `api-version`."""
    headers = {"Authorization": "Bearer x", "X-OpenWebUI-User-Name": "A", "X-OpenWebUI-User-Id": "1"}
    with httpx.Client(base_url=f"{live.url}/v1", headers=headers, timeout=DEADLINE) as http:
        assert http.get("/models").json()["data"]
        made = http.post(
            "/images/generations?api-version=2025-04-01",
            json={
                "model": "dall-e-2",
                "prompt": "x",
                "n": 1,
                "size": "512x512",
                "response_format": "b64_json",
            },
        ).json()["data"]
        edited = http.post(
            "/images/edits",
            data={"model": "", "prompt": "x", "n": "1", "size": "64x64", "response_format": "b64_json"}
            | {"model": "picturebook"},
            files={"image": ("blob", photo(), "application/octet-stream")},
        ).json()["data"]
    assert opened(made[0]["b64_json"]).size == (512, 512)
    assert opened(edited[0]["b64_json"]).size == (64, 64)


def test_a_client_like_the_vercel_sdk(live):
    """Node's fetch: Sec-Fetch-Mode without Origin; `response_format` for each model that it does not know."""
    headers = {"sec-fetch-mode": "cors", "accept-language": "*", "authorization": "Bearer x"}
    body = {"model": "picturebook", "prompt": "x", "n": 1, "size": "64x64", "response_format": "b64_json"}
    answer = httpx.post(
        f"{live.url}/v1/images/generations", json={**body, "seed": 5}, headers=headers, timeout=DEADLINE
    )
    assert answer.status_code == 200
    assert answer.json()["data"][0]["seed"] == 5


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_a_client_that_names_no_file(live, form):
    """The parts of a form as .NET writes them: names without quotes, texts with a type, a quoted boundary."""
    parts = [(b"prompt; x=1", b"text/plain; charset=utf-8", "ein rotes Boot, grün".encode())]
    parts += [(b"steps", b"text/plain; charset=utf-8", b"4"), (b"image", b"image/png", photo(form))]
    body = b"".join(
        b"--y\r\nContent-Type: %s\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n"
        % (kind, name, content)
        for name, kind, content in parts
    )
    answer = httpx.post(
        f"{live.url}/v1/images/edits",
        content=body + b"--y--\r\n",
        headers={"content-type": 'multipart/form-data; boundary="y"'},
        timeout=DEADLINE,
    )
    assert answer.status_code == 200, answer.text
    assert record_of(answer.json()["data"][0]["b64_json"]).request.prompt == "ein rotes Boot, grün"


def test_pages_of_other_origins_are_refused_in_openais_shape(live):
    answer = httpx.post(
        f"{live.url}/v1/images/generations",
        json={"prompt": "x"},
        headers={"origin": "https://evil.example"},
        timeout=DEADLINE,
    )
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_sdk_in_a_page_of_an_allowed_origin(tmp_path):
    """`dangerouslyAllowBrowser`: the browser asks first whether the SDK's headers may be sent."""
    origin = {"origin": "https://app.example"}
    wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    with serving(tmp_path, working=False, cors_origins=(origin["origin"],)) as live:
        url = f"{live.url}/v1/images/generations"
        allowed = httpx.options(url, headers={**origin, **asked}, timeout=DEADLINE)
        refused = httpx.post(url, json={"prompt": "x", "n": 0}, headers=origin, timeout=DEADLINE)
    assert allowed.status_code == 204
    assert set(wanted.split(",")) <= set(allowed.headers["access-control-allow-headers"].split(","))
    assert refused.status_code == 400
    assert refused.headers["access-control-allow-origin"] == origin["origin"]
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_a_slow_form_in_pieces_is_read(live):
    """Node sends forms in chunks."""
    boundary, done = "y", threading.Event()

    def parts() -> Iterator[bytes]:
        for name, value in (("prompt", b"x"), ("steps", b"2"), ("image", photo())):
            kind = '; filename="p.png"' if name == "image" else ""
            yield f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode()
            yield value[:5]
            yield value[5:] + b"\r\n"
        yield f"--{boundary}--\r\n".encode()
        done.set()

    answer = httpx.post(
        f"{live.url}/v1/images/edits",
        content=parts(),
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        timeout=DEADLINE,
    )
    assert done.is_set()
    assert answer.status_code == 200


def test_a_refused_prompt_is_the_sdks_bad_request(sdk, live):
    before = live.ledger.last_event()
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="a hentai poster")
    error = caught.value
    assert (error.code, error.type) == ("content_policy_violation", "image_generation_user_error")
    assert error.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="safety policy"):
        sdk.images.edit(image=photo(), prompt="a hentai poster")
    with pytest.raises(openai.BadRequestError, match="safety policy"):
        list(sdk.images.generate(prompt="a hentai poster", stream=True, partial_images=1))
    assert live.ledger.last_event() == before
