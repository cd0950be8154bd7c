"""`limner tune`: measure this machine once."""

from dataclasses import replace
from typing import Annotated

import typer

from limner.cli.options import MODEL, ModelOptions, Text, Whole, option, spread
from limner.settings import Settings

from . import terminal

IMAGE = "Image"


@spread
def tune(
    model: Annotated[str, option("Model: picturebook, a folder, a file or a hub id.", MODEL)] = "picturebook",
    width: Annotated[Whole, option("Side in pixels. Default: the model's.", IMAGE)] = None,
    height: Annotated[Whole, option("Side in pixels. Default: the model's.", IMAGE)] = None,
    revision: Annotated[Text, option("Branch, tag or commit on the hub.", MODEL)] = None,
    variant: Annotated[Text, option("Variant of the weight files, such as fp16.", MODEL)] = None,
    *,
    models: ModelOptions,
) -> None:
    """Measure this machine, to choose batch sizes and attention.

    The figures are stored for later commands, and hold for this processor, number of threads and PyTorch.
    """
    from limner.backends.tuning import NEVER, Tuning
    from limner.engine.loaded import load
    from limner.engine.measuring import best_rows, blocks_from, rows_that_pay
    from limner.request import GenerationRequest

    cache_dir = Settings.read().cache_dir
    tuning = Tuning.stored(cache_dir)
    fields = {"width": width, "height": height}
    asked = GenerationRequest.of(
        {"prompt": "", "model": model, **{name: side for name, side in fields.items() if side is not None}}
    )
    try:
        for precision in ("fp32", "bf16"):
            terminal.note(f"attention in {precision} …")
            scores = blocks_from(precision)
            tuning = replace(tuning, blocks_from={**tuning.blocks_from, precision: scores})
            shown = "never" if scores == NEVER else f"from {scores} scores on" if scores else "always"
            terminal.columns([("attention", precision, f"in blocks: {shown}")])

        tuning.store(cache_dir)  # the model is to run as it will
        drawer = load(
            model,
            revision=revision,
            variant=variant,
            **models.given(),
        )
        size, rates = drawer.resolve(asked).pictures[0].passes[0], {}
        terminal.note(f"rows of {model} at {size.width}x{size.height} …")
        for rows, rate in rows_that_pay(drawer, size.width, size.height):
            rates[rows] = rate
            terminal.columns([("rows", str(rows), f"{rate:.3g} a second")])
        if rates:
            key, most = best_rows(drawer, size.width, size.height, rates)
            tuning = replace(tuning, rows={**tuning.rows, key: most})
            terminal.columns([("together", f"{most} rows", f"{most // 2} guided images")])
        path = tuning.store(cache_dir)
    except KeyboardInterrupt:
        terminal.say("stopped", "what was measured so far of attention is kept", "yellow")
        raise typer.Exit(130) from None
    typer.echo(str(path))
