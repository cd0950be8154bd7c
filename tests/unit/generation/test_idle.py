"""Options in pairs of which one has no use for the other: refused, or told in the result."""

import pytest
from PIL import Image, ImageDraw

from limner import GenerationRequest, load
from limner.engine.engine import Engine
from limner.errors import InvalidRequest
from limner.generation.canvas import canvas_of
from limner.images.inputs import InputImages
from limner.images.opening import image_source

ASK = {"prompt": "a cat", "seed": 3, "steps": 4, "width": 64, "height": 64, "exact": True}


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def photo():
    return Image.effect_noise((64, 64), 80).convert("RGB")


def half():
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
    return mask


IN_VAIN = [
    ({"guidance_scale": 1.0}, {"negative_prompt": "fog"}, "no effect of negative_prompt"),
    (
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.5, "guidance_interval": (0.5, 5.0)},
        "no effect of guidance_rescale and guidance_interval",
    ),
    ({"guidance_scale": 1.0, "hires_scale": 1.5}, {"hires_negative_prompt": "fog"}, "hires_negative_prompt"),
    ({}, {"guidance_skip": 1e-4}, "guidance_skip is 0.0001"),
    ({"sampler": "euler"}, {"s_noise": 1.1}, "s_noise is 1.1, but euler adds no noise"),
    ({"sampler": "euler_a", "eta": 0.0}, {"s_noise": 1.1}, "s_noise is 1.1, but euler_a adds no noise"),
    ({"sampler": "euler"}, {"s_churn": 3.0, "s_tmin": 500.0}, "s_churn is 3.0, but no step"),
    ({"prompt_syntax": "literal"}, {"emphasis": "ignore"}, "emphasis is ignore, but literal"),
]


@pytest.mark.parametrize(("fields", "vain", "told"), IN_VAIN)
def test_what_changes_nothing_is_told(model, fields, vain, told):
    plain = model.generate(**{**ASK, **fields})
    result = model.generate(**{**ASK, **fields, **vain})
    assert result.images[0].tobytes() == plain.images[0].tobytes()
    assert plain.warnings == ()
    [warning] = result.warnings
    assert told in warning
    assert result.images[0].record.warnings == result.warnings


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 3.0, "negative_prompt": "fog", "guidance_rescale": 0.5},
        {"guidance_scale": 1.0, "negative_prompt": ""},
        {"guidance_scale": 1.0, "sampler": "euler_cfg_pp", "negative_prompt": "fog"},
        {"guidance_skip": 5.0},
        {"sampler": "euler", "s_churn": 3.0, "s_noise": 1.1},
        {"sampler": "euler_a", "s_noise": 1.1},
        {"sampler": "restart", "s_noise": 1.1},
        {"prompt": "a {cat} and __"},
        {"emphasis": "ignore"},
    ],
)
def test_what_changes_something_is_not_spoken_of(model, fields):
    assert model.generate(**{**ASK, **fields}).warnings == ()


@pytest.mark.parametrize("words", ["__animals/cats__", "{a red|a blue}"])
def test_a_template_that_is_read_as_words(model, words):
    result = model.generate(**{**ASK, "prompt": f"{words} house"})
    assert result.warnings == (f"{words!r} is read as words: wildcards are off (`wildcards`)",)
    if "|" in words:
        assert model.generate(**{**ASK, "prompt": f"{words} house", "wildcards": True}).warnings == ()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mask_blur": 9.0}, "mask_blur is 9.0, but there is no mask"),
        ({"image": True, "mask_blur": 9.0}, "mask_blur is 9.0, but there is no mask"),
        ({"image": True, "mask": True, "mask_padding": 64}, "no inpaint_area of masked"),
        ({"image": True, "extend": (8, 0, 0, 0), "mask_padding": 64}, "no inpaint_area of masked"),
    ],
)
def test_fields_of_a_mask_without_one_are_refused(model, fields, why):
    pictures = {name: make() for name, make in (("image", photo), ("mask", half)) if fields.get(name)}
    with pytest.raises(InvalidRequest, match=why) as caught:
        model.generate(**{**ASK, **fields, **pictures})
    assert caught.value.hint


def test_fields_of_a_mask_with_one(model):
    ask = {**ASK, "image": photo(), "mask_blur": 9.0}
    assert model.generate(**ask, mask=half(), inpaint_area="masked", mask_padding=8).warnings == ()
    assert model.generate(**{**ask, "width": 72}, extend=(8, 0, 0, 0)).warnings == ()


def test_a_mask_of_other_proportions_is_stretched_and_told(model):
    ask = {**ASK, "image": photo()}
    assert model.generate(**ask, mask=half().resize((128, 128))).warnings == ()
    [warning] = model.generate(**ask, mask=half().resize((64, 128))).warnings
    assert warning == "the mask is 64 x 128 and its image 64 x 64: the mask is stretched to fit"


@pytest.mark.parametrize("area", ["whole", "masked"])
def test_a_black_mask_is_refused(model, area):
    with pytest.raises(InvalidRequest, match="the mask is black"):
        model.generate(**{**ASK, "image": photo(), "mask": Image.new("L", (64, 64)), "inpaint_area": area})


def test_what_is_transparent_of_a_picture_to_begin_with_is_white():
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 32, 64))
    canvas = canvas_of(GenerationRequest.of({**ASK, "image": image_source(clear)}), (64, 64), InputImages())
    assert canvas.whole.getpixel((10, 10)) == (0, 0, 200)
    assert canvas.whole.getpixel((50, 10)) == (255, 255, 255)


def test_another_model_or_revision_than_the_one_in_memory(model):
    [warning] = model.generate(**{**ASK, "model": "org/other", "revision": "main"}).warnings
    assert warning == (f"the request names the model org/other and revision main, but {model.name} is used")
    assert model.generate(**ASK, model=model.name).warnings == ()
    with Engine(model) as engine:  # where a request says nothing, its model is whichever there is
        assert engine.submit(GenerationRequest.of(ASK)).result().warnings == ()


@pytest.mark.parametrize(
    "option",
    ["wildcards_dirs", "styles_files", "lora_dirs", "embedding_dirs", "control_dirs", "image_prompt_dirs"],
)
def test_places_that_are_not_there_are_refused_even_if_nothing_asks_for_them(
    checkpoint_folder, option, tmp_path
):
    with pytest.raises(InvalidRequest, match="nowhere") as caught:
        load(checkpoint_folder, **{option: [tmp_path / "nowhere"]})
    assert caught.value.hint
