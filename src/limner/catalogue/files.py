"""The networks and images that requests name, found in a catalogue and an asset store. No torch.

    resolved = resolve(request, facts, CatalogueFiles(catalogue, facts, assets))

Names are those of the catalogue: no path is opened, and nothing is downloaded. Only configs and headers
are read: enough to refuse a network that does not fit the model, with the loaded model's message.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from limner.errors import LimnerError, ModelNotFound, PickleRefused, UnsupportedModel
from limner.files import FileStamp
from limner.images.assets import Assets
from limner.images.checks import check_images
from limner.images.inputs import InputImages
from limner.images.opening import image_info
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.request import Control, GenerationRequest, ImagePrompt, Lora
from limner.request.facts import ModelFacts
from limner.request.networks import UsedAdapter, UsedControl, UsedImagePrompt

from .adapters import check_adapter, use_adapters
from .catalogue import Catalogue, Entry, is_hash
from .configs import read_config
from .contents import FAMILY_NAMES, Kind
from .control import check_mode, describe_control, use_control
from .headers import PICKLE_HINT, read_header, read_infos
from .ip_adapter import ENCODER_FOLDERS, ENCODER_WEIGHTS, encoder_fits, misfit_encoder, read_ip_adapter_config
from .layout import CONFIG, PICKLE_SUFFIXES
from .search import Choice, NamedFile, choose_fitting

T = TypeVar("T")

_MAX_NAMES = 5  # of LoRAs that a hint lists
_HASHING = 60.0  # seconds that files may take to be hashed before one is sought by its hash


class CatalogueFiles:
    """Finds what requests name for one model: the `Files` of `limner.request.resolve`.

    Args:
        catalogue: Where names are looked up.
        facts: Facts about the model.
        assets: Opens the images; by default paths and data URLs.
        images: What is known of the images, where `assets` alone does not say.
        searches: Whether the catalogue's folders are searched again for a name that it does not know.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        facts: ModelFacts,
        assets: Assets | None = None,
        images: InputImages | None = None,
        *,
        searches: bool = False,
    ) -> None:
        store = assets or Assets()
        self._catalogue, self._facts, self._searches = catalogue, facts, searches
        self._images = images or InputImages(info=lambda source: image_info(store.locate(source)))

    @property
    def family(self) -> str:
        """Family of the model."""
        return self._facts.family

    def adapters(self, loras: Sequence[Lora]) -> tuple[UsedAdapter, ...]:
        """The adapters of a pass, except those of weight 0.

        Raises:
            ModelNotFound: The catalogue has no such LoRA.
            PickleRefused: It has one, but it is a pickle.
            InvalidCheckpoint, UnsupportedModel: It is broken, or for another family.
        """
        return use_adapters(loras, self._find_adapter)

    def controls(self, controls: Sequence[Control]) -> tuple[UsedControl, ...]:
        """The network of each control.

        Raises:
            ModelNotFound: The catalogue has no such network.
            PickleRefused: It is a pickle.
            InvalidCheckpoint, UnsupportedModel: It cannot be read.
            InvalidRequest: It is for another family of models, or has no such mode.
        """
        found = []
        for control in controls:
            entries = self._named(("controlnet", "t2i_adapter"), control.model, "controls")
            choice = self._choose("control network", control.model, entries, self._read_control, "controls")
            check_mode(control, choice.value)
            found.append(replace(choice.value, warnings=choice.warnings))
        return tuple(found)

    def image_prompts(self, prompts: Sequence[ImagePrompt]) -> tuple[UsedImagePrompt, ...]:
        """The networks of each image prompt.

        Raises:
            ModelNotFound: The catalogue has no such adapter, or no encoder for it.
            PickleRefused: It is a pickle.
            InvalidCheckpoint, UnsupportedModel: It cannot be used with this model.
        """
        return tuple(map(self._image_prompt, prompts))

    def image_size(self, source: str) -> tuple[int, int]:
        """Width and height of an image, turned upright. Raises InvalidRequest where it cannot be read."""
        return self._images.size(source)

    def check_images(self, request: GenerationRequest) -> tuple[str, ...]:
        """As `limner.images.checks.check_images`."""
        return check_images(request, self._images)

    def _named(self, kinds: Sequence[Kind], name: str, field: str) -> Sequence[Entry]:
        """The entries that a name means, at least one."""
        entries = self._catalogue.named(kinds, name)
        if not entries and self._searches:
            self._catalogue.refresh()
            if is_hash(name):
                self._catalogue.wait_hashed(_HASHING)
            entries = self._catalogue.named(kinds, name)
        entries = tuple(entry for entry in entries if not entry.is_path(name))
        there = [entry for entry in entries if entry.path.exists()]
        if not there:
            error = self._catalogue.not_found(kinds, name, self._facts.family)
            if entries:
                error = ModelNotFound(f"the files of {entries[0].name} are gone")
            error.fields = (field,)
            raise error
        return there

    def _choose(
        self, what: str, name: str, entries: Sequence[Entry], read: Callable[[Path], T], field: str
    ) -> Choice[T]:
        """The first of several entries of one name that fits the model."""
        files = [NamedFile(entry.path, entry.name) for entry in entries]
        try:
            return choose_fitting(what, name, files, read)
        except LimnerError as error:
            error.fields = error.fields or (field,)
            raise

    def _find_adapter(self, name: str) -> Choice[None]:
        entries = self._named(("lora",), name, "loras")
        safe = {entry.path: entry for entry in entries if not _is_pickle(entry.path)}
        check = (lambda path: self.check_lora(safe[path], name)) if safe else _refuse_pickle
        return self._choose("LoRA", name, list(safe.values()) or entries, check, "loras")

    def check_lora(self, entry: Entry, name: str) -> None:
        """Raise InvalidCheckpoint or UnsupportedModel for a LoRA that cannot be used with the model.

        Args:
            name: What the request calls it.
        """
        own, family = self._facts.family, entry.family if entry.problem is None else None
        if own == "custom" or family not in ("", own):  # models of other sizes differ among themselves
            header = read_header(entry.path)
            shapes = {key: info.shape for key, info in header.tensors.items()}
            check_adapter(entry.path, shapes, header.metadata, self._facts.unet.cross_attention_dim)
        if family not in (None, "", own):  # which the layers of its U-Net do not tell
            raise self._misfit_adapter(name, family)

    def _misfit_adapter(self, name: str, family: str) -> UnsupportedModel:
        own = self._facts.family
        loras = self._catalogue.entries("lora", own)
        fitting = [entry.name for entry in loras if entry.problem is None][:_MAX_NAMES]
        return UnsupportedModel(
            f"the LoRA {name!r} is for {FAMILY_NAMES[family]}; the model {self._facts.name} is "
            f"{FAMILY_NAMES[own]}",
            hint=f"LoRAs for it are {', '.join(fitting)}" if fitting else "there is no LoRA for it",
        )

    def _read_control(self, path: Path) -> UsedControl:
        stamp = FileStamp.of(path)
        config, parameters = describe_control(path)
        return use_control(stamp, config, parameters, self._facts.unet, self._facts.downscale)

    def _image_prompt(self, prompt: ImagePrompt) -> UsedImagePrompt:
        entries = self._named(("ip_adapter",), prompt.model, "image_prompts")
        adapter = self._choose("IP-Adapter", prompt.model, entries, self._read_ip_adapter, "image_prompts")
        encoder = self._find_encoder(prompt, adapter)
        return UsedImagePrompt(
            adapter=FileStamp.of(adapter.path),
            encoder=FileStamp.of(encoder.path),
            images=prompt.images,
            side=encoder.value.image_size,
            weight=prompt.weight,
            warnings=adapter.warnings + encoder.warnings,
        )

    def _read_ip_adapter(self, path: Path) -> IPAdapterConfig:
        if _is_pickle(path):
            _refuse_pickle(path)
        shapes = {key: info.shape for key, info in read_infos(path).items()}
        return read_ip_adapter_config(path, shapes, self._facts.unet)

    def _find_encoder(
        self, prompt: ImagePrompt, adapter: Choice[IPAdapterConfig]
    ) -> Choice[CLIPVisionConfig]:
        """The encoder that a prompt names; else one in a folder near its adapter; else one that fits it."""
        named = prompt.image_encoder
        known = {
            entry.path: NamedFile(entry.path, entry.name)
            for entry in self._catalogue.entries("image_encoder")
            if (entry.path / ENCODER_WEIGHTS).is_file()
            and (named is None or (entry.is_named(named) and not entry.is_path(named)))
        }
        near = [Path(os.path.normpath(adapter.path.parent / folder)) for folder in ENCODER_FOLDERS]

        def read(folder: Path) -> CLIPVisionConfig:
            config = read_config(folder / CONFIG, CLIPVisionConfig)
            if not encoder_fits(config, adapter.value):
                raise misfit_encoder(folder, adapter.value)
            return config

        reason = (
            "there is none in the catalogue" if named is None else f"there is no {named!r} in the catalogue"
        )
        for group in ([known[path] for path in near if path in known], list(known.values())):
            try:
                if group:
                    choice = choose_fitting("image encoder for", prompt.model, group, read)
                    return Choice(choice.path / ENCODER_WEIGHTS, choice.value, choice.warnings)
            except LimnerError as error:
                reason = error.message
        raise ModelNotFound(
            f"there is no image encoder of the kind that {prompt.model} needs: {reason}",
            hint="name the encoder that it was trained with as `image_encoder`",
            fields=("image_prompts",),
        )


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLE_SUFFIXES and path.is_file()


def _refuse_pickle(path: Path) -> None:
    raise PickleRefused(f"{path} is a pickle, whose content is known when it is opened", hint=PICKLE_HINT)
