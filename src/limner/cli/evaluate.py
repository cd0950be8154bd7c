"""`limner evaluate`: how well a model of the picture world follows its prompts.

The model generates images for captions of new scenes, the probe recognises what is in the images, and the
findings are compared with the scenes. The probe itself is evaluated on renderings of the same scenes, on
their reconstructions by the model's autoencoder, and on images compared with the prompts of others.
"""

import json
import random
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from limner.errors import OutputError

from . import terminal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from limner.backends.base import Precision
    from limner.model.model import Model
    from limner.picturebook.evaluation import Mean, Proportion, Verdict
    from limner.picturebook.probe import Probe, Seen
    from limner.picturebook.world import Scene, World
    from limner.request import GenerationRequest

    Tally = Mapping[str, Proportion]

_ON_SHEET, _COLUMNS = 48, 6
_BATCH = 64  # images that a judge reads, or the autoencoder reconstructs, at a time


def evaluate(
    model: Annotated[
        str, typer.Option(help="picturebook, or the folder of a model of the picture world.")
    ] = "picturebook",
    world: Annotated[
        Path | None,
        typer.Option(help="JSON file with fields of the World it was trained on; by default limner.json's."),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(min=64, help="Number of prompts; half of them have combinations held out of training."),
    ] = 1000,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps; like those below, by default the model's own.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As in `limner generate`.")] = None,
    sigma_schedule: Annotated[str | None, typer.Option(help="As in `limner generate`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes, the captions and the images.")] = 0,
    out: Annotated[
        Path,
        typer.Option(
            help="File of the report, in Markdown; its figures are written to a JSON file of the same name."
        ),
    ] = (Path("docs/picturebook-report.md")),
    sheet: Annotated[
        Path | None,
        typer.Option(help=f"Sheet of the first {_ON_SHEET} images with prompts and verdicts."),
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option(help="Folder of a probe, with a CLIP in clip/; by default those that ship with Limner."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
) -> None:
    """Measure how well the picturebook model follows its prompts."""
    given = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "sigma_schedule": sigma_schedule,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        _evaluate(model, world, prompts, fields, seed, out, sheet, judges, device, precision)
    except KeyboardInterrupt:
        terminal.say("stopped", "nothing was written", "yellow")
        raise typer.Exit(130) from None


def _evaluate(
    name: str,
    world_file: Path | None,
    count: int,
    fields: Mapping[str, Any],
    seed: int,
    out: Path,
    sheet: Path | None,
    judges: Path | None,
    device: str,
    precision: str,
) -> None:
    from limner.catalogue.layout import CARD
    from limner.engine.loaded import load
    from limner.files import whole_file
    from limner.images.picture import write_picture
    from limner.picturebook.evaluation import fresh_scenes, judge, perfect_findings
    from limner.picturebook.probe import JUDGES, load_probe, see
    from limner.picturebook.world import read_world
    from limner.request import GenerationRequest

    for path in filter(None, (out, sheet)):
        if not path.absolute().parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: {path.parent} is not a folder",
                hint="make it, or choose another file with --out",
            )
    generator = load(name, device=device, precision=cast("Precision", precision))
    world = read_world(world_file, generator.checkpoint.folder / CARD)
    folder = judges or JUDGES
    probe = load_probe(folder)
    base = generator.resolve(
        GenerationRequest.of({"prompt": "", "model": name, "seed": seed, **fields})
    ).request

    scenes, words = fresh_scenes(world, count, seed)
    began = time.monotonic()
    pictures = _generate(generator, base, words)
    seconds = (time.monotonic() - began) / count
    seen = see(probe, pictures)
    verdicts = [judge(scene, what) for scene, what in zip(scenes, seen, strict=True)]
    if sheet is not None:
        write_picture(_contact_sheet(pictures[:_ON_SHEET], words, verdicts), sheet)
    pictures = pictures[:0]  # frees hundreds of megabytes

    rendered, reconstructed, psnr = _read_scenes(scenes, generator, probe)
    truth = [perfect_findings(scene) for scene in scenes]
    report = _Report(
        command=_command(name, world_file, count, base, seed, precision),
        model=generator.identity,
        environment=generator.environment(),
        request=base.model_dump(exclude_none=True, exclude={"prompt", "model", "seed"}),
        seconds_per_image=round(seconds, 3),
        generated=_groups(scenes, verdicts),
        probe={
            "renders": _tally(scenes, rendered),
            "reconstructions": _tally(scenes, reconstructed),
            "generated, prompts exchanged": _tally(scenes[1:] + scenes[:1], seen),
            "perfect probe, prompts exchanged": _tally(scenes[1:] + scenes[:1], truth),
        },
        psnr=psnr,
        retrieval=_retrieval(folder / "clip", world, scenes, words) if (folder / "clip").is_dir() else {},
        wrong=[
            {"prompt": prompt, "seed": seed + i, "seen": _described(what)}
            for i, (prompt, what, verdict) in enumerate(zip(words, seen, verdicts, strict=True))
            if not verdict.all_right
        ],
    )
    for path, text in ((out.with_suffix(".json"), report.json()), (out, report.markdown())):
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for group in ("all", "training combinations", "held-out combinations"):
        terminal.note(f"{group}: {report.generated[group]['entirely right']} entirely right")
    typer.echo(str(out))


def _generate(model: "Model", base: "GenerationRequest", prompts: Sequence[str]) -> "Tensor":
    """The images of all prompts [N, 3, H, W]; prompt i has the seed of `base` plus i."""
    from limner.engine.engine import Engine
    from limner.images.pixels import to_tensor

    assert base.seed is not None
    requests = [
        base.model_copy(update={"prompt": prompt, "seed": base.seed + i}) for i, prompt in enumerate(prompts)
    ]
    pictures: list[Image] = []
    with (
        Engine(model, max_waiting=len(requests)) as engine,
        typer.progressbar(length=len(requests), label="generating", file=sys.stderr) as bar,
    ):
        for handle in [engine.submit(request) for request in requests]:
            pictures += handle.result().images
            bar.update(1)
    return to_tensor(pictures)


def _read_scenes(
    scenes: Sequence["Scene"], model: "Model", probe: "Probe"
) -> tuple[list["Seen"], list["Seen"], "Mean"]:
    """The probe's findings in rendered scenes and in their reconstructions, and the PSNR of these in dB."""
    import torch

    from limner.picturebook.evaluation import Mean, psnr
    from limner.picturebook.probe import see

    rendered: list[Seen] = []
    reconstructed: list[Seen] = []
    quality = []
    with (
        typer.progressbar(length=len(scenes), label="reading", file=sys.stderr) as bar,
        torch.inference_mode(),
    ):
        for start in range(0, len(scenes), _BATCH):
            originals = _render(scenes[start : start + _BATCH])
            again = model.backend.decode(model.backend.encode(originals)[0])
            rendered += see(probe, originals)
            reconstructed += see(probe, again)
            quality.append(psnr(again, originals))
            bar.update(len(originals))
    return rendered, reconstructed, Mean.over(torch.cat(quality))


def _render(scenes: Sequence["Scene"]) -> "Tensor":
    from limner.images.pixels import to_tensor
    from limner.picturebook.world import render

    return to_tensor([render(scene) for scene in scenes])


def _retrieval(
    folder: Path, world: "World", scenes: Sequence["Scene"], words: Sequence[str]
) -> dict[str, "Proportion"]:
    """How well CLIP retrieves captions for rendered scenes, and the reverse."""
    import torch
    from torch.nn.functional import normalize

    from limner.files import read_json
    from limner.picturebook.evaluation import preferred, retrieved
    from limner.picturebook.world import caption, swapped
    from limner.prompts.tokenizer import Tokenizer
    from limner.training.components import read_text_encoder
    from limner.weights.components import load_image_encoder

    image_encoder = load_image_encoder(folder / "image_encoder", torch.float32)
    text_encoder = read_text_encoder(folder / "text_encoder")
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    scaling = read_json(folder / "feature_extractor" / "preprocessor_config.json")
    mean, std = (torch.tensor(scaling[name])[:, None, None] for name in ("image_mean", "image_std"))

    @torch.inference_mode()
    def embedded(captions: Sequence[str]) -> "Tensor":
        if not captions:
            return torch.empty(0, image_encoder.config.projection_dim)
        ids = torch.tensor([tokenizer.encode_padded(text)[0] for text in captions])
        return normalize(text_encoder(ids)[1], dim=-1)

    images, texts, false = [], [], []
    with (
        typer.progressbar(length=len(scenes), label="retrieving", file=sys.stderr) as bar,
        torch.inference_mode(),
    ):
        for start in range(0, len(scenes), _BATCH):
            part = scenes[start : start + _BATCH]
            pixels = ((_render(part) + 1) / 2 - mean) / std
            images.append(normalize(image_encoder(pixels)[1], dim=-1))
            texts.append(embedded(words[start : start + _BATCH]))
            for index, scene in enumerate(part, start):
                rng = random.Random(f"false words {index}")
                false.append(embedded([caption(other, rng) for other in swapped(scene, world)]))
            bar.update(len(part))
    by_row, by_word = torch.cat(images), torch.cat(texts)
    return {
        "a picture's caption among 64": retrieved(by_row, by_word),
        "a caption's picture among 64": retrieved(by_word, by_row),
        "a picture's caption against false ones": preferred(by_row, by_word, false),
    }


def _tally(scenes: Sequence["Scene"], seen: Sequence["Seen"]) -> "Tally":
    from limner.picturebook.evaluation import judge, tally

    return tally(judge(scene, what) for scene, what in zip(scenes, seen, strict=True))


def _groups(scenes: Sequence["Scene"], verdicts: Sequence["Verdict"]) -> dict[str, "Tally"]:
    from limner.picturebook.evaluation import tally
    from limner.picturebook.world import is_held_out

    groups: dict[str, list[Verdict]] = {"all": [], "training combinations": [], "held-out combinations": []}
    for scene, verdict in zip(scenes, verdicts, strict=True):
        side = "held-out combinations" if is_held_out(scene) else "training combinations"
        number = ("one thing", "two things", "three things")[len(scene.things) - 1]
        for group in ("all", side, number, f"{number}, {side}", scene.relation):
            groups.setdefault(group, []).append(verdict)
    return {group: tally(those) for group, those in groups.items()}


def _described(seen: "Seen") -> str:
    things = ", ".join(f"{thing.colour} {thing.kind}" for thing in seen.things) or "nothing"
    return f"{things}; {seen.setting}, {seen.time}, {seen.weather}, {seen.style}"


def _command(
    name: str,
    world: Path | None,
    count: int,
    base: "GenerationRequest",
    seed: int,
    precision: str,
) -> str:
    """The command line that repeats the evaluation, independent of the model's defaults."""
    options = {
        "model": name,
        **({"world": world} if world else {}),
        "prompts": count,
        "steps": base.steps,
        "guidance-scale": base.guidance_scale,
        "sampler": base.sampler,
        "sigma-schedule": base.sigma_schedule,
        "seed": seed,
        "precision": precision,
    }
    given = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    return shlex.join(["limner", "evaluate", *given])


@dataclass(frozen=True)
class _Report:
    """All figures. `generated` and `probe` are tallies by group."""

    command: str
    model: Mapping[str, str]
    environment: Mapping[str, str | int]
    request: Mapping[str, Any]
    seconds_per_image: float
    generated: "Mapping[str, Tally]"
    probe: "Mapping[str, Tally]"
    psnr: "Mean"
    retrieval: "Tally"
    wrong: Sequence[Mapping[str, str | int]]

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        sides = ("all", "training combinations", "held-out combinations")
        sizes = [
            f"{n} thing{s}{side}"
            for n, s in (("one", ""), ("two", "s"), ("three", "s"))
            for side in ("", ", training combinations", ", held-out combinations")
        ]
        relations = ("left of", "above", "on", "row", "group")
        main = ("things", "colours", "relations", "entirely right")
        low, high = self.psnr.interval
        environment = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        request = ", ".join(f"{name} {value}" for name, value in self.request.items())
        return "\n".join(
            [
                "# How well the picturebook model follows its prompts",
                "",
                f"    {self.command}",
                "",
                f"Model {self.model['name']}, weights {self.model['sha256'][:16]}. {environment}.",
                f"{request}. {self.seconds_per_image} s per image.",
                "",
                "Shares with Wilson's 95 % interval. [The guide](guides/picturebook.md) defines the figures.",
                "",
                *_table(self.generated, sides),
                "",
                "## By number of things, and by relation",
                "",
                *_table(
                    self.generated, [name for name in (*sizes, *relations) if name in self.generated], main
                ),
                "",
                "## The judge",
                "",
                "The probe on renderings of the same scenes, on their reconstructions by the model's",
                "autoencoder, and on the generated images, each compared with the prompt of another one;",
                "the last column is what a perfect probe would find there.",
                "",
                *_table(self.probe, list(self.probe)),
                "",
                "## The autoencoder, and CLIP",
                "",
                f"PSNR of {self.psnr.of} fresh scenes: {self.psnr.value:.2f} dB ({low:.2f} to {high:.2f}).",
                "",
                *(f"- {name}: {share}" for name, share in self.retrieval.items()),
                "",
            ]
        )


def _table(tallies: "Mapping[str, Tally]", groups: Sequence[str], figures: Sequence[str] = ()) -> list[str]:
    """Rows are figures and columns groups; with `figures` named, rows are groups."""
    if figures:
        head = ["", "images", *figures]
        rows = [[g, str(tallies[g]["counts"].of), *(str(tallies[g][f]) for f in figures)] for g in groups]
    else:
        head = ["", *groups]
        rows = [[f, *(str(tallies[g][f]) for g in groups)] for f in tallies[groups[0]]]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _contact_sheet(pictures: "Tensor", words: Sequence[str], verdicts: Sequence["Verdict"]) -> "Image":
    """Each image above its prompt, with a green tick if it is entirely right, else a red cross."""
    from PIL import Image, ImageDraw, ImageFont

    from limner.images.pixels import to_images

    side, gap, label = 192, 10, 62
    font = ImageFont.load_default(11)
    rows = -(-len(pictures) // _COLUMNS)
    paper = Image.new("RGB", (_COLUMNS * (side + gap) + gap, rows * (side + label + gap) + gap), "white")
    draw = ImageDraw.Draw(paper)
    for index, (image, text, verdict) in enumerate(zip(to_images(pictures), words, verdicts, strict=False)):
        x = gap + index % _COLUMNS * (side + gap)
        y = gap + index // _COLUMNS * (side + label + gap)
        paper.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 18, y + side + 4), textwrap.fill(text, 30), fill="black", font=font, spacing=2)
        mark = (
            [(2, 10), (5, 14), (12, 5)] if verdict.all_right else [(3, 5), (11, 14), (7, 9), (11, 5), (3, 14)]
        )
        colour = "#1a8a34" if verdict.all_right else "#c8202a"
        draw.line([(x + u, y + side + v) for u, v in mark], fill=colour, width=2)
    return paper
