"""`limner preprocess`: control pictures from pictures and key points."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from limner.errors import InvalidRequest, OutputError

_NAMES = (
    "canny, lineart, scribble, softedge, tile, blur, threshold, binary, invert, shuffle, color, normal (of a "
    "depth map), or pose (of OpenPose's JSON)."
)


def preprocess(
    name: Annotated[str, typer.Argument(help=_NAMES)],
    source: Annotated[Path, typer.Argument(help="A picture; for pose a file with key points.")],
    out: Annotated[Path, typer.Argument(help="The picture to write.")],
    low: Annotated[float | None, typer.Option(help="canny: where an edge ends.")] = None,
    high: Annotated[float | None, typer.Option(help="canny: where an edge begins.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="lineart, softedge, blur: of the blur, in pixels.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="scribble, threshold, binary: what counts as white.")
    ] = None,
    factor: Annotated[float | None, typer.Option(help="tile: down by it, and up again.")] = None,
    cell: Annotated[int | None, typer.Option(help="color, shuffle: pixels that stay together.")] = None,
    seed: Annotated[int | None, typer.Option(help="shuffle: of where they go.")] = None,
    background: Annotated[float | None, typer.Option(help="normal: 0 to 1, what is farther is flat.")] = None,
    size: Annotated[
        str | None, typer.Option(help="pose: of the picture, such as 512x768.", metavar="WxH")
    ] = None,
) -> None:
    """Make a control picture: what a ControlNet is to be told of a picture.

    `limner generate` does this by itself; this shows what comes out, and lets it be changed by hand.
    """
    from limner.pipeline.images import open_image
    from limner.pose import draw_pose
    from limner.preprocess import preprocessed

    given = {
        "low": low,
        "high": high,
        "sigma": sigma,
        "level": level,
        "factor": factor,
        "cell": cell,
        "seed": seed,
        "background": background,
        "size": size,
    }
    options = {option: value for option, value in given.items() if value is not None}
    if name == "pose":
        others = ", ".join(f"--{option}" for option in options if option != "size")
        if others:
            raise InvalidRequest(f"{others} is not an option of pose", hint="it has --size")
        picture = draw_pose(_read(source), *_sides(size))
    else:
        picture = preprocessed(open_image(str(source)), name, **options)
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{out} cannot be written: {error}", hint="name a .png file in a folder that exists"
        ) from None
    typer.echo(out)


def _read(file: Path) -> dict[str, object] | list[object]:
    try:
        keypoints = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{file} is not JSON: {error}") from None
    if not isinstance(keypoints, dict | list):
        raise InvalidRequest(f"{file} holds no key points, but {keypoints!r}")
    return keypoints


def _sides(size: str | None) -> tuple[int | None, int | None]:
    """512x768 is 512 wide."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if match is None:
        raise InvalidRequest(f"--size is {size}; expected width and height, such as 512x768")
    return int(match[1]), int(match[2])
