"""Changes of one parameter by an adapter: W becomes W + weight * change(W), in every published form.

    LoRA     change = s B A                      Hu et al. 2021; of convolutions LoCon, with a core Tucker
    LoHa     change = s (B1 A1) * (B2 A2)        Hyeon-Woo et al. 2021 (FedPara); LyCORIS
    LoKr     change = s C (x) (B A)              Edalati et al. 2022 (KronA); LyCORIS
    DoRA     change = m (W + D) / |W + D| - W    Liu et al. 2024, where D is the change of a form above
    (IA)^3   change = l * W                      Liu et al. 2022; LyCORIS
    full     change = D

s is alpha / rank. A convolution kernel [out, in, k, k] is treated as the matrix [out, in*k*k].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Size, Tensor


@dataclass(frozen=True)
class _Tensors:
    """Base of dataclasses that hold tensors, or other dataclasses of this kind."""

    def to(self, device: torch.device | str) -> Self:
        """A copy with all tensors on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor | _Tensors)}
        return replace(self, **moved)


class Patch(_Tensors):
    """A change of one parameter."""

    def change(self, base: Tensor) -> Tensor:
        """The tensor to add to `base` at weight 1: float32, with the shape of `base`.

        Args:
            base: the unmodified parameter, on the device of the patch.
        """
        raise NotImplementedError

    def check(self, shape: Size) -> None:
        """Raise ValueError unless the patch fits a parameter of this shape.

        Only shapes are compared. (Running `change` on the meta device would import PyTorch's compiler.)
        """
        raise NotImplementedError

    def low_rank(self, shape: Size) -> tuple[Tensor, Tensor, float] | None:
        """The factors of a LoRA, for use on single rows of a batch; None for any other form.

        Args:
            shape: of the patched weight, [out, …].

        Returns:
            down [rank, …], shaped like the weight of the patched layer but with `rank` outputs; up
            [out, rank]; the scale of their product.
        """
        return None


@dataclass(frozen=True)
class LowRank(Patch):
    """LoRA.

    Attributes:
        down: [rank, in] or [rank, in, k, k].
        up: [out, rank], or [out, rank, 1, 1].
        core: None, or [rank, rank, k, k] for a `down` with a 1x1 kernel (Tucker form).
    """

    down: Tensor
    up: Tensor
    scale: float
    core: Tensor | None = None

    def change(self, base: Tensor) -> Tensor:
        down, up, scale = self.low_rank(base.shape)
        return _fit(scale * up @ down.flatten(1), base.shape)

    def check(self, shape: Size) -> None:
        rank, columns = _matrix_size(self.down)
        rows, inner = _matrix_size(self.up)
        if self.core is not None:
            outer, middle, *kernel = self.core.shape
            if middle != rank:
                raise ValueError(f"a core of shape {list(self.core.shape)} for rank {rank}")
            rank, columns = outer, columns * math.prod(kernel)
        if inner != rank:
            raise ValueError(f"factors of ranks {inner} and {rank}")
        _check_size((rows, columns), shape)

    def low_rank(self, shape: Size) -> tuple[Tensor, Tensor, float]:
        down = self.down.float()
        if self.core is not None:
            down = torch.einsum("orhw,ri->oihw", self.core.float(), down.flatten(1))
        return down.reshape(len(down), *shape[1:]), self.up.float().flatten(1), self.scale


@dataclass(frozen=True)
class Matrix(_Tensors):
    """A matrix [out, in*k*k]: `left @ right`, or `left` alone.

    In the Tucker form, left is [rank, out], right [rank, in] and core [rank, rank, k, k].
    """

    left: Tensor
    right: Tensor | None = None
    core: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns. Raises ValueError where the factors do not fit each other."""
        if self.right is None:
            return _matrix_size(self.left)
        if self.left.ndim != 2 or self.right.ndim != 2:
            raise ValueError(f"factors of shapes {list(self.left.shape)} and {list(self.right.shape)}")
        if self.core is None:
            if self.left.shape[1] != self.right.shape[0]:
                raise ValueError(f"factors of ranks {self.left.shape[1]} and {self.right.shape[0]}")
            return self.left.shape[0], self.right.shape[1]
        if self.core.ndim != 4 or self.core.shape[:2] != (self.left.shape[0], self.right.shape[0]):
            ranks = self.left.shape[0], self.right.shape[0]
            raise ValueError(f"a core of shape {list(self.core.shape)} for ranks {ranks}")
        return self.left.shape[1], self.right.shape[1] * math.prod(self.core.shape[2:])

    def value(self) -> Tensor:
        """The matrix itself, in float32."""
        left = self.left.float()
        if self.right is None:
            return left.flatten(1)
        if self.core is None:
            return left @ self.right.float()
        core = self.core.float()
        return torch.einsum("rshw,ro,si->oihw", core, left, self.right.float()).flatten(1)


@dataclass(frozen=True)
class Hadamard(Patch):
    """LoHa: the elementwise product of two matrices."""

    first: Matrix
    second: Matrix
    scale: float

    def change(self, base: Tensor) -> Tensor:
        first, second = _fit(self.first.value(), base.shape), _fit(self.second.value(), base.shape)
        return self.scale * first * second

    def check(self, shape: Size) -> None:
        _check_size(self.first.size, shape)
        _check_size(self.second.size, shape)


@dataclass(frozen=True)
class Kronecker(Patch):
    """LoKr: the Kronecker product of a small matrix of channels and a large one, which holds the kernel."""

    first: Matrix
    second: Matrix
    scale: float

    def change(self, base: Tensor) -> Tensor:
        return _fit(self.scale * torch.kron(self.first.value(), self.second.value()), base.shape)

    def check(self, shape: Size) -> None:
        (rows, columns), (inner_rows, inner_columns) = self.first.size, self.second.size
        _check_size((rows * inner_rows, columns * inner_columns), shape)


@dataclass(frozen=True)
class Full(Patch):
    """The difference itself, of a weight or a bias."""

    difference: Tensor
    scale: float = 1.0

    def change(self, base: Tensor) -> Tensor:
        return _fit(self.scale * self.difference.float(), base.shape)

    def check(self, shape: Size) -> None:
        _check_size(self.difference.shape, shape)


@dataclass(frozen=True)
class Rescaled(Patch):
    """(IA)^3: each input or output of a layer is multiplied by one plus a number."""

    factors: Tensor
    axis: int

    def change(self, base: Tensor) -> Tensor:
        return base.float() * _along(self.axis, self.factors, base.shape)

    def check(self, shape: Size) -> None:
        _check_along(self.axis, self.factors, shape)


@dataclass(frozen=True)
class Decomposed(Patch):
    """DoRA: the changed weight, with its rows or columns scaled to learned lengths.

    Attributes:
        lengths: one for each output (axis 0) or input (axis 1), in any shape.
    """

    inner: Patch
    lengths: Tensor
    axis: int

    def change(self, base: Tensor) -> Tensor:
        base = base.float()
        changed = base + self.inner.change(base)
        others = [dim for dim in range(base.ndim) if dim != self.axis]
        norm: Tensor = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        # A row of zeros has no direction. LyCORIS adds the same epsilon.
        norm = norm + torch.finfo(torch.float32).eps
        return changed * (_along(self.axis, self.lengths, base.shape) / norm) - base

    def check(self, shape: Size) -> None:
        self.inner.check(shape)
        _check_along(self.axis, self.lengths, shape)


def read_patches(
    given: Mapping[str, Tensor],
    shapes: Mapping[str, Size],
    default_scale: Callable[[int], float] = lambda rank: 1.0,
) -> dict[str, Patch]:
    """Build the patches of one module from the tensors that a file has for it.

    Alpha is read only where a form uses it: the LoKr of two whole matrices, full differences, norms and
    (IA)^3 have no scale, but files store an alpha with them all the same, which may be infinite or NaN.

    Args:
        given: "up", "down", "core", "magnitude" and "up_bias" (PEFT's), and all others by the names that
            LyCORIS gives them.
        shapes: of the module's "weight" and, where it has one, "bias".
        default_scale: rank -> s, for modules without an "alpha".

    Returns:
        "weight", "bias" -> patch.

    Raises:
        ValueError: tensors are missing, left over, or of shapes that do not fit.
    """
    for name, tensor in given.items():
        if not tensor.is_floating_point() and name not in ("alpha", "on_input"):
            raise ValueError(f"{name} holds {tensor.dtype}, expected floating-point numbers")
    rest = dict(given)
    alpha = rest.pop("alpha", None)
    patches = _take_forms(
        rest, lambda rank: default_scale(rank) if alpha is None else _number(alpha, "alpha") / rank
    )
    if not patches or rest:
        raise ValueError(
            f"{', '.join(sorted(rest or given))} alone: the tensors that belong to it are missing"
        )
    for name, patch in patches.items():
        if name not in shapes:
            raise ValueError(f"changes a {name}, which the module does not have")
        try:
            patch.check(shapes[name])
        except ValueError as error:
            raise ValueError(f"does not fit a parameter of shape {list(shapes[name])}: {error}") from None
    return patches


def _take_forms(rest: dict[str, Tensor], scale: Callable[[int], float]) -> dict[str, Patch]:
    """Remove the tensors of each complete form from `rest`, and return their patches."""
    patches: dict[str, Patch] = {}

    def take(*names: str) -> list[Tensor] | None:
        return [rest.pop(name) for name in names] if rest.keys() >= {*names} else None

    def take_lokr(i: int) -> Matrix:
        if whole := take(f"lokr_w{i}"):
            return Matrix(whole[0])
        if factors := take(f"lokr_w{i}_a", f"lokr_w{i}_b"):
            return Matrix(factors[0], factors[1], rest.pop(f"lokr_t{i}", None))
        raise ValueError(f"lokr_w{i} is missing, whole or in two factors")

    if lora := take("up", "down"):
        up, down = lora
        patches["weight"] = LowRank(down, up, scale(_rank(down)), rest.pop("core", None))
        if bias := take("up_bias"):
            patches["bias"] = Full(bias[0], scale(_rank(down)))
    elif loha := take("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
        cores = take("hada_t1", "hada_t2") or (None, None)
        first, second = Matrix(loha[0], loha[1], cores[0]), Matrix(loha[2], loha[3], cores[1])
        patches["weight"] = Hadamard(first, second, scale(_rank(loha[1])))
    elif any(name.startswith("lokr_") for name in rest):
        first, second = take_lokr(1), take_lokr(2)
        # LyCORIS writes an alpha for two whole matrices ("full dimension") too, and ignores it.
        factor = second.right if second.right is not None else first.right
        patches["weight"] = Kronecker(first, second, 1.0 if factor is None else scale(_rank(factor)))
    elif difference := take("diff") or take("w_norm"):
        patches["weight"] = Full(difference[0])
    elif ia3 := take("weight", "on_input"):
        patches["weight"] = Rescaled(ia3[0], axis=1 if _number(ia3[1], "on_input") else 0)
    if difference := take("diff_b") or take("b_norm"):
        patches["bias"] = Full(difference[0])
    if "weight" in patches and (magnitude := take("magnitude")):
        patches["weight"] = Decomposed(patches["weight"], magnitude[0], axis=0)
    if "weight" in patches and (scales := take("dora_scale")):
        # [out, 1] or [1, in], followed by 1s for convolutions.
        axis = 0 if scales[0].shape[:1].numel() == scales[0].numel() else 1
        patches["weight"] = Decomposed(patches["weight"], scales[0], axis)
    return patches


def _rank(factor: Tensor) -> int:
    if factor.ndim < 2 or factor.shape[0] == 0:
        raise ValueError(f"a factor has shape {list(factor.shape)}, expected a matrix or a kernel")
    return factor.shape[0]


def _number(tensor: Tensor, name: str) -> float:
    if tensor.numel() != 1 or not math.isfinite(number := float(tensor)):
        given = float(tensor) if tensor.numel() == 1 else f"of shape {list(tensor.shape)}"
        raise ValueError(f"{name} is {given}, expected one finite number")
    return number


def _matrix_size(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor's matrix form [out, in*k*k]."""
    if tensor.ndim < 2:
        raise ValueError(f"a factor has shape {list(tensor.shape)}, expected a matrix or a kernel")
    return tensor.shape[0], math.prod(tensor.shape[1:])


def _check_size(given: tuple[int, ...], shape: Size) -> None:
    """Matrices stand for 1x1 convolutions, and the other way round."""
    if given[:1] != shape[:1] or math.prod(given) != shape.numel():
        raise ValueError(f"a change of shape {list(given)}")


def _fit(change: Tensor, shape: Size) -> Tensor:
    """A change, reshaped to the parameter's shape."""
    _check_size(change.shape, shape)
    return change.reshape(shape)


def _check_along(axis: int, values: Tensor, shape: Size) -> None:
    if len(shape) < 2 or values.numel() != shape[axis]:
        raise ValueError(f"{values.numel()} numbers for axis {axis}")


def _along(axis: int, values: Tensor, shape: Size) -> Tensor:
    """One number for each output or input, shaped to broadcast over a weight."""
    _check_along(axis, values, shape)
    return values.float().reshape([-1 if dim == axis else 1 for dim in range(len(shape))])
