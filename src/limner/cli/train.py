"""`limner train`: train networks from scratch or further, on the picture world or on a folder of images."""

import shlex
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli.options import flag, option, spread

app = typer.Typer(
    help="Train networks from scratch or further. A run lives in a folder and resumes where it stopped.",
    no_args_is_help=True,
)


# Headings of the help, in the order of their first options.
RUN, MODEL, TEXT, IMAGES = "Run", "Model", "Text encoder", "Images"
LEARNING, SPEED = "Learning", "Speed and memory"


class Precision(StrEnum):
    auto = "auto"
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


_SAFETY = (
    "Policy that each image of the samples must pass: off (default), standard, strict, or a policy file. "
    "What it blurs is blurred on their sheet, and what it blocks is grey."
)

# Options of several commands.
Out = Annotated[
    Path, option("Folder of the run: checkpoints, metrics, samples, cache, export.", RUN, "--out")
]
Steps = Annotated[
    int, option("Number of steps of the whole run; the learning rate's schedule spans them.", LEARNING, min=1)
]
BatchSize = Annotated[int, option("Number of images per step.", LEARNING, "--batch", min=1)]
Lr = Annotated[float, option("Peak learning rate.", LEARNING, min=0)]
Ema = Annotated[float, option("Decay of the weights' moving average.", LEARNING, "--ema", min=0, max=1)]
Warmup = Annotated[int, option("Number of steps over which the learning rate rises.", LEARNING, min=0)]
Init = Annotated[Path | None, option("Folder of weights to start from, instead of random ones.", MODEL)]
ConfigFile = Annotated[
    Path | None, option("config.json with the geometry, instead of the small preset.", MODEL, "--config")
]
BaseModel = Annotated[
    str, option("picturebook, a folder, a .safetensors file, or a hub id: organisation/name.", MODEL)
]
TextFolder = Annotated[
    Path | None, option("Folder with the text_encoder/ and tokenizer/ to use, such as a run's export.", MODEL)
]
TextConfig = Annotated[Path | None, option("config.json of a new text encoder.", MODEL)]
Cache = Annotated[
    int,
    option(
        "Largest number of images of the world, which are rendered once; a short run renders what it uses.",
        IMAGES,
        min=1,
    ),
]
Latents = Annotated[
    int,
    option(
        "Largest number of images of the world, which are rendered and encoded once; a short run renders "
        "what it uses.",
        IMAGES,
        min=1,
    ),
]
DropCaption = Annotated[float, option("Share of captions left empty, for guidance.", IMAGES, min=0, max=1)]


@dataclass(frozen=True)
class AnyLoop:
    """Options of every run, whatever is trained."""

    seed: Annotated[int, option("Seed of weights, batches and noise.", RUN)] = 0
    minutes: Annotated[
        float | None, option("Stop after this many minutes, with a checkpoint to resume from.", RUN)
    ] = None
    resume: Annotated[
        bool | None,
        option(
            "Resume with changed options (steps, lr ...), or start over without the old checkpoints and "
            "cache. By default a run whose options are unchanged resumes.",
            RUN,
            "--resume/--fresh",
            metavar="",
        ),
    ] = None
    accumulate: Annotated[int, option("Number of batches per step.", LEARNING, min=1)] = 1
    ema: Ema = 0.999
    warmup: Warmup = 200
    lr_schedule: Annotated[LrSchedule, option("Learning rate after the warm-up.", LEARNING)] = (
        LrSchedule.cosine
    )
    precision: Annotated[
        Precision,
        option(
            "bf16 computes in bfloat16 where that is safe and keeps fp32 weights; auto does so if the device "
            "has instructions for it.",
            SPEED,
        ),
    ] = Precision.auto
    channels_last: Annotated[
        bool, flag("Faster on GPUs, slower for narrow networks on CPUs.", SPEED, "--channels-last")
    ] = False
    checkpoint_minutes: Annotated[
        float, option("Minutes between checkpoints.", RUN, min=0, metavar="<float>")
    ] = 3.0
    sample_minutes: Annotated[
        float, option("Minutes between validations with samples.", RUN, min=0, metavar="<float>")
    ] = 5.0
    safety: Annotated[str | None, option(_SAFETY, RUN, metavar="LEVEL|FILE")] = None
    device: Annotated[str, option("auto, cpu, cuda, cuda:1 ...", SPEED)] = "auto"


@dataclass(frozen=True)
class ProbeLoop(AnyLoop):
    ema: Ema = 0.995
    warmup: Warmup = 100


@dataclass(frozen=True)
class Loop(AnyLoop):
    """Options of a run whose networks can recompute activations."""

    gradient_checkpointing: Annotated[
        bool, flag("Less memory, more time.", SPEED, "--gradient-checkpointing")
    ] = False


@dataclass(frozen=True)
class LoraLoop(Loop):
    ema: Ema = 0.99
    warmup: Warmup = 50


@dataclass(frozen=True)
class DataOptions:
    """The images to train on."""

    data: Annotated[
        Path | None,
        option(
            "Folder of captioned images to train on instead of the world: metadata.jsonl, or .txt files.",
            IMAGES,
        ),
    ] = None
    validation: Annotated[
        Path | None,
        option("Folder of captioned images to validate on; by default a tenth of --data.", IMAGES),
    ] = None
    world: Annotated[
        Path | None,
        option(
            "JSON file with the fields of a smaller picturebook World; by default all of it, or what --model "
            "was trained on.",
            IMAGES,
            "--world",
        ),
    ] = None
    size: Annotated[int, option("Side of the images in pixels.", IMAGES, min=8)] = 128


@dataclass(frozen=True)
class CacheOptions(DataOptions):
    cache: Cache = 20_000


@dataclass(frozen=True)
class FeatureOptions(CacheOptions):
    cache: Cache = 2_000


@dataclass(frozen=True)
class LatentOptions(DataOptions):
    """How latents and captions are shown to a U-Net."""

    latents: Latents = 40_000
    min_snr: Annotated[
        float, option("Gamma of the min-SNR loss weights (5 is usual); 0 for none.", LEARNING, min=0)
    ] = 0.0
    drop_caption: DropCaption = 0.1
    timesteps: Annotated[Timesteps, option("Distribution of the timesteps.", LEARNING)] = Timesteps.uniform
    guidance_scale: Annotated[float, option("Guidance scale of the samples.", RUN)] = 4.0


@dataclass(frozen=True)
class LoraOptions(LatentOptions):
    latents: Latents = 1_000


@dataclass(frozen=True)
class ControlNetOptions(LatentOptions):
    latents: Latents = 20_000
    drop_caption: DropCaption = 0.5


@app.command()
@spread
def vae(
    out: Out,
    *,
    steps: Steps = 10_000,
    batch: BatchSize = 32,
    lr: Lr = 1e-3,
    crop: Annotated[int, option("Side of the random crops in pixels.", IMAGES, min=8)] = 64,
    kl_weight: Annotated[
        float, option("Weight of the KL divergence, per latent value.", LEARNING, min=0)
    ] = 1e-5,
    perceptual: Annotated[
        Path | None,
        option("Feature network of a perceptual loss: RUN/export/features of `train features`.", MODEL),
    ] = None,
    perceptual_weight: Annotated[float, option("Weight of the perceptual loss.", LEARNING, min=0)] = 0.1,
    adversarial_from: Annotated[
        int | None, option("First step with an adversarial loss; by default none has it.", LEARNING, min=0)
    ] = None,
    adversarial_weight: Annotated[
        float,
        option("Weight of the adversarial loss, relative to the reconstruction's.", LEARNING, min=0),
    ] = 0.5,
    decoder_only: Annotated[
        bool,
        flag("Leave the encoder of --init, and so its latents, as it is.", MODEL, "--decoder-only"),
    ] = False,
    config: ConfigFile = None,
    init: Init = None,
    pictures: CacheOptions,
    loop: Loop,
) -> None:
    """Train the autoencoder: images to latents and back. Exports to OUT/export/vae."""
    _run("vae", locals())


@app.command()
@spread
def features(
    out: Out,
    *,
    steps: Steps = 2_000,
    batch: BatchSize = 64,
    lr: Lr = 1e-3,
    crop: Annotated[int, option("Side of the crops in pixels.", IMAGES, min=8)] = 64,
    pictures: FeatureOptions,
    loop: AnyLoop,
) -> None:
    """Train the feature network of the autoencoder's perceptual loss. Exports to OUT/export/features."""
    _run("features", locals())


@app.command()
@spread
def unet(
    out: Out,
    *,
    vae: Annotated[Path, option("Folder of the autoencoder, such as RUN/export/vae of `train vae`.", MODEL)],
    steps: Steps = 20_000,
    batch: BatchSize = 64,
    lr: Lr = 5e-4,
    config: ConfigFile = None,
    init: Annotated[
        Path | None, option("Checkpoint with the U-Net, text encoder and tokenizer to start from.", MODEL)
    ] = None,
    text: TextFolder = None,
    text_config: TextConfig = None,
    train_text_encoder: Annotated[
        bool, option("Train the text encoder too, or leave it as it is.", TEXT, metavar="")
    ] = True,
    prediction: Annotated[Prediction, option("Output of the U-Net.", LEARNING)] = Prediction.v_prediction,
    zero_terminal_snr: Annotated[
        bool, flag("Make the last timestep pure noise.", LEARNING, "--zero-terminal-snr")
    ] = False,
    pictures: LatentOptions,
    loop: Loop,
) -> None:
    """Train the U-Net, and by default its text encoder with it. Exports a whole checkpoint to OUT/export."""
    _run("unet", locals())


@app.command()
@spread
def lora(
    out: Out,
    *,
    model: BaseModel = "picturebook",
    style: Annotated[
        str | None,
        option("Style of the images of the world, which their captions do not name.", IMAGES),
    ] = None,
    rank: Annotated[int, option("Number of channels between a layer's two factors.", LEARNING, min=1)] = 4,
    alpha: Annotated[
        float | None,
        option("The factors' product is scaled by alpha / rank; by default the rank.", LEARNING, min=0),
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
        bool, option("Change the text encoder's layers too, or leave them as they are.", TEXT, metavar="")
    ] = False,
    steps: Steps = 600,
    batch: BatchSize = 16,
    lr: Lr = 2e-3,
    pictures: LoraOptions,
    loop: LoraLoop,
) -> None:
    """Train a LoRA for a model, which stays as it is. Exports one file to OUT/export, named as OUT is."""
    _run("lora", locals())
    file = out / "export" / f"{out.resolve().name}.safetensors"
    command = ["limner", "generate", "PROMPT", "--model", model, "--lora", str(file)]
    typer.echo(f"generate with it: {shlex.join(command)}", err=True)


@app.command()
@spread
def controlnet(
    out: Out,
    *,
    model: BaseModel = "picturebook",
    preprocessor: Annotated[
        str | None,
        option("Makes the control images: canny (the default), canny:50:150, scribble ...", IMAGES),
    ] = None,
    conditions: Annotated[
        Path | None,
        option("Folder with a control image, of the same name, for each image of --data.", IMAGES),
    ] = None,
    embedding: Annotated[
        str | None,
        option(
            "Channels of the layers that read control images, such as 16,32,96,256; each but the first "
            "halves the resolution.",
            MODEL,
        ),
    ] = None,
    init: Annotated[
        Path | None, option("ControlNet to train further, a folder or a file, instead of a new one.", MODEL)
    ] = None,
    steps: Steps = 10_000,
    batch: BatchSize = 64,
    lr: Lr = 3e-4,
    pictures: ControlNetOptions,
    loop: Loop,
) -> None:
    """Train a ControlNet for a model, which stays as it is. Exports diffusers' layout to OUT/export."""
    _run("controlnet", locals())
    control = f"model={out / 'export'},image=PICTURE"
    if conditions is None:
        control += f",preprocessor={preprocessor or 'canny'}"
    command = ["limner", "generate", "PROMPT", "--model", model, "--control", control]
    typer.echo(f"generate with it: {shlex.join(command)}", err=True)


@app.command()
@spread
def clip(
    out: Out,
    *,
    steps: Steps = 5_000,
    batch: BatchSize = 128,
    lr: Lr = 5e-4,
    hard_negatives: Annotated[int, option("Number of false captions for each image.", IMAGES, min=0)] = 2,
    config: Annotated[
        Path | None,
        option("config.json of the image encoder, instead of the small preset.", MODEL, "--config"),
    ] = None,
    text: TextFolder = None,
    text_config: TextConfig = None,
    train_text_encoder: Annotated[
        bool, option("Train the text encoder too, or only its projection.", TEXT, metavar="")
    ] = True,
    pictures: CacheOptions,
    loop: Loop,
) -> None:
    """Train CLIP: a text and an image encoder that agree. Exports both to OUT/export."""
    _run("clip", locals())


@app.command()
@spread
def probe(
    out: Out,
    *,
    steps: Steps = 3_000,
    batch: BatchSize = 64,
    lr: Lr = 2e-3,
    world: Annotated[
        Path | None,
        option("JSON file with the fields of a smaller picturebook World.", IMAGES, "--world"),
    ] = None,
    loop: ProbeLoop,
) -> None:
    """Train the probe, which says what an image of the world shows. Exports to OUT/export."""
    _run("probe", locals())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path | None, typer.Option(help="Folder to write to; RUN/export by default.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = Dtype.fp32,
) -> None:
    """Write the averaged weights of a run's newest checkpoint in the hub's layout, finished or not."""
    import torch

    from limner.training import jobs

    types = {Dtype.fp32: torch.float32, Dtype.fp16: torch.float16, Dtype.bf16: torch.bfloat16}
    folder = to or run / "export"
    step = jobs.export(run, folder, types[dtype])
    typer.echo(f"step {step}: {folder}")


def _run(kind: str, given: dict[str, Any]) -> None:
    """Train with the options of a command; exits with 130 if the run was stopped before its end."""
    from limner.training import jobs

    options: dict[str, Any] = {}
    for name, value in given.items():
        options |= vars(value) if is_dataclass(value) else {name: value}
    options = {name: v.value if isinstance(v, StrEnum) else v for name, v in options.items()}
    out = options["out"]
    if jobs.run(kind, options):
        typer.echo(str(out / "export"))
    else:
        typer.echo(f"stopped; the same command resumes {out}", err=True)
        raise typer.Exit(130)
