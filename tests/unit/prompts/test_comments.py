"""Comments in prompts, as AUTOMATIC1111's webui has them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.prompts.comments import comments, without_comments
from limner.prompts.networks import take_networks
from limner.prompts.schedule import prompt_schedule


def webui(prompt: str) -> str:
    """What modules/processing_scripts/comments.py of webui 1.10 leaves of a prompt."""
    prompt = re.sub("(^|\n)#[^\n]*(\n|$)", "\n", prompt)
    return re.sub("#[^\n]*(\n|$)", "\n", prompt)


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("a red house # a boat", "a red house"),
        ("# a boat\na red house\n# a tree", "a red house"),
        ("a red house,# one\n  # two\n\nin the snow", "a red house,\n\nin the snow"),
        (r"a red \# house", "a red \\"),
        ("#", ""),
        ("a red house", "a red house"),
        ("a red house\n", "a red house\n"),
    ],
)
def test_text_from_the_sign_to_the_end_of_the_line_is_left_out(prompt, left):
    assert without_comments(prompt) == left


@given(st.text(st.sampled_from("ab #\n\\,"), max_size=30))
def test_the_words_that_are_left_are_those_of_webui(prompt):
    assert without_comments(prompt).split() == webui(prompt).split()
    assert without_comments(without_comments(prompt)) == without_comments(prompt)
    assert bool(comments(prompt)) == ("#" in prompt)


def test_what_is_left_out_can_be_told():
    assert comments("a # one \nb\n# two") == ["# one", "# two"]


def test_a_schedule_has_no_comments():
    assert prompt_schedule("[a:b:2] # [c:d:3]\n# [e|f]", 4) == [(2, "a"), (4, "b")]


def test_networks_in_comments_are_not_taken():
    prompt, found = take_networks("a <lora:x> # <lora:y:2>\n<lora:z>")
    assert prompt == "a  # <lora:y:2>\n"
    assert [tag.positional for tag in found] == [("x",), ("z",)]
