"""Settings of a pipeline: offloading, tiling, slicing, and values of the call in progress."""

from collections.abc import Mapping
from typing import Any

import torch

from limner.backends.base import OffloadName
from limner.errors import InvalidRequest

from .parts import Parts


class Settings:
    """Settings of a pipeline, under diffusers' names."""

    _parts: Parts
    _guidance_scale: float
    _guidance_rescale: float
    _clip_skip: int | None
    _cross_attention_kwargs: Mapping[str, Any] | None
    _num_timesteps: int
    _interrupt: bool
    _tiled: bool
    _sliced: bool
    _progress: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Device of the pipeline."""
        return self._parts.device

    _execution_device = device  # name used by community pipelines

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the pipeline."""
        return self._parts.dtype

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Set options of the tqdm progress bar, such as disable=True."""
        self._progress = settings

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """No effect: attention never stores the full score matrix."""

    def disable_attention_slicing(self) -> None:
        """No effect; see `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: None = None) -> None:
        """No effect; see `enable_attention_slicing`."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """No effect; see `enable_attention_slicing`."""

    def enable_vae_slicing(self) -> None:
        """Decode one image at a time."""
        self._sliced = True

    def disable_vae_slicing(self) -> None:
        """Decode as many images together as fit into memory."""
        self._sliced = False

    def enable_vae_tiling(self) -> None:
        """Decode images in tiles."""
        self._tiled = True

    def disable_vae_tiling(self) -> None:
        """Decode images whole if they fit into memory."""
        self._tiled = False

    def fuse_qkv_projections(self) -> None:
        """No effect: projections are fused automatically where that is faster."""

    def unfuse_qkv_projections(self) -> None:
        """No effect; see `fuse_qkv_projections`."""

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the running network on the GPU, the others in CPU memory; no effect on the CPU.

        Raises:
            InvalidRequest: There is no GPU.
        """
        self._offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the running block on the GPU; otherwise as `enable_model_cpu_offload`."""
        self._offload("sequential", gpu_id, device)

    def _offload(self, what: OffloadName, gpu_id: int | None, device: str | torch.device) -> None:
        where = str(device) if gpu_id is None else f"{device}:{gpu_id}"
        if where.startswith("cuda") and not torch.cuda.is_available():
            raise InvalidRequest(
                "offloading needs a GPU, and this machine has none", hint="leave it out on a CPU"
            )
        self._parts.move(where, None)
        self._parts.offload = "none" if self.device.type == "cpu" else what

    def maybe_free_model_hooks(self) -> None:
        """No effect: there are no hooks."""

    def remove_all_hooks(self) -> None:
        """No effect: there are no hooks."""

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the call in progress; a callback can set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """Guidance rescale of the call in progress."""
        return self._guidance_rescale

    @property
    def clip_skip(self) -> int | None:
        """Clip skip of the call in progress."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """`cross_attention_kwargs` of the call in progress."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of U-Net calls of the pipeline call in progress."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress stops after this step; a callback can set `_interrupt`."""
        return self._interrupt
