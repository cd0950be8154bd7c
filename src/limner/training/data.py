"""Captioned pictures to train on: drawn from the picture world, or read from a folder.

Every access is a function of an index, never of what was read before: a resumed run sees what an
uninterrupted one would have seen. Without torch, so that processes that only draw start at once.
"""

import hashlib
import json
import math
import multiprocessing
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from limner.errors import InvalidDataset
from limner.picturebook.world import Scene, World, caption, render, swapped
from limner.preprocess import preprocessed
from limner.prompts.tokenizer import Tokenizer

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))

Split = Literal["train", "fresh", "held_out"]
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "fresh": 1, "held_out": 2}


def seed_of(*key: int) -> int:
    """A 63-bit seed that is a well-mixed function of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Images(Protocol):
    """Square pictures, by index."""

    size: int  # of their sides, in pixels
    identity: dict[str, Any]  # JSON that tells these pictures from others

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """[size, size, 3] in 0 … 255; [size, size] where all are gray."""
        ...


class Pictures(Images, Protocol):
    """Those with captions, in colour."""

    def caption(self, index: int, rng: random.Random) -> str:
        """One of the ways to say what the picture shows."""
        ...

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        """Captions that a careless reader takes for this picture's; none where none are known."""
        ...


class WorldPictures:
    """Pictures of the procedural world; picture i is always the same for the same arguments.

    Args:
        split: "train" and "fresh" (other scenes) leave out the held-out combinations, "held_out" has only
            those.
        says_style: whether captions say which style a picture is in.
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
            "look": look[:16],  # changes when the world is drawn otherwise
            **({} if says_style else {"says_style": False}),
        }

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        rng = random.Random(seed_of(self.seed, _SPLIT_SEEDS[self.split], index))
        return self.world.held_out_scene(rng) if self.split == "held_out" else self.world.training_scene(rng)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(render(self.scene(index), self.size))

    def caption(self, index: int, rng: random.Random) -> str:
        return caption(self.scene(index), rng, says_style=self.says_style)

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        scenes = swapped(self.scene(index), self.world)
        return [caption(scene, rng, says_style=self.says_style) for scene in scenes]


class FolderPictures:
    """A folder of captioned pictures: `metadata.jsonl` with `file_name` and `text`, or a `.txt` beside each.

    Pictures are scaled so that their shorter side is `size`, and cropped to the centre.

    Raises:
        InvalidDataset: no pictures, one without a caption, one that cannot be read; the message names it.
    """

    def __init__(self, folder: Path, *, size: int) -> None:
        if not folder.is_dir():
            raise InvalidDataset(f"{folder} is not a folder", hint="give a folder of pictures with captions")
        self.folder, self.size = folder, size
        metadata = folder / "metadata.jsonl"
        captions = _read_metadata(metadata) if metadata.exists() else self._read_captions()
        if not captions:
            raise InvalidDataset(
                f"{folder} holds no captioned pictures",
                hint="write metadata.jsonl with file_name and text on each line, or cat.txt beside cat.png",
            )
        self.files = sorted(captions)
        self.captions = [captions[file] for file in self.files]
        self.identity = {"folder": str(folder.resolve()), "count": len(self.files), "size": size}

    def _read_captions(self) -> dict[Path, str]:
        captions = {}
        for file in sorted(f for f in self.folder.rglob("*") if f.suffix.lower() in _SUFFIXES):
            text = file.with_suffix(".txt")
            if not text.exists():
                raise InvalidDataset(f"{file} has no caption: {text.name} is missing beside it")
            captions[file] = text.read_text(encoding="utf-8").strip()
        return captions

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(_square(_opened(self.files[index]), self.size))

    def caption(self, index: int, rng: random.Random) -> str:
        return self.captions[index]

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        return []


def _opened(file: Path) -> Image.Image:
    """Raises InvalidDataset."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidDataset(f"{file} cannot be read as a picture: {error}") from error


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Scaled so that the shorter side is `size`, and cropped to the centre."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + size, top + size))


def _read_metadata(file: Path) -> dict[Path, str]:
    captions = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            picture, text = file.parent / str(entry["file_name"]), entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataset(
                f"{file}, line {number}: expected an object with file_name and text ({error!r})"
            ) from error
        if not isinstance(text, str):
            raise InvalidDataset(f"{file}, line {number}: text is {text!r}, expected a string")
        if not picture.is_file():
            raise InvalidDataset(f"{file}, line {number}: {picture} does not exist")
        captions[picture] = text
    return captions


class Preprocessed:
    """What a preprocessor makes of each picture: its control picture.

    Args:
        name: as `limner.preprocess.preprocessed` takes it, whose errors this raises.
    """

    def __init__(self, pictures: Images, name: str) -> None:
        self.pictures, self.name, self.size = pictures, name, pictures.size
        look = hashlib.sha256(self.pixels(0).tobytes()).hexdigest()
        self.identity = {"preprocessor": name, "look": look[:16]}

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(preprocessed(Image.fromarray(self.pictures.pixels(index)), self.name))


class FolderControls:
    """A control picture for each picture of a folder: in another folder, of the same name but for its suffix.

    Raises:
        InvalidDataset: a picture without one; or one in other proportions, or that cannot be read.
    """

    def __init__(self, folder: Path, pictures: FolderPictures) -> None:
        self.pictures, self.size = pictures, pictures.size
        self.files = [self._beside(folder, file) for file in pictures.files]
        self.identity = {"folder": str(folder.resolve())}

    def _beside(self, folder: Path, file: Path) -> Path:
        name = folder / os.path.relpath(file, self.pictures.folder)
        for suffix in (file.suffix, *sorted(_SUFFIXES)):
            if (found := name.with_suffix(suffix)).is_file():
                return found
        raise InvalidDataset(f"{file} has no control picture: there is no {name.with_suffix('.png')}")

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        control, picture = _opened(self.files[index]), _opened(self.pictures.files[index])
        # A pixel more or less is rounding of whoever scaled them.
        if abs(control.width * picture.height - control.height * picture.width) > max(
            *control.size, *picture.size
        ):
            raise InvalidDataset(
                f"{self.files[index]} is {control.width} x {control.height}, in other proportions than its "
                f"picture, which is {picture.width} x {picture.height}"
            )
        return np.asarray(_square(control, self.size))


def warn_of_long_captions(pictures: Pictures, tokenizer: Tokenizer) -> None:
    """Says on stderr how many of the first captions lose their end, which training cannot know."""
    captions = [pictures.caption(index, random.Random(index)) for index in range(min(500, len(pictures)))]
    long = [caption for caption in captions if tokenizer.encode_padded(caption)[1]]
    if long:
        print(
            f"warning: {len(long)} of {len(captions)} captions are longer than the text encoder's "
            f"{tokenizer.max_length} tokens and are cut, such as {long[0]!r}",
            file=sys.stderr,
        )


class Cache:
    """An array too large for memory: made once, block by block, in a file that is then mapped.

    The file only ever grows at its end, so making it resumes where it stopped, and a larger `count` adds.

    Args:
        file: of raw values; beside it, `.json` says what they are.
        identity: JSON of what the rows depend on, but for how many there are.
        count, shape, dtype: rows, and of one row.
        fill: makes the rows of each block, in order.
    """

    def __init__(
        self,
        file: Path,
        identity: dict[str, Any],
        count: int,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        fill: Callable[[list[range]], Iterable[NDArray[Any]]],
    ) -> None:
        label, row_bytes = file.with_suffix(".json"), math.prod(shape) * np.dtype(dtype).itemsize
        file.parent.mkdir(parents=True, exist_ok=True)
        if not (label.exists() and json.loads(label.read_text()) == identity):
            file.unlink(missing_ok=True)
            label.write_text(json.dumps(identity))
        with file.open("ab") as output:
            done = output.tell() // row_bytes
            output.truncate(done * row_bytes)
            blocks = [range(start, min(start + _BLOCK, count)) for start in range(done, count, _BLOCK)]
            began = said = time.monotonic()
            for block, rows in zip(blocks, fill(blocks) if blocks else (), strict=True):
                output.write(np.ascontiguousarray(rows, dtype).tobytes())
                if time.monotonic() - said > 10 or block.stop == count:
                    said = time.monotonic()
                    rate = (block.stop - done) / (said - began)
                    print(f"{file}: {block.stop}/{count}, {rate:.0f}/s", file=sys.stderr, flush=True)
        self.rows: NDArray[Any] = np.memmap(file, dtype, "r", shape=(count, *shape))


class CachedPictures:
    """`pictures`, drawn or read once into a file in `folder`, when the first is asked for."""

    def __init__(self, pictures: Pictures, size: int, folder: Path) -> None:
        self.pictures, self.identity = pictures, pictures.identity
        self.size, self.folder = size, folder

    @cached_property
    def cache(self) -> Cache:
        what = {name: value for name, value in self.identity.items() if name != "count"}
        shape, fill = (self.size, self.size, 3), partial(drawn, self.pictures)
        return Cache(self.folder / "pictures.u8", what, len(self), shape, np.uint8, fill)

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.cache.rows[index]
        return pixels

    def caption(self, index: int, rng: random.Random) -> str:
        return self.pictures.caption(index, rng)

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        return self.pictures.false_captions(index, rng)


_BLOCK = 256


def drawn(pictures: Images, blocks: list[range]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of each block [len(block), …], made ahead of their use in other processes."""
    if len(blocks) == 1:
        yield draw_block(pictures, blocks[0])
        return
    # Processes are spawned, since a forked one may inherit a lock that a thread of the parent holds.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
        waiting = deque(processes.submit(draw_block, pictures, block) for block in blocks[:8])
        for index in range(len(blocks)):
            yield waiting.popleft().result()
            if index + 8 < len(blocks):
                waiting.append(processes.submit(draw_block, pictures, blocks[index + 8]))


def draw_block(pictures: Images, block: range) -> NDArray[np.uint8]:
    return np.stack([pictures.pixels(index) for index in block])
