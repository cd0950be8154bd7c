"""IP-Adapters, from the shapes of their tensors: geometry, and the models and encoders that they fit."""

from pathlib import Path

from limner.errors import InvalidCheckpoint, ModelNotFound, UnsupportedModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.ip_adapter_config import HEAD, IPAdapterConfig
from limner.nn.unet_config import UNetConfig, attended_layers

from .contents import FAMILIES, FAMILY_NAMES, Shapes

# Folders of the encoder relative to the adapter's, as in repositories on the hub.
ENCODER_FOLDERS = ("image_encoder", "../models/image_encoder")
ENCODER_WEIGHTS = "model.safetensors"


def read_ip_adapter_config(path: Path, shapes: Shapes, unet: UNetConfig) -> IPAdapterConfig:
    """The geometry of an IP-Adapter for a U-Net.

    Args:
        path: Its file, for messages.

    Raises:
        InvalidCheckpoint: It is no IP-Adapter, or tensors that tell its geometry are missing.
        UnsupportedModel: It is for another family of models, or does not take images.
    """
    if not any(name.startswith("image_proj.") for name in shapes):
        raise InvalidCheckpoint(
            f"{path} is no IP-Adapter: it has no tensors image_proj.*",
            hint="a LoRA is another kind of adapter",
        )
    if _takes_faces(shapes):
        raise UnsupportedModel(
            f"{path} is a FaceID IP-Adapter, which needs InsightFace's embedding of a face",
            hint="use one that takes images, such as ip-adapter-plus-face_sd15.safetensors",
        )
    try:
        config = _read_config(shapes, unet)
    except ValueError as error:
        raise InvalidCheckpoint(
            f"{path}: {error}", hint="the file is damaged, or of a form that is not known"
        ) from None
    if config.context_channels != unet.cross_attention_dim:
        family = FAMILY_NAMES[FAMILIES.get(config.context_channels, "other")]
        raise UnsupportedModel(
            f"{path} has tokens of {config.context_channels} channels, which is for {family}; this model's "
            f"U-Net attends to {unet.cross_attention_dim}"
        )
    return config


def encoder_fits(encoder: CLIPVisionConfig, adapter: IPAdapterConfig) -> bool:
    """Whether an image encoder's output has the number of channels that an adapter takes."""
    pooled = encoder.projection_dim if encoder.projection else encoder.hidden_size
    return (pooled if adapter.form == "linear" else encoder.hidden_size) == adapter.image_channels


def misfit_encoder(folder: Path, adapter: IPAdapterConfig) -> ModelNotFound:
    """The error for an image encoder that does not fit an adapter."""
    return ModelNotFound(f"{folder} gives something else than the {adapter.image_channels} numbers")


def _takes_faces(shapes: Shapes) -> bool:
    """Whether this is a FaceID adapter: it projects a face's vector by two layers and a norm; FaceID Plus
    adds a resampler of CLIP's hidden states. Most files contain a LoRA."""
    names = shapes.keys()
    vector = {"image_proj.proj.0.weight", "image_proj.norm.weight"} <= names
    return vector or any("perceiver_resampler." in name or "_lora." in name for name in names)


def _read_config(shapes: Shapes, unet: UNetConfig) -> IPAdapterConfig:
    """The geometry, from the shapes. Raises ValueError where a tensor that tells it is missing."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        name = f"image_proj.{name}"
        if name not in shapes:
            raise ValueError(f"{name} is missing")
        found = shapes[name]
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"{name} is {list(found)}, expected {dimensions} dimensions, none of them 0")
        return found

    widths = tuple(attended_layers(unet).values())
    if "image_proj.proj.weight" in shapes:
        out, into = shape("proj.weight")
        [context] = shape("norm.weight", 1)
        return IPAdapterConfig("linear", into, context, widths, tokens=out // context)
    if "image_proj.proj.3.weight" in shapes:
        context, into = shape("proj.2.weight")
        return IPAdapterConfig("mlp", into, context, widths)
    if "image_proj.latents" in shapes:
        _, tokens, channels = shape("latents", 3)
        context, _ = shape("proj_out.weight")
        _, into = shape("proj_in.weight")
        inner, _ = shape("layers.0.0.to_q.weight")
        depth = len({name.split(".")[2] for name in shapes if name.startswith("image_proj.layers.")})
        return IPAdapterConfig(
            "resampler", into, context, widths, tokens, channels, heads=inner // HEAD, depth=depth
        )
    raise ValueError("image_proj has neither proj.weight, proj.3.weight nor latents")
