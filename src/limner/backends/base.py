"""The interface of backends, which run the networks of a checkpoint."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from limner.adapters.adapter import Adapter
from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.generation.calls import Call
from limner.nn.unet import Conditions
from limner.request import Tiling
from limner.request.networks import UsedControl

AuxiliaryNetwork = UsedControl | IPAdapterFile | ImageEncoderFile
"""A network that a request names in addition to the checkpoint's own."""

Adapters = Sequence[tuple[Adapter, Mapping[str, float]]]
"""Adapters, each with its weight by part, as `patched_weights` takes them."""


@dataclass(frozen=True, eq=False)
class ControlRows:
    """A ControlNet applied to the rows of a forward pass.

    Attributes:
        used: The network.
        embeddings: Embeddings of the control images [R, C, h, w].
        weights: Weights of the residuals [R, residuals].
    """

    used: UsedControl
    embeddings: Tensor
    weights: Tensor

    def of(self, which: Tensor) -> "ControlRows":
        """The ControlNet on some of the rows."""
        return ControlRows(self.used, self.embeddings[which], self.weights[which])


Precision = Literal["fp32", "bf16", "fp16", "int8"]
AttentionName = Literal["auto", "fused", "sliced"]
OffloadName = Literal["none", "model", "sequential"]


class Backend(Protocol):
    """The networks of one checkpoint, ready to run.

    A backend knows nothing of prompts, sigmas or guidance. Tensors go in and come out as fp32 on the CPU;
    device and dtype are internal. Rows of a batch do not influence each other, and on the CPU the torch
    backend is batch invariant: a row has the same bits in any batch.
    """

    @property
    def name(self) -> str:
        """ "torch" or "openvino", as in records."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def bytes(self) -> int:
        """Bytes of weights on the device."""

    def bytes_with(self, auxiliary: Collection[AuxiliaryNetwork]) -> int:
        """Bytes of weights on the device with these auxiliary networks and no others."""

    def idle_bytes(self, in_use: Collection[AuxiliaryNetwork] = ()) -> int:
        """The part of `bytes` that auxiliary networks other than these take."""

    def forget_auxiliary(self, keep: Collection[AuxiliaryNetwork] = ()) -> None:
        """Drop auxiliary networks except those to keep. They are read again when they are needed.

        Any thread may call this.
        """

    @property
    def details(self) -> Mapping[str, str | int]:
        """Whatever else the bits of its images depend on, for their records: "batch_invariant" is "no" where
        they may depend on the other rows of a batch."""

    def refusal(self, call: Call) -> str | None:
        """Why the backend cannot execute a call, as a clause ("does not support tiling"); None if it can."""

    def encode_text(
        self,
        ids: Tensor,
        clip_skip: int,
        *,
        part: str = "text_encoder",
        final_norm: bool = True,
        learned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] -> hidden states [B, T, C] and pooled embeddings [B, P] of a text encoder.

        Args:
            part: Name of the text encoder in the checkpoint.
            clip_skip, final_norm, learned: As `CLIPTextModel.forward`.
        """

    def denoise(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        conditions: Conditions | None = None,
        *,
        controls: Sequence[ControlRows] = (),
        keep: bool = False,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The U-Net's output [B, C, h, w] for scaled latents x, and its deep features with `keep`.

        Args:
            timesteps: [B].
            context: [B, T, C].
            conditions: Other inputs of the U-Net. Low-rank terms are of layers named in `rowwise`.
            controls: ControlNets, whose residuals are summed.
            keep: Return the deep features, for later steps.
            deep: Deep features of an earlier step; the blocks that computed them are not run.
        """

    def read_control(self, used: UsedControl, images: Tensor) -> Sequence[Tensor]:
        """Control images [B, K, H, W] in [0, 1] -> what all steps share: a ControlNet's embedding, or a
        T2I-Adapter's features."""

    def encode_image_prompt(
        self, adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None
    ) -> Tensor:
        """The keys and values of an IP-Adapter for images, as `Conditions.image_prompts`.

        Args:
            pixels: Images [B, 3, side, side], as the encoder takes them; None for no image, with B = 1.

        Returns:
            [B, 2, T, S] on the device, in its dtype.
        """

    @property
    def rowwise(self) -> frozenset[str]:
        """Names of the U-Net's layers that take low-rank terms for each row of a batch."""

    def adapted(self, adapters: Adapters) -> "Backend":
        """A backend with adapters merged into the weights; unchanged layers are shared.

        Raises:
            UnsupportedModel: The backend cannot change weights.
        """

    def seamless(self, axes: Tiling) -> "Backend":
        """A backend for images that tile along these axes; weights are shared.

        Raises:
            UnsupportedModel: The backend does not support tiling.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents [B, C, h, w] -> images [B, 3, H, W]."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> mean and log-variance [B, C, h, w], unscaled."""
