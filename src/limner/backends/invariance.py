"""Batch invariance: each row of a batch has the same bits at any batch size.

oneDNN chooses kernels by shape, and on some processors the kernel for many rows sums in another order than
the one for few. So an operator's output is defined as its output for `PAIR` rows at once, the two of a guided
image. Other batch sizes are used where they give the same bits; where they do not, rows are computed in
smaller batches. Each shape is tested on random numbers when it first occurs, and the verdict is kept on disk
for this processor, number of threads and version of PyTorch.
"""

import json
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from limner.errors import OutputError
from limner.files import whole_file

PAIR = 2
_SIZES = (64, 32, 16, 8, 4)  # batch sizes to try where the whole batch has other bits
# Outputs to compare before two kernels count as the same. In fp32 another order of summation changes every
# second output; in bfloat16, after rounding, about one output in 10,000.
_COMPARED = {torch.float32: 1 << 12, torch.bfloat16: 1 << 17, torch.float16: 1 << 14}
_NOISE = 65_537  # random numbers to build inputs from; a prime, so that rows of any length differ

Operator = Callable[..., Tensor]
"""Tensors with a dimension of rows in front -> one such tensor."""


class RowBlocks:
    """Runs operators so that a row's bits do not depend on the other rows. Any thread may use it.

    Args:
        file: File of stored verdicts; None to store none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._lock = file, Lock()
        self._agrees: dict[Hashable, bool] = {}
        self._stored = _read(file)
        self._dirty = False

    def __call__(self, operator: Operator, geometry: str, *inputs: Tensor) -> Tensor:
        """The operator's output for each row of the inputs.

        Args:
            geometry: Whatever the operator's kernel depends on other than the shapes of its inputs.
            inputs: Tensors [R, ...].
        """
        rows = len(inputs[0])
        if rows == PAIR or self._same(operator, geometry, inputs, rows):
            return operator(*inputs)
        if rows == 1:
            return operator(*(_rows_like(x, PAIR).copy_(x.expand(PAIR, *x.shape[1:])) for x in inputs))[:1]
        smaller = (size for size in _SIZES if size < rows)
        most = next((size for size in smaller if self._same(operator, geometry, inputs, size)), PAIR)
        parts = zip(*(torch.split(x, most) for x in inputs), strict=True)
        return torch.cat([self(operator, geometry, *part) for part in parts])

    def differing(self) -> frozenset[str]:
        """Shapes and batch sizes at which the plain operator has other bits."""
        return frozenset(name for name, agrees in self._stored.items() if not agrees)

    def store(self) -> None:
        """Write new verdicts to disk. If the file cannot be written, each process tests for itself."""
        with self._lock:
            if self._file is None or not self._dirty:
                return
            self._dirty = False
            verdicts = {**_read(self._file), **self._stored}
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(self._file) as temporary:
                    temporary.write_text(json.dumps(verdicts, indent=0, sort_keys=True), encoding="utf-8")
            except (OSError, OutputError):
                self._file = None

    def _same(self, operator: Operator, geometry: str, inputs: tuple[Tensor, ...], rows: int) -> bool:
        """Whether a batch of `rows` rows has the same bits as its rows in pairs."""
        key = geometry, rows, *((x.shape[1:], x.stride()) for x in inputs)
        known = self._agrees.get(key)
        if known is None:
            shapes = (f"{x.dtype} {[*x.shape[1:]]} {[*x.stride()[1:]]}" for x in inputs)
            name = f"{geometry}: {rows} x {', '.join(shapes)}"
            known = self._stored.get(name)
            if known is None:
                known = _agree(operator, inputs, rows)
                with self._lock:
                    self._stored[name], self._dirty = known, True
            self._agrees[key] = known
        return known


def _agree(operator: Operator, inputs: tuple[Tensor, ...], rows: int) -> bool:
    """Compare on random numbers: the first rows, the last, and one between, in either position of a pair."""
    pairs = {(0, 0)} if rows == 1 else {(1, 0), (rows - 1, rows - 2), (rows // 2, 0)}
    compared = 0
    for given in _random(inputs, rows):
        whole = operator(*given)
        for pair in pairs:
            index = torch.tensor(pair, device=whole.device)
            alone = operator(*(_rows_like(x, PAIR).copy_(x[index]) for x in given))
            if not torch.equal(alone, whole[index]):
                return False
            compared += alone.numel()
        if compared >= _COMPARED.get(whole.dtype, max(_COMPARED.values())):
            return True
    raise AssertionError("unreachable")


def _random(inputs: tuple[Tensor, ...], rows: int) -> Iterator[list[Tensor]]:
    """Yield random inputs of `rows` rows with the strides of the given ones, different each time."""
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))
    start = 0
    while True:
        made = []
        for x in inputs:
            count = rows * x[0].numel()
            start = (start + 7919) % _NOISE
            numbers = noise.roll(-start).repeat(-(-count // _NOISE))[:count]
            made.append(_rows_like(x, rows).copy_(numbers.reshape(rows, *x.shape[1:])))
        yield made


def _rows_like(x: Tensor, rows: int) -> Tensor:
    """An empty tensor of `rows` rows, each with the strides of a row of x."""
    sizes = zip(x.shape[1:], x.stride()[1:], strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in sizes)
    return x.new_empty_strided((rows, *x.shape[1:]), (span, *x.stride()[1:]))


def _read(file: Path | None) -> dict[str, bool]:
    """Stored verdicts; none if the file is missing or broken, as they can be tested again."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    except (OSError, ValueError):
        return {}
    valid = isinstance(found, dict) and all(isinstance(value, bool) for value in found.values())
    return found if valid else {}
