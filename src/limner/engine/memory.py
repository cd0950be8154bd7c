"""Prediction of memory, and of the number of rows that share a forward pass.

The best number of rows is measured per model, latent size and device (`limner tune`), or else estimated.
"""

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast
from weakref import ref

import torch

from limner.backends.base import AuxiliaryNetwork
from limner.backends.tuning import Tuning, rows_estimate
from limner.generation.calls import (
    Call,
    DecodeLatents,
    Denoise,
    EncodeImage,
    EncodeText,
    ReadControl,
    ReadImagePrompt,
)
from limner.model.model import Model
from limner.request.estimate import control_bytes, unet_bytes, vae_bytes
from limner.request.networks import UsedAdapter
from limner.settings import default_cache_dir

_MOST_ROWS = {"cpu": 32, "cuda": 64}
_USABLE_SHARE = 0.9  # usable share of a device's memory


@dataclass(frozen=True)
class Limits:
    """What one device takes at once.

    Attributes:
        memory: Bytes for weights and activations.
        rows: Measured numbers of rows, by `row_key`.
    """

    memory: int
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device, cache_dir: Path | None = None) -> "Limits":
        """Most of the device's memory, and what was measured on this machine.

        Args:
            cache_dir: Folder of the measurements; None is the user's cache.
        """
        tuning = Tuning.stored(default_cache_dir() if cache_dir is None else cache_dir)
        return cls(int(_USABLE_SHARE * device_memory(device)), tuning.rows)

    def rows_of(self, model: Model, height: int, width: int) -> int:
        """Best number of rows of the U-Net at this latent size, at least 2: a guided image has two."""
        measured = self.rows.get(row_key(model, height, width))
        if measured is not None:
            return max(2, measured)
        kind = model.backend.device.type
        estimate = rows_estimate(model.parameters, height, width, kind)
        return max(2, min(_MOST_ROWS[kind], estimate))

    def calls_of(self, model: Model, call: Call) -> int:
        """Best number of calls like this one in a forward pass."""
        if isinstance(call, Denoise):
            return max(1, self.rows_of(model, call.x.shape[2], call.x.shape[3]) // len(call.branches))
        if isinstance(call, EncodeText | ReadImagePrompt):
            return 16
        if isinstance(call, DecodeLatents):
            height, width = call.latents.shape[2:]
        else:
            downscale = model.checkpoint.vae_config.downscale
            height, width = (side // downscale for side in call.image.shape[2:])
        # The autoencoder gains nothing from larger batches, and each row takes as much as many of the U-Net.
        return max(1, self.rows_of(model, height, width) // 8)

    def needs(self, model: Model, call: Call) -> int:
        """Approximate bytes of activations of this call alone."""
        size, facts = element_size(model), model.facts
        match call:
            case Denoise():
                height, width = call.x.shape[2:]
                return len(call.branches) * unet_bytes(facts, height, width, size, len(call.controls))
            case DecodeLatents():
                height, width = call.latents.shape[2:]
                return vae_bytes(facts, height, width, size, call.tiled)
            case EncodeImage():
                height, width = (side // facts.downscale for side in call.image.shape[2:])
                return vae_bytes(facts, height, width, size, call.tiled)
            case ReadControl():
                height, width = call.image.shape[2:]
                return control_bytes(height, width, size)
            case EncodeText() | ReadImagePrompt():
                return 0  # next to nothing compared with the others


def device_memory(device: torch.device) -> int:
    """Bytes of a device's memory; for the CPU, at most the limit of the container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([host, *container_limits()])


def container_limits(root: Path = Path("/")) -> list[int]:
    """Limits in bytes of the memory of this process's control groups (cgroup v2 and v1) and their parents.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # not Linux
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):  # v2 names none
            continue
        base, name = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            if controllers
            else ("sys/fs/cgroup", "memory.max")
        )
        group = PurePosixPath(path.lstrip("/"))
        # Inside a container the mount shows the container's own group as the root.
        for folder in (group, *group.parents):
            try:
                limits.append(int((root / base / folder / name).read_text(encoding="ascii")))
            except (OSError, ValueError):
                continue  # no such group here, or "max"
    return limits


@dataclass(frozen=True)
class Merged:
    """Layers with merged adapters, which count as an auxiliary network of their model.

    Attributes:
        adapters: The adapters.
        bytes: Bytes of the layers.
    """

    adapters: tuple[UsedAdapter, ...]
    bytes: int = field(compare=False)


def weigh(model: Hashable, auxiliary: frozenset[Hashable]) -> int:
    """Bytes of the weights of a model, given as a weak reference, with auxiliary networks and no others."""
    assert isinstance(model, ref)
    known: Model | None = model()
    if known is None:
        return 0
    merged = {one for one in auxiliary if isinstance(one, Merged)}
    weights = known.backend.bytes_with(cast("frozenset[AuxiliaryNetwork]", auxiliary - merged))
    return weights + sum(one.bytes for one in merged) + known.executor.fp32_bytes


def resident_bytes(model: Model) -> int:
    """Bytes of all weights of a model that are in memory."""
    return model.backend.bytes + model.executor.merged_in_memory() + model.executor.fp32_bytes


def idle_bytes(model: Model, at_work: frozenset[Hashable]) -> int:
    """Bytes of the auxiliary networks in memory that are not among `at_work`."""
    idle = model.backend.idle_bytes(cast("frozenset[AuxiliaryNetwork]", at_work))
    return idle + model.executor.merged_in_memory(but=_adapters_of(at_work))


def forget_idle(model: Model, at_work: frozenset[Hashable]) -> None:
    """Drop the auxiliary networks in memory that are not among `at_work`."""
    model.backend.forget_auxiliary(keep=cast("frozenset[AuxiliaryNetwork]", at_work))
    model.executor.forget_merged(but=_adapters_of(at_work))


def _adapters_of(auxiliary: frozenset[Hashable]) -> set[tuple[UsedAdapter, ...]]:
    return {one.adapters for one in auxiliary if isinstance(one, Merged)}


def element_size(model: Model) -> int:
    """Bytes per element of a tensor in forward passes: 4 also in half precision, once a pass was repeated in
    fp32."""
    is_half = model.backend.precision in ("bf16", "fp16")
    return 2 if is_half and not model.executor.fp32_bytes else 4


def row_key(model: Model, height: int, width: int) -> str:
    """Key of a measured number of rows: model geometry, latent size, backend and precision."""
    backend = model.backend
    return f"{model.geometry} {width}x{height} {backend.name} {backend.precision}"
