"""Finding a model and reading it into memory."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from limner.device import computes_in_bf16, pick_device
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidCheckpoint, InvalidRequest, UnsupportedModel
from limner.prompts.tokenizer import Tokenizer
from limner.weights.checkpoint import Checkpoint, read_checkpoint
from limner.weights.hub import ANYWHERE, Access, locate_model
from limner.weights.single import Prediction

from .backends.base import AttentionName, Backend, OffloadName, Precision
from .backends.native import NativeBackend
from .model import Model

BackendName = Literal["torch", "openvino"]
_CONTROLLED = "{} comes with a ControlNet, which is not used unless a request's control names its folder"
_WILDCARDS, _STYLES = ("wildcards",), ("styles.csv",)  # which need not be there


@dataclass(frozen=True)
class Source:
    """A model that was found and whose files were checked, but whose weights are not read."""

    name: str
    revision: str | None
    variant: str | None
    checkpoint: Checkpoint
    device: torch.device
    precision: Precision
    backend: BackendName
    compiled: bool
    attention: AttentionName
    offload: OffloadName
    warnings: tuple[str, ...]
    lora_dirs: tuple[Path, ...]
    embedding_dirs: tuple[Path, ...]
    wildcards_dirs: tuple[Path, ...]
    styles_files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """What the weights will take in memory, about."""
        return self.checkpoint.parameters * {"fp32": 4, "int8": 1}.get(self.precision, 2)

    def load(self) -> Model:
        """Read the weights. Raises as the function `load`."""
        # Each thread that computes has OpenMP workers of its own as long as it lives. Where there are more of
        # them than cores they sleep instead of spinning, and small forward passes take twice as long.
        with ThreadPoolExecutor(1, "limner-reader") as reader:
            return reader.submit(self._load).result()

    def _load(self) -> Model:
        checkpoint = self.checkpoint
        try:
            scheduler = SchedulerConfig.from_dict(checkpoint.scheduler_config)
            scheduler = replace(scheduler, family=checkpoint.family)
        except ValueError as error:
            path = checkpoint.folder / "scheduler" / "scheduler_config.json"
            raise UnsupportedModel(f"{path}: {error}") from None
        unused = (_CONTROLLED.format(self.name),) if checkpoint.controlled else ()
        return Model(
            name=self.name,
            revision=self.revision,
            variant=self.variant,
            checkpoint=checkpoint,
            scheduler=scheduler,
            tokenizers=read_tokenizers(checkpoint),
            backend=self._backend(),
            warnings=self.warnings + unused,
            lora_dirs=self.lora_dirs,
            embedding_dirs=self.embedding_dirs,
            wildcards_dirs=self.wildcards_dirs,
            styles_files=self.styles_files,
            options={
                "device": str(self.device),
                "precision": self.precision,
                "backend": self.backend,
                "compiled": self.compiled,
                "attention": self.attention,
                "offload": self.offload,
            },
        )

    def _backend(self) -> Backend:
        if self.backend == "torch":
            return NativeBackend(
                self.checkpoint,
                self.device,
                self.precision,
                compiled=self.compiled,
                attention=self.attention,
                offload=self.offload,
            ).read()
        if self.backend == "openvino":
            if self.compiled or (self.attention, self.offload) != ("auto", "none"):
                raise InvalidRequest(
                    "the openvino backend has no --compiled, --attention and --offload", hint="leave them out"
                )
            from .backends.openvino import OpenVINOBackend  # here, as its library is an extra

            return OpenVINOBackend(self.checkpoint, self.device, self.precision).read()
        raise InvalidRequest(f"backend is {self.backend!r}; expected {', '.join(get_args(BackendName))}")


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, Tokenizer]:
    """The tokenizer of each text encoder. Raises InvalidCheckpoint where one does not fit its encoder."""
    tokenizers = {}
    for part, folder in checkpoint.tokenizers.items():
        text = checkpoint.text_configs[part]
        tokenizer = Tokenizer.from_folder(
            folder, default_max_length=text.max_position_embeddings, pad=checkpoint.pad_token(part)
        )
        if tokenizer.vocab_size > text.vocab_size or tokenizer.max_length > text.max_position_embeddings:
            raise InvalidCheckpoint(
                f"{folder} has {tokenizer.vocab_size} tokens and texts of {tokenizer.max_length}; its text "
                f"encoder knows {text.vocab_size} and {text.max_position_embeddings}"
            )
        tokenizers[part] = tokenizer
    return tokenizers


def find(
    reference: str | Path = "picturebook",
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    backend: BackendName = "torch",
    compiled: bool = False,
    attention: AttentionName = "auto",
    offload: OffloadName = "none",
    vae: str | Path | None = None,
    prediction_type: Prediction | None = None,
    lora_dirs: Sequence[str | Path] = (),
    embedding_dirs: Sequence[str | Path] = (),
    wildcards_dirs: Sequence[str | Path] = _WILDCARDS,
    styles_files: Sequence[str | Path] = _STYLES,
    access: Access = ANYWHERE,
) -> Source:
    """Find a model, fetching it if need be, and check its files. Arguments and errors as of `load`.

    Args:
        access: how the hub is asked.
    """
    where = pick_device("cpu" if backend == "openvino" and device == "auto" else device)
    if precision == "auto" and backend == "openvino":
        from .backends.openvino import auto_precision

        precision = auto_precision()
    elif precision == "auto":
        precision = "fp16" if where.type == "cuda" else "bf16" if computes_in_bf16() else "fp32"
    if precision not in get_args(Precision):
        raise InvalidRequest(f"precision is {precision!r}; expected auto, {', '.join(get_args(Precision))}")
    located = locate_model(reference, revision=revision, variant=variant, access=access)
    checkpoint = read_checkpoint(
        located.folder,
        variant,
        tokenizer=located.tokenizer,
        prediction_type=prediction_type,
        vae_file=None if vae is None else Path(os.path.expanduser(vae)),
    )
    warnings = located.warnings + checkpoint.warnings
    return Source(
        located.name,
        revision,
        variant,
        checkpoint,
        where,
        precision,
        backend,
        compiled,
        attention,
        offload,
        warnings,
        _there(lora_dirs, "folder", "adapter files"),
        _there(embedding_dirs, "folder", "adapter files"),
        _there(wildcards_dirs, "folder", "wildcards", usual=_WILDCARDS),
        _there(styles_files, "file", "styles", usual=_STYLES),
    )


def _there(
    given: Sequence[str | Path], kind: Literal["folder", "file"], what: str, usual: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Paths of folders or files, which must be there unless they are the usual ones.

    Raises:
        InvalidRequest: one that is not.
    """
    paths = tuple(Path(os.path.expanduser(path)) for path in given)
    for path in paths:
        if tuple(given) != usual and not (path.is_dir() if kind == "folder" else path.is_file()):
            raise InvalidRequest(f"there is no {kind} {path}", hint=f"name {kind}s with {what}")
    return paths


def load(
    reference: str | Path = "picturebook",
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    backend: BackendName = "torch",
    compiled: bool = False,
    attention: AttentionName = "auto",
    offload: OffloadName = "none",
    vae: str | Path | None = None,
    prediction_type: Prediction | None = None,
    lora_dirs: Sequence[str | Path] = (),
    embedding_dirs: Sequence[str | Path] = (),
    wildcards_dirs: Sequence[str | Path] = _WILDCARDS,
    styles_files: Sequence[str | Path] = _STYLES,
) -> Model:
    """Load a model: the one that ships with Limner, a folder in the diffusers layout, a single file, or one
    from the hub.

    Args:
        reference: "picturebook", a folder, a .safetensors file, or "organisation/name".
        revision: branch, tag or commit on the hub.
        variant: of the weight files, such as "fp16".
        device: "cpu", "cuda", "cuda:1" …; "auto" is CUDA where there is one.
        precision: of the networks; "auto" is fp16 on CUDA, and on the CPU bf16 where it computes in that.
        backend: what runs the networks.
        compiled: compile the U-Net for a GPU, which takes minutes once and pays for many pictures.
        attention: "fused" in PyTorch's kernel, or "sliced" into blocks of scores; "auto" is what is faster.
        offload: "model" keeps only the network that is running on the GPU, "sequential" only the block of it.
        vae: an autoencoder in a file of its own, to take the place of the model's.
        prediction_type: what the U-Net predicts, "epsilon" or "v_prediction", where the files do not say so
            or say it wrongly.
        lora_dirs: folders with LoRA files, which requests and prompts name.
        embedding_dirs: folders with textual inversions, whose files' names are words in prompts.
        wildcards_dirs: folders with files of lines, which prompts choose from.
        styles_files: with phrases under names, for the styles of requests.

    Raises:
        ModelNotFound: nothing of this name.
        InvalidCheckpoint, PickleRefused, UnsupportedModel: files that are broken, or that Limner cannot run.
        InvalidRequest: an unknown device, precision or backend.
    """
    return find(**locals()).load()
