"""Training runs put together: from the options of a run to its task, and from there to its export.

Options are plain values (strings, numbers, paths) by name, as `limner train` reads them and as `options.json`
keeps them in the folder of a run, by which `export` builds the task again.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from limner.backends.device import fast_in_bf16, pick_device
from limner.catalogue.configs import read_config
from limner.catalogue.layout import CARD
from limner.errors import InvalidRequest, InvalidTrainingState
from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.picturebook.probe import ProbeConfig
from limner.picturebook.world import World, read_world
from limner.prompts.tokenizer import Tokenizer
from limner.safety.images import load_checkers
from limner.safety.policy import load_policy
from limner.weights.checkpoint import Checkpoint, read_checkpoint
from limner.weights.control import read_control
from limner.weights.hub import locate_model

from . import loop
from .cache import CachedPictures
from .clip import CLIPSettings, CLIPTask, picturebook_vision, with_projection
from .components import read_text_encoder, read_unet, read_vae
from .controlnet import ControlNetSettings, ControlNetTask
from .data import Dataset, Images, Preprocessed, WorldPictures, seed_of
from .folders import FolderControls, FolderPictures
from .lora import ATTENTION, LoRASettings, LoRATask
from .perceptual import FeatureSettings, FeatureTask, read_features
from .probe import ProbeSettings, ProbeTask
from .unet import PICTUREBOOK_TEXT, UNetSettings, UNetTask, picturebook_unet, train_tokenizer
from .vae import PICTUREBOOK, VAESettings, VAETask

OPTIONS = "options.json"
_FRESH = 256  # images of the world to validate on
_PATHS = {"out", "data", "validation", "world", "config", "init", "vae", "text", "text_config"}
_PATHS |= {"conditions", "perceptual"}
_ADDED: dict[str, Any] = {  # options that runs of earlier versions do not have
    "validation": None,
    "perceptual": None,
    "perceptual_weight": 0.0,
    "adversarial_from": None,
    "adversarial_weight": 0.0,
    "safety": None,
}


def run(kind: str, options: Mapping[str, Any]) -> bool:
    """Train what `kind` names, in the folder `options["out"]`, resuming a run that the folder holds.

    Args:
        kind: A key of `TASKS`.
        options: The options of the run: those of its kind, those of `TrainConfig`, and `resume`.

    Returns:
        Whether the run is complete; otherwise it was stopped and resumes with the same options.

    Raises:
        LimnerError: As the task and `loop.train`.
    """
    o = SimpleNamespace(**options)
    if o.resume is False:
        for made in ("cache", "tokenizer"):
            shutil.rmtree(o.out / made, ignore_errors=True)
    config = loop.TrainConfig(
        steps=o.steps,
        lr=o.lr,
        seed=o.seed,
        lr_schedule=o.lr_schedule,
        warmup=o.warmup,
        ema_decay=o.ema,
        accumulate=o.accumulate,
        precision=_precision(o.precision, o.device),
        channels_last=o.channels_last,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        checkpoint_minutes=o.checkpoint_minutes,
        sample_minutes=o.sample_minutes,
        device=o.device,
        stop_minutes=o.minutes,
    )
    kept = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in options.items()}
    if o.safety is not None:
        load_checkers(load_policy(o.safety))  # an error before anything is rendered
    return loop.train(
        TASKS[kind](o), config, o.out, resume=o.resume, options={"train": kind, **kept}, safety=o.safety
    )


def export(run_dir: Path, folder: Path, dtype: torch.dtype) -> int:
    """Write the averaged weights of a run's newest checkpoint; returns its step.

    Raises:
        InvalidTrainingState: `run_dir` holds no run, or no checkpoint.
        OutputError: `folder` holds something else.
    """
    try:
        values = json.loads((run_dir / OPTIONS).read_text(encoding="utf-8"))
        task = TASKS[values.pop("train")]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidTrainingState(
            f"{run_dir} is no run: {OPTIONS} is missing or broken", hint="train first"
        ) from error
    o = SimpleNamespace(
        **_ADDED | {name: Path(v) if name in _PATHS and v is not None else v for name, v in values.items()}
    )
    o.out = run_dir
    return loop.export(task(o), run_dir, folder, dtype)


def _precision(name: str, device: str) -> Literal["bf16", "fp32"]:
    """The precision of a run; "auto" is bf16 on a device that has instructions for it."""
    if name == "auto":
        return "bf16" if fast_in_bf16(pick_device(device)) else "fp32"
    return "bf16" if name == "bf16" else "fp32"


def _vae(o: SimpleNamespace) -> loop.Task:
    if o.decoder_only and o.init is None:
        raise InvalidRequest("`decoder_only` needs an encoder to leave alone", hint="name it with `init`")
    config = o.config or (o.init / "config.json" if o.init else None)
    settings = VAESettings(
        PICTUREBOOK if config is None else read_config(config, VAEConfig),
        batch_size=o.batch,
        crop=o.crop,
        kl_weight=o.kl_weight,
        perceptual_weight=o.perceptual_weight,
        adversarial_from=None if o.adversarial_from is None else o.adversarial_from * o.accumulate,
        adversarial_weight=o.adversarial_weight,
        decoder_only=o.decoder_only,
        seed=o.seed,
    )
    features = None if o.perceptual is None else read_features(o.perceptual)
    return VAETask(settings, *_cached(o, o.cache), o.init, features)


def _features(o: SimpleNamespace) -> loop.Task:
    settings = FeatureSettings(batch_size=o.batch, crop=o.crop, seed=o.seed)
    return FeatureTask(settings, *_cached(o, o.cache))


def _unet(o: SimpleNamespace) -> loop.Task:
    pictures, fresh = _datasets(o, o.latents)
    autoencoder = read_vae(o.vae)
    torch.manual_seed(seed_of(o.seed))
    tokenizer, encoder = _text_encoder(o, o.text or o.init, pictures)
    if o.init is not None:
        network = read_unet(o.init / "unet")
    elif o.config is not None:
        network = UNet2DConditionModel(read_config(o.config, UNetConfig))
    else:
        network = UNet2DConditionModel(
            picturebook_unet(autoencoder.config.latent_channels, encoder.config.hidden_size)
        )
    settings = UNetSettings(
        **_latent_settings(o),
        train_text_encoder=o.train_text_encoder,
        prediction_type=o.prediction,
        zero_terminal_snr=o.zero_terminal_snr,
    )
    return UNetTask(settings, network, encoder, tokenizer, autoencoder, pictures, fresh, o.out / "cache")


def _lora(o: SimpleNamespace) -> loop.Task:
    if o.style is not None and o.data is not None:
        raise InvalidRequest("`style` is of the picture world, and `data` takes its place: give one of them")
    checkpoint = _checkpoint(o.model)
    world = read_world(o.world, checkpoint.folder / CARD)
    if o.style is not None:
        world = replace(world, styles=(o.style,))
    pictures, fresh = _datasets(o, o.latents, world, says_style=o.style is None)
    settings = LoRASettings(
        **_latent_settings(o),
        rank=o.rank,
        alpha=float(o.rank) if o.alpha is None else o.alpha,
        targets=o.targets or ATTENTION,
        train_text_encoder=o.train_text_encoder,
    )
    torch.manual_seed(seed_of(o.seed))
    name = o.out.resolve().name
    return LoRATask(settings, checkpoint, pictures, fresh, o.out / "cache", model=o.model, name=name)


def _controlnet(o: SimpleNamespace) -> loop.Task:
    if o.conditions is not None and (o.data is None or o.preprocessor is not None):
        raise InvalidRequest("`conditions` belong to `data`, and take the place of a `preprocessor`")
    if o.conditions is not None and o.validation is not None:
        raise InvalidRequest("`conditions` has no control images for those of `validation`: leave it out")
    checkpoint = _checkpoint(o.model)
    pictures, fresh = _datasets(o, o.latents, read_world(o.world, checkpoint.folder / CARD))
    settings = ControlNetSettings(**_latent_settings(o), embedding_channels=_channels(o.embedding))
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


def _clip(o: SimpleNamespace) -> loop.Task:
    pictures, fresh = _cached(o, o.cache)
    torch.manual_seed(seed_of(o.seed))
    tokenizer, text_encoder = _text_encoder(o, o.text, pictures)
    vision = picturebook_vision(o.size) if o.config is None else read_config(o.config, CLIPVisionConfig)
    return CLIPTask(
        CLIPSettings(o.batch, o.train_text_encoder, o.hard_negatives, o.seed),
        with_projection(text_encoder, vision.projection_dim),
        CLIPVisionModel(vision),
        tokenizer,
        pictures,
        fresh,
    )


def _probe(o: SimpleNamespace) -> loop.Task:
    return ProbeTask(ProbeSettings(ProbeConfig(), read_world(o.world), o.batch, seed=o.seed))


TASKS: dict[str, Callable[[SimpleNamespace], loop.Task]] = {
    "vae": _vae,
    "features": _features,
    "clip": _clip,
    "unet": _unet,
    "lora": _lora,
    "controlnet": _controlnet,
    "probe": _probe,
}
"""What can be trained, by the name of its command."""


def _datasets(
    o: SimpleNamespace, most: int, world: World | None = None, *, says_style: bool = True
) -> tuple[Dataset, Dataset]:
    """The images to train on and those to validate on.

    Args:
        most: Largest number of images of the world; a short run gets no more than it can use.
        world: World to render; None is that of `--world`.
    """
    if o.data is None:
        if o.validation is not None:
            raise InvalidRequest("`validation` is of a run on images of a folder: give `data` too")
        drawn = partial(
            WorldPictures, size=o.size, seed=o.seed, world=world or read_world(o.world), says_style=says_style
        )
        return drawn(min(most, o.steps * o.batch * o.accumulate)), drawn(_FRESH, split="fresh")
    folder = FolderPictures(o.data, size=o.size)
    if o.validation is not None:
        return folder, FolderPictures(o.validation, size=o.size)
    return folder.split()


def _cached(o: SimpleNamespace, most: int) -> tuple[Dataset, Dataset]:
    """As `_datasets`; those to train on are rendered or read once, into the run's folder."""
    pictures, fresh = _datasets(o, most)
    return CachedPictures(pictures, o.out / "cache"), fresh


def _controls(o: SimpleNamespace, pictures: Dataset) -> Images:
    """The control images of a data set."""
    if o.conditions is None:
        return Preprocessed(pictures, o.preprocessor or "canny")
    assert isinstance(pictures, FolderPictures)
    return FolderControls(o.conditions, pictures)


def _latent_settings(o: SimpleNamespace) -> dict[str, Any]:
    """The fields of `LatentSettings`."""
    return {
        "batch_size": o.batch,
        "min_snr_gamma": o.min_snr or None,
        "drop_caption": o.drop_caption,
        "timesteps": o.timesteps,
        "guidance_scale": o.guidance_scale,
        "seed": o.seed,
    }


def _text_encoder(
    o: SimpleNamespace, folder: Path | None, pictures: Dataset
) -> tuple[Tokenizer, CLIPTextModel]:
    """Tokenizer and text encoder of a checkpoint's folder, or new ones for the images' captions."""
    if folder is not None:
        return Tokenizer.from_folder(folder / "tokenizer"), read_text_encoder(folder / "text_encoder")
    shape = PICTUREBOOK_TEXT if o.text_config is None else read_config(o.text_config, CLIPTextConfig)
    tokenizer = train_tokenizer(
        pictures, o.out / "tokenizer", shape.vocab_size, shape.max_position_embeddings
    )
    return tokenizer, CLIPTextModel(replace(shape, vocab_size=tokenizer.vocab_size))


def _checkpoint(model: str) -> Checkpoint:
    located = locate_model(model)
    return read_checkpoint(located.folder, tokenizer=located.tokenizer)


def _channels(text: str | None) -> tuple[int, ...] | None:
    """Numbers of channels from text such as "16,32,96,256"."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise InvalidRequest(f"`embedding` is {text}; expected numbers of channels, such as 16,32,96,256")
    return tuple(map(int, text.split(",")))
