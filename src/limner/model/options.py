"""The options that a model is loaded with: the arguments of `limner.load`. Without torch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from limner.backends.base import AttentionName, OffloadName, Precision
    from limner.catalogue.catalogue import Catalogue
    from limner.catalogue.inference_config import Prediction
    from limner.images.assets import Assets

BackendName = Literal["torch", "openvino"]
WILDCARDS, STYLES = ("wildcards",), ("styles.csv",)  # which need not exist

PARTS: Mapping[str, str] = {
    "unet": "U-Net",
    "text_encoder": "Text encoder",
    "text_encoder_2": "Second text encoder, of XL",
    "tokenizer": "Tokenizer of the text encoder",
    "tokenizer_2": "Tokenizer of the second text encoder",
    "scheduler": "Scheduler config",
    "vae": "Autoencoder",
}
"""Part of a model that can be replaced -> what it is."""


@dataclass(frozen=True)
class LoadOptions:
    """Which model to load, and how.

    A part is a folder with its config, a file, a checkpoint that has it, or on the hub "organisation/name" or
    "organisation/name:FOLDER-OR-FILE".

    Args:
        reference: "picturebook", a folder, a .safetensors file, or "organisation/name" on the hub.
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weight files, such as "fp16".
        device: "cpu", "cuda", "cuda:1" …; "auto" is CUDA where there is one.
        precision: Precision of the networks; "auto" is fp16 on CUDA, and on the CPU bf16 where it computes in
            that.
        backend: Backend that runs the networks.
        compiled: Compile the U-Net for a GPU, which takes minutes once and pays for many images.
        attention: "fused" in PyTorch's kernel, or "sliced" into blocks of scores; "auto" is what is faster.
        offload: "model" keeps only the network that is running on the GPU, "sequential" only the block of it.
        unet: U-Net in place of the model's own.
        text_encoder, text_encoder_2: Text encoders in place of the model's own.
        tokenizer, tokenizer_2: Tokenizers of the text encoders in place of the model's own.
        scheduler: Scheduler config in place of the model's own: a folder or a JSON file.
        vae: Autoencoder in place of the model's own.
        prediction_type: What the U-Net predicts, "epsilon" or "v_prediction", where the files do not say so
            or say it wrongly.
        lora_dirs: Folders with LoRA files, which requests and prompts name.
        embedding_dirs: Folders with textual inversions, whose files' names are words in prompts.
        control_dirs: Folders with ControlNets and T2I-Adapters, which controls name.
        image_prompt_dirs: Folders with IP-Adapters and image encoders, which image prompts name.
        wildcards_dirs: Folders with files of lines, which prompts choose from.
        styles_files: Files of styles, which requests name.
        cache_dir: Folder for what can be computed again (hashes, OpenVINO graphs, tuning); by default
            `LIMNER_CACHE`, else the system's folder for caches.
        assets: Opens the input images of requests. Default: any path, and no others by their hash.
        safety: The policy that prompts and images must pass: "off", "standard", "strict", or the path of a
            policy file. "standard" and "strict" need the extra `nsfw`.
        catalogue: Where the adapters and networks that requests name are looked up, in place of the folders;
            then no path is opened and nothing is downloaded.
    """

    reference: str | Path = "picturebook"
    _: KW_ONLY
    revision: str | None = None
    variant: str | None = None
    device: str = "auto"
    precision: "Precision | Literal['auto']" = "auto"
    backend: BackendName = "torch"
    compiled: bool = False
    attention: "AttentionName" = "auto"
    offload: "OffloadName" = "none"
    unet: str | Path | None = None
    text_encoder: str | Path | None = None
    text_encoder_2: str | Path | None = None
    tokenizer: str | Path | None = None
    tokenizer_2: str | Path | None = None
    scheduler: str | Path | None = None
    vae: str | Path | None = None
    prediction_type: "Prediction | None" = None
    lora_dirs: Sequence[str | Path] = ()
    embedding_dirs: Sequence[str | Path] = ()
    control_dirs: Sequence[str | Path] = ()
    image_prompt_dirs: Sequence[str | Path] = ()
    wildcards_dirs: Sequence[str | Path] = WILDCARDS
    styles_files: Sequence[str | Path] = STYLES
    cache_dir: str | Path | None = None
    assets: "Assets | None" = None
    safety: str | Path = "off"
    catalogue: "Catalogue | None" = None

    @property
    def parts(self) -> dict[str, str | Path]:
        """Part -> what replaces it."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    def of_refiner(self, reference: str, variant: str | None) -> Self:
        """The options of a refiner: the same, but for what concerns the files of this one model."""
        own: dict[str, Any] = dict.fromkeys((*PARTS, "prediction_type", "revision"))
        return replace(self, reference=reference, variant=variant, **own)


OPTION_NAMES = frozenset(field.name for field in fields(LoadOptions)) - {"reference"}

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")


def taking(options: Callable[P, O]) -> Callable[[Callable[[O], R]], Callable[P, R]]:
    """A decorator that makes a function of a class of options a function of the options themselves."""

    def decorate(function: Callable[[O], R]) -> Callable[P, R]:
        @wraps(function)
        def spread(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(options(*args, **kwargs))

        spread.__doc__ = f"{inspect.getdoc(function)}\n\n{inspect.getdoc(options)}"
        returns = inspect.signature(function).return_annotation
        spread.__signature__ = inspect.signature(options).replace(return_annotation=returns)  # type: ignore[attr-defined]
        return spread

    return decorate
