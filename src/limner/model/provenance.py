"""The record of an image: the request, the hashes and the environment that it came from."""

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from limner import __version__
from limner.backends.base import Backend
from limner.catalogue.hashes import file_hash, lora_hash, network_hash
from limner.images.inputs import inputs_of, map_inputs
from limner.images.record import EMBEDDING, LORA, Origin, Record
from limner.request import GenerationRequest
from limner.request.resolve import PictureSpec

if TYPE_CHECKING:
    from .model import Model


def record_of(
    model: "Model",
    picture: PictureSpec,
    warnings: Sequence[str],
    refiner: "Model | None" = None,
    asked: GenerationRequest | None = None,
    pixels: str = "",
) -> Record:
    """The record of a finished image.

    Args:
        warnings: Warnings about its generation.
        asked: The request it comes from, where styles and wildcards have made its prompts.
        pixels: Hash of its pixels.
    """
    request = map_inputs(picture.request, lambda _, source: model.assets.reference(source))
    paths = {source for _, source in inputs_of(request) if not source.startswith("sha256:")}
    inputs = {path: digest for path in sorted(paths) if (digest := model.assets.digest(path)) is not None}
    identity = dict(model.identity)
    if refiner is not None:
        identity["refiner_sha256"] = refiner.identity["sha256"]
    for used in dict.fromkeys(used for one in picture.passes for used in one.adapters):
        identity[f"{LORA} {used.path.stem}"] = lora_hash(used.path, model.cache_dir)
    identity |= _embedding_hashes(model, picture)
    for control, net in zip(request.controls, picture.controls, strict=True):
        identity[f"control {control.model}"] = network_hash(net.path, model.cache_dir)
    for prompt, seen in zip(request.image_prompts, picture.image_prompts, strict=True):
        identity[f"image prompt {prompt.model}"] = file_hash(seen.adapter.path, model.cache_dir)
    return Record(
        request=request,
        origin=None if asked is None else Origin.of(asked),
        model=identity,
        inputs=inputs,
        environment=model.environment(),
        warnings=tuple(dict.fromkeys([*model.warnings, *warnings])),
        pixels=pixels,
    )


def _embedding_hashes(model: "Model", picture: PictureSpec) -> dict[str, str]:
    """The hashes of the textual inversions in an image's prompts, as a record has them.

    Those that LoRA files contain are covered by the hashes of these files.
    """
    if not (model.embedding_dirs or model.words):
        return {}
    words = model.adapters.words(())
    files = dict.fromkeys(file for text in picture.request.prompts for file in words.files_in(text))
    return {f"{EMBEDDING} {file.stem}": file_hash(file, model.cache_dir) for file in reversed(files)}


def environment(backend: Backend, prediction_type: str | None = None) -> dict[str, str | int]:
    """What must agree, besides the request and the weights, to get the same bits.

    Args:
        prediction_type: What the U-Net predicts, where that was given when the model was loaded.
    """
    device = backend.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "limner": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": backend.name,
        "device": gpu or f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
        "precision": backend.precision,
        "threads": torch.get_num_threads(),
        **({} if prediction_type is None else {"prediction_type": prediction_type}),
        **backend.details,
    }
