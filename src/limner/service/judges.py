"""Networks that ship with Limner to look at images, as a worker answers with them: captions and vectors.

    answer, _ = await hub.call("interrogate", {}, [png])
    answer, vectors = await hub.call("embed_images", {}, [png, png])

They are the probe of the picturebook world, and a small CLIP that was trained on it. A vector joins what each
is good at: colours, places and styles are the CLIP's, kinds of things the probe's, or the words' of a text.
Vectors are float32 in little-endian bytes, one part each; those of one "encoder", a hash over the files of
the networks, can be compared.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from limner.errors import InvalidRequest, UnsupportedModel

from .worker_calls import Handler, image_of

if TYPE_CHECKING:
    import torch

    from limner.picturebook.probe import Probe, Seen

MODEL = "picturebook"
"""Name of the networks that the vectors are of."""

_MOST = 256  # texts or images of one call
_SIDE = 128  # of the images that the probe reads


class Judges:
    """The networks that ship with Limner to look at images, each loaded when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @property
    def calls(self) -> Mapping[str, Handler]:
        """The calls that they answer."""
        return {
            "interrogate": self.interrogate,
            "embed_text": self.embed_text,
            "embed_images": self.embed_images,
        }

    def interrogate(
        self, params: Mapping[str, Any], parts: Sequence[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A "prompt" for an image, in the words of the picturebook model, and the "things" in it.

        Raises:
            UnsupportedModel: The probe sees nothing of its world in it.
        """
        from limner.picturebook.probe import see

        image = _only_image(parts).convert("RGB")
        with self._lock:
            [seen] = see(self._probe, _for_probe([image]))
        if not seen.things:
            raise UnsupportedModel(
                "nothing is recognised in the image",
                hint="this service describes images of the picturebook model only",
            )
        things = [
            {
                "kind": one.kind,
                "colour": one.colour,
                "box": [round(side, 3) for side in (one.left, one.top, one.right, one.bottom)],
            }
            for one in seen.things
        ]
        return {"prompt": _prompt(seen), "things": things}, []

    def embed_text(
        self, params: Mapping[str, Any], parts: Sequence[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A vector of length 1 for each of the "texts"."""
        import torch

        from limner.picturebook.captions import kinds_in

        texts = params.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(f"texts is {texts!r}; expected a list of texts", fields=("texts",))
        _check_count(len(texts), "texts")
        encoder, tokenizer = self._text_encoder
        with self._lock, torch.inference_mode():
            ids = torch.tensor([tokenizer.encode_padded(text)[0] for text in texts])
            return self._joined(encoder(ids)[1], [kinds_in(text) for text in texts])

    def embed_images(
        self, params: Mapping[str, Any], parts: Sequence[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A vector of length 1 for each image, in the space of those of texts."""
        import torch

        from limner.picturebook.probe import see

        _check_count(len(parts), "images")
        encoder, mean, spread = self._image_encoder
        side = encoder.config.image_size
        images = [image_of(part).convert("RGB") for part in parts]
        small = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
        with self._lock, torch.inference_mode():
            pixels = ((_tensor(small) + 1.0) / 2.0 - mean) / spread
            seen = see(self._probe, _for_probe(images))
            kinds = [frozenset(thing.kind for thing in one.things) for one in seen]
            return self._joined(encoder(pixels)[1], kinds)

    def _joined(
        self, meanings: "torch.Tensor", kinds: Sequence[frozenset[str]]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Vectors of length 1 of the CLIP's, [B, D], and of the kinds of things in each."""
        import torch
        from torch.nn.functional import normalize

        from limner.picturebook.scene import KINDS

        things = torch.tensor([[float(kind in its) for kind in KINDS] for its in kinds])
        rows = normalize(torch.cat([normalize(meanings, dim=-1), normalize(things, dim=-1)], dim=-1), dim=-1)
        said = {"model": MODEL, "encoder": self.encoder, "width": rows.shape[1]}
        return said, [row.numpy().astype("<f4").tobytes() for row in rows]

    @cached_property
    def encoder(self) -> str:
        """Hash over the files of the networks that the vectors are of."""
        from limner.picturebook.probe import JUDGES

        digest = hashlib.sha256()
        for path in sorted(JUDGES.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(JUDGES)}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]

    @cached_property
    def _probe(self) -> "Probe":
        from limner.picturebook.probe import load_probe

        return load_probe()

    @cached_property
    def _text_encoder(self) -> tuple[Any, Any]:
        from limner.picturebook.probe import JUDGES
        from limner.prompts.tokenizer import Tokenizer
        from limner.training.components import read_text_encoder

        encoder = read_text_encoder(JUDGES / "clip" / "text_encoder")
        return encoder, Tokenizer.from_folder(JUDGES / "clip" / "tokenizer")

    @cached_property
    def _image_encoder(self) -> tuple[Any, "torch.Tensor", "torch.Tensor"]:
        import torch

        from limner.files import read_json
        from limner.picturebook.probe import JUDGES
        from limner.weights.components import load_image_encoder

        encoder = load_image_encoder(JUDGES / "clip" / "image_encoder", torch.float32)
        scaling = read_json(JUDGES / "clip" / "feature_extractor" / "preprocessor_config.json")
        mean, spread = (torch.tensor(scaling[name])[:, None, None] for name in ("image_mean", "image_std"))
        return encoder, mean, spread


def _prompt(seen: "Seen") -> str:
    """What the probe has seen as a caption of the world: of the three largest things, if there are more."""
    from limner.picturebook.captions import plain_caption
    from limner.picturebook.evaluation import relation_holds
    from limner.picturebook.scene import Relation, Scene, Thing

    largest = sorted(seen.things, key=lambda one: -one.extent)[:3]
    found = sorted(largest, key=lambda one: one.x)
    relation: Relation = "alone"
    if len(found) == 3:
        relation = "row"
    elif len(found) == 2:
        relation = "left of"
        for pair in (found, found[::-1]):
            for upright in ("on", "above"):
                if relation_holds(upright, pair):
                    relation, found = upright, pair
    if len(found) > 1 and len({(one.kind, one.colour) for one in found}) == 1:
        relation = "group"
    things = tuple(Thing(one.kind, one.colour, "medium", one.x, one.y, one.extent) for one in found)
    return plain_caption(Scene(things, relation, seen.setting, seen.time, seen.weather, seen.style))


def _for_probe(images: list[Image.Image]) -> "torch.Tensor":
    return _tensor([image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS) for image in images])


def _tensor(images: list[Image.Image]) -> "torch.Tensor":
    from limner.images.pixels import to_tensor

    return to_tensor(images)


def _only_image(parts: Sequence[bytes]) -> Image.Image:
    if len(parts) != 1:
        raise InvalidRequest(f"there are {len(parts)} images; expected one", fields=("image",))
    return image_of(parts[0])


def _check_count(count: int, what: str) -> None:
    if not 1 <= count <= _MOST:
        raise InvalidRequest(f"there are {count} {what}; expected 1 to {_MOST}", fields=(what,))
