"""A user's own image classifier in an ONNX file, described by `OnnxConfig`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from limner.errors import InvalidRequest

from .checker_config import OnnxConfig
from .onnx_network import OnnxNetwork

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Classifier:
    """Scores by the labels of its config.

    Args:
        path: The ONNX file.

    Raises:
        InvalidRequest: The network has another number of outputs than there are labels, or as `OnnxNetwork`.
        ModelNotFound, InvalidCheckpoint: As `OnnxNetwork`.
    """

    def __init__(self, name: str, config: OnnxConfig, path: Path) -> None:
        self.name, self._config = name, config
        width, height = config.size
        shape = (1, 3, height, width) if config.layout == "nchw" else (1, height, width, 3)
        self._network = OnnxNetwork(path, shape, config.precision)
        self.version = self._network.version
        outputs = self._network(np.zeros(shape, np.float32)).size
        if outputs != len(config.labels):
            raise InvalidRequest(
                f"the image checker {name} has {len(config.labels)} labels, and {path} has {outputs} outputs",
                hint="give a label for each output, in order",
                fields=("safety",),
            )

    def check(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        """As `ImageChecker.check`."""
        return [
            dict(zip(self._config.labels, self._scores(self._network(self._input(image))), strict=True))
            for image in images
        ]

    def _input(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's input for an RGB image [H, W, 3]."""
        config, resampling = self._config, _RESAMPLING[self._config.resampling]
        picture = Image.fromarray(image)
        if config.fit == "crop":
            picture = ImageOps.fit(picture, config.size, resampling)
        else:
            picture = picture.resize(config.size, resampling)
        values = np.asarray(picture, np.float64) * (config.white / 255)
        if config.channels == "bgr":
            values = values[..., ::-1]
        scaled: NDArray[np.float64] = (values - np.array(config.mean)) / np.array(config.std)
        if config.layout == "nchw":
            scaled = scaled.transpose(2, 0, 1)  # [H, W, 3] -> [3, H, W]
        return scaled[None].astype(np.float32)

    def _scores(self, output: NDArray[np.float32]) -> list[float]:
        values: NDArray[np.float64] = output.astype(np.float64).ravel()
        if self._config.activation == "softmax":
            powers = np.exp(values - values.max())
            values = powers / powers.sum()
        elif self._config.activation == "sigmoid":
            # exp() of a large number overflows; tanh does not.
            values = 0.5 * (1.0 + np.tanh(0.5 * values))
        return [float(value) for value in values]
