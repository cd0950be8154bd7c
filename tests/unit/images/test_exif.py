"""The EXIF block that Limner writes, and every form of UserComment that it reads.

What is written was read with piexif 1.1.3 (as webui's PNG Info does), sd-parsers 0.6, sd-prompt-reader 1.3.5
and exiftool 12.57.
"""

import struct

import pytest

from limner.images.exif import EXIF_IFD, MAKER_NOTE, USER_COMMENT, build_exif, decode_comment, encode_comment

TEXT = "a red house, 猫\nSteps: 12, Sampler: Euler a, Seed: 77"


def entries(exif):
    """tag -> (type, value) of all directories."""
    tiff = exif.removeprefix(b"Exif\0\0")
    assert tiff[:4] == b"MM\0*"
    found, todo = {}, [struct.unpack_from(">I", tiff, 4)[0]]
    while todo:
        at = todo.pop()
        (count,) = struct.unpack_from(">H", tiff, at)
        for index in range(count):
            tag, kind, size, value = struct.unpack_from(">HHII", tiff, at + 2 + 12 * index)
            found[tag] = kind, tiff[value : value + size]
            if tag == EXIF_IFD:
                todo.append(value)
    return found


def test_values_are_undefined_bytes_as_exif_demands():
    found = entries(build_exif(encode_comment(TEXT), b'{"a": 1}'))
    assert found[USER_COMMENT] == (7, b"UNICODE\0" + TEXT.encode("utf-16-be"))
    assert found[MAKER_NOTE] == (7, b'{"a": 1}')
    assert MAKER_NOTE not in entries(build_exif(encode_comment(TEXT)))


@pytest.mark.parametrize("text", [TEXT, "a cat", "é à ü: Steps"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-16", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("marker", [b"UNICODE\0", b"\0" * 8, b""], ids=["UNICODE", "zeros", "none"])
def test_a_text_is_read_in_every_encoding(text, encoding, marker):
    assert decode_comment(marker + text.encode(encoding)) == text
    assert decode_comment(marker + text.encode(encoding) + b"\0\0") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"ASCII\0\0\0a cat", "a cat"),
        (b"ASCII\0\0\0" + "猫, caf\xe9".encode(), "猫, café"),
        (b"ASCII\0\0\0caf\xe9", "café"),
        (b"ASCII\0\0\0" + "a cat".encode("utf-16-le"), "a cat"),
        (b"JIS\0\0\0\0\0" + "猫が好き".encode("iso2022_jp"), "猫が好き"),
        (b"JIS\0\0\0\0\0" + "猫が好き".encode("shift_jis"), "猫が好き"),
        (b"caf\xe9", "café"),
        (tuple(b"UNICODE\0\0a"), "a"),
        ("a cat\0", "a cat"),
        (b"UNICODE\0", ""),
        (b"", ""),
        (7, ""),
    ],
)
def test_other_markers_and_types_of_value(value, text):
    assert decode_comment(value) == text


def test_the_byte_order_of_the_file_decides_where_the_text_does_not():
    assert decode_comment(b"UNICODE\0" + "éß".encode("utf-16-le"), big_endian=False) == "éß"
    assert decode_comment(b"UNICODE\0" + "éß".encode("utf-16-be"), big_endian=True) == "éß"
