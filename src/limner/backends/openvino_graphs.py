"""Networks as OpenVINO graphs, converted once and kept on disk (https://docs.openvino.ai)."""

import hashlib
import importlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner import __version__
from limner.errors import OutputError
from limner.files import whole_folder
from limner.nn import layers
from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel
from limner.openvino_runtime import computes_in_bf16, core, library
from limner.weights.checkpoint import Checkpoint, load_text_encoder, load_unet, load_vae, weights_hash

from .base import Precision
from .device import multiplies_int8_exactly

_FILE = "graph.xml"
# The first and last convolutions and the time embedding: a hundredth of the work, a fifth of int8's error.
_NOT_QUANTISED = [r".*\.conv_(in|out)/.*", r".*\.time_emb.*"]

Samples = Sequence[tuple[Any, ...]]
"""Inputs of a graph, one tuple of arrays for each forward pass."""


class GraphCache:
    """The graphs of one checkpoint, on disk.

    Args:
        precision: Precision of the U-Net.
        float_precision: Precision of everything that is not quantised: "fp32" or "bf16".
        cache_dir: Folder for graphs and hashes.
        samples: Returns inputs of the U-Net that int8 is calibrated on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision,
        float_precision: Precision,
        cache_dir: Path,
        samples: Callable[[], Samples],
    ) -> None:
        self.checkpoint, self.precision, self.float_precision = checkpoint, precision, float_precision
        self.cache_dir = cache_dir
        self._samples = samples

    def graph(self, part: str) -> Any:
        """A graph from the cache, converted and stored there if it is missing or broken.

        Raises:
            OutputError: It cannot be stored.
        """
        folder = self.folder(part)
        try:
            return core().read_model(folder / _FILE)
        except RuntimeError:
            pass
        quantised = part == "unet" and self.precision == "int8"
        graph = self._quantised() if quantised else converted(part, self.checkpoint)
        with whole_folder(folder, overwrite=True) as temporary:
            try:
                # Files hold fp16, which has more bits than bf16; fp32 must keep its own.
                compress = self.float_precision == "bf16"
                library("openvino").save_model(graph, temporary / _FILE, compress_to_fp16=compress)
                return core().read_model(temporary / _FILE)  # fails if the disk was full
            except RuntimeError as error:
                raise OutputError(
                    f"{folder} cannot be written",
                    hint="free some space, or set LIMNER_CACHE to another folder",
                ) from error

    def folder(self, part: str) -> Path:
        """The folder of a graph; its name holds everything that the graph depends on."""
        configs = (
            self.checkpoint.unet_config,
            self.checkpoint.vae_config,
            *self.checkpoint.text_configs.values(),
        )
        source = f"{weights_hash(self.checkpoint, self.cache_dir)} {configs}"
        ours = f"limner{__version__}-{_networks_hash()}"
        versions = f"{ours}-torch{torch.__version__}-openvino{version('openvino')}"
        precision: str = self.float_precision
        if part == "unet" and self.precision == "int8":
            levels = "int8" if multiplies_int8_exactly() else "int7"
            precision, versions = f"{levels}-{precision}", f"{versions}-nncf{version('nncf')}"
        folder = self.cache_dir / "openvino" / hashlib.sha256(source.encode()).hexdigest()[:16]
        return folder / re.sub(r"[^\w.+-]", "_", f"{part}-{precision}-{versions}")

    def _quantised(self) -> Any:
        """The U-Net in int8, calibrated on the samples."""
        nncf = library("nncf")
        samples = self._samples()
        nncf.set_log_level(logging.ERROR)
        with redirect_stdout(sys.stderr):  # progress bars; stdout is for data
            return nncf.quantize(
                converted("unet", self.checkpoint),
                nncf.Dataset(samples),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(patterns=_NOT_QUANTISED),
                # For the shipped model bias correction changes nothing, and smoothing trebles the error.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    # Weights of 7 bits where sums of 8-bit products would saturate.
                    overflow_fix=nncf.OverflowFix.DISABLE
                    if multiplies_int8_exactly()
                    else nncf.OverflowFix.ENABLE,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
                ),
            )


def auto_precision() -> Precision:
    """bf16 where the CPU computes in it, else fp32. Raises InvalidRequest if OpenVINO is not installed."""
    return "bf16" if computes_in_bf16() else "fp32"


@torch.no_grad()
def converted(part: str, checkpoint: Checkpoint) -> Any:
    """A network as a graph in fp32, with dynamic shapes."""
    network, inputs = _traceable(part, checkpoint)
    openvino = library("openvino")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    with warnings.catch_warnings():
        # `torch.export`, its successor, fixes sizes that stay dynamic here.
        warnings.filterwarnings("ignore", r"`torch\.jit\.trace(_method)?` is deprecated", DeprecationWarning)
        # From PyTorch's own checks of arguments, which it ignores itself unless filters are reset.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python bool", module=r"torch\.nn\.")
        # `check_trace` would run the network twice more.
        traced = decoders.TorchScriptPythonDecoder(
            network.eval(), example_input=inputs, trace_kwargs={"check_trace": False}
        )
        return openvino.convert_model(traced)


@cache
def _networks_hash() -> str:
    """A short hash of the networks' source code: graphs of other code are not reused."""
    folder = Path(layers.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:8]


def _traceable(part: str, checkpoint: Checkpoint) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in fp32, and small example inputs."""
    unet, vae = checkpoint.unet_config, checkpoint.vae_config
    [text] = checkpoint.text_configs.values()
    if part == "text_encoder":
        ids = torch.zeros(2, text.max_position_embeddings, dtype=torch.long)
        return _States(load_text_encoder(checkpoint, torch.float32)), (ids,)
    if part in ("decoder", "encoder"):
        autoencoder = load_vae(checkpoint, torch.float32)
        if part == "decoder":
            autoencoder.forward = autoencoder.decode
            return autoencoder, (torch.zeros(2, vae.latent_channels, 8, 8),)
        autoencoder.forward = autoencoder.encode
        return autoencoder, (torch.zeros(2, vae.in_channels, 8 * vae.downscale, 8 * vae.downscale),)
    network = load_unet(checkpoint, torch.float32)
    x = torch.zeros(2, unet.in_channels, 16, 16)
    time = torch.zeros(2, unet.block_out_channels[0])
    context = torch.zeros(2, text.max_position_embeddings, unet.cross_attention_dim)
    if part == "unet":
        return _UNet(network), (x, time, context)
    _, deep = network.forward_keeping(x, torch.zeros(2), context)
    return _ReusingUNet(network), (x, time, context, deep)


class _States(nn.Module):
    """The hidden states after each layer, for every `clip_skip` at once: [layers, B, T, C]."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.model = encoder.text_model

    def forward(self, ids: Tensor) -> Tensor:
        states = self.model.encoder(self.model.embeddings(ids), causal=True, checkpointed=False)
        return torch.stack([self.model.final_layer_norm(state) for state in states[1:]])


class _UNet(nn.Module):
    """The U-Net with sinusoidal timestep embeddings [B, C] as input in place of the timesteps."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.time: Tensor | None = None
        unet.time_embedding.register_forward_pre_hook(lambda module, inputs: self.time)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        self.time = time
        return self.unet.forward_keeping(x, x[:, 0, 0, 0], context)


class _ReusingUNet(_UNet):
    """The U-Net's outermost layers alone, which reuse deep features."""

    def forward(self, x: Tensor, time: Tensor, context: Tensor, deep: Tensor) -> Tensor:  # type: ignore[override]
        self.time = time
        return self.unet.forward_reusing(x, x[:, 0, 0, 0], context, deep)
