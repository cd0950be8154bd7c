"""The torch backend: runs a checkpoint's networks in PyTorch."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from threading import RLock
from typing import cast

import torch
from torch import Tensor

from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.errors import InvalidRequest
from limner.generation.calls import Call
from limner.nn.controlnet import ControlNetModel
from limner.nn.unet import Conditions
from limner.request import Tiling
from limner.request.networks import UsedControl
from limner.weights.checkpoint import Checkpoint

from .base import Adapters, AttentionName, AuxiliaryNetwork, ControlRows, OffloadName, Precision
from .invariance import PAIR, RowBlocks
from .networks import Networks
from .packed import can_pack, linear_layers
from .tuning import NEVER, Tuning

_COMPILED = frozenset({"pooled", "sizes", "guidance"})  # conditions of forward passes that are compiled


class NativeBackend:
    """A checkpoint's networks in PyTorch.

    On the CPU rows are batch invariant (`RowBlocks`). Threads may share a backend: a forward pass changes no
    state but weights that are packed or moved.

    Args:
        compiled: Compile the U-Net, for GPUs: captured as CUDA graphs for batch sizes of powers of two, to
            which batches are padded.
        tuning, blocks, attention, offload: As `Networks`.

    Raises:
        InvalidRequest: A precision that the device does not compute in, or an option of GPUs for the CPU.
        InvalidCheckpoint: Raised when a network is first used; `read` uses all.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision,
        tuning: Tuning | None = None,
        blocks: RowBlocks | None = None,
        *,
        compiled: bool = False,
        attention: AttentionName = "auto",
        offload: OffloadName = "none",
    ) -> None:
        self.networks = Networks(
            checkpoint, device, precision, tuning, blocks, attention=attention, offload=offload
        )
        if compiled and device.type == "cpu":
            raise InvalidRequest("compiled is for GPUs; this model runs on the CPU", hint="leave it out")
        if compiled and offload != "none":
            raise InvalidRequest(
                "`compiled` and `offload` cannot be combined",
                hint="choose one of them",
                fields=("compiled", "offload"),
            )
        self.compiled = compiled
        # Held during forward passes that must not overlap: offloaded networks replace each other on the
        # device, and CUDA graphs write to fixed buffers.
        self._exclusive: AbstractContextManager[object] = (
            RLock() if compiled or offload != "none" else nullcontext()
        )

    @property
    def device(self) -> torch.device:
        return self.networks.device

    @property
    def precision(self) -> Precision:
        return self.networks.precision

    def read(self) -> "NativeBackend":
        """Read every network now."""
        self.networks.read()
        return self

    def adapted(self, adapters: Adapters) -> "NativeBackend":
        return _DerivedBackend(self, self.networks.adapted(adapters))

    def seamless(self, axes: Tiling) -> "NativeBackend":
        if axes not in self._seamless:
            self._seamless[axes] = _DerivedBackend(self, self.networks.seamless(axes))
        return self._seamless[axes]

    @cached_property
    def _seamless(self) -> "dict[Tiling, NativeBackend]":
        return {}

    @cached_property
    def rowwise(self) -> frozenset[str]:
        return linear_layers(self.networks.unet)

    @cached_property
    def _compiled_unet(self) -> Callable[..., Tensor]:
        return torch.compile(self.networks.unet, mode="reduce-overhead", dynamic=False)

    @property
    def bytes(self) -> int:
        return self.networks.bytes

    def bytes_with(self, auxiliary: Collection[AuxiliaryNetwork]) -> int:
        return self.networks.bytes_with(auxiliary)

    def idle_bytes(self, in_use: Collection[AuxiliaryNetwork] = ()) -> int:
        return self.networks.idle_bytes(in_use)

    def forget_auxiliary(self, keep: Collection[AuxiliaryNetwork] = ()) -> None:
        self.networks.auxiliary.forget_except(keep)

    @property
    def details(self) -> dict[str, str | int]:
        first = self.networks.first_in_blocks
        attention: dict[str, str | int] = {
            "attention": "fused" if first == NEVER else f"in blocks from {first} scores"
        }
        if self.device.type == "cpu":
            return attention
        return {
            **({"compiled": "yes"} if self.compiled else {}),
            **(attention if first < NEVER else {}),
            "batch_invariant": "no",
        }

    def refusal(self, call: Call) -> str | None:
        return None

    def encode_text(
        self,
        ids: Tensor,
        clip_skip: int,
        *,
        part: str = "text_encoder",
        final_norm: bool = True,
        learned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        extra = None if learned is None else learned.to(self.device)

        def encode(ids: Tensor) -> tuple[Tensor, Tensor]:
            network = self.networks.on_device(self.networks.text_encoders[part])
            hidden, pooled = network(ids.to(self.device), clip_skip, final_norm=final_norm, learned=extra)
            return hidden.float().cpu(), pooled.float().cpu()

        with self._exclusive:
            hidden, pooled = self._row_at_a_time(encode, ids)
            return hidden, pooled

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
        if self._in_pairs and len(x) != PAIR:
            return self._denoise_in_pairs(x, timesteps, context, conditions, controls, keep, deep)
        given = (conditions or Conditions()).to(self.device, self.networks.dtype)
        inputs = self._to_device(x), timesteps.to(self.device), self._to_device(context)
        with self._exclusive:
            output, deep_features = self._run_unet(inputs, given, controls, keep, deep)
        if self.networks.blocks is not None:
            self.networks.blocks.store()
        return output.float().cpu(), deep_features

    def _run_unet(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        given: Conditions,
        controls: Sequence[ControlRows],
        keep: bool,
        deep: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if controls:
            given = replace(given, residuals=self._residuals(controls, *inputs, given))
        unet = self.networks.on_device(self.networks.unet)
        if deep is not None:
            return unet.forward_reusing(*inputs, deep, given), None
        if keep:
            return unet.forward_keeping(*inputs, given)
        if self.compiled and given.present <= _COMPILED:
            rows = len(inputs[0])
            padded = _padded(torch.arange(rows, device=self.device))
            output = self._compiled_unet(*(tensor[padded] for tensor in inputs), given.rows(padded))
            return output[:rows].clone(), None  # the next pass writes to the same memory
        return unet(*inputs, given), None

    @cached_property
    def _in_pairs(self) -> bool:
        """Whether the U-Net runs in batches of two: without packed layers nothing else is batch invariant."""
        return self.device.type == "cpu" and not can_pack(self.networks.dtype)

    def _denoise_in_pairs(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        conditions: Conditions | None,
        controls: Sequence[ControlRows],
        keep: bool,
        deep: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        outputs = list[tuple[Tensor, Tensor | None]]()
        for first in range(0, len(x), PAIR):
            pair = torch.arange(first, first + PAIR).clamp(max=len(x) - 1)
            outputs.append(
                self.denoise(
                    x[pair],
                    timesteps[pair],
                    context[pair],
                    None if conditions is None else conditions.rows(pair),
                    controls=[control.of(pair) for control in controls],
                    keep=keep,
                    deep=None if deep is None else deep[pair],
                )
            )
        output = torch.cat([one for one, _ in outputs])[: len(x)]
        kept = [features for _, features in outputs if features is not None]
        return output, torch.cat(kept)[: len(x)] if kept else None

    def _residuals(
        self,
        controls: Sequence[ControlRows],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        conditions: Conditions,
    ) -> list[Tensor]:
        """The summed residuals of ControlNets for the U-Net's skips and its middle block, for all rows."""
        total = list[Tensor]()
        given = Conditions(conditions.pooled, conditions.sizes)
        for control in controls:
            network = cast("ControlNetModel", self.networks.on_device(self.networks.control(control.used)))
            which = control.weights.any(1).nonzero().flatten().to(self.device)
            if not len(which):
                continue
            residuals = network(
                x[which, : network.config.in_channels],  # any channels after the latents' are the U-Net's
                timesteps[which],
                context[which],
                self._to_device(control.embeddings)[which],
                given.rows(which),
            )
            weights = self._to_device(control.weights)[which].T[
                :, :, None, None, None
            ]  # [residuals, r, 1, 1, 1]
            spread = [
                residual.new_zeros(len(x), *residual.shape[1:]).index_copy(0, which, residual * weight)
                for residual, weight in zip(residuals, weights, strict=True)
            ]
            total = [a + b for a, b in zip(total, spread, strict=True)] if total else spread
        return total

    def read_control(self, used: UsedControl, images: Tensor) -> Sequence[Tensor]:
        def read(images: Tensor) -> list[Tensor]:
            network, pixels = self.networks.on_device(self.networks.control(used)), self._to_device(images)
            features = [network.embed(pixels)] if isinstance(network, ControlNetModel) else network(pixels)
            return [tensor.float().cpu() for tensor in features]

        with self._exclusive:
            return self._row_at_a_time(read, images)

    def encode_image_prompt(
        self, adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None
    ) -> Tensor:
        takes_pooled = adapter.config.form == "linear"
        with self._exclusive:
            if pixels is None and takes_pooled:
                features = torch.zeros(1, adapter.config.image_channels)
            else:
                side = encoder.config.image_size
                given = torch.zeros(1, 3, side, side) if pixels is None else pixels
                network = self.networks.on_device(self.networks.auxiliary_network(encoder, encoder.load))
                hidden, pooled = network(self._to_device(given), clip_skip=2)
                features = pooled if takes_pooled else hidden
            projection = self.networks.on_device(self.networks.auxiliary_network(adapter, adapter.load))
            keys_and_values: Tensor = projection(self._to_device(features))
            return keys_and_values

    def decode(self, latents: Tensor) -> Tensor:
        def decode(latents: Tensor) -> list[Tensor]:
            return [self.networks.on_device(self.networks.vae).decode(self._to_device(latents)).float().cpu()]

        with self._exclusive:
            [images] = self._row_at_a_time(decode, latents)
            return images

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        def encode(images: Tensor) -> list[Tensor]:
            return [
                tensor.float().cpu()
                for tensor in self.networks.on_device(self.networks.vae).encode(self._to_device(images))
            ]

        with self._exclusive:
            mean, logvar = self._row_at_a_time(encode, images)
            return mean, logvar

    def _row_at_a_time(self, run: Callable[[Tensor], Sequence[Tensor]], rows: Tensor) -> Sequence[Tensor]:
        """Run a network that gains little from larger batches: on the CPU row by row, which makes it batch
        invariant."""
        if self.device.type != "cpu":
            return run(rows)
        parts = [run(row) for row in torch.split(rows, 1)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.networks.dtype)


class _DerivedBackend(NativeBackend):
    """A backend whose networks share weights with those of another, and its lock."""

    def __init__(self, base: NativeBackend, networks: Networks) -> None:
        self.networks, self.compiled, self._exclusive = networks, base.compiled, base._exclusive


def _padded(rows: Tensor) -> Tensor:
    """Rows [B, …] padded with copies of the last one to a power of two, so that few sizes are compiled."""
    missing = (1 << (len(rows) - 1).bit_length()) - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
