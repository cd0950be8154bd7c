"""Adapters, from the names and shapes of their tensors: the models that they are for."""

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from limner.errors import UnsupportedModel
from limner.files import FileStamp
from limner.request import Lora
from limner.request.networks import UsedAdapter

from .contents import FAMILIES, FAMILY_NAMES, TRANSFORMER, Shapes, context_widths
from .search import Choice

_OTHER_FORMS = {".oft_blocks": "OFT", ".oft_r": "OFT", ".boft_R": "BOFT", ".a1.weight": "GLoRA"}


def check_adapter(path: Path, shapes: Shapes, metadata: Mapping[str, str], width: int) -> None:
    """Raise UnsupportedModel for an adapter of another family, as far as its layers of the U-Net tell.

    Args:
        path: The file, for messages.
        shapes: Key -> shape of each tensor.
        width: Channels of the text embeddings that the model's U-Net attends to.
    """
    given = next(context_widths(shapes), None)
    if given is None and any(TRANSFORMER.search(key) for key in shapes):
        reason = "its layers are those of a diffusion transformer"
    elif given not in (None, width):
        family = FAMILY_NAMES[FAMILIES.get(given or 0, "custom")]
        reason = f"it is for {family}, whose texts have {given} channels; this model's have {width}"
    else:
        return
    raise UnsupportedModel(
        f"{path} is not an adapter for this model: {reason}", hint=likely_model(shapes, metadata)
    )


def use_adapters(loras: Sequence[Lora], find: Callable[[str], Choice[Any]]) -> tuple[UsedAdapter, ...]:
    """The adapters of a request. Those of weight 0 are left out, and weights of the same file are summed.

    Args:
        find: Finds the file of a name. Its errors are raised.
    """
    weights: dict[Path, tuple[float, float]] = {}
    warnings: dict[Path, tuple[str, ...]] = {}
    for lora in loras:
        choice = find(lora.name)
        path = choice.path.resolve()
        unet, text = weights.get(path, (0.0, 0.0))
        weights[path] = unet + lora.weight, text + lora.for_text
        warnings[path] = warnings.get(path, ()) + choice.warnings
    return tuple(
        UsedAdapter(FileStamp.of(path), unet, text, warnings[path])
        for path, (unet, text) in sorted(weights.items())
        if unet or text
    )


def likely_model(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """What an adapter that does not fit seems to be for, by its names, its metadata or its shapes."""
    for end, form in _OTHER_FORMS.items():
        if any(key.endswith(end) for key in shapes):
            return f"it holds {form}, an adapter form that is not supported"
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if said := metadata.get(key):
            return f"its metadata says that it is for {ascii(said)[:80]}"
    for key, shape in shapes.items():
        if re.search(r"attn2.to_[kv].*(down|lora_A|w1_b)", key) and prod(shape[-1:]) in FAMILIES:
            return f"it seems to be for {FAMILY_NAMES[FAMILIES[shape[-1]]]}"
    if any(TRANSFORMER.search(key) for key in shapes):
        return "it seems to be for a diffusion transformer, such as Flux or Stable Diffusion 3"
    return None
