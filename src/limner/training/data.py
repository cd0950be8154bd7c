"""Captioned images to train on, and those of the picture world.

Every access is a function of an index, never of what was read before: a resumed run sees what an
uninterrupted one would have seen. Without torch, so that processes that only render start quickly.
"""

import hashlib
import json
import logging
import random
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.images.preprocess import preprocessed
from limner.picturebook.world import Scene, World, caption, render, swapped
from limner.prompts.tokenizer import Tokenizer

_LOG = logging.getLogger("limner.training")

Split = Literal["train", "fresh", "held_out"]
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "fresh": 1, "held_out": 2}


def seed_of(*key: int) -> int:
    """A 63-bit seed that is a well-mixed function of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def digest(*parts: object) -> bytes:
    """SHA-256 of values as JSON; bytes are written in hexadecimal."""
    text = json.dumps(parts, sort_keys=True, default=lambda value: value.hex())
    return hashlib.sha256(text.encode()).digest()


class Images(Protocol):
    """Square images, by index.

    Attributes:
        size: Length of their sides in pixels.
        identity: JSON that tells these images from others.
    """

    size: int
    identity: dict[str, Any]

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """[size, size, 3] in 0 … 255; [size, size] if all images are gray."""
        ...

    def key(self, index: int) -> bytes:
        """SHA-256 of what the pixels of an image are made from: equal keys mean equal pixels."""
        ...


class Dataset(Images, Protocol):
    """Images in colour, with captions."""

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption of the image, chosen by `rng` where there are several."""
        ...

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        """Captions that are nearly right for this image; empty where none are known."""
        ...


class WorldPictures:
    """Images of the procedural world; image i is always the same for the same arguments.

    Args:
        count: Number of images.
        size: Length of their sides in pixels.
        split: "train" and "fresh" (other scenes) leave out the held-out combinations, "held_out" has only
            those.
        world: World whose scenes are rendered; None is the whole world.
        says_style: Whether captions name the style of an image.
    """

    def __init__(
        self,
        count: int,
        *,
        size: int = 128,
        seed: int = 0,
        split: Split = "train",
        world: World | None = None,
        says_style: bool = True,
    ) -> None:
        self.count, self.size, self.seed, self.split = count, size, seed, split
        self.world, self.says_style = world or World(), says_style
        look = hashlib.sha256(b"".join(self.pixels(i).tobytes() for i in range(min(8, count)))).hexdigest()
        self.identity = {
            "world": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.world).items()},
            "split": split,
            "count": count,
            "size": size,
            "seed": seed,
            "look": look[:16],  # changes when the renderer changes
            **({} if says_style else {"says_style": False}),
        }
        self._pixels_identity = digest(
            {name: value for name, value in self.identity.items() if name not in ("count", "says_style")}
        )

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        rng = random.Random(seed_of(self.seed, _SPLIT_SEEDS[self.split], index))
        return self.world.held_out_scene(rng) if self.split == "held_out" else self.world.training_scene(rng)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(render(self.scene(index), self.size))

    def key(self, index: int) -> bytes:
        return digest(self._pixels_identity, index)

    def caption(self, index: int, rng: random.Random) -> str:
        return caption(self.scene(index), rng, says_style=self.says_style)

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        scenes = swapped(self.scene(index), self.world)
        return [caption(scene, rng, says_style=self.says_style) for scene in scenes]


class Preprocessed:
    """The control image that a preprocessor makes of each image.

    Args:
        name: As `limner.images.preprocess.preprocessed` takes it, whose errors this raises.
    """

    def __init__(self, pictures: Images, name: str) -> None:
        self.pictures, self.name, self.size = pictures, name, pictures.size
        look = hashlib.sha256(self.pixels(0).tobytes()).hexdigest()
        self.identity = {"preprocessor": name, "look": look[:16]}

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(preprocessed(Image.fromarray(self.pictures.pixels(index)), self.name))

    def key(self, index: int) -> bytes:
        return digest(self.identity, self.pictures.key(index))


def warn_of_long_captions(pictures: Dataset, tokenizer: Tokenizer) -> None:
    """Log a warning if captions, of the first 500, are longer than the text encoder's context."""
    captions = [pictures.caption(index, random.Random(index)) for index in range(min(500, len(pictures)))]
    long = [caption for caption in captions if tokenizer.encode_padded(caption)[1]]
    if long:
        _LOG.warning(
            "%d of %d captions are longer than the text encoder's %d tokens and are truncated, such as %r",
            len(long),
            len(captions),
            tokenizer.max_length,
            long[0],
        )
