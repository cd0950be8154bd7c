"""Axes as they are written, and the requests that they make."""

import pytest

from limner.errors import InvalidRequest
from limner.grids.axes import Axis, requests_of
from limner.request import GenerationRequest, Lora

BASE = GenerationRequest(prompt="a cat in a hat", negative_prompt="cat hair", seed=7)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("steps=10,20", [10, 20]),
        ("steps=1-5", [1, 2, 3, 4, 5]),
        ("steps=1-10(+3)", [1, 4, 7, 10]),
        ("steps=10-1(-4)", [10, 6, 2]),
        ("steps=3-1", [3, 2, 1]),
        ("steps=1-10[5]", [1, 3, 5, 7, 10]),  # as numpy.linspace, cut to whole numbers
        ("steps=5-5", [5]),
        ("steps=4, 1-2 ,9", [4, 1, 2, 9]),
        ("seed=9007199254740990-9007199254740991", [2**53 - 2, 2**53 - 1]),
        ("guidance-scale=1-2(+0.1)", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]),
        ("guidance_scale=1-3[3]", [1.0, 2.0, 3.0]),
        ("strength=0.2-0.8[3]", [0.2, 0.5, 0.8]),
        ("sampler=euler,DPM++ 2M Karras", ["euler", "DPM++ 2M Karras"]),
        ("exact=true,false", [True, False]),
        ("guidance_interval=0.3 5,1 9", [(0.3, 5.0), (1.0, 9.0)]),
        ('prompt="a cat, black",1-3', ["a cat, black", "1-3"]),
        ("negative_prompt=,rain", ["", "rain"]),
        ("replace=cat,dog", ["cat", "dog"]),
        ("replace=a=b,c", ["a=b", "c"]),
        ("lora:ink=0-1[3],2", [0.0, 0.5, 1.0, 2.0]),
        ("loras=ink:0.5,ink other:2", [("ink:0.5",), ("ink", "other:2")]),
        ("variation_seed=1,2", [1, 2]),
        ("refiner_start=0.6,0.8", [0.6, 0.8]),
        ("hires_sampler=euler,DPM++ 2M Karras", ["euler", "DPM++ 2M Karras"]),
        (
            'controls="model=a,image=b.png","model=c,image=d.png; model=e,image=f.png"',
            [("model=a,image=b.png",), ("model=c,image=d.png", "model=e,image=f.png")],
        ),
        ('styles=Ink Wash,"Ink Wash,Photo"', [("Ink Wash",), ("Ink Wash", "Photo")]),
    ],
)
def test_values(text, values):
    axis = Axis.read(text)
    assert list(axis.values) == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps", "'steps' is not an axis"),
        ("steps=", "has no values"),
        ("stepps=1", "'stepps' cannot be an axis; did you mean steps or styles"),
        ("num_images=1,2", "'num_images' cannot be an axis"),
        ("lora:=1", "'lora:' cannot be an axis"),
        ("lora:ink=much", "lora:ink=much: expected a weight"),
        ("steps=many", "steps is 'many'"),
        ("steps=0,1", "steps is '0'"),
        ("steps=1-5(-1)", "the range 1-5\\(-1\\) is empty"),
        ("steps=1-5(+0)", "is empty"),
        ("seed=0-9007199254740991", "more than 1000 values"),
        ("guidance_scale=1-2(+0.000001)", "more than 1000 values"),
        ("steps=1-2[99999999]", "more than 1000 values"),
        ("sampler=eulr", "sampler is 'eulr'; expected one of .*euler"),
    ],
)
def test_what_is_no_axis(text, words):
    with pytest.raises(InvalidRequest, match=words):
        Axis.read(text)


def test_labels():
    assert Axis.read("steps=1,2").labels == ("steps: 1", "steps: 2")
    assert Axis.read("guidance_scale=7.5,8").labels == ("guidance scale: 7.5", "guidance scale: 8")
    assert Axis.read("replace=a cat,dog").labels == ("a cat", "dog")
    assert Axis.read("lora:ink=0.1").labels == ("ink: 0.1",)
    assert Axis.read("crop=1 2").labels == ("crop: 1 2",)
    assert len(Axis("image", ["data:image/png;base64," + "A" * 10_000]).labels[0]) < 40


def test_texts_are_read_back():
    for text in ("steps=1,2", "guidance_interval=0.3 5", "lora:ink=0.25", "sampler=euler", 'styles="a b,c"'):
        axis = Axis.read(text)
        listed = ",".join(f'"{value}"' for value in axis.texts)
        assert Axis.read(f"{axis.name}={listed}") == axis


def test_x_changes_fastest():
    requests = requests_of(BASE, [Axis.read("steps=1,2"), Axis("seed", (3, 4)), Axis.read("clip_skip=1,2")])
    assert [(r.clip_skip, r.seed, r.steps) for r in requests] == [
        (c, seed, steps) for c in (1, 2) for seed in (3, 4) for steps in (1, 2)
    ]


def test_words_are_replaced_in_both_prompts_and_in_those_of_another_axis():
    requests = requests_of(BASE, [Axis.read("replace=cat,dog"), Axis.read("replace=hat,boat")])
    assert [(r.prompt, r.negative_prompt) for r in requests] == [
        ("a cat in a hat", "cat hair"),
        ("a dog in a hat", "dog hair"),
        ("a cat in a boat", "cat hair"),
        ("a dog in a boat", "dog hair"),
    ]
    requests = requests_of(BASE, [Axis.read("replace=cat,dog"), Axis.read("prompt=one cat,two cats")])
    assert [r.prompt for r in requests] == ["one cat", "one dog", "two cats", "two dogs"]
    with pytest.raises(InvalidRequest, match="neither the prompt nor the negative prompt contains 'bird'"):
        requests_of(BASE, [Axis.read("replace=bird,dog")])


def test_the_weight_of_an_adapter():
    base = BASE.model_copy(update={"loras": (Lora(name="ink", weight=0.3), Lora(name="other"))})
    first, second = requests_of(base, [Axis.read("lora:ink=0,0.5")])
    assert first.loras == (Lora(name="other"), Lora(name="ink", weight=0.0))
    assert second.loras == (Lora(name="other"), Lora(name="ink", weight=0.5))
    [both] = requests_of(BASE, [Axis.read("lora:ink=0.5"), Axis.read("loras=other:2")])
    assert both.loras == (Lora(name="other", weight=2.0), Lora(name="ink", weight=0.5))
    for tag in ("<lora:ink:0.5>", "<lyco:ink:0.5>"):
        with pytest.raises(InvalidRequest, match="the prompt already sets a weight of ink"):
            requests_of(BASE.model_copy(update={"prompt": f"a {tag}"}), [Axis.read("lora:ink=1")])
    literal = BASE.model_copy(update={"prompt": "a <lora:ink:0.5>", "prompt_syntax": "literal"})
    assert requests_of(literal, [Axis.read("lora:ink=1")])[0].loras == (Lora(name="ink", weight=1.0),)
    with pytest.raises(InvalidRequest, match="101"):
        requests_of(BASE, [Axis.read("lora:ink=101")])


def test_another_model_has_no_revision_of_this_one():
    base = BASE.model_copy(update={"revision": "v2", "variant": "fp16"})
    [request] = requests_of(base, [Axis.read("model=other/model")])
    assert (request.model, request.revision, request.variant) == ("other/model", None, None)


@pytest.mark.parametrize(
    ("fields", "axes", "words"),
    [
        ({"num_images": 2}, ["steps=1,2"], "num_images is 2"),
        ({}, ["steps=1,2", "steps=3"], "two axes are the same"),
        ({}, ["refiner_start=0.6,0.8"], "refiner and refiner_start go together"),
    ],
)
def test_requests_that_cannot_be(fields, axes, words):
    with pytest.raises(InvalidRequest, match=words):
        requests_of(BASE.model_copy(update=fields), [Axis.read(text) for text in axes])
