"""Calls that a generation makes to a model, and their answers.

A generation yields calls and is sent the values of their answers; it never touches a network. A call is a
value, so it can be grouped with calls of other generations and answered in one forward pass.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from limner.diffusion.guidance import Guidance
from limner.prompts.attention import Emphasis, PromptSyntax
from limner.request import Tiling
from limner.request.networks import UsedAdapter, UsedControl, UsedImagePrompt

from .networks import Controlled, EncodedImagePrompt


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Inputs of the U-Net besides the noisy latents and their timestep.

    Attributes:
        context: Hidden states of a text [1, T, C], T a multiple of the tokenizer's length.
        pooled: Pooled text embedding [1, P], for XL.
        sizes: Original height and width, crop top and left, and target height and width or an aesthetic
            score, for XL.
        channels: Channels [1, K, h, w] that follow those of the latents: mask, image latents, depth map.
        guidance: Guidance scale that a distilled network takes as an input.
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
    """Encode prompts. The answer is a tuple of `Conditioning`, one for each prompt.

    Attributes:
        exact: Encode each chunk in its own forward pass, so that its bits do not depend on other chunks.
        adapters: Adapters of the text encoders.
        emphasis: How weights of tokens are applied.
        cut: Truncate prompts to one chunk, with a warning, as diffusers does.
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
    """Estimate the clean latents. The answer is a `Denoised`.

    Attributes:
        x: Noisy latents [1, C, h, w] in sigma coordinates.
        sigma: Noise level of x.
        timestep: Timestep of this sigma, an input of the network.
        conditionings: Conditionings by name ("positive", "negative").
        guidance: Which conditionings are evaluated at this sigma, and how their estimates combine.
        step, steps: Number of this step, from 1, and number of steps. Samplers of higher order make several
            calls per step.
        keep: Whether the answer contains the network's deep features.
        deep: Deep features of an earlier step, by conditioning; the blocks that compute them are skipped.
        controls: ControlNets that are active at this step.
        features: Weighted sum of the features of T2I-Adapters, [1, C, h, w] for each level.
        image_prompts: Encoded image prompts that are active at this step.
        paired: Whether the answer contains the unguided estimate too, as CFG++ samplers need it.
        adapters: Adapters of the U-Net.
        exact: Whether adapters are merged into the weights in any case, rather than applied by row.
        tiling: Axes along which opposite edges of the image meet.
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
    image_prompts: tuple[EncodedImagePrompt, ...] = ()
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
        latents: The guided estimate of the clean latents [1, C, h, w]; previews show it.
        unguided: The unguided estimate, if the call is `paired`; without guidance the same as `latents`.
        deep: The network's deep features, by conditioning, if the call says `keep`.
    """

    latents: Tensor
    unguided: Tensor | None = None
    deep: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DecodeLatents:
    """Decode latents [1, C, h, w], scaled as for the U-Net. The answer is the image [1, 3, H, W].

    Attributes:
        tiled: Decode in tiles, which takes less memory and changes the image a little.
        tiling: As in `Denoise`.
    """

    role: ClassVar[Role] = "model"
    latents: Tensor
    tiled: bool = False
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class EncodeImage:
    """Encode an image [1, 3, H, W] in [-1, 1] to latents.

    The answer is their mean and standard deviation, each [1, C, h, w], scaled as for the U-Net.

    Attributes:
        tiled, tiling: As in `DecodeLatents`.
    """

    role: ClassVar[Role] = "model"
    image: Tensor
    tiled: bool = False
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class ReadControl:
    """Encode a control image [1, K, H, W] in [0, 1], once for all steps.

    K is the network's number of channels. The answer is a tuple of tensors: a ControlNet's embedding, or a
    T2I-Adapter's features [1, C, h, w] for each level.

    Attributes:
        tiling: As in `Denoise`.
    """

    role: ClassVar[Role] = "model"
    used: UsedControl
    image: Tensor
    tiling: Tiling | None = None


@dataclass(frozen=True, eq=False)
class ReadImagePrompt:
    """Encode the images of an image prompt. The answer is `EncodedImagePrompt`.

    Attributes:
        pixels: Each image as the encoder reads it, [1, 3, side, side], normalised.
    """

    role: ClassVar[Role] = "model"
    prompt: UsedImagePrompt
    pixels: tuple[Tensor, ...]


Call = EncodeText | Denoise | DecodeLatents | EncodeImage | ReadControl | ReadImagePrompt

Generation = Generator[Call, Any, Tensor]
"""Yields calls, is sent their values, and returns an image [1, 3, H, W]."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The outcome of a call.

    Attributes:
        value: The answer that the call's docstring describes; None if there is an error.
        warnings: Warnings for the request.
        error: The reason why there is no value.
    """

    value: Any = None
    warnings: tuple[str, ...] = ()
    error: Exception | None = None
