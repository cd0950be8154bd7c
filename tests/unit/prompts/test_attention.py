"""The emphasis grammar against what webui's own parser gave, and against hostile prompts."""

import json
import random
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limner.errors import PromptError
from limner.prompts.attention import MAX_CHARACTERS, MAX_DEPTH, parse_attention


def test_golden(reference):
    lines = (reference / "prompts" / "attention.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    for record in map(json.loads, lines):
        if "error" in record:
            with pytest.raises(PromptError, match="no number"):
                parse_attention(record["prompt"])
            continue
        parsed = parse_attention(record["prompt"])
        assert [text for text, _ in parsed] == [text for text, _ in record["parsed"]], record
        # the weights are the same products in the same order: no tolerance is needed
        assert [weight for _, weight in parsed] == [weight for _, weight in record["parsed"]], record


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a BREAK BREAK b", [("a", 1), ("BREAK", -1), ("", 1), ("BREAK", -1), ("b", 1)]),
        ("x:BREAK", [("x:", 1), ("BREAK", -1), ("", 1)]),
        ("BREAKFAST", [("BREAKFAST", 1)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1), (" d", 1)]),
        ("(a:\u0661.\u0665)", [("a", 1.5)]),
        ("((a) b", [("a", 1.1 * 1.1), (" b", 1.1)]),
    ],
)
def test_corners(prompt, parsed):
    assert parse_attention(prompt) == parsed


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 1_000_000,
        "[" * MAX_CHARACTERS,
        "(" * (MAX_DEPTH + 1),
        "(a:" + "9" * 400 + ")",
        "((a:" + "9" * 200 + "):" + "9" * 200 + ")",
        "(a:1.2.3)",
    ],
)
def test_refused_with_a_reason(prompt):
    with pytest.raises(PromptError) as caught:
        parse_attention(prompt)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * (MAX_DEPTH - 1) + "()" * 30_000,
        "(" * (MAX_DEPTH - 1) + "(a)" * 20_000,
        "(" * MAX_DEPTH + "\\a" * 32_000,
        "a(b" * 100 + "(c[d]:1.1)" * 6_000,
        ")" * MAX_CHARACTERS,
        ":" * MAX_CHARACTERS,
        "\\" * MAX_CHARACTERS,
        " " * (MAX_CHARACTERS - 1) + "a",
        ":" + " " * (MAX_CHARACTERS - 2) + "a",
        "(:" + "1" * (MAX_CHARACTERS - 2),
        "(:1" + " " * (MAX_CHARACTERS - 3),
        " BREAK" * 10_000,
        "".join(random.Random(0).choices("()[]:1 \\aBREAK", weights=[1, 3, 1, 3] + [1] * 10, k=60_000)),
    ],
    ids=range(13),
)
def test_time_is_linear(prompt):
    """The slowest takes 1 s; a parser that is quadratic in the prompt takes minutes."""
    start = time.process_time()
    parsed = parse_attention(prompt)
    assert time.process_time() - start < 5
    assert parsed


SIGNS = st.text(alphabet="()[]:.\\ 19-+aBREK\n", max_size=200)
WORDS = st.lists(
    st.sampled_from(["(", ")", "[", "]", ":1.3)", ":", " BREAK ", "\\", "word", "0.5", " "]), max_size=60
)


@settings(max_examples=300)
@given(st.one_of(st.text(), SIGNS, WORDS.map("".join)))
@example("(BREAK:0)")
def test_total_and_well_formed(prompt):
    try:
        parsed = parse_attention(prompt)
    except PromptError:
        return
    assert parsed
    assert all(isinstance(weight, float) for _, weight in parsed)
    assert all(a[1] != b[1] for a, b in pairwise(parsed))


@settings(max_examples=200)
@given(st.text())
def test_escaped_text_is_itself(text):
    text = text.replace("BREAK", "")
    escaped = "".join("\\" + sign if sign in "\\()[]" else sign for sign in text)
    assert parse_attention(escaped) == [(text, 1.0)]


def test_the_guide_tells_the_truth():
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "prompts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+)` \| (`.*) \|$", guide, flags=re.MULTILINE)
    assert len(rows) > 10
    for prompt, reading in rows:
        pieces = [(text, float(weight)) for text, weight in re.findall(r"`([^`]*)` × ([\d.]+)", reading)]
        parsed = parse_attention(prompt)
        assert [text for text, _ in parsed] == [text for text, _ in pieces], prompt
        # the guide rounds 1.1 * 1.1
        assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in pieces], abs=1e-12)
    assert f"{MAX_CHARACTERS:,} characters" in guide
    assert f"{MAX_DEPTH} brackets" in guide
