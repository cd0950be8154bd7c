"""What a generation can ask a model for, and what it is told.

A generation yields calls and is sent the values of their answers; it never touches a network. A call is a
value, so it can be grouped with calls of other generations and answered in one forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from limner.diffusion.guidance import Guidance
from limner.prompts.chunks import Emphasis, PromptSyntax
from limner.request import Tiling

from .adapting import UsedAdapter
from .controlling import Controlled, UsedControl
from .image_prompts import SeenPictures, UsedImagePrompt


@dataclass(frozen=True, eq=False)
class Conditioning:
    """All that the U-Net is told beside the noisy latents and their timestep.

    Attributes:
        context: hidden states of a text [1, T, C], T a multiple of the tokenizer's length.
        pooled: the text's pooled embedding [1, P], for XL.
        sizes: the original height and width, crop top and left, and target height and width or an aesthetic
            score, for XL.
        channels: [1, K, h, w] that stand behind the latents' own: of a mask, a picture, a depth map.
        guidance: the scale that the network itself is to guide with, if it was distilled to.
    """

    context: Tensor
    pooled: Tensor | None = None
    sizes: tuple[float, ...] = ()
    channels: Tensor | None = None
    guidance: float | None = None


Role = Literal["model", "refiner"]
"""Which of a request's models a call is for."""


@dataclass(frozen=True)
class EncodeText:
    """Embed prompts. Answered by a tuple of `Conditioning`, one for each.

    Attributes:
        exact: each chunk is encoded in a forward pass of its own, so that its bits do not depend on company.
        adapters: that change the text encoders.
        emphasis: what becomes of weights.
        cut: what does not fit the text encoder at once is left out, with a warning, as in diffusers.
    """

    prompts: tuple[str, ...]
    syntax: PromptSyntax
    clip_skip: int
    exact: bool = False
    role: Role = "model"
    adapters: tuple[UsedAdapter, ...] = ()
    emphasis: Emphasis = "original"
    cut: bool = False


@dataclass(frozen=True, eq=False)
class Denoise:
    """Estimate the clean latents. Answered by `Denoised`.

    Attributes:
        x: noisy latents [1, C, h, w] in sigma coordinates.
        sigma: noise level of x.
        timestep: what the network is told for it.
        conditionings: what guidance may choose from, by name ("positive", "negative").
        guidance: which of them are evaluated at this sigma, and how they combine.
        step, steps: which step of how many this call belongs to, from 1, told by its sigma; a sampler
            that looks ahead makes several calls a step.
        keep: the answer is to hold the network's deep features.
        deep: such features of an earlier step, by conditioning; the blocks that made them are not run.
        controls: ControlNets that add to what the U-Net makes at this step.
        features: what T2I-Adapters add to it, together: [1, C, h, w] for each level.
        pictures: that stand beside the text.
        paired: the answer is to hold the unguided estimate too.
        adapters: that change the U-Net.
        exact: they change its weights, rather than what single rows of a forward pass are.
        tiling: the axes along which the picture's ends meet.
    """

    x: Tensor
    sigma: float
    timestep: float
    conditionings: Mapping[str, Conditioning]
    guidance: Guidance
    step: int
    steps: int
    keep: bool = False
    deep: Mapping[str, Tensor] | None = None
    controls: tuple[Controlled, ...] = ()
    features: tuple[Tensor, ...] = ()
    pictures: tuple[SeenPictures, ...] = ()
    paired: bool = False
    role: Role = "model"
    adapters: tuple[UsedAdapter, ...] = ()
    exact: bool = False
    tiling: Tiling | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The conditionings to evaluate, one row of the network each."""
        return self.guidance.branches(self.sigma)


@dataclass(frozen=True, eq=False)
class Denoised:
    """An answer to `Denoise`.

    Attributes:
        latents: the guided estimate of the clean latents [1, C, h, w], which is also the preview.
        unguided: if it was asked for, the estimate that guidance leads away from, or where nothing is guided
            the same.
        deep: the kept features, by conditioning.
    """

    latents: Tensor
    unguided: Tensor | None = None
    deep: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DecodeLatents:
    """Turn latents [1, C, h, w], as the U-Net knows them, into a picture. Answered by [1, 3, H, W].

    Attributes:
        tiled: decode it piece by piece, which takes less memory and changes it a little.
        tiling: as of `Denoise`.
    """

    role: ClassVar[Role] = "model"
    latents: Tensor
    tiled: bool = False
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class EncodeImage:
    """Turn a picture [1, 3, H, W] in [-1, 1] into latents.

    Answered by their mean and standard deviation, each [1, C, h, w], as the U-Net knows them.

    Attributes:
        tiled, tiling: as of `DecodeLatents`.
    """

    role: ClassVar[Role] = "model"
    image: Tensor
    tiled: bool = False
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class ReadControl:
    """What a control network makes of a picture [1, K, H, W] in [0, 1], once for all steps.

    K is the network's number of channels. Answered by a tuple of tensors: a ControlNet's embedding, or a
    T2I-Adapter's features [1, C, h, w] for each level.

    Attributes:
        tiling: as of `Denoise`.
    """

    role: ClassVar[Role] = "model"
    used: UsedControl
    image: Tensor
    tiling: Tiling | None = None


@dataclass(frozen=True)
class ReadImagePrompt:
    """Look at the pictures of an image prompt. Answered by `SeenPictures`."""

    role: ClassVar[Role] = "model"
    prompt: UsedImagePrompt


Call = EncodeText | Denoise | DecodeLatents | EncodeImage | ReadControl | ReadImagePrompt


@dataclass(frozen=True, eq=False)
class Answer:
    """What becomes of a call.

    Attributes:
        value: what its docstring says; None if there is an error.
        warnings: what whoever asked should know.
        error: why there is no value.
    """

    value: Any = None
    warnings: tuple[str, ...] = ()
    error: Exception | None = None
