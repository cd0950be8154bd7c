"""Images as prompts: the IP-Adapters and image encoders of a model, and the images that they encoded."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile, read_image_encoder, read_ip_adapter
from limner.catalogue.ip_adapter import ENCODER_FOLDERS, ENCODER_WEIGHTS, misfit_encoder
from limner.catalogue.search import (
    WEIGHTS,
    Choice,
    choose_fitting,
    find_named,
    list_files,
    not_found,
)
from limner.errors import LimnerError, ModelNotFound
from limner.files import FileStamp, StampCache
from limner.forks import renew_after_fork
from limner.generation.networks import EncodedImagePrompt
from limner.nn.unet_config import UNetConfig
from limner.request import ImagePrompt
from limner.request.networks import UsedImagePrompt
from limner.weights.hub import locate_file

Encode = Callable[[IPAdapterFile, ImageEncoderFile, Tensor | None], Tensor]
"""Adapter, encoder, and pixels [1, 3, side, side], or None for no image -> keys and values [1, 2, T, S]."""

_SUFFIXES = (*WEIGHTS, ".bin")


class ImagePromptLibrary:
    """The IP-Adapters that a model can use, and the images that they encoded. Any thread may use it.

    Args:
        unet: Geometry of the model's U-Net.
        folders: Folders of IP-Adapters and image encoders, which are searched for the names in requests.
        max_bytes: Size of the encoded images that are kept; the least recently used is dropped first.
    """

    def __init__(self, unet: UNetConfig, folders: Sequence[Path] = (), max_bytes: int = 256 << 20) -> None:
        self._unet, self._folders, self._max_bytes = unet, folders, max_bytes
        self._located: dict[str, Path] = {}  # so that the hub is asked once for a name
        self._adapters = StampCache(lambda path: read_ip_adapter(path, unet))
        self._encoders = StampCache(lambda path: read_image_encoder(path.parent))
        self._encoded: OrderedDict[tuple[FileStamp, FileStamp, str | None], Tensor] = OrderedDict()
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: make a new lock, as another thread may have held the old one."""
        self._lock = threading.Lock()  # of the encoded images

    def used(self, prompts: Sequence[ImagePrompt]) -> tuple[UsedImagePrompt, ...]:
        """The image prompts of a request, each with its adapter and encoder.

        Raises:
            ModelNotFound: There is no such adapter, or no encoder for it.
            InvalidCheckpoint, UnsupportedModel, PickleRefused: It cannot be used with this model.
        """
        return tuple(self._used(prompt) for prompt in prompts)

    def networks(self, prompt: UsedImagePrompt) -> tuple[IPAdapterFile, ImageEncoderFile]:
        """The adapter and the encoder of an image prompt."""
        return self._adapters.get(prompt.adapter.path), self._encoders.get(prompt.encoder.path)

    def encode(self, prompt: UsedImagePrompt, pixels: Sequence[Tensor], encode: Encode) -> EncodedImagePrompt:
        """The keys and values of an image prompt.

        Each image has a forward pass of its own, so that its bits do not depend on the others; one alone
        keeps a machine busy.

        Args:
            pixels: Each image [1, 3, side, side].
            encode: Runs the networks on one image.
        """
        positive = torch.cat([self._encode_one(prompt, one, encode) for one in pixels], dim=2)
        negative = self._encode_one(prompt, None, encode).repeat(1, 1, len(pixels), 1)
        weight = torch.tensor([1.0, prompt.weight]).to(positive)[:, None, None]  # of keys, and of values
        return EncodedImagePrompt(positive * weight, negative * weight)

    def _encode_one(self, prompt: UsedImagePrompt, pixels: Tensor | None, encode: Encode) -> Tensor:
        """Keys and values of one image [1, 2, T, S], kept by its pixels."""
        content = None if pixels is None else hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        key = prompt.adapter, prompt.encoder, content
        with self._lock:
            found = self._encoded.get(key)
        if found is None:
            found = encode(*self.networks(prompt), pixels)
        with self._lock:
            self._encoded[key] = found
            self._encoded.move_to_end(key)
            size = sum(encoded.nbytes for encoded in self._encoded.values())
            while len(self._encoded) > 1 and size > self._max_bytes:
                _, dropped = self._encoded.popitem(last=False)
                size -= dropped.nbytes
        return found

    def _used(self, prompt: ImagePrompt) -> UsedImagePrompt:
        adapter = self._find_adapter(prompt.model)
        encoder = self._find_encoder(prompt, adapter)
        warnings = adapter.warnings + encoder.warnings
        return UsedImagePrompt(
            adapter=FileStamp.of(adapter.path),
            encoder=FileStamp.of(encoder.path),
            images=prompt.images,
            side=encoder.value.config.image_size,
            weight=prompt.weight,
            warnings=warnings,
        )

    def _find_adapter(self, name: str) -> Choice[IPAdapterFile]:
        files = find_named(name, self._folders, _SUFFIXES)
        if files:
            return choose_fitting("IP-Adapter", name, files, self._adapters.get)
        if self._folders and "/" not in name:
            raise not_found("IP-Adapter", name, self._folders, _SUFFIXES)
        path = self._locate(name)
        return Choice(path, self._adapters.get(path))

    def _find_encoder(self, prompt: ImagePrompt, adapter: Choice[IPAdapterFile]) -> Choice[ImageEncoderFile]:
        """The encoder that a prompt names; else the one in a folder near its adapter; else the one in the
        searched folders that fits the adapter."""
        named, reasons = prompt.image_encoder, list[str]()

        def read(folder: Path) -> ImageEncoderFile:
            encoder = read_image_encoder(folder)
            if not encoder.fits(adapter.value.config):
                raise misfit_encoder(folder, adapter.value.config)
            return encoder

        if named is None:
            model = prompt.model if prompt.model in self._located else str(adapter.path)
            references = [_relative(model, folder) for folder in ENCODER_FOLDERS]
        else:
            references = [named]
        for reference in references:
            try:
                encoder = read(self._locate(f"{reference}/config.json").parent)
                weights = self._locate(f"{reference}/{encoder.path.name}")  # fetched only where it fits
                return Choice(weights, encoder)
            except ModelNotFound as error:
                reasons.append(error.message)
        known = [
            file
            for file in list_files(self._folders, (), networks=True)
            if (file.path / ENCODER_WEIGHTS).is_file() and (named is None or file.is_named(named))
        ]
        try:
            if known:
                choice = choose_fitting("image encoder for", prompt.model, known, read)
                return Choice(choice.path / ENCODER_WEIGHTS, choice.value, choice.warnings)
        except LimnerError as error:
            reasons.append(error.message)
        raise ModelNotFound(
            f"there is no image encoder of the kind that {prompt.model} needs: {'; '.join(reasons)}",
            hint="give the folder of the encoder that it was trained with as `image_encoder`",
            fields=("image_prompts",),
        )

    def _locate(self, reference: str) -> Path:
        if not os.path.isfile(self._located.get(reference, "")):
            self._located[reference] = locate_file(reference)
        return self._located[reference]


def _relative(reference: str, folder: str) -> str:
    """A folder relative to that of a file, which is a path or in a repository on the hub."""
    repo, colon, file = "", "", reference
    if not os.path.exists(os.path.expanduser(reference)):
        repo, colon, file = reference.rpartition(":")
    return f"{repo}{colon}{os.path.normpath(os.path.join(os.path.dirname(file), folder))}"
