"""AUTOMATIC1111's API of `limner serve` with the shipped model, in processes of its own."""

import base64
import io
import json
import threading
from contextlib import closing
from http.client import HTTPConnection

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.service import Service
from limner.catalogue.shipped import SHIPPED
from limner.images.record import Record
from tests.waiting import DEADLINE, until

pytestmark = pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not here"
)
LONG = {"prompt": "a red house at night", "steps": 250}
TIMEOUT = 300.0  # seconds: a worker imports torch and loads the model, and draws for others as well


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    data = tmp_path_factory.mktemp("served") / "data"
    with Service(data, "--set", "watermark=off") as service:  # exact pixels are compared
        until(lambda: ready(service.url), "readiness", TIMEOUT)
        yield service.url


def ready(address):
    try:
        return httpx.get(f"{address}/health/ready", timeout=DEADLINE).status_code == 200
    except httpx.TransportError:
        return False


def generate(url, kind="txt2img", **fields):
    answer = httpx.post(f"{url}/sdapi/v1/{kind}", json=fields, timeout=TIMEOUT)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
    return images, json.loads(body["info"])


class Background:
    """A request in a thread of its own."""

    def __init__(self, url, **fields):
        self.found = None
        self._thread = threading.Thread(target=self._run, args=(url, fields), daemon=True)
        self._thread.start()

    def _run(self, url, fields):
        self.found = generate(url, **fields)

    @property
    def ended(self):
        return not self._thread.is_alive()

    def result(self):
        self._thread.join(TIMEOUT)
        assert self.found is not None
        return self.found


def progress(url):
    return httpx.get(f"{url}/sdapi/v1/progress", timeout=DEADLINE).json()


def task(url, name):
    return httpx.post(f"{url}/internal/progress", json={"id_task": name}, timeout=DEADLINE).json()


def test_progress_rises_and_ends_idle(url):
    drawing = Background(url, **LONG)
    seen = []

    def enough():
        seen.append(progress(url))
        return len({one["progress"] for one in seen}) > 5 and any(one["current_image"] for one in seen)

    until(enough)
    assert not drawing.ended
    drawing.result()
    values = [one["progress"] for one in seen if one["state"]["job_count"]]
    assert values == sorted(values)
    assert len(set(values)) >= 4
    assert max(values) < 1
    assert any(one["current_image"] for one in seen)
    idle = progress(url)
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)


def test_two_at_once_have_a_progress_each(url):
    first = Background(url, **{**LONG, "force_task_id": "first"})
    until(lambda: (task(url, "first")["progress"] or 0) > 0.1)
    second = Background(url, **{**LONG, "force_task_id": "second"})
    until(lambda: task(url, "second")["active"])
    two, one = task(url, "second"), task(url, "first")
    assert one["progress"] > two["progress"] > 0
    httpx.post(f"{url}/sdapi/v1/interrupt", params={"id_task": "second"}, timeout=DEADLINE)
    second.result()
    assert task(url, "second")["completed"]
    assert task(url, "first")["active"]
    httpx.post(f"{url}/sdapi/v1/interrupt", timeout=DEADLINE)
    first.result()


def test_interrupt_answers_with_the_image_so_far(url):
    drawing = Background(url, **LONG)
    until(lambda: (told := progress(url))["state"]["sampling_step"] >= 5 and told["current_image"])
    httpx.post(f"{url}/sdapi/v1/interrupt", timeout=DEADLINE)
    images, info = drawing.result()
    assert [image.size for image in images] == [(128, 128)]
    assert info["interrupted"]
    assert "interrupted after step" in info["warnings"][0]
    record = Record.model_validate_json(images[0].text["limner"])
    assert "after step" in record.notes["interrupted"]  # decoded, or a preview where the machine is busy


def test_a_client_that_hangs_up_ends_its_request(url):
    with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/sdapi/v1/txt2img", json.dumps(LONG), headers)
        until(lambda: progress(url)["state"]["job_count"] > 0)
    newest = f"{url}/api/v1/jobs?limit=1"
    until(lambda: httpx.get(newest, timeout=DEADLINE).json()["items"][0]["state"] == "cancelled")


def test_the_same_request_gives_the_same_image_alone_and_with_others(url):
    fields = {"prompt": "a red boat on the sea", "seed": 7, "steps": 3, "sampler_name": "DPM++ 2M Karras"}
    [alone], info = generate(url, **fields)
    others = [Background(url, **{**fields, "seed": seed, "prompt": "a tree"}) for seed in range(8)]
    [beside], _ = generate(url, **fields)
    batch, _ = generate(url, **{**fields, "seed": 5, "batch_size": 3})
    [again], _ = generate(url, infotext=info["infotexts"][0])
    for one in others:
        one.result()
    for image in (beside, batch[2], again):
        assert np.array_equal(np.asarray(image), np.asarray(alone))


def test_inpainting_keeps_what_is_not_masked(url):
    [start], _ = generate(url, prompt="a red boat on the sea", seed=3, steps=6)
    mask = Image.new("L", start.size, 0)
    mask.paste(255, (0, 0, 64, 128))
    texts = []
    for image in (start, mask):
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        texts.append(base64.b64encode(encoded.getvalue()).decode())
    for fill in (0, 1):
        [made], _ = generate(
            url,
            "img2img",
            prompt="a tree",
            init_images=[texts[0]],
            mask=texts[1],
            mask_blur=0,
            inpainting_fill=fill,
            inpaint_full_res=False,
            steps=4,
        )
        assert np.array_equal(np.asarray(made)[:, 64:], np.asarray(start)[:, 64:])
        assert not np.array_equal(np.asarray(made)[:, :64], np.asarray(start)[:, :64])


def test_interrogate_says_what_an_image_shows(url):
    [image], _ = generate(url, prompt="a red house in a meadow", seed=3)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    for picture, status in ((encoded.getvalue(), 200), (None, 404)):
        if picture is None:
            blank = io.BytesIO()
            Image.new("RGB", (64, 64), "gray").save(blank, "PNG")
            picture = blank.getvalue()
        body = {"image": "data:image/png;base64," + base64.b64encode(picture).decode(), "model": "clip"}
        answer = httpx.post(f"{url}/sdapi/v1/interrogate", json=body, timeout=TIMEOUT)
        assert answer.status_code == status, answer.text
        if status == 200:
            assert "red house" in answer.json()["caption"]
        else:
            assert "Model not found" in answer.json()["detail"]
