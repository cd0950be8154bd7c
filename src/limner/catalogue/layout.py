"""Names of files in the diffusers layout."""

import re
from collections.abc import Collection, Mapping

MODEL_INDEX, CONFIG = "model_index.json", "config.json"
CARD = "limner.json"  # what Limner knows of a model beyond what diffusers does
STEM = "diffusion_pytorch_model"  # of diffusers' networks

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")

WEIGHT_STEMS: Mapping[str, str] = {
    "unet": STEM,
    "vae": STEM,
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Component -> the stem of its weight files, as diffusers and transformers name them."""


TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Component that encodes texts -> its tokenizer's."""


def how_to_give(part: str) -> str:
    """A hint that says how to give a part that a checkpoint lacks."""
    return f"give its {part} apart, with `{part}`"


def weight_variants(files: Collection[str], stem: str) -> dict[str | None, str]:
    """Variant -> weight file or index among files, of a stem; None stands for the plain one."""
    pattern = re.compile(
        rf"{stem}(?:\.(?P<file>[\w-]+))?\.safetensors|{stem}\.safetensors\.index(?:\.(?P<index>[\w-]+))?\.json"
    )
    found: dict[str | None, str] = {}
    for file in sorted(files):  # the index of a sharded file sorts after the file itself, which wins
        match = pattern.fullmatch(file)
        if match and not re.search(r"-\d+-of-\d+", file):
            found.setdefault(match["file"] or match["index"], file)
    return found
