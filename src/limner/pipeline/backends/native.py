"""The networks in PyTorch."""

from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.errors import InvalidRequest
from limner.nn.clip import CLIPTextModel
from limner.nn.layers import attention, attention_in_blocks
from limner.nn.unet import CrossAttention, UNet2DConditionModel
from limner.nn.vae import AutoencoderKL, SelfAttention2D
from limner.pipeline.calls import Call
from limner.pipeline.tuning import Tuning
from limner.weights.checkpoint import Checkpoint, load_text_encoder, load_unet, load_vae

from .base import Precision
from .packed import can_pack, pack

Network = TypeVar("Network", bound=nn.Module)

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NativeBackend:
    """A checkpoint's networks in PyTorch, each read when it is first used.

    On the CPU weights are packed and attention is computed as measured (`Tuning`); on GPUs feature maps are
    channels_last.

    Raises:
        InvalidRequest: a precision that the device does not compute in.
        InvalidCheckpoint: when a network is first used; `read` uses all.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision,
        tuning: Tuning | None = None,
    ) -> None:
        if precision == "fp16" and device.type == "cpu":
            raise InvalidRequest(
                "fp16 is not computed on the CPU, where it is hundreds of times slower", hint="use bf16"
            )
        if precision not in DTYPES:
            raise InvalidRequest(
                f"precision is {precision!r}, which PyTorch does not run this model in",
                hint=f"use {', '.join(DTYPES)}, or --backend openvino for int8",
            )
        self.checkpoint, self.device, self.precision = checkpoint, device, precision
        self._dtype = DTYPES[precision]
        self._tuning = Tuning.stored() if tuning is None else tuning

    def read(self) -> "NativeBackend":
        """Read every network now."""
        _ = self.text_encoder, self.unet, self.vae
        return self

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        return self._prepared(load_text_encoder(self.checkpoint, self._dtype))

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return self._prepared(load_unet(self.checkpoint, self._dtype))

    @cached_property
    def vae(self) -> AutoencoderKL:
        return self._prepared(load_vae(self.checkpoint, self._dtype))

    def _prepared(self, network: Network) -> Network:
        """On its device, in the form that is fastest there."""
        network = network.to(self.device).eval().requires_grad_(False)
        if self.device.type != "cpu":
            nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network
        for module in network.modules():
            if isinstance(module, CrossAttention | SelfAttention2D):
                module.attend = self._attend
        return pack(network) if can_pack() else network

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        in_blocks = self._tuning.attends_in_blocks(self.precision, q.shape[1] * k.shape[1])
        return (attention_in_blocks if in_blocks else attention)(q, k, v, heads)

    @cached_property
    def bytes(self) -> int:
        return self.checkpoint.parameters * self._dtype.itemsize

    def refusal(self, call: Call) -> str | None:
        return None

    def encode_text(self, ids: Tensor, clip_skip: int) -> Tensor:
        hidden: Tensor = self.text_encoder(ids.to(self.device), clip_skip)[0]
        return hidden.float().cpu()

    def denoise(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        keep: bool = False,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        inputs = self._in(x), timesteps.to(self.device), self._in(context)
        if deep is not None:
            return self.unet.forward_reusing(*inputs, deep).float().cpu(), None
        if keep:
            output, deep = self.unet.forward_keeping(*inputs)
            return output.float().cpu(), deep
        return self.unet(*inputs).float().cpu(), None

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(self._in(latents))
        return images.float().cpu()

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.vae.encode(self._in(images))
        return mean.float().cpu(), logvar.float().cpu()

    def _in(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self._dtype)
