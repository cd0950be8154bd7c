"""The control networks of a model: found by name and read once.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) runs with the U-Net at every step and adds residuals to
its skips and its middle block. A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) encodes the control image
once; its features are added to the outputs of the down blocks at every step.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limner.catalogue.control import check_mode, use_control
from limner.catalogue.layout import PICKLE_SUFFIXES
from limner.catalogue.search import WEIGHTS, Choice, choose_fitting, find_named, not_found
from limner.catalogue.shipped import SHIPPED_NETWORKS
from limner.files import FileStamp, StampCache
from limner.nn.unet_config import UNetConfig
from limner.request import Control
from limner.request.networks import UsedControl
from limner.weights.control import read_control
from limner.weights.hub_parts import locate_network

_SUFFIXES = (*WEIGHTS, *PICKLE_SUFFIXES)


class ControlLibrary:
    """The control networks that a model can use, each read when it is first named. Any thread may use it.

    Args:
        unet: Geometry of the model's U-Net.
        downscale: Pixels per latent, along each side.
        folders: Folders of control networks, which are searched for the names in requests.
    """

    def __init__(self, unet: UNetConfig, downscale: int, folders: Sequence[Path] = ()) -> None:
        self._unet, self._downscale, self._folders = unet, downscale, folders
        self._fetched: dict[str, Path] = {}  # so that the hub is asked once for a name
        self._known = StampCache(self._read)

    def fetch(self, controls: Sequence[Control]) -> None:
        """Download the networks of controls that are not on this machine. Raises as `used`."""
        for control in controls:
            self._find(control.model)

    def used(self, controls: Sequence[Control]) -> tuple[UsedControl, ...]:
        """The network of each control.

        Raises:
            ModelNotFound: There is no such network.
            InvalidCheckpoint, UnsupportedModel: It cannot be read.
            InvalidRequest: It is for another family of models, or has no such mode.
        """
        choices = [self._find(control.model) for control in controls]
        for control, choice in zip(controls, choices, strict=True):
            check_mode(control, choice.value)
        return tuple(replace(choice.value, warnings=choice.warnings) for choice in choices)

    def _find(self, name: str) -> Choice[UsedControl]:
        if name not in SHIPPED_NETWORKS and not os.path.exists(os.path.expanduser(name)):
            files = find_named(name, self._folders, _SUFFIXES, networks=True)
            if files:
                return choose_fitting("control network", name, files, self._known.get)
            if self._folders and "/" not in name:
                raise not_found("control network", name, self._folders, _SUFFIXES, networks=True)
        if name not in self._fetched or not self._fetched[name].exists():
            self._fetched[name] = locate_network(name).absolute()
        return Choice(self._fetched[name], self._known.get(self._fetched[name]))

    def _read(self, path: Path) -> UsedControl:
        """Read the facts about a network, which must fit the U-Net."""
        stamp, file = FileStamp.of(path), read_control(path)
        return use_control(stamp, file.config, file.parameters, self._unet, self._downscale)
