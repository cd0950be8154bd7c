"""The networks in OpenVINO, which computes faster than PyTorch on most CPUs (https://docs.openvino.ai).

Each network is traced in fp32 and kept on disk as OpenVINO's own graph, so that only the first use of a
checkpoint waits for it. A graph takes any batch, height, width and length of text. Compiled for one shape
alone it is an eighth faster on a CPU with AMX, and a quarter in a small model, but holds weights of its own.
So the U-Net has one such graph, for a single guided picture at the size that the model is made for. The shape
alone decides which graph runs, so a picture's bits do not depend on what was drawn before it.
"""

import hashlib
import importlib
import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock, RLock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from limner import __version__
from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidRequest, OutputError, UnsupportedModel
from limner.nn import layers
from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel, timestep_embedding
from limner.pipeline.calls import Call, Denoise, ReadControl, ReadImagePrompt
from limner.pipeline.controlling import UsedControl
from limner.pipeline.generation import picture_of, watch
from limner.request import GenerationRequest, Tiling
from limner.weights.checkpoint import Checkpoint, load_text_encoder, load_unet, load_vae, weights_hash
from limner.weights.files import user_cache, whole_folder

from .base import Adapters, ControlRows, Guest, Precision, Terms

INSTALL = 'pip install "limner[openvino]"'

_HINTS = {"fp32": "f32", "bf16": "bf16"}  # what OpenVINO calls the precisions that it computes in
_SIZES = {"fp32": 4, "bf16": 2, "int8": 1}  # bytes of a weight
_FILE = "graph.xml"

_Shapes = tuple[tuple[int, ...], ...]  # of a graph's inputs

# What int8 is calibrated with: a few steps, from noise to picture, of each of these.
_PROMPTS = (
    "a red house beside a tree at night",
    "two boats on the blue sea under white clouds",
    "a black cat and a yellow ball in the snow",
)
_STEPS = 4
# The ends of the U-Net and its sense of time: a hundredth of the work, a fifth of int8's error.
_NOT_QUANTISED = [r".*\.conv_(in|out)/.*", r".*\.time_emb.*"]


class OpenVINOBackend:
    """A checkpoint's networks in OpenVINO, on the CPU, safe to use from any thread.

    In int8 the U-Net's convolutions and matrix products are quantised, weights and activations; all else runs
    as in `auto_precision`, the U-Net's outermost layers where they reuse deep features included.

    Raises:
        InvalidRequest: OpenVINO is not installed, another device, or a precision that it does not compute in.
        InvalidCheckpoint: when a network is first used; `read` uses those that every picture needs.
        OutputError: likewise, where its graph cannot be kept.
    """

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: Precision) -> None:
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
                "the openvino backend runs SD 1.x and 2.x, neither XL nor latent consistency models",
                hint="use --backend torch",
            )
        self.checkpoint, self.precision = checkpoint, precision
        self._inner = best if precision == "int8" else precision  # of what is not quantised
        self._openvino = _library("openvino")
        self._core = _core()
        self._lock = Lock()
        self._requests: dict[tuple[str, _Shapes | None], Any] = {}

    def read(self) -> "OpenVINOBackend":
        """Read the networks that every picture needs now."""
        self._request("text_encoder")
        self._graph("unet")  # for which shapes it is compiled, the pictures will tell
        self._request("decoder")
        return self

    @property
    def bytes(self) -> int:
        sizes = {"unet": _SIZES[self.precision]}
        counts = self.checkpoint.parameters_by_part
        once = sum(count * sizes.get(part, _SIZES[self._inner]) for part, count in counts.items())
        both = {("unet", None), ("unet", self._usual)} <= self._requests.keys()
        return once + both * counts["unet"] * sizes["unet"]

    @cached_property
    def _usual(self) -> _Shapes:
        """What the U-Net is given at each step of one guided picture, at the size that it is made for."""
        unet, [text] = self.checkpoint.unet_config, self.checkpoint.text_configs.values()
        return (
            (2, unet.in_channels, unet.sample_size, unet.sample_size),
            (2, unet.block_out_channels[0]),
            (2, text.max_position_embeddings, unet.cross_attention_dim),
        )

    @property
    def details(self) -> dict[str, str | int]:
        return {"openvino": version("openvino")}

    def bytes_with(self, guests: Collection[Guest]) -> int:
        return self.bytes  # it refuses all that call for guests

    def idle_bytes(self, at_work: Collection[Guest] = ()) -> int:
        return 0

    def forget_guests(self, but: Collection[Guest] = ()) -> None:
        """There are none."""

    def refusal(self, call: Call) -> str | None:
        controlled = isinstance(call, Denoise) and (call.controls or call.features)
        if controlled or isinstance(call, ReadControl):
            return "runs no control networks"
        if getattr(call, "tiling", None) is not None:
            return "draws no pictures that tile"
        return "takes no image prompts" if isinstance(call, ReadImagePrompt) else None

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
            raise UnsupportedModel("OpenVINO's graphs know no learned words", hint="use --backend torch")
        [states] = self._run("text_encoder", ids)
        return states[-clip_skip], states[-1][torch.arange(len(ids)), ids.argmax(dim=-1)]

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
        assert pooled is sizes is guidance is None
        assert not any((terms, controls, features, pictures))
        # Within the graph the timestep would be rounded to bfloat16's eight bits, before its sines are taken.
        time = timestep_embedding(timesteps, self.checkpoint.unet_config.block_out_channels[0])
        if deep is not None:
            [output] = self._run("unet_reusing", x, time, context, deep)
            return output, None
        if keep:
            output, kept = self._run("unet", x, time, context, outputs=2)
            return output, kept
        [output] = self._run("unet", x, time, context)
        return output, None

    def see(self, adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None) -> Tensor:
        raise UnsupportedModel("OpenVINO's graphs take no image prompts", hint="use --backend torch")

    rowwise = frozenset[str]()

    def adapted(self, adapters: Adapters) -> "OpenVINOBackend":
        raise UnsupportedModel("OpenVINO's graphs take no adapters", hint="use --backend torch")

    def seamless(self, axes: Tiling) -> "OpenVINOBackend":
        raise UnsupportedModel("OpenVINO's graphs draw no pictures that tile", hint="use --backend torch")

    def read_control(self, used: UsedControl, images: Tensor) -> Sequence[Tensor]:
        raise UnsupportedModel("OpenVINO runs no control networks", hint="use --backend torch")

    def decode(self, latents: Tensor) -> Tensor:
        [images] = self._run("decoder", latents)
        return images

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self._run("encoder", images, outputs=2)
        return mean, logvar

    def _run(self, part: str, *inputs: Tensor, outputs: int = 1) -> list[Tensor]:
        """The first few outputs of a graph."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        request = self._request(part, shapes if part == "unet" and shapes == self._usual else None)
        with self._lock:
            request.infer([tensor.contiguous().numpy() for tensor in inputs], share_inputs=True)
            # They are views of memory that the next forward pass writes to.
            copies = [torch.from_numpy(request.get_output_tensor(i).data).clone() for i in range(outputs)]
            if part in ("decoder", "encoder"):
                # They run once a picture, and would keep what feature maps of full size took.
                request.get_compiled_model().release_memory()
            return copies

    def _request(self, part: str, shapes: _Shapes | None = None) -> Any:
        """A graph's inference request, compiled when it is first needed: for these shapes, or for any."""
        with self._lock:
            if (part, shapes) not in self._requests:
                options = {
                    "INFERENCE_PRECISION_HINT": _HINTS[self._inner],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "NUM_STREAMS": 1,
                }
                graph = self._graph(part)
                if shapes is not None:
                    graph.reshape(dict(zip(graph.inputs, shapes, strict=True)))
                compiled = self._core.compile_model(graph, "CPU", options)
                self._requests[part, shapes] = compiled.create_infer_request()
            return self._requests[part, shapes]

    def _graph(self, part: str) -> Any:
        """A graph from the cache; made and put there if it is missing or broken."""
        folder = self._folder(part)
        try:
            return self._core.read_model(folder / _FILE)
        except RuntimeError:
            pass
        quantised = part == "unet" and self.precision == "int8"
        graph = self._quantised() if quantised else _converted(part, self.checkpoint)
        with whole_folder(folder, overwrite=True) as temporary:
            try:
                # bf16 has fewer bits than the fp16 that weights are kept in then; fp32 must keep its own.
                self._openvino.save_model(graph, temporary / _FILE, compress_to_fp16=self._inner == "bf16")
                return self._core.read_model(temporary / _FILE)
            except RuntimeError as error:  # a full disk is found out by reading
                raise OutputError(
                    f"{folder} cannot be written", hint="make room, or name another place in LIMNER_CACHE"
                ) from error

    def _folder(self, part: str) -> Path:
        """Where a graph is kept; the name tells all that it depends on."""
        configs = (
            self.checkpoint.unet_config,
            self.checkpoint.vae_config,
            *self.checkpoint.text_configs.values(),
        )
        made_of = f"{weights_hash(self.checkpoint)} {configs}"
        ours = f"limner{__version__}-{_networks_hash()}"
        versions = f"{ours}-torch{torch.__version__}-openvino{version('openvino')}"
        if part == "unet" and self.precision == "int8":
            precision, versions = f"int8-{self._inner}", f"{versions}-nncf{version('nncf')}"
        else:
            precision = self._inner
        folder = user_cache() / "openvino" / hashlib.sha256(made_of.encode()).hexdigest()[:16]
        return folder / re.sub(r"[^\w.+-]", "_", f"{part}-{precision}-{versions}")

    def _quantised(self) -> Any:
        """The U-Net in int8, calibrated on what it is given while a few pictures are drawn."""
        nncf = _library("nncf")
        samples = _samples(self.checkpoint, self._inner)
        nncf.set_log_level(logging.ERROR)
        with redirect_stdout(sys.stderr):  # for its progress bars: nothing but data goes to stdout
            return nncf.quantize(
                _converted("unet", self.checkpoint),
                nncf.Dataset(samples),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(patterns=_NOT_QUANTISED),
                # On the shipped model correcting biases changes nothing, and smoothing trebles the error.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
                ),
            )


def auto_precision() -> Precision:
    """bf16 where the CPU computes in it, else fp32. Raises InvalidRequest if OpenVINO is not installed."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


_LOADING = RLock()  # held by the thread that imports a library or makes the runtime


def _core() -> Any:
    """OpenVINO's runtime, one for the whole process. Raises InvalidRequest if OpenVINO is not installed.

    A runtime gives the thread in which it is first used a signal stack, and unmaps it when it is freed. Freed
    in another thread, or before one that was made after it, it leaves a thread with a stack that is gone, and
    the next signal that Python handles, such as that of Ctrl-C, ends the process with a segmentation fault.
    """
    with _LOADING:
        return _only_core()


@cache
def _only_core() -> Any:
    return _library("openvino").Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Both libraries report their import and use to a server, unless this package is missing."""
    there = {name: sys.modules[name] for name in ("openvino_telemetry",) if name in sys.modules}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(there)


def _library(name: str) -> ModuleType:
    """OpenVINO or NNCF. Raises InvalidRequest if it is not installed."""
    try:
        with _LOADING, _without_telemetry():
            return importlib.import_module(name)
    except ImportError:
        raise InvalidRequest(
            f"the openvino backend needs {name}, which is not installed", hint=INSTALL
        ) from None


class _States(nn.Module):
    """What the text encoder says behind each layer, for every `clip_skip` at once: [layers, B, T, C]."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.model = encoder.text_model

    def forward(self, ids: Tensor) -> Tensor:
        states = self.model.encoder(self.model.embeddings(ids), causal=True, checkpointed=False)
        return torch.stack([self.model.final_layer_norm(state) for state in states[1:]])


class _UNet(nn.Module):
    """The U-Net, given the embedding of the timesteps [B, C] rather than the timesteps."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.time: Tensor | None = None
        unet.time_embedding.register_forward_pre_hook(lambda module, inputs: self.time)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        self.time = time
        return self.unet.forward_keeping(x, x[:, 0, 0, 0], context)


class _ReusingUNet(_UNet):
    """Likewise, of its outermost layers alone."""

    def forward(self, x: Tensor, time: Tensor, context: Tensor, deep: Tensor) -> Tensor:  # type: ignore[override]
        self.time = time
        return self.unet.forward_reusing(x, x[:, 0, 0, 0], context, deep)


@torch.no_grad()
def _converted(part: str, checkpoint: Checkpoint) -> Any:
    """A network as a graph in fp32, with every size left open."""
    network, inputs = _traceable(part, checkpoint)
    openvino = _library("openvino")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    with warnings.catch_warnings():
        # `torch.export`, which is to take its place, fixes sizes that are left open here.
        warnings.filterwarnings("ignore", r"`torch\.jit\.trace(_method)?` is deprecated", DeprecationWarning)
        # PyTorch looks at its own arguments, and silences that itself unless filters are reset.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python bool", module=r"torch\.nn\.")
        # Checking a trace means to run the network twice more.
        traced = decoders.TorchScriptPythonDecoder(
            network.eval(), example_input=inputs, trace_kwargs={"check_trace": False}
        )
        return openvino.convert_model(traced)


@cache
def _networks_hash() -> str:
    """A short hash over the source of the networks, whose graphs are kept."""
    folder = Path(layers.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:8]


def _traceable(part: str, checkpoint: Checkpoint) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in fp32, not shared with anyone, and small inputs to it."""
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


class _Recording(OpenVINOBackend):
    """Remembers what its U-Net is given."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        super().__init__(checkpoint, self.device, precision)
        self.seen: list[tuple[Any, ...]] = []

    def _run(self, part: str, *inputs: Tensor, outputs: int = 1) -> list[Tensor]:
        if part == "unet":
            self.seen.append(tuple(tensor.numpy().copy() for tensor in inputs))
        return super()._run(part, *inputs, outputs=outputs)


def _samples(checkpoint: Checkpoint, precision: Precision) -> list[tuple[Any, ...]]:
    """What the U-Net is given while a few pictures are drawn, at the size that the model is made for."""
    from limner.pipeline.loading import read_tokenizers  # which imports this module
    from limner.pipeline.model import Model

    scheduler = SchedulerConfig.from_dict(checkpoint.scheduler_config)
    backend = _Recording(checkpoint, precision)
    model = Model("calibration", None, None, checkpoint, scheduler, read_tokenizers(checkpoint), backend)
    side = max(
        64, checkpoint.unet_config.sample_size * checkpoint.vae_config.downscale
    )  # 64: a request's least
    for seed, prompt in enumerate(_PROMPTS):
        request = GenerationRequest(
            prompt=prompt, seed=seed, steps=_STEPS, sampler="ddim", width=side, height=side
        )
        for call, _ in watch(picture_of(model.resolve(request), model), model):
            if isinstance(call, Denoise) and call.step == call.steps:
                break  # what follows is the decoder's
    return backend.seen
