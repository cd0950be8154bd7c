"""How prompts fall into chunks, with a tokenizer whose every letter is a token."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import PromptError
from limner.prompts.chunks import COMMA_REACH, tokenize_prompt
from limner.prompts.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    """No merges: one token a byte, so that token counts can be read off the prompt."""
    return Tokenizer.train([], vocab_size=514, max_length=77)


def words(tokenizer, chunk):
    """The ids between start and end, checked to be framed as a text encoder expects."""
    assert len(chunk.ids) == len(chunk.weights) == tokenizer.max_length
    assert chunk.ids[0] == tokenizer.bos
    size = chunk.ids.index(tokenizer.eos) - 1
    assert set(chunk.ids[size + 2 :]) <= {tokenizer.pad}
    assert chunk.weights[0] == 1
    assert set(chunk.weights[size + 1 :]) == {1.0}
    return list(chunk.ids[1 : size + 1])


def test_an_empty_prompt_is_one_chunk_of_padding(tokenizer):
    for prompt in ("", "   ", "()"):
        [chunk] = tokenize_prompt(prompt, tokenizer).chunks
        assert words(tokenizer, chunk) == []
        assert set(chunk.weights) == {1.0}


def test_weights_follow_their_tokens(tokenizer):
    [chunk] = tokenize_prompt("ab (cd:1.5) [e]", tokenizer).chunks
    assert words(tokenizer, chunk) == tokenizer.encode("ab cd e")
    assert chunk.weights[1:6] == (1, 1, 1.5, 1.5, 1 / 1.1)


def test_padding_is_the_tokenizers(tmp_path):
    Tokenizer.train([], vocab_size=514, max_length=8).save(tmp_path)
    specials = (tmp_path / "special_tokens_map.json").read_text()
    (tmp_path / "special_tokens_map.json").write_text(
        specials.replace('"pad_token": "<|endoftext|>"', '"pad_token": "!"')
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.pad != tokenizer.eos
    [chunk] = tokenize_prompt("ab", tokenizer).chunks
    assert chunk.ids == (tokenizer.bos, *tokenizer.encode("ab"), tokenizer.eos, *(tokenizer.pad,) * 4)


def test_a_long_prompt_fills_chunk_after_chunk(tokenizer):
    chunks = tokenize_prompt("a" * 200, tokenizer).chunks
    assert [len(words(tokenizer, chunk)) for chunk in chunks] == [75, 75, 50]
    assert [index for chunk in chunks for index in words(tokenizer, chunk)] == tokenizer.encode("a" * 200)
    [full] = tokenize_prompt("a" * 75, tokenizer).chunks
    assert tokenizer.pad not in full.ids[:-1]


@pytest.mark.parametrize("back", [1, 2, COMMA_REACH - 1, COMMA_REACH])
def test_an_overflowing_chunk_ends_at_a_near_comma(tokenizer, back):
    first, second = tokenize_prompt("a" * (75 - back) + "," + "b" * (back + 4), tokenizer).chunks
    assert words(tokenizer, first) == tokenizer.encode("a" * (75 - back) + ",")
    assert words(tokenizer, second) == tokenizer.encode("b" * (back + 4))


def test_a_far_comma_is_left_alone(tokenizer):
    first, second = tokenize_prompt("a" * 54 + "," + "b" * 30, tokenizer).chunks
    assert len(words(tokenizer, first)) == 75
    assert len(words(tokenizer, second)) == 10


def test_a_comma_that_overflows_begins_the_next_chunk(tokenizer):
    first, second = tokenize_prompt("a" * 70 + ",bbbb" + ",c", tokenizer).chunks
    assert len(words(tokenizer, first)) == 75
    assert words(tokenizer, second) == tokenizer.encode(",c")


def test_weights_move_with_what_moves_to_the_next_chunk(tokenizer):
    first, second = tokenize_prompt("a" * 70 + ",b(" + "c" * 6 + ":2)", tokenizer).chunks
    assert words(tokenizer, second) == tokenizer.encode("b") + tokenizer.encode("cccccc")
    assert second.weights[1:8] == (1,) + (2,) * 6
    assert set(first.weights) == {1.0}


def test_break_ends_a_chunk(tokenizer):
    first, second = tokenize_prompt("ab BREAK (cd:1.2)", tokenizer).chunks
    assert words(tokenizer, first) == tokenizer.encode("ab")
    assert words(tokenizer, second) == tokenizer.encode("cd")
    assert second.weights[1:3] == (1.2, 1.2)
    assert [words(tokenizer, chunk) for chunk in tokenize_prompt("BREAK", tokenizer).chunks] == [[]]
    assert len(tokenize_prompt("a BREAK BREAK b", tokenizer).chunks) == 3


def test_break_inside_brackets_is_a_word_and_says_so(tokenizer):
    encoded = tokenize_prompt("(a BREAK b)", tokenizer)
    assert len(encoded.chunks) == 1
    assert len(encoded.warnings) == 1
    assert "BREAK" in encoded.warnings[0]
    assert not tokenize_prompt("a BREAK b", tokenizer).warnings


def test_literal_takes_every_sign_for_itself(tokenizer):
    prompt = "(a:1.3) [b] \\( BREAK c"
    [chunk] = tokenize_prompt(prompt, tokenizer, "literal").chunks
    assert words(tokenizer, chunk) == tokenizer.encode(prompt)
    assert set(chunk.weights) == {1.0}
    assert len(tokenize_prompt("a" * 200, tokenizer, "literal").chunks) == 3


def test_the_chunk_is_as_long_as_the_text_encoder_is(tmp_path, tokenizer):
    short = Tokenizer.train([], vocab_size=514, max_length=40)
    assert [len(words(short, chunk)) for chunk in tokenize_prompt("a" * 80, short).chunks] == [38, 38, 4]
    tiny = Tokenizer.train([], vocab_size=514, max_length=3)
    assert len(tokenize_prompt("a,b,", tiny).chunks) == 4


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["a", ",", " ", "(", ")", "word ", ":1.2)", "!", "é"]), max_size=300).map(
        "".join
    )
)
def test_no_token_is_lost(tokenizer, prompt):
    encoded = tokenize_prompt(prompt, tokenizer, "literal")
    ids = [index for chunk in encoded.chunks for index in words(tokenizer, chunk)]
    assert ids == tokenizer.encode(prompt)


@settings(max_examples=200)
@given(st.text(alphabet=st.characters()))
def test_raises_nothing_but_prompt_errors(tokenizer, prompt):
    for syntax in ("a1111", "literal"):
        try:
            encoded = tokenize_prompt(prompt, tokenizer, syntax)
        except PromptError:
            continue
        assert encoded.chunks


@pytest.mark.parametrize(
    "prompt", ["(a)" * 20_000, "a," * 30_000, "(" * 400 + "!" * 60_000, " BREAK" * 10_000]
)
def test_long_prompts_are_quick(tokenizer, prompt):
    """A second or so; the limit is loose."""
    start = time.process_time()
    assert tokenize_prompt(prompt, tokenizer).chunks
    assert time.process_time() - start < 10


def test_refused(tokenizer):
    for syntax in ("a1111", "literal"):
        with pytest.raises(PromptError, match="1,000,000"):
            tokenize_prompt("(" * 1_000_000, tokenizer, syntax)
    with pytest.raises(PromptError, match="'comfy'"):
        tokenize_prompt("a", tokenizer, "comfy")


def test_prompts_import_no_torch():
    code = (
        "import limner.prompts.attention, limner.prompts.chunks, limner.images.infotext, sys;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_not_acted_on_is_named(tokenizer):
    prompt = "a cat <hypernet:ink:0.8>"
    [warning] = tokenize_prompt(prompt, tokenizer).warnings
    assert warning.startswith("'<hypernet:ink:0.8>'")
    assert tokenize_prompt(prompt, tokenizer, "literal").warnings == ()


@pytest.mark.parametrize(
    "prompt", ["a (red:1.3) cat, [blurry], time: 5", r"a \[red|blue\] cat", "sand AND-gate".lower()]
)
def test_what_is_understood_is_not_warned_of(tokenizer, prompt):
    assert tokenize_prompt(prompt, tokenizer).warnings == ()
