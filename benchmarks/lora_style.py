"""`python -m benchmarks.lora_style`: the effect of a style LoRA at several weights.

The LoRA is trained on outlined images whose captions name no style. Then the shipped model runs prompts that
name no style either, with the same seeds and the LoRA at several weights, and once without the LoRA but with
the style in the prompt. Two measures say how much each image is outlined: the probe, and the dark lines
measured here.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .harness import Chart, Report, Spread, Table, parser, say

if TYPE_CHECKING:
    from limner.model.model import Model
    from limner.picturebook.evaluation import Proportion
    from limner.picturebook.probe import Probe
    from limner.picturebook.world import Scene

STYLE = "outlined"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "lora_style.png"
_ON_SHEET = 8


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "", rounds=1)
    options.add_argument("--prompts", type=int, default=240, help="number of prompts for each weight")
    options.add_argument("--steps", type=int, default=600, help="training steps")
    options.add_argument("--lora", type=Path, help="file of a trained LoRA")
    options.add_argument("--sheet", type=Path, help=f"image to write; by default {SHEET}, unless --quick")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.prompts, chosen.steps = 8, 2
    with tempfile.TemporaryDirectory() as scratch:
        file = chosen.lora or _trained(Path(scratch) / STYLE, chosen.steps, quick=chosen.quick)
        report, sheet = measure(file, chosen.prompts)
    report.publish(chosen)
    path = chosen.sheet or (None if chosen.quick else SHEET)
    if path is not None:
        from limner.training.sheets import sheet as on_paper

        on_paper(sheet, _ON_SHEET).quantize(256).save(path, optimize=True)


def _trained(run: Path, steps: int, *, quick: bool) -> Path:
    """Train the LoRA as the guide does."""
    say(f"training {steps} steps")
    command = ["train", "lora", "--style", STYLE, "--steps", str(steps), "--out", str(run)]
    less = ["--latents", "16", "--batch", "2"] if quick else []
    subprocess.run([sys.executable, "-m", "limner.cli.main", *command, *less], check=True, stdout=sys.stderr)
    return run / "export" / f"{STYLE}.safetensors"


def measure(lora: Path, count: int) -> tuple[Report, Tensor]:
    """The page, and the first images at the weights 0, 0.5 and 1."""
    import limner
    from limner.allocator import keep_freed_memory
    from limner.catalogue.layout import CARD
    from limner.files import read_json
    from limner.images.pixels import to_tensor
    from limner.picturebook.evaluation import fresh_scenes, judge, tally
    from limner.picturebook.probe import load_probe, see
    from limner.picturebook.world import World, caption, render
    from limner.request import Lora

    keep_freed_memory()
    model, probe = limner.load(), load_probe()
    kept = read_json(model.checkpoint.folder / CARD)["world"]
    world = World(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
    scenes, _ = fresh_scenes(replace(world, styles=("flat",)), count, seed=0)
    styled = [replace(scene, style=STYLE) for scene in scenes]

    def prompts(those: "Sequence[Scene]", says_style: bool) -> list[str]:
        return [caption(s, random.Random(i), says_style=says_style) for i, s in enumerate(those)]

    turns: dict[str, tuple[list[str], tuple[Lora, ...]]] = {
        f"{weight:g}": (prompts(scenes, says_style=False), (Lora(name=str(lora), weight=weight),))
        for weight in WEIGHTS
    }
    turns["0, style in words"] = (prompts(styled, says_style=True), ())
    lines, odds, shares, tallies, shown = {}, {}, {}, {}, []
    for name, (words, loras) in turns.items():
        say(f"drawing {count} pictures at weight {name}")
        pictures = _drawn(model, words, loras)
        seen = see(probe, pictures)
        lines[name], odds[name] = ink(pictures), log_odds(probe, pictures)
        shares[name] = _share(odds[name])
        tallies[name] = tally(judge(scene, what) for scene, what in zip(scenes, seen, strict=True))
        if name in ("0", "0.5", "1"):
            shown.append(pictures[:_ON_SHEET])

    truths = {}
    for name, those in (("flat", scenes), (STYLE, styled)):
        renders = to_tensor([render(scene) for scene in those])
        with torch.inference_mode():
            again = [model.backend.decode(model.backend.encode(part)[0]) for part in torch.split(renders, 64)]
        truths[name] = (ink(torch.cat(again)), _share(log_odds(probe, torch.cat(again))))

    report = _report(model, lora, lines, odds, shares, tallies, truths)
    return report, torch.cat(shown)


def _drawn(model: "Model", prompts: Sequence[str], loras: "tuple[object, ...]") -> Tensor:
    """One image per prompt [N, 3, H, W], with the seeds 0, 1 …"""
    from limner import GenerationRequest
    from limner.engine.engine import Engine
    from limner.images.pixels import to_tensor

    with Engine(model, max_waiting=len(prompts)) as engine:
        handles = [
            engine.submit(GenerationRequest(prompt=words, seed=seed, loras=loras))  # type: ignore[arg-type]
            for seed, words in enumerate(prompts)
        ]
        return to_tensor([handle.result().images[0] for handle in handles])


def ink(pictures: Tensor) -> Tensor:
    """Dark lines in images [B, 3, H, W], as a fraction of full black: [B].

    The black top-hat of mathematical morphology: the brightness added by a closing with a square of 5 pixels,
    which removes thin dark lines.
    """

    def widest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 5, stride=1, padding=2)

    brightness = pictures.mean(1, keepdim=True) / 2  # [B, 1, H, W]
    closed = -widest(-widest(brightness))
    return (closed - brightness).mean((1, 2, 3))


@torch.no_grad()
def log_odds(probe: "Probe", pictures: Tensor) -> Tensor:
    """The probe's log odds of the style against all others: [B]."""
    styles = torch.cat([probe(part.clamp(-1, 1)).style for part in torch.split(pictures, 64)])
    own = probe.config.styles.index(STYLE)
    others = [index for index in range(len(probe.config.styles)) if index != own]
    return styles[:, own] - styles[:, others].logsumexp(1)


def _share(odds: Tensor) -> "Proportion":
    from limner.picturebook.evaluation import Proportion

    return Proportion(int((odds > 0).sum()), len(odds))


def of_the_way(values: Tensor, none: Tensor, full: Tensor) -> Spread:
    """The mean change from `none`, as a fraction of that of `full`, over the same prompts.

    Its interval is the 95 % bootstrap interval over prompts (Efron 1979).
    """
    change, whole = (values - none).double(), (full - none).double()
    rows = torch.randint(len(change), (2000, len(change)), generator=torch.Generator().manual_seed(0))
    anew = (change[rows].mean(1) / whole[rows].mean(1)).sort().values
    return Spread(float(change.mean() / whole.mean()), float(anew[50]), float(anew[-51]))


def _report(
    model: "Model",
    lora: Path,
    lines: Mapping[str, Tensor],
    odds: Mapping[str, Tensor],
    shares: "Mapping[str, Proportion]",
    tallies: "Mapping[str, Mapping[str, Proportion]]",
    truths: "Mapping[str, tuple[Tensor, Proportion]]",
) -> Report:
    ways = {
        name: {judge: of_the_way(of[name], of["0"], of["1"]) for judge, of in judges.items()}
        for judges in [{"lines": lines, "odds": odds}]
        for name in lines
    }
    rows = [
        (
            name,
            f"{100 * lines[name].mean():.2f} %",
            ways[name]["lines"].text(digits=2),
            ways[name]["odds"].text(digits=2),
            str(shares[name]),
            *(f"{100 * tallies[name][figure].value:.1f} %" for figure in _FIGURES),
        )
        for name in lines
    ]
    columns = (
        "weight",
        "dark lines",
        "of the way by lines",
        "by the probe's log odds",
        f"{STYLE} to the probe",
    )
    count = len(lines["0"])
    return Report(
        name="lora_style",
        title=f"A LoRA of the style {STYLE}, at several weights",
        about=(
            f"A LoRA of {lora.stat().st_size // 1000} kB, trained by `limner train lora --style {STYLE}` on "
            f"pictures whose captions name no style. {count} prompts that name none, half of them with "
            "combinations held out of training, generated by the shipped model from the same seeds at each "
            "weight; in the last row the prompts ask for the style, without the LoRA. *Of the way* is the "
            "mean change from weight 0 as a share of that at weight 1, with the 95 % interval over prompts."
        ),
        tables=[
            Table("Style and content", (*columns, *_FIGURES), rows),
            Table(
                "The judges, on renderings of the same scenes, encoded and decoded by the autoencoder",
                ("rendered as", "dark lines", f"{STYLE} to the probe"),
                [(n, f"{100 * values.mean():.2f} %", str(share)) for n, (values, share) in truths.items()],
            ),
        ],
        charts=[
            Chart(
                "Dark lines at each weight",
                "of the way from weight 0 to weight 1",
                {name: way["lines"] for name, way in ways.items()},
            )
        ],
        notes=[
            "Dark lines are what a closing with a square of 5 pixels fills: a share of full black, over the "
            "whole picture. Log odds are the probe's for this style against the others.",
            "No figure here is a time, so the load of other programs does not matter.",
        ],
        data={
            "environment": model.environment(),
            "of the way": ways,
            "lines": {name: values.tolist() for name, values in lines.items()},
            "odds": {name: values.tolist() for name, values in odds.items()},
        },
    )


_FIGURES = ("things", "colours", "relations", "entirely right")


if __name__ == "__main__":
    main()
