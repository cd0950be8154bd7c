"""An invisible watermark: a 64-bit id in the pixels, which survives re-encoding, cropping and scaling.

A spread-spectrum mark (Cox et al. 1997) without weights. One tile of 128 x 128 pixels is repeated over the
image. Its spectrum has a real and an imaginary part of ±1 at each spatial frequency from 0.05 to 0.17 cycles
a pixel, and nothing elsewhere. The key decides the order of the frequencies and their signs. The first 30 %
say where a tile begins: an FFT correlates all 16,384 shifts at once, so that a crop is found. The others
carry the id and its CRC-16, protected by a convolutional code. The mark is stronger where there is detail.

Images whose shorter side is below 256 pixels carry the first 32 bits of the id, with a stronger mark.
"""

import binascii
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import InvalidRequest
from limner.images.opening import eight_bit, normalised

from . import convolutional

ID_BITS = 64
DEFAULT_KEY = b"limner's published watermark key"
"""The key where no other is set. It is public: everybody can read, forge and remove marks made with it."""

TILE = 128  # pixels
THRESHOLD = 5.5
"""Least z score of a mark. Benchmark `watermark` counts how far unmarked images stay below it."""

_BAND = (0.05, 0.17)  # cycles a pixel
_SYNC_SHARE = 0.3  # of the frequencies
_SHORT_BELOW = 256  # pixels of the shorter side
_CRC_BITS = 16
_Bits = Literal[32, 64]
_AMPLITUDES: dict[_Bits, float] = {64: 1.8, 32: 2.2}  # root mean square, of 255
# The mark is up to half as strong again where the brightness of a block deviates by 16 of 255 or more.
_DETAIL_BLOCK, _DETAIL_GAIN, _DETAIL_FULL = 8, 0.5, 16.0
_FLAT_BLOCK = 5  # pixels a side over which contrast is evened out
_FLOOR = 1.0  # of 255: contrast below which flat areas are not raised further
_OUTLIER = 3.0  # times the contrast, at which values are cut
_SMALLEST = 32  # pixels a side in which a mark is looked for
_SEARCHED = 512  # pixels a side of what is searched over scales, enough for 16 tiles
_COMMON_SCALES = (0.5, 0.75, 0.8, 2.0, 1.5, 0.9, 0.6, 2 / 3, 1.25)
_SCALE_RANGE, _SCALE_STEP, _FINE_STEP = (0.45, 2.2), 1.008, 1.0015


@dataclass(frozen=True)
class Mark:
    """A watermark that was found.

    Attributes:
        id: The id, of `bits` bits.
        bits: 64, or 32: the first half of an id, in a small image.
        z: Standard deviations by which the mark stands out from all other places where a tile may begin.
        scale: Size of the image relative to that at which it was marked: 0.5 for one that was halved.
    """

    id: int
    bits: int
    z: float
    scale: float = 1.0

    @property
    def digits(self) -> str:
        """The id in hexadecimal: 16 digits, or the first 8 of them."""
        return f"{self.id:0{self.bits // 4}x}"


def embed(image: Image.Image, id: int, key: bytes = DEFAULT_KEY) -> Image.Image:
    """The image with a watermark, in 8 bits: L, RGB or RGBA. Transparency stays as it is.

    The peak signal-to-noise ratio between both is about 43 dB, and 41 dB below 256 pixels.

    Args:
        id: The id, of 64 bits.
        key: Secret; a mark is found only with the key that it was made with.

    Raises:
        InvalidRequest: The image is too small, or the id is too large.
    """
    check_size(image.size)
    if not 0 <= id < 1 << ID_BITS:
        raise InvalidRequest(f"the id of a watermark is {id}; expected 0 to 2**{ID_BITS} - 1")
    bits = carried_bits(image.size)
    image = _plain(image)
    luma = _luma(image)
    mean = _shrunk(luma, _DETAIL_BLOCK)
    deviation = np.sqrt(np.maximum(_shrunk(luma * luma, _DETAIL_BLOCK) - mean * mean, 0.0))
    detailed = 1.0 + _DETAIL_GAIN * np.minimum(deviation / _DETAIL_FULL, 1.0)
    level = _AMPLITUDES[bits] / np.sqrt(np.mean(np.square(detailed)))
    strength = (level * detailed).astype(np.float32)
    height, width = luma.shape
    tile = _tile(key, id >> (ID_BITS - bits), bits)
    mark = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    change = np.rint(mark * _grown(strength, luma.shape)).astype(np.int16)
    pixels = np.array(image).reshape(height, width, -1)  # [H, W, C]
    colours = pixels[..., :3]
    colours[...] = np.clip(colours + change[..., None], 0, 255)
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)


KeyName = Literal["own", "published"]
"""Whose key a mark was made with: that of this machine or service, or the one that is part of Limner."""


@dataclass(frozen=True)
class FoundMark:
    """A watermark whose key was looked for.

    Attributes:
        mark: The mark.
        key: Whose key it was made with.
    """

    mark: Mark
    key: KeyName


def known_keys(own: bytes | None) -> dict[KeyName, bytes]:
    """The keys that marks are looked for with.

    Args:
        own: The own key; None: there is none.
    """
    published: dict[KeyName, bytes] = {"published": DEFAULT_KEY}
    return published if own in (None, DEFAULT_KEY) else {"own": own, **published}


def find_mark(
    image: Image.Image, keys: Mapping[KeyName, bytes], *, search_scales: bool = False
) -> FoundMark | None:
    """The watermark of an image or of a crop, made with one of several keys; None if none is found.

    Args:
        keys: As of `known_keys`.
        search_scales: As of `detect`. Scales are searched after every key was tried without.

    Raises:
        InvalidRequest: As `detect`.
    """
    for search in (False, True) if search_scales else (False,):
        for name, key in keys.items():
            if (mark := detect(image, key, search)) is not None:
                return FoundMark(mark, name)
    return None


def detect(image: Image.Image, key: bytes = DEFAULT_KEY, search_scales: bool = False) -> Mark | None:
    """The watermark of an image or of a crop; None if none is found.

    Args:
        search_scales: Also look for one in an image that was scaled by 0.45 to 2.2 since it was marked, which
            takes seconds.

    Raises:
        InvalidRequest: The image is smaller than 32 pixels a side.
    """
    if min(image.size) < _SMALLEST:
        raise InvalidRequest(
            f"the image is {image.width} x {image.height}; a watermark can be found from {_SMALLEST} pixels "
            "a side on"
        )
    luma = _luma(_plain(image))
    found, _ = _read(luma, key, 1.0)
    if found is not None or not search_scales:
        return found
    whole = Image.fromarray(luma)
    best = (0.0, 1.0)  # z, scale
    for scale in _scales():
        found, z = _read(_rescaled(whole, scale), key, scale)
        if found is not None:
            best = (z, scale)
            break
        best = max(best, (z, scale))
    near = (best[1] * _FINE_STEP**step for step in range(-10, 11))
    marks = [found, *(_read(_rescaled(whole, scale), key, scale)[0] for scale in near)]
    return max((mark for mark in marks if mark is not None), key=lambda mark: mark.z, default=None)


def check_size(size: tuple[int, int]) -> None:
    """Raises InvalidRequest if images of this width and height are too small for a watermark."""
    if min(size) < TILE:
        raise InvalidRequest(
            f"the image is {size[0]} x {size[1]}; a watermark needs {TILE} pixels a side",
            hint="draw a larger image, or leave the watermark out",
        )


def carried_bits(size: tuple[int, int]) -> _Bits:
    """How many bits of the id an image of this width and height carries: the first 32, or all 64."""
    return 32 if min(size) < _SHORT_BELOW else 64


@dataclass(frozen=True)
class _Pattern:
    """What a key decides.

    Attributes:
        rows, columns: Indices [n] of the frequencies in the spectrum [128, 65] of a tile, in the key's order.
        signs: ±1 ±1j at each [n].
        syncs: How many frequencies, from the first, say where the tile begins.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    signs: NDArray[np.complex128]
    syncs: int

    def signed(self, values: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The data at the frequencies [n], real and imaginary parts in turn [2 * (n - syncs)], without
        the key's signs."""
        values, signs = values[self.syncs :], self.signs[self.syncs :]
        return np.stack([values.real * signs.real, values.imag * signs.imag], axis=1).ravel()


@lru_cache(maxsize=8)
def _pattern(key: bytes) -> _Pattern:
    down, across = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    distance = np.hypot(down, across)
    used = (distance >= _BAND[0]) & (distance <= _BAND[1]) & ((across > 0) | (down > 0))
    rows, columns = np.nonzero(used)
    count = len(rows)
    stream = hashlib.shake_256(b"limner watermark 1\0" + key).digest(9 * count)
    order = np.argsort(np.frombuffer(stream[: 8 * count], "<u8"), kind="stable")
    coins = np.frombuffer(stream[8 * count :], np.uint8)
    signs = (1.0 - 2.0 * (coins & 1)) + 1j * (1.0 - 2.0 * (coins >> 1 & 1))
    return _Pattern(rows[order], columns[order], signs, round(_SYNC_SHARE * count))


def _tile(key: bytes, id: int, bits: _Bits) -> NDArray[np.float32]:
    """The mark of an id of `bits` bits: [128, 128] with a root mean square of 1."""
    pattern = _pattern(key)
    coded = 1.0 - 2.0 * convolutional.encode(_payload(id, bits))
    values = pattern.signs.copy()
    data = np.resize(coded, 2 * (len(values) - pattern.syncs)).reshape(-1, 2)  # repeated
    signs = values[pattern.syncs :]
    values[pattern.syncs :] = signs.real * data[:, 0] + 1j * signs.imag * data[:, 1]
    spectrum = np.zeros((TILE, TILE // 2 + 1), np.complex128)
    spectrum[pattern.rows, pattern.columns] = values
    tile = np.fft.irfft2(spectrum, (TILE, TILE))
    return np.asarray(tile / tile.std(), np.float32)


def _payload(id: int, bits: int) -> NDArray[np.uint8]:
    """The bits of an id, and its CRC-16."""
    data = id.to_bytes(bits // 8)
    return np.unpackbits(np.frombuffer(data + _crc(data), np.uint8))


def _crc(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0xFFFF).to_bytes(_CRC_BITS // 8)


def _read(luma: NDArray[np.float32], key: bytes, scale: float) -> tuple[Mark | None, float]:
    """The mark in an image at the size at which it was marked, if there is one; and the z score."""
    pattern = _pattern(key)
    values = _noise_weighted(_folded(_flattened(luma)))[pattern.rows, pattern.columns]
    spectrum = np.zeros((TILE, TILE // 2 + 1), np.complex128)
    at = pattern.rows[: pattern.syncs], pattern.columns[: pattern.syncs]
    spectrum[at] = values[: pattern.syncs] * pattern.signs[: pattern.syncs].conj()
    likeness = np.fft.irfft2(spectrum, (TILE, TILE))  # by the shift of the tile
    spread = float(likeness.std())
    if spread == 0.0:  # an image of one colour
        return None, 0.0
    place = int(likeness.argmax())
    z = float(likeness.flat[place]) / spread
    if z < THRESHOLD:
        return None, z
    top, left = divmod(place, TILE)
    cycles = (np.fft.fftfreq(TILE)[pattern.rows] * top) + (np.fft.rfftfreq(TILE)[pattern.columns] * left)
    data = pattern.signed(values * np.exp(2j * math.pi * cycles))
    for bits in _AMPLITUDES:
        length = convolutional.coded_length(bits + _CRC_BITS)
        soft = np.zeros(length)
        np.add.at(soft, np.arange(len(data)) % length, data)
        decoded = convolutional.decode(soft)
        id, crc = np.split(np.packbits(decoded), [bits // 8])
        if _crc(id.tobytes()) == crc.tobytes():
            return Mark(int.from_bytes(id.tobytes()), bits, z, scale), z
    return None, z


def _flattened(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image without its own brightness and contrast: an edge weighs no more than a flat colour."""
    detail = luma - _grown(_shrunk(luma, _FLAT_BLOCK), luma.shape)
    contrast = np.sqrt(_grown(_shrunk(detail * detail, _FLAT_BLOCK), luma.shape))
    return np.clip(detail / (contrast + np.float32(_FLOOR)), -_OUTLIER, _OUTLIER)


def _folded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum of all tiles [128, 128] of an image [H, W]; what is missing of the last ones counts as 0."""
    height, width = values.shape
    values = np.pad(values, ((0, -height % TILE), (0, -width % TILE)))
    tiles = values.reshape(values.shape[0] // TILE, TILE, -1, TILE)
    return np.asarray(tiles.sum(axis=(0, 2)))


def _noise_weighted(tile: NDArray[np.float32]) -> NDArray[np.complex128]:
    """The spectrum [128, 128] of a tile, each frequency divided by the power of the 5 x 5 around it."""
    spectrum = np.fft.fft2(tile.astype(np.float64))
    power = np.abs(spectrum) ** 2
    for axis in (0, 1):
        power = np.sum([np.roll(power, shift, axis) for shift in range(-2, 3)], axis=0)
    return np.asarray(spectrum / np.maximum(power, np.finfo(np.float64).tiny))


def _scales() -> Iterator[float]:
    """Scales to try, the common ones first; so close that the marks of a region stay in phase."""
    yield from _COMMON_SCALES
    first, last = _SCALE_RANGE
    for step in range(math.ceil(math.log(last / first, _SCALE_STEP)) + 1):
        yield first * _SCALE_STEP**step


def _rescaled(luma: Image.Image, scale: float) -> NDArray[np.float32]:
    """The middle of an image at the size that it had before it was scaled."""
    width, height = (min(_SEARCHED, int(length / scale)) for length in luma.size)
    left, top = max(0.0, (luma.width - width * scale) / 2), max(0.0, (luma.height - height * scale) / 2)
    right, bottom = min(luma.width, left + width * scale), min(luma.height, top + height * scale)
    return np.asarray(luma.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom)))


def _plain(image: Image.Image) -> Image.Image:
    """The image as L, RGB or RGBA."""
    image = eight_bit(normalised(image))
    return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")


def _luma(image: Image.Image) -> NDArray[np.float32]:
    """Brightness [H, W] in [0, 255], not rounded; of an RGBA image without regard to its transparency."""
    return np.asarray((image.convert("RGB") if image.mode == "RGBA" else image).convert("F"))


def _shrunk(values: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Means of square blocks."""
    height, width = values.shape
    size = (-(-width // block), -(-height // block))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _grown(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values [h, w] at a larger size [H, W], interpolated."""
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
