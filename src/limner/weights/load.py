"""Strict loading: a module receives exactly the tensors that its config requires, or loading fails.

Modules are built on the meta device, so nothing is allocated or initialised, and the file's mapped tensors
become their parameters: a weight takes memory when it is first used, and is cast if another dtype is
requested.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import InvalidCheckpoint

from .tensors import LazyTensor, release_pages

M = TypeVar("M", bound=nn.Module)

# Returns the parameter's name for a key in a file, or None for a known key without use.
Names = Callable[[str], str | None]

_SHOWN = 10  # names per kind of fault in a message


def unet_name(key: str) -> str | None:
    return key


def vae_name(key: str) -> str | None:
    """Return the parameter's name.

    Files from before diffusers 0.18 have older names for the projections of the middle attention.
    """
    match = _OLD_ATTENTION.fullmatch(key)
    return f"{match[1]}{_NEW_PROJECTION[match[2]]}{match[3]}" if match else key


def text_encoder_name(key: str) -> str | None:
    """Return the parameter's name. Only files of transformers 5 lack the prefix `text_model.`."""
    if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        key = f"text_model.{key}"
    # position_ids were stored until transformers 4.31; logit_scale is for training CLIP.
    return None if key in ("text_model.embeddings.position_ids", "logit_scale") else key


def image_encoder_name(key: str) -> str | None:
    """Return the parameter's name.

    Only files of transformers 5 without a projection lack the prefix `vision_model.`. position_ids were
    stored until transformers 4.31.
    """
    if key.startswith(("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")):
        key = f"vision_model.{key}"
    return None if key == "vision_model.embeddings.position_ids" else key


_OLD_ATTENTION = re.compile(
    r"((?:encoder|decoder)\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)(\..+)"
)
_NEW_PROJECTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class _Uninitialised(TorchFunctionMode):
    """Skip the functions of `torch.nn.init`.

    On the meta device they compute nothing, but they import PyTorch's compiler, which takes longer than
    loading a small model.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_on_meta(build: Callable[[], M]) -> M:
    """Build a module whose parameters have names, shapes and dtypes, but no memory."""
    with torch.device("meta"), _Uninitialised():
        return build()


def load_module(
    build: Callable[[], M],
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    names: Names = unet_name,
    dtype: torch.dtype | None = None,
) -> M:
    """Build a module with a file's tensors as its parameters.

    Args:
        build: Builds the module; called under the meta device.
        tensors: Key -> tensor, as from `open_tensors`.
        source: The file, for messages.
        names: Maps the file's keys to the module's.
        dtype: Dtype of floating tensors; None keeps that of the file.

    Returns:
        The module; parameters that were not cast share the memory of `tensors`.

    Raises:
        InvalidCheckpoint: Keys are missing, unexpected, given under two names, or of another shape or kind
            than the module expects; the first ten of each are named, and their number.
    """
    module = build_on_meta(build)
    expected = module.state_dict()

    given: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in tensors.items():
        name = names(key)
        if name is None:
            continue
        if name not in expected or name in given:
            unexpected.append(key)
        else:
            given[name] = tensor
    refuse_unless_fitting(
        source,
        {name: describe(tensor) for name, tensor in expected.items()},
        {name: describe(tensor) for name, tensor in given.items()},
        unexpected,
    )

    if dtype is not None:
        given = {name: cast(t, dtype) if t.is_floating_point() else t for name, t in given.items()}
    module.load_state_dict(given, assign=True)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert not tensor.is_meta, f"{type(module).__name__}.{name} is in no file; compute it in forward"
    return module


def cast(mapped: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mapped tensor in another dtype and release the original's memory; or the tensor itself."""
    if mapped.dtype == dtype:
        return mapped
    copy = mapped.to(dtype)
    release_pages(mapped)
    return copy


def refuse_unless_fitting(
    source: Path,
    expected: Mapping[str, str],
    given: Mapping[str, str],
    unexpected: Iterable[str],
    *,
    model: str = "its config.json",
) -> None:
    """Compare a file's tensors with those that a model requires, each described by kind and shape.

    Args:
        unexpected: Keys of the file that the model does not have.
        model: What requires the tensors, for messages.

    Raises:
        InvalidCheckpoint: As `load_module`.
    """
    wrong = {
        name: f"{name} is {description}, expected {expected[name]}"
        for name, description in given.items()
        if description != expected[name]
    }
    faults = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(ascii(key)[1:-1] for key in unexpected),
        "wrong": [wrong[name] for name in sorted(wrong)],
    }
    if any(faults.values()):
        lists = "; ".join(
            f"{len(names)} {kind}: {_shorten(names)}" for kind, names in faults.items() if names
        )
        raise InvalidCheckpoint(
            f"{source} does not hold the {len(expected)} tensors that {model} calls for; {lists}",
            hint="check that the file is complete and belongs to this model",
        )


def describe(tensor: Tensor | LazyTensor) -> str:
    """Return kind and shape, for `refuse_unless_fitting`."""
    return f"{'floating' if tensor.dtype.is_floating_point else tensor.dtype} {list(tensor.shape)}"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names[:_SHOWN]) + more
