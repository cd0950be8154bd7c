"""`limner tune`: measure what is fastest on this machine, once."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import terminal
from limner.cli.options import MODEL, PICTURE, ModelOptions, Text, Whole, option, spread

if TYPE_CHECKING:
    pass


@spread
def tune(
    model: Annotated[str, option("picturebook, a folder, or a hub id.", MODEL)] = "picturebook",
    width: Annotated[Whole, option("In pixels; by default the model's own.", PICTURE)] = None,
    height: Annotated[Whole, option("In pixels; by default the model's own.", PICTURE)] = None,
    revision: Annotated[Text, option("Branch, tag or commit on the hub.", MODEL)] = None,
    variant: Annotated[Text, option("Of the weight files, such as fp16.", MODEL)] = None,
    *,
    models: ModelOptions,
) -> None:
    """Measure this machine: how attention is fastest, and how many pictures share a step.

    Later commands of this user find the figures, as long as processor, threads and PyTorch stay the same.
    """
    from limner.pipeline.loading import load
    from limner.pipeline.measuring import best_rows, blocks_from, rows_that_pay
    from limner.pipeline.tuning import NEVER, Tuning
    from limner.request import GenerationRequest

    tuning = Tuning.stored()
    fields = {"width": width, "height": height}
    asked = GenerationRequest.of(
        {"prompt": "", "model": model, **{name: side for name, side in fields.items() if side is not None}}
    )
    try:
        for precision in ("fp32", "bf16"):
            terminal.note(f"attention in {precision} …")
            scores = blocks_from(precision)
            tuning = replace(tuning, blocks_from={**tuning.blocks_from, precision: scores})
            told = "never" if scores == NEVER else f"from {scores} scores on" if scores else "always"
            terminal.columns([("attention", precision, f"in blocks: {told}")])

        tuning.store()  # the model is to run as it will
        drawer = load(
            model,
            revision=revision,
            variant=variant,
            **models.given(),
        )
        request, rates = drawer.resolve(asked), {}
        terminal.note(f"rows of {model} at {request.width}x{request.height} …")
        for rows, rate in rows_that_pay(drawer, request):
            rates[rows] = rate
            terminal.columns([("rows", str(rows), f"{rate:.3g} a second")])
        if rates:
            key, most = best_rows(drawer, request, rates)
            tuning = replace(tuning, rows={**tuning.rows, key: most})
            terminal.columns([("together", f"{most} rows", f"{most // 2} guided pictures")])
        path = tuning.store()
    except KeyboardInterrupt:
        terminal.say("stopped", "what was measured so far of attention is kept", "yellow")
        raise typer.Exit(130) from None
    typer.echo(str(path))
