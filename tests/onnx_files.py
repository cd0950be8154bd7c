"""Writes small ONNX files, without the package `onnx` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)."""

from pathlib import Path


def write_means(path: Path, shape: tuple[int, ...], axes: tuple[int, ...]) -> Path:
    """A network that returns the means [1, 3] of its input over some axes."""
    attributes = _text(1, "axes") + b"".join(_number(8, axis) for axis in axes) + _number(20, 7)
    keep = _text(1, "keepdims") + _number(3, 0) + _number(20, 2)
    node = _text(1, "x") + _text(2, "y") + _text(4, "ReduceMean") + _part(5, attributes) + _part(5, keep)
    graph = _part(1, node) + _text(2, "means")
    graph += _part(11, _value("x", shape)) + _part(12, _value("y", (1, 3)))
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _text(1, "") + _number(2, 13)))
    return path


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_part(1, _number(1, length)) for length in shape)
    return _text(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, dims)))  # 1: float32


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())
