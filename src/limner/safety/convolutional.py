"""The error-correcting code of the watermark: convolutional, rate 1/3, constraint length 9, soft decisions.

Generators 557, 663 and 711 (octal), free distance 18, as in IS-95's reverse link; decoded by Viterbi's
algorithm. A block code decoded from hard decisions loses about 2 dB against it at this length.
"""

import numpy as np
from numpy.typing import NDArray

RATE = 3  # coded bits for each bit
_MEMORY = 8  # earlier bits that a coded bit depends on
_STATES = 1 << _MEMORY
_TAPS = np.array([[int(bit) for bit in f"{taps:09b}"] for taps in (0o557, 0o663, 0o711)])  # newest bit first


def coded_length(count: int) -> int:
    """Number of coded bits for `count` bits, with the zeros that end them."""
    return RATE * (count + _MEMORY)


def encode(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The coded bits [coded_length(n)] of bits [n]."""
    return np.stack([np.convolve(bits, taps) % 2 for taps in _TAPS], axis=1).ravel().astype(np.uint8)


def decode(soft: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The most likely bits [n] of soft values [coded_length(n)]: positive for 0, negative for 1."""
    steps = soft.reshape(-1, RATE)
    # A state is the last 8 bits, newest first. Each is reached from two that differ in their oldest bit.
    states = np.arange(_STATES)
    before = ((states & (_STATES // 2 - 1)) << 1)[:, None] | np.arange(2)  # [256, 2]
    register = (states >> (_MEMORY - 1) << _MEMORY)[:, None] | before  # 9 bits, newest first
    window = (register[..., None] >> np.arange(_MEMORY, -1, -1)) & 1  # [256, 2, 9]
    expected = 1 - 2 * (window @ _TAPS.T % 2)  # [256, 2, 3]

    likelihood = np.where(states == 0, 0.0, -np.inf)
    oldest = np.empty((len(steps), _STATES), np.int64)
    for number, values in enumerate(steps):
        reached = likelihood[before] + expected @ values  # [256, 2]
        oldest[number] = reached.argmax(axis=1)
        likelihood = reached.max(axis=1)

    bits = np.empty(len(steps), np.uint8)
    state = 0  # in which the zeros at the end leave the encoder
    for number in range(len(steps) - 1, -1, -1):
        bits[number] = state >> (_MEMORY - 1)
        state = before[state, oldest[number, state]]
    return bits[:-_MEMORY]
