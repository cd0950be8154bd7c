"""Always-on scripts: ControlNet's units, the built-in scripts, and those that are not known."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from limner.images.preprocess import preprocessor
from limner.request import GenerationRequest
from limner.server.sdapi.bodies import Txt2ImgBody
from limner.server.sdapi.errors import Refusal, detail_of
from limner.server.sdapi.units import KNOWN, Unit, modules, preprocessor_of, read_scripts, switched_off
from tests.sdapi_kit import Networks

FACTS = json.loads((Path(__file__).parents[3] / "golden/sdapi/facts.json").read_text(encoding="utf-8"))


def picture(size=(64, 64)):
    encoded = io.BytesIO()
    Image.new("RGB", size, "red").save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


UNIT = {"image": picture(), "model": "control_canny [d14c016b]", "module": "canny"}


def read(*units, name="ControlNet", **given):
    settings = {"size": None, "init_image": None, "inpainting": False, **given}
    return read_scripts({name: {"args": list(units)}}, Networks(), **settings)


def control(**fields):
    [found] = read({**UNIT, **fields}).controls
    return found


def test_the_fields_of_a_unit_are_those_of_the_extension():
    idle = {"low_vram", "lowvram", "inpaint_crop_input_image"}
    assert Unit.model_fields.keys() | idle == set(FACTS["controlnet_unit"])


def test_a_unit_is_a_control():
    found = control(weight=0.7, guidance_start=0.1, guidance_end=0.8, control_mode=1)
    assert found.pop("image").startswith("data:image/png;base64,")
    assert found == {
        "model": "controlnet:canny",
        "preprocessor": "canny",
        "weight": 0.7,
        "start": 0.1,
        "end": 0.8,
        "mode": "prompt",
    }
    request = GenerationRequest.of({"prompt": "a", "controls": (control(),)})
    assert request.controls[0].mode == "balanced"
    assert control(control_mode="ControlNet is more important")["mode"] == "guess"
    assert control(guidance=0.5)["end"] == 0.5


@pytest.mark.parametrize("name", ["controlnet", "CONTROLNET", "ControlNet"])
@pytest.mark.parametrize("key", ["image", "input_image"])
def test_old_names_and_forms_are_taken(name, key):
    unit = {key: picture(), "model": "canny", "module": "none"}
    assert read(unit, name=name).controls
    assert read({**UNIT, "image": {"image": picture(), "mask": picture()}}).controls
    assert read({**UNIT, "image": {"image": picture(), "mask": picture()}}).notes


def test_units_that_are_switched_off_are_left_out():
    off = (
        {"enabled": False, **UNIT},
        {"enabled": True, "image": "", "model": "None"},
        {"image": None},
        {},
        {"model": "None", "image": ""},
        False,
        None,
        {"enabled": "false", **UNIT},
    )
    for unit in off:
        assert not read(unit).controls, unit
    assert not read().controls
    assert read(UNIT).controls  # which does not say that it is enabled


def test_a_unit_without_a_picture_takes_the_init_image():
    url = f"data:image/png;base64,{picture()}"
    assert read({"model": "canny", "enabled": True}, init_image=url).controls[0]["image"] == url
    with pytest.raises(Refusal, match="image is missing") as caught:
        read({"model": "canny", "enabled": True})
    assert caught.value.status == 422


def test_control_images_are_cropped_to_the_pictures_proportions():
    unit = {**UNIT, "image": picture((128, 64))}

    def size(**fields):
        [found] = read({**unit, **fields}, size=(64, 64)).controls
        return Image.open(io.BytesIO(base64.b64decode(found["image"].partition(",")[2]))).size

    assert size(resize_mode="Just Resize") == (128, 64)
    assert size(resize_mode=0) == (128, 64)
    assert size() == size(resize_mode=1) == size(resize_mode="Resize and Fill") == (64, 64)


def test_control_images_are_not_scaled_to_sizes_that_are_refused():
    unit = {**UNIT, "image": picture((128, 64))}
    for size in ((10**9, 10**9), (0, 64), (100_000, 64)):
        [found] = read(unit, size=size).controls
        assert Image.open(io.BytesIO(base64.b64decode(found["image"].partition(",")[2]))).size == (128, 64)


def test_detected_maps_follow_unless_they_are_not_wanted():
    [found] = read(UNIT).maps
    assert found.preprocessor == "canny"
    assert not read({**UNIT, "save_detected_map": False}).maps


@pytest.mark.parametrize(
    ("module", "a", "b", "expected"),
    [
        ("none", -1, -1, "none"),
        ("canny", -1, -1, "canny"),
        ("canny", 64, 64, "canny:64:64"),
        ("canny", 50, -1, "canny:50"),
        ("invert (from white bg & black line)", -1, -1, "invert"),
        ("tile_resample", 64, 64, "tile_resample"),  # beyond its slider: webuiapi sends 64 for everything
        ("tile_resample", 2, 64, "tile:2"),
        ("softedge", 64, 64, "softedge"),
    ],
)
def test_preprocessors_with_their_thresholds(module, a, b, expected):
    found = preprocessor_of(module, a, b, "module")
    assert found == expected
    preprocessor(found)  # is known


@pytest.mark.parametrize("module", ["depth_midas", "openpose_full", "reference_only", "nonsense"])
def test_preprocessors_that_are_networks_are_refused_with_a_hint(module):
    with pytest.raises(Refusal) as caught:
        read({**UNIT, "module": module})
    assert caught.value.status == 422
    assert "module" in detail_of(caught.value)
    assert caught.value.hint


def test_modules_can_all_be_used():
    assert modules()[:2] == ["none", "canny"]
    assert "invert" in modules()


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "None", "enabled": True},
        {"model": "unknown"},
        {"guidance_start": 0.8, "guidance_end": 0.2},
        {"guidance_end": 2},
        {"weight": "much"},
        {"control_mode": "strong"},
        {"resize_mode": "enlarge"},
        {"image": "rubbish!"},
        {"module": "inpaint_only"},
    ],
)
def test_a_unit_that_cannot_be_used_is_refused(fields):
    with pytest.raises(Refusal) as caught:
        read({**UNIT, **fields})
    assert caught.value.status in (400, 422)


def test_inpainting_takes_the_mask_of_img2img():
    [found] = read({**UNIT, "module": "inpaint_only"}, inpainting=True).controls
    assert found["preprocessor"] == "inpaint"


def test_image_prompts():
    [found] = read({**UNIT, "module": "ip-adapter_clip_sd15", "model": "ip-adapter_sd15"}).image_prompts
    assert found["model"] == "ip_adapter:face"
    GenerationRequest.of({"prompt": "a", "image_prompts": (found,)})


@pytest.mark.parametrize(
    "args",
    [
        [],
        [False],
        [False, True],
        [None],
        [{"ad_model": "None"}],
        [True, {"ad_model": "None"}],
        [{"enabled": False}, {"enabled": False}],
        [{"enable": False, "model": "mm"}],
    ],
)
@pytest.mark.parametrize("name", ["ADetailer", "animatediff", "roop", "Something new"])
def test_scripts_that_are_not_known_may_be_there_switched_off(name, args):
    assert switched_off(args)
    assert read(*args, name=name) == read()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ADetailer", [True, {"ad_model": "face_yolov8n.pt"}]),
        ("ADetailer", [{"ad_model": "face_yolov8n.pt"}]),
        ("Dynamic Thresholding (CFG Scale Fix)", [True, 7, 1]),
        ("Soft Inpainting", [True, 1, 0.5]),
        ("reactor", ["data:image/png;base64,AAAA", True]),
    ],
)
def test_scripts_that_are_not_known_are_refused_with_the_list_of_those_that_are(name, args):
    with pytest.raises(Refusal, match=r"always on script .* not found") as caught:
        read(*args, name=name)
    assert caught.value.status == 422
    assert all(one in str(caught.value.hint) for one in KNOWN)


def test_the_built_in_scripts_set_fields_of_the_body():
    assert read(True, "other.safetensors", 0.6, name="Refiner").body == {
        "refiner_checkpoint": "other.safetensors",
        "refiner_switch_at": 0.6,
    }
    assert read(False, "other", 0.6, name="Refiner").body == {}
    assert read(5, True, 6, 0.5, name="Seed").body == {"seed": 5, "subseed": 6, "subseed_strength": 0.5}
    assert read(5, False, 6, 0.5, name="Seed").body == {"seed": 5}
    assert read(9, "DDIM", "Karras", name="Sampler").body == {
        "steps": 9,
        "sampler_name": "DDIM",
        "scheduler": "Karras",
    }


@pytest.mark.parametrize("value", [3, "x", {"args": "x"}])
def test_arguments_that_are_no_list_are_refused(value):
    body = Txt2ImgBody(alwayson_scripts={"ControlNet": value})
    with pytest.raises(Refusal, match="ControlNet"):
        read_scripts(body.alwayson_scripts, Networks(), size=None, init_image=None, inpainting=False)
