"""Textual inversion: vectors that stand for a word in a prompt (Gal et al. 2022).

The word is the file's name. The vectors come as

    diffusers       one tensor, named by a token
    kohya           "emb_params"
    XL              "clip_l" for the first text encoder and "clip_g" for the second
    AUTOMATIC1111   {"string_to_param": {"*": vectors}, …} in a pickle (.pt), or as JSON within a PNG
"""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.weights.files import parse_object
from limner.weights.pickles import read_pickle
from limner.weights.tensors import open_tensors

_XL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the refiner of XL"}


@dataclass(frozen=True)
class Embedding:
    """A word's vectors.

    Attributes:
        name: the word.
        vectors: text encoder ("text_encoder", "text_encoder_2") -> [n, C], each in place of one token; n is
            the same for all.
    """

    name: str
    vectors: Mapping[str, Tensor]


def read_embedding(path: Path, widths: Mapping[str, int]) -> Embedding:
    """Read a file of textual inversion for a model.

    Args:
        widths: the model's text encoders -> channels of their token embeddings (`Targets.widths`).

    Raises:
        InvalidCheckpoint: the file is broken, or holds something else.
        UnsupportedModel: the vectors are for models of another family.
        PickleRefused: a pickle of something else than tensors and plain values.
    """
    if path.suffix == ".safetensors":
        tensors = open_tensors(path)
    elif path.suffix == ".png":
        tensors = _read_png(path)
    else:
        held = read_pickle(path).tensors
        _check_names(held, str(path))  # before anything is read: it may be a model
        tensors = {name: tensor.read() for name, tensor in held.items()}
    return make_embedding(path.stem, tensors, widths, source=str(path))


def make_embedding(
    name: str, tensors: Mapping[str, Tensor], widths: Mapping[str, int], *, source: str
) -> Embedding:
    """An embedding from a file's tensors. `source` names the file in messages. Raises as `read_embedding`."""
    _check_names(tensors, source)
    if tensors.keys() == _XL.keys():
        vectors = {_XL[key]: tensor for key, tensor in tensors.items()}
    else:
        [tensor] = tensors.values()
        part = next((p for p, width in widths.items() if tensor.shape[-1:] == (width,)), "text_encoder")
        vectors = {part: tensor}
    for tensor in vectors.values():
        if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
            raise InvalidCheckpoint(
                f"{source} holds {tensor.dtype} of shape {list(tensor.shape)}, expected vectors [n, channels]"
            )
    given = {part: tensor.shape[-1] for part, tensor in vectors.items()}
    if given != dict(widths):
        widest = max(given.values())
        family = "Stable Diffusion XL" if len(given) > 1 else _FAMILIES.get(widest, "another family")
        raise UnsupportedModel(
            f"{source} has vectors of {_show(given)} channels, which is for {family}; this model's text "
            f"encoders have {_show(widths)}"
        )
    vectors = {part: tensor.reshape(-1, tensor.shape[-1]) for part, tensor in vectors.items()}
    if len(counts := {len(tensor) for tensor in vectors.values()}) > 1:
        raise InvalidCheckpoint(
            f"{source} has {counts} vectors for the text encoders, expected as many for each"
        )
    return Embedding(name, vectors)


def _check_names(names: Collection[str], source: str) -> None:
    if len(names) != 1 and set(names) != _XL.keys():
        raise InvalidCheckpoint(
            f"{source} holds {len(names)} tensors ({', '.join(sorted(map(ascii, names))[:5])}), expected the "
            "vectors of one word: one tensor, or clip_l and clip_g",
            hint="a LoRA is another kind of adapter",
        )


def _show(widths: Mapping[str, int]) -> str:
    return " and ".join(map(str, widths.values()))


def _read_png(path: Path) -> dict[str, Tensor]:
    """The JSON, in base64, that AUTOMATIC1111 writes into a picture's text chunk."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            text = picture.info["sd-ti-embedding"]
        values = parse_object(base64.b64decode(text))
        params = values["string_to_param"]
        return {key: torch.tensor(value["TORCHTENSOR"]) for key, value in params.items()}
    except KeyError:
        raise InvalidCheckpoint(
            f"{path} has no text chunk 'sd-ti-embedding'",
            hint="vectors hidden in the pixels alone are not read: ask for a .safetensors file",
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise InvalidCheckpoint(f"{path} holds no vectors that can be read: {error}") from None
