"""What an adapter can change: a model's modules with weights, under every name that files give them.

No name is taken apart to find a module, as `to_out_0` and `to_out.0` cannot be told apart once written with
underscores alone. Each module is spelled in all the ways instead, and a file's name looked up.

    kohya, LyCORIS      lora_unet_down_blocks_0_…, lora_te_text_model_…; XL: lora_unet_input_blocks_4_1_…
    diffusers, PEFT     unet.down_blocks.0.…, text_encoder.text_model.…, base_model.model.…
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
    """A model as adapters see it.

    Attributes:
        shapes: part ("unet", "text_encoder", "text_encoder_2") -> parameter -> its shape.
        names: what a file may call a module -> its part and its name there.
        kohya: part and module -> the name that sd-scripts gives it.
    """

    shapes: Mapping[str, Mapping[str, Size]]
    names: Mapping[str, tuple[str, str]]
    kohya: Mapping[tuple[str, str], str]

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> channels of its token embeddings."""
        return {part: shapes[TOKENS][1] for part, shapes in self.shapes.items() if TOKENS in shapes}

    def numbered(self, part: str, classes: Collection[str]) -> list[str]:
        """The modules of a part in the order in which cloneofsimo/lora numbers them.

        Args:
            classes: some of `NUMBERED_WITHIN`: those that were searched.
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
        first = _PREFIXES[part][0]
        if part == "text_encoder" and "text_encoder_2" in networks:
            first = "lora_te1"
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
            underscored = {spelled.replace(".", "_") for spelled in modules}
            spellings = {f"{prefix}_{spelled}" for prefix in _PREFIXES[part] for spelled in underscored}
            names |= dict.fromkeys(spellings | set(_dotted(part, module)), (part, module))
            # sd-scripts has its own U-Net for XL, named as in single files; the others are diffusers'.
            kohya[part, module] = f"{first}_{(single[module] if xl else module).replace('.', '_')}"
    return Targets(shapes, names, kohya)


_PREFIXES = {
    "unet": ("lora_unet", "lycoris_unet", "lycoris"),
    "text_encoder": ("lora_te", "lora_te1", "lycoris_te", "lycoris_te1"),
    "text_encoder_2": ("lora_te2", "lycoris_te2"),
}
_ATTENTION = re.compile(r"(.+\.attn[12]\.)(to_[qkv]|to_out)(?:\.0)?")
_SELF_ATTENTION = re.compile(r"(.+\.self_attn\.)(q|k|v|out)_proj")


def _dotted(part: str, module: str) -> Iterator[str]:
    """The spellings of PEFT, of diffusers, and of its older attention processors."""
    spelled = [module]
    if match := _ATTENTION.fullmatch(module):
        spelled.append(f"{match[1]}processor.{match[2]}")
    if match := _SELF_ATTENTION.fullmatch(module):
        spelled.append(f"{match[1]}to_{match[2]}")
    for name in (*spelled, *(name.removeprefix("text_model.") for name in spelled)):
        yield f"{part}.{name}"
        yield f"{part}.base_model.model.{name}"
        if part != "text_encoder_2":  # whose modules have the same names as the first's
            yield name
            yield f"base_model.model.{name}"
