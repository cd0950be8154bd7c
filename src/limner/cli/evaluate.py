"""`limner evaluate`: how much of what it is asked for the picture world's model draws.

Prompts about scenes that no training has seen are drawn, the probe says what stands in the pictures, and
what it says is held against the scenes. The probe itself is tried on the same scenes as the renderer draws
them, on their reconstructions by the model's autoencoder, and on pictures whose prompts were exchanged.
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

from limner.cli import terminal
from limner.errors import InvalidCheckpoint, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from limner.picturebook.evaluation import Mean, Share, Verdict
    from limner.picturebook.probe import Probe, Seen
    from limner.picturebook.world import Scene, World
    from limner.pipeline.backends.base import Precision
    from limner.pipeline.model import Model
    from limner.request import GenerationRequest

    Tally = Mapping[str, Share]

_ON_SHEET, _COLUMNS = 48, 6
_BATCH = 64  # pictures that a judge reads, or the autoencoder reconstructs, at a time


def evaluate(
    model: Annotated[
        str, typer.Option(help="picturebook, or the folder of a model of the picture world.")
    ] = "picturebook",
    world: Annotated[
        Path | None,
        typer.Option(help="JSON file with fields of the World it was trained on; by default limner.json's."),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=64, help="How many; every second holds a combination kept from training.")
    ] = 1000,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps; like those below, by default the model's own.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As of `limner generate`.")] = None,
    sigma_schedule: Annotated[str | None, typer.Option(help="As of `limner generate`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes, the words and the pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="The report, in Markdown; the figures as JSON go beside it.")] = (
        Path("docs/picturebook-report.md")
    ),
    sheet: Annotated[
        Path | None, typer.Option(help=f"Picture of the first {_ON_SHEET} with their prompts and verdicts.")
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option(help="Folder of a probe, and of a CLIP in clip/; by default those that ship."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
) -> None:
    """Measure the picture world's model: what it draws right of what it is asked for."""
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
    from limner.picturebook.evaluation import fresh_scenes, judge, shown
    from limner.picturebook.probe import JUDGES, load_probe, see
    from limner.pipeline.loading import load
    from limner.pipeline.metadata import write_picture
    from limner.request import GenerationRequest
    from limner.weights.files import whole_file

    for path in filter(None, (out, sheet)):
        if not path.absolute().parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: {path.parent} is not a folder",
                hint="make it, or choose another file with --out",
            )
    drawer = load(name, device=device, precision=cast("Precision", precision))
    world = _world(world_file, drawer.checkpoint.folder)
    folder = judges or JUDGES
    probe = load_probe(folder)
    base = drawer.resolve(GenerationRequest.of({"prompt": "", "model": name, "seed": seed, **fields}))

    scenes, words = fresh_scenes(world, count, seed)
    began = time.monotonic()
    pictures = _draw(drawer, base, words)
    seconds = (time.monotonic() - began) / count
    seen = see(probe, pictures)
    verdicts = [judge(scene, what) for scene, what in zip(scenes, seen, strict=True)]
    if sheet is not None:
        write_picture(_contact_sheet(pictures[:_ON_SHEET], words, verdicts), sheet)
    pictures = pictures[:0]  # hundreds of megabytes that are not needed any more

    rendered, reconstructed, psnr = _read_scenes(scenes, drawer, probe)
    truth = [shown(scene) for scene in scenes]
    report = _Report(
        command=_command(name, world_file, count, base, seed, precision),
        model=drawer.identity,
        environment=drawer.environment(),
        request=base.model_dump(exclude_none=True, exclude={"prompt", "model", "seed"}),
        seconds_a_picture=round(seconds, 3),
        drawn=_groups(scenes, verdicts),
        probe={
            "renders": _tally(scenes, rendered),
            "reconstructions": _tally(scenes, reconstructed),
            "drawn, prompts exchanged": _tally(scenes[1:] + scenes[:1], seen),
            "perfect reader, the same exchanged": _tally(scenes[1:] + scenes[:1], truth),
        },
        psnr=psnr,
        retrieval=_retrieval(folder / "clip", world, scenes, words) if (folder / "clip").is_dir() else {},
        wrong=[
            {"prompt": prompt, "seed": seed + i, "seen": _told(what)}
            for i, (prompt, what, verdict) in enumerate(zip(words, seen, verdicts, strict=True))
            if not verdict.all_right
        ],
    )
    for path, text in ((out.with_suffix(".json"), report.json()), (out, report.markdown())):
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for group in ("all", "training combinations", "held-out combinations"):
        terminal.note(f"{group}: {report.drawn[group]['entirely right']} entirely right")
    typer.echo(str(out))


def _world(file: Path | None, model: Path) -> "World":
    """The world that a file holds; with none, what the model's `limner.json` says under "world"."""
    from limner.picturebook.world import World
    from limner.weights.checkpoint import CARD
    from limner.weights.files import read_json

    card = model / CARD
    if file is not None:
        given = read_json(file)
    else:
        given = read_json(card).get("world", {}) if card.is_file() else {}
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    try:
        return World(**fields)
    except TypeError as error:
        raise InvalidCheckpoint(f"{file or card} describes no world: {error}") from None


def _draw(model: "Model", base: "GenerationRequest", prompts: Sequence[str]) -> "Tensor":
    """The pictures of all prompts [N, 3, H, W]; prompt i has the seed of `base` plus i."""
    from limner.pipeline.engine import Engine
    from limner.pipeline.images import to_tensor

    assert base.seed is not None
    requests = [
        base.model_copy(update={"prompt": prompt, "seed": base.seed + i}) for i, prompt in enumerate(prompts)
    ]
    pictures: list[Image] = []
    with (
        Engine(model, max_waiting=len(requests)) as engine,
        typer.progressbar(length=len(requests), label="drawing", file=sys.stderr) as bar,
    ):
        for handle in [engine.submit(request) for request in requests]:
            pictures += handle.result().images
            bar.update(1)
    return to_tensor(pictures)


def _read_scenes(
    scenes: Sequence["Scene"], model: "Model", probe: "Probe"
) -> tuple[list["Seen"], list["Seen"], "Mean"]:
    """What the probe sees in rendered scenes and in their reconstructions, and how good those are, in dB."""
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
    from limner.picturebook.world import render
    from limner.pipeline.images import to_tensor

    return to_tensor([render(scene) for scene in scenes])


def _retrieval(
    folder: Path, world: "World", scenes: Sequence["Scene"], words: Sequence[str]
) -> dict[str, "Share"]:
    """How well CLIP's two encoders find rendered pictures and captions by each other."""
    import torch
    from torch.nn.functional import normalize

    from limner.picturebook.evaluation import preferred, retrieved
    from limner.picturebook.world import caption, swapped
    from limner.prompts.tokenizer import Tokenizer
    from limner.training.components import read_text_encoder
    from limner.weights.checkpoint import load_image_encoder
    from limner.weights.files import read_json

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


def _told(seen: "Seen") -> str:
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
    """What measures the same again, whatever becomes of the model's defaults."""
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
    """All figures. `drawn` and `probe` are tallies by group."""

    command: str
    model: Mapping[str, str]
    environment: Mapping[str, str | int]
    request: Mapping[str, Any]
    seconds_a_picture: float
    drawn: "Mapping[str, Tally]"
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
                "# What the picturebook model draws of what it is asked for",
                "",
                f"    {self.command}",
                "",
                f"Model {self.model['name']}, weights {self.model['sha256'][:16]}. {environment}.",
                f"{request}. {self.seconds_a_picture} s a picture.",
                "",
                "Shares with Wilson's 95 % interval. [The guide](guides/picturebook.md) says what counts.",
                "",
                *_table(self.drawn, sides),
                "",
                "## By number of things, and by relation",
                "",
                *_table(self.drawn, [name for name in (*sizes, *relations) if name in self.drawn], main),
                "",
                "## The judge",
                "",
                "The probe on the same scenes as the renderer draws them, on their reconstructions by the",
                "model's autoencoder, and on the drawn pictures, each held against the prompt of another;",
                "beside that, what a perfect reader would say.",
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
        head = ["", "pictures", *figures]
        rows = [[g, str(tallies[g]["counts"].of), *(str(tallies[g][f]) for f in figures)] for g in groups]
    else:
        head = ["", *groups]
        rows = [[f, *(str(tallies[g][f]) for g in groups)] for f in tallies[groups[0]]]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _contact_sheet(pictures: "Tensor", words: Sequence[str], verdicts: Sequence["Verdict"]) -> "Image":
    """Each picture above its prompt, with a green tick where it is entirely right and else a red cross."""
    from PIL import Image, ImageDraw, ImageFont

    from limner.pipeline.images import to_images

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
