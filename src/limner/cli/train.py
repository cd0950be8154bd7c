"""`limner train`: the networks from scratch, or further, on the picture world or on a folder of pictures."""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.options import flag, option, spread
from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from limner.nn.clip import CLIPTextModel
    from limner.picturebook.world import World
    from limner.prompts.tokenizer import Tokenizer
    from limner.training.data import Images, Pictures
    from limner.training.loop import Task
    from limner.weights.checkpoint import Checkpoint

app = typer.Typer(
    help="Train networks from scratch or further. A run lives in a folder and resumes where it stopped.",
    no_args_is_help=True,
)


# Headings of the help, in the order of their first options.
RUN, MODEL, TEXT, PICTURES = "Run", "Model", "Text encoder", "Pictures"
LEARNING, SPEED = "Learning", "Speed and memory"


class Precision(StrEnum):
    bf16 = "bf16"
    fp32 = "fp32"


class Dtype(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class LrSchedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


class Prediction(StrEnum):
    epsilon = "epsilon"
    v_prediction = "v_prediction"
    sample = "sample"


class Timesteps(StrEnum):
    uniform = "uniform"
    logit_normal = "logit_normal"


Out = Annotated[Path, option("Folder of the run: checkpoints, metrics, samples, export.", RUN, "--out")]
Steps = Annotated[int, option("Steps of the whole run; the lr schedule spans them.", LEARNING, min=1)]
Minutes = Annotated[
    float | None, option("Stop after so many minutes, with a checkpoint to resume from.", RUN)
]
BatchSize = Annotated[int, option("Pictures per step.", LEARNING, "--batch", min=1)]
Lr = Annotated[float, option("Peak learning rate.", LEARNING, min=0)]
Pics = Annotated[
    int,
    option(
        "Pictures of the world to train on, drawn once into the run's folder.", PICTURES, "--cache", min=1
    ),
]
Data = Annotated[
    Path | None,
    option(
        "Train on this folder of captioned pictures instead of the world: metadata.jsonl, or .txt files.",
        PICTURES,
    ),
]
WorldFile = Annotated[
    Path | None,
    option("JSON file with fields of picturebook.World that make it smaller.", PICTURES, "--world"),
]
Size = Annotated[int, option("Side of the pictures in pixels.", PICTURES, min=8)]
Init = Annotated[Path | None, option("Start from the weights in this folder, not from random ones.", MODEL)]
ConfigFile = Annotated[
    Path | None,
    option("A config.json that gives the geometry instead of the small preset.", MODEL, "--config"),
]
Seed = Annotated[int, option("Of weights, batches and noise.", RUN)]
Resume = Annotated[
    bool | None,
    option(
        "Resume with changed options (steps, lr …), or start afresh. By default a run whose options are "
        "unchanged resumes.",
        RUN,
        "--resume/--fresh",
        metavar="",
    ),
]
MinSNR = Annotated[float, option("Gamma of min-SNR loss weights (5 is usual); 0: none.", LEARNING, min=0)]
DropCaption = Annotated[float, option("Share of captions left empty, for guidance.", PICTURES, min=0, max=1)]
TimestepsDrawn = Annotated[Timesteps, option("How training draws timesteps.", LEARNING)]
SampleGuidance = Annotated[float, option("Of the samples.", RUN)]
Accumulate = Annotated[int, option("Batches per step.", LEARNING, min=1)]
Ema = Annotated[float, option("Decay of the weights' moving average.", LEARNING, "--ema", min=0, max=1)]
Warmup = Annotated[int, option("Steps of lr warm-up.", LEARNING, min=0)]
Schedule = Annotated[LrSchedule, option("After the warm-up.", LEARNING)]
Prec = Annotated[
    Precision, option("bf16 computes in bfloat16 where that is safe and keeps fp32 weights.", SPEED)
]
CheckpointMinutes = Annotated[
    float, option("A checkpoint every so many minutes.", RUN, min=0, metavar="<float>")
]
SampleMinutes = Annotated[
    float, option("Samples and validation every so many minutes.", RUN, min=0, metavar="<float>")
]
Device = Annotated[str, option("auto, cpu, cuda, cuda:1 …", SPEED)]
ChannelsLast = Annotated[
    bool, flag("Faster on GPUs, slower for narrow networks on CPUs.", SPEED, "--channels-last")
]
GradientCheckpointing = Annotated[bool, flag("Less memory, more time.", SPEED, "--gradient-checkpointing")]


@dataclass(frozen=True)
class AnyLoop:
    """The options of every run, whatever is trained."""

    seed: Seed = 0
    minutes: Minutes = None
    resume: Resume = None
    accumulate: Accumulate = 1
    ema: Ema = 0.999
    warmup: Warmup = 200
    lr_schedule: Schedule = LrSchedule.cosine
    precision: Prec = Precision.bf16
    channels_last: ChannelsLast = False
    checkpoint_minutes: CheckpointMinutes = 3.0
    sample_minutes: SampleMinutes = 5.0
    device: Device = "auto"


@dataclass(frozen=True)
class ProbeLoop(AnyLoop):
    ema: Ema = 0.995
    warmup: Warmup = 100


@dataclass(frozen=True)
class Loop(AnyLoop):
    gradient_checkpointing: GradientCheckpointing = False


@dataclass(frozen=True)
class LoraLoop(Loop):
    ema: Ema = 0.99
    warmup: Warmup = 50


@app.command()
@spread
def vae(
    out: Out,
    *,
    steps: Steps = 10_000,
    batch: BatchSize = 32,
    lr: Lr = 1e-3,
    crop: Annotated[int, option("Side of the random crops, in pixels.", PICTURES, min=8)] = 64,
    kl_weight: Annotated[
        float, option("Weight of the KL divergence, per latent value.", LEARNING, min=0)
    ] = 1e-5,
    decoder_only: Annotated[
        bool,
        flag("Leave the encoder of --init, and so its latents, as it is.", MODEL, "--decoder-only"),
    ] = False,
    cache: Pics = 20_000,
    data: Data = None,
    world: WorldFile = None,
    size: Size = 128,
    config: ConfigFile = None,
    init: Init = None,
    loop: Loop,
) -> None:
    """Train the autoencoder: pictures to latents and back. Exports to OUT/export/vae."""
    _run("vae", dict(locals()))


def _vae(o: SimpleNamespace) -> "Task":
    from limner.nn.vae import VAEConfig
    from limner.training.vae import PICTUREBOOK, VAESettings, VAETask
    from limner.weights.checkpoint import read_config

    if o.decoder_only and o.init is None:
        raise InvalidRequest("--decoder-only needs an encoder to leave alone", hint="name it with --init")
    config = o.config or (o.init / "config.json" if o.init else None)
    geometry = PICTUREBOOK if config is None else read_config(config, VAEConfig)
    pictures, fresh = _pictures(o, o.cache, cached=True)
    settings = VAESettings(geometry, o.batch, o.crop, o.kl_weight, o.decoder_only, o.seed)
    return VAETask(settings, pictures, fresh, o.init)


@app.command()
@spread
def unet(
    out: Out,
    *,
    vae: Annotated[Path, option("Folder of the autoencoder, such as RUN/export/vae of `train vae`.", MODEL)],
    steps: Steps = 20_000,
    batch: BatchSize = 64,
    lr: Lr = 5e-4,
    latents: Annotated[
        int,
        option(
            "Pictures of the world to train on, drawn and encoded once into the run's folder.",
            PICTURES,
            min=1,
        ),
    ] = 40_000,
    data: Data = None,
    world: WorldFile = None,
    size: Size = 128,
    config: ConfigFile = None,
    init: Annotated[
        Path | None, option("Start from the U-Net, text encoder and tokenizer of this checkpoint.", MODEL)
    ] = None,
    text: Annotated[
        Path | None,
        option("Take text_encoder/ and tokenizer/ from this folder, such as a CLIP run's export.", MODEL),
    ] = None,
    text_config: Annotated[Path | None, option("A config.json for a new text encoder.", MODEL)] = None,
    train_text_encoder: Annotated[
        bool, option("The text encoder learns along with the U-Net, or stays as it is.", TEXT, metavar="")
    ] = True,
    prediction: Annotated[
        Prediction, option("What the U-Net learns to predict.", LEARNING)
    ] = Prediction.v_prediction,
    zero_terminal_snr: Annotated[
        bool, flag("The last timestep is all noise.", LEARNING, "--zero-terminal-snr")
    ] = False,
    min_snr: MinSNR = 0.0,
    drop_caption: DropCaption = 0.1,
    timesteps: TimestepsDrawn = Timesteps.uniform,
    guidance_scale: SampleGuidance = 4.0,
    loop: Loop,
) -> None:
    """Train the U-Net, and by default its text encoder with it. Exports a whole checkpoint to OUT/export."""
    _run("unet", dict(locals()))


def _unet(o: SimpleNamespace) -> "Task":
    import torch

    from limner.nn.unet import UNet2DConditionModel, UNetConfig
    from limner.training.components import read_unet, read_vae
    from limner.training.data import seed_of
    from limner.training.unet import UNetSettings, UNetTask, picturebook_unet
    from limner.weights.checkpoint import read_config

    o.text = o.text or o.init
    pictures, fresh = _pictures(o, o.latents, cached=False)
    autoencoder = read_vae(o.vae)
    torch.manual_seed(seed_of(o.seed))
    tokenizer, encoder = _text_encoder(o, pictures)
    if o.init is not None:
        network = read_unet(o.init / "unet")
    elif o.config is not None:
        network = UNet2DConditionModel(read_config(o.config, UNetConfig))
    else:
        network = UNet2DConditionModel(
            picturebook_unet(autoencoder.config.latent_channels, encoder.config.hidden_size)
        )
    settings = UNetSettings(
        batch_size=o.batch,
        train_text_encoder=o.train_text_encoder,
        prediction_type=o.prediction.value,
        zero_terminal_snr=o.zero_terminal_snr,
        min_snr_gamma=o.min_snr or None,
        drop_caption=o.drop_caption,
        timesteps=o.timesteps.value,
        guidance_scale=o.guidance_scale,
        seed=o.seed,
    )
    return UNetTask(settings, network, encoder, tokenizer, autoencoder, pictures, fresh, o.out / "cache")


@app.command()
@spread
def lora(
    out: Out,
    *,
    model: Annotated[
        str, option("picturebook, a folder, a .safetensors file, or a hub id: organisation/name.", MODEL)
    ] = "picturebook",
    style: Annotated[
        str | None,
        option(
            "Train on pictures of the world in this style alone, which their captions do not name.", PICTURES
        ),
    ] = None,
    rank: Annotated[int, option("Channels between the two factors of a layer.", LEARNING, min=1)] = 4,
    alpha: Annotated[
        float | None,
        option("What is added is scaled by alpha / rank; by default the rank.", LEARNING, min=0),
    ] = None,
    targets: Annotated[
        str | None,
        option(
            "Regular expression for the whole names of the U-Net's layers to change; by default the "
            "projections of its attention.",
            LEARNING,
        ),
    ] = None,
    train_text_encoder: Annotated[
        bool, option("Change the text encoder's layers too, or leave it as it is.", TEXT, metavar="")
    ] = False,
    steps: Steps = 600,
    batch: BatchSize = 16,
    lr: Lr = 2e-3,
    latents: Annotated[
        int,
        option(
            "Pictures of the world to train on, drawn and encoded once into the run's folder.",
            PICTURES,
            min=1,
        ),
    ] = 1_000,
    data: Data = None,
    world: Annotated[
        Path | None,
        option(
            "JSON file with fields of picturebook.World; by default what the model knows.",
            PICTURES,
            "--world",
        ),
    ] = None,
    size: Size = 128,
    min_snr: MinSNR = 0.0,
    drop_caption: DropCaption = 0.1,
    timesteps: TimestepsDrawn = Timesteps.uniform,
    guidance_scale: SampleGuidance = 4.0,
    loop: LoraLoop,
) -> None:
    """Train a LoRA for a model, which stays as it is. Exports one file to OUT/export, named as OUT is."""
    _run("lora", dict(locals()))
    file = out / "export" / f"{out.resolve().name}.safetensors"
    command = ["limner", "generate", "PROMPT", "--model", model, "--lora", str(file)]
    typer.echo(f"draw with it: {shlex.join(command)}", err=True)


def _lora(o: SimpleNamespace) -> "Task":
    import torch

    from limner.training.data import seed_of
    from limner.training.lora import ATTENTION, LoRASettings, LoRATask
    from limner.weights.checkpoint import read_checkpoint
    from limner.weights.hub import locate_model

    if o.style is not None and o.data is not None:
        raise InvalidRequest("--style is of the picture world, and --data takes its place: give one of them")
    located = locate_model(o.model)
    checkpoint = read_checkpoint(located.folder, tokenizer=located.tokenizer)
    world = _world(o.world, _known_world(checkpoint))
    if o.style is not None:
        world = replace(world, styles=(o.style,))
    pictures, fresh = _pictures(o, o.latents, cached=False, world=world, says_style=o.style is None)
    settings = LoRASettings(
        batch_size=o.batch,
        min_snr_gamma=o.min_snr or None,
        drop_caption=o.drop_caption,
        timesteps=o.timesteps.value,
        guidance_scale=o.guidance_scale,
        seed=o.seed,
        rank=o.rank,
        alpha=float(o.rank) if o.alpha is None else o.alpha,
        targets=o.targets or ATTENTION,
        train_text_encoder=o.train_text_encoder,
    )
    torch.manual_seed(seed_of(o.seed))
    name = o.out.resolve().name
    return LoRATask(settings, checkpoint, pictures, fresh, o.out / "cache", model=o.model, name=name)


@app.command()
@spread
def controlnet(
    out: Out,
    *,
    model: Annotated[
        str, option("picturebook, a folder, a .safetensors file, or a hub id: organisation/name.", MODEL)
    ] = "picturebook",
    preprocessor: Annotated[
        str | None,
        option("Makes the control pictures: canny (the default), canny:50:150, scribble …", PICTURES),
    ] = None,
    conditions: Annotated[
        Path | None,
        option("A folder with a control picture, of the same name, for each picture of --data.", PICTURES),
    ] = None,
    embedding: Annotated[
        str | None,
        option(
            "Channels of what embeds control pictures, such as 16,32,96,256: halved but for the first.", MODEL
        ),
    ] = None,
    init: Annotated[Path | None, option("Train this ControlNet further: a folder or a file.", MODEL)] = None,
    steps: Steps = 10_000,
    batch: BatchSize = 64,
    lr: Lr = 3e-4,
    latents: Annotated[
        int,
        option(
            "Pictures of the world to train on, drawn and encoded once into the run's folder.",
            PICTURES,
            min=1,
        ),
    ] = 20_000,
    data: Data = None,
    world: Annotated[
        Path | None,
        option(
            "JSON file with fields of picturebook.World; by default what the model knows.",
            PICTURES,
            "--world",
        ),
    ] = None,
    size: Size = 128,
    min_snr: MinSNR = 0.0,
    drop_caption: DropCaption = 0.5,
    timesteps: TimestepsDrawn = Timesteps.uniform,
    guidance_scale: SampleGuidance = 4.0,
    loop: Loop,
) -> None:
    """Train a ControlNet for a model, which stays as it is. Exports diffusers' layout to OUT/export."""
    _run("controlnet", dict(locals()))
    control = f"model={out / 'export'},image=PICTURE"
    if conditions is None:
        control += f",preprocessor={preprocessor or 'canny'}"
    command = ["limner", "generate", "PROMPT", "--model", model, "--control", control]
    typer.echo(f"draw with it: {shlex.join(command)}", err=True)


def _controlnet(o: SimpleNamespace) -> "Task":
    import torch

    from limner.training.controlnet import ControlNetSettings, ControlNetTask
    from limner.training.data import seed_of
    from limner.weights.checkpoint import read_checkpoint
    from limner.weights.control import read_control
    from limner.weights.hub import locate_model

    if o.conditions is not None and (o.data is None or o.preprocessor is not None):
        raise InvalidRequest("--conditions belong to --data, and take the place of a --preprocessor")
    located = locate_model(o.model)
    checkpoint = read_checkpoint(located.folder, tokenizer=located.tokenizer)
    pictures, fresh = _pictures(o, o.latents, cached=False, world=_world(o.world, _known_world(checkpoint)))
    settings = ControlNetSettings(
        batch_size=o.batch,
        min_snr_gamma=o.min_snr or None,
        drop_caption=o.drop_caption,
        timesteps=o.timesteps.value,
        guidance_scale=o.guidance_scale,
        seed=o.seed,
        embedding_channels=_channels(o.embedding),
    )
    start = None if o.init is None else read_control(o.init)
    torch.manual_seed(seed_of(o.seed))
    return ControlNetTask(
        settings,
        checkpoint,
        pictures,
        fresh,
        _controls(o, pictures),
        _controls(o, fresh),
        o.out / "cache",
        model=o.model,
        start=start,
    )


@app.command()
@spread
def clip(
    out: Out,
    *,
    steps: Steps = 5_000,
    batch: BatchSize = 128,
    lr: Lr = 5e-4,
    cache: Pics = 20_000,
    hard_negatives: Annotated[int, option("False captions that each picture meets.", PICTURES, min=0)] = 2,
    data: Data = None,
    world: WorldFile = None,
    size: Size = 128,
    config: Annotated[
        Path | None,
        option("A config.json for the image encoder instead of the preset.", MODEL, "--config"),
    ] = None,
    text: Annotated[
        Path | None,
        option("Take text_encoder/ and tokenizer/ from this folder, such as a U-Net run's export.", MODEL),
    ] = None,
    text_config: Annotated[Path | None, option("A config.json for a new text encoder.", MODEL)] = None,
    train_text_encoder: Annotated[
        bool, option("Train the text encoder too, or only its projection.", TEXT, metavar="")
    ] = True,
    loop: Loop,
) -> None:
    """Train CLIP: a text and an image encoder that agree. Exports both to OUT/export."""
    _run("clip", dict(locals()))


def _clip(o: SimpleNamespace) -> "Task":
    import torch

    from limner.nn.clip import CLIPVisionConfig, CLIPVisionModel
    from limner.training.clip import CLIPSettings, CLIPTask, picturebook_vision, with_projection
    from limner.training.data import seed_of
    from limner.weights.checkpoint import read_config

    pictures, fresh = _pictures(o, o.cache, cached=True)
    torch.manual_seed(seed_of(o.seed))
    tokenizer, text_encoder = _text_encoder(o, pictures)
    vision = picturebook_vision(o.size) if o.config is None else read_config(o.config, CLIPVisionConfig)
    return CLIPTask(
        CLIPSettings(o.batch, o.train_text_encoder, o.hard_negatives, o.seed),
        with_projection(text_encoder, vision.projection_dim),
        CLIPVisionModel(vision),
        tokenizer,
        pictures,
        fresh,
    )


def _text_encoder(o: SimpleNamespace, pictures: "Pictures") -> tuple["Tokenizer", "CLIPTextModel"]:
    """Those of the folder `--text`, or new ones for the captions of the pictures."""
    from limner.nn.clip import CLIPTextConfig, CLIPTextModel
    from limner.prompts.tokenizer import Tokenizer
    from limner.training.components import read_text_encoder
    from limner.training.unet import PICTUREBOOK_TEXT, train_tokenizer
    from limner.weights.checkpoint import read_config

    if o.text is not None:
        return Tokenizer.from_folder(o.text / "tokenizer"), read_text_encoder(o.text / "text_encoder")
    shape = PICTUREBOOK_TEXT if o.text_config is None else read_config(o.text_config, CLIPTextConfig)
    tokenizer = train_tokenizer(
        pictures, o.out / "tokenizer", shape.vocab_size, shape.max_position_embeddings
    )
    return tokenizer, CLIPTextModel(replace(shape, vocab_size=tokenizer.vocab_size))


@app.command()
@spread
def probe(
    out: Out,
    *,
    steps: Steps = 3_000,
    batch: BatchSize = 64,
    lr: Lr = 2e-3,
    world: WorldFile = None,
    loop: ProbeLoop,
) -> None:
    """Train the probe, which says what stands in a picture of the world. Exports to OUT/export."""
    _run("probe", dict(locals()))


def _probe(o: SimpleNamespace) -> "Task":
    from limner.picturebook.probe import ProbeConfig
    from limner.training.probe import ProbeSettings, ProbeTask

    return ProbeTask(ProbeSettings(ProbeConfig(), _world(o.world), o.batch, seed=o.seed))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path | None, typer.Option(help="Where to write; RUN/export by default.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.fp32,
) -> None:
    """Write the averaged weights of a run's newest checkpoint in the hub's layout, finished or not."""
    import torch

    from limner.training.loop import export as write

    kind, o = _read_options(run / "options.json")
    o.out = run
    types = {Dtype.fp32: torch.float32, Dtype.fp16: torch.float16, Dtype.bf16: torch.bfloat16}
    step = write(_TASKS[kind](o), run, to or run / "export", types[dtype])
    typer.echo(f"step {step}: {to or run / 'export'}")


def _pictures(
    o: SimpleNamespace, count: int, *, cached: bool, world: "World | None" = None, says_style: bool = True
) -> tuple["Pictures", "Pictures"]:
    """To train on, and to validate on; `world` is that of `--world`, if it is not given."""
    from limner.training.data import CachedPictures, FolderPictures, WorldPictures

    if o.data is not None:
        folder = FolderPictures(o.data, size=o.size)
        return folder, folder
    drawn = partial(
        WorldPictures, size=o.size, seed=o.seed, world=world or _world(o.world), says_style=says_style
    )
    pictures, fresh = drawn(count), drawn(256, split="fresh")
    return (CachedPictures(pictures, o.size, o.out / "cache") if cached else pictures), fresh


def _controls(o: SimpleNamespace, pictures: "Pictures") -> "Images":
    """The control pictures of pictures."""
    from limner.training.data import FolderControls, FolderPictures, Preprocessed

    if o.conditions is None:
        return Preprocessed(pictures, o.preprocessor or "canny")
    assert isinstance(pictures, FolderPictures)
    return FolderControls(o.conditions, pictures)


def _known_world(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The fields of the world that a model was trained on, as far as it says."""
    from limner.weights.checkpoint import CARD
    from limner.weights.files import read_json

    card = checkpoint.folder / CARD
    return read_json(card).get("world", {}) if card.is_file() else {}


def _channels(text: str | None) -> tuple[int, ...] | None:
    """From "16,32,96,256"."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise InvalidRequest(f"--embedding is {text}; expected numbers of channels, such as 16,32,96,256")
    return tuple(map(int, text.split(",")))


def _world(file: Path | None, known: Mapping[str, Any] | None = None) -> "World":
    """The world that a file holds; with none, the one that is known."""
    from limner.picturebook.world import World

    try:
        given = known or {} if file is None else json.loads(file.read_text())
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return World(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{file or given} does not give the fields of a picturebook world: {error}"
        ) from error


_TASKS: dict[str, Callable[[SimpleNamespace], "Task"]] = {
    "vae": _vae,
    "clip": _clip,
    "unet": _unet,
    "lora": _lora,
    "controlnet": _controlnet,
    "probe": _probe,
}


def _run(kind: str, options: dict[str, Any]) -> None:
    from limner.training.loop import TrainConfig, train

    loop = options.pop("loop")
    options |= {"gradient_checkpointing": False, **vars(loop)}
    o = SimpleNamespace(**options)
    task = _TASKS[kind](o)
    config = TrainConfig(
        steps=o.steps,
        lr=o.lr,
        seed=o.seed,
        lr_schedule=o.lr_schedule.value,
        warmup=o.warmup,
        ema_decay=o.ema,
        accumulate=o.accumulate,
        precision=o.precision.value,
        channels_last=o.channels_last,
        gradient_checkpointing=o.gradient_checkpointing,
        checkpoint_minutes=o.checkpoint_minutes,
        sample_minutes=o.sample_minutes,
        device=o.device,
        stop_minutes=o.minutes,
    )
    saved = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in options.items()}
    if train(task, config, o.out, resume=o.resume, options={"train": kind, **saved}):
        typer.echo(str(o.out / "export"))
    else:
        typer.echo(f"stopped; the same command resumes {o.out}", err=True)
        raise typer.Exit(130)


def _read_options(file: Path) -> tuple[str, SimpleNamespace]:
    from limner.errors import InvalidTrainingState

    try:
        values = json.loads(file.read_text())
        kind = values.pop("train")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidTrainingState(
            f"{file.parent} is no run: {file.name} is missing or broken",
            hint="train first: `limner train --help`",
        ) from error
    types: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(
            ("data", "world", "config", "init", "vae", "text", "text_config", "conditions"), Path
        ),
        "prediction": Prediction,
        "timesteps": Timesteps,
    }
    return kind, SimpleNamespace(
        **{k: types[k](v) if k in types and v is not None else v for k, v in values.items()}
    )
