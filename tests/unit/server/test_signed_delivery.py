"""What the service delivers is signed last, in every format and by every API."""

import base64
import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("c2pa", reason="limner[provenance] is not installed")

from PIL import Image

from limner.cli.main import main
from limner.errors import InvalidRequest
from limner.images.metadata import read_record
from limner.safety.provenance import (
    UNSTAMPED,
    Manifest,
    development_signer,
    has_manifest,
    read_manifest,
    sign,
)
from limner.safety.provenance.keys import DEVELOPMENT_CA, development_anchor
from limner.safety.watermark import detect
from limner.service.release import watermark_key
from limner.service.supervisor import Supervisor
from limner.settings.serve import ServeSettings
from tests.checked_images import ASK as CHECKED
from tests.serving import Served, png, serving, submit
from tests.waiting import DEADLINE, until

ASK = {"prompt": "a signed boat", "steps": 2, "width": 256, "height": 256}


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("signing"), sign=True) as served:
        yield served


@pytest.fixture(scope="module")
def drawn(signing: Served) -> dict[str, Any]:
    return dict(submit(signing.client, **ASK)["jobs"][0]["image"])


def keys_of(served: Served) -> Path:
    return served.state.settings.data / "signing"


def manifest_of(served: Served, data: bytes) -> Manifest:
    found = read_manifest(data, development_anchor(keys_of(served)))
    assert found is not None
    assert found.state == "trusted", found.failures
    return found


def test_the_delivered_png_is_signed_last_and_its_hash_is_in_the_ledger(signing, drawn):
    answer = signing.client.get(drawn["url"])
    manifest = manifest_of(signing, answer.content)
    assert manifest.actions == ("c2pa.created", "c2pa.watermarked.bound")
    assert manifest.source_types == ("trainedAlgorithmicMedia",)
    assert manifest.watermark == drawn["watermark"]
    assert manifest.issuer == DEVELOPMENT_CA
    assert hashlib.sha256(answer.content).hexdigest() == drawn["delivered_sha256"]
    assert answer.headers["etag"] == f'"{drawn["delivered_sha256"]}"'
    manifest_bytes = answer.content[: answer.content.index(b"IDAT")]
    assert b"a signed boat" not in manifest_bytes[manifest_bytes.index(b"jumb") :].partition(b"parameters")[0]
    master = signing.client.get(drawn["url"], params={"exact": True}).content
    assert not has_manifest(master)
    record = read_record(io.BytesIO(answer.content))
    assert record == read_record(io.BytesIO(master)).model_copy(
        update={"watermark": record.watermark, "pixels": record.pixels, "warnings": record.warnings}
    )


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_are_signed_and_keep_the_first_manifest(signing, drawn, format):
    answer = signing.client.get(f"{drawn['url']}?format={format}&quality=90")
    manifest = manifest_of(signing, answer.content)
    assert manifest.actions == ("c2pa.opened", "c2pa.transcoded")
    assert manifest.source_types == ("trainedAlgorithmicMedia",)
    assert manifest.watermark == drawn["watermark"]
    [original] = manifest.ingredients
    assert (original.role, original.state) == ("parentOf", "trusted")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == format.upper()
        found = detect(image, watermark_key(signing.state.settings))
    assert found.digits == drawn["watermark"]
    assert b"trainedAlgorithmicMedia" in answer.content
    assert read_record(io.BytesIO(answer.content)).request.prompt == "a signed boat"


def test_bytes_that_differ_each_time_have_no_ranges(signing, drawn):
    url = f"{drawn['url']}?format=jpeg"
    whole = signing.client.get(url)
    assert whole.headers["etag"].startswith('W/"')
    part = signing.client.get(url, headers={"range": "bytes=0-9"})
    assert (part.status_code, "accept-ranges" in part.headers) == (200, False)
    known = signing.client.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert known.status_code == 304
    assert signing.client.get(drawn["url"], headers={"range": "bytes=0-9"}).status_code == 206


def test_other_apis_send_signed_images(signing):
    body = {"prompt": "a signed car", "size": "256x256", "response_format": "b64_json"}
    for format in ("png", "jpeg", "webp"):
        sent = signing.client.post("/v1/images/generations", json={**body, "output_format": format}).json()
        manifest_of(signing, base64.b64decode(sent["data"][0]["b64_json"]))
    link = signing.client.post("/v1/images/generations", json={**body, "response_format": "url"}).json()
    manifest_of(signing, signing.client.get(link["data"][0]["url"]).content)
    for options in ({}, {"samples_format": "jpg"}, {"samples_format": "webp"}, {"enable_pnginfo": False}):
        answer = signing.client.post("/sdapi/v1/txt2img", json={**ASK, "override_settings": options}).json()
        manifest_of(signing, base64.b64decode(answer["images"][0]))


def test_an_export_has_the_signed_files(signing, drawn):
    archive = zipfile.ZipFile(io.BytesIO(signing.client.get("/api/v1/accounts/local/export").content))
    data = archive.read(f"images/{drawn['id']}.png")
    assert hashlib.sha256(data).hexdigest() == drawn["delivered_sha256"]


def test_input_images_are_ingredients_with_their_manifests(signing, tmp_path):
    other = development_signer(tmp_path / "other")
    upload = signing.client.post("/api/v1/uploads", content=sign(png((256, 256)), other)).json()
    image = submit(signing.client, **ASK, image=upload["reference"])["jobs"][0]["image"]
    for query, number in (("", 1), ("?format=webp", 1)):
        manifest = manifest_of(signing, signing.client.get(image["url"] + query).content)
        assert manifest.source_types == ("compositeWithTrainedAlgorithmicMedia",)
        assert len(manifest.ingredients) == number
    first = manifest_of(signing, signing.client.get(image["url"]).content)
    assert first.actions[:2] == ("c2pa.opened", "c2pa.edited")
    [parent] = first.ingredients
    assert (parent.title, parent.role, parent.state) == ("image", "parentOf", "untrusted")


def test_an_interrupted_image_is_signed(tmp_path):
    with serving(tmp_path, step_seconds=0.05, sign=True) as served:
        answers = []
        body = {**ASK, "steps": 200}
        asking = threading.Thread(
            target=lambda: answers.append(served.client.post("/sdapi/v1/txt2img", json=body))
        )
        asking.start()
        until(lambda: served.client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 2)
        served.client.post("/sdapi/v1/interrupt")
        asking.join(DEADLINE)
        [sent] = answers[0].json()["images"]
        assert manifest_of(served, base64.b64decode(sent)).actions[0] == "c2pa.created"


def test_a_lost_file_is_signed_again_and_the_ledger_learns_its_hash(signing):
    image = submit(signing.client, **ASK)["jobs"][0]["image"]
    before = signing.client.get(image["url"]).content
    key = signing.ledger.get_image(image["id"]).key
    path = signing.state.settings.data / "pictures" / key.replace("masters/", "delivered/")
    path.unlink()
    again = signing.client.get(image["url"]).content
    manifest_of(signing, again)
    assert Image.open(io.BytesIO(again)).tobytes() == Image.open(io.BytesIO(before)).tobytes()
    known = signing.ledger.get_image(image["id"])
    assert (known.delivered_sha256, known.delivered_bytes) == (hashlib.sha256(again).hexdigest(), len(again))
    [row] = [
        one for one in signing.ledger.audit_log(subject=image["id"]) if one.action == "image.delivered_again"
    ]
    assert row.details["before"] == image["delivered_sha256"]


def test_images_from_before_are_not_signed_in_any_format(tmp_path):
    with serving(tmp_path) as served:
        image = submit(served.client, **ASK)["jobs"][0]["image"]
    with serving(tmp_path, sign=True) as served:
        for query in ("", "?format=jpeg"):
            assert not has_manifest(served.client.get(image["url"] + query).content)


def test_the_prompt_is_signed_where_that_is_asked_for(tmp_path):
    with serving(tmp_path, sign=True, sign_prompt=True) as served:
        data = served.client.get(submit(served.client, **ASK)["jobs"][0]["image"]["url"]).content
        assert b"description" in data[: data.index(b"IDAT")]


def test_an_authority_that_does_not_answer_loses_no_image(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with serving(tmp_path, sign=True, timestamp_url=f"http://127.0.0.1:{port}/") as served:
        image = submit(served.client, **ASK)["jobs"][0]["image"]
        data = served.client.get(image["url"]).content
        assert manifest_of(served, data).signed == ""
        assert UNSTAMPED in read_record(io.BytesIO(data)).warnings
        shown = served.client.get(f"/api/v1/images/{image['id']}").json()
        assert UNSTAMPED in shown["record"]["warnings"]


def test_keys_that_cannot_be_used_keep_the_service_from_starting(tmp_path):
    def start(**settings):
        Supervisor(ServeSettings(data=tmp_path / "data", port=0, devices=("fake",), **settings)).run()

    with pytest.raises(InvalidRequest, match=r"the certificate in none\.pem cannot be read"):
        start(sign=True, signing_certificate=Path("none.pem"), signing_key=Path("none.pem"))
    with pytest.raises(ValueError, match="signing_certificate and signing_key go together"):
        start(sign=True, signing_key=Path("none.pem"))


def test_a_missing_extra_keeps_the_service_from_starting(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(InvalidRequest, match="signing needs c2pa-python") as refused:
        Supervisor(ServeSettings(data=tmp_path, port=0, devices=("fake",), sign=True)).run()
    assert refused.value.hint == 'pip install "limner[provenance]"'


def test_the_command_line_checks_signatures_of_a_data_folder(signing, drawn, tmp_path, capsys):
    path = tmp_path / "copy.png"
    path.write_bytes(signing.client.get(drawn["url"]).content)
    with pytest.raises(SystemExit):
        main(["detect", str(path), "--json", "--data", str(signing.state.settings.data)])
    found = json.loads(capsys.readouterr().out)
    assert (found["manifest"]["state"], found["images"][0]["id"]) == ("trusted", drawn["id"])


def test_what_a_person_releases_is_signed(checked):
    with checked(sign=True) as served:
        for prompt, number in (("a forbidden boat", 1), ("a hidden boat", 2)):
            submit(served.client, prompt=prompt, **CHECKED)
            [review, *_] = served.client.get("/api/v1/moderation").json()["items"]
            decision = {"decision": "release", "note": "a boat"}
            decided = served.client.post(f"/api/v1/moderation/{review['id']}/decide", json=decision)
            assert decided.status_code == 200
            images = served.client.get("/api/v1/images").json()["items"]
            assert len(images) == number
            data = served.client.get(images[0]["url"]).content
            assert manifest_of(served, data).watermark == images[0]["watermark"][:8]
            assert hashlib.sha256(data).hexdigest() == images[0]["delivered_sha256"]
