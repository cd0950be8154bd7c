"""Templates: what each form of the grammar can become, and what is refused."""

import os
from collections import Counter
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import PromptError
from limner.prompts.wildcards import Wildcards


@pytest.fixture
def folder(tmp_path):
    files = {
        "animal": "cat\ndog\n\n# a comment\n  boat \n",
        "weighted": "3::red\n1::green\n0::never\n",
        "deep/er/colour": "blue",
        "deep/tone": "dark",
        "deep/tone-light": "light",
        "nested": "a {big|big} __deep/tone__ thing",
        "outfit": "a ${coat:grey} coat",
        "loop": "__loop__ again",
        "twice": "__twice__ __twice__",
        "empty": "# nothing\n",
        "broken": "fine\n{not closed\n",
        "crlf": "one\r\n",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    return tmp_path


@pytest.fixture
def drawn(folder):
    """All that many seeds make of a template, and how often."""
    wildcards = Wildcards([folder])
    return lambda template, seeds=200: Counter(
        wildcards.draw(template, Random(seed)) for seed in range(seeds)
    )


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a house", {"a house"}),
        ("{red|green} house", {"red house", "green house"}),
        ("{red |}house", {"red house", "house"}),
        ("{one}", {"one"}),
        ("{}", {""}),
        ("{a{b|c}|d}", {"ab", "ac", "d"}),
        ("{0::a|b}", {"b"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{2$$$$a|b}", {"ab", "ba"}),
        ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{0-1$$a}", {"", "a"}),
        ("{9$$a|b}", {"a, b", "b, a"}),
        ("{2$$ a | b }", {"a, b", "b, a"}),
        ("__animal__", {"cat", "dog", "boat"}),
        ("__crlf__", {"one"}),
        (
            "{2$$__animal__}",
            {f"{a}, {b}" for a in ("cat", "dog", "boat") for b in ("cat", "dog", "boat") if a != b},
        ),
        ("__deep/er/colour__", {"blue"}),
        ("__deep/tone*__", {"dark", "light"}),
        ("__deep/*__", {"dark", "light"}),
        ("__deep/**__", {"dark", "light", "blue"}),
        ("__**/colour__", {"blue"}),
        ("__deep/ton?__", {"dark"}),
        ("__nested__", {"a big dark thing"}),
        ("${c=!{red|blue}}${c} and ${c}", {"red and red", "blue and blue"}),
        ("${c={red|blue}}${c} ${c}", {"red red", "red blue", "blue red", "blue blue"}),
        ("${c:grey}", {"grey"}),
        ("${c?=red}${c?=blue}${c}", {"red"}),
        ("${coat=red}__outfit__", {"a red coat"}),
        ("__outfit__", {"a grey coat"}),
        ("__outfit(coat=dark red)__", {"a dark red coat"}),
        ("${which=animal}__${which}__", {"cat", "dog", "boat"}),
        # What stays as it is.
        (r"\{a\|b\} \$\{x\} \__animal\__", {"{a|b} ${x} __animal__"}),
        (r"\(a\) \\ \n", {r"\(a\) \\ \n"}),
        ("[red|blue] (a:1.3) <lora:b:1>", {"[red|blue] (a:1.3) <lora:b:1>"}),
        ("{[red|blue] house|tree}", {"[red|blue] house", "tree"}),
        ("{:[|b}", {":[", "b"}),
        ("a __ b __ c, snake_case, $5", {"a __ b __ c, snake_case, $5"}),
    ],
)
def test_what_a_template_can_become(drawn, template, prompts):
    assert set(drawn(template)) == prompts


def test_weights(drawn):
    for template in ("{3::red|green|0::never}", "__weighted__", "{3.0::red|1::green}"):
        often = drawn(template, 2000)
        assert set(often) == {"red", "green"}
        assert often["red"] == pytest.approx(1500, abs=100)


def test_options_in_the_order_of_their_weights(drawn):
    often = drawn("{2$$9::a|1::b|0::c}", 2000)
    assert set(often) == {"a, b", "b, a"}
    assert often["a, b"] == pytest.approx(1800, abs=100)


def test_a_seed_says_it_all():
    """What a seed chose once it chooses in every version."""
    prompts = [Wildcards().draw("{red|green|blue} {2$$a|b|c|d}", Random(seed)) for seed in (1, 2, 3)]
    assert prompts == ["red d, c", "blue d, a", "red c, b"]


def test_the_first_folder_counts(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "animal.txt").write_text("bird")
    assert Wildcards([other, folder]).draw("__animal__ __deep/tone__", Random(0)) == "bird dark"
    assert Wildcards([other, folder]).draw("__anim*__", Random(0)) == "bird"


def test_a_file_that_changes_is_read_again(folder):
    wildcards = Wildcards([folder])
    assert wildcards.draw("__crlf__", Random(0)) == "one"
    (folder / "crlf.txt").write_text("two")
    os.utime(folder / "crlf.txt", (1, 1))
    assert wildcards.draw("__crlf__", Random(0)) == "two"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("__anmal__", ["__anmal__", "animal"]),
        ("__colour__", ["deep/er/colour"]),
        ("__nothing*__", ["__nothing*__"]),
        ("__../animal__", ["there is no wildcard"]),
        ("__/etc/hosts__", ["there is no wildcard"]),
        ("__empty__", ["have no options"]),
        ("__latin__", ["latin.txt", "cannot be read"]),
        ("__broken__", ["broken.txt:2", "not closed"]),
        ("__loop__", ["loop > loop", "deep"]),
        ("__twice__", ["deep"]),
        ("a {b|c", ["character 3", "not closed"]),
        ("${a=b", ["character 1", "not closed"]),
        ("a}", ["character 2", "not opened"]),
        ("{" * 1000, ["32 deep"]),
        ("{" * 40 + "}" * 40, ["32 deep"]),
        ("{@a|b}", ["cyclic choice"]),
        ("{3-2$$a|b}", ["at least 3 and at most 2"]),
        ("${c}", ["${c} has no value"]),
        ("${c=${c}}${c}", ["${c} has no value"]),
        ("__outfit(red)__", ["(red)"]),
        ("{a|b}" * 10_001, ["10,000 choices"]),
        ("a" * 65_537, ["65,536"]),
        ("".join(f"${{v{n + 1}=${{v{n}}}}}" for n in range(2000)) + "${v2000}", ["nested too deeply"]),
    ],
)
def test_what_is_refused(drawn, template, words):
    with pytest.raises(PromptError) as caught:
        drawn(template, 1)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert len(caught.value.message) < 500


def test_no_folder():
    with pytest.raises(PromptError, match="no folder of wildcards was given"):
        Wildcards().draw("__animal__", Random(0))


@settings(max_examples=200)
@given(st.text(alphabet="{}|$_\\[]:=!?-(),.ab12 ", max_size=60), st.integers(0, 9))
def test_any_text_is_drawn_or_refused(text, seed):
    with suppress(PromptError):
        Wildcards().draw(text, Random(seed))


def test_linked_folders_are_searched(folder, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (disk / "tree.txt").write_text("oak\n")
    (folder / "linked").symlink_to(disk)
    (disk / "round").symlink_to(folder)
    wildcards = Wildcards([folder])
    for template in ("__linked/tree__", "__linked/*__", "__**/tree__"):
        assert wildcards.draw(template, Random(1)) == "oak"
