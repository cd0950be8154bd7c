"""Images that the safety policy blocks or blurs: no byte of them leaves, by any route of any API."""

import ast
import base64
import io
import json
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import limner.server
from limner.errors import ModelNotFound
from limner.safety.images import blurred
from limner.safety.policy import Action
from limner.service.fake import FakeDevice
from limner.service.image_safety import LEVELS, ImageSafety
from limner.service.worker import run_worker
from limner.settings.serve import ServeSettings
from tests.checked_images import ASK, POLICY, RULE, Stub, holds_image, pattern, pixels
from tests.serving import serving, submit
from tests.waiting import DEADLINE, until


@pytest.mark.parametrize("days", [7.0, 0.0])
def test_no_byte_of_a_blocked_image_leaves(checked, days):
    prompt = "a forbidden boat"
    with checked(keep_withheld_days=days) as served:
        client, answers, stopped = served.client, [], threading.Event()
        events = []

        def watch():
            with client.stream("GET", "/api/v1/events", params={"previews": True, "after": 0}) as stream:
                for line in stream.iter_lines():
                    events.append(line.encode())
                    if stopped.is_set():
                        return

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        body = {"request": {"prompt": prompt, **ASK}}
        native = client.post("/api/v1/jobs", json=body, headers={"prefer": f"wait={DEADLINE}"})
        [job] = native.json()["jobs"]
        assert (job["state"], job["error"]["code"], job["image"]) == ("failed", "image_refused", None)
        assert "refused (opennsfw nsfw 0.9)" in job["error"]["message"]
        answers += [native, client.get(f"/api/v1/jobs/{job['id']}"), client.get("/api/v1/images")]
        shared = {"prompt": prompt, "seed": 1, "steps": 4, "size": "128x128"}
        for more in (
            {"response_format": "b64_json"},
            {"response_format": "url"},
            {"output_format": "webp"},
        ):
            answer = client.post("/v1/images/generations", json={**shared, **more})
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("image_generation_user_error", "moderation_blocked")
            answers.append(answer)
        stream = client.post("/v1/images/generations", json={**shared, "stream": True, "partial_images": 3})
        assert "moderation_blocked" in stream.text
        assert "partial_image" not in stream.text
        webui = client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **ASK})
        assert (webui.status_code, "safety policy" in webui.json()["detail"]) == (400, True)
        answers += [stream, webui, client.get("/sdapi/v1/progress")]
        review = client.get("/api/v1/moderation").json()["items"][-1]
        assert (review["job_id"], review["delivery"]) == (job["id"], "withheld" if days else None)
        withheld = review["image_id"] or "img_none"
        for path in ("", "/file", "/file?exact=true", "/thumbnail", "/steps", "/steps/sprite", "/lineage"):
            answers.append(client.get(f"/api/v1/images/{withheld}{path}"))
            assert answers[-1].status_code == 404
        parent = {"request": {"prompt": prompt, **ASK}, "parents": [withheld], "relation": "variation"}
        answers.append(client.post("/api/v1/jobs", json=parent))
        assert answers[-1].json()["fields"] == ["parents"]
        answers += [client.get("/api/v1/moderation"), client.get("/api/v1/notices")]
        archive = zipfile.ZipFile(io.BytesIO(client.get("/api/v1/accounts/local/export").content))
        assert not [name for name in archive.namelist() if name.startswith("images/")]
        assert not [name for name in archive.namelist() if holds_image(archive.read(name))]
        until(lambda: any(b'"failed"' in line for line in events))
        stopped.set()
        submit(client, prompt="a red boat", **ASK)  # ends the watching
        watching.join(DEADLINE)
        assert [one.request.url for one in answers if holds_image(one.content)] == []
        assert not [line for line in events if holds_image(line) or b"preview_type" in line]
        folder = served.state.settings.data / "pictures"
        stored = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        fine = client.get("/api/v1/images").json()["items"]
        assert len(fine) == 1
        others = [path for path in stored if path.parent.name != fine[0]["job_id"]]
        assert len(others) == (6 if days else 0)
        assert all(path.parts[0] == "masters" for path in others)
        rows = [row for row in served.ledger.audit_log() if row.action == "image.blocked"]
        assert len(rows) == 6
        assert (rows[0].subject, rows[0].details["rule"]) == (job["id"], "refused")
        text = lambda: client.get("/metrics").text  # noqa: E731
        until(lambda: 'action="block",rule="refused",stage="image"} 6' in text())


def test_a_blurred_image_is_delivered_blurred_and_its_master_is_for_operators(checked):
    prompt = "a hidden boat"
    with checked() as served:
        client = served.client
        image = submit(client, prompt=prompt, **ASK)["jobs"][0]["image"]
        assert (image["safety"]["action"], image["safety"]["rule"]) == ("blur", "hidden")
        shown = np.asarray(blurred(Image.fromarray(pattern(prompt)))).astype(int)

        def is_blurred(data: bytes, most: float = 3.0) -> bool:
            return bool(np.abs(pixels(data) - shown).mean() < most)

        assert not is_blurred(Image.fromarray(pattern(prompt)) and png_of(pattern(prompt)))
        file = client.get(image["url"]).content
        assert is_blurred(file)
        assert is_blurred(client.get(image["thumbnail_url"]).content, 5.0)
        assert client.get(f"{image['url']}?format=jpeg").status_code == 200
        assert is_blurred(client.get(f"{image['url']}?format=jpeg").content, 5.0)
        assert client.get(f"/api/v1/images/{image['id']}/steps").json()["steps"] == []
        exact = client.get(image["url"], params={"exact": True}).content
        assert np.array_equal(pixels(exact), pattern(prompt))
        body = {"prompt": prompt, "seed": 1, "steps": 4, "size": "128x128", "response_format": "b64_json"}
        sent = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        assert is_blurred(base64.b64decode(sent))
        sent = client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **ASK}).json()["images"][0]
        assert is_blurred(base64.b64decode(sent))
        archive = zipfile.ZipFile(io.BytesIO(client.get("/api/v1/accounts/local/export").content))
        assert is_blurred(archive.read(f"images/{image['id']}.png"))
        key = served.ledger.get_image(image["id"]).key
        (served.state.settings.data / "pictures" / key.replace("masters/", "blurred/")).unlink()
        assert client.get(image["url"]).content == file


def png_of(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_a_flagged_image_is_delivered_and_says_so(checked):
    with checked() as served:
        image = submit(served.client, prompt="a doubtful boat", **ASK)["jobs"][0]["image"]
        assert (image["safety"]["action"], image["safety"]["scores"]) == ("flag", {"opennsfw": {"nsfw": 0.4}})
        record = served.client.get(f"/api/v1/images/{image['id']}").json()["record"]
        assert any("flags the image" in one for one in record["warnings"])
        assert json.loads(record["notes"]["image_safety"])["rule"] == "seen"
        [row] = [row for row in served.ledger.audit_log() if row.action == "image.flagged"]
        assert row.subject == image["job_id"]
        fine = submit(served.client, prompt="a red boat", **ASK)["jobs"][0]["image"]
        assert fine["safety"]["action"] == "allow"


def test_an_interrupted_image_is_withheld(checked):
    with checked("fake:0.05") as served:
        answers = []

        def ask():
            body = {"prompt": "a forbidden boat", **ASK, "steps": 200}
            answers.append(served.client.post("/sdapi/v1/txt2img", json=body))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: served.client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 2)
        seen = served.client.get("/sdapi/v1/progress")
        assert seen.json()["current_image"] is None
        served.client.post("/sdapi/v1/interrupt")
        asking.join(DEADLINE)
        assert not holds_image(answers[0].content)
        assert answers[0].json()["images"] == []


def test_an_image_is_scored_once_for_the_level_of_a_key_besides(tmp_path):
    scored = []

    class Counted(Stub):
        def check(self, images):
            scored.extend(images)
            return [{"nsfw": 0.5} for _ in images]

    checker = Counted()
    settings = ServeSettings(data=tmp_path, safety="standard")
    safety = ImageSafety(settings, load=lambda _: {"opennsfw": checker})
    image = Image.new("RGB", (8, 8))
    for levels, action in (((None, None), Action.FLAG), ((None, "strict"), Action.BLUR)):
        before = len(scored)
        assert safety.decide(SimpleNamespace(safety={LEVELS: levels}), image).action is action
        assert len(scored) - before == 1


def test_a_policy_whose_checker_is_missing_refuses_to_start(tmp_path):
    path = tmp_path / "own.toml"
    checker = '[checkers.mine]\nkind = "onnx"\nfile = "none.onnx"\nlabels = ["nsfw"]\n'
    rule = RULE.format(name="own", action="block", score=0.5) + 'checker = "mine"\n'
    path.write_text(POLICY + checker + rule)
    with serving(tmp_path / "data", working=False) as served:
        settings = ServeSettings(data=served.state.settings.data, safety=str(path))
        with pytest.raises(ModelNotFound):
            run_worker(settings, "w", device="fake", make_device=FakeDevice, stopping=threading.Event())


def test_no_module_of_the_server_reads_stored_images_but_through_the_release():
    readers = {"get", "get_delivered", "get_thumbnail", "get_strip", "get_strip_layout"}
    found = []
    for path in Path(limner.server.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in readers:
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name in ("store", "_store"):
                    found.append((path.name, node.lineno))
            if isinstance(node, ast.Name) and node.id == "ImageStore" and path.name != "app.py":
                found.append((path.name, node.lineno))
    assert found == []
