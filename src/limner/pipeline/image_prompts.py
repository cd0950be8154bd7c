"""Pictures as prompts: the adapters and image encoders that requests name, and what these have seen."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile, read_image_encoder, read_ip_adapter
from limner.errors import ModelNotFound
from limner.nn.unet import UNetConfig
from limner.request import ImagePrompt
from limner.weights.hub import locate_file

from .images import clip_pixels, open_image

File = tuple[Path, int, int]
"""With its time of change and size: another file under the same name is another adapter."""

See = Callable[[IPAdapterFile, ImageEncoderFile, Tensor | None], Tensor]
"""Adapter, encoder, and pixels [1, 3, side, side] or None for no picture -> keys and values [1, 2, T, S]."""

_PLACES = ("image_encoder", "../models/image_encoder")  # beside an adapter, as in its repository on the hub


@dataclass(frozen=True, eq=False)
class SeenPictures:
    """What cross-attentions attend to beside a text: keys and values [1, 2, T, S].

    Attributes:
        wanted: beside a text that is drawn towards.
        unwanted: beside one that is steered away from: what no picture at all gives.
    """

    wanted: Tensor
    unwanted: Tensor

    def beside(self, branch: str) -> Tensor:
        """In one branch of the guidance."""
        return self.wanted if branch.startswith("positive") else self.unwanted


@dataclass(frozen=True)
class UsedImagePrompt:
    """Pictures and the adapter that reads them, as a call names them.

    Attributes:
        adapter, encoder: their weights.
        images: paths or data URLs.
        weight: of what they add.
    """

    adapter: File
    encoder: File
    images: tuple[str, ...]
    weight: float


class ImagePromptLibrary:
    """The IP-Adapters that a model can use, and what they have made of pictures.

    What they have made is for one thread alone; all else is safe to use from any.

    Args:
        unet: of the model.
        max_bytes: of what is remembered; the pictures asked for longest ago are forgotten first.
    """

    def __init__(self, unet: UNetConfig, max_bytes: int = 256 << 20) -> None:
        self._unet, self._max_bytes = unet, max_bytes
        self._located: dict[str, Path] = {}  # so that the hub is asked once
        self._adapters: dict[File, IPAdapterFile] = {}
        self._encoders: dict[File, ImageEncoderFile] = {}
        self._known: OrderedDict[tuple[File, File, str | None], Tensor] = OrderedDict()

    def used(self, prompts: Sequence[ImagePrompt]) -> tuple[UsedImagePrompt, ...]:
        """The image prompts of a request, each with its adapter and encoder.

        Raises:
            ModelNotFound: there is no such adapter, or no encoder for it.
            InvalidCheckpoint, UnsupportedModel, PickleRefused: it cannot be used with this model.
        """
        return tuple(self._used(prompt) for prompt in prompts)

    def networks(self, prompt: UsedImagePrompt) -> tuple[IPAdapterFile, ImageEncoderFile]:
        """The adapter and the encoder that see the pictures of a prompt."""
        return self._adapter(prompt.adapter), self._encoder(prompt.encoder)

    def seen(self, prompt: UsedImagePrompt, see: See) -> SeenPictures:
        """What an adapter makes of its pictures.

        Each picture has a forward pass of its own: one alone keeps a machine busy, and its bits do not depend
        on others.

        Raises:
            InvalidRequest: a picture cannot be read.
        """
        side = self._encoder(prompt.encoder).config.image_size
        pixels = [clip_pixels(open_image(source), side) for source in prompt.images]
        wanted = torch.cat([self._one(prompt, one, see) for one in pixels], dim=2)
        unwanted = self._one(prompt, None, see).repeat(1, 1, len(pixels), 1)
        weight = torch.tensor([1.0, prompt.weight]).to(wanted)[:, None, None]  # of keys, and of values
        return SeenPictures(wanted * weight, unwanted * weight)

    def _one(self, prompt: UsedImagePrompt, pixels: Tensor | None, see: See) -> Tensor:
        """Keys and values of one picture [1, 2, T, S], remembered by its pixels."""
        content = None if pixels is None else hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        key = prompt.adapter, prompt.encoder, content
        if key not in self._known:
            self._known[key] = see(*self.networks(prompt), pixels)
        self._known.move_to_end(key)
        while len(self._known) > 1 and sum(seen.nbytes for seen in self._known.values()) > self._max_bytes:
            self._known.popitem(last=False)
        return self._known[key]

    def _used(self, prompt: ImagePrompt) -> UsedImagePrompt:
        adapter = _file(self._locate(prompt.model))
        encoder = self._choose_encoder(prompt, self._adapter(adapter))
        return UsedImagePrompt(adapter, _file(encoder), prompt.images, prompt.weight)

    def _choose_encoder(self, prompt: ImagePrompt, adapter: IPAdapterFile) -> Path:
        """The weights of the encoder that a prompt names, or of the first beside its adapter that fits."""
        named = prompt.image_encoder
        folders = [_beside(prompt.model, place) for place in _PLACES] if named is None else [named]
        reasons = []
        for folder in folders:
            try:
                config = self._locate(f"{folder}/config.json")
                encoder = read_image_encoder(config.parent)
                if encoder.fits(adapter.config):
                    return self._locate(f"{folder}/{encoder.path.name}")
            except ModelNotFound as error:
                reasons.append(error.message)
            else:
                reasons.append(
                    f"{folder} gives something else than the {adapter.config.image_channels} numbers"
                )
        raise ModelNotFound(
            f"there is no image encoder of the kind that {prompt.model} needs: {'; '.join(reasons)}",
            hint="name the folder of the one that it was trained with as its image_encoder",
        )

    def _adapter(self, file: File) -> IPAdapterFile:
        if file not in self._adapters:
            self._adapters.setdefault(file, read_ip_adapter(file[0], self._unet))
        return self._adapters[file]

    def _encoder(self, file: File) -> ImageEncoderFile:
        if file not in self._encoders:
            self._encoders.setdefault(file, read_image_encoder(file[0].parent))
        return self._encoders[file]

    def _locate(self, reference: str) -> Path:
        if not os.path.isfile(self._located.get(reference, "")):
            self._located[reference] = locate_file(reference)
        return self._located[reference]


def _beside(reference: str, place: str) -> str:
    """A place relative to the folder of a file, which is a path or in a repository on the hub."""
    repo, colon, file = "", "", reference
    if not os.path.exists(os.path.expanduser(reference)):
        repo, colon, file = reference.rpartition(":")
    return f"{repo}{colon}{os.path.normpath(os.path.join(os.path.dirname(file), place))}"


def _file(path: Path) -> File:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size
