"""The OpenVINO backend, faster than PyTorch on most CPUs: compiles a checkpoint's graphs and runs them.

A graph takes any batch size, height, width and length of text. Compiled for a single shape it is an eighth
faster on a CPU with AMX, and a quarter in a small model, but it then holds weights of its own. So the U-Net
has one such graph, for one guided image of the model's native size. The shape alone decides which graph runs,
so the bits of an image do not depend on what was generated before it.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.errors import InvalidRequest, UnsupportedModel
from limner.generation.calls import Call, Denoise, ReadControl, ReadImagePrompt
from limner.nn.unet import Conditions, timestep_embedding
from limner.openvino_runtime import core, library
from limner.request import Tiling
from limner.request.networks import UsedControl
from limner.settings import default_cache_dir
from limner.weights.checkpoint import Checkpoint

from .base import Adapters, AuxiliaryNetwork, ControlRows, Precision
from .openvino_graphs import GraphCache, Samples, auto_precision

_HINTS = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names of the precisions that it computes in
_SIZES = {"fp32": 4, "bf16": 2, "int8": 1}  # bytes of a weight

_Shapes = tuple[tuple[int, ...], ...]  # shapes of a graph's inputs


class OpenVINOBackend:
    """A checkpoint's networks in OpenVINO, on the CPU. Safe to use from any thread.

    In int8 the U-Net's convolutions and matrix products are quantised, weights and activations. Everything
    else runs in `auto_precision`, including the U-Net's outermost layers when they reuse deep features.

    Args:
        calibrate: Generates a few images with the backend it is given; int8 is calibrated on the U-Net's
            inputs meanwhile.
        cache_dir: Folder for graphs and hashes; None for the user's cache.

    Raises:
        InvalidRequest: OpenVINO is not installed, another device than the CPU, or a precision that it does
            not compute in.
        InvalidCheckpoint: Raised when a network is first used; `read` uses those that every image needs.
        OutputError: A graph cannot be stored; likewise.
    """

    name = "openvino"
    device = torch.device("cpu")

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision,
        calibrate: Callable[["OpenVINOBackend"], None] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        best = auto_precision()
        if device.type != "cpu":
            raise InvalidRequest(
                f"device is {str(device)!r}; the openvino backend runs on the CPU",
                hint="use device cpu, or the torch backend",
            )
        possible = [name for name in _SIZES if name != "bf16" or best == "bf16"]
        if precision not in possible:
            raise InvalidRequest(
                f"precision is {precision!r}, which OpenVINO does not compute in on this CPU",
                hint=f"use {', '.join(possible)}",
            )
        if checkpoint.family.startswith("xl") or checkpoint.unet_config.time_cond_proj_dim is not None:
            raise UnsupportedModel(
                "the openvino backend runs SD 1.x and 2.x, but neither XL nor latent consistency models",
                hint="use `backend=torch`",
            )
        self.checkpoint, self.precision = checkpoint, precision
        self._calibrate = calibrate
        self._float_precision = best if precision == "int8" else precision  # where nothing is quantised
        self._graphs = GraphCache(
            checkpoint, precision, self._float_precision, cache_dir or default_cache_dir(), self._samples
        )
        library("openvino")
        self._lock = Lock()
        self._requests: dict[tuple[str, _Shapes | None], Any] = {}

    def read(self) -> "OpenVINOBackend":
        """Read the networks that every image needs now."""
        self._request("text_encoder")
        self._graphs.graph("unet")  # compiled when the shapes of its inputs are known
        self._request("decoder")
        return self

    @property
    def bytes(self) -> int:
        sizes = {"unet": _SIZES[self.precision]}
        counts = self.checkpoint.parameters_by_part
        once = sum(count * sizes.get(part, _SIZES[self._float_precision]) for part, count in counts.items())
        both = {("unet", None), ("unet", self._native)} <= self._requests.keys()
        return once + both * counts["unet"] * sizes["unet"]

    @cached_property
    def _native(self) -> _Shapes:
        """The U-Net's input shapes at each step of one guided image of the model's native size."""
        unet, [text] = self.checkpoint.unet_config, self.checkpoint.text_configs.values()
        return (
            (2, unet.in_channels, unet.sample_size, unet.sample_size),
            (2, unet.block_out_channels[0]),
            (2, text.max_position_embeddings, unet.cross_attention_dim),
        )

    @property
    def details(self) -> dict[str, str | int]:
        return {"openvino": version("openvino"), "batch_invariant": "no"}

    def bytes_with(self, auxiliary: Collection[AuxiliaryNetwork]) -> int:
        return self.bytes

    def idle_bytes(self, in_use: Collection[AuxiliaryNetwork] = ()) -> int:
        return 0

    def forget_auxiliary(self, keep: Collection[AuxiliaryNetwork] = ()) -> None:
        """No effect: calls for auxiliary networks are refused."""

    def refusal(self, call: Call) -> str | None:
        controlled = isinstance(call, Denoise) and (call.controls or call.features)
        if controlled or isinstance(call, ReadControl):
            return "does not support ControlNet or T2I-Adapter"
        if getattr(call, "tiling", None) is not None:
            return "does not support tiling"
        return "does not support image prompts" if isinstance(call, ReadImagePrompt) else None

    def encode_text(
        self,
        ids: Tensor,
        clip_skip: int,
        *,
        part: str = "text_encoder",
        final_norm: bool = True,
        learned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert part == "text_encoder"
        assert final_norm
        if learned is not None:
            raise UnsupportedModel(
                "the openvino backend supports no textual inversion", hint="use `backend=torch`"
            )
        [states] = self._run("text_encoder", ids)
        return states[-clip_skip], states[-1][torch.arange(len(ids)), ids.argmax(dim=-1)]

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
        assert not controls
        assert conditions is None or not conditions.present
        # Inside a bf16 graph the timestep would be rounded to eight bits before its sines are taken.
        time = timestep_embedding(timesteps, self.checkpoint.unet_config.block_out_channels[0])
        if deep is not None:
            [output] = self._run("unet_reusing", x, time, context, deep)
            return output, None
        if keep:
            output, kept = self._run("unet", x, time, context, outputs=2)
            return output, kept
        [output] = self._run("unet", x, time, context)
        return output, None

    def encode_image_prompt(
        self, adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None
    ) -> Tensor:
        raise UnsupportedModel(
            "the openvino backend does not support image prompts", hint="use `backend=torch`"
        )

    rowwise = frozenset[str]()

    def adapted(self, adapters: Adapters) -> "OpenVINOBackend":
        raise UnsupportedModel("the openvino backend does not support adapters", hint="use `backend=torch`")

    def seamless(self, axes: Tiling) -> "OpenVINOBackend":
        raise UnsupportedModel("the openvino backend does not support tiling", hint="use `backend=torch`")

    def read_control(self, used: UsedControl, images: Tensor) -> Sequence[Tensor]:
        raise UnsupportedModel(
            "the openvino backend does not support ControlNet or T2I-Adapter", hint="use `backend=torch`"
        )

    def decode(self, latents: Tensor) -> Tensor:
        [images] = self._run("decoder", latents)
        return images

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self._run("encoder", images, outputs=2)
        return mean, logvar

    def _run(self, part: str, *inputs: Tensor, outputs: int = 1) -> list[Tensor]:
        """Run a graph and return its first outputs."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        request = self._request(part, shapes if part == "unet" and shapes == self._native else None)
        with self._lock:
            request.infer([tensor.contiguous().numpy() for tensor in inputs], share_inputs=True)
            # The outputs are views of memory that the next forward pass overwrites.
            copies = [torch.from_numpy(request.get_output_tensor(i).data).clone() for i in range(outputs)]
            if part in ("decoder", "encoder"):
                # They run once per image, and would keep the memory of feature maps at full size.
                request.get_compiled_model().release_memory()
            return copies

    def _request(self, part: str, shapes: _Shapes | None = None) -> Any:
        """A graph's inference request, compiled on first use: for these shapes, or for any."""
        with self._lock:
            if (part, shapes) not in self._requests:
                options = {
                    "INFERENCE_PRECISION_HINT": _HINTS[self._float_precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "NUM_STREAMS": 1,
                }
                graph = self._graphs.graph(part)
                if shapes is not None:
                    graph.reshape(dict(zip(graph.inputs, shapes, strict=True)))
                compiled = core().compile_model(graph, "CPU", options)
                self._requests[part, shapes] = compiled.create_infer_request()
            return self._requests[part, shapes]

    def _samples(self) -> Samples:
        """Inputs of the U-Net while a few images are generated."""
        if self._calibrate is None:
            raise UnsupportedModel(
                f"{self.checkpoint.folder} has no int8 graph yet, and there are no images to calibrate it on",
                hint="load it with limner.load, or use another precision",
            )
        recording = _Recording(self.checkpoint, self.device, self._float_precision)
        self._calibrate(recording)
        return recording.inputs


class _Recording(OpenVINOBackend):
    """A backend that records the inputs of its U-Net."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: Precision) -> None:
        super().__init__(checkpoint, device, precision)
        self.inputs: list[tuple[Any, ...]] = []

    def _run(self, part: str, *inputs: Tensor, outputs: int = 1) -> list[Tensor]:
        if part == "unet":
            self.inputs.append(tuple(tensor.numpy().copy() for tensor in inputs))
        return super()._run(part, *inputs, outputs=outputs)
