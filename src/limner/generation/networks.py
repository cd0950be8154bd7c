"""Control networks and image prompts in `Denoise` calls."""

from dataclasses import dataclass

from torch import Tensor

from limner.request.networks import UsedControl


@dataclass(frozen=True, eq=False)
class Controlled:
    """A ControlNet with its encoded control image.

    Attributes:
        used: The network.
        embedding: Its embedding of the control image [1, C, h, w].
        weights: Weights of its residuals for each skip of the U-Net and for the middle block.
        spares_negative: Whether it has no effect on the negative branches of the guidance.
    """

    used: UsedControl
    embedding: Tensor
    weights: tuple[float, ...]
    spares_negative: bool = False

    def weights_of(self, branch: str) -> tuple[float, ...]:
        """Weights of the residuals in a branch of the guidance."""
        spared = self.spares_negative and not branch.startswith("positive")
        return (0.0,) * len(self.weights) if spared else self.weights


@dataclass(frozen=True, eq=False)
class EncodedImagePrompt:
    """An encoded image prompt: keys and values [1, 2, T, S] for cross-attention, besides those of a text.

    Attributes:
        positive: Those of the images, for positive branches of the guidance.
        negative: Those of no image, for negative branches.
    """

    positive: Tensor
    negative: Tensor

    def for_branch(self, branch: str) -> Tensor:
        """The keys and values for a branch of the guidance."""
        return self.positive if branch.startswith("positive") else self.negative
