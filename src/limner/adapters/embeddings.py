"""Textual inversion: vectors that stand for a word in a prompt (Gal et al. 2022).

The word is the file's name. The vectors are stored as

    the authors     {"string_to_param": {"*": vectors}, "string_to_token": {"*": …}} in a pickle (.pt)
    AUTOMATIC1111   the same, as a pickle or as JSON within a PNG
    diffusers       one tensor, named by a token
    kohya           "emb_params"
    OneTrainer      "emp_params", with another tensor "emp_params_out" for its own output layer
    XL              "clip_l" for the first text encoder and "clip_g" for the second
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.catalogue.contents import FAMILIES, FAMILY_NAMES
from limner.catalogue.search import EMBEDDING_CHUNK
from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.files import parse_object
from limner.weights.pickles import read_pickle
from limner.weights.tensors import LazyTensor, open_tensors

_XL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_ONE = ("emb_params", "emp_params")
_PARAMETERS = "string_to_param."


@dataclass(frozen=True)
class Embedding:
    """A word's vectors.

    Attributes:
        name: the word.
        vectors: text encoder ("text_encoder", "text_encoder_2") -> [n, C], one row for each token; n is the
            same for all.
    """

    name: str
    vectors: Mapping[str, Tensor]


def read_embedding(path: Path, widths: Mapping[str, int]) -> Embedding:
    """Read a textual inversion file for a model.

    Args:
        widths: text encoder of the model -> channels of its token embeddings (`Targets.widths`).

    Raises:
        InvalidCheckpoint: the file is broken, or holds something else.
        UnsupportedModel: the vectors are for models of another family.
        PickleRefused: a pickle of something else than tensors and plain values.
    """
    tensors: Mapping[str, Tensor | LazyTensor]
    if path.suffix.lower() == ".safetensors":
        tensors = open_tensors(path)
    elif path.suffix.lower() == ".png":
        tensors = _read_png(path)
    else:
        tensors = read_pickle(path).tensors
    return make_embedding(path.stem, tensors, widths, source=str(path))


def make_embedding(
    name: str, tensors: Mapping[str, Tensor | LazyTensor], widths: Mapping[str, int], *, source: str
) -> Embedding:
    """Build an embedding from a file's tensors. Raises as `read_embedding`.

    Args:
        source: the file, for error messages.
    """
    if tensors.keys() >= _XL.keys():
        found = {_XL[key]: tensors[key] for key in _XL}
    else:
        tensor = tensors[_choose(tensors, source)]
        part = next((p for p, width in widths.items() if tensor.shape[-1:] == (width,)), "text_encoder")
        found = {part: tensor}
    for tensor in found.values():
        if len(tensor.shape) not in (1, 2) or 0 in tensor.shape or not tensor.dtype.is_floating_point:
            raise InvalidCheckpoint(
                f"{source} holds {tensor.dtype} of shape {list(tensor.shape)}, expected vectors [n, channels]"
            )
    given = {part: tensor.shape[-1] for part, tensor in found.items()}
    if given != dict(widths):
        widest = max(given.values())
        family = FAMILY_NAMES["xl" if len(given) > 1 else FAMILIES.get(widest, "other")]
        raise UnsupportedModel(
            f"{source} has vectors of {_show(given)} channels, which is for {family}; this model's text "
            f"encoders have {_show(widths)}"
        )
    # Read only now: a pickle of that many tensors may be a whole model.
    read = {part: one.read() if isinstance(one, LazyTensor) else one for part, one in found.items()}
    vectors = {part: tensor.reshape(-1, tensor.shape[-1]) for part, tensor in read.items()}
    if len(counts := {len(tensor) for tensor in vectors.values()}) > 1:
        raise InvalidCheckpoint(
            f"{source} has {counts} vectors for the text encoders, expected the same number for each"
        )
    return Embedding(name, vectors)


def _choose(tensors: Mapping[str, Tensor | LazyTensor], source: str) -> str:
    """The key of the vectors. Other tensors, such as token ids and step counts, are ignored."""
    keys = [key for key in tensors if key.startswith(_PARAMETERS)] or [key for key in _ONE if key in tensors]
    keys = keys or list(tensors)
    if len(keys) > 1:  # vectors have channels, and the output embeddings of OneTrainer their own names
        keys = [
            key
            for key in keys
            if tensors[key].dtype.is_floating_point
            and len(tensors[key].shape) in (1, 2)
            and tensors[key].shape[-1] > 1
            and not key.endswith("_out")
        ]
    if len(keys) == 1:
        return keys[0]
    raise InvalidCheckpoint(
        f"{source} holds {len(tensors)} tensors ({', '.join(sorted(map(ascii, tensors))[:5])}), expected the "
        "vectors of one word: one tensor, or clip_l and clip_g",
        hint="a LoRA is another kind of adapter",
    )


def _show(widths: Mapping[str, int]) -> str:
    return " and ".join(map(str, widths.values()))


def _read_png(path: Path) -> dict[str, Tensor]:
    """The vectors from the JSON, in base64, that AUTOMATIC1111 writes into a PNG text chunk."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            text = picture.info[EMBEDDING_CHUNK]
        values = parse_object(base64.b64decode(text))
        params = values["string_to_param"]
        return {f"{_PARAMETERS}{key}": torch.tensor(value["TORCHTENSOR"]) for key, value in params.items()}
    except KeyError:
        raise InvalidCheckpoint(
            f"{path} has no text chunk {EMBEDDING_CHUNK!r}",
            hint="vectors hidden in the pixels alone are not read: ask for a .safetensors file",
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise InvalidCheckpoint(f"{path} holds no vectors that can be read: {error}") from None
