"""Reads PyTorch's pickles in a separate process that can construct only stand-ins of tensors.

`pickles.py` runs this file as a script, without the package and without site-packages: it takes a pickle on
stdin and writes JSON to stdout. Names of tensors and containers that a pickle may call have stand-ins
(https://docs.python.org/3/library/pickle.html#restricting-globals); any other name
is refused before it is looked up, so nothing outside this file runs.
"""

import io
import json
import pickle
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_MEMORY, MAX_SECONDS = 1 << 30, 20
MAX_LEAVES = 200_000  # a training state of XL has some 20,000

# Class of a typed storage -> name of its dtype in safetensors.
STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
}


class Refused(Exception):
    """A name that a pickle of tensors does not need."""


@dataclass(frozen=True)
class Storage:
    """The bytes of tensors: `data/<key>` in the archive."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True)
class Strided:
    """A tensor: a view of a storage; offset and stride are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Strided:
    return Strided(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: Strided, *_: object) -> Strided:
    return tensor


class _ParameterDict(dict[str, Any]):
    """Stand-in of the module that holds the embeddings in the first textual inversion files."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state["_parameters"])


GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.nn.modules.container", "ParameterDict"): _ParameterDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): list,
    ("__builtin__", "set"): list,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    # A class as the key of a dict, in the checkpoints of the first Stable Diffusion release.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): "ModelCheckpoint",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise Refused(f"{module}.{name}")
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, elements = pid
        if kind != "storage" or dtype not in STORAGES.values():
            raise ValueError(f"a storage of kind {kind!r} and type {dtype!r}")
        return Storage(dtype, str(key), int(elements))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested containers with their keys joined by dots."""
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _read(data: bytes) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for count, (path, leaf) in enumerate(_leaves(_Unpickler(io.BytesIO(data)).load())):
        if path in tensors or path in values:
            raise ValueError(f"two values have the name {path!r}")
        if count == MAX_LEAVES:
            raise ValueError(f"it has more than {MAX_LEAVES} values")
        if isinstance(leaf, Strided):
            storage = leaf.storage
            tensors[path] = [
                storage.dtype,
                storage.key,
                storage.elements,
                leaf.offset,
                leaf.shape,
                leaf.stride,
            ]
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            values[path] = leaf
        else:
            raise ValueError(f"{path!r} is a {type(leaf).__name__}")
    return {"tensors": tensors, "values": values}


def main() -> None:
    """Write `tensors` and `values`, or the `refused` name, or an `error`, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no files
    try:
        answer = json.dumps(_read(sys.stdin.buffer.read()))
    except Refused as refused:
        answer = json.dumps({"refused": str(refused)})
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]})
    sys.stdout.write(answer)


if __name__ == "__main__":
    main()
