"""GenerationRequest: what it takes, what it refuses, and in which words."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import limner
from limner import GenerationRequest, InvalidRequest
from limner.request import MAX_SEED, SCHEMA_VERSION, Control, ImagePrompt, Lora
from limner.request.loras import with_loras


def refusal(**fields) -> str:
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest.of({"prompt": "a house", **fields})
    return caught.value.message


def test_only_a_prompt_is_needed_and_all_else_is_the_models():
    request = GenerationRequest.of({"prompt": "a house"})
    assert request.model == "picturebook"
    assert request.num_images == 1
    unset = (
        "width",
        "height",
        "steps",
        "guidance_scale",
        "sampler",
        "sigma_schedule",
        "timestep_spacing",
        "seed",
    )
    assert all(getattr(request, name) is None for name in unset)


def test_it_cannot_be_changed():
    request = GenerationRequest(prompt="a house")
    with pytest.raises(ValueError, match="frozen"):
        request.prompt = "a boat"
    assert request == GenerationRequest(prompt="a house")
    assert len({request, GenerationRequest(prompt="a house")}) == 1


def test_no_negative_prompt_is_not_an_empty_one():
    assert GenerationRequest(prompt="", negative_prompt=None) != GenerationRequest(
        prompt="", negative_prompt=""
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"widht": 64}, ["widht", "not a field"]),
        ({"prompt": None}, ["prompt", "None"]),
        ({"prompt": "(" * 1_000_000}, ["prompt", "65536"]),
        ({"prompt": "\ud800"}, ["prompt"]),
        ({"width": 100}, ["width is 100", "multiple of 8"]),
        ({"s_churn": 1.0, "s_tmin": 2.0, "s_tmax": 1.0}, ["s_tmin is 2.0 and s_tmax 1.0"]),
        ({"controls": ["canny"]}, ["controls.0", "'canny' is no field", "model=…"]),
        ({"controls": ["model=a,image=b,weigth=1"]}, ["'weigth=1' is no field", "weight=…"]),
        ({"controls": ["model=a,image=b,weight=much"]}, ["weight is 'much'", "a number"]),
        ({"controls": ["model=a,model=b,image=c"]}, ["model is given twice"]),
        ({"image_prompts": ["model=a,images=b"]}, ["'images=b' is no field", "image=…"]),
        ({"image_prompts": ["model=a"]}, ["image_prompts.0.images is missing"]),
        ({"loras": ["ink:0.8:1.2.3"]}, ["loras.0", "no number", "name:0.8"]),
        ({"height": 8}, ["height is 8", "64"]),
        ({"height": 1 << 40}, ["height", "4096"]),
        ({"width": -512}, ["width is -512"]),
        ({"width": 512.0}, ["width is 512.0", "integer"]),
        ({"width": "512"}, ["width is '512'", "integer"]),
        ({"width": True}, ["width is True"]),
        ({"steps": 0}, ["steps is 0", "1"]),
        ({"steps": 1001}, ["steps is 1001", "1000"]),
        ({"guidance_scale": math.nan}, ["guidance_scale is nan", "finite"]),
        ({"guidance_scale": math.inf}, ["guidance_scale is inf", "finite"]),
        ({"guidance_scale": 0.5}, ["guidance_scale is 0.5"]),
        ({"guidance_rescale": 1.1}, ["guidance_rescale is 1.1"]),
        ({"guidance_interval": (2.0, 1.0)}, ["guidance_interval", "lower one first"]),
        ({"guidance_interval": (0.0, math.inf)}, ["guidance_interval", "finite"]),
        ({"guidance_interval": [1.0]}, ["guidance_interval"]),
        ({"sampler": "foo"}, ["sampler is 'foo'", "dpmpp_2m", "unipc"]),
        ({"sigma_schedule": "foo"}, ["sigma_schedule is 'foo'", "karras"]),
        ({"timestep_spacing": "foo"}, ["timestep_spacing is 'foo'", "trailing"]),
        ({"eta": 2.0}, ["eta is 2.0"]),
        ({"guidance_scale": 0.5, "sampler": "euler"}, ["guidance_scale is 0.5", "CFG++"]),
        ({"guidance_scale": 7.5, "sampler": "ddim_cfg_pp"}, ["guidance_scale is 7.5", "0 to 5", "0.6"]),
        (
            {"sampler": "euler_cfg_pp", "guidance_scale": 0.6, "hires_scale": 2.0, "hires_sampler": "euler"},
            ["CFG++"],
        ),
        ({"perp_neg": 1.0}, ["perp_neg", "there is none"]),
        ({"s_tmin": 0.1}, ["s_tmin", "s_churn"]),
        ({"s_tmax": 5.0, "s_churn": 0.0}, ["s_tmax", "s_churn"]),
        ({"s_churn": -1.0}, ["s_churn is -1.0"]),
        ({"guidance_skip": -1.0}, ["guidance_skip is -1.0"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"seed": MAX_SEED + 1}, ["seed"]),
        ({"seed": MAX_SEED, "num_images": 2}, ["seed", "2 images"]),
        ({"num_images": 0}, ["num_images is 0"]),
        ({"clip_skip": 0}, ["clip_skip is 0"]),
        ({"prompt_syntax": "foo"}, ["prompt_syntax is 'foo'", "literal"]),
        ({"model": ""}, ["model is ''"]),
    ],
)
def test_what_is_refused_is_named(fields, words):
    message = refusal(**fields)
    assert all(word in message for word in words), message
    assert len(message) < 500  # however long what was given is


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"width": 100}, "the nearest are 96 and 104"),
        ({"height": "515"}, "the nearest are 512 and 520"),
        ({"width": 63}, None),
        ({"seed": -1}, "leave it out for a random one"),
        ({"seed": -1, "width": 100}, None),
    ],
)
def test_a_refusal_says_what_to_do(fields, hint):
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest.read_texts(
            {"prompt": "a house", **{name: str(text) for name, text in fields.items()}}
        )
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("cfg_scale", "did you mean guidance_scale?"),
        ("guidance_scal", "did you mean guidance_scale?"),
        ("colour", None),
    ],
)
def test_a_field_of_another_name_is_recognised(field, hint):
    with pytest.raises(InvalidRequest, match=f"{field} is not a field") as caught:
        GenerationRequest.of({"prompt": "a house", field: 5})
    assert caught.value.hint == hint


def test_all_faults_are_named_at_once():
    with pytest.raises(InvalidRequest, match=r"steps.*width|width.*steps") as caught:
        GenerationRequest.of({"prompt": "", "steps": 0, "width": 3, "extend": (0, 0, 1, 3)})
    assert set(caught.value.fields) == {"steps", "width", "extend"}
    assert len(caught.value.fields) == 3


def test_a_missing_prompt_is_named():
    with pytest.raises(InvalidRequest, match="prompt is missing"):
        GenerationRequest.of({})


def test_whole_numbers_stand_for_floats():
    assert GenerationRequest.of({"prompt": "", "guidance_scale": 7}).guidance_scale == 7.0


def test_the_largest_seed_of_several_images_is_below_2_to_the_53():
    assert GenerationRequest(prompt="", seed=MAX_SEED - 3, num_images=4).seed == 2**53 - 4


@given(
    st.fixed_dictionaries(
        {"prompt": st.text(st.characters(exclude_categories=["Cs"]))},
        optional={
            "negative_prompt": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
            "width": st.integers(8, 512).map(lambda n: 8 * n),
            "guidance_scale": st.floats(1, 100),
            "guidance_interval": st.tuples(st.floats(0, 0.5), st.floats(1, 99)),
            "seed": st.integers(0, MAX_SEED),
            "sampler": st.sampled_from(["ddim", "euler_a", None]),
        },
    )
)
def test_json_and_back_is_identity(fields):
    request = GenerationRequest.of(fields)
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
    assert GenerationRequest.of(json.loads(request.model_dump_json())) == request


def test_the_package_offers_its_names_lazily():
    assert set(limner.__all__) <= set(dir(limner))
    assert limner.GenerationRequest is GenerationRequest
    with pytest.raises(AttributeError, match="no attribute 'Generation'"):
        _ = limner.Generation


def test_fields_in_a_text_stand_in_any_order_and_their_values_may_have_commas():
    request = GenerationRequest.of(
        {
            "prompt": "a house",
            "controls": ["weight=0.5, image=red,blue.png,model=edges"],
            "image_prompts": ["image=a.png,model=ip,image=b.png, end=0.5,image_encoder=folder"],
        }
    )
    [control], [pictures] = request.controls, request.image_prompts
    assert (control.model, control.image, control.weight) == ("edges", "red,blue.png", 0.5)
    assert (pictures.images, pictures.end, pictures.image_encoder) == (("a.png", "b.png"), 0.5, "folder")


@pytest.mark.parametrize("kind", [GenerationRequest, Lora, Control, ImagePrompt])
def test_every_field_is_described(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_fields_stand_under_headings_and_tuples_name_their_parts():
    for name, field in GenerationRequest.model_json_schema()["properties"].items():
        assert name == "schema_version" or field["group"]
    properties = GenerationRequest.model_json_schema()["properties"]
    assert properties["extend"]["parts"] == ["left", "top", "right", "bottom"]
    assert properties["width"]["unit"] == "pixels"


def test_no_name_of_another_program_is_taken_for_two_fields():
    fields = GenerationRequest.model_json_schema()["properties"]
    names = [name for field in fields.values() for name in field.get("also", ())]
    assert len(names) == len({*names})
    assert not {*names} & {*fields}


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "x", "sampler": "DPM++ 2M Karras", "hires_scale": 2.0, "hires_sampler": "Euler a"}',
        '{"prompt": "x", "sampler": "k_dpmpp_2m", "sigma_schedule": "Karras", "hires_scale": 2.0, '
        '"hires_sampler": "euler_ancestral"}',
    ],
)
def test_names_of_other_programs_are_read_by_validation_itself(text):
    request = GenerationRequest.model_validate_json(text)
    assert (request.sampler, request.sigma_schedule, request.hires_sampler) == (
        "dpmpp_2m",
        "karras",
        "euler_a",
    )
    assert GenerationRequest.model_validate(json.loads(text)) == request
    assert GenerationRequest(**json.loads(text)) == request


def test_validation_refuses_unknown_names_with_its_own_error():
    with pytest.raises(ValidationError, match="sampler is 'foo'; expected one of"):
        GenerationRequest.model_validate_json('{"prompt": "x", "sampler": "foo"}')


def test_requests_without_a_schema_version_are_read():
    stored = json.loads(GenerationRequest(prompt="x", extend=(0, 8, 0, 0)).model_dump_json())
    assert stored.pop("schema_version") == SCHEMA_VERSION
    assert GenerationRequest.model_validate_json(json.dumps(stored)).extend == (0, 8, 0, 0)


def test_a_newer_minor_version_is_read_if_it_uses_no_new_field():
    request = GenerationRequest.of({"prompt": "x", "schema_version": "1.999"})
    assert request.schema_version == SCHEMA_VERSION
    message = refusal(schema_version="1.999", aura=3, glow=1)
    assert all(word in message for word in ("1.999", SCHEMA_VERSION, "lacks aura, glow"))
    assert "aura is not a field" in refusal(schema_version=SCHEMA_VERSION, aura=3)


@pytest.mark.parametrize("version", ["2.0", "10.0"])
def test_a_newer_major_version_is_refused(version):
    with pytest.raises(InvalidRequest, match=version) as caught:
        GenerationRequest.of({"prompt": "x", "schema_version": version})
    assert caught.value.hint == "install a newer version of Limner"


@pytest.mark.parametrize("version", [1, None, "", "1", "one.two", "1.0.0", "9" * 5000 + ".0"])
def test_what_is_no_version_is_refused(version):
    assert "schema_version is" in refusal(schema_version=version)


@pytest.mark.parametrize(
    ("field", "item"),
    [
        ("loras", "ink"),
        ("styles", "Ink"),
        ("controls", "model=a,image=b"),
        ("image_prompts", "model=a,image=b"),
    ],
)
def test_lists_are_bounded(field, item):
    assert "at most" in refusal(**{field: [item] * 20_000})


def test_tags_in_a_prompt_are_bounded_too():
    with pytest.raises(InvalidRequest, match="names 101 LoRAs; expected at most 100"):
        with_loras(GenerationRequest(prompt="<lora:a:1>" * 100, loras=(Lora(name="b"),)))
    assert len(with_loras(GenerationRequest(prompt="<lora:a:1>" * 100)).loras) == 100
