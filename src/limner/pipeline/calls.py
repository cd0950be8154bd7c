"""What a generation can ask a model for.

A generation yields calls and is sent their answers; it never touches a network. A call is a value, so it
can be grouped with calls of other generations and answered in one forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from limner.diffusion.guidance import Guidance
from limner.prompts.chunks import PromptSyntax


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A text as the U-Net sees it.

    Attributes:
        context: hidden states [1, T, C], T a multiple of the tokenizer's length.
        warnings: what was not read as it was written.
    """

    context: Tensor
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodeText:
    """Embed prompts. Answer: a tuple of `Conditioning`, one for each."""

    prompts: tuple[str, ...]
    syntax: PromptSyntax
    clip_skip: int


@dataclass(frozen=True, eq=False)
class Denoise:
    """Estimate the clean latents. Answer: the guided estimate [1, C, h, w], which is also the preview.

    Attributes:
        x: noisy latents [1, C, h, w] in sigma coordinates.
        sigma: noise level of x.
        timestep: what the network is told for it.
        conditionings: what guidance may choose from, by name ("positive", "negative").
        guidance: which of them are evaluated at this sigma, and how they combine.
        step, steps: which step of how many this call belongs to, from 1, told by its sigma; a sampler
            that looks ahead makes several calls a step.
    """

    x: Tensor
    sigma: float
    timestep: float
    conditionings: Mapping[str, Conditioning]
    guidance: Guidance
    step: int
    steps: int


@dataclass(frozen=True, eq=False)
class DecodeLatents:
    """Turn latents [1, C, h, w], as the U-Net knows them, into a picture. Answer: [1, 3, H, W]."""

    latents: Tensor


Call = EncodeText | Denoise | DecodeLatents
