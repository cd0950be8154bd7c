"""Texts of bodies: what UTF-8 or a database cannot hold is refused, and long ones hold nobody up."""

import time

import pytest

from limner.server.bodies import check_texts
from limner.server.problems import Refused


@pytest.mark.parametrize("text", ["a\0b", "\ud83d", "a\udfffb", "é\ud800"])
def test_texts_that_cannot_be_stored_are_refused(text):
    for value in (text, [text], {"a": [{"b": text}]}, {text: 1}):
        with pytest.raises(Refused):
            check_texts(value)


def test_long_texts_are_checked_quickly():
    image = "A" * (24 << 20)  # as an init image in base64, beside a prompt with an emoji
    began = time.process_time()
    check_texts({"prompt": "a boat ⛵", "init_images": [image, image + "é"]})
    assert time.process_time() - began < 0.5  # a loop over the characters takes three seconds
