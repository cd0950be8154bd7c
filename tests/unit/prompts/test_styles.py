"""Files of styles, and what they make of prompts."""

import pytest

from limner.errors import InvalidRequest
from limner.prompts.styles import Style, find_styles, read_styles


@pytest.mark.parametrize(
    ("style", "prompts", "made"),
    [
        (Style("a", "in ink", "blurry"), ("a cat", None), ("a cat, in ink", "blurry")),
        (Style("a", "in ink", "blurry"), ("a cat", "dark"), ("a cat, in ink", "dark, blurry")),
        (Style("a", "ink of {prompt}, wet"), ("a cat", None), ("ink of a cat, wet", None)),
        (Style("a", "", ""), ("a cat", ""), ("a cat", "")),
        (Style("a", " in ink ", "{prompt}, fog, {prompt}"), ("", "dark"), ("in ink", "dark, fog, dark")),
    ],
)
def test_a_style_around_prompts(style, prompts, made):
    assert style.around(*prompts) == made


def test_webuis_table(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text(
        "\ufeffname,prompt,negative_prompt\n"
        "None,,\n"
        '"Ink, wet","ink of {prompt}\nand more",blurry\n'
        "# a comment,,\n"
        "\n"
        "Short,flat colours\n",
        encoding="utf-8",
    )
    assert read_styles(path) == [
        Style("None"),
        Style("Ink, wet", "ink of {prompt}\nand more", "blurry"),
        Style("Short", "flat colours"),
    ]


def test_an_old_table(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text("name,text\nInk,in ink\n")
    assert read_styles(path) == [Style("Ink", "in ink")]


def test_the_list_of_fooocus(tmp_path):
    path = tmp_path / "sdxl_styles.json"
    path.write_text(
        '[{"name": "Ink", "prompt": "ink of {prompt}", "negative_prompt": "fog"}, {"name": "Bare"}]'
    )
    assert read_styles(path) == [Style("Ink", "ink of {prompt}", "fog"), Style("Bare")]


def test_styles_by_name(tmp_path):
    first, second = tmp_path / "one.csv", tmp_path / "two.csv"
    first.write_text("name,prompt\nInk,one\nPhoto,photo\n")
    second.write_text("name,prompt\nInk,two\n")
    assert [style.prompt for style in find_styles(["Photo", "Ink"], [first, second])] == ["photo", "two"]
    assert find_styles([], [tmp_path / "not there"]) == []
    with pytest.raises(InvalidRequest, match=r"no style 'ink'.*much like it: Ink"):
        find_styles(["ink"], [first])
    with pytest.raises(InvalidRequest, match="no file of them was given"):
        find_styles(["Ink"], [])


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.csv", b"colour,prompt\nred,x\n", "columns colour, prompt; expected name"),
        ("a.csv", b"", "columns none"),
        ("a.csv", b"name,prompt\n\xff,x\n", "UTF-8"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b'{"name": "Ink"}', "holds no styles"),
        ("a.json", b'[{"name": "Ink", "prompt": 3}]', "holds no styles"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
    ],
)
def test_files_that_hold_no_styles(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_styles(tmp_path / name)
    assert name in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidRequest, match=r"styles.csv cannot be read: No such file"):
        find_styles(["Ink"], [tmp_path / "styles.csv"])
