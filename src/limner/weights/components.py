"""Single networks of a model in a place of their own: a folder, a file, or another checkpoint."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from limner.catalogue.configs import read_config
from limner.catalogue.contents import Shapes
from limner.catalogue.geometry import clip_text, compvis_unet, compvis_vae, hub_unet, hub_vae, openclip_text
from limner.catalogue.headers import TensorInfo, read_header
from limner.catalogue.layout import CONFIG, MODEL_INDEX, WEIGHT_STEMS
from limner.catalogue.pipelines import weights_in
from limner.catalogue.single import UNUSED_TEXT, VAE, XL_POOLED, is_whole, parts_in, unused_text_layer
from limner.errors import InvalidCheckpoint, ModelNotFound
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.vae_config import VAEConfig

from .folder import hub_part
from .keymaps import openclip_entries, unet_entries, vae_entries
from .load import image_encoder_name, text_encoder_name, unet_name, vae_name
from .parts import HubPart, Part, SinglePart, load_network
from .single import check_keys, read_single_file
from .tensors import open_tensors

_VAE_WITHOUT_COUNTERPART = re.compile(r"(?:model_ema|loss)\..+")  # of its training
_HUB_VAE = "encoder.down_blocks.0.resnets.0.conv1.weight"


def read_part(name: str, path: Path, variant: str | None = None, *, like: VAEConfig | None = None) -> Part:
    """One network of a model; weights are found, and not read.

    Args:
        name: "unet", "vae", "text_encoder" or "text_encoder_2".
        path: A folder with its `config.json` and weights, a file out of such a folder, another checkpoint
            (folder or single file) that has one, or a file with this network alone under any of its names.
        variant: Variant of the weight files of a folder, such as "fp16"; its plain files where it has none.
        like: What the shapes of an autoencoder do not tell, such as the scaling factor; 1.x's by default.

    Raises:
        ModelNotFound: there is nothing at `path`, or no weights.
        InvalidCheckpoint, UnsupportedModel, PickleRefused: it cannot be read, or is another kind of network.
    """
    if path.is_dir():
        folder = path / name if (path / MODEL_INDEX).is_file() else path
        return hub_part(name, folder / weights_in(folder, WEIGHT_STEMS[name], variant))
    if not path.is_file():
        raise ModelNotFound(
            f"there is no {name} at {path}", hint="name a file, or a folder with a config.json"
        )
    if path.name.startswith(WEIGHT_STEMS[name]) and (path.parent / CONFIG).is_file():
        return hub_part(name, path)
    if is_whole(read_header(path).tensors):
        held = parts_in(path)
        if name not in held:
            raise InvalidCheckpoint(f"{path} has no {name}: it holds {', '.join(sorted(held))}")
        return read_single_file(path, replaced=WEIGHT_STEMS.keys() - held).parts[name]
    if name == "vae":
        return read_vae_part(path, like)
    return _unet_part(path) if name == "unet" else _text_part(name, path)


def load_image_encoder(folder: Path, dtype: torch.dtype | None = None) -> CLIPVisionModel:
    """The image encoder in a folder with `config.json` and `model.safetensors`, in `dtype` or as stored.

    Raises:
        InvalidCheckpoint, UnsupportedModel: as `read_config` and `load_network`.
    """
    config, path = read_config(folder / CONFIG, CLIPVisionConfig), folder / "model.safetensors"
    tensors = open_tensors(path)
    return load_network(config, CLIPVisionModel, tensors, path, names=image_encoder_name, dtype=dtype)


def read_vae_part(path: Path, like: VAEConfig | None = None) -> SinglePart:
    """An autoencoder in a file of its own, under CompVis' names or the hub's.

    Args:
        like: What the shapes do not tell, such as the scaling factor; 1.x's by default.

    Raises:
        InvalidCheckpoint, PickleRefused: it is broken, or no autoencoder; wrong keys are named.
    """
    infos = read_header(path).tensors
    shapes = _shapes(infos)
    prefix = VAE if any(key.startswith(VAE) for key in infos) else ""
    hub = {name: key for key in infos if (name := vae_name(key)) is not None}
    try:
        if _HUB_VAE in hub:
            geometry = hub_vae({name: shapes[key] for name, key in hub.items()})
        else:
            geometry = compvis_vae(shapes, prefix)
        config = replace(like or VAEConfig(), **geometry)
        entries = vae_entries(config, prefix)
    except _NO_NETWORK as error:
        raise _other_network(path, "an autoencoder (VAE)", error) from None
    if _HUB_VAE in hub:
        entries = [
            replace(entry, single=hub.get(entry.name, entry.name), transform="same") for entry in entries
        ]
    check_keys(path, infos, entries, _VAE_WITHOUT_COUNTERPART.fullmatch)
    return SinglePart(config, path, tuple(entries))


def _unet_part(path: Path) -> Part:
    """A U-Net in a file of its own, under CompVis' names without a prefix, or the hub's."""
    infos = read_header(path).tensors
    shapes = _shapes(infos)
    try:
        if "down_blocks.0.resnets.0.conv1.weight" in shapes:
            first = shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
            return HubPart(hub_unet(shapes, pooled=XL_POOLED, sizes=_sizes(first[1])), path, unet_name)
        first = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
        config = compvis_unet(shapes, "", pooled=XL_POOLED, sizes=_sizes(first[1]))
        entries = unet_entries(config, "")
    except _NO_NETWORK as error:
        raise _other_network(path, "a U-Net", error) from None
    check_keys(path, infos, entries, lambda key: key.startswith("model_ema."))
    return SinglePart(config, path, tuple(entries))


def _sizes(context: int) -> int:
    """Number of size conditions of an XL U-Net; the context of the refiner is of one text encoder alone."""
    return 5 if context == XL_POOLED else 6


def _text_part(name: str, path: Path) -> Part:
    """A text encoder in a file of its own, under OpenCLIP's names or transformers', after any prefix."""
    infos = read_header(path).tensors
    projection = name == "text_encoder_2"
    openclip = next((key for key in infos if key.endswith("transformer.resblocks.0.ln_1.weight")), None)
    try:
        if openclip is not None:
            prefix = openclip.removesuffix("transformer.resblocks.0.ln_1.weight")
            config = openclip_text(_shapes(infos), prefix, projection=projection)
            entries = openclip_entries(config, name, prefix)
            skipped = () if projection else (unused_text_layer(prefix, config),)
            check_keys(
                path, infos, entries, lambda key: UNUSED_TEXT.fullmatch(key) or key.startswith(skipped)
            )
            return SinglePart(config, path, tuple(entries))
        shapes = {hub: info.shape for key, info in infos.items() if (hub := _text_name(key)) is not None}
        config = clip_text(shapes, "", projection=projection)
    except _NO_NETWORK as error:
        raise _other_network(path, "a text encoder of CLIP", error) from None
    unprojected = {"text_projection.weight"} if not projection else set()
    return HubPart(config, path, lambda key: None if (hub := _text_name(key)) in unprojected else hub)


def _text_name(key: str) -> str | None:
    """The hub's name of a transformers key after any prefix, as in `cond_stage_model.transformer.…`."""
    match = re.search(
        r"(?:text_model|text_projection|logit_scale|embeddings|encoder|final_layer_norm)\b.*", key
    )
    return text_encoder_name(match[0] if match else key)


_NO_NETWORK = (LookupError, ValueError, RuntimeError, ArithmeticError, TypeError)


def _other_network(path: Path, expected: str, error: Exception) -> InvalidCheckpoint:
    reason = f"it has no tensor {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
    return InvalidCheckpoint(f"{path} is not {expected} of Stable Diffusion: {reason}")


def _shapes(infos: Mapping[str, TensorInfo]) -> Shapes:
    return {key: info.shape for key, info in infos.items()}
