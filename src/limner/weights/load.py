"""Strict loading: a module takes exactly the tensors that its config calls for, or none.

Modules are built on the meta device, so nothing is allocated or initialised, and the file's mapped tensors
become their parameters: a weight costs memory when it is first used, and a cast when another dtype is wanted.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import InvalidCheckpoint

from .tensors import LazyTensor, let_go

M = TypeVar("M", bound=nn.Module)

# From a key in a file to the parameter's name, or None for a key that is known and has no use.
Names = Callable[[str], str | None]

_SHOWN = 10  # names per kind of fault in a message


def unet_name(key: str) -> str | None:
    return key


def vae_name(key: str) -> str | None:
    """Files saved before diffusers 0.18 have older names for the projections of the middle attention."""
    match = _OLD_ATTENTION.fullmatch(key)
    return f"{match[1]}{_NEW_PROJECTION[match[2]]}{match[3]}" if match else key


def text_encoder_name(key: str) -> str | None:
    """Hub files begin with `text_model.`; transformers 5 saves files that do not."""
    if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        key = f"text_model.{key}"
    # Positions 0, 1, 2 … were stored until transformers 4.31; the logit scale is CLIP's training temperature.
    return None if key in ("text_model.embeddings.position_ids", "logit_scale") else key


def image_encoder_name(key: str) -> str | None:
    """Hub files begin with `vision_model.`; transformers 5 saves files without a projection that do not.
    Positions 0, 1, 2 … were stored until transformers 4.31."""
    if key.startswith(("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")):
        key = f"vision_model.{key}"
    return None if key == "vision_model.embeddings.position_ids" else key


_OLD_ATTENTION = re.compile(
    r"((?:encoder|decoder)\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)(\..+)"
)
_NEW_PROJECTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class _Uninitialised(TorchFunctionMode):
    """Skip the functions of `torch.nn.init`.

    On the meta device they compute nothing, but import PyTorch's compiler, which takes longer than to load a
    small model.
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
    """Build a module and give it a file's tensors as its parameters.

    Args:
        build: makes the module; called under the meta device.
        tensors: key -> tensor, as `open_tensors` gives them.
        source: the file, for messages.
        names: maps the file's keys to the module's.
        dtype: cast floating tensors to it; None keeps what the file holds.

    Returns:
        The module, with parameters that share the memory of `tensors` where nothing was cast.

    Raises:
        InvalidCheckpoint: naming every key that is missing, unexpected, given under two names, or of
            another shape or kind than the module expects (the first ten of each, and their number).
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
    """A mapped tensor in another dtype, the original of which is then no longer in memory; or itself."""
    if mapped.dtype == dtype:
        return mapped
    copy = mapped.to(dtype)
    let_go(mapped)
    return copy


def refuse_unless_fitting(
    source: Path,
    expected: Mapping[str, str],
    given: Mapping[str, str],
    unexpected: Iterable[str],
    *,
    model: str = "its config.json",
) -> None:
    """Compare a file's tensors with those that a model calls for, each described by kind and shape.

    Args:
        unexpected: keys of the file that the model has no place for.
        model: what calls for the tensors, for messages.

    Raises:
        InvalidCheckpoint: as `load_module`.
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
            hint="check that the file is complete, and of the model that it is taken for",
        )


def describe(tensor: Tensor | LazyTensor) -> str:
    """Kind and shape, for `refuse_unless_fitting`."""
    return f"{'floating' if tensor.dtype.is_floating_point else tensor.dtype} {list(tensor.shape)}"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names[:_SHOWN]) + more
