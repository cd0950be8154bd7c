"""What known clients of AUTOMATIC1111's API do, call by call, on a running server.

SillyTavern, Open WebUI, Cyanic (Krita), AI Render (Blender), AIYA (Discord), Auto-Photoshop and StableStudio:
the bodies that they send and what they read from the answers.
"""

import base64
import io
import json

import httpx
import pytest
from PIL import Image

from tests.serving import serving
from tests.waiting import DEADLINE

SIZE = {"width": 64, "height": 64, "steps": 4}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data"), cors_origins=("http://studio.example",)) as running:
        yield running


@pytest.fixture
def client(served):
    return served.client


def picture(size=(64, 64)):
    encoded = io.BytesIO()
    Image.new("RGB", size, "red").save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def png(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_sillytavern(client):
    header = {"authorization": "Basic "[:-1]}  # an empty field for the password
    options = client.get("/sdapi/v1/options", headers=header)
    assert options.status_code == 200
    assert "forge_preset" not in options.json()
    upscalers = [one["name"] for one in client.get("/sdapi/v1/upscalers", headers=header).json()]
    assert upscalers[0] == "None"
    modes = [one["name"] for one in client.get("/sdapi/v1/latent-upscale-modes", headers=header).json()]
    models = client.get("/sdapi/v1/sd-models", headers=header).json()
    assert client.get("/sdapi/v1/schedulers", headers=header).json()[0]["name"]
    assert client.get("/sdapi/v1/sd-vae", headers=header).json() == []
    assert client.get("/sdapi/v1/sd-modules", headers=header).status_code == 404
    title = models[0]["title"]
    client.post("/sdapi/v1/options", headers=header, json={"sd_model_checkpoint": title})
    told = client.get("/sdapi/v1/progress", headers=header).json()
    assert (told["progress"], told["state"]["job_count"]) == (0, 0)
    body = {
        "url": "http://127.0.0.1:7860",
        "auth": "",
        "prompt": "a red boat",
        "negative_prompt": "",
        "sampler_name": "Euler a",
        "scheduler": "Automatic",
        "cfg_scale": 7,
        "seed": -1,
        "restore_faces": False,
        "enable_hr": True,
        "hr_upscaler": modes[0],
        "hr_scale": 2,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "clip_skip": 1,
        "override_settings": {
            "CLIP_stop_at_last_layers": 1,
            "sd_vae": "Automatic",
            "forge_additional_modules": [],
        },
        "override_settings_restore_afterwards": True,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        **SIZE,
    }
    answer = client.post("/sdapi/v1/txt2img", headers=header, json=body).json()
    assert png(answer["images"][0]).format == "PNG"
    assert client.post("/sdapi/v1/interrupt", headers=header).status_code == 200


def test_open_webui(served):
    url, header = served.url + "/", {"authorization": ""}
    assert httpx.get(f"{url}/sdapi/v1/options", headers=header, timeout=DEADLINE).status_code == 200
    options = httpx.get(f"{url}/sdapi/v1/options", headers=header, timeout=DEADLINE).json()
    models = httpx.get(f"{url}/sdapi/v1/sd-models", headers=header, timeout=DEADLINE).json()
    assert [{"id": one["title"], "name": one["model_name"]} for one in models]
    options["sd_model_checkpoint"] = models[0]["title"]
    answer = httpx.post(f"{url}/sdapi/v1/options", json=options, headers=header, timeout=DEADLINE)
    assert answer.status_code == 200
    body = {"prompt": "a red boat", "batch_size": 2, "width": 64, "height": 64, "steps": 4}
    made = httpx.post(f"{url}/sdapi/v1/txt2img", json=body, headers=header, timeout=DEADLINE).json()
    assert len(made["images"]) == 2
    assert json.loads(made["info"])["seed"] >= 0


def test_cyanic(client):
    assert client.get("/queue/status").status_code == 200
    lists = {
        name: client.get(f"/sdapi/v1/{name}").json()
        for name in (
            "samplers",
            "sd-models",
            "sd-vae",
            "loras",
            "embeddings",
            "upscalers",
            "face-restorers",
            "prompt-styles",
            "hypernetworks",
            "scripts",
            "options",
        )
    }
    assert "controlnet" in lists["scripts"]["img2img"]
    assert lists["embeddings"].keys() == {"loaded", "skipped"}
    before = client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"]
    body = {
        "prompt": "a red boat",
        "init_images": ["data:image/png;base64," + picture()],
        "sampler_name": "Euler a",
        "override_settings": {
            "sd_model_checkpoint": lists["sd-models"][0]["title"],
            "CLIP_stop_at_last_layers": 2,
        },
        "override_settings_restore_afterwards": False,
        "alwayson_scripts": {
            "ControlNet": {"args": []},
            "ADetailer": {"args": [True, {"ad_model": "None"}]},
            "Soft Inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]},
        },
        **SIZE,
    }
    assert client.post("/sdapi/v1/img2img", json=body).json()["images"]
    assert before == 1
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2  # it stays
    client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1})


def test_ai_render(client):
    body = {
        "prompt": "a red boat",
        "negative_prompt": "",
        "init_images": ["data:image/png;base64," + picture()],
        "denoising_strength": 0.4,
        "sampler_index": "DPM++ 2S a Karras",
        "cfg_scale": 7,
        "seed": 5,
        **SIZE,
    }
    answer = client.post("/sdapi/v1/img2img", json=body).json()
    assert json.loads(answer["info"])["sampler_name"] == "DPM++ 2S a"
    assert answer["images"][0]
    missing = client.post("/sdapi/v1/nothing", json={})
    assert (missing.status_code, missing.json()["detail"]) == (404, "Not Found")


def test_aiya(client):
    assert client.get("/sdapi/v1/cmd-flags").status_code == 200
    assert client.get("/sdapi/v1/version").status_code == 404
    assert client.get("/config").status_code == 200
    body = {
        "prompt": "a red boat",
        "denoising_strength": None,
        "hr_second_pass_steps": 12.5,
        "enable_hr": False,
        "hr_upscaler": None,
        "styles": [],
        "sampler_index": "Euler a",
        "seed": 7,
        "restore_faces": False,
        "override_settings": {"sd_model_checkpoint": "", "CLIP_stop_at_last_layers": 1},
        **SIZE,
    }
    answer = client.post("/sdapi/v1/txt2img", json=body).json()
    assert json.loads(answer["info"])["seed"] == 7
    upscaled = client.post(
        "/sdapi/v1/extra-single-image",
        json={"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos", "image": answer["images"][0]},
    )
    assert png(upscaled.json()["image"]).size == (128, 128)


def test_auto_photoshop(client):
    assert client.post("/sdapi/v1/options", json={"inpainting_mask_weight": 1.0}).json() is None
    assert client.get("/controlnet/model_list?alias_names=true").json()["model_list"] is not None
    body = {
        "prompt": "a red boat",
        "init_images": [picture()],
        "mask": picture(),
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "inpaint_full_res_padding": 32,
        "mask_blur": 4,
        "script_name": None,
        "script_args": [],
        "alwayson_scripts": {"ControlNet": {"args": [{"enabled": False, "model": "None", "module": "none"}]}},
        **SIZE,
    }
    made = client.post("/sdapi/v1/img2img", json=body).json()
    info = client.post("/sdapi/v1/png-info", json={"image": made["images"][0]}).json()
    assert info["parameters"]["Denoising strength"] == "0.75"
    assert client.get("/sdapi/v1/progress?skip_current_image=false").json()["current_image"] is None
    assert client.post("/sdapi/v1/interrupt").json() == {}


def test_stablestudio_from_its_page(client):
    page = {"origin": "http://studio.example"}
    asked = client.options(
        "/sdapi/v1/txt2img",
        headers={
            **page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    )
    assert asked.headers["access-control-allow-origin"] == page["origin"]
    answer = client.post("/sdapi/v1/options", json={"samples_format": "png"}, headers=page)
    assert answer.json() is None
    body = {
        "prompt": "a red boat",
        "init_images": [picture()],
        "mask": picture(),
        "inpainting_mask_invert": 1,
        "inpainting_fill": 1,
        "seed": 9,
        **SIZE,
    }
    made = client.post("/sdapi/v1/img2img", json=body, headers=page)
    assert made.headers["access-control-allow-origin"] == page["origin"]
    assert made.json()["images"]
    foreign = client.post("/sdapi/v1/txt2img", json=SIZE, headers={"origin": "http://elsewhere.example"})
    assert foreign.status_code == 403
    assert isinstance(foreign.json()["detail"], str)


def test_sdpaint_sends_booleans_as_texts(client):
    body = {
        "prompt": "a red boat",
        "enable_hr": "false",
        "restore_faces": "false",
        "tiling": "false",
        "batch_size": "2",
        **{name: str(value) for name, value in SIZE.items()},
    }
    assert len(client.post("/sdapi/v1/txt2img", json=body).json()["images"]) == 2
