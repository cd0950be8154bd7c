"""LoRA, textual inversion and IP-Adapter as pipelines of diffusers load them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from limner.errors import InvalidRequest
from limner.pipeline.adapting import UsedAdapter
from limner.pipeline.image_prompts import UsedImagePrompt
from limner.pipeline.images import image_source
from limner.pipeline.model import Model
from limner.request import GenerationRequest, ImagePrompt, Lora

from .files import Place, refuse, refuse_pickles

_LORA_FILE = "pytorch_lora_weights.safetensors"
_INVERSION_FILE = "learned_embeds.safetensors"


@dataclass
class _Loaded:
    """A LoRA file and how much of it counts."""

    path: Path
    weight: float = 1.0
    active: bool = True
    fused: float | None = None


@dataclass
class _IPAdapter:
    """The file of an IP-Adapter, the folder of its image encoder, and how much it counts."""

    file: str
    encoder: str
    scale: float = 1.0


class Adapters:
    """What of a pipeline is about adapters. They never change its networks: each call says what counts.

    Attributes:
        words: that textual inversions were loaded for, and their files.
    """

    def __init__(self) -> None:
        self._loras: dict[str, _Loaded] = {}
        self._loras_off = False
        self._ip_adapters: list[_IPAdapter] = []
        self.words: Mapping[str, Path] = {}

    def take_adapters(self, other: "Adapters") -> None:
        """Have the adapters of another pipeline, as they are now."""
        self._loras = {name: replace(one) for name, one in other._loras.items()}
        self._loras_off, self.words = other._loras_off, other.words
        self._ip_adapters = [replace(one) for one in other._ip_adapters]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        **where: Any,
    ) -> None:
        """Load a LoRA: a safetensors file, a folder or a hub id. It counts from now on.

        Args:
            where: as of `AutoencoderKL.from_pretrained`.

        Raises:
            ModelNotFound: there is none.
            InvalidRequest: the name is taken, or what is given is no file.
            InvalidCheckpoint, UnsupportedModel: when something is drawn, if it is not for this model.
        """
        path = _file(pretrained_model_name_or_path_or_dict, weight_name or _LORA_FILE, where)
        name = adapter_name or f"default_{len(self._loras)}"
        if name in self._loras:
            raise InvalidRequest(f"there is an adapter {name!r} already", hint="give another adapter_name")
        for other in self._loras.values():
            other.active = False  # the last one that is loaded counts alone, until `set_adapters`
        self._loras[name] = _Loaded(path)

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs but those that are fused."""
        self._loras = {name: one for name, one in self._loras.items() if one.fused is not None}
        for one in self._loras.values():
            one.active = False

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Say which LoRAs count, and how much.

        Raises:
            InvalidRequest: one that was not loaded, or as many weights as names are needed.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = 1.0 if adapter_weights is None else adapter_weights
        each = [weights] * len(names) if isinstance(weights, int | float) else list(weights)
        if len(each) != len(names):
            raise InvalidRequest(f"{len(names)} adapters were named, and {len(each)} weights given")
        if not all(isinstance(weight, int | float) for weight in each):
            raise InvalidRequest("weights by block are not offered", hint="give one number for each adapter")
        self._known(names)
        for one in self._loras.values():
            one.active = False
        for name, weight in zip(names, each, strict=True):
            self._loras[name].active, self._loras[name].weight = True, float(weight)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget LoRAs. Raises InvalidRequest for one that was not loaded."""
        for name in self._known([adapter_names] if isinstance(adapter_names, str) else adapter_names):
            del self._loras[name]

    def get_active_adapters(self) -> list[str]:
        """The names of those that count."""
        return [name for name, one in self._loras.items() if one.active]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all, for the networks that they may change."""
        return {"unet": list(self._loras)} if self._loras else {}

    def disable_lora(self) -> None:
        """Have none count until `enable_lora`."""
        self._loras_off = True

    def enable_lora(self) -> None:
        """Have them count again."""
        self._loras_off = False

    def fuse_lora(
        self,
        components: Sequence[str] = (),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Fix how much those count that are active, whatever `cross_attention_kwargs` says.

        Args:
            components: which networks; all are meant, and nothing less is offered.
            safe_fusing: no effect: nothing is written to the weights.
        """
        if components and {"unet", "text_encoder"} - {*components}:
            raise InvalidRequest(f"components is {list(components)}; LoRAs change all networks, or none")
        named = self.get_active_adapters() if adapter_names is None else self._known(adapter_names)
        for name in named:
            self._loras[name].fused = self._loras[name].weight * lora_scale

    @property
    def num_fused_loras(self) -> int:
        """How many are fused."""
        return sum(one.fused is not None for one in self._loras.values())

    def unfuse_lora(self, components: Sequence[str] = ()) -> None:
        """Undo `fuse_lora`."""
        for one in self._loras.values():
            one.fused = None

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: str | Path | Sequence[str | Path],
        token: str | Sequence[str] | None = None,
        *,
        weight_name: str | None = None,
        hub_token: str | bool | None = None,
        **where: Any,
    ) -> None:
        """Load the vectors of a word: a file, a folder or a hub id; or those of several words.

        Args:
            token: the word; None is the one that the file names.
            hub_token: of an account on the hub, as `token` is elsewhere.
            where: as of `AutoencoderKL.from_pretrained`.

        Raises:
            ModelNotFound: there is none.
            InvalidRequest: there is such a word already, or the file names none.
        """
        files = pretrained_model_name_or_path
        if isinstance(files, list | tuple):
            words = token if isinstance(token, list | tuple) else [token] * len(files)
            if len(words) != len(files):
                raise InvalidRequest(f"{len(files)} files were given for {len(words)} words")
            for one, own in zip(files, words, strict=True):
                self.load_textual_inversion(one, own, weight_name=weight_name, hub_token=hub_token, **where)
            return
        if token is not None and not isinstance(token, str):
            raise InvalidRequest("several words were given for one file", hint="give one word")
        path = _file(files, weight_name or _INVERSION_FILE, {**where, "token": hub_token})
        word = token or _word_in(path)
        if word in self.words:
            raise InvalidRequest(f"there is a word {word!r} already", hint="give another token")
        self.words = {**self.words, word: path.resolve()}

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """Forget words, or all. Raises InvalidRequest for one that was not loaded."""
        named = list(self.words) if tokens is None else [tokens] if isinstance(tokens, str) else tokens
        if strange := [token for token in named if token not in self.words]:
            raise InvalidRequest(f"there is no word {', '.join(strange)}")
        self.words = {word: path for word, path in self.words.items() if word not in named}

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Sequence[str | Path],
        subfolder: str | Sequence[str],
        weight_name: str | Sequence[str],
        image_encoder_folder: str = "image_encoder",
        **where: Any,
    ) -> None:
        """Load IP-Adapters, in the place of those that are loaded; each call then takes `ip_adapter_image`.

        Args:
            pretrained_model_name_or_path_or_dict: folder or hub id, one for all or one for each file.
            subfolder: the same of folders within it.
            weight_name: of the file, or of several.
            image_encoder_folder: beside the first file; if it has a slash, in the folder or repository.
            where: of the hub revision, cache_dir, token, local_files_only.

        Raises:
            ModelNotFound: there is none.
            InvalidRequest: as many folders as files are needed.
            InvalidCheckpoint, UnsupportedModel: when something is drawn.
        """
        files = [weight_name] if isinstance(weight_name, str) else list(weight_name)
        given = pretrained_model_name_or_path_or_dict
        roots = [given] if isinstance(given, str | Path) else list(given)
        folders = [subfolder] if isinstance(subfolder, str) else list(subfolder)
        if not all(isinstance(root, str | Path) for root in roots):
            raise InvalidRequest("tensors in memory are not offered", hint="name a file")
        roots = roots * len(files) if len(roots) == 1 else roots
        folders = folders * len(files) if len(folders) == 1 else folders
        if len(roots) != len(files) or len(folders) != len(files):
            raise InvalidRequest(f"{len(files)} files, {len(roots)} places and {len(folders)} subfolders")
        if not isinstance(image_encoder_folder, str):
            raise InvalidRequest("image_encoder_folder is None, and embeddings of pictures are not offered")
        beside = "" if "/" in image_encoder_folder else f"{folders[0]}/"
        encoder = _place(roots[0], {**where, "subfolder": f"{beside}{image_encoder_folder}".strip("/")})
        encoder.find_weights("model", None)
        encoders = str(encoder.find("config.json").parent)
        self._ip_adapters = [
            _IPAdapter(str(_place(root, {**where, "subfolder": folder}).find(file)), encoders)
            for root, folder, file in zip(roots, folders, files, strict=True)
        ]

    def set_ip_adapter_scale(self, scale: float | Sequence[float]) -> None:
        """Say how much IP-Adapters count: one number for all, or one for each.

        Raises:
            InvalidRequest: scales by block, or as many as there are IP-Adapters are needed.
        """
        scales = [scale] * len(self._ip_adapters) if isinstance(scale, int | float) else list(scale)
        if not all(isinstance(one, int | float) for one in scales):
            raise InvalidRequest(
                "scales by block are not offered", hint="give one number for each IP-Adapter"
            )
        if len(scales) != len(self._ip_adapters):
            raise InvalidRequest(f"{len(scales)} scales were given for {len(self._ip_adapters)} IP-Adapters")
        for adapter, one in zip(self._ip_adapters, scales, strict=True):
            adapter.scale = float(one)

    def unload_ip_adapter(self) -> None:
        """Forget IP-Adapters."""
        self._ip_adapters = []

    @property
    def ip_adapter_scales(self) -> tuple[float, ...]:
        """How much each IP-Adapter counts."""
        return tuple(adapter.scale for adapter in self._ip_adapters)

    def image_prompts(self, model: Model, image: Any) -> tuple[UsedImagePrompt, ...]:
        """What IP-Adapters are to look at.

        Args:
            image: a PIL image; or one, or a list of them, for each IP-Adapter.

        Raises:
            InvalidRequest: no image for an IP-Adapter, none for an image, or something else than PIL images.
        """
        given = [] if image is None else [*image] if isinstance(image, list | tuple) else [image]
        if len(given) != len(self._ip_adapters):
            raise InvalidRequest(
                f"ip_adapter_image has {len(given)} items for {len(self._ip_adapters)} IP-Adapters"
            )
        prompts = []
        for adapter, one in zip(self._ip_adapters, given, strict=True):
            pictures = [*one] if isinstance(one, list | tuple) else [one]
            if not all(isinstance(picture, Image.Image) for picture in pictures):
                raise InvalidRequest("ip_adapter_image takes PIL images, or lists of them")
            prompts.append(
                ImagePrompt(
                    model=adapter.file,
                    image_encoder=adapter.encoder,
                    images=tuple(map(image_source, pictures)),
                    weight=adapter.scale,
                )
            )
        if not prompts:
            return ()
        return model.image_prompts_of(GenerationRequest(prompt="", image_prompts=tuple(prompts)))

    def lora_scale(self, cross_attention_kwargs: Mapping[str, Any] | None) -> float | None:
        """What `cross_attention_kwargs` says. Raises InvalidRequest for anything but a scale."""
        given = dict(cross_attention_kwargs or {})
        scale = given.pop("scale", None)
        if given:
            raise InvalidRequest(f"cross_attention_kwargs has {', '.join(given)}; only scale is offered")
        return None if scale is None else float(scale)

    def used_adapters(self, model: Model, scale: float | None) -> tuple[UsedAdapter, ...]:
        """The LoRAs that count, each at its weight times `scale`."""
        used = [
            Lora(name=str(one.path), weight=one.weight * (1.0 if scale is None else scale))
            for one in self._loras.values()
            if one.active and one.fused is None and not self._loras_off
        ]
        used += [
            Lora(name=str(one.path), weight=one.fused)
            for one in self._loras.values()
            if one.fused is not None
        ]
        return model.adapters_of(GenerationRequest(prompt="", loras=tuple(used))) if used else ()

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        if strange := [name for name in names if name not in self._loras]:
            raise InvalidRequest(
                f"there is no adapter {', '.join(strange)}", hint=f"loaded are: {', '.join(self._loras)}"
            )
        return names


def _file(reference: Any, name: str, where: Mapping[str, Any]) -> Path:
    """A file that is named itself, or by its folder or hub id."""
    if not isinstance(reference, str | Path):
        raise InvalidRequest("tensors in memory are not offered", hint="name a safetensors file")
    place = _place(reference, where)
    return Path(reference) if Path(reference).is_file() else place.find(name)


def _place(reference: str | Path, where: Mapping[str, Any]) -> Place:
    """A place by all arguments that were given for it. Raises for others."""
    use_safetensors = where.get("use_safetensors")
    refuse_pickles(use_safetensors)
    place, strange = Place.of(reference, {k: v for k, v in where.items() if k != "use_safetensors"})
    refuse(strange, ("low_cpu_mem_usage", "hotswap", "text_encoder", "tokenizer", "mean_resizing"))
    return place


def _word_in(path: Path) -> str:
    """The word that a file of textual inversion names.

    Raises:
        InvalidRequest: it names none.
    """
    from limner.weights.tensors import read_infos

    if path.suffix == ".safetensors":
        names = list(read_infos(path))
        if len(names) == 1 and names[0] != "emb_params":
            return names[0]
    raise InvalidRequest(f"{path} names no word", hint="give a token")
