"""Canonical JSON, signed notes and checkpoints: the vectors of their specifications."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import InvalidRequest
from limner.service.audit.canonical import canonical, storable
from limner.service.audit.notes import Checkpoint, PublicKey, SigningKey, open_checkpoint, open_note

NUMBERS = {  # RFC 8785, appendix B
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_are_written_as_ecmascript_writes_them(bits, text):
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value).decode() == text


def test_the_examples_of_the_specification():
    example = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "€$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(example).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    keys = ["€", "\r", "\ufb33", "1", "😀", "\u0080", "ö"]
    ordered = json.loads(canonical(dict.fromkeys(keys, 0)))
    assert list(ordered) == ["\r", "1", "\u0080", "ö", "€", "😀", "\ufb33"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def close(read, value):
    """Equal, but that large doubles are read as whole numbers."""
    if isinstance(value, list):
        return len(read) == len(value) and all(map(close, read, value))
    if isinstance(value, dict):
        return read.keys() == value.keys() and all(close(read[name], value[name]) for name in value)
    return float(read) == value if isinstance(value, float) else read == value


@given(VALUES)
def test_what_is_written_reads_as_the_same_and_is_written_the_same_again(value):
    text = canonical(value)
    read = json.loads(text)
    assert close(read, value)
    assert canonical(read) == text
    assert storable(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53 + 1, 10**400, "\ud800", {"a": b"bytes"}])
def test_what_json_cannot_hold_is_refused_and_can_be_replaced(value):
    with pytest.raises(ValueError):  # noqa: PT011  UnicodeEncodeError is one, too
        canonical(value)
    assert canonical(storable({"x": [value]}))


# The example of golang.org/x/mod/sumdb/note.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6Ry"
    "yBwJnAM=\n"
)


def test_a_note_of_another_program_is_opened():
    key = PublicKey.parse(PETER)
    assert str(key) == PETER
    text, by = open_note(NOTE, [key])
    assert by == key
    assert text.endswith("what your problem is.\n")
    with pytest.raises(InvalidRequest, match="signature of PeterNeumann is wrong"):
        open_note(NOTE.replace("the answer", "the question"), [key])


SEED = bytes(range(32))


def test_a_checkpoint_is_signed_and_read():
    signing = SigningKey("limner/test", SEED)
    point = Checkpoint("limner/test", 12, bytes(32))
    note = signing.sign(point.text())
    assert note.startswith(f"limner/test\n12\n{'A' * 43}=\n\n— limner/test ")
    assert open_checkpoint(note, [PublicKey.parse(PETER), signing.public]) == point
    assert Checkpoint.parse(point.text() + "an extension\n") == point
    other = SigningKey("limner/test", bytes(32)).public
    with pytest.raises(InvalidRequest, match="not signed by a known key") as caught:
        open_checkpoint(note, [other])
    assert "limner audit key" in caught.value.hint
    with pytest.raises(InvalidRequest, match="is of limner/other, but signed by the key of limner/test"):
        open_checkpoint(signing.sign(Checkpoint("limner/other", 12, bytes(32)).text()), [signing.public])


@pytest.mark.parametrize("text", ["", "x\n", "x\n\n", "a\n\nb\n", NOTE[:-1], NOTE.replace("— ", "- ")])
def test_what_is_no_note_is_refused(text):
    with pytest.raises(InvalidRequest):
        open_note(text, [PublicKey.parse(PETER)])


@pytest.mark.parametrize(
    "text", ["", "a\nb\n", "a\n012\n" + "A" * 43 + "=\n", "a\n-1\nAA==\n", "a\n1\nAA==\n"]
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(InvalidRequest, match="no checkpoint"):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "text", ["", "a+b", PETER[:-4], PETER.replace("c74f20a3", "c74f20a4"), "a+00000000+!!"]
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(InvalidRequest, match="no public key"):
        PublicKey.parse(text)
