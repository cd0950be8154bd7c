"""A checkpoint's networks as PyTorch modules, in the form that is fastest on a device.

On CPUs weights are packed for oneDNN, on GPUs feature maps are channels_last. Copies with merged adapters or
circular padding share every weight that they do not change.
"""

from collections.abc import Callable, Collection, Hashable
from functools import cached_property, partial
from typing import TypeVar, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limner.adapters.adapter import patched_weights
from limner.errors import InvalidRequest
from limner.nn.clip import CLIPTextModel
from limner.nn.controlnet import ControlNetModel
from limner.nn.layers import attention, attention_in_blocks
from limner.nn.transformer import CrossAttention
from limner.nn.unet import UNet2DConditionModel
from limner.nn.vae import AutoencoderKL, SelfAttention2D
from limner.request import Tiling
from limner.request.networks import UsedControl
from limner.settings import default_cache_dir
from limner.weights.checkpoint import Checkpoint, load_text_encoder, load_unet, load_vae
from limner.weights.control import read_control
from limner.weights.load import build_on_meta

from .auxiliary import AuxiliaryNetworks
from .base import Adapters, AttentionName, AuxiliaryNetwork, OffloadName, Precision
from .invariance import RowBlocks
from .offload import LARGEST, offload_blocks
from .packed import can_pack, pack
from .seamless import seamless
from .tuning import NEVER, Tuning, row_blocks_file

Network = TypeVar("Network", bound=nn.Module)

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Networks:
    """A checkpoint's networks, each read when it is first used.

    Args:
        tuning: Measurements of this machine; None for those in the user's cache.
        blocks: Batch invariance on the CPU; None for verdicts in the user's cache.
        attention: Kernel of attention: "fused", "sliced", or "auto" for the faster one as measured.
        offload: Weights that wait in main memory while they do not run: "none", of each "model", or of each
            block in turn, "sequential".

    Raises:
        InvalidRequest: A precision that the device does not compute in, or an option of GPUs for the CPU.
        InvalidCheckpoint: Raised when a network is first used; `read` uses all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision,
        tuning: Tuning | None = None,
        blocks: RowBlocks | None = None,
        *,
        attention: AttentionName = "auto",
        offload: OffloadName = "none",
    ) -> None:
        _check(device, precision, attention, offload)
        self.checkpoint, self.device, self.precision = checkpoint, device, precision
        self.attention, self.offload = attention, offload
        self.dtype = DTYPES[precision]
        self.auxiliary = AuxiliaryNetworks()
        self.tuning = Tuning.stored(default_cache_dir()) if tuning is None else tuning
        if blocks is None:
            blocks = RowBlocks(row_blocks_file(default_cache_dir()))
        self.blocks = blocks if device.type == "cpu" else None
        self._on_device: nn.Module | None = None  # the one network there, with offload "model"

    def read(self) -> None:
        """Read every network now."""
        _ = self.text_encoders, self.unet, self.vae

    def adapted(self, adapters: Adapters) -> "Networks":
        """Networks with adapters merged into the weights."""
        return _AdaptedNetworks(self, adapters)

    def seamless(self, axes: Tiling) -> "Networks":
        """Networks for images that tile along these axes."""
        return _SeamlessNetworks(self, axes)

    @cached_property
    def text_encoders(self) -> dict[str, CLIPTextModel]:
        return {
            part: self.prepared(load_text_encoder(self.checkpoint, part=part))
            for part in self.checkpoint.text_configs
        }

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return self.prepared(load_unet(self.checkpoint), self.blocks)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return self.prepared(load_vae(self.checkpoint))

    def control(self, used: UsedControl) -> nn.Module:
        """A control network, from the cache of auxiliary networks."""
        return self.auxiliary_network(used, lambda: read_control(used.path).load(self.dtype))

    def auxiliary_network(self, key: Hashable, load: Callable[[], nn.Module]) -> nn.Module:
        """The auxiliary network of a key; `load` reads it if it is not in the cache."""

        def read() -> tuple[nn.Module, int]:
            network = load()
            # Counted before packing: packed weights are no parameters.
            size = sum(parameter.numel() for parameter in network.parameters()) * self.dtype.itemsize
            blocks = self.blocks if isinstance(network, ControlNetModel) else None
            return self.prepared(network, blocks), size

        return self.auxiliary.get(key, read)

    def prepared(self, network: Network, blocks: RowBlocks | None = None) -> Network:
        """The network on its device, in the form that is fastest there.

        Args:
            blocks: Batch invariance, for networks that run at any batch size.
        """
        network = network.eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, CrossAttention | SelfAttention2D):
                module.attend = partial(_attend, self.first_in_blocks, blocks)
            elif isinstance(module, UNet2DConditionModel) and blocks is not None:
                module.run_low_rank = blocks
        if self.device.type != "cpu":
            network.to(self.dtype)
            if self.offload == "none":
                network.to(self.device)
            nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.offload == "sequential":
                offload_blocks(network, lambda weight: weight.to(self.device))
            return network
        return pack(network, self.dtype, blocks) if can_pack(self.dtype) else network.to(self.dtype)

    @cached_property
    def first_in_blocks(self) -> int:
        """Number of scores of one head from which attention is computed in blocks."""
        if self.attention == "auto":
            return self.tuning.first_in_blocks(self.precision) if self.device.type == "cpu" else NEVER
        return 0 if self.attention == "sliced" else NEVER

    def on_device(self, network: Network) -> Network:
        """The network, moved to the device in place of the one there if networks take turns."""
        if self.offload == "model" and network is not self._on_device:
            if self._on_device is not None:
                self._on_device.to("cpu")
            self._on_device = network.to(self.device)
        return network

    @property
    def bytes(self) -> int:
        """Bytes of weights on the device."""
        return self.bytes_with(()) + self.idle_bytes()

    @property
    def bytes_read(self) -> int:
        """Bytes of the checkpoint's networks that have been read so far; all of them after `read`."""
        parts = {"unet": ["unet"], "vae": ["vae"], "text_encoders": [*self.checkpoint.text_configs]}
        counts = self.checkpoint.parameters_by_part
        read = [part for network, own in parts.items() if network in vars(self) for part in own]
        return sum(counts[part] for part in read) * self.dtype.itemsize

    def bytes_with(self, auxiliary: Collection[AuxiliaryNetwork]) -> int:
        """Bytes of weights on the device with these auxiliary networks and no others."""
        counts = [*self.checkpoint.parameters_by_part.values(), *(one.parameters for one in auxiliary)]
        if self.offload == "sequential":
            return min(max(counts), LARGEST) * self.dtype.itemsize
        return (max(counts) if self.offload == "model" else sum(counts)) * self.dtype.itemsize

    def idle_bytes(self, in_use: Collection[AuxiliaryNetwork] = ()) -> int:
        """Bytes of auxiliary networks other than these."""
        return 0 if self.offload != "none" else self.auxiliary.bytes_except(in_use)


class _DerivedNetworks(Networks):
    """Networks that share most of their weights with others.

    They have the base's cache of auxiliary networks, and take turns with it on the device.
    """

    def __init__(self, base: Networks) -> None:
        super().__init__(
            base.checkpoint,
            base.device,
            base.precision,
            base.tuning,
            base.blocks,
            attention=base.attention,
            offload=base.offload,
        )
        self._base, self.auxiliary = base, base.auxiliary

    def control(self, used: UsedControl) -> nn.Module:
        return self._base.control(used)

    def on_device(self, network: Network) -> Network:
        return self._base.on_device(network)


class _AdaptedNetworks(_DerivedNetworks):
    """Networks with adapters merged; they own only the layers that the adapters change."""

    def __init__(self, base: Networks, adapters: Adapters) -> None:
        super().__init__(base)
        self._adapters, self._own_bytes = adapters, 0

    @cached_property
    def text_encoders(self) -> dict[str, CLIPTextModel]:
        return {
            part: self._merged(part, network, partial(CLIPTextModel, network.config))
            for part, network in self._base.text_encoders.items()
        }

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return self._merged("unet", self._base.unet, partial(UNet2DConditionModel, self._base.unet.config))

    @property
    def vae(self) -> AutoencoderKL:
        return self._base.vae

    @property
    def bytes(self) -> int:
        """Bytes of their own layers."""
        return self._own_bytes

    def _merged(self, part: str, base: Network, build: Callable[[], Network]) -> Network:
        """A network with the adapters in its weights; the base's own if they do not change it."""
        stored = self.checkpoint.tensors(part)
        changed = patched_weights(self._adapters, part, lambda name: stored[name].float())
        if not changed:
            return base
        # Weight and bias go together: the shared layer may be packed, where they cannot be taken apart.
        for name in list(changed):
            layer = name.rpartition(".")[0]
            for key in (f"{layer}.weight", f"{layer}.bias"):
                if key in stored:
                    changed.setdefault(key, stored[key])
        own = {name: tensor.to(self.dtype) for name, tensor in changed.items()}
        self._own_bytes += sum(tensor.nbytes for tensor in own.values())
        network = build_on_meta(build)
        network.load_state_dict(own, strict=False, assign=True)
        _share(network, base)
        return self.prepared(network, self.blocks if part == "unet" else None)


class _SeamlessNetworks(_DerivedNetworks):
    """Networks with circular padding, for seamlessly tileable images. They share all weights."""

    def __init__(self, base: Networks, axes: Tiling) -> None:
        super().__init__(base)
        self._axes = axes
        # Keyed by the base's networks, which the cache of auxiliary networks may drop.
        self._controls = WeakKeyDictionary[nn.Module, nn.Module]()

    def adapted(self, adapters: Adapters) -> Networks:
        return self._base.adapted(adapters).seamless(self._axes)

    @property
    def text_encoders(self) -> dict[str, CLIPTextModel]:
        return self._base.text_encoders

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return seamless(self._base.unet, self._axes)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return seamless(self._base.vae, self._axes)

    def control(self, used: UsedControl) -> nn.Module:
        network = self._base.control(used)
        if network not in self._controls:
            self._controls[network] = seamless(network, self._axes)
        return self._controls[network]

    @property
    def bytes(self) -> int:
        return self._base.bytes


def _check(device: torch.device, precision: str, attention: str, offload: str) -> None:
    """Raise InvalidRequest for an option that is unknown, or that the device does not have."""
    if precision == "fp16" and device.type == "cpu":
        raise InvalidRequest(
            "fp16 is not computed on the CPU, where it is hundreds of times slower", hint="use bf16"
        )
    if precision not in DTYPES:
        raise InvalidRequest(
            f"precision is {precision!r}; the torch backend runs {', '.join(DTYPES)}",
            hint="use one of these, or `backend=openvino` for int8",
        )
    for name, value, known in (("attention", attention, AttentionName), ("offload", offload, OffloadName)):
        if value not in get_args(known):
            raise InvalidRequest(f"{name} is {value!r}; expected {', '.join(get_args(known))}")
    if device.type == "cpu" and offload != "none":
        raise InvalidRequest("offload is for GPUs; this model runs on the CPU", hint="leave it out")


def _attend(
    first_in_blocks: int, blocks: RowBlocks | None, q: Tensor, k: Tensor, v: Tensor, heads: int
) -> Tensor:
    in_blocks = q.shape[1] * k.shape[1] >= first_in_blocks
    operator = partial(attention_in_blocks if in_blocks else attention, heads=heads)
    if blocks is None:
        return operator(q, k, v)
    return blocks(operator, f"attention of {heads} heads{' in blocks' * in_blocks}", q, k, v)


def _share(network: nn.Module, base: nn.Module) -> None:
    """Replace modules that have no weights yet by those of `base`."""
    for name, child in network.named_children():
        if all(parameter.is_meta for parameter in child.parameters()):
            setattr(network, name, getattr(base, name))
        elif list(child.children()):
            _share(child, getattr(base, name))
