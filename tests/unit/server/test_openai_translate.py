"""Bodies of OpenAI's Images API as requests for images, without a server."""

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import InvalidRequest, LimnerError, ModelNotFound, QueueFull
from limner.request import GenerationRequest
from limner.server.openai.bodies import Body, read_form
from limner.server.openai.errors import InvalidParameter, api_error
from limner.server.openai.parameters import PARAMETERS, REFUSED, read_size
from limner.server.openai.translate import OWN_FIELDS, SYNONYMS, ImageCall, read_call, steps_of

DOT = base64.b64encode(b"any bytes").decode()


def generation(**values) -> ImageCall:
    return read_call("generation", Body({"prompt": "a red boat", **values}))


def fault(**values) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        generation(**values)
    return caught.value


def form(*pairs) -> Body:
    return read_form([("prompt", "a red boat"), *pairs])


def test_the_least_that_can_be_said():
    call = generation()
    assert call.request("picturebook", default_steps=20) == GenerationRequest(prompt="a red boat")
    assert (call.model, call.response_format, call.output_format) == (None, "b64_json", "png")
    assert (call.stream, call.partial_images, call.size) == (False, 0, None)


def test_every_parameter_is_taken_over():
    call = generation(
        model="dall-e-3",
        n=3,
        size="128x96",
        quality="high",
        response_format="b64_json",
        output_format="webp",
        output_compression=70,
        background="opaque",
        moderation="low",
        user="someone",
        safety_identifier="s",
        style="vivid",
    )
    request = call.request("picturebook", default_steps=20)
    assert (request.num_images, request.width, request.height, request.steps) == (3, 128, 96, 30)
    assert (call.output_format, call.output_compression, call.model) == ("webp", 70, "dall-e-3")
    assert call.sources == {"steps": "quality"}


def test_none_counts_as_left_out():
    names = [*PARAMETERS["generation"], *REFUSED, "seed", "steps", "loras", "something_unknown"]
    given = {name: None for name in names if name != "prompt"}
    assert generation(**given) == generation()


def test_own_fields_stand_at_the_top_level():
    call = generation(
        seed=7,
        num_inference_steps=12,
        guidance_scale=3.5,
        negative_prompt="rain",
        sampler="DPM++ 2M Karras",
        loras=[{"name": "ink", "weight": 0.5}],
        guidance_interval=[0.3, 5.0],
    )
    request = call.request("picturebook", default_steps=20)
    assert (request.seed, request.steps, request.guidance_scale) == (7, 12, 3.5)
    assert (request.negative_prompt, request.sampler, request.sigma_schedule) == (
        "rain",
        "dpmpp_2m",
        "karras",
    )
    assert request.loras[0].weight == 0.5
    assert request.guidance_interval == (0.3, 5.0)


def test_a_form_says_the_same_as_json():
    """Scalars of a form are texts; lists and objects are spelled in the names, or in JSON."""
    typed = {
        "n": 2,
        "size": "64x64",
        "stream": True,
        "partial_images": 2,
        "seed": 5,
        "guidance_scale": 3.5,
        "wildcards": True,
        "loras": [{"name": "ink", "weight": 0.5}, {"name": "oil", "weight": 0.25}],
        "styles": ["Ink", "Oil"],
        "guidance_interval": [0.3, 5.0],
    }
    spelled = form(
        ("n", "2"),
        ("size", "64x64"),
        ("stream", "true"),
        ("partial_images", "2"),
        ("seed", "5"),
        ("guidance_scale", "3.5"),
        ("wildcards", "true"),
        ("loras[][name]", "ink"),
        ("loras[][weight]", "0.5"),
        ("loras[][name]", "oil"),
        ("loras[][weight]", "0.25"),
        ("styles[]", "Ink"),
        ("styles[]", "Oil"),
        ("guidance_interval", "0.3 5"),
    )
    in_json = form(
        *((name, value if isinstance(value, str) else json.dumps(value)) for name, value in typed.items())
    )
    expected = generation(**typed)
    assert read_call("generation", spelled) == expected
    assert read_call("generation", in_json) == expected


@pytest.mark.parametrize(
    ("values", "param", "reason"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_type"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"model": {}}, "model", "invalid_type"),
        ({"size": 512}, "size", "invalid_type"),
        ({"size": "large"}, "size", "invalid_value"),
        ({"size": "512x"}, "size", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"response_format": "png"}, "response_format", "invalid_value"),
        ({"response_format": {"type": "url"}}, "response_format", "invalid_type"),
        ({"output_format": "gif"}, "output_format", "unsupported_value"),
        ({"output_format": "tiff"}, "output_format", "invalid_value"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"stream": "true"}, "stream", "invalid_type"),
        ({"stream": True, "partial_images": 4}, "partial_images", "invalid_value"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"stream": True, "response_format": "url"}, "response_format", "unsupported_value"),
        ({"style": "natural"}, "style", "unsupported_value"),
        ({"moderation": "high"}, "moderation", "invalid_value"),
        ({"user": 5}, "user", "invalid_type"),
        ({"svg": {}}, "svg", "unsupported_parameter"),
        ({"frame_count": 2}, "frame_count", "unsupported_parameter"),
        ({"image": DOT}, "image", "unknown_parameter"),
        ({"input_fidelity": "high"}, "input_fidelity", "unknown_parameter"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"extra_body": {"seed": 1}}, "extra_body", "unknown_parameter"),
        ({"width": 512}, "width", "unknown_parameter"),
        ({"steps": 5, "step": 5}, "step", "invalid_value"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(values, param, reason):
    error = fault(**values)
    assert isinstance(error, InvalidParameter)
    told = api_error(error)
    assert (told.param, told.code) == ("size" if param == "width" else param, reason)
    assert told.kind.status == 400
    assert told.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": "20"}, "steps"),
        ({"seed": -1}, "seed"),
        ({"num_inference_steps": 5000}, "steps"),
        ({"seed": 1, "sampler_name": "no such"}, "sampler"),
        ({"loras": [{"name": "ink", "weight": "much"}]}, "loras"),
        ({"loras": "a" * 5}, "loras"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_wrong_values_of_own_fields_are_named(values, param):
    told = api_error(fault(**values))
    assert told.kind.status == 400
    assert told.param == param


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("extra_body", "top level"),
        ("num_images_per_prompt", "it is n here"),
        ("height", "it is size here"),
        ("image", "/v1/images/edits"),
        ("nagative_prompt", "did you mean negative_prompt?"),
        ("qualty", "did you mean quality?"),
    ],
)
def test_an_unknown_parameter_says_what_was_meant(name, words):
    assert words in api_error(fault(**{name: "5"})).message


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ("500x500", "496x496 and 504x504"),
        ("512x500", "512x496 and 512x504"),
        ("10x512", "64x512"),
        ("5000x99999", "4096x4096"),
    ],
)
def test_a_size_that_cannot_be_drawn_names_the_nearest_that_can(size, nearest):
    message = api_error(fault(size=size)).message
    assert nearest in message
    for one in nearest.split(" and "):
        assert read_size(one) is not None


def test_quality_is_a_factor_on_the_models_own_steps():
    assert [steps_of(q, 25) for q in ("low", "medium", "auto", "standard", "hd", "high", "xhigh", "max")] == [
        13,
        25,
        25,
        25,
        38,
        38,
        50,
        75,
    ]
    assert steps_of("low", 1) == 1
    assert steps_of("max", 30, highest=50) == 50
    given = generation(quality="max", steps=9)
    assert given.request("picturebook", default_steps=20).steps == 9
    assert given.sources == {}


def test_the_delivery_that_an_openai_name_means():
    assert generation(model="dall-e-3").response_format == "url"
    assert generation(model="dall-e-3", stream=True).response_format == "b64_json"
    assert generation(model="gpt-image-1").response_format == "b64_json"
    assert generation(model="gpt-image-1", response_format="url").response_format == "url"


def test_synonyms_and_fields_do_not_overlap():
    assert not SYNONYMS.keys() & OWN_FIELDS
    assert not SYNONYMS.keys() & PARAMETERS["generation"].keys()
    assert not OWN_FIELDS & PARAMETERS["edit"].keys()
    assert set(SYNONYMS.values()) <= OWN_FIELDS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted({*PARAMETERS["generation"], *OWN_FIELDS, *REFUSED, "image", "mask", "x"}))


@settings(max_examples=60)
@given(
    st.sampled_from(["generation", "edit"]), st.dictionaries(names, json_values, max_size=4), st.booleans()
)
def test_no_body_does_more_than_fail_by_name(operation, values, texts):
    """Complaint 19: a field in an unexpected form is an error of that field, never a fault of the server."""
    try:
        call = read_call(operation, Body(values, texts))
    except LimnerError as error:
        told = api_error(error)
    else:
        assert call.fields["prompt"]
        return
    assert told.kind.status == 400


def test_errors_name_parameters_as_this_api_does():
    error = InvalidRequest("`width=100` is no multiple of 8", hint="give `num_images`", fields=("width",))
    told = api_error(error)
    assert told.param == "size"
    assert told.message == "'size' 100 is no multiple of 8; give 'n'"
    assert api_error(InvalidRequest("x", fields=("steps",)), {"steps": "quality"}).param == "quality"


def test_whether_to_try_again():
    full = QueueFull("full")
    full.retry_after = 3.2
    told = api_error(full)
    assert (told.kind.status, told.kind.type) == (429, "rate_limit_error")
    assert told.headers == {"x-should-retry": "true", "retry-after": "3", "retry-after-ms": "3000"}
    assert api_error(ModelNotFound("no model")).body["error"] == {
        "message": "no model",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert api_error(LimnerError("x")).kind.status == 500


def documented() -> dict[str, str]:
    """Parameter -> what the guide says of it."""
    page = (Path(__file__).resolve().parents[3] / "docs/guides/openai.md").read_text(encoding="utf-8")
    section = page.partition("## Parameters")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", section, re.MULTILINE)
    return {name: told for names, told in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_guide_tells_of_each_parameter_of_the_sdk():
    """Those of a newer SDK are unknown here until the guide and the tables have them."""
    from openai.types import image_edit_params as edits
    from openai.types import image_generate_params as generations

    names = {
        name
        for kind in (
            edits.ImageEditParamsNonStreaming,
            edits.ImageEditParamsStreaming,
            generations.ImageGenerateParamsNonStreaming,
            generations.ImageGenerateParamsStreaming,
        )
        for name in kind.__annotations__
    }
    ours = {*PARAMETERS["generation"], *PARAMETERS["edit"], "image", "mask", *REFUSED}
    assert names == ours == documented().keys()


def test_the_guide_tells_what_is_refused_and_which_values_are_taken():
    told = documented()
    for name in REFUSED:
        assert "refused" in told[name]
    for name, parameter in {**PARAMETERS["generation"], **PARAMETERS["edit"]}.items():
        if name not in ("moderation",):
            missing = [
                one
                for one in (*parameter.choices, *(parameter.refused or ()))
                if f"`{one}`" not in told[name]
            ]
            assert not missing, name
        assert not parameter.refused or "refused" in told[name]
