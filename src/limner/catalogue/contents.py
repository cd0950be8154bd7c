"""Recognises files of weights by the names and shapes of their tensors.

Nothing but the header of a safetensors file, or a `config.json`, is read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

Kind = Literal[
    "checkpoint",
    "vae",
    "lora",
    "embedding",
    "controlnet",
    "t2i_adapter",
    "ip_adapter",
    "image_encoder",
    "upscaler",
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

FAMILIES: Mapping[int, str] = {768: "sd1", 1024: "sd2", 1280: "xl_refiner", 2048: "xl"}
"""Channels of the text embeddings that cross-attention reads -> family."""

FAMILY_NAMES: Mapping[str, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "xl": "Stable Diffusion XL",
    "xl_refiner": "the refiner of Stable Diffusion XL",
    "custom": "a model of its own size",
    "other": "another family of models",
    "": "any family",
}

_ARCHITECTURES = (  # beginnings of what trainers write into the metadata
    ("stable-diffusion-xl-v1-refiner", "xl_refiner"),
    ("stable-diffusion-xl", "xl"),
    ("sdxl", "xl"),
    ("stable-diffusion-v1", "sd1"),
    ("sd_v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("sd_v2", "sd2"),
)
_UNET = "model.diffusion_model."
_CONTEXT = re.compile(r"(?:.*[._])?(?:attn2|attn\.2)[._]to_k\.weight")
_CONTROLNET = re.compile(
    r"controlnet_cond_embedding\.conv_in\.weight|(?:control_model\.)?input_hint_block\.0\.weight"
)
_T2I_ADAPTER = re.compile(r"(?:adapter\.)?body\.0\.(?:(?:resnets|body)\.0\.)?block1\.weight")
_LORA = re.compile(
    r".+(?:\.lora_(?:up|down|mid|A|B)\b.*|[._]lora\.(?:up|down)\.weight|\.lora_linear_layer\.(?:up|down)\.weight"
    r"|\.hada_w1_[ab]|\.lokr_w[12](?:_a)?|\.diff|\.diff_b|\.w_norm|\.on_input|\.oft_blocks|\.a1\.weight)"
    r"|(?:unet|text_encoder):\d+:(?:up|down)"
)
TRANSFORMER = re.compile(
    r"double_blocks|single_blocks|joint_blocks|lora_transformer_|^transformer\.|x_embedder|t5xxl|lora_te3_"
    r"|diffusion_model\.(?:blocks|layers|transformer_blocks)\."
)
_EMBEDDING = ("emb_params", "emp_params", "clip_l", "clip_g", "clip_h")
_UPSCALER = re.compile(
    r"(?:params_ema\.|params\.)?(?:conv_first\.weight|model\.0\.weight|model\.1\.sub\.0\..*|RDB1\..*"
    r"|body\.0\.rdb1\.conv1\.weight|layers\.0\.residual_group\..*)"
)


# Factors whose columns are the inputs of a layer.
_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "down.weight", "hada_w1_b", "diff")


@dataclass(frozen=True)
class Contents:
    """What a file is.

    Attributes:
        kind: None for a file of a kind that Limner has no use for.
        family: "sd1", "sd2", "xl", "xl_refiner"; "custom" for other sizes of the same networks; "other" for
            other kinds of models; "" where a file serves, or may serve, several families.
        parameters: Number of weights.
        trigger_words: Words that the metadata says a LoRA or embedding answers to, the most frequent first.
    """

    kind: Kind | None
    family: str = ""
    parameters: int = 0
    trigger_words: tuple[str, ...] = ()


def describe_tensors(shapes: Shapes, metadata: Mapping[str, str]) -> Contents:
    """What a file with these tensors and this metadata is."""
    kind = _kind(shapes)
    parameters = sum(map(prod, shapes.values()))
    family = ""
    match kind:
        case "checkpoint":
            family = _family_of_unet(shapes, _UNET)
        case "controlnet" | "t2i_adapter":
            family = _family_of_control(shapes, kind)
        case "ip_adapter":
            family = _family_of_ip_adapter(shapes)
        case "lora":
            family = _family_of_lora(shapes, metadata)
        case "embedding":
            family = _family_of_embedding(shapes)
    words = trigger_words(metadata) if kind in ("lora", "embedding") else ()
    return Contents(kind, family, parameters, words)


def trigger_words(metadata: Mapping[str, str], most: int = 10) -> tuple[str, ...]:
    """The trigger phrase in a file's metadata, or the most frequent tags of its training data."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return tuple(filter(None, map(str.strip, phrase.split(","))))[:most]
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(tag for tag, _ in counts.most_common(most))


def _kind(shapes: Shapes) -> Kind | None:
    if any(key.startswith("control_model.") or _CONTROLNET.fullmatch(key) for key in shapes):
        return "controlnet"
    if any(key.startswith(_UNET) for key in shapes) and not any(_LORA.fullmatch(key) for key in shapes):
        return "checkpoint"
    if any(key.startswith(("image_proj.", "ip_adapter.")) for key in shapes):
        return "ip_adapter"
    if any(_T2I_ADAPTER.fullmatch(key) for key in shapes):
        return "t2i_adapter"
    if any(_LORA.fullmatch(key) for key in shapes):
        return "lora"
    if any(key.endswith("encoder.conv_in.weight") for key in shapes):
        return "vae" if any(key.endswith("decoder.conv_out.weight") for key in shapes) else None
    if any(key.endswith("vision_model.embeddings.patch_embedding.weight") for key in shapes):
        return "image_encoder"
    if any(_UPSCALER.fullmatch(key) for key in shapes):
        return "upscaler"
    vectors = [key for key, shape in shapes.items() if len(shape) in (1, 2)]
    if len(shapes) <= 8 and vectors and (len(shapes) == 1 or any(key in shapes for key in _EMBEDDING)):
        return "embedding"
    return None


def _family_of_unet(shapes: Shapes, prefix: str) -> str:
    if any(TRANSFORMER.search(key) for key in shapes):
        return "other"
    for key, shape in shapes.items():
        if key.startswith(prefix) and _CONTEXT.fullmatch(key) and len(shape) == 2:
            return FAMILIES.get(shape[1], "custom")
    return "other"


def _family_of_control(shapes: Shapes, kind: Kind) -> str:
    if kind == "t2i_adapter":  # they do not attend to texts: XL's take images in squares of 16 pixels
        first = next((s for key, s in shapes.items() if key.endswith("conv_in.weight") and len(s) == 4), None)
        if first is None:  # a light one
            return "sd1"
        return "xl" if first[1] in (16**2, 3 * 16**2) else "sd1"
    return _family_of_unet(shapes, "")


def _family_of_embedding(shapes: Shapes) -> str:
    if {"clip_l", "clip_g"} <= shapes.keys():
        return "xl"
    keys = [key for key in _EMBEDDING if key in shapes] or list(shapes)
    return FAMILIES.get(shapes[keys[0]][-1], "custom")


def _family_of_lora(shapes: Shapes, metadata: Mapping[str, str]) -> str:
    for width in context_widths(shapes):
        return FAMILIES.get(width, "custom")
    if any(TRANSFORMER.search(key) for key in shapes):
        return "other"
    if any(re.match(r"lora_te[12]_|text_encoder_2\.|(?:text_encoders\.)?clip_g\.", key) for key in shapes):
        return "xl"
    for key in ("modelspec.architecture", "ss_base_model_version"):
        for beginning, family in _ARCHITECTURES:
            if metadata.get(key, "").lower().startswith(beginning):
                return family
    for key, shape in shapes.items():  # of the text encoder alone
        if re.search(r"self_attn[._][qkv]_proj\.(?:lora_down\.weight|lora_A\.weight|hada_w1_b|diff)", key):
            # XL's first encoder has the width of SD 1.x's, and only trainers' own names tell them apart.
            shared = shape[-1] == 768 and not key.startswith("lora_te_")
            return "" if shared else FAMILIES.get(shape[-1], "custom")
    return ""


def context_widths(shapes: Shapes) -> Iterator[int]:
    """Inputs of the layers that read text embeddings, from the factors of each form."""
    for key, shape in shapes.items():
        match = re.fullmatch(r"(.*attn2[._](?:processor\.)?to_[kv](?:_lora)?)[.](.+)", key)
        if match is None or not shape:
            continue
        module, form = match.groups()
        if form in (
            "lora_down.weight",
            "lora_A.weight",
            "lora.down.weight",
            "down.weight",
            "hada_w1_b",
            "diff",
        ):
            yield prod(shape[1:])
        elif form in ("lokr_w2", "lokr_w2_b"):
            small = shapes.get(f"{module}.lokr_w1") or shapes.get(f"{module}.lokr_w1_b") or (1, 1)
            yield prod(shape[1:]) * small[-1]


def _family_of_ip_adapter(shapes: Shapes) -> str:
    for key in ("norm.weight", "proj.3.weight", "proj_out.weight"):  # of each form: linear, MLP, resampler
        if shape := shapes.get(f"image_proj.{key}"):
            return FAMILIES.get(shape[0], "custom")
    return ""
