"""The unchanged `webuiapi` package on a running server."""

from urllib.parse import urlsplit

import pytest
from PIL import Image

from limner.catalogue.shipped import SHIPPED_NETWORKS
from tests.serving import Served, serving

webuiapi = pytest.importorskip("webuiapi")

SIZE = {"width": 64, "height": 64, "steps": 4}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


def api_of(served: Served, **more):
    parts = urlsplit(served.url)
    return webuiapi.WebUIApi(host=parts.hostname, port=parts.port, **more)


@pytest.fixture(scope="module")
def api(served):
    return api_of(served)


def test_txt2img(api):
    result = api.txt2img(prompt="a red boat", seed=3, batch_size=2, **SIZE)
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [3, 4]
    assert result.info["sampler_name"] == "Euler a"
    assert result.info["without_effect"] == result.info["warnings"] == []  # of what it always sends
    assert result.parameters["steps"] == 4
    again = api.txt2img(prompt="a red boat", seed=4, **SIZE)
    assert again.image.tobytes() == result.images[1].tobytes()


def test_a_hires_pass(api):
    result = api.txt2img(
        prompt="a red boat",
        enable_hr=True,
        hr_upscaler=webuiapi.HiResUpscaler.LatentNearestExact,
        hr_scale=2,
        hr_second_pass_steps=2,
        **SIZE,
    )
    assert "Hires upscaler: Latent (nearest-exact)" in result.info["infotexts"][0]
    with pytest.raises(RuntimeError, match="R-ESRGAN 4x"):
        api.txt2img(enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.ESRGAN_4x, **SIZE)


def test_img2img_and_a_mask(api):
    picture = api.txt2img(prompt="a red boat", **SIZE).image
    result = api.img2img(images=[picture], prompt="a blue boat", denoising_strength=0.5, seed=5, **SIZE)
    assert result.info["denoising_strength"] == 0.5
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    result = api.img2img(images=[picture], mask_image=mask, inpainting_fill=1, prompt="a tree", **SIZE)
    assert result.image.size == (64, 64)
    assert result.info["without_effect"] == []


def test_pictures_carry_how_they_were_made(api):
    result = api.txt2img(prompt="a red boat", seed=8, **SIZE)
    assert api.png_info(result.image).info == result.info["infotexts"][0]


def test_extras(api):
    picture = Image.new("RGB", (30, 20), "red")
    result = api.extra_single_image(picture, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
    assert result.image.size == (60, 40)
    results = api.extra_batch_images([picture, picture], upscaler_1="Nearest", upscaling_resize=3)
    assert [image.size for image in results.images] == [(90, 60)] * 2
    with pytest.raises(RuntimeError, match="404"):
        api.interrogate(picture)


def test_lists(api):
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in [name.lower() for name in api.util_get_scheduler_names()]
    assert "picturebook" in api.util_get_model_names()
    for call in (
        api.get_options,
        api.get_cmd_flags,
        api.get_samplers,
        api.get_sd_vae,
        api.get_upscalers,
        api.get_latent_upscale_modes,
        api.get_loras,
        api.get_sd_models,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
        api.get_prompt_styles,
        api.get_scripts,
        api.get_embeddings,
        api.get_memory,
        api.get_schedulers,
        api.refresh_checkpoints,
        api.controlnet_version,
        api.controlnet_model_list,
        api.controlnet_module_list,
        api.get_progress,
        api.interrupt,
        api.skip,
    ):
        call()


def test_the_model_is_set_by_a_title_that_is_close(api):
    api.util_set_model("PictureBook")
    assert api.util_get_current_model() == "picturebook"
    api.util_wait_for_ready(check_interval=0.05)
    api.set_options({"sd_model_checkpoint": "picturebook", "CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    assert api.txt2img(prompt="a red boat", **SIZE).info["clip_skip"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})


def test_controlnet_detects_edges(api):
    square = Image.new("RGB", (64, 64))
    square.paste("white", (16, 16, 48, 48))
    result = api.controlnet_detect(images=[square], module="canny", processor_res=64)
    assert result.image.getextrema()[0] in ((0, 255), 0)


def test_extensions_that_are_not_there_are_refused_or_off(api):
    # With a dict of its own for each call, as the package adds to the one that is its default.
    off, on = webuiapi.AnimateDiff(enable=False), webuiapi.ADetailer(ad_model="face_yolov8n.pt")
    assert api.txt2img(prompt="a red boat", animatediff=off, alwayson_scripts={}, **SIZE).image
    with pytest.raises(RuntimeError, match="controlnet"):
        api.txt2img(prompt="a red boat", adetailer=[on], alwayson_scripts={}, **SIZE)


def test_a_wrong_model_and_a_wrong_sampler_say_so(api):
    with pytest.raises(RuntimeError, match=r"dreams\.safetensors"):
        api.txt2img(override_settings={"sd_model_checkpoint": "dreams.safetensors"}, **SIZE)
    with pytest.raises(RuntimeError, match="Sampler not found"):
        api.txt2img(sampler_name="Magic", **SIZE)


def test_a_key_is_the_password(served, tmp_path):
    with serving(tmp_path) as locked:
        secret = locked.key("alice")["authorization"].removeprefix("Bearer ")
        api = api_of(locked, username="alice", password=secret)
        assert api.txt2img(prompt="a red boat", **SIZE).image.size == (64, 64)
        with pytest.raises(RuntimeError, match="Incorrect username or password"):
            api_of(locked, username="alice", password="wrong").txt2img(**SIZE)


@pytest.mark.skipif(not (SHIPPED_NETWORKS["picturebook-edges"]).is_dir(), reason="it is not here")
def test_a_controlnet_unit_and_its_detected_map(api):
    [model] = api.controlnet_model_list()
    square = Image.new("RGB", (128, 64))
    square.paste("white", (16, 16, 48, 48))
    unit = webuiapi.ControlNetUnit(image=square, module="canny", model=model, weight=0.8, control_mode=1)
    result = api.txt2img(prompt="a house", controlnet_units=[unit], alwayson_scripts={}, **SIZE)
    made, edges = result.images
    assert made.size == edges.size == (64, 64)
    assert edges.getextrema() == (0, 255)
    assert len(result.info["all_seeds"]) == 1
    assert "Model: picturebook-edges, Weight: 0.8" in result.info["infotexts"][0]
    wrong = webuiapi.ControlNetUnit(image=square, module="canny", model="control_v11p_sd15_canny")
    with pytest.raises(RuntimeError, match="picturebook-edges"):
        api.txt2img(controlnet_units=[wrong], alwayson_scripts={}, **SIZE)
    network = webuiapi.ControlNetUnit(image=square, module="depth_midas", model=model)
    with pytest.raises(RuntimeError, match="network"):
        api.txt2img(controlnet_units=[network], alwayson_scripts={}, **SIZE)
