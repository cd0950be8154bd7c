"""Checkpoints: reading one from a folder in the diffusers layout or from a single file, replacing its parts,
and loading its networks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from limner.catalogue.architecture import Architecture
from limner.catalogue.catalogue import Entry
from limner.catalogue.configs import read_config
from limner.catalogue.facts import architecture_of
from limner.catalogue.hashes import file_hash
from limner.catalogue.inference_config import Prediction
from limner.catalogue.layout import CONFIG, TOKENIZER_OF, WEIGHT_STEMS, how_to_give
from limner.catalogue.pipelines import SCHEDULER_CONFIG, read_scheduler_config
from limner.catalogue.single import scaling_factor_of
from limner.errors import InvalidCheckpoint, LimnerError, ModelNotFound, UnsupportedModel
from limner.files import read_json
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.vae_config import VAEConfig

from .components import read_part
from .folder import read_folder
from .parts import Checkpoint, Part, load_text_encoder, load_unet, load_vae
from .single import read_single_file
from .tokenizers import tokenizer_files, tokenizer_folder

__all__ = [
    "Checkpoint",
    "Part",
    "check_tokenizers",
    "checked",
    "files_hash",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "read_checkpoint",
    "read_part",
    "replace_parts",
    "weights_hash",
]


def read_checkpoint(
    folder: Path,
    variant: str | None = None,
    *,
    tokenizer: Path | None = None,
    prediction_type: Prediction | None = None,
    parts: Mapping[str, Path] | None = None,
) -> Checkpoint:
    """Read the configs of a checkpoint and find its weights.

    Args:
        folder: A folder with `model_index.json`, or a single file.
        variant: Variant of the weight files, such as "fp16" (`model.fp16.safetensors`); None: plain files.
        tokenizer: Folder with the files of CLIP's tokenizer, for a single file, which has none.
        prediction_type: What the U-Net predicts, whatever the files say.
        parts: Component -> file or folder in place of the checkpoint's own, which then may be missing.
            Networks are given as `read_part` takes them, tokenizers as `tokenizer_folder`; the "scheduler" is
            a `scheduler_config.json`, or a folder or checkpoint with one.

    Raises:
        ModelNotFound: there are weights, but not of this variant.
        PickleRefused: the only weights are pickles.
        InvalidCheckpoint: a file is missing or malformed, or two configs contradict each other.
        UnsupportedModel: a pipeline or component that Limner cannot run.
    """
    paths = dict(parts or {})
    scheduler = _scheduler_file(paths.pop("scheduler")) if "scheduler" in paths else None
    tokenizers = {
        encoder: tokenizer_folder(name, paths.pop(name))
        for encoder, name in TOKENIZER_OF.items()
        if name in paths
    }
    vae = paths.pop("vae", None)
    given = {name: read_part(name, path, variant) for name, path in paths.items()}
    configs = {name: part.config for name, part in given.items()}
    try:
        if folder.is_file():
            checkpoint = read_single_file(
                folder,
                prediction_type=prediction_type,
                tokenizer=tokenizer,
                replaced=(parts or {}).keys(),
                text_configs={name: c for name, c in configs.items() if isinstance(c, CLIPTextConfig)},
            )
        else:
            checkpoint = read_folder(folder, variant, (parts or {}).keys(), scheduler)
    except OSError as error:
        raise InvalidCheckpoint(f"{folder} cannot be read: {error.strerror}") from error
    if scheduler is not None:
        checkpoint = _with_scheduler(checkpoint, scheduler)
    if prediction_type is not None:
        config = {**checkpoint.scheduler_config, "prediction_type": prediction_type}
        checkpoint = replace(checkpoint, scheduler_config=config)
    checkpoint = replace(
        checkpoint,
        parts={**checkpoint.parts, **given},
        tokenizers={**checkpoint.tokenizers, **tokenizers},
    )
    if vae is not None:
        given["vae"] = read_part("vae", vae, variant, like=_own_vae_config(checkpoint))
    replaced = {name: part.files for name, part in given.items()}
    replaced |= {TOKENIZER_OF[encoder]: tokenizer_files(folder) for encoder, folder in tokenizers.items()}
    replaced |= {} if scheduler is None else {"scheduler": (scheduler,)}
    try:
        return replace_parts(replace(checkpoint, replaced=replaced), given)
    except (InvalidCheckpoint, UnsupportedModel) as error:
        if parts and error.hint is None:
            error.hint = "; ".join(f"{name} is that of {path}" for name, path in parts.items())
        raise


def checked(entry: Entry) -> Entry:
    """A checkpoint's entry with what reading its configs and headers finds: its family and size, or the
    problem for which it cannot be loaded."""
    try:
        checkpoint = read_checkpoint(entry.path, entry.variant)
    except LimnerError as error:
        return replace(entry, family="", parameters=0, bytes=0, problem=error.message)
    return replace(
        entry,
        family=checkpoint.family,
        parameters=checkpoint.parameters,
        bytes=checkpoint.size,
        problem=None,
    )


def replace_parts(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> Checkpoint:
    """A checkpoint with these parts in the place of its own, or of those it lacks.

    Raises:
        InvalidCheckpoint, UnsupportedModel: they do not fit together; the mismatch is named.
    """
    joined = {**checkpoint.parts, **parts}
    checkpoint = replace(checkpoint, parts={name: joined[name] for name in WEIGHT_STEMS if name in joined})
    architecture_of(checkpoint.folder, {name: part.config for name, part in checkpoint.parts.items()})
    check_tokenizers(checkpoint)
    return checkpoint


def weights_hash(checkpoint: Checkpoint, cache: Path | None = None) -> str:
    """SHA-256, in hex, over the names and SHA-256 of the checkpoint's weight files; of a single file its own.

    Hashes of files are kept until the files change, as reading gigabytes takes seconds.

    Args:
        cache: Folder for hashes; None is the user's cache.
    """
    if checkpoint.files == (checkpoint.folder,):
        return file_hash(checkpoint.folder, cache)  # as everybody else names it
    lines = []
    for file in checkpoint.files:
        own = file.is_relative_to(checkpoint.folder) and file != checkpoint.folder
        name = file.relative_to(checkpoint.folder).as_posix() if own else file.name
        lines.append(f"{name} {file_hash(file, cache)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def files_hash(files: Sequence[Path], cache: Path | None = None) -> str:
    """SHA-256, in hex, of a file; of several, over their names and hashes. `cache` as of `weights_hash`."""
    if len(files) == 1:
        return file_hash(files[0], cache)
    lines = sorted(f"{file.name} {file_hash(file, cache)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _scheduler_file(path: Path) -> Path:
    """The scheduler config at a path: a file, or within a folder or a checkpoint.

    Raises:
        ModelNotFound: There is none.
    """
    for file in (path, path / SCHEDULER_CONFIG.name, path / SCHEDULER_CONFIG):
        if file.is_file() and file.suffix == ".json":
            return file
    raise ModelNotFound(
        f"there is no scheduler at {path}", hint=f"name a {SCHEDULER_CONFIG.name}, or a folder with one"
    )


def _with_scheduler(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """A checkpoint with another scheduler config, and a warning where that contradicts its own."""
    if checkpoint.folder.is_file():
        own, xl = dict(checkpoint.scheduler_config), "text_encoder_2" in checkpoint.tokenizers
        pipeline = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
        config, changes = read_scheduler_config(path, pipeline)
    else:
        file = checkpoint.folder / SCHEDULER_CONFIG
        own = read_json(file) if file.is_file() else {}
        config, changes = dict(checkpoint.scheduler_config), ()
    before, after = (one.get("prediction_type", "epsilon") for one in (own, config))
    if own and before != after:
        changes += (
            f"{path} says that the U-Net predicts {after}, and the model says {before}: {after} is taken",
        )
    return replace(checkpoint, scheduler_config=config, warnings=checkpoint.warnings + changes)


def _own_vae_config(checkpoint: Checkpoint) -> VAEConfig:
    """What a checkpoint, without its autoencoder, says of one: in a folder its config, else its family."""
    config = checkpoint.folder / "vae" / CONFIG
    if config.is_file():
        return read_config(config, VAEConfig)
    family = Architecture(checkpoint.unet_config, VAEConfig(), checkpoint.text_configs).family
    return VAEConfig(
        scaling_factor=scaling_factor_of(family),
        sample_size=checkpoint.unet_config.sample_size * VAEConfig().downscale,
    )


def check_tokenizers(checkpoint: Checkpoint) -> None:
    """Raise InvalidCheckpoint unless each text encoder has a tokenizer whose files are there."""
    for encoder, name in TOKENIZER_OF.items():
        if checkpoint.tokenizers and encoder in checkpoint.text_configs.keys() - checkpoint.tokenizers.keys():
            raise InvalidCheckpoint(
                f"{checkpoint.folder} has no {name} for its {encoder}", hint=how_to_give(name)
            )
        if encoder in checkpoint.tokenizers and encoder not in checkpoint.text_configs:
            raise InvalidCheckpoint(f"{checkpoint.folder} has no {encoder} for the {name}")
    for tokenizer in checkpoint.tokenizers.values():
        if not (tokenizer / "tokenizer.json").is_file():
            for name in ("vocab.json", "merges.txt"):
                if not (tokenizer / name).is_file():
                    raise InvalidCheckpoint(
                        f"{tokenizer / name} is missing: "
                        "expected tokenizer.json, or vocab.json and merges.txt"
                    )
