"""Adapter files: LoRA and other forms, in the layouts of all programs that write them.

A tensor that belongs to a module of the model must fit it, or the file is refused. All other tensors have no
effect, and a warning names them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from limner.catalogue.adapters import check_adapter, likely_model
from limner.catalogue.headers import read_header
from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.files import parse_object, read_json
from limner.weights.tensors import open_tensors

from .embeddings import Embedding, make_embedding
from .patches import Patch, read_patches
from .targets import NUMBERED_WITHIN, Targets


@dataclass(frozen=True)
class Adapter:
    """An adapter file that was read for a model.

    Attributes:
        name: Name of the file without its suffix.
        patches: Part ("unet", "text_encoder", "text_encoder_2") -> parameter -> its change.
        embeddings: Textual inversions that the file contains.
        unapplied: Keys of tensors that have no effect.
    """

    name: str
    patches: Mapping[str, Mapping[str, Patch]]
    embeddings: tuple[Embedding, ...] = ()
    unapplied: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning that names the tensors that have no effect, if there are any."""
        if not self.unapplied:
            return ()
        return (
            f"{len(self.unapplied)} tensors of the adapter {self.name} have no effect, since this model "
            f"has no such modules or their form is not supported: {_shorten(self.unapplied)}",
        )


def read_adapter(path: Path, targets: Targets) -> Adapter:
    """Read a safetensors file for a model.

    Raises:
        InvalidCheckpoint: A factor is missing, a shape does not fit, or a tensor has two keys.
        UnsupportedModel: It is for another family, or no tensor belongs to this model; the hint says which
            model the file seems to be for.
        PickleRefused: The file is a pickle.
    """
    tensors = open_tensors(path)
    metadata = read_header(path).metadata
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if targets.context_width is not None:
        check_adapter(path, shapes, metadata, targets.context_width)
    try:
        return _assemble(path, tensors, metadata, targets)
    except ValueError as error:
        hint = likely_model(shapes, metadata) or "the file is damaged, or made for a model of another family"
        raise InvalidCheckpoint(f"{path}: {error}", hint=hint) from None


def patched_weights(
    adapters: Iterable[tuple[Adapter, Mapping[str, float]]], part: str, base: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The parameters of a network that adapters change, with their changes.

    Each change is computed from the unmodified weight, so the order of adapters does not matter. The changes
    are summed in float32.

    Args:
        adapters: Each with its weight by part; parts without a weight are not changed.
        base: Parameter name -> the network's own parameter, which is not written to.

    Returns:
        Parameter -> its changed value, in the base's dtype and on its device.
    """
    changes: dict[str, list[tuple[Patch, float]]] = defaultdict(list)
    for adapter, weights in sorted(adapters, key=lambda pair: (pair[0].name, pair[1].get(part, 0.0))):
        weight = weights.get(part, 0.0)
        for name, patch in adapter.patches.get(part, {}).items() if weight else ():
            changes[name].append((patch, weight))
    patched: dict[str, Tensor] = {}
    for name, patches in changes.items():
        original = base(name).detach()
        value = original.float()
        for patch, weight in patches:
            value = value + weight * patch.to(original.device).change(original)
        patched[name] = value.to(original.dtype)
    return patched


# End of a key -> name of the tensor, as `read_patches` takes it.
_ENDS = {
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_mid.weight": "core",
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.bias": "up_bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ":up": "up",
    ":down": "down",
    **{
        f".{name}": name
        for name in (
            *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "weight", "on_input"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        )
    },
}
_SHOWN = 10  # keys in a message
_KEY = re.compile(rf"(.+?)({'|'.join(map(re.escape, _ENDS))})")
_PEFT_NAME = re.compile(
    r"(?<=\.lora_[AB])\.default(_\d+)?(?=\.)|(?<=\.lora_magnitude_vector)\.default(_\d+)?"
)


def _assemble(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], targets: Targets
) -> Adapter:
    embeddings, remaining = _take_embeddings(path, tensors, metadata, targets)
    names = {**targets.names, **_numbered(path, remaining, metadata, targets)}
    given: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)  # part and module -> field -> tensor
    places: dict[str, tuple[str, str]] = {}  # key -> part and module
    unapplied: list[str] = []
    for key, tensor in remaining.items():
        match = _KEY.fullmatch(_PEFT_NAME.sub("", key))
        if match is None or match[1] not in names:
            unapplied.append(key)
            continue
        places[key] = names[match[1]]
        if given[places[key]].setdefault(_ENDS[match[2]], tensor) is not tensor:
            raise ValueError(f"{key!a} names the same tensor as another key")
    # An alpha without weights has no effect.
    idle = [where for where, fields in given.items() if fields.keys() == {"alpha"}]
    unapplied += [key for key, where in places.items() if where in idle]
    for where in idle:
        del given[where]
    if not given and not embeddings:
        raise UnsupportedModel(
            f"{path} is not an adapter for this model: none of its {len(tensors)} tensors belongs to one of "
            f"the model's modules ({_shorten(unapplied)})",
            hint=likely_model({key: tuple(tensor.shape) for key, tensor in tensors.items()}, metadata),
        )
    scale_of = _peft_scales(path, remaining, metadata)
    patches: dict[str, dict[str, Patch]] = defaultdict(dict)
    for (part, module), fields in given.items():
        shapes = targets.shapes[part]
        own = {kind: shapes[name] for kind in ("weight", "bias") if (name := f"{module}.{kind}") in shapes}
        try:
            found = read_patches(fields, own, scale_of(part, module))
        except ValueError as error:
            raise ValueError(f"{part} {module}: {error}") from None
        patches[part] |= {f"{module}.{kind}": patch for kind, patch in found.items()}
    return Adapter(path.stem, dict(patches), embeddings, tuple(unapplied))


def _take_embeddings(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], targets: Targets
) -> tuple[tuple[Embedding, ...], dict[str, Tensor]]:
    """The textual inversions in a LoRA file (of cloneofsimo and AUTOMATIC1111), and the other tensors."""
    words: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if metadata.get(key) == "<embed>":
            words[key][key] = tensor
        elif bundled := re.fullmatch(r"bundle_emb\.([^.]+)\.(.+)", key):
            words[bundled[1]][bundled[2]] = tensor
        else:
            others[key] = tensor
    embeddings = [
        make_embedding(word, held, targets.widths, source=str(path)) for word, held in words.items()
    ]
    return tuple(embeddings), others


def _numbered(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], targets: Targets
) -> dict[str, tuple[str, str]]:
    """cloneofsimo's name of a module ("unet:17") -> its part and module."""
    names: dict[str, tuple[str, str]] = {}
    for part in ("unet", "text_encoder"):
        own = [key for key in tensors if key.startswith(f"{part}:")]
        if not own or part not in targets.shapes:
            continue
        modules = targets.numbered(part, _classes(path, part, metadata.get(part)))
        names |= {f"{part}:{i}": (part, module) for i, module in enumerate(modules)}
        for key in own:
            name, _, side = key.rpartition(":")
            rank, shape = metadata.get(f"{name}:rank"), list(tensors[key].shape)
            if side == "down" and rank is not None and [*map(str, shape[:1])] != [rank]:
                raise ValueError(f"{key!a} is {shape}, and its metadata says rank {rank!a}")
    return names


def _classes(path: Path, part: str, listed: str | None) -> set[str]:
    """The classes whose modules a file numbers, from a JSON list."""
    known = NUMBERED_WITHIN[part]
    try:
        classes = known if listed is None else set(json.loads(listed))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"metadata {part!r} is not a JSON list of names") from None
    if not classes or not classes <= known:
        given = ", ".join(sorted(map(ascii, classes)))
        raise UnsupportedModel(
            f"{path} numbers modules of the {part} within {given or 'none'}, expected some of "
            f"{', '.join(sorted(known))}"
        )
    return classes


def _peft_scales(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Callable[[str, str], Callable[[int], float]]:
    """(part, module) -> rank -> scale, from PEFT's config in the metadata or in `adapter_config.json` next to
    the file.

    The config is read and checked only if a module has no alpha tensor.
    """
    config_file = path.with_name("adapter_config.json")

    @cache
    def config() -> dict[str, Any]:
        if text := metadata.get("lora_adapter_metadata"):
            try:
                return parse_object(text)
            except ValueError as error:
                raise ValueError(f"metadata 'lora_adapter_metadata' {error}") from None
        if any(key.startswith("base_model.") for key in tensors) and config_file.is_file():
            return read_json(config_file)
        return {}

    def scale(part: str, module: str, rank: int) -> float:
        values = config() | {key.removeprefix(f"{part}."): value for key, value in config().items()}
        alpha = values.get("lora_alpha", values.get("alpha"))  # of LoRA; of LoHa and LoKr
        patterns = values.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"its alpha_pattern is {patterns!a}, expected an object: module name -> alpha")
        for pattern, own in patterns.items():
            if _names_module(pattern, module):
                alpha = own
        if alpha is None:
            return 1.0
        if not isinstance(alpha, int | float) or not abs(alpha) < 2**31:
            raise ValueError(f"its alpha is {ascii(alpha)[:80]}, expected a number")
        return float(alpha / rank ** (0.5 if values.get("use_rslora") else 1.0))

    return lambda part, module: partial(scale, part, module)


def _names_module(pattern: str, module: str) -> bool:
    """Whether a key of PEFT's `alpha_pattern` is a module's name or its end.

    PEFT reads it as a regular expression. Published files hold plain names, and a hostile expression could
    run forever.
    """
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"alpha_pattern {pattern!a} is a regular expression, expected the name of a module")
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(ascii(name)[1:-1][:200] for name in names[:_SHOWN]) + more
