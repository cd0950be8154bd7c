"""What a model needs of whatever runs its networks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from limner.adapters.adapter import Adapter
from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.pipeline.calls import Call
from limner.pipeline.controlling import UsedControl
from limner.request import Tiling

Guest = UsedControl | IPAdapterFile | ImageEncoderFile
"""A network beside the checkpoint's, which a request names."""

Adapters = Sequence[tuple[Adapter, Mapping[str, float]]]
"""Adapters, each with its weight by part, as `patched_weights` takes them."""

Terms = Mapping[str, tuple[Tensor, Tensor]]
"""Module -> down [R, rank, in] and up [R, out, rank] of each row: a LoRA, its scale included."""


@dataclass(frozen=True, eq=False)
class ControlRows:
    """A ControlNet at work on the rows of a forward pass.

    Attributes:
        used: which one.
        embeddings: [R, C, h, w].
        weights: of what it adds, [R, residuals].
    """

    used: UsedControl
    embeddings: Tensor
    weights: Tensor

    def of(self, which: Tensor) -> "ControlRows":
        """Some of the rows."""
        return ControlRows(self.used, self.embeddings[which], self.weights[which])


Precision = Literal["fp32", "bf16", "fp16", "int8"]
AttentionName = Literal["auto", "fused", "sliced"]
OffloadName = Literal["none", "model", "sequential"]


class Backend(Protocol):
    """The networks of one checkpoint, ready to run.

    It knows nothing of prompts, sigmas or guidance. Tensors go in and come out as fp32 on the CPU; device and
    dtype inside are its own affair. Rows of a batch do not influence each other, rounding apart.
    """

    @property
    def name(self) -> str:
        """As a picture's record says it: "torch", "openvino"."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def bytes(self) -> int:
        """What its weights take of the device's memory."""

    def bytes_with(self, guests: Collection[Guest]) -> int:
        """What its weights will take with these networks beside the checkpoint's and no others."""

    def idle_bytes(self, at_work: Collection[Guest] = ()) -> int:
        """What of `bytes` is for networks beside the checkpoint's that are none of these."""

    def forget_guests(self, but: Collection[Guest] = ()) -> None:
        """Let go of networks beside the checkpoint's, save some. They are read again when they are needed.

        Any thread may call this.
        """

    @property
    def details(self) -> Mapping[str, str | int]:
        """What else decides about the bits of its pictures, for their records."""

    def refusal(self, call: Call) -> str | None:
        """Why it cannot answer such a call, in a clause; None if it can."""

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
            clip_skip, final_norm, learned: as `CLIPTextModel.forward`.
        """

    def denoise(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
        terms: Terms | None = None,
        controls: Sequence[ControlRows] = (),
        features: Sequence[Tensor] = (),
        pictures: Sequence[Tensor] = (),
        keep: bool = False,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The U-Net's output [B, C, h, w] for scaled latents x, and its deep features if they are to be kept.

        Args:
            timesteps: [B].
            context: [B, T, C].
            pooled, sizes, guidance: as `UNet2DConditionModel.forward`, for the models that want them.
            terms: what the adapters of each row add to modules of `rowwise`.
            controls: ControlNets that add to its skips and its middle.
            features: what is added to the levels on the way down, [B, C, h, w] each.
            pictures: keys and values [B, 2, T, S], as `see` gives them, of each image prompt.
            deep: features kept at an earlier step; the blocks that made them are not run.
        """

    def read_control(self, used: UsedControl, images: Tensor) -> Sequence[Tensor]:
        """Pictures [B, K, H, W] in [0, 1] -> what a control network makes of them, once for all steps."""

    def see(self, adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None) -> Tensor:
        """What an IP-Adapter makes of pictures: keys and values [B, 2, T, S], of all cross-attentions side by
        side.

        Args:
            pixels: [B, 3, side, side], as the encoder takes them; None for no picture, B then being 1.

        Returns:
            on its device, in its dtype.
        """

    @property
    def rowwise(self) -> frozenset[str]:
        """The modules of the U-Net that the adapters of single rows can change."""

    def adapted(self, adapters: Adapters) -> "Backend":
        """The same networks, changed by adapters; what they leave alone is shared, and nothing here changes.

        Raises:
            UnsupportedModel: it cannot change weights.
        """

    def seamless(self, axes: Tiling) -> "Backend":
        """The same networks, for pictures whose ends meet along these axes; nothing here changes.

        Raises:
            UnsupportedModel: it cannot.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] as the autoencoder knows them -> pictures [B, 3, H, W]."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] -> mean and log-variance [B, C, h, w], as the autoencoder knows them."""
