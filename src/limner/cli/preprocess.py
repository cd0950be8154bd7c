"""`limner preprocess`: control images from images and key points."""

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
    source: Annotated[Path, typer.Argument(help="An image; for pose a file with key points.")],
    out: Annotated[Path, typer.Argument(help="The image to write.")],
    low: Annotated[float | None, typer.Option(help="canny: lower threshold of the gradient.")] = None,
    high: Annotated[float | None, typer.Option(help="canny: upper threshold of the gradient.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="lineart, softedge, blur: standard deviation of the blur, in pixels.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="scribble, threshold, binary: lowest level that becomes white.")
    ] = None,
    factor: Annotated[float | None, typer.Option(help="tile: factor of scaling down, then up.")] = None,
    cell: Annotated[int | None, typer.Option(help="color, shuffle: side of a cell, in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="shuffle: seed of the displacement.")] = None,
    background: Annotated[
        float | None, typer.Option(help="normal: 0 to 1; depths farther than this are flat.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="pose: size of the image, such as 512x768.", metavar="WxH")
    ] = None,
) -> None:
    """Make a control image: edges, lines, poses …

    `limner generate` does the same; this command writes the control image to a file, to inspect or edit it.
    """
    from limner.images.opening import open_image
    from limner.images.pose import draw_pose
    from limner.images.preprocess import preprocessed

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
    """Return width and height from a size such as 512x768."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if match is None:
        raise InvalidRequest(f"--size is {size}; expected width and height, such as 512x768")
    return int(match[1]), int(match[2])
