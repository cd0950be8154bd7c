"""Prompts as a text encoder sees them, each token with its place in what was typed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.catalogue.shipped import SHIPPED
from limner.prompts.analysis import MAX_RANGES, analyse_prompt
from limner.prompts.chunks import tokenize_prompt
from limner.prompts.comments import kept_characters, without_comments
from limner.prompts.networks import take_networks
from limner.prompts.schedule import compose, prompt_schedule
from limner.prompts.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        ["a red boat on the sea", "a tree, a house and a dog in the snow"], vocab_size=700, max_length=77
    )


def words(prompt, analysis, number=0):
    """The typed text of each token of the first part, with its weight."""
    tokens = analysis.steps[number].parts[0].tokens
    return [(prompt[one.start : one.end], one.weight) for one in tokens]


def joined(pairs, weight):
    return "".join(text for text, own in pairs if own == weight).replace(" ", "")


def test_tokens_know_their_place_and_weight(tokenizer):
    prompt = r"a (red:1.5) boat \(old\), [sea]"
    found = words(prompt, analyse_prompt(prompt, tokenizer))
    assert joined(found, 1.5) == "red"
    assert joined(found, 1 / 1.1) == "sea"
    assert joined(found, 1.0) == "aboat(old),"


def test_tags_and_comments_are_not_encoded(tokenizer):
    prompt = "a boat <lora:ink:0.8> # not this <lora:no:1>\nsea"
    found = analyse_prompt(prompt, tokenizer)
    [tag] = found.networks
    assert prompt[tag.start : tag.end] == "<lora:ink:0.8>"
    assert tag.network.positional == ("ink", "0.8")
    assert joined(words(prompt, found), 1.0) == "aboatsea"


def test_schedules_and_combined_prompts_are_analysed_apart(tokenizer):
    prompt = "a [tree:dog:5] AND the sea :0.5"
    found = analyse_prompt(prompt, tokenizer, steps=10)
    assert [(one.first, one.last) for one in found.steps] == [(1, 5), (6, 10)]
    assert joined(words(prompt, found, 0), 1.0) == "atree"
    assert joined(words(prompt, found, 1), 1.0) == "adog"
    second = found.steps[0].parts[1]
    assert second.weight == 0.5
    assert prompt[second.tokens[0].start : second.tokens[-1].end] == "the sea"


def test_long_and_broken_prompts_have_chunks(tokenizer):
    prompt = "tree, " * 60 + "BREAK sea"
    [part] = analyse_prompt(prompt, tokenizer).steps[0].parts
    assert len(part.chunks) == len({one.chunk for one in part.tokens}) >= 3
    assert sum(part.chunks) == len(part.tokens)
    assert part.tokens[-1].chunk == len(part.chunks) - 1
    assert all(length <= 75 for length in part.chunks)


def test_literal_prompts_have_no_grammar(tokenizer):
    prompt = "(a) <lora:x:1>"
    found = analyse_prompt(prompt, tokenizer, "literal")
    assert not found.networks
    assert joined(words(prompt, found), 1.0) == prompt.replace(" ", "")


def test_many_ranges_are_cut(tokenizer):
    found = analyse_prompt("[a|b]", tokenizer, steps=100)
    assert (len(found.steps), found.complete) == (MAX_RANGES, False)


class Words:
    """A learned word of three vectors."""

    import re

    pattern = re.compile("(?<![\\w-])ink(?![\\w-])", re.IGNORECASE)

    def ids(self, word):
        return (900, 901, 902)

    def warnings(self, word):
        return ()


def test_learned_words_are_tokens_without_an_id(tokenizer):
    prompt = "a boat, ink sea"
    [part] = analyse_prompt(prompt, tokenizer, words=Words()).steps[0].parts
    learned = [one for one in part.tokens if one.id is None]
    assert len(learned) == 3
    assert {prompt[one.start : one.end] for one in learned} == {"ink"}


PROMPTS = st.lists(
    st.sampled_from(
        [
            *[
                "a",
                "boat",
                " ",
                ", ",
                "(",
                ")",
                "[",
                "]",
                ":",
                "1.2",
                "BREAK",
                " AND ",
                "\\",
                "#",
                "\n",
                "<lora:x:1>",
                "0.5",
                "é",
                "ﬁ",
                "𝔘",
                "!",
                "5",
                "|",
            ]
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300)
@given(prompt=PROMPTS)
def test_the_analysis_has_the_tokens_that_are_encoded(tokenizer, prompt):
    found = analyse_prompt(prompt, tokenizer, steps=8)
    text = take_networks(prompt)[0]
    schedule = prompt_schedule(text, 8)
    assert [one.last for one in found.steps] == [last for last, _ in schedule]
    for own, (_, wanted) in zip(found.steps, schedule, strict=True):
        for part, said in zip(own.parts, compose(wanted), strict=True):
            assert (part.text, part.weight) == (said.text, said.weight)
            chunks = tokenize_prompt(said.text, tokenizer).chunks
            ids = [index for chunk in chunks for index in chunk.ids[1 : 1 + chunk.length]]
            weights = [weight for chunk in chunks for weight in chunk.weights[1 : 1 + chunk.length]]
            assert [one.id for one in part.tokens] == ids
            assert [one.weight for one in part.tokens] == weights
            assert all(0 <= one.start <= one.end <= len(prompt) for one in part.tokens)


@given(prompt=PROMPTS)
def test_the_characters_that_are_kept_are_the_prompt_without_comments(prompt):
    assert "".join(prompt[index] for index in kept_characters(prompt)) == without_comments(prompt)


def test_the_shipped_tokenizer_is_understood():
    found = analyse_prompt("a red house", Tokenizer.from_folder(SHIPPED["picturebook"] / "tokenizer"))
    assert [one.text for one in found.steps[0].parts[0].tokens] == ["a</w>", "red</w>", "house</w>"]
