"""Styles and wildcards, from the request to the record."""

import pytest

from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.errors import InvalidRequest, PromptError
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_request
from limner.images.record import Origin
from limner.request import GenerationRequest


@pytest.fixture
def model(checkpoint_folder, tmp_path):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/animal.txt").write_text("cat\ndog\nboat\nfish\n")
    (tmp_path / "styles.csv").write_text(
        "name,prompt,negative_prompt\nInk,ink of {prompt},fog\nPet,a __animal__,\n"
    )
    return load(
        checkpoint_folder,
        precision="fp32",
        wildcards_dirs=[tmp_path / "wildcards"],
        styles_files=[tmp_path / "styles.csv"],
    )


def ask(prompt="a {red|blue|green} __animal__", **fields):
    return GenerationRequest.of(
        {"prompt": prompt, "steps": 1, "width": 64, "height": 64, "seed": 1, **fields}
    )


def test_without_being_asked_nothing_is_chosen(model):
    result = model.generate(request=ask())
    assert result.images[0].record.request.prompt == "a {red|blue|green} __animal__"
    assert result.images[0].record.origin is None


def test_each_picture_chooses_by_its_seed(model):
    request = ask(wildcards=True, num_images=6)
    result = model.generate(request=request)
    prompts = [image.record.request.prompt for image in result.images]
    assert len(set(prompts)) > 2
    assert all("{" not in prompt and "_" not in prompt for prompt in prompts)
    assert result.request.prompt == request.prompt  # of all of them
    # The same alone, in other company, and drawn again from its record.
    third = model.generate(request=ask(wildcards=True, seed=3)).images[0]
    assert third.record.request.prompt == prompts[2]
    again = model.generate(request=result.images[2].record.request).images[0]
    assert again.tobytes() == third.tobytes() == result.images[2].tobytes()


def test_the_record_says_both(model, tmp_path):
    request = ask(negative_prompt="{a|b}", wildcards=True, styles=["Ink"], seed=4)
    [image] = model.generate(request=request).images
    record = image.record
    assert record.request.prompt.startswith("ink of a ")
    assert record.request.negative_prompt in ("a, fog", "b, fog")
    assert (record.request.styles, record.request.wildcards) == ((), False)
    expected = Origin(prompt=request.prompt, negative_prompt="{a|b}", styles=("Ink",), wildcards=True)
    assert record.origin == expected
    image.save(tmp_path / "one.png")
    fields = parse_infotext(record.infotext())
    assert fields["Prompt"] == record.request.prompt
    said = {"Styles": "Ink", "Template": request.prompt, "Negative Template": "{a|b}"}
    assert {**fields, **said} == fields
    assert read_request(tmp_path / "one.png").fields["prompt"] == record.request.prompt


def test_styles_in_their_order_and_their_wildcards(model):
    def prompt(*styles, **more):
        [image] = model.generate(request=ask("a house", styles=styles, **more)).images
        return image.record.request.prompt

    assert prompt("Ink") == "ink of a house"
    assert prompt("Ink", "Pet") == "ink of a house, a __animal__"
    assert prompt("Pet", "Ink") == "ink of a house, a __animal__"
    assert prompt("Pet", wildcards=True) in {f"a house, a {a}" for a in ("cat", "dog", "boat", "fish")}


def test_a_literal_prompt_may_have_wildcards(model):
    [image] = model.generate(request=ask("({a|a})", prompt_syntax="literal", wildcards=True)).images
    assert image.record.request.prompt == "(a)"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"styles": ["Inc"]}, InvalidRequest, "no style 'Inc'.*Ink"),
        ({"prompt": "__anmal__", "wildcards": True}, PromptError, "no wildcard __anmal__.*animal"),
        ({"prompt": "{a", "wildcards": True}, PromptError, "not closed"),
        ({"prompt": "{<lora:no:1>|<lora:no:2>}", "wildcards": True}, InvalidRequest.__base__, "no LoRA 'no'"),
    ],
)
def test_what_is_refused_before_it_is_drawn(model, fields, error, words):
    with pytest.raises(error, match=words):
        model.resolve(ask(**fields))


def test_what_is_wrong_in_one_picture_of_many(model):
    request = ask("{199::a|1::<lora:no>}", wildcards=True, num_images=1000)
    with pytest.raises(InvalidRequest.__base__, match="no LoRA 'no'"):
        model.resolve(request)


def test_choices_that_take_more_rows_than_others(model):
    """AND in an option: pictures of one request take different numbers of rows, together and alone."""
    request = ask("{a red house|a house AND a tree AND a boat}", wildcards=True, num_images=8, steps=2)
    with Engine(model) as engine:
        images = engine.submit(request).result().images
    parts = {image.record.request.prompt.count("AND") for image in images}
    assert parts == {0, 2}
    for image in images:
        alone = model.generate(request=image.record.request).images[0]
        assert alone.tobytes() == image.tobytes()


def test_requests_hold_styles_from_json_and_tables():
    assert GenerationRequest.of({"prompt": "", "styles": ["a b", "c"]}).styles == ("a b", "c")
    assert GenerationRequest.read_texts({"prompt": "", "styles": "a b, c"})["styles"] == ("a b", "c")


def test_the_prompts_of_a_second_pass_too(model):
    """They choose after the first ones, whose choice they do not change."""
    asked = ask(hires_scale=1.0, hires_prompt="a {c|d|e} __animal__", hires_negative_prompt="{f|g}")
    styled = asked.model_copy(update={"styles": ("Ink",), "wildcards": True})
    found = model.with_final_prompts(styled)
    assert found.prompt == model.with_final_prompts(ask(styles=["Ink"], wildcards=True)).prompt
    assert found.hires_prompt.startswith("ink of a ")
    assert found.hires_negative_prompt in ("f, fog", "g, fog")
    assert not {"{", "_"} & set(found.hires_prompt + found.hires_negative_prompt)
    plain = model.with_final_prompts(ask(hires_scale=1.0, styles=["Ink"]))
    assert (plain.hires_prompt, plain.hires_negative_prompt) == (None, None)


def test_comments_are_left_out_with_a_warning_and_stay_in_the_record(model):
    commented = "a house # a __animal__ in the {red|blue} <lora:none>\n# fog\nin the snow"
    fields = {"hires_scale": 1.0, "hires_steps": 1}
    plain = model.generate(
        request=ask("a house\nin the snow", negative_prompt="fog", hires_prompt="c", **fields)
    )
    drawn = model.generate(
        request=ask(commented, negative_prompt="fog # rain", hires_prompt="#\nc", **fields)
    )
    assert drawn.images[0].tobytes() == plain.images[0].tobytes()
    assert drawn.images[0].record.request.prompt == commented
    told = [warning for warning in drawn.warnings if "comment" in warning]
    assert len(told) == 4
    assert told[0] == "'# a __animal__ in the {red|blue} <lora:none>' is a comment and left out of the prompt"
    assert not [warning for warning in drawn.warnings if "wildcards" in warning]
    assert not plain.warnings


def test_comments_end_before_a_style_and_choose_nothing(model):
    plain = model.generate(request=ask("a house", styles=["Pet", "Ink"], wildcards=True)).images[0]
    drawn = model.generate(
        request=ask("a house # {a|b} __none__", styles=["Pet", "Ink"], wildcards=True)
    ).images[0]
    assert drawn.record.request.prompt == plain.record.request.prompt
    assert drawn.record.origin.prompt == "a house # {a|b} __none__"
    assert drawn.tobytes() == plain.tobytes()


def test_literal_prompts_have_no_comments(model):
    def drawn(prompt):
        return model.generate(request=ask(prompt, prompt_syntax="literal"))

    assert drawn("a house # red").warnings == ()
    assert drawn("a house # red").images[0].tobytes() != drawn("a house").images[0].tobytes()
    assert (
        model.generate(request=ask("b #1", prompt_syntax="literal", styles=["Ink"]))
        .images[0]
        .record.request.prompt.startswith("ink of b #1")
    )
