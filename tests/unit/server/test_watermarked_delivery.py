"""What the service delivers carries the watermark, by every route; masters keep their exact pixels."""

import base64
import hashlib
import io
import json
import zipfile

import httpx
import pytest
from PIL import Image

from limner.cli.main import main
from limner.safety.marking import pixel_hash
from limner.safety.watermark import DEFAULT_KEY, detect
from tests.serving import Served, png, serving, submit

KEY = "a key of this test alone"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    data = tmp_path_factory.mktemp("keyed")
    (data / "watermark.key").write_text(KEY)
    with serving(data) as served:
        served.client.headers.update(served.key("local"))
        yield served


@pytest.fixture(scope="module")
def drawn(keyed):
    """An image of 400 pixels a side."""
    return submit(keyed.client, width=400, height=400, prompt="a marked boat")["jobs"][0]["image"]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def mark_of(data: bytes, key: str = KEY) -> str | None:
    found = detect(opened(data), key.encode())
    return None if found is None else found.digits


def exact(served: Served, image: dict) -> httpx.Response:
    return served.client.get(image["url"], params={"exact": True})


@pytest.mark.parametrize("query", ["", "?format=jpeg", "?format=webp&quality=80"])
def test_files_carry_the_mark_and_name_it(keyed, drawn, query):
    answer = keyed.client.get(drawn["url"] + query)
    assert mark_of(answer.content) == drawn["watermark"]
    assert mark_of(answer.content, DEFAULT_KEY.decode()) is None
    record = keyed.client.get(f"/api/v1/images/{drawn['id']}").json()["record"]
    assert record["watermark"]["id"] == drawn["watermark"]
    if not query:
        assert hashlib.sha256(answer.content).hexdigest() == drawn["delivered_sha256"] != drawn["sha256"]
        assert json.loads(opened(answer.content).info["limner"]) == record
        assert answer.headers["etag"] == f'"{drawn["delivered_sha256"]}"'


def test_the_thumbnail_is_marked_at_its_own_size(keyed, drawn):
    small = keyed.client.get(drawn["thumbnail_url"]).content
    assert opened(small).size == (384, 384)
    assert mark_of(small) == drawn["watermark"]


def test_other_apis_send_the_marked_image(keyed):
    body = {"prompt": "a marked car", "size": "256x256", "response_format": "b64_json"}
    sent = keyed.client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    newest = lambda: keyed.client.get("/api/v1/images?limit=1").json()["items"][0]["watermark"]  # noqa: E731
    assert mark_of(base64.b64decode(sent)) == newest() != None  # noqa: E711
    link = keyed.client.post("/v1/images/generations", json={**body, "response_format": "url"}).json()
    assert mark_of(keyed.client.get(link["data"][0]["url"]).content) == newest()
    text = keyed.client.post(
        "/v1/images/generations", json={**body, "stream": True, "partial_images": 1}
    ).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert mark_of(base64.b64decode(events[-1]["b64_json"])) == newest()
    for options in ({}, {"samples_format": "jpg"}):
        body = {"prompt": "a marked cat", "steps": 2, "width": 256, "height": 256}
        answer = keyed.client.post("/sdapi/v1/txt2img", json={**body, "override_settings": options}).json()
        assert mark_of(base64.b64decode(answer["images"][0])) == newest()


def test_an_export_has_the_marked_images(keyed, drawn):
    archive = zipfile.ZipFile(io.BytesIO(keyed.client.get("/api/v1/accounts/local/export").content))
    assert mark_of(archive.read(f"images/{drawn['id']}.png")) == drawn["watermark"]


def test_the_exact_pixels_are_for_operators_and_recorded(keyed, drawn):
    master = exact(keyed, drawn).content
    assert hashlib.sha256(master).hexdigest() == drawn["sha256"]
    assert pixel_hash(opened(master)) == drawn["pixels_sha256"]
    assert mark_of(master) is None
    [entry] = keyed.ledger.audit_log(subject=drawn["id"])
    assert (entry.actor, entry.action) == ("local", "image.exact")
    user = keyed.key("mia")
    own = submit(keyed.client, headers=user)["jobs"][0]["image"]
    assert keyed.client.get(own["url"], headers=user).status_code == 200
    refused = keyed.client.get(own["url"], params={"exact": True}, headers=user)
    assert (refused.status_code, refused.json()["fields"]) == (403, ["exact"])
    both = keyed.client.get(drawn["url"], params={"exact": True, "format": "jpeg"})
    assert both.status_code == 422


def test_the_same_request_is_delivered_with_the_same_pixels(keyed):
    first, again = (submit(keyed.client, seed=9, prompt="twice")["jobs"][0]["image"] for _ in range(2))
    assert first["watermark"] == again["watermark"]
    files = [opened(keyed.client.get(one["url"]).content).tobytes() for one in (first, again)]
    assert files[0] == files[1]


def test_a_copy_is_resolved_to_the_image_for_its_owner_and_operators(keyed):
    nora, other = keyed.key("nora"), keyed.key("otto")
    image = submit(keyed.client, headers=nora, width=320, height=320, prompt="of nora")["jobs"][0]["image"]
    copy = io.BytesIO()
    marked = opened(keyed.client.get(image["url"], headers=nora).content)
    marked.crop((20, 10, 310, 300)).convert("RGB").save(copy, "JPEG", quality=80)

    def ask(data, headers=None, **query):
        return keyed.client.post("/api/v1/detect", content=data, headers=headers, params=query)

    for headers, known in ((nora, [image["id"]]), (None, [image["id"]]), (other, [])):
        found = ask(copy.getvalue(), headers=headers).json()
        assert (found["watermark"]["id"], found["watermark"]["key"]) == (image["watermark"], "own")
        assert [one["id"] for one in found["images"]] == known
    assert ask(png((200, 200)), headers=nora).json() == {"watermark": None, "images": []}
    assert ask(png((8, 8)), headers=nora).status_code == 422
    assert ask(b"no image", headers=nora).status_code == 422
    half = io.BytesIO()
    marked.resize((160, 160)).save(half, "PNG")
    assert ask(half.getvalue(), headers=nora).json()["watermark"] is None
    scaled = ask(half.getvalue(), headers=nora, scales=True).json()
    assert scaled["watermark"]["scale"] == pytest.approx(0.5, abs=0.02)
    assert [one["id"] for one in scaled["images"]] == [image["id"]]


def test_a_lost_file_is_made_again(keyed, drawn):
    before = keyed.client.get(drawn["url"]).content
    key = keyed.ledger.get_image(drawn["id"]).key
    path = keyed.state.settings.data / "pictures" / key.replace("masters/", "delivered/")
    path.unlink()
    assert keyed.client.get(drawn["url"]).content == before
    assert path.read_bytes() == before


def test_deleting_an_image_deletes_what_is_delivered(keyed):
    image = submit(keyed.client, prompt="to be deleted")["jobs"][0]["image"]
    key = keyed.ledger.get_image(image["id"]).key
    path = keyed.state.settings.data / "pictures" / key.replace("masters/", "delivered/")
    assert path.exists()
    keyed.client.delete(f"/api/v1/images/{image['id']}")
    assert not path.exists()


def test_an_image_too_small_for_a_mark_is_delivered_as_it_is(keyed):
    image = submit(keyed.client, width=64, height=64)["jobs"][0]["image"]
    assert (image["watermark"], image["delivered_sha256"]) == (None, image["sha256"])
    assert keyed.client.get(image["url"]).content == exact(keyed, image).content


def test_the_watermark_is_a_setting(tmp_path):
    with serving(tmp_path, watermark=False) as served:
        image = submit(served.client)["jobs"][0]["image"]
        assert (image["watermark"], image["delivered_sha256"]) == (None, image["sha256"])
        file = served.client.get(image["url"]).content
        assert pixel_hash(opened(file)) == image["pixels_sha256"]


def test_the_command_line_resolves_a_mark_in_a_data_folder(keyed, drawn, tmp_path, capsys):
    path = tmp_path / "copy.png"
    path.write_bytes(keyed.client.get(drawn["url"]).content)
    with pytest.raises(SystemExit) as end:
        main(["detect", str(path), "--json", "--data", str(keyed.state.settings.data)])
    found = json.loads(capsys.readouterr().out)
    assert (end.value.code, found["watermark"]["key"]) == (0, "own")
    assert [(one["id"], one["account"]) for one in found["images"]] == [(drawn["id"], "local")]
