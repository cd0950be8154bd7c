"""The routes of AUTOMATIC1111's API on a server with a fake engine, as its clients call them."""

import base64
import io
import json
import re
import shutil
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from PIL import Image

from limner.catalogue.shipped import SHIPPED
from limner.errors import InvalidRequest, NumericalError, OutOfMemory
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_record
from limner.request import GenerationRequest
from limner.service.fake import fake_preview
from tests.serving import Painter, serving
from tests.waiting import DEADLINE, until

FACTS = json.loads((Path(__file__).parents[3] / "golden/sdapi/facts.json").read_text(encoding="utf-8"))
NOT_OFFERED = {
    "/sdapi/v1/create/embedding",
    "/sdapi/v1/create/hypernetwork",
    "/sdapi/v1/train/embedding",
    "/sdapi/v1/train/hypernetwork",
    "/sdapi/v1/server-kill",
    "/sdapi/v1/server-restart",
    "/sdapi/v1/server-stop",
    "/sdapi/v1/artists",
    "/sdapi/v1/artist-categories",
    "/sdapi/v1/version",
    "/sdapi/v1/sd-modules",
    "/controlnet/render_openpose_json",
    "/controlnet/txt2img",
    "/controlnet/img2img",
}
SMALL = {"prompt": "a red boat", "width": 64, "height": 64, "steps": 4}


def picture(size=(64, 64), colour="red"):
    encoded = io.BytesIO()
    Image.new("RGB", size, colour).save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def pixels(body):
    return [opened(image).tobytes() for image in body["images"]]


def draw(client, kind="txt2img", headers=None, **fields):
    answer = client.post(f"/sdapi/v1/{kind}", json={**SMALL, **fields}, headers=headers or {})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body, json.loads(body["info"])


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("open")) as running:
        yield running.client


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("slow")) as running:
        yield running


@pytest.fixture
def slow(slow_server):
    """A server that draws slowly, until a test sets the speed of its painter."""
    slow_server.painter.step_seconds = 0.05
    return slow_server


def test_every_route_that_a_client_calls_is_there(client):
    bodies = {
        "/sdapi/v1/txt2img": SMALL,
        "/sdapi/v1/img2img": {**SMALL, "init_images": [picture()]},
        "/sdapi/v1/extra-single-image": {"image": picture()},
        "/sdapi/v1/extra-batch-images": {"imageList": [{"data": picture(), "name": "a"}]},
        "/sdapi/v1/png-info": {"image": picture()},
        "/controlnet/detect": {"controlnet_module": "none", "controlnet_input_images": [picture()]},
        "/sdapi/v1/interrogate": {"image": picture()},
        "/internal/progress": {"id_task": "nothing"},
    }
    for method, path, _ in FACTS["routes"]:
        answer = client.request(method, path, json=bodies.get(path, {}))
        if path in NOT_OFFERED:
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"}), path
        elif path == "/sdapi/v1/interrogate":
            assert answer.status_code == 404  # the fake worker has no model for it
            assert "Model not found" in answer.json()["detail"]
        else:
            assert answer.status_code == 200, (path, answer.text)
            answer.json()  # also null is JSON: browsers parse it
            assert "x-process-time" in answer.headers


def test_a_picture(client):
    body, info = draw(client, seed=7)
    [image] = body["images"]
    assert not image.startswith("data:")
    assert opened(image).size == (64, 64)
    assert info.keys() >= set(FACTS["info_keys"])
    assert (info["seed"], info["all_seeds"], info["index_of_first_image"]) == (7, [7], 0)
    assert opened(image).text["parameters"] == info["infotexts"][0]
    assert body["parameters"]["steps"] == 4
    assert body["parameters"].keys() >= FACTS["txt2img"].keys()
    assert info["sampler_name"] == "Euler"
    assert info["sd_model_name"].endswith("picturebook")
    again, _ = draw(client, seed=7)
    assert pixels(again) == pixels(body)
    random, first = draw(client)
    assert first["seed"] >= 0
    assert pixels(draw(client, seed=first["seed"])[0]) == pixels(random)


def test_parameters_name_the_models_own_size_and_steps(client):
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a", "height": 64}).json()
    info = json.loads(answer["info"])
    drawn = opened(answer["images"][0])
    assert (answer["parameters"]["width"], answer["parameters"]["height"]) == drawn.size
    assert drawn.size != (512, 512)
    steps = int(parse_infotext(info["infotexts"][0])["Steps"])
    assert answer["parameters"]["steps"] == steps != 50


def test_the_pictures_of_a_batch_take_the_next_seeds(client):
    body, info = draw(client, seed=5, batch_size=2, n_iter=2, do_not_save_grid=False, save_images=True)
    assert info["all_seeds"] == [5, 6, 7, 8]
    assert len(body["images"]) == len(info["infotexts"]) == 4
    assert info["without_effect"] == ["do_not_save_grid"]
    single, _ = draw(client, seed=7)
    assert opened(single["images"][0]).tobytes() == opened(body["images"][2]).tobytes()


def test_pictures_in_other_formats_and_none(client):
    body, info = draw(client, override_settings={"samples_format": "jpg", "jpeg_quality": 90})
    image = opened(body["images"][0])
    assert image.format == "JPEG"
    answer = client.post("/sdapi/v1/png-info", json={"image": body["images"][0]}).json()
    assert answer["info"] == info["infotexts"][0]
    assert opened(draw(client, override_settings={"samples_format": "webp"})[0]["images"][0]).format == "WEBP"
    plain = opened(draw(client, override_settings={"enable_pnginfo": False})[0]["images"][0])
    assert plain.format == "PNG"
    assert not plain.text
    assert draw(client, send_images=False)[0]["images"] == []


def test_img2img_and_inpainting(client):
    body, info = draw(client, "img2img", init_images=["data:image/png;base64," + picture()])
    assert info["denoising_strength"] == 0.75
    assert body["parameters"]["init_images"] is None
    body, info = draw(client, "img2img", init_images=[picture()], mask=picture(colour="white"))
    assert "Denoising strength: 0.75" in info["infotexts"][0]
    missing = client.post("/sdapi/v1/img2img", json=SMALL)
    assert (missing.status_code, missing.json()["detail"]) == (404, "Init image not found")


def test_an_infotext_sent_back_gives_the_same_picture(client):
    body, info = draw(client, seed=11, sampler_name="DPM++ 2M", scheduler="Karras", negative_prompt="rain")
    answer = client.post("/sdapi/v1/txt2img", json={"infotext": info["infotexts"][0]}).json()
    assert pixels(answer) == pixels(body)


def test_png_info(client):
    body, info = draw(client, seed=3)
    for image in (body["images"][0], "data:image/png;base64," + body["images"][0]):
        answer = client.post("/sdapi/v1/png-info", json={"image": image}).json()
        assert answer["info"] == info["infotexts"][0]
        assert answer["parameters"]["Seed"] == "3"
        assert (answer["parameters"]["Size-1"], answer["parameters"]["Clip skip"]) == ("64", "1")
    empty = client.post("/sdapi/v1/png-info", json={"image": picture()}).json()
    assert (empty["info"], empty["parameters"]) == ("", {})


def test_options_are_the_accounts_own_and_kept(slow):
    client, alice, bob = slow.client, slow.key("olaf"), slow.key("petra")
    whole = client.get("/sdapi/v1/options", headers=alice).json()
    assert whole.keys() >= FACTS["options"].keys()
    assert whole["sd_model_checkpoint"] == "picturebook"
    for path in ("/sdapi/v1/options", "//sdapi/v1/options", "/sdapi/v1/options/"):
        answer = httpx.post(
            slow.url + path,
            json={**whole, "CLIP_stop_at_last_layers": 1, "own": [1]},
            headers=alice,
            timeout=DEADLINE,
        )
        assert (answer.status_code, answer.json()) == (200, None)
    assert client.get("/sdapi/v1/options", headers=alice).json() == {**whole, "own": [1]}
    assert "own" not in client.get("/sdapi/v1/options", headers=bob).json()
    client.post("/sdapi/v1/options", json={"samples_format": "jpg"}, headers=alice)
    assert opened(draw(client, headers=alice)[0]["images"][0]).format == "JPEG"
    assert opened(draw(client, headers=bob)[0]["images"][0]).format == "PNG"
    draw(
        client,
        headers=bob,
        override_settings={"samples_format": "webp"},
        override_settings_restore_afterwards=False,
    )
    assert client.get("/sdapi/v1/options", headers=bob).json()["samples_format"] == "webp"


def test_a_model_that_is_not_there_is_refused_by_name(slow):
    client, headers = slow.client, slow.key("carol")
    wrong = {"override_settings": {"sd_model_checkpoint": "dreams.safetensors [0123456789]"}}
    answer = client.post("/sdapi/v1/txt2img", json={**SMALL, **wrong}, headers=headers)
    assert answer.status_code == 400
    assert "dreams.safetensors" in answer.json()["detail"]
    assert "picturebook" in answer.json()["detail"]
    answer = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "dreams"}, headers=headers)
    assert answer.status_code == 400
    assert client.get("/sdapi/v1/options", headers=headers).json()["sd_model_checkpoint"] == "picturebook"
    _, info = draw(client, headers=headers, override_settings={"sd_model_checkpoint": "picturebook"})
    assert info["sd_model_name"].endswith("picturebook")


@pytest.mark.skipif(not SHIPPED["picturebook"].is_dir(), reason="the shipped model is not here")
def test_a_model_given_for_one_request_is_not_that_of_the_next(tmp_path):
    shutil.copytree(SHIPPED["picturebook"], tmp_path / "models" / "other")
    with serving(tmp_path / "data", model_dirs=(tmp_path / "models",)) as served:
        titles = [one["title"] for one in served.client.get("/sdapi/v1/sd-models").json()]
        assert sorted(titles) == ["other", "picturebook"]

        def model(**fields):
            return draw(served.client, **fields)[1]["sd_model_name"].removeprefix("checkpoint:")

        assert model(override_settings={"sd_model_checkpoint": "Other"}) == "other"
        assert model() == "picturebook"
        stays = {"override_settings_restore_afterwards": False}
        assert model(override_settings={"sd_model_checkpoint": "other"}, **stays) == "other"
        assert model() == "other"
        served.client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "picturebook"})
        assert model() == "picturebook"


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"width": "wide"}, 422, None),
        ({"sampler_name": "Magic"}, 400, "Sampler not found"),
        ({"width": 9000}, 400, "width"),
        ({"steps": 0}, 400, "steps"),
        ({"cfg_scale": 0.5}, 400, "cfg_scale"),
        ({"alwayson_scripts": {"roop": {"args": [True]}}}, 422, "controlnet"),
        ({"script_name": "loopback"}, 422, "loopback"),
        ({"styles": ["Nothing"]}, 400, "Nothing"),
        ({"force_task_id": "x" * 200}, 400, "force_task_id"),
    ],
)
def test_errors_have_the_shape_that_clients_show(client, fields, status, says):
    answer = client.post("/sdapi/v1/txt2img", json={**SMALL, **fields})
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    if says is None:
        assert detail[0]["loc"] == ["body", "width"]
        assert {"msg", "type"} <= detail[0].keys()
    else:
        assert says in detail
        assert answer.json().keys() == {"error", "detail", "body", "errors"}


def test_bodies_that_are_no_object_and_routes_that_are_not_there(client):
    for content, status in ((b"{", 400), (b"[1]", 422), (b'"x"', 422), (b"\xff\xfe", 400)):
        answer = client.post("/sdapi/v1/txt2img", content=content)
        assert answer.status_code == status
        assert answer.json()["detail"]
    assert client.get("/sdapi/v1/txt2img").status_code == 405
    assert client.get("/sdapi/v1/nothing").json() == {"detail": "Not Found"}
    assert client.post("/sdapi/v1/img2img", json={**SMALL, "init_images": ["AAAA"]}).status_code == 400


def test_keys_are_sent_as_basic(tmp_path):
    with serving(tmp_path) as served:
        client = served.client
        for header in ("", "Basic", "Basic !!!", "Basic dXNlcjpwYXNz"):  # of no meaning without keys
            answer = client.get("/sdapi/v1/options", headers={"authorization": header})
            assert answer.status_code == 200, header
        secret = served.key("alice")["authorization"].removeprefix("Bearer ")
        for auth in (("alice", secret), ("", secret), (secret.partition(":")[0], "x")):
            answer = client.get("/sdapi/v1/options", auth=auth)
            assert answer.status_code == (200 if secret in auth else 401)
        for headers in ({}, {"authorization": ""}, {"authorization": "Basic bm86bm8="}):
            answer = client.get("/sdapi/v1/cmd-flags", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["detail"] == "Incorrect username or password"
            assert answer.headers["www-authenticate"] == "Basic"
        assert client.get("/queue/status").json()["msg"] == "estimation"


def test_the_length_of_the_queue_is_told_to_who_may_read_and_seldom_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("limner.service.intake._LOAD_SECONDS", 60.0)
    with serving(tmp_path, working=False) as served:
        size = lambda **more: served.client.get("/queue/status", **more).json()["queue_size"]  # noqa: E731
        served.client.post("/api/v1/jobs", json={"request": {"prompt": "x", "num_images": 3}})
        looked_up, load = [], served.ledger.load
        monkeypatch.setattr(served.ledger, "load", lambda: looked_up.append(1) or load())
        assert [size() for _ in range(5)] == [3] * 5
        key = served.key("alice")
        assert (size(headers=key), size()) == (3, 0)
        assert not looked_up


def test_extras(client):
    half = {"image": picture((30, 20)), "upscaling_resize": 2, "upscaler_1": "Lanczos"}
    answer = client.post("/sdapi/v1/extra-single-image", json=half).json()
    assert opened(answer["image"]).size == (60, 40)
    sized = {**half, "resize_mode": 1, "upscaling_resize_w": 50, "upscaling_resize_h": 50}
    assert opened(client.post("/sdapi/v1/extra-single-image", json=sized).json()["image"]).size == (50, 50)
    whole = {**sized, "upscaling_crop": False, "upscaler_1": "Nearest"}
    assert opened(client.post("/sdapi/v1/extra-single-image", json=whole).json()["image"]).size == (50, 33)
    same = {**half, "upscaler_1": "None"}
    assert opened(client.post("/sdapi/v1/extra-single-image", json=same).json()["image"]).size == (30, 20)
    unknown = client.post("/sdapi/v1/extra-single-image", json={**half, "upscaler_1": "R-ESRGAN 4x+"})
    assert unknown.status_code == 400
    assert "Lanczos" in unknown.json()["detail"]
    huge = client.post(
        "/sdapi/v1/extra-single-image", json={**half, "image": picture((2000, 2000)), "upscaling_resize": 60}
    )
    assert huge.status_code == 400
    several = {"imageList": [{"data": picture(), "name": "a"}, {"data": picture()}], "upscaler_1": "Lanczos"}
    assert len(client.post("/sdapi/v1/extra-batch-images", json=several).json()["images"]) == 2


def test_control_images_are_detected(client):
    lines = Image.new("RGB", (64, 64))
    lines.paste("white", (16, 16, 48, 48))
    encoded = io.BytesIO()
    lines.save(encoded, "PNG")
    image = base64.b64encode(encoded.getvalue()).decode()
    for key in ("controlnet_input_images", "controlnet_images"):
        body = {"controlnet_module": "canny", key: [image], "controlnet_processor_res": 128}
        answer = client.post("/controlnet/detect", json=body).json()
        assert answer["info"] == "Success"
        edges = opened(answer["images"][0])
        assert edges.size == (128, 128)
        assert edges.getextrema() == (0, 255)
    for module, images in (("openpose", [image]), ("canny", [])):
        body = {"controlnet_module": module, "controlnet_input_images": images}
        assert client.post("/controlnet/detect", json=body).status_code == 422
    types = client.get("/controlnet/control_types").json()["control_types"]
    assert "canny" in types["Canny"]["module_list"]
    assert client.get("/controlnet/module_list?alias_names=true").json()["module_list"][0] == "none"


def test_an_empty_object_is_a_request_and_no_body_is_none(client):
    assert len(client.post("/sdapi/v1/txt2img", json={}).json()["images"]) == 1
    for kind in ("txt2img", "img2img"):
        refused = client.post(f"/sdapi/v1/{kind}")
        assert refused.status_code == 422
        assert refused.json()["detail"] == [
            {"loc": ["body"], "msg": "field required", "type": "value_error.missing"}
        ]


class Drawing:
    """A request in a thread of its own."""

    def __init__(self, served, headers=None, kind="txt2img", **fields):
        self.answer = None
        self._arguments = served.url, headers or {}, kind, {**SMALL, **fields}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        url, headers, kind, body = self._arguments
        self.answer = httpx.post(f"{url}/sdapi/v1/{kind}", json=body, headers=headers, timeout=DEADLINE)

    def result(self):
        self._thread.join(DEADLINE)
        assert self.answer is not None
        assert self.answer.status_code == 200, self.answer.text
        body = self.answer.json()
        return body, json.loads(body["info"])


def progress(served, headers=None, **query):
    return served.client.get("/sdapi/v1/progress", params=query, headers=headers or {}).json()


def test_progress_while_a_request_runs_and_after(slow):
    headers = slow.key("hans")
    drawing = Drawing(slow, headers, steps=250)
    seen = until(lambda: (told := progress(slow, headers))["state"]["job"] and told)
    assert seen["state"]["job"] == "scripts_txt2img"
    assert 0 < seen["progress"] < 1
    slow.painter.step_seconds = 0.0
    drawing.result()
    after = progress(slow, headers)
    assert (after["progress"], after["eta_relative"], after["state"]["job_count"]) == (0.0, 0.0, 0)
    assert after["current_image"] is None


@pytest.fixture
def patient(monkeypatch):
    """A worker has enough time to send an unfinished image."""
    for name in ("_DECODING", "_ANSWERING"):
        monkeypatch.setattr(f"limner.server.sdapi.running.{name}", float(DEADLINE))


@pytest.mark.usefixtures("patient")
def test_interrupt_ends_ones_own_request_with_the_image_so_far(slow):
    alice, bob = slow.key("alice"), slow.key("bob")
    first = Drawing(slow, alice, n_iter=2, steps=250, seed=5)
    until(lambda: progress(slow, alice)["state"]["sampling_step"] > 2)
    second = Drawing(slow, bob, steps=250, prompt="a house")
    until(lambda: progress(slow, bob)["state"]["job"])
    assert slow.client.post("/sdapi/v1/interrupt", headers=alice).json() == {}
    body, info = first.result()
    assert info["interrupted"]
    [image] = body["images"]
    assert opened(image).size == (64, 64)
    step = int(re.search("image 1 was interrupted after step ([0-9]+)", info["warnings"][0])[1])
    request = GenerationRequest(prompt=info["prompt"], seed=5, width=64, height=64)
    so_far = fake_preview(request, step, 250).resize((64, 64))
    assert opened(image).convert("RGB").tobytes() == so_far.tobytes()
    assert progress(slow, bob)["state"]["job"]  # the other goes on
    slow.client.post("/sdapi/v1/interrupt", headers=bob)
    assert second.result()[1]["interrupted"]


class Stuck(Painter):
    """Once `stuck`, a step and the decoding of unfinished images last until `go_on`."""

    def __init__(self):
        super().__init__(step_seconds=0.1)
        self.stuck, self.go_on = threading.Event(), threading.Event()

    def device(self, *arguments):
        made = super().device(*arguments)
        take_step = made.engine._take_step

        def stuck(job, index, step, steps):
            if self.stuck.is_set():
                self.go_on.wait(DEADLINE)
            take_step(job, index, step, steps)

        made.engine._take_step = stuck
        made.unfinished = lambda request, progress, seconds: self.go_on.wait(DEADLINE) and None
        return made


def test_interrupt_waits_neither_for_a_step_nor_for_a_decoder(tmp_path):
    painter = Stuck()
    with serving(tmp_path, painter=painter) as served:
        drawing = Drawing(served, batch_size=2, steps=200)
        until(lambda: progress(served)["current_image"])
        painter.stuck.set()
        served.client.post("/sdapi/v1/interrupt")
        assert progress(served)["state"]["job_count"] == 0
        body, info = drawing.result()
        assert not painter.go_on.is_set()
        painter.go_on.set()
        assert info["interrupted"]
        [image] = body["images"]
        record = read_record(io.BytesIO(base64.b64decode(image)))
        assert record.notes["interrupted"].startswith("a preview after step")
        until(lambda: {job.state for job in served.ledger.list_jobs(None)} == {"cancelled"})


@pytest.mark.usefixtures("patient")
def test_skip_ends_the_picture_that_runs_alone(slow):
    headers = slow.key("dave")
    drawing = Drawing(slow, headers, n_iter=2, steps=250)
    until(lambda: progress(slow, headers)["state"]["sampling_step"] > 2)
    assert slow.client.post("/sdapi/v1/skip", headers=headers).json() is None
    until(lambda: "cancelled" in {job.state for job in slow.ledger.list_jobs("dave")})
    slow.painter.step_seconds = 0.0
    _, info = drawing.result()
    assert info["interrupted"]
    assert len(info["all_seeds"]) == 2
    assert "image 1 was interrupted after step" in info["warnings"][0]


def test_a_request_is_followed_by_its_name(slow):
    headers = slow.key("erin")
    drawing = Drawing(slow, headers, steps=250, n_iter=8, force_task_id="task(one)")

    def ask(task, **more):
        body = {"id_task": task, **more}
        return slow.client.post("/internal/progress", json=body, headers=headers).json()

    until(lambda: ask("task(one)")["active"])
    waiting = Drawing(slow, headers, steps=2, force_task_id="task(two)")
    until(lambda: ask("task(two)")["queued"])
    assert ask("task(two)")["textinfo"].startswith("In queue: ")
    pending = slow.client.get("/internal/pending-tasks", headers=headers).json()
    assert pending == {"size": 2, "tasks": ["task(one)", "task(two)"]}
    assert ask("nothing") == {**ask("nothing"), "active": False, "queued": False, "completed": False}
    other = slow.key("frank")
    assert not slow.client.post("/internal/progress", json={"id_task": "task(one)"}, headers=other).json()[
        "active"
    ]
    slow.client.post("/sdapi/v1/interrupt", params={"id_task": "task(one)"}, headers=headers)
    drawing.result()
    waiting.result()
    assert ask("task(two)")["completed"]


def test_hanging_up_ends_the_request(slow):
    headers = slow.key("gina")
    with closing(HTTPConnection(slow.url.removeprefix("http://"))) as connection:
        body = json.dumps({**SMALL, "steps": 250})
        connection.request("POST", "/sdapi/v1/txt2img", body, headers | {"content-type": "application/json"})
        until(lambda: slow.ledger.list_jobs("gina"))
    until(lambda: not slow.ledger.list_jobs("gina", states=("running", "queued")))
    [job] = slow.ledger.list_jobs("gina")
    assert job.state == "cancelled"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NumericalError("the networks produced NaN"), 500),
        (InvalidRequest("a mask is black", fields=("mask",)), 400),
        (OutOfMemory("the image is too large"), 503),
    ],
)
def test_a_request_that_fails_says_why(tmp_path, error, status):
    painter = Painter(failures={"a fault": error})
    with serving(tmp_path, painter=painter) as served:
        answer = served.client.post("/sdapi/v1/txt2img", json={**SMALL, "prompt": "a fault"})
    assert (answer.status_code, error.message in answer.json()["detail"]) == (status, True), answer.text
