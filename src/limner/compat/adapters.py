"""Loading of LoRAs, textual inversions and IP-Adapters, with the methods of diffusers' pipelines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from limner.errors import InvalidRequest
from limner.images.opening import image_source
from limner.model.model import Model
from limner.request import ImagePrompt, Lora
from limner.request.networks import UsedAdapter, UsedImagePrompt

from .files import ComponentLocation, reject_pickles, reject_unsupported

_LORA_FILE = "pytorch_lora_weights.safetensors"
_INVERSION_FILE = "learned_embeds.safetensors"


@dataclass
class _LoadedLora:
    """A loaded LoRA file: its weight, whether it is active, and its weight where it is fused."""

    path: Path
    weight: float = 1.0
    active: bool = True
    fused: float | None = None


@dataclass
class _IPAdapter:
    """An IP-Adapter: its file, the folder of its image encoder, and its scale."""

    file: str
    encoder: str
    scale: float = 1.0


class Adapters:
    """The adapters of a pipeline. They never change its networks: each call passes the active ones along.

    Attributes:
        words: Token of each textual inversion -> its file.
    """

    def __init__(self) -> None:
        self._loras: dict[str, _LoadedLora] = {}
        self._loras_off = False
        self._ip_adapters: list[_IPAdapter] = []
        self.words: Mapping[str, Path] = {}

    def copy_adapters(self, other: "Adapters") -> None:
        """Copy the adapters of another pipeline and their current weights."""
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
        """Load a LoRA from a safetensors file, a folder or a hub id. It becomes the only active one.

        Args:
            where: Location arguments of `AutoencoderKL.from_pretrained`.

        Raises:
            ModelNotFound: There is no such file.
            InvalidRequest: The adapter name is taken, or tensors were given instead of a file.
            InvalidCheckpoint, UnsupportedModel: At the next call, if the LoRA does not fit the model.
        """
        path = _file(pretrained_model_name_or_path_or_dict, weight_name or _LORA_FILE, where)
        name = adapter_name or f"default_{len(self._loras)}"
        if name in self._loras:
            raise InvalidRequest(f"there is an adapter {name!r} already", hint="give another adapter_name")
        for other in self._loras.values():
            other.active = False  # the last loaded LoRA is the only active one until `set_adapters`
        self._loras[name] = _LoadedLora(path)

    def unload_lora_weights(self) -> None:
        """Remove all LoRAs except fused ones."""
        self._loras = {name: one for name, one in self._loras.items() if one.fused is not None}
        for one in self._loras.values():
            one.active = False

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Activate the named LoRAs with their weights, and deactivate the others.

        Raises:
            InvalidRequest: A name was not loaded, or the number of weights is not that of names.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = 1.0 if adapter_weights is None else adapter_weights
        each = [weights] * len(names) if isinstance(weights, int | float) else list(weights)
        if len(each) != len(names):
            raise InvalidRequest(f"{len(names)} adapters were named, and {len(each)} weights given")
        if not all(isinstance(weight, int | float) for weight in each):
            raise InvalidRequest("weights by block are not offered", hint="give one number for each adapter")
        self._check_names(names)
        for one in self._loras.values():
            one.active = False
        for name, weight in zip(names, each, strict=True):
            self._loras[name].active, self._loras[name].weight = True, float(weight)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove LoRAs. Raises InvalidRequest for a name that was not loaded."""
        for name in self._check_names([adapter_names] if isinstance(adapter_names, str) else adapter_names):
            del self._loras[name]

    def get_active_adapters(self) -> list[str]:
        """Names of the active LoRAs."""
        return [name for name, one in self._loras.items() if one.active]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all LoRAs, by the network that they apply to."""
        return {"unet": list(self._loras)} if self._loras else {}

    def disable_lora(self) -> None:
        """Turn all LoRAs off until `enable_lora`."""
        self._loras_off = True

    def enable_lora(self) -> None:
        """Turn the active LoRAs on again."""
        self._loras_off = False

    def fuse_lora(
        self,
        components: Sequence[str] = (),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Fix the weights of the active LoRAs; `cross_attention_kwargs` no longer scales them.

        Args:
            components: Networks to fuse into: all of them, or empty for all. A subset is not supported.
            lora_scale: Factor on the current weights.
            safe_fusing: No effect: nothing is written to the networks' weights.
            adapter_names: LoRAs to fuse; None fuses the active ones.
        """
        if components and {"unet", "text_encoder"} - {*components}:
            raise InvalidRequest(f"components is {list(components)}; LoRAs change all networks, or none")
        named = self.get_active_adapters() if adapter_names is None else self._check_names(adapter_names)
        for name in named:
            self._loras[name].fused = self._loras[name].weight * lora_scale

    @property
    def num_fused_loras(self) -> int:
        """Number of fused LoRAs."""
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
        """Load the embedding of a token from a file, a folder or a hub id; or those of several tokens from a
        list.

        Args:
            token: Token that stands for the embedding in prompts; None takes the token named in the file.
            hub_token: Access token of the hub, which other methods call `token`.
            where: Location arguments of `AutoencoderKL.from_pretrained`.

        Raises:
            ModelNotFound: There is no such file.
            InvalidRequest: The token is loaded already, or none is given and the file names none.
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
        """Remove tokens; None removes all. Raises InvalidRequest for a token that was not loaded."""
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
        """Load IP-Adapters in place of the current ones. Calls then require `ip_adapter_image`.

        Args:
            pretrained_model_name_or_path_or_dict: Folder or hub id: one for all files, or one per file.
            subfolder: Folder within it: one for all files, or one per file.
            weight_name: Name of the file, or of several.
            image_encoder_folder: Folder of the image encoder, relative to the first subfolder; if it contains
                a slash, relative to the folder or repository.
            where: revision, cache_dir, token and local_files_only, for the hub.

        Raises:
            ModelNotFound: There is no such file.
            InvalidRequest: The number of folders is neither one nor that of files.
            InvalidCheckpoint, UnsupportedModel: At the next call, if a file does not fit the model.
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
            raise InvalidRequest(f"{len(files)} files, {len(roots)} locations and {len(folders)} subfolders")
        if not isinstance(image_encoder_folder, str):
            raise InvalidRequest("image_encoder_folder is None, and image embeddings are not offered")
        parent = "" if "/" in image_encoder_folder else f"{folders[0]}/"
        encoder = _location(roots[0], {**where, "subfolder": f"{parent}{image_encoder_folder}".strip("/")})
        encoder.find_weights("model", None)
        encoders = str(encoder.find("config.json").parent)
        self._ip_adapters = [
            _IPAdapter(str(_location(root, {**where, "subfolder": folder}).find(file)), encoders)
            for root, folder, file in zip(roots, folders, files, strict=True)
        ]

    def set_ip_adapter_scale(self, scale: float | Sequence[float]) -> None:
        """Set the scales of the IP-Adapters: one number for all, or one per IP-Adapter.

        Raises:
            InvalidRequest: Scales by block were given, or another number of scales than of IP-Adapters.
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
        """Remove all IP-Adapters."""
        self._ip_adapters = []

    @property
    def ip_adapter_scales(self) -> tuple[float, ...]:
        """Scale of each IP-Adapter."""
        return tuple(adapter.scale for adapter in self._ip_adapters)

    def image_prompts(self, model: Model, image: Any) -> tuple[UsedImagePrompt, ...]:
        """Return the image prompts of the IP-Adapters.

        Args:
            image: A PIL image for one IP-Adapter, or a list with one item per IP-Adapter: a PIL image or a
                list of them.

        Raises:
            InvalidRequest: The number of items is not that of IP-Adapters, or an item is not a PIL image.
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
        return model.image_prompts.used(prompts)

    def lora_scale(self, cross_attention_kwargs: Mapping[str, Any] | None) -> float | None:
        """Return the `scale` of `cross_attention_kwargs`, or None. Raises InvalidRequest for any other
        key."""
        given = dict(cross_attention_kwargs or {})
        scale = given.pop("scale", None)
        if given:
            raise InvalidRequest(f"cross_attention_kwargs has {', '.join(given)}; only scale is offered")
        return None if scale is None else float(scale)

    def used_adapters(self, model: Model, scale: float | None) -> tuple[UsedAdapter, ...]:
        """Return the active LoRAs, each at its weight times `scale`, and the fused ones at their fixed
        weights."""
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
        return model.adapters.used(used)

    def _check_names(self, names: Sequence[str]) -> Sequence[str]:
        if strange := [name for name in names if name not in self._loras]:
            raise InvalidRequest(
                f"there is no adapter {', '.join(strange)}", hint=f"loaded are: {', '.join(self._loras)}"
            )
        return names


def _file(reference: Any, name: str, where: Mapping[str, Any]) -> Path:
    """Return a file, given by its own path or by its folder or hub id."""
    if not isinstance(reference, str | Path):
        raise InvalidRequest("tensors in memory are not offered", hint="name a safetensors file")
    location = _location(reference, where)
    return Path(reference) if Path(reference).is_file() else location.find(name)


def _location(reference: str | Path, where: Mapping[str, Any]) -> ComponentLocation:
    """Return the location that `reference` and `where` describe. Raises for arguments of another purpose."""
    use_safetensors = where.get("use_safetensors")
    reject_pickles(use_safetensors)
    location, strange = ComponentLocation.from_arguments(
        reference, {k: v for k, v in where.items() if k != "use_safetensors"}
    )
    reject_unsupported(
        strange, ("low_cpu_mem_usage", "hotswap", "text_encoder", "tokenizer", "mean_resizing")
    )
    return location


def _word_in(path: Path) -> str:
    """Return the token that a textual inversion file names.

    Raises:
        InvalidRequest: The file names none.
    """
    from limner.catalogue.headers import read_infos

    if path.suffix == ".safetensors":
        names = list(read_infos(path))
        if len(names) == 1 and names[0] != "emb_params":
            return names[0]
    raise InvalidRequest(f"{path} names no word", hint="give a token")
