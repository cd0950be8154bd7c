"""`limner show`: what a picture says of how it was drawn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import terminal

if TYPE_CHECKING:
    from limner.pipeline.metadata import Record
    from limner.request import GenerationRequest


def show(
    picture: Annotated[Path, typer.Argument(help="A picture drawn by Limner, or by AUTOMATIC1111's webui.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Show the request stored in a picture. `limner generate --from` draws it again."""
    from limner.errors import InvalidPicture
    from limner.pipeline.metadata import read_record, read_texts

    texts = read_texts(picture)
    if not texts or (as_json and "limner" not in texts):
        what = "holds no record of Limner's" if texts else "does not say what drew it"
        raise InvalidPicture(
            f"{picture} {what}",
            hint="`limner show` without --json prints what it says"
            if texts
            else "editors and websites often strip a picture's metadata; use the original file",
        )
    if "limner" not in texts:
        typer.echo(terminal.printable(texts["parameters"]))
        return
    try:
        record = read_record(picture)
    except InvalidPicture as error:
        terminal.warning(error.message)
        typer.echo(terminal.printable(texts["limner"]))
        return
    assert record is not None
    if as_json:
        typer.echo(json.dumps(record.model_dump(mode="json"), indent=2))
    else:
        terminal.columns(_rows(record))


def _rows(record: "Record") -> list[tuple[str, str]]:
    request = record.request.model_dump(exclude_none=True, exclude={"num_images", *_seldom(record.request)})
    rows = [(name.replace("_", " "), str(value)) for name, value in request.items()]
    if record.origin is not None:
        rows.append(("styles", ", ".join(record.origin.styles)))
        if record.origin.wildcards:
            rows.append(("template", record.origin.prompt))
            rows.append(("negative template", record.origin.negative_prompt or ""))
    for axis, said in record.grid.items():
        rows += [(f"axis {axis}", f"{name}={', '.join(values)}") for name, values in said.items()]
    rows.append(("family", record.model.get("family", "")))
    rows.append(("model hash", record.model.get("sha256", "")[:10]))
    rows.append(("drawn with", ", ".join(f"{name} {value}" for name, value in record.environment.items())))
    rows += [("warning", warning) for warning in record.warnings]
    return [(name, value) for name, value in rows if value]


def _seldom(request: "GenerationRequest") -> set[str]:
    """Fields that few requests have, and that this one has not."""
    names = {
        "loras",
        "controls",
        "exact",
        "guidance_rescale",
        "image_prompts",
        "image_guidance_scale",
        "crop",
        "aesthetic_score",
        "negative_aesthetic_score",
    }
    names |= {
        "guidance_skip",
        "mask_blur",
        "inpaint_area",
        "mask_padding",
        "extend",
        "noise",
        "variation_strength",
        "emphasis",
        "styles",
        "wildcards",
        "vae_tiling",
    }
    return {name for name in names if getattr(request, name) == type(request).model_fields[name].default}
