"""The adapters, control networks and image prompts of a resolved request, as files on this machine."""

from dataclasses import dataclass, field
from pathlib import Path

from limner.files import FileStamp


@dataclass(frozen=True)
class UsedAdapter:
    """An adapter with its weights.

    Attributes:
        stamp: Identity of the file: a changed file under the same name is another adapter.
        weight, text_weight: Weight of its effect on the U-Net and on the text encoders.
        warnings: Which file was chosen, where several have its name.
    """

    stamp: FileStamp
    weight: float
    text_weight: float
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.stamp.path


@dataclass(frozen=True)
class UsedControl:
    """A control network.

    Attributes:
        stamp: Identity of the folder or file: changed files under the same name are another network.
        residuals: Number of tensors that a ControlNet adds; 0 for a T2I-Adapter.
        pooled: Each of them is one number per channel.
        channels: Channels of the image that it reads: 3, or 1 for grayscale.
        parameters: Number of its weights.
        warnings: Which network was chosen, where several have its name.
    """

    stamp: FileStamp
    residuals: int
    pooled: bool
    channels: int
    parameters: int
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def path(self) -> Path:
        """The folder or file."""
        return self.stamp.path


@dataclass(frozen=True)
class UsedImagePrompt:
    """An image prompt with its networks.

    Attributes:
        adapter, encoder: Weights of the IP-Adapter and of its image encoder.
        images: Paths or data URLs.
        side: Side in pixels of the squares that the encoder reads.
        weight: Weight of its effect.
        warnings: Which files were chosen, where several have their names.
    """

    adapter: FileStamp
    encoder: FileStamp
    images: tuple[str, ...]
    side: int
    weight: float
    warnings: tuple[str, ...] = field(default=(), compare=False)
