"""Checkpoints as folders in the diffusers layout. Their configs are read by `limner.catalogue.pipelines`."""

from collections.abc import Collection
from pathlib import Path

from limner.catalogue.layout import TOKENIZER_OF
from limner.catalogue.pipelines import read_part_config, read_pipeline

from .parts import NAMES, Checkpoint, HubPart


def read_folder(
    folder: Path, variant: str | None, replaced: Collection[str] = (), scheduler: Path | None = None
) -> Checkpoint:
    """The checkpoint in a folder. Arguments and errors as of `read_pipeline`."""
    found = read_pipeline(folder, variant, replaced, scheduler)
    return Checkpoint(
        folder=folder,
        parts={
            part: HubPart(config, found.weights[part], NAMES[part]) for part, config in found.configs.items()
        },
        scheduler_config=found.scheduler_config,
        tokenizers={
            part: folder / name for part, name in TOKENIZER_OF.items() if name in found.index.tokenizers
        },
        zero_negative=found.index.zero_negative,
        controlled=found.index.controlled,
        warnings=found.warnings,
    )


def hub_part(name: str, weights: Path) -> HubPart:
    """A network in a folder of its own.

    Args:
        weights: Its file, or index of shards, next to a `config.json`.

    Raises:
        InvalidCheckpoint, UnsupportedModel: as `read_config`.
    """
    return HubPart(read_part_config(name, weights.parent), weights, NAMES[name])
