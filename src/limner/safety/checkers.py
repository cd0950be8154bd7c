"""Image checkers: what they have in common, and how they are loaded.

    checker = load_checker("opennsfw", OpenNSFWConfig())
    [scores] = checker.check([np.asarray(image.convert("RGB"))])
    scores["nsfw"]  # 0.002

Without torch; a checker imports what it runs on when it is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .checker_config import CheckerConfig, CompVisConfig, OnnxConfig


class ImageChecker(Protocol):
    """A network that scores images. Safe to use from any thread.

    The scores of an image do not depend on the images that are checked with it.
    """

    @property
    def name(self) -> str:
        """Its name in rules and decisions."""

    @property
    def version(self) -> str:
        """Its weights, and what runs them in which precision: equal versions score equally on one machine."""

    def check(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        """Scores of each image by category; every image has the same categories.

        Args:
            images: RGB images [H, W, 3], of any sizes.

        Raises:
            NumericalError: A score is NaN or infinite.
        """


def load_checker(name: str, config: CheckerConfig, folder: Path | None = None) -> ImageChecker:
    """A checker with its weights.

    Args:
        name: Its name in rules and decisions.
        folder: Folder that paths in the config are relative to; None for the working directory.

    Raises:
        InvalidRequest: A package that it needs is not installed; the hint says which extra brings it.
        ModelNotFound: Its files are not there.
        InvalidCheckpoint, UnsupportedModel, PickleRefused: Its files cannot be used.
    """
    folder = folder or Path()
    if isinstance(config, CompVisConfig):
        from .compvis import CompVis

        return CompVis.load(name, folder / config.folder, config.device)
    if isinstance(config, OnnxConfig):
        from .classifier import Classifier

        return Classifier(name, config, folder / config.file)
    from .open_nsfw import OpenNSFW

    return OpenNSFW(name, config.precision)
