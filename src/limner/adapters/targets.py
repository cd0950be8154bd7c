"""The modules of a model that an adapter can change, under every name that files give them.

Names in files are not parsed, as `to_out_0` and `to_out.0` are the same once dots are underscores. Instead,
each module is listed under all its spellings, and names in files are looked up.

    kohya, LyCORIS      lora_unet_down_blocks_0_…, lora_te_text_model_…; XL: lora_unet_input_blocks_4_1_…
    diffusers, PEFT     unet.down_blocks.0.…, text_encoder.text_model.…, base_model.model.…
    ComfyUI             diffusion_model.input_blocks.4.1.…, text_encoders.clip_l.transformer.text_model.…
    OneTrainer (OMI)    unet.input_blocks.4.1.…, clip_l.text_model.…, clip_g.text_model.…
    attention processors of old diffusers  down_blocks.0.….attn1.processor.to_q
    cloneofsimo         unet:17, by order of registration
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Size

from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel
from limner.weights.keymaps import unet_modules

TOKENS = "text_model.embeddings.token_embedding.weight"

# cloneofsimo/lora numbers the layers within modules of these classes of the diffusers of its day, where a
# block held its first attention, its feed-forward and its second attention, in this order.
NUMBERED_WITHIN: Mapping[str, set[str]] = {
    "unet": {"CrossAttention", "Attention", "GEGLU"},
    "text_encoder": {"CLIPAttention"},
}
_ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_LAYERS = ("k_proj", "v_proj", "q_proj", "out_proj")


@dataclass(frozen=True)
class Targets:
    """The parameters of a model, and the names of its modules in adapter files.

    Attributes:
        shapes: part ("unet", "text_encoder", "text_encoder_2") -> parameter -> its shape.
        names: name of a module in a file -> its part and its name there.
        kohya: part and module -> the name that sd-scripts writes.
    """

    shapes: Mapping[str, Mapping[str, Size]]
    names: Mapping[str, tuple[str, str]]
    kohya: Mapping[tuple[str, str], str]

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> channels of its token embeddings."""
        return {part: shapes[TOKENS][1] for part, shapes in self.shapes.items() if TOKENS in shapes}

    @property
    def context_width(self) -> int | None:
        """Channels of the text embeddings that the U-Net attends to."""
        shapes = self.shapes.get("unet", {}).items()
        return next((shape[1] for name, shape in shapes if name.endswith("attn2.to_k.weight")), None)

    def numbered(self, part: str, classes: Collection[str]) -> list[str]:
        """The modules of a part in the order in which cloneofsimo/lora numbers them.

        Args:
            classes: those of `NUMBERED_WITHIN` that the file's trainer searched.
        """
        first = "self_attn.k_proj.weight" if part == "text_encoder" else "attn1.to_q.weight"
        blocks = [name.removesuffix(first) for name in self.shapes[part] if name.endswith(first)]
        if part == "text_encoder":
            return [f"{block}self_attn.{layer}" for block in blocks for layer in _TEXT_LAYERS]
        blocks.sort(key=lambda name: ("down", "up", "mid").index(name.partition("_")[0]))
        attends = not {"CrossAttention", "Attention"}.isdisjoint(classes)
        layers = [f"attn1.{layer}" for layer in _ATTENTION_LAYERS if attends]
        layers += ["ff.net.0.proj"] if "GEGLU" in classes else []
        layers += [f"attn2.{layer}" for layer in _ATTENTION_LAYERS if attends]
        return [block + layer for block in blocks for layer in layers]


def find_targets(networks: Mapping[str, UNet2DConditionModel | CLIPTextModel]) -> Targets:
    """The targets of a model's networks, by part; the networks may be on the meta device."""
    shapes = {
        part: {name: parameter.shape for name, parameter in network.named_parameters()}
        for part, network in networks.items()
    }
    names: dict[str, tuple[str, str]] = {}
    kohya: dict[tuple[str, str], str] = {}
    for part, network in networks.items():
        underscored, dotted = _UNDERSCORED[part], _DOTTED[part]
        first = underscored[0]
        if part == "text_encoder" and "text_encoder_2" in networks:
            first = "lora_te1_"
        single: Mapping[str, str] = {}
        xl = False
        if isinstance(network, UNet2DConditionModel):
            single = unet_modules(network.config)
            xl = network.config.addition_embed_type is not None
        for name in shapes[part]:
            module, _, kind = name.rpartition(".")
            if kind != "weight":
                continue
            modules = {module, module.removeprefix("text_model."), single.get(module, module)}
            for prefix in underscored:
                names |= {prefix + spelled.replace(".", "_"): (part, module) for spelled in modules}
            modules |= set(_older(module))
            for prefix in dotted:
                names |= {prefix + spelled: (part, module) for spelled in modules}
            # sd-scripts names XL's U-Net as single files do, and all other networks as diffusers does.
            kohya[part, module] = first + (single[module] if xl else module).replace(".", "_")
    return Targets(shapes, names, kohya)


# Prefixes of module names whose dots are underscores. The first is what sd-scripts writes.
_UNDERSCORED = {
    "unet": ("lora_unet_", "lycoris_unet_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_"),
    "text_encoder_2": ("lora_te2_", "lycoris_te2_"),
}
# Prefixes of module names with dots. The modules of both text encoders have the same names, so that those of
# the second always have a prefix.
_DOTTED = {
    "unet": (
        *("", "base_model.model.", "unet.", "unet.base_model.model."),
        *("diffusion_model.", "model.diffusion_model."),
    ),
    "text_encoder": (
        *("", "base_model.model.", "text_encoder.", "text_encoder.base_model.model."),
        *("text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "clip_l.transformer.", "clip_l."),
        *("text_encoders.clip_h.transformer.", "text_encoders.clip_h.", "clip_h.transformer.", "clip_h."),
        *("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
    ),
    "text_encoder_2": (
        *("text_encoder_2.", "text_encoder_2.base_model.model."),
        *("text_encoders.clip_g.transformer.", "text_encoders.clip_g.", "clip_g.transformer.", "clip_g."),
    ),
}
_ATTENTION = re.compile(r"(.+\.attn[12]\.)(to_[qkv]|to_out)(?:\.0)?")
_SELF_ATTENTION = re.compile(r"(.+\.self_attn\.)(q|k|v|out)_proj")


def _older(module: str) -> Iterator[str]:
    """The names that a module has in the attention processors of old diffusers."""
    if match := _ATTENTION.fullmatch(module):
        yield f"{match[1]}processor.{match[2]}"
    if match := _SELF_ATTENTION.fullmatch(module):
        name = f"{match[1]}to_{match[2]}"
        yield name
        yield name.removeprefix("text_model.")
