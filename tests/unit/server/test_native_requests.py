"""The native API: what can be asked for, estimates, prompts, drafts, and its description."""

import base64
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.serving import png, serving, submit


def test_control_networks_and_loras_are_those_of_the_catalogue(served):
    image = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    control = {"model": "picturebook-edges", "image": image, "preprocessor": "canny"}
    done = submit(served.client, controls=[control])
    assert [job["state"] for job in done["jobs"]] == ["done"]
    for field, given in (
        ("controls", {**control, "model": "lllyasviel/sd-controlnet-canny"}),
        ("controls", {**control, "model": "/etc"}),
        ("controls", {**control, "preprocessor": "cannny"}),
        ("loras", {"name": "../../x"}),
        ("image_prompts", {"model": "plain", "images": [image]}),
    ):
        body = {"request": {"prompt": "a boat", field: [given]}}
        answer = served.client.post("/api/v1/jobs", json=body)
        assert answer.status_code in (400, 404, 422), answer.text
        assert answer.json()["fields"] == [field]


def test_models_samplers_and_the_schema_are_listed(served):
    models = served.client.get("/api/v1/models", params={"kind": "checkpoint"}).json()
    [shipped] = [one for one in models if one["name"] == "picturebook"]
    assert shipped["default"]
    assert served.client.get(f"/api/v1/models/{shipped['id']}").json() == shipped
    assert served.client.get("/api/v1/models/picturebook").json() == shipped
    assert served.client.get("/api/v1/models/none").status_code == 404
    assert "euler" in [one["name"] for one in served.client.get("/api/v1/samplers").json()]
    assert "karras" in [one["name"] for one in served.client.get("/api/v1/sigma-schedules").json()]
    assert "prompt" in served.client.get("/api/v1/schema").json()["properties"]


def test_the_description_knows_every_body_and_problem(served):
    description = served.client.get("/api/v1/openapi.json").json()
    schemas = description["components"]["schemas"]
    body = description["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].rpartition("/")[2] in schemas
    prompt = schemas["GenerationRequest"]["properties"]["prompt"]
    assert prompt["description"] == "What the image shows."
    references = {
        line.split('"')[3] for line in json.dumps(description, indent=0).splitlines() if "$ref" in line
    }
    assert {one.rpartition("/")[2] for one in references} <= schemas.keys()


def test_an_estimate_resolves_a_request_and_stores_nothing(served):
    before = served.client.get("/api/v1/sets", params={"limit": 1}).json()["items"]
    body = {
        "request": {
            "prompt": "x",
            "num_images": 3,
            "image": "data:image/png;base64," + base64.b64encode(png(colour="green")).decode(),
        }
    }
    more = {"request": {**body["request"], "num_images": 6}}
    for _ in range(5):  # between two estimates, what was measured lately may change
        found, twice = (served.client.post("/api/v1/estimates", json=one).json() for one in (body, more))
        if twice["seconds"] == pytest.approx(2 * found["seconds"], rel=0.3):
            break
    else:
        pytest.fail(f"3 images take {found['seconds']} s, and 6 take {twice['seconds']} s")
    assert (found["images"], found["model"], found["fits"]) == (3, "checkpoint:picturebook", True)
    assert found["request"]["strength"] == 0.8
    assert found["seconds"] > 0
    assert served.client.get("/api/v1/sets", params={"limit": 1}).json()["items"] == before
    reference = found["request"]["image"].removeprefix("sha256:")
    assert served.state.assets.find(reference) is None, "what is only estimated is not kept"
    wrong = served.client.post("/api/v1/estimates", json={"request": {"prompt": "x", "model": "none"}})
    assert (wrong.status_code, wrong.json()["fields"]) == (404, ["model"])


def test_drafts_are_kept_and_not_overwritten_by_mistake(served):
    path = "/api/v1/drafts/a boat"
    first = served.client.put(path, json={"prompt": "a boat"})
    assert (first.status_code, first.headers["etag"]) == (200, '"1"')
    assert served.client.put(path, json={"prompt": "b"}, headers={"if-match": '"1"'}).headers["etag"] == '"2"'
    lost = served.client.put(path, json={"prompt": "c"}, headers={"if-match": '"1"'})
    assert (lost.status_code, lost.json()["code"]) == (409, "conflict")
    assert served.client.get(path).json()["value"] == {"prompt": "b"}
    assert [one["name"] for one in served.client.get("/api/v1/drafts").json()] == ["a boat"]
    assert served.client.put(path, json=[]).status_code == 422
    assert served.client.delete(path).status_code == 204
    assert served.client.get(path).status_code == 404


def test_a_prompt_is_analysed_with_its_unknown_names(served):
    prompt = "a (red:1.5) house, a zeppelin <lora:ink:0.8> # not this"
    body = {"prompt": prompt, "steps": 10}
    found = served.client.post("/api/v1/prompts/analysis", json=body).json()
    assert (found["model"], found["exact"], found["complete"]) == ("checkpoint:picturebook", True, True)
    [steps] = found["steps"]
    tokens = [(prompt[one["start"] : one["end"]], one["weight"]) for one in steps["parts"][0]["tokens"]]
    assert ("red", 1.5) in tokens
    assert ("house", 1.0) in tokens
    assert found["tokens"] == sum(steps["parts"][0]["chunks"]) == len(tokens)
    names = [(one["kind"], prompt[one["start"] : one["end"]], one["known"]) for one in found["names"]]
    assert names == [("word", "zeppelin", False), ("lora", "<lora:ink:0.8>", False)]
    assert "ink" in found["names"][1]["problem"]
    assert served.client.post("/api/v1/prompts/analysis", json={"prompt": "(" * 600}).status_code == 422
    assert served.client.post("/api/v1/prompts/analysis", json={"model": "no"}).status_code == 422


def test_no_path_of_the_machine_is_told(tmp_path):
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "broken.safetensors").write_bytes(b"\xff" * 20)
    (loras / "pickle.ckpt").write_bytes(b"x")
    with serving(tmp_path / "data", working=False, lora_dirs=(loras,)) as served:
        for name in ("broken", "pickle", "none", str(loras / "broken.safetensors")):
            body = {"request": {"prompt": "x", "loras": [{"name": name}]}}
            answer = served.client.post("/api/v1/jobs", json=body)
            assert answer.status_code in (404, 422), name
            assert name == str(loras / "broken.safetensors") or str(tmp_path) not in answer.text
        assert str(tmp_path) not in served.client.get("/api/v1/models").text


def test_everything_in_the_description_is_described(served):
    description = served.client.get("/api/v1/openapi.json").json()
    schemas, missing, pending = description["components"]["schemas"], [], []

    def references(value):
        return re.findall(r"#/components/schemas/([\w-]+)", json.dumps(value))

    for path, operations in description["paths"].items():
        if not path.startswith("/api/v1"):
            continue
        for method, operation in operations.items():
            pending += references(operation)
            if not operation.get("description"):
                missing.append(f"{method} {path}")
            missing += [
                f"{method} {path}: {one['name']}"
                for one in operation.get("parameters", ())
                if one["in"] != "path" and not one.get("description", one["schema"].get("description"))
            ]
    seen = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        pending += references(schemas[name])
        if "properties" in schemas[name]:
            if not schemas[name].get("description") and name != "Problem":
                missing.append(name)
            missing += [
                f"{name}.{field}"
                for field, schema in schemas[name]["properties"].items()
                if not schema.get("description") and "$ref" not in schema
            ]
    assert len(seen) > 25
    assert missing == []


def write_lora(path, layer, width):
    down, up = np.ones((4, width), np.float32), np.ones((64, 4), np.float32)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, path)


def test_a_lora_is_one_of_the_catalogue_and_of_the_models_family(tmp_path):
    (tmp_path / "loras").mkdir()
    unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for name, layer, width in (("own", unet, 192), ("xl", unet, 2048), ("text", text, 768)):
        write_lora(tmp_path / f"loras/{name}.safetensors", layer, width)
    with serving(tmp_path / "data", working=False, lora_dirs=(tmp_path / "loras",)) as served:
        ask = lambda **request: served.client.post(  # noqa: E731
            "/api/v1/estimates", json={"request": {"prompt": "x", **request}}
        )
        assert ask(loras=[{"name": "own"}]).status_code == 200
        assert ask(prompt="x <lora:own:0.5>").json()["request"]["loras"][0]["name"] == "own"
        for path, body in (
            ("/api/v1/jobs", {"request": {"prompt": "x", "loras": [{"name": "%s"}]}}),
            ("/v1/images/generations", {"prompt": "x", "loras": [{"name": "%s"}]}),
            ("/sdapi/v1/txt2img", {"prompt": "x <lora:%s:1>"}),
        ):
            for name, reason in (
                ("xl", "xl is not an adapter for this model: it is for Stable Diffusion XL"),
                ("text", "the LoRA 'text' is for Stable Diffusion 1.x; the model picturebook is a model of"),
            ):
                sent = json.loads(json.dumps(body).replace("%s", name))
                refused = served.client.post(path, json=sent)
                assert refused.status_code in (400, 422), refused.text
                assert reason in refused.text
        assert ask(loras=[{"name": "text"}]).json()["hint"] == "LoRAs for it are own"
        refused = ask(loras=[{"name": "xl"}])
        assert (refused.status_code, refused.json()["fields"]) == (422, ["loras"])
        body = {"prompt": "<lora:own:1> <lora:xl:1>"}
        found = served.client.post("/api/v1/prompts/analysis", json=body).json()
        assert [(one["name"], one["known"]) for one in found["names"]] == [("own", True), ("xl", False)]


def test_each_api_bounds_the_work_of_a_request(served):
    most = {"width": 1024, "height": 1024, "steps": 200}
    for path, body, lower in (
        ("/api/v1/jobs", {"request": {"prompt": "x", "num_images": 10, **most}}, "num_images of 9"),
        ("/v1/images/generations", {"prompt": "x", "n": 10, "size": "1024x1024", "steps": 200}, "'n' of 9"),
        ("/sdapi/v1/txt2img", {"prompt": "x", "batch_size": 10, **most}, "batch_size of 9"),
    ):
        answer = served.client.post(path, json=body)
        assert answer.status_code in (400, 422), answer.text
        assert "are 2,097,152,000 in all; the limit, max_work, is 2,000,000,000" in answer.text
        assert lower in answer.text
