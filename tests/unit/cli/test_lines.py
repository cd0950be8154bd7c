"""Batch files: JSON in every shape, tables and prompts, told apart; what is refused, and where."""

import json

import pytest

from limner.cli.lines import Format, looks_like_json, read_lines
from limner.errors import InvalidRequest

JOBS = [{"prompt": "a red house", "seed": 7}, {"prompt": "a blue boat", "seed": 8}]
NESTED = [
    {
        "prompt": "a {x} [y]",
        "loras": [{"name": "ink", "weight": 0.5}],
        "extend": [0, 8, 0, 0],
        "image": "a.png",
    }
]


def read(text, name="-", format=Format.auto):
    lines, faults = read_lines(text.encode(), name, format, {})
    return [(line.number, line.request.prompt, line.request.seed) for line in lines], [
        (fault.number, fault.why) for fault in faults
    ]


@pytest.mark.parametrize("name", ["-", "jobs.json", "jobs.txt", "jobs", "jobs.jsonl", "jobs.JSON"])
@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (json.dumps(JOBS), (1, 1)),
        (json.dumps(JOBS, indent=2), (2, 6)),
        ("\n\n" + json.dumps(JOBS, indent=4) + "\n\n", (4, 8)),
        ("[\n" + ",\n".join(map(json.dumps, JOBS)) + "\n]\n", (2, 3)),
        ("[" + ",\n".join(map(json.dumps, JOBS)) + "]", (1, 2)),
        ("\n".join(map(json.dumps, JOBS)), (1, 2)),
        ("\r\n".join(map(json.dumps, JOBS)), (1, 2)),
        ("\n".join(json.dumps(job, indent=1) for job in JOBS), (1, 5)),
        ("".join(map(json.dumps, JOBS)), (1, 1)),
        ("\ufeff" + json.dumps(JOBS, indent=2), (2, 6)),
        ("\n".join(json.dumps([job]) for job in JOBS), (1, 2)),
    ],
)
def test_json_in_every_shape(name, text, numbers):
    expected = [(number, job["prompt"], job["seed"]) for number, job in zip(numbers, JOBS, strict=True)]
    assert read(text, name) == (expected, [])


def test_one_object_over_several_lines():
    assert read(json.dumps(JOBS[0], indent=2)) == ([(1, "a red house", 7)], [])
    assert read(json.dumps(NESTED, indent=1)) == ([(2, "a {x} [y]", None)], [])
    assert read(json.dumps(NESTED[0], indent=1)) == ([(1, "a {x} [y]", None)], [])


def test_strings_in_json_are_prompts():
    assert read('["a house",\n"a boat"]')[0] == [(1, "a house", None), (2, "a boat", None)]


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        (
            '[\n  {"prompt": "a"},\n  {"prompt": "b" "seed": 1}\n]',
            3,
            ["column 18", "Expecting ',' delimiter"],
        ),
        ('[\n  {"prompt": "a"}\n  {"prompt": "b"}\n]', 3, ["column 3", "Expecting ',' delimiter"]),
        ('[\n{"prompt": "a"},\n]', 3, ["column 1", "trailing comma"]),
        ('{\n  "prompt": "a",\n  seed: 1\n}', 3, ["column 3", "property name"]),
        ('{\n  "prompt": "a",\n  "seed": NaN\n}', 1, ["NaN is not a JSON number"]),
        ('{\n  "prompt": "a",\n  "prompt": "b"\n}', 1, ["'prompt' is given twice"]),
        ('[{"prompt": "a"', 1, ["column 16"]),
        ('{"prompt": "a"', 1, ["column 15"]),
        ('[\n{"prompt": "a"},\n{"prompt": "b"}\n', 4, ["column 1"]),
        ("{\nprompt: a\n}", 2, ["column 1"]),
        ('[{"prompt": "a"}, 3]', 1, ["item 2 of the list is 3"]),
        ('{"jobs": [{"prompt": "a"}]}', 1, ["jobs is not a field"]),
        ('{"prompt": "a", "cfg_scale": 3}', 1, ["cfg_scale is not a field", "did you mean guidance_scale?"]),
        ("[\n{\n}\n]", 2, ["prompt is missing"]),
    ],
)
def test_broken_json_is_refused_with_line_and_column(text, number, words):
    for name in ("jobs.json", "-"):
        if name == "-" and text.startswith("[["):  # brackets of a prompt
            continue
        lines, faults = read(text, name)
        [(at, why)] = faults
        assert at == number
        assert all(word in why for word in words), why
        assert len(lines) <= 1


def test_every_broken_line_of_json_lines_is_named():
    text = '{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n{"prompt": "c"}\nwords\n'
    lines, faults = read(text, "a.jsonl")
    assert [number for number, *_ in lines] == [1, 3, 4]
    assert [number for number, _ in faults] == [2, 5]


@pytest.mark.parametrize(
    "prompt",
    [
        "{red|blue} house",
        "[cat:dog:0.5] in a meadow",
        "[[a house]] (b)",
        "[a|b] c",
        "{2$$red|blue}",
        "a house",
        "<lora:ink:0.5> b",
        "(a:1.2)",
        "[1]",
        '"quoted words"',
        "[{red|blue}:green:4]",
    ],
)
def test_brackets_of_prompts_are_no_json(prompt):
    assert not looks_like_json(prompt)
    assert read(f"{prompt}\na boat") == ([(1, prompt, None), (2, "a boat", None)], [])


def test_json_among_prompts_is_refused_unless_the_format_is_given():
    text = 'a house\n{"prompt": "a boat"}\n'
    lines, [(number, why)] = read(text)
    assert (len(lines), number) == (1, 2)
    assert "the line is JSON" in why
    assert len(read(text, format=Format.lines)[0]) == 2
    assert read(json.dumps(JOBS), format=Format.lines)[0] == [(1, json.dumps(JOBS), None)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "-"])
def test_tables_are_recognised_by_their_heading(name, separator):
    text = f"prompt{separator}seed\na house{separator}7\n"
    assert read(text, name) == ([(2, "a house", 7)], [])


def test_a_list_of_words_is_no_table():
    assert read("prompt, words\nseed, sky")[0][0] == (1, "prompt, words", None)


@pytest.mark.parametrize("name", ["a.yaml", "a.YML", "a.toml", "a.xml"])
def test_files_of_other_formats_are_refused(name):
    with pytest.raises(InvalidRequest, match="expected JSON, CSV or prompts"):
        read("- prompt: a house", name)
    assert len(read("- prompt: a house", name, Format.lines)[0]) == 1
