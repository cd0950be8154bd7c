"""Finding a model and reading it into memory."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from limner.backends.base import Backend, Precision
from limner.backends.device import computes_in_bf16, pick_device
from limner.backends.invariance import RowBlocks
from limner.backends.native import NativeBackend
from limner.backends.tuning import Tuning, row_blocks_file
from limner.catalogue.facts import read_scheduler
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidRequest
from limner.images.assets import Assets
from limner.prompts.tokenizer import Tokenizer
from limner.settings import default_cache_dir
from limner.weights.checkpoint import Checkpoint, read_checkpoint
from limner.weights.hub import ANYWHERE, Access, locate_model
from limner.weights.hub_parts import locate_part
from limner.weights.tokenizers import read_tokenizers

from .calibration import generate_samples
from .model import Model
from .options import STYLES, WILDCARDS, BackendName, LoadOptions

if TYPE_CHECKING:
    from limner.safety.checkers import ImageChecker
    from limner.safety.policy import Policy

_CONTROLLED = "{} comes with a ControlNet, which is not used unless a request's control names its folder"


@dataclass(frozen=True)
class Source:
    """A model that was found and whose files were checked, but whose weights are not read.

    Attributes:
        name: Name that it was found by.
        options: Options that it is loaded with.
        device, precision: Device and precision, with "auto" replaced.
        warnings: Warnings about the choice of files.
        policy: The safety policy; None for "off".
        checkers: Image checkers of the policy, by name.
    """

    name: str
    options: LoadOptions
    checkpoint: Checkpoint
    device: torch.device
    precision: Precision
    warnings: tuple[str, ...]
    policy: "Policy | None" = None
    checkers: Mapping[str, "ImageChecker"] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Approximate bytes of the weights in memory."""
        return self.checkpoint.parameters * {"fp32": 4, "int8": 1}.get(self.precision, 2)

    def load(self) -> Model:
        """Read the weights. Raises as `limner.load`."""
        # Each thread that computes has OpenMP workers of its own as long as it lives. Where there are more of
        # them than cores they sleep instead of spinning, and small forward passes take twice as long.
        with ThreadPoolExecutor(1, "limner-reader") as reader:
            return reader.submit(self._load).result()

    def _load(self) -> Model:
        checkpoint = self.checkpoint
        scheduler = read_scheduler(checkpoint.folder, checkpoint.architecture, checkpoint.scheduler_config)
        tokenizers = read_tokenizers(checkpoint)
        unused = (_CONTROLLED.format(self.name),) if checkpoint.controlled else ()
        options = self.options
        return Model(
            name=self.name,
            revision=options.revision,
            variant=options.variant,
            checkpoint=checkpoint,
            scheduler=scheduler,
            tokenizers=tokenizers,
            backend=self._backend(scheduler, tokenizers),
            warnings=self.warnings + unused + scheduler.warnings,
            lora_dirs=_paths(options.lora_dirs),
            embedding_dirs=_paths(options.embedding_dirs),
            control_dirs=_paths(options.control_dirs),
            image_prompt_dirs=_paths(options.image_prompt_dirs),
            wildcards_dirs=_paths(options.wildcards_dirs),
            styles_files=_paths(options.styles_files),
            cache_dir=self._cache_dir,
            assets=options.assets or Assets(),
            options=options,
            policy=self.policy,
            checkers=self.checkers,
        )

    @property
    def _cache_dir(self) -> Path:
        given = self.options.cache_dir
        return default_cache_dir() if given is None else Path(os.path.expanduser(given))

    def _backend(self, scheduler: SchedulerConfig, tokenizers: Mapping[str, Tokenizer]) -> Backend:
        options = self.options
        if options.backend == "torch":
            return NativeBackend(
                self.checkpoint,
                self.device,
                self.precision,
                compiled=options.compiled,
                attention=options.attention,
                offload=options.offload,
                tuning=Tuning.stored(self._cache_dir),
                blocks=RowBlocks(row_blocks_file(self._cache_dir)),
            ).read()
        if options.backend == "openvino":
            if options.compiled or (options.attention, options.offload) != ("auto", "none"):
                raise InvalidRequest(
                    "the openvino backend takes none of `compiled`, `attention` and `offload`",
                    hint="leave them out",
                )
            from limner.backends.openvino import OpenVINOBackend  # here, as its library is an extra

            calibrate = partial(generate_samples, self.checkpoint, scheduler, tokenizers)
            return OpenVINOBackend(
                self.checkpoint, self.device, self.precision, calibrate, self._cache_dir
            ).read()
        raise InvalidRequest(f"backend is {options.backend!r}; expected {', '.join(get_args(BackendName))}")


def find(options: LoadOptions, access: Access = ANYWHERE) -> Source:
    """Find a model and the parts that replace its own, fetching them if need be, and check their files.

    Args:
        access: How the hub is accessed.

    Raises:
        LimnerError: As `limner.load`.
    """
    device, precision = pick_device(options.device, options.backend), options.precision
    if precision == "auto" and options.backend == "openvino":
        from limner.backends.openvino_graphs import auto_precision

        precision = auto_precision()
    elif precision == "auto":
        precision = "fp16" if device.type == "cuda" else "bf16" if computes_in_bf16() else "fp32"
    if precision not in get_args(Precision):
        raise InvalidRequest(f"precision is {precision!r}; expected auto, {', '.join(get_args(Precision))}")
    _check_paths(options)
    # Faults of a policy are found before the model is fetched.
    policy, checkers = _safety(options.safety)
    parts = {
        name: locate_part(name, part, variant=options.variant, access=access)
        for name, part in options.parts.items()
    }
    located = locate_model(
        options.reference,
        revision=options.revision,
        variant=options.variant,
        replaced=parts.keys(),
        access=access,
    )
    checkpoint = read_checkpoint(
        located.folder,
        options.variant,
        tokenizer=located.tokenizer,
        prediction_type=options.prediction_type,
        parts=parts,
    )
    warnings = located.warnings + checkpoint.warnings
    return Source(located.name, options, checkpoint, device, precision, warnings, policy, checkers)


def _safety(level: str | Path) -> tuple["Policy | None", Mapping[str, "ImageChecker"]]:
    """The safety policy with its image checkers; None for "off"."""
    if str(level) == "off":
        return None, {}
    from limner.safety.images import load_checkers
    from limner.safety.policy import load_policy

    policy = load_policy(level)
    return policy, load_checkers(policy)


def _check_paths(options: LoadOptions) -> None:
    """Raise InvalidRequest unless the folders and files exist. Those of the defaults need not."""
    for kind, what, given, default in (
        ("folder", "LoRA files", options.lora_dirs, ()),
        ("folder", "textual inversions", options.embedding_dirs, ()),
        ("folder", "control networks", options.control_dirs, ()),
        ("folder", "IP-Adapters", options.image_prompt_dirs, ()),
        ("folder", "wildcards", options.wildcards_dirs, WILDCARDS),
        ("file", "styles", options.styles_files, STYLES),
    ):
        for path in _paths(given):
            if tuple(given) != default and not (path.is_dir() if kind == "folder" else path.is_file()):
                raise InvalidRequest(f"there is no {kind} {path}", hint=f"name {kind}s with {what}")


def _paths(given: Sequence[str | Path]) -> tuple[Path, ...]:
    return tuple(Path(os.path.expanduser(path)) for path in given)
