"""Adapter files: LoRA and its kin in the layouts of kohya, LyCORIS, PEFT, diffusers and cloneofsimo.

A file is read whole or refused: what belongs to a module of the model must fit it, and what belongs to none
is named in a warning.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.weights.files import parse_object, read_json
from limner.weights.tensors import open_tensors, read_header

from .embeddings import Embedding, make_embedding
from .patches import Patch, read_patches
from .targets import NUMBERED_WITHIN, Targets


@dataclass(frozen=True)
class Adapter:
    """A file, ready to be applied.

    Attributes:
        name: the file's, without its suffix.
        patches: part ("unet", "text_encoder", "text_encoder_2") -> parameter -> what changes it.
        embeddings: words that the file brings along.
        unapplied: keys that belong to no module of the model.
    """

    name: str
    patches: Mapping[str, Mapping[str, Patch]]
    embeddings: tuple[Embedding, ...] = ()
    unapplied: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know: what of the file has no effect."""
        if not self.unapplied:
            return ()
        return (
            f"{len(self.unapplied)} tensors of the adapter {self.name} have no effect, as this model has no "
            f"such modules, or their form is not known: {_shorten(self.unapplied)}",
        )


def read_adapter(path: Path, targets: Targets) -> Adapter:
    """Read a safetensors file for a model.

    Raises:
        InvalidCheckpoint: the file is broken: half of a form, a shape that does not fit, a key given twice.
        UnsupportedModel: nothing in it is for this model; the message says what it seems to be for.
        PickleRefused: the file is a pickle.
    """
    tensors = open_tensors(path)
    metadata = read_header(path).metadata
    try:
        return _assemble(path, tensors, metadata, targets)
    except ValueError as error:
        hint = _guess(tensors, metadata) or "the file is damaged, or made for a model of another family"
        raise InvalidCheckpoint(f"{path}: {error}", hint=hint) from None


def patched_weights(
    adapters: Iterable[tuple[Adapter, Mapping[str, float]]], part: str, base: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The parameters of a network that adapters change.

    Args:
        adapters: each with its weight by part; a part without one is left alone.
        base: gives the network's own parameter by name; it is not written to, so that to take adapters off is
            to go back to it.

    Returns:
        parameter -> what takes its place, in its dtype and on its device. Each adapter's change is that of
        the base alone, and they are added up in float32, in the order of their names.
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


# The ends of keys, and what they hold by the names of `read_patches`.
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
    unapplied: list[str] = []
    for key, tensor in remaining.items():
        match = _KEY.fullmatch(_PEFT_NAME.sub("", key))
        if match is None or match[1] not in names:
            unapplied.append(key)
        elif given[names[match[1]]].setdefault(_ENDS[match[2]], tensor) is not tensor:
            raise ValueError(f"{key!a} gives again what another key gave")
    if not given and not embeddings:
        raise UnsupportedModel(
            f"{path} is no adapter for this model: none of its {len(tensors)} tensors belongs to a "
            f"module ({_shorten(unapplied)})",
            hint=_guess(tensors, metadata),
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
    """Words that come with a LoRA, as cloneofsimo and AUTOMATIC1111 bundle them, and the other tensors."""
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
    """cloneofsimo's names of modules ("unet:17") -> part and module."""
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
    """The classes within which a file's modules are numbered, from a JSON list."""
    known = NUMBERED_WITHIN[part]
    try:
        classes = known if listed is None else set(json.loads(listed))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"metadata {part!r} is no JSON list of names") from None
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
    """(part, module) -> rank -> scale, by the config of PEFT: in the metadata, or in a file beside."""
    beside = path.with_name("adapter_config.json")
    values: dict[str, Any] = {}
    if text := metadata.get("lora_adapter_metadata"):
        try:
            values = parse_object(text)
        except ValueError as error:
            raise ValueError(f"metadata 'lora_adapter_metadata' {error}") from None
    elif any(key.startswith("base_model.") for key in tensors) and beside.is_file():
        values = read_json(beside)

    def scale_of(part: str, module: str) -> Callable[[int], float]:
        config = values | {key.removeprefix(f"{part}."): v for key, v in values.items()}
        alpha = config.get("lora_alpha", config.get("alpha"))  # of LoRA, of LoHa and LoKr
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"its alpha_pattern is {patterns!a}, expected alphas by name of module")
        for pattern, own in patterns.items():
            if _is_meant(pattern, module):
                alpha = own
        if alpha is None:
            return lambda rank: 1.0
        if not isinstance(alpha, int | float) or not abs(alpha) < 2**31:
            raise ValueError(f"its alpha is {ascii(alpha)[:80]}, expected a number")
        power = 0.5 if config.get("use_rslora") else 1.0
        return lambda rank: alpha / rank**power

    return scale_of


def _is_meant(pattern: str, module: str) -> bool:
    """Whether a key of PEFT's `alpha_pattern` is a module's name or its end.

    PEFT takes it for a regular expression. Files hold names, and an expression of theirs could run for ever.
    """
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"alpha_pattern {pattern!a} is a regular expression, expected the name of a module")
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


_OTHER_FORMS = {".oft_blocks": "OFT", ".oft_r": "OFT", ".boft_R": "BOFT", ".a1.weight": "GLoRA"}
_TRANSFORMER = re.compile(r"double_blocks|single_blocks|^transformer\.|lora_transformer_")
# Channels of the text embeddings, which the second attention of each block takes.
_FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}


def _guess(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str | None:
    """What a file seems to be, by the names of its tensors, its metadata or its shapes."""
    for end, form in _OTHER_FORMS.items():
        if any(key.endswith(end) for key in tensors):
            return f"it holds {form}, a form of adapter that is not supported"
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if said := metadata.get(key):
            return f"its metadata says that it is for {ascii(said)[:80]}"
    for key, tensor in tensors.items():
        if re.search(r"attn2.to_[kv].*(down|lora_A|w1_b)", key) and tensor.shape[-1:].numel() in _FAMILIES:
            return f"it seems to be for {_FAMILIES[tensor.shape[-1]]}"
    if any(_TRANSFORMER.search(key) for key in tensors):
        return "it seems to be for a diffusion transformer, such as Flux or Stable Diffusion 3"
    return None


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(ascii(name)[1:-1][:200] for name in names[:_SHOWN]) + more
