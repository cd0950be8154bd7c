"""The error-correcting code of the watermark."""

import numpy as np
import pytest

from limner.safety.convolutional import RATE, coded_length, decode, encode


def test_the_impulse_response_is_the_generators():
    coded = encode(np.array([1], np.uint8)).reshape(-1, RATE)
    assert ["".join(map(str, column)) for column in coded.T] == [
        f"{taps:09b}" for taps in (0o557, 0o663, 0o711)
    ]


@pytest.mark.parametrize("count", [1, 48, 80])
def test_what_was_encoded_is_decoded_although_eight_coded_bits_are_wrong(count):
    """Free distance 18: any eight wrong bits are corrected."""
    rng = np.random.default_rng(count)
    bits = rng.integers(0, 2, count).astype(np.uint8)
    coded = encode(bits)
    assert len(coded) == coded_length(count)
    for _ in range(20):
        soft = 1.0 - 2.0 * coded
        soft[rng.choice(len(soft), 8, replace=False)] *= -1.0
        np.testing.assert_array_equal(decode(soft), bits)
