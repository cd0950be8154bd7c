"""The parameters text against what webui reads, and through a round trip."""

import json
import re
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import InvalidRequest
from limner.images.infotext import (
    parse_infotext,
    quote,
    sampler_from_a1111,
    sampler_to_a1111,
    unquote,
    write_infotext,
)
from limner.request import SamplerName, SigmaScheduleName

FIELDS = {"Steps": 20, "Sampler": "Euler", "Seed": 7}


def records(reference, name):
    with open(reference / "prompts" / name, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_golden_texts(reference):
    golden = records(reference, "infotext.jsonl")
    assert len(golden) > 25
    for record in golden:
        assert parse_infotext(record["text"]) == record["explicit"], record["text"]


def test_golden_quoting(reference):
    golden = records(reference, "quote.jsonl")
    assert len(golden) > 10
    for record in golden:
        if "quoted" in record:
            assert quote(record["value"]) == record["quoted"]
        else:
            assert unquote(record["quoted_in"]) == record["value_out"]


def test_written_in_the_order_of_webui():
    text = write_infotext(
        "a cat\non a mat",
        "dog",
        {
            "Version": "limner 0.1",
            "Lora hashes": "a: 12, b: 34",
            "Clip skip": None,
            "RNG": "",
            "Size": "512x768",
            "Seed": 2**53 - 1,
            "CFG scale": 7.0,
            "Schedule type": "Karras",
            "Sampler": "DPM++ 2M",
            "Steps": 20,
        },
    )
    assert text == (
        "a cat\non a mat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 9007199254740991, "
        'Size: 512x768, Lora hashes: "a: 12, b: 34", Version: limner 0.1'
    )


def test_what_no_reader_would_find_is_not_written():
    with pytest.raises(ValueError, match="at least 3"):
        write_infotext("a cat", "", {"Steps": 20, "Sampler": "Euler", "Seed": None})
    for key in ("x", "a:b", "a,b", " a", "", "-a"):
        with pytest.raises(ValueError, match="cannot be a key"):
            write_infotext("a cat", "", FIELDS | {key: 1})


def lines_survive(text):
    lines = text.split("\n")
    return (
        text == text.strip()
        and all(line == line.strip() and not line.startswith("Negative prompt:") for line in lines)
        and not text.startswith("Negative prompt:")
    )


PROMPTS = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from('\n,:"\\()'))).filter(
    lines_survive
)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9\-/ ]{0,8}[A-Za-z]", fullmatch=True)
VALUES = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from('\n,:"\\ x1')), min_size=1)


@settings(max_examples=300)
@given(PROMPTS, PROMPTS, st.dictionaries(KEYS.filter(lambda key: key not in FIELDS), VALUES, max_size=5))
def test_round_trip(prompt, negative, extras):
    """All but sizes, which the grammar takes apart."""
    extras = {key: value for key, value in extras.items() if not re.match(r"^\d+x\d+$", value)}
    extras.pop("Negative prompt", None)
    read = parse_infotext(write_infotext(prompt, negative, FIELDS | extras))
    assert read.pop("Prompt") == prompt
    assert read.pop("Negative prompt") == negative
    assert read == {"Steps": "20", "Sampler": "Euler", "Seed": "7"} | extras


@settings(max_examples=300)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from('\n,:"\\ -/ab'))))
def test_every_text_can_be_read(text):
    fields = parse_infotext(text)
    assert {"Prompt", "Negative prompt"} <= fields.keys()


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "ab:" * 100_000,
        'ab:"' * 75_000,
        "ab:" + " " * 300_000 + '"',
        ", " * 150_000,
        '\\"ab: ' * 50_000,
    ],
    ids=range(6),
)
def test_reading_takes_linear_time(text):
    """Well under a second; a backtracking pattern over such a line takes hours. The limit is loose."""
    start = time.process_time()
    parse_infotext("Steps: 1, Seed: 2, Size: 3, " + text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("schedule", get_args(SigmaScheduleName))
def test_sampler_names_there_and_back(sampler, schedule):
    name, schedule_type = sampler_to_a1111(sampler, schedule)
    assert sampler_from_a1111(name, schedule_type) == (sampler, schedule)
    assert sampler_from_a1111(f"{name} {schedule_type}") == (sampler, schedule)


@pytest.mark.parametrize(
    ("name", "schedule_type", "ours"),
    [
        ("DPM++ 2M", "Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", None, ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", None, ("euler_a", "uniform")),
        ("PLMS", "Uniform", ("pndm", "uniform")),
        ("UniPC", None, ("unipc_bh1", "uniform")),
        ("k_lms", None, ("lms", "uniform")),
        ("k_dpmpp_2m_ka", None, ("dpmpp_2m", "karras")),
        ("k_dpm_2_a_ka", None, ("dpm2_a", "karras")),
        ("k_dpm_ad", "Automatic", ("dpm_adaptive", "uniform")),
        ("DPM++ SDE", None, ("dpmpp_sde", "karras")),
        ("DPM++ 3M SDE", "Polyexponential", ("dpmpp_3m_sde", "polyexponential")),
        ("Restart", "", ("restart", "karras")),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("LCM", "SGMUniform", ("lcm", "sgm_uniform")),
        ("Euler", "DDIM", ("euler", "ddim_uniform")),
    ],
)
def test_names_that_webui_wrote(name, schedule_type, ours):
    assert sampler_from_a1111(name, schedule_type) == ours


def test_names_that_limner_lacks():
    with pytest.raises(InvalidRequest, match=r"DPM\+\+ 2M SDF Karras") as caught:
        sampler_from_a1111("DPM++ 2M SDF Karras")
    assert "dpmpp_2m_sde" in (caught.value.hint or "")
    with pytest.raises(InvalidRequest, match="Linear Quadratic"):
        sampler_from_a1111("Euler", "Linear Quadratic")
