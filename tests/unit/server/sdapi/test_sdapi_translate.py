"""Bodies of AUTOMATIC1111's API become requests: every field is honoured, named in `info`, or refused."""

import base64
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from limner.catalogue.catalogue import Entry
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidRequest
from limner.files import FileStamp
from limner.images.record import Record
from limner.nn.unet_config import UNetConfig
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts
from limner.request.names import UPSCALERS
from limner.server.sdapi import info, names
from limner.server.sdapi.bodies import Img2ImgBody, Txt2ImgBody
from limner.server.sdapi.errors import Refusal, body_of, detail_of, status_of
from limner.server.sdapi.options import OPTIONS, defaults
from limner.server.sdapi.translate import Model, model_of, translate
from tests.sdapi_kit import Networks

FACTS = json.loads((Path(__file__).parents[3] / "golden/sdapi/facts.json").read_text(encoding="utf-8"))


def entry(name, *, suffix=".safetensors", sha256=None, kind="checkpoint"):
    path = Path(f"/models/{name}{suffix}")
    stamp = FileStamp(path, 1, 1, 1)
    return Entry(f"{kind}:{name}", kind, name, "sd1", path, stamp, "folder", 1, sha256=sha256)


SHA = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
MODELS = names.Models(
    [entry("sd15/v1-5", sha256=SHA), entry("picturebook", suffix=""), entry("dir/Other Model")],
    {"dream": "picturebook"},
)
MODEL = ModelFacts(
    "picturebook", "sd1", UNetConfig(), SchedulerConfig(), defaults={"width": 128, "height": 128}
)


def picture(size=(64, 64), colour="red", mode="RGB"):
    encoded = io.BytesIO()
    Image.new(mode, size, colour).save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def make(fields, *, kind=Txt2ImgBody, options=None, facts=MODEL):
    body = kind.model_validate({"prompt": "a cat", **fields})
    unknown = tuple(sorted(fields.keys() - kind.model_fields.keys()))
    model = Model("checkpoint:picturebook", facts)
    made = translate(body, {**defaults(), **(options or {})}, model, Networks(), MODELS, unknown)
    GenerationRequest.of(made.fields)  # as whoever gets the fields does
    return made


def txt2img(options=None, facts=MODEL, **fields):
    return make(fields, options=options, facts=facts)


def img2img(options=None, facts=MODEL, **fields):
    return make({"init_images": [picture()], **fields}, kind=Img2ImgBody, options=options, facts=facts)


def test_the_fields_and_their_defaults_are_those_of_the_api():
    for kind, name in ((Txt2ImgBody, "txt2img"), (Img2ImgBody, "img2img")):
        own = {field: info.default for field, info in kind.model_fields.items() if field != "clip_skip"}
        assert own == FACTS[name]


def test_the_options_that_clients_read_have_the_defaults_of_the_api():
    own = defaults()
    for name, default in FACTS["options"].items():
        if name not in ("sd_model_checkpoint", "sd_checkpoint_hash"):  # follow from the model
            assert own[name] == default, name


# A value of each honoured field other than its default, and a field of the request that it changes.
HONOURED = {
    "prompt": ("a dog", "prompt"),
    "negative_prompt": ("rain", "negative_prompt"),
    "styles": (["None", "Ink"], "styles"),
    "seed": (7, "seed"),
    "subseed": (7, "variation_seed"),
    "subseed_strength": (0.5, "variation_strength"),
    "sampler_name": ("DDIM", "sampler"),
    "sampler_index": ("k_heun", "sampler"),
    "scheduler": ("karras", "sigma_schedule"),
    "batch_size": (3, "num_images"),
    "n_iter": (3, "num_images"),
    "steps": (7, "steps"),
    "cfg_scale": (3, "guidance_scale"),
    "width": (256, "width"),
    "height": (256, "height"),
    "tiling": (True, "tiling"),
    "eta": (0.5, "eta"),
    "denoising_strength": (0.3, None),
    "s_min_uncond": (0.5, "guidance_skip"),
    "s_churn": (2, "s_churn"),
    "s_tmax": (9, "s_tmax"),
    "s_tmin": (0.5, "s_tmin"),
    "s_noise": (1.5, "s_noise"),
    "override_settings": ({"CLIP_stop_at_last_layers": 2}, "clip_skip"),
    "refiner_checkpoint": ("v1-5", "refiner"),
    "refiner_switch_at": (0.5, "refiner_start"),
    "disable_extra_networks": (True, "prompt"),
    "alwayson_scripts": ({"Sampler": {"args": [5]}}, "steps"),
    "infotext": ("a\nSteps: 9, Sampler: Heun, CFG scale: 3, Seed: 5, Size: 64x64", "steps"),
    "clip_skip": (2, "clip_skip"),
    "firstphase_width": (64, "hires_width"),
    "firstphase_height": (64, "hires_height"),
    "hr_scale": (1.5, "hires_scale"),
    "hr_upscaler": ("Latent (bicubic)", "hires_upscaler"),
    "hr_second_pass_steps": (4, "hires_steps"),
    "hr_resize_x": (256, "hires_width"),
    "hr_resize_y": (256, "hires_height"),
    "hr_sampler_name": ("Heun", "hires_sampler"),
    "hr_scheduler": ("Karras", "hires_sigma_schedule"),
    "hr_prompt": ("a dog", "hires_prompt"),
    "hr_negative_prompt": ("rain", "hires_negative_prompt"),
    "enable_hr": (True, "hires_scale"),
    "init_images": ([picture(colour="blue")], "image"),
    "resize_mode": (1, "image"),
    "image_cfg_scale": (2.0, "image_guidance_scale"),
    "mask": (picture(colour="white"), "mask"),
    "mask_blur": (9, "mask_blur"),
    "mask_blur_x": (9, "mask"),
    "mask_blur_y": (9, "mask"),
    "inpainting_fill": (1, "image"),
    "inpaint_full_res": (False, "inpaint_area"),
    "inpaint_full_res_padding": (8, "mask_padding"),
    "inpainting_mask_invert": (1, "mask"),
}
# Where a field counts only along with others.
WITH = {
    "subseed": {"subseed_strength": 0.5},
    "s_churn": {"sampler_name": "Euler"},
    "s_tmin": {"sampler_name": "Euler", "s_churn": 2},
    "s_tmax": {"sampler_name": "Euler", "s_churn": 2},
    "s_noise": {"sampler_name": "Euler a"},
    "eta": {"sampler_name": "Euler a"},
    "refiner_checkpoint": {"refiner_switch_at": 0.8},
    "refiner_switch_at": {"refiner_checkpoint": "v1-5"},
    "disable_extra_networks": {"prompt": "a <lora:ink:1> cat"},
    "resize_mode": {"width": 64, "height": 128},
}
MASK = {"mask": picture(colour="white")}
WITH |= {name: MASK for name in HONOURED if name.startswith(("mask_", "inpaint"))}
for name in ("inpainting_fill", "inpainting_mask_invert"):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    WITH[name] = {"mask": picture()} | {"mask": base64.b64encode(b"").decode()}
WITH |= {name: {"enable_hr": True} for name in HONOURED if name.startswith(("hr_", "firstphase"))}
DELIVERY = {"send_images", "override_settings_restore_afterwards", "force_task_id", "include_init_images"}


def half_mask():
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    encoded = io.BytesIO()
    mask.save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


for name in ("inpainting_fill", "inpainting_mask_invert", "mask_blur_x", "mask_blur_y"):
    WITH[name] = {"mask": half_mask()}


@pytest.mark.parametrize("kind", [Txt2ImgBody, Img2ImgBody])
def test_every_honoured_field_changes_the_request(kind):
    for name, (handling, _) in kind.handling().items():
        if handling != "honoured" or name in DELIVERY:
            continue
        value, field = HONOURED[name]
        facts = replace(MODEL, kind="edit") if name == "image_cfg_scale" else MODEL
        make_one = txt2img if kind is Txt2ImgBody else img2img
        along = WITH.get(name, {})
        before = make_one(facts=facts, **along).fields
        after = make_one(facts=facts, **{**along, name: value}).fields
        if name == "denoising_strength":
            hires = {"enable_hr": True} if kind is Txt2ImgBody else {}
            before, after = make_one(**hires).fields, make_one(**hires, denoising_strength=value).fields
            field = "hires_strength" if kind is Txt2ImgBody else "strength"
        assert after.get(field) != before.get(field), name


NAMED = {
    "restore_faces": True,
    "do_not_save_samples": True,
    "do_not_save_grid": False,
    "save_images": None,
    "comments": {"a": "b"},
    "script_args": [1],
    "mask_round": None,
    "initial_noise_multiplier": 1.2,
}


@pytest.mark.parametrize("kind", [Txt2ImgBody, Img2ImgBody])
def test_every_field_without_effect_is_named_where_it_asks_for_something_else(kind):
    for name, (handling, _) in kind.handling().items():
        if handling != "without effect" or NAMED[name] is None:  # None: what it asks for is done
            continue
        make_one = txt2img if kind is Txt2ImgBody else img2img
        more = {"save_images": True, "batch_size": 2} if name == "do_not_save_grid" else {}
        before = make_one(seed=1, **more).fields
        made = make_one(seed=1, **more, **{name: NAMED[name]})
        assert name in made.without_effect
        assert made.fields == before


REFUSED = {
    "seed_resize_from_h": 512,
    "seed_resize_from_w": 512,
    "firstpass_image": picture(),
    "script_name": "x/y/z plot",
    "hr_checkpoint_name": "v1-5",
    "latent_mask": picture(),
}


@pytest.mark.parametrize("kind", [Txt2ImgBody, Img2ImgBody])
def test_every_refused_field_is_named_in_the_error(kind):
    for name, (handling, _) in kind.handling().items():
        if handling != "refused":
            continue
        make_one = txt2img if kind is Txt2ImgBody else img2img
        more = {"enable_hr": True} if name == "hr_checkpoint_name" else {}
        with pytest.raises(Refusal) as caught:
            make_one(**more, **{name: REFUSED[name]})
        assert name in caught.value.fields


def test_every_option_that_pictures_would_show_is_named_and_others_are_not():
    for name, option in OPTIONS.items():
        made = txt2img(override_settings={name: option.default})
        assert not made.without_effect, name
        if option.effect == "named":
            made = txt2img(override_settings={name: 0.25})
            assert made.without_effect == (f"override_settings.{name}",)
    assert txt2img(override_settings={"forge_additional": "x"}).without_effect
    assert not txt2img(override_settings={"forge_preset": None, "sd_unet": ""}).without_effect


def test_what_is_left_out_takes_the_models_own_default_and_then_the_apis():
    made = txt2img().fields
    assert (made["width"], made["height"], made["steps"], made["guidance_scale"]) == (128, 128, 50, 7.0)
    assert (made["sampler"], made["sigma_schedule"], made["noise"]) == ("euler", "uniform", "gpu")
    own = replace(MODEL, defaults={"steps": 20, "guidance_scale": 4.0, "sampler": "heun"})
    made = txt2img(facts=own).fields
    assert (made["steps"], made["guidance_scale"], made["sampler"]) == (20, 4.0, "heun")
    made = txt2img(facts=None).fields
    assert (made["width"], made["height"]) == (512, 512)
    assert txt2img(width=300).fields["width"] == 296
    assert txt2img(width=300).fields["height"] == 512


def test_bodies_are_read_as_leniently_as_pydantic_1_does():
    body = Txt2ImgBody.model_validate(
        {
            "width": "512",
            "steps": 20.7,
            "enable_hr": "false",
            "tiling": 1,
            "denoising_strength": None,
            "hr_second_pass_steps": 12.5,
            "sampler_name": None,
            "nonsense": {"a": 1},
            "seed": None,
        }
    )
    assert (body.width, body.steps, body.enable_hr, body.tiling, body.seed) == (512, 20, False, True, -1)
    assert (body.denoising_strength, body.hr_second_pass_steps) == (0.75, 12)
    for wrong in ({"width": "wide"}, {"steps": []}, {"prompt": ["a"]}, {"cfg_scale": float("nan")}):
        with pytest.raises(ValidationError):
            Txt2ImgBody.model_validate(wrong)
    assert "auth" in txt2img(auth="", url="x").without_effect


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("DPM++ 2M Karras", "automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Exponential", ("dpmpp_2m", "exponential")),
        ("DPM++ 2M Karras", "Exponential", ("dpmpp_2m", "karras")),
        ("DPM2 a Karras", "", ("dpm2_a", "karras")),
        ("k_euler_a", "Automatic", ("euler_a", "uniform")),
        ("DPM++ 2S a Karras", None, ("dpmpp_2s_a", "karras")),
        ("euler a", "SGMUniform", ("euler_a", "sgm_uniform")),
        ("UniPC", "Karras", ("unipc_bh1", "uniform")),
        ("unipc", None, ("unipc_bh1", "uniform")),
        ("DDIM", None, ("ddim", "uniform")),
        ("PLMS", None, ("pndm", "uniform")),
    ],
)
def test_samplers_are_found_by_any_of_their_names(sampler, scheduler, expected):
    made = txt2img(sampler_name=sampler, sampler_index="Euler", scheduler=scheduler)
    assert (made.fields["sampler"], made.fields["sigma_schedule"]) == expected
    assert ("scheduler" in made.without_effect) == (sampler == "UniPC")


def test_every_listed_sampler_scheduler_and_mode_is_taken():
    for one in names.samplers():
        for name in (one["name"], *one["aliases"]):
            listed = names.sampling(name, None)[0]
            assert listed == names.sampling(one["name"], None)[0]
    for one in names.schedulers():
        for name in (one["name"], one["label"], *(one["aliases"] or ())):
            txt2img(sampler_name="Euler", scheduler=name)
    modes = [mode["name"] for mode in names.latent_upscale_modes()]
    assert modes == FACTS["latent_upscale_modes"]
    for mode in [*modes, *names.PIXEL_UPSCALERS]:
        assert txt2img(enable_hr=True, hr_upscaler=mode).fields["hires_upscaler"] in UPSCALERS


def test_the_lists_have_all_that_the_api_has_and_in_its_order():
    assert names.samplers()[: len(FACTS["samplers"])] == FACTS["samplers"]
    own = {one["name"]: one for one in names.schedulers()}
    assert all(own[one["name"]] == one for one in FACTS["schedulers"])
    assert names.schedulers()[0]["name"] == "automatic"
    assert [one["name"] for one in names.upscalers()] == ["None", "Lanczos", "Nearest"]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"sampler_name": "Magic"}, "sampler_name", "Sampler not found"),
        ({"scheduler": "Magic"}, "scheduler", "Scheduler not found"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler", "Latent (bicubic)"),
        ({"refiner_checkpoint": "nothing"}, "refiner_checkpoint", "no such model"),
        ({"override_settings": {"sd_vae": "own.vae.pt"}}, "override_settings.sd_vae", "Automatic"),
        ({"override_settings": {"samples_format": "jxl"}}, "override_settings.samples_format", "jxl"),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": "x"}},
            "override_settings.CLIP_stop_at_last_layers",
            "number",
        ),
        ({"seed": -5}, "seed", "-1"),
        ({"batch_size": 0}, "batch_size", "0"),
        ({"infotext": '{"a": 1}'}, "infotext", "JSON"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields, field, says):
    with pytest.raises(Refusal) as caught:
        txt2img(**fields)
    assert field in caught.value.fields
    assert says in detail_of(caught.value)
    assert status_of(caught.value) in (400, 422)


def test_seeds_and_variations():
    made = txt2img(seed=5, subseed=9, batch_size=2, n_iter=3).fields
    assert (made["seed"], made["num_images"]) == (5, 6)
    assert "variation_seed" not in made  # as there is no strength
    made = txt2img(seed=5, subseed=9, subseed_strength=0.3).fields
    assert (made["variation_seed"], made["variation_strength"]) == (9, 0.3)
    assert "seed" not in txt2img(seed=-1).fields


def test_eta_counts_where_the_sampler_takes_it():
    assert "eta" not in txt2img(sampler_name="Euler", eta=1.0).fields  # as webuiapi always sends
    assert not txt2img(sampler_name="Euler", eta=1.0).without_effect
    assert txt2img(sampler_name="Euler", eta=0.3).without_effect == ("eta",)
    assert txt2img(sampler_name="DDIM", eta=1.0).fields["eta"] == 1.0
    assert "eta" not in txt2img(sampler_name="Euler a").fields
    assert txt2img(sampler_name="Euler a", options={"eta_ancestral": 0.4}).fields["eta"] == 0.4
    assert txt2img(sampler_name="DDIM CFG++", cfg_scale=7.5).fields["guidance_scale"] == 0.6
    assert txt2img(sampler_name="Euler CFG++").fields["guidance_scale"] == 0.6
    assert txt2img(sampler_name="Euler CFG++", cfg_scale=1.5).fields["guidance_scale"] == 1.5


def test_the_second_pass():
    made = txt2img(enable_hr=True, width=128, height=128).fields
    assert (made["hires_scale"], made["hires_strength"], made["hires_upscaler"]) == (2.0, 0.75, "latent")
    assert "hires_steps" not in made
    made = txt2img(enable_hr=True, hr_resize_x=256, hr_scale=3).fields
    assert made["hires_width"] == 256
    assert "hires_scale" not in made
    made = txt2img(enable_hr=True, width=256, height=192, firstphase_width=128, firstphase_height=96).fields
    assert (made["width"], made["height"], made["hires_width"], made["hires_height"]) == (128, 96, 256, 192)
    made = txt2img(enable_hr=True, hr_sampler_name="DPM++ 2M", hr_scheduler="Use same scheduler").fields
    assert (made["hires_sampler"], made["hires_sigma_schedule"]) == ("dpmpp_2m", "karras")
    made = txt2img(
        enable_hr=True, hr_checkpoint_name="Use same checkpoint", hr_sampler_name="Use same sampler"
    )
    assert "hires_sampler" not in made.fields
    assert "hires_scale" not in txt2img(hr_scale=3, hr_upscaler="Latent").fields


def test_models_are_found_by_all_their_names():
    first = MODELS.entries[0]
    assert names.title(first) == "sd15/v1-5.safetensors [6ce0161689]"
    for name in (
        "sd15/v1-5.safetensors [6ce0161689]",
        "SD15/V1-5.SAFETENSORS [6CE0161689]",
        "sd15/v1-5.safetensors",
        "sd15/v1-5",
        "v1-5.safetensors",
        "v1-5",
        "v1-5 [6ce0161689]",
        "v1-5.safetensors [6ce0161689]",
        "6ce0161689",
        SHA,
        "checkpoint:sd15/v1-5",
    ):
        assert MODELS.find(name, "f") is first
    assert MODELS.find("dream", "f").name == "picturebook"
    assert MODELS.find("other model", "f").name == "dir/Other Model"
    with pytest.raises(Refusal, match=r"override_settings.sd_model_checkpoint is 'v1-6'") as caught:
        MODELS.find("v1-6", "override_settings.sd_model_checkpoint")
    assert "v1-5" in str(caught.value.hint)
    with pytest.raises(Refusal):
        MODELS.find("v1-7 [ffffffffff]", "f")


def test_a_model_is_found_by_the_hash_of_2022(tmp_path):
    file = tmp_path / "old.safetensors"
    file.write_bytes(bytes(0x100000) + b"limner" * 20_000)
    own = replace(entry("old"), path=file)
    [old] = [names.old_hash(file)]
    assert names.Models([own]).find(f"old.safetensors [{old}]", "f") is own
    assert names.Models([own]).find(str(old), "f") is own


def test_the_model_of_a_request_is_its_own_or_that_of_the_options():
    text = "a\nSteps: 9, Sampler: Euler, Seed: 1, Model hash: {}, Model: {}"
    own, infotext = {"sd_model_checkpoint": "v1-5"}, {"infotext": text.format("0123456789", "Other Model")}
    kept = {"sd_model_checkpoint": "picturebook"}

    def model(fields, options=None):
        found = model_of(Txt2ImgBody(**fields), options or defaults(), MODELS)
        return found and found.name

    assert model({}) is None
    assert model({}, kept) == "picturebook"
    assert model(infotext, kept) == "dir/Other Model"
    assert model({"infotext": text.format("6ce0161689", "renamed")}) == "sd15/v1-5"
    assert model({"override_settings": own, **infotext}, kept) == "sd15/v1-5"
    assert model({"infotext": text.format("0123456789", "gone")}, kept) == "picturebook"
    with pytest.raises(Refusal, match=r"override_settings\.sd_model_checkpoint"):
        model({"override_settings": {"sd_model_checkpoint": "gone"}})
    assert txt2img(infotext=text.format("0123456789", "gone")).notes[0].endswith("gone, which is not here")


def test_options_of_a_request_are_kept_where_it_says_so():
    made = txt2img(override_settings={"CLIP_stop_at_last_layers": 2})
    assert made.kept == {}
    made = txt2img(override_settings={"tiling": True}, override_settings_restore_afterwards=False)
    assert made.kept == {"tiling": True}


def test_tags_are_text_where_extra_networks_are_disabled():
    made = txt2img(prompt="a <lora:ink:1> (cat:1.2) <3", disable_extra_networks=True)
    assert made.fields["prompt"] == "a < lora:ink:1> (cat:1.2) <3"


def test_an_infotext_counts_where_the_request_does_not_say():
    text = (
        "a house\nNegative prompt: rain\nSteps: 9, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3, "
        "Seed: 5, Size: 192x128, RNG: CPU, Clip skip: 2, Hires upscale: 2, Hires upscaler: Lanczos, "
        "Denoising strength: 0.4"
    )
    body = Txt2ImgBody.model_validate({"infotext": text, "steps": 4})
    made = translate(body, defaults(), Model("m", MODEL), Networks(), MODELS).fields
    assert (made["prompt"], made["negative_prompt"], made["seed"]) == ("a house", "rain", 5)
    assert (made["steps"], made["guidance_scale"], made["noise"]) == (4, 3.0, "cpu")
    assert (made["sampler"], made["sigma_schedule"]) == ("dpmpp_2m", "karras")
    assert (made["width"], made["height"], made["clip_skip"]) == (192, 128, 2)
    assert (made["hires_scale"], made["hires_upscaler"], made["hires_strength"]) == (2.0, "Lanczos", 0.4)


def test_an_infotext_of_a_picture_asks_for_the_same_again():
    made = txt2img(
        seed=3, sampler_name="DPM++ 2M", width=192, enable_hr=True, hr_scale=1.5, negative_prompt="x"
    )
    request = GenerationRequest.of({**made.fields, "model": "picturebook"})
    record = Record(
        request=request, model={"name": "picturebook", "sha256": "ab" * 32}, environment={"limner": "1"}
    )
    body = Txt2ImgBody.model_validate({"infotext": record.infotext()})
    again = translate(body, defaults(), Model("picturebook", MODEL), Networks(), MODELS)
    assert GenerationRequest.of(again.fields) == request


def test_img2img_begins_with_its_picture():
    made = img2img(denoising_strength=0.4).fields
    assert opened(made["image"]).getpixel((0, 0)) == (255, 0, 0)
    assert made["strength"] == 0.4
    assert "mask" not in made
    assert img2img().fields["strength"] == 0.75
    made = img2img(denoising_strength=0, steps=10)
    assert made.fields["strength"] == 0.1
    assert made.notes
    with pytest.raises(Refusal, match="Init image not found") as caught:
        make({}, kind=Img2ImgBody)
    assert caught.value.status == 404
    with pytest.raises(Refusal, match="2 images"):
        make({"init_images": [picture(), picture()]}, kind=Img2ImgBody)


@pytest.mark.parametrize("form", ["data:image/png;base64,{}", " {}\n", "{}"])
def test_pictures_are_taken_in_every_form_that_clients_send(form):
    plain = picture((63, 65), "blue")
    wrapped = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    for text in (plain, wrapped, plain.rstrip("="), plain.replace("+", "-").replace("/", "_")):
        made = make({"init_images": [form.format(text)]}, kind=Img2ImgBody)
        assert opened(made.fields["image"]).size == (63, 65)


@pytest.mark.parametrize(
    "text", ["", "!!!", "aGVsbG8=", "http://localhost/a.png", "file:///etc/passwd", picture()[:60]]
)
def test_a_picture_that_cannot_be_read_is_refused_with_its_field(text):
    with pytest.raises(Refusal) as caught:
        make({"init_images": [text]}, kind=Img2ImgBody)
    assert (caught.value.status, caught.value.fields) == (400, ("init_images",))
    with pytest.raises(Refusal, match="mask") as caught:
        img2img(mask=text or "x")
    assert caught.value.fields == ("mask",)


def header_of(side):
    """A PNG whose header gives a size, without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    return base64.b64encode(data + chunk(b"IEND", b"")).decode()


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded():
    for side, says in ((7000, "7000 x 7000 pixels"), (16_000, "far too many pixels")):
        with pytest.raises(Refusal, match=says):
            make({"init_images": [header_of(side)]}, kind=Img2ImgBody)


def test_pictures_are_stretched_cropped_or_filled():
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste("blue", (0, 0, 64, 64))
    encoded = io.BytesIO()
    wide.save(encoded, "PNG")
    fields = {"init_images": [base64.b64encode(encoded.getvalue()).decode()], "width": 64, "height": 64}
    assert opened(img2img(**fields).fields["image"]).size == (128, 64)  # stretched when it is drawn
    cropped = opened(img2img(**fields, resize_mode=1).fields["image"])
    assert cropped.size == (64, 64)
    assert cropped.getpixel((10, 32)) == (0, 0, 255)
    assert cropped.getpixel((60, 32)) == (255, 0, 0)
    filled = opened(img2img(**fields, resize_mode=2).fields["image"])
    assert filled.size == (64, 64)
    assert filled.getpixel((5, 1)) == (0, 0, 255)  # the edge goes on
    assert filled.getpixel((60, 63)) == (255, 0, 0)
    assert img2img(**fields, resize_mode=3).without_effect == ("resize_mode",)


def test_masks():
    made = img2img(mask=half_mask(), inpainting_fill=1).fields
    assert (made["mask_blur"], made["inpaint_area"], made["mask_padding"]) == (4.0, "masked", 0)
    assert np.array_equal(np.asarray(opened(made["mask"]))[:, :32], np.full((64, 32), 255))
    made = img2img(mask=half_mask(), inpainting_mask_invert=1, inpaint_full_res=False, mask_blur=0).fields
    assert opened(made["mask"]).getpixel((0, 0)) == 0
    assert (made["mask_blur"], made["inpaint_area"]) == (0.0, "whole")
    assert "mask_padding" not in made
    made = img2img(mask=half_mask(), mask_blur_x=8, mask_blur_y=0).fields
    soft = np.asarray(opened(made["mask"]))
    assert made["mask_blur"] == 0.0
    assert 0 < soft[32, 33] < 255
    assert (soft == soft[:1]).all()  # blurred along x alone
    blank = img2img(mask=picture(colour="black"))
    assert "mask" not in blank.fields
    assert blank.notes
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((9, 200, 30, 255), (0, 0, 32, 64))
    encoded = io.BytesIO()
    clear.save(encoded, "PNG")
    made = img2img(mask=base64.b64encode(encoded.getvalue()).decode()).fields
    assert opened(made["mask"]).getpixel((0, 0)) == 255
    assert opened(made["mask"]).getpixel((63, 0)) == 0


def test_what_the_masked_part_begins_as():
    original = Image.new("RGB", (64, 64), "red")
    original.paste("blue", (0, 0, 32, 64))
    encoded = io.BytesIO()
    original.save(encoded, "PNG")
    fields = {"init_images": [base64.b64encode(encoded.getvalue()).decode()], "mask": half_mask()}
    kept = opened(img2img(**fields, inpainting_fill=1).fields["image"])
    assert kept.getpixel((5, 5)) == (0, 0, 255)
    filled = opened(img2img(**fields, inpainting_fill=0).fields["image"])
    red, _, blue = filled.getpixel((5, 5))
    assert red > 200 > 60 > blue  # the colour of what surrounds it
    assert filled.getpixel((60, 5)) == (255, 0, 0)
    for content in (2, 3):
        made = img2img(**fields, inpainting_fill=content)
        assert made.notes
        assert opened(made.fields["image"]).getpixel((60, 5)) == (255, 0, 0)
        assert opened(made.fields["image"]).getpixel((5, 5)) != (0, 0, 255)
        assert img2img(**fields, inpainting_fill=content).fields == made.fields  # the same each time


def test_how_pictures_are_sent():
    assert txt2img().delivery.encoding.format == "png"
    made = txt2img(override_settings={"samples_format": "jpg", "jpeg_quality": 55}, send_images=False)
    assert (made.delivery.encoding.format, made.delivery.encoding.quality, made.delivery.send) == (
        "jpeg",
        55,
        False,
    )
    assert txt2img(options={"samples_format": "webp"}).delivery.encoding.format == "webp"
    unknown = txt2img(options={"samples_format": "jxl"})
    assert (unknown.delivery.encoding.format, len(unknown.notes)) == ("png", 1)
    assert txt2img(options={"enable_pnginfo": False}).delivery.encoding.with_record is False


def record_of(fields):
    request = GenerationRequest.of({**fields, "seed": 5, "model": "picturebook"})
    return Record(
        request=request, model={"name": "picturebook", "sha256": "ab" * 32}, environment={"limner": "1"}
    )


def test_info_has_every_key_of_the_api_and_names_what_has_no_effect():
    made = txt2img(batch_size=2, restore_faces=True, cfg_scale=3)
    first = record_of({**made.fields, "num_images": 1})
    records = [first, first.model_copy(update={"request": first.request.model_copy(update={"seed": 6})})]
    document = info.info_of(made, records, at=0.0)
    assert document.keys() >= set(FACTS["info_keys"])
    assert document["all_seeds"] == [5, 6]
    assert (document["seed"], document["cfg_scale"], document["sampler_name"]) == (5, 3.0, "Euler")
    assert (document["sd_model_name"], document["sd_model_hash"]) == ("picturebook", "ababababab")
    assert document["without_effect"] == ["restore_faces"]
    assert "Seed: 6" in document["infotexts"][1]
    answered = info.answer(made.body, ["x", "y"], document)
    assert answered["images"] == ["x", "y"]
    assert json.loads(answered["info"]) == document
    assert answered["parameters"].keys() >= FACTS["txt2img"].keys()
    assert info.info_of(made, [], at=0.0).keys() == document.keys()  # of an interrupted request


def test_parameters_repeat_pictures_only_where_they_are_asked_for():
    assert info.parameters_of(img2img(mask=half_mask()).body, {})["init_images"] is None
    body = img2img(mask=half_mask(), include_init_images=True).body
    assert info.parameters_of(body, {})["mask"] == half_mask()
    unit = {"image": "A" * 5000, "module": "canny"}
    body = Txt2ImgBody(alwayson_scripts={"ControlNet": {"args": [unit]}})
    assert info.parameters_of(body, {})["alwayson_scripts"] == {
        "ControlNet": {"args": [{"image": None, "module": "canny"}]}
    }


def test_errors_have_the_shape_and_the_names_of_the_api():
    request = {"width": 4, "num_images": 1, "prompt": "a", "guidance_scale": 900.0}
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest.of(request)
    detail = detail_of(caught.value)
    assert "cfg_scale" in detail
    assert status_of(caught.value) == 400
    assert body_of("InvalidRequest", detail) == {
        "error": "InvalidRequest",
        "detail": detail,
        "body": "",
        "errors": detail,
    }


def test_options_of_noise():
    assert txt2img(sampler_name="DPM fast").fields["eta"] == 1.0  # AUTOMATIC1111's default, not Limner's
    assert "eta" not in txt2img(sampler_name="TCD").fields
    made = txt2img(sampler_name="Euler", override_settings={"s_churn": 3, "s_tmin": "0.5"})
    assert (made.fields["s_churn"], made.fields["s_tmin"]) == (3.0, 0.5)
    assert txt2img(sampler_name="DDIM", override_settings={"s_churn": 3}).without_effect == ("s_churn",)
    assert txt2img(sampler_name="Euler", s_tmin=0.5).without_effect == ("s_tmin",)
