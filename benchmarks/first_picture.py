"""`python -m benchmarks.first_picture`: the first image of a new process.

`limner generate` against the shortest script with diffusers, on the weights that ship with Limner, with the
same seed, steps, guidance and sampler: in fp32, as diffusers, and with Limner's defaults. Also the time of
`limner --help`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import limner

from .harness import Chart, Report, Spread, Table, alternate, parser, ratio, say

_MODEL = Path(limner.__file__).parent / "picturebook" / "model"
_PROMPT, _SEED, _GUIDANCE = "a red house in the snow at night", 7, 4.0
_SCRIPT = """
import sys
import torch
from diffusers import StableDiffusionPipeline

folder, prompt, steps, guidance, seed, out = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline(
    prompt,
    num_inference_steps=int(steps),
    guidance_scale=float(guidance),
    generator=torch.Generator("cpu").manual_seed(int(seed)),
).images[0].save(out)
"""


def commands(scratch: Path, steps: int) -> dict[str, list[str]]:
    """The command of each contestant; images are written to `scratch`."""
    program = str(Path(sys.executable).with_name("limner"))
    generate = [
        *(program, "generate", _PROMPT, "--quiet", "--prompt-syntax", "literal"),
        *("--steps", str(steps), "--guidance-scale", str(_GUIDANCE), "--seed", str(_SEED)),
    ]
    return {
        "diffusers": [
            *(sys.executable, "-c", _SCRIPT, str(_MODEL), _PROMPT),
            *(str(steps), str(_GUIDANCE), str(_SEED), str(scratch / "diffusers.png")),
        ],
        "limner fp32": [*generate, "--precision", "fp32", "--out", str(scratch / "limner fp32.png")],
        "limner": [*generate, "--out", str(scratch / "limner.png")],
        "limner --help": [program, "--help"],
    }


def spent(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of a process, from its start to its end.

    The peak of a child includes its parent's memory at its start, so this process does not import torch.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{said}")
    kibibytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return seconds, kibibytes / 1024


def difference(scratch: Path, name: str) -> str:
    """The difference of an image from that of diffusers."""
    import numpy as np
    from PIL import Image

    ours, theirs = (
        np.asarray(Image.open(scratch / f"{who}.png").convert("RGB"), np.int16) for who in (name, "diffusers")
    )
    apart = np.abs(ours - theirs)
    return f"{apart.max()} of 255, in {(apart > 0).mean():.2%} of values"


def report(
    spendings: Mapping[str, Sequence[tuple[float, float]]], steps: int, apart: Mapping[str, str]
) -> Report:
    found = Report(
        "first_picture",
        "From nothing to a picture",
        f"A fresh process each time, from its start to its end: the shipped model, one picture of 128 x 128, "
        f"{steps} steps, the same seed, guidance and sampler. Medians with the extremes; how many times less "
        "time and memory than diffusers, with a 95 % interval over rounds.",
    )
    times = {name: [seconds for seconds, _ in each] for name, each in spendings.items()}
    memory = {name: [mebibytes for _, mebibytes in each] for name, each in spendings.items()}
    rows = []
    for name in spendings:
        drew = name != "limner --help"  # the other's memory is next to nothing
        rows.append(
            (
                name,
                Spread.of(times[name]).text(" s"),
                ratio(times["diffusers"], times[name]).text("×") if drew else "",
                Spread.of(memory[name]).text(" MiB") if drew else "",
                ratio(memory["diffusers"], memory[name]).text("×") if drew else "",
                apart.get(name, ""),
            )
        )
    columns = ("", "time", "diffusers ÷ it", "peak resident memory", "diffusers ÷ it")
    columns += ("largest difference",)
    found.tables.append(Table("Time and memory", columns, rows))
    found.charts.append(Chart("Time", "s", {n: Spread.of(t) for n, t in times.items()}))
    drawing = {n: Spread.of(m) for n, m in memory.items() if n != "limner --help"}
    found.charts.append(Chart("Peak resident memory", "MiB", drawing))
    found.notes.append(
        "The last column: largest difference of the image's colours from those of diffusers' image."
    )
    found.data = {"seconds": times, "mebibytes": memory, "difference": apart}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    given = parser(__doc__.splitlines()[0], rounds=9).parse_args(argv)
    rounds, steps = (1, 2) if given.quick else (given.rounds, 20)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        turns: dict[str, Callable[[], Any]] = {
            contestant: partial(spent, command) for contestant, command in commands(scratch, steps).items()
        }
        say(f"drawing: {', '.join(turns)}")
        spendings = alternate(turns, rounds, warmup=0 if given.quick else 1)
        apart = {contestant: difference(scratch, contestant) for contestant in ("limner fp32", "limner")}
        report(spendings, steps, apart).publish(given)


if __name__ == "__main__":
    main()
