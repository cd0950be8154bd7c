"""`limner convert`: checkpoints and ControlNets between files, folders and dtypes, and out of pickles."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import terminal


class Layout(StrEnum):
    folder = "folder"
    single = "single"
    tensors = "tensors"


class Dtype(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Prediction(StrEnum):
    epsilon = "epsilon"
    v_prediction = "v_prediction"


_TO = (
    "A folder in the diffusers layout, a single file, or the tensors under their own names. By "
    "default a single file if TARGET ends in .safetensors or the source is a folder, else a folder; and the "
    "tensors of a file that is neither a checkpoint nor a ControlNet."
)


def convert(
    source: Annotated[str, typer.Argument(help="A single file, a folder, or a hub id.")],
    target: Annotated[Path, typer.Argument(help="File or folder to write; nothing is overwritten.")],
    to: Annotated[Layout | None, typer.Option(help=_TO)] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights; by default each keeps its own.")
    ] = None,
    keep_extras: Annotated[
        bool,
        typer.Option("--keep-extras", help="Also write tensors that no network needs, such as EMA weights."),
    ] = False,
    prediction_type: Annotated[
        Prediction | None, typer.Option(help="What the U-Net predicts, where a single file does not say.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A folder with CLIP's vocab.json and merges.txt, which single files lack."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of a folder's weight files, such as fp16.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the tensors of a pickle, and nothing else.")
    ] = False,
) -> None:
    """Convert a checkpoint to another layout or dtype.

    Reads checkpoints and ControlNets, as folders and single files, and writes one tensor at a time.
    """
    import torch

    from limner.weights.convert import convert
    from limner.weights.hub import locate_model

    path = Path(source).expanduser()
    if not path.is_file():
        path = locate_model(source, variant=variant).folder
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    done = convert(
        path,
        target,
        to=to.value if to else None,
        dtype=dtypes[dtype] if dtype else None,
        keep_extras=keep_extras,
        prediction_type=prediction_type.value if prediction_type else None,
        tokenizer=tokenizer,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    for warning in done.warnings:
        terminal.warning(warning)
    for what, names in (("kept in addition to the networks", done.kept), ("left out", done.left_out)):
        if names:
            terminal.note(f"{what}: {', '.join(_grouped(names))}")
    typer.echo(str(target))


def _grouped(names: tuple[str, ...]) -> list[str]:
    """Return the names, with those of one prefix (such as the 688 of `model_ema.`) joined into one."""
    counts = Counter(name.partition(".")[0] for name in names)
    singles = {name.partition(".")[0]: name for name in names}
    return [singles[first] if n == 1 else f"{first}.… ({n} names)" for first, n in counts.items()]
