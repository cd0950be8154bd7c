"""Files of adapters, from names and shapes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner.adapters.targets import Targets, find_targets
from limner.files import read_json
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.weights.tensors import write_tensors


@pytest.fixture(scope="session")
def published(reference) -> Callable[[str], Targets]:
    """The targets of a published model."""
    known: dict[str, Targets] = {}

    def published(model: str) -> Targets:
        if model not in known:
            networks = {}
            with torch.device("meta"):
                for part in ("unet", "text_encoder", "text_encoder_2"):
                    path = reference / "configs" / model / part / "config.json"
                    if path.is_file():
                        network, config = (
                            (UNet2DConditionModel, UNetConfig)
                            if part == "unet"
                            else (CLIPTextModel, CLIPTextConfig)
                        )
                        networks[part] = network(config.from_dict(read_json(path)))
            known[model] = find_targets(networks)
        return known[model]

    return published


@pytest.fixture
def hollow(tmp_path) -> Callable[[str, Mapping[str, tuple[int, ...]]], Path]:
    """Write a file of zeros that takes no room on the disk, whatever its size; scalars are 4."""

    def hollow(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Path:
        entries, end, scalars = {}, 0, []
        for key, shape in shapes.items():
            begin, end = end, end + 4 * torch.Size(shape).numel()
            entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
            if not shape:
                scalars.append(begin)
        header = json.dumps(entries).encode()
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for begin in scalars:
                file.seek(8 + len(header) + begin)
                file.write(torch.tensor(4.0).numpy().tobytes())
            file.truncate(8 + len(header) + end)
        return path

    return hollow


@pytest.fixture
def tiny(networks) -> Targets:
    """The targets of the small checkpoint."""
    return find_targets({part: networks[part] for part in ("unet", "text_encoder")})


@pytest.fixture
def random_file(tmp_path) -> Callable[..., Path]:
    """Write random tensors of given shapes; numbers stand for themselves."""

    def random_file(
        values: Mapping[str, tuple[int, ...] | float | Tensor], metadata=None, name="adapter.safetensors"
    ) -> Path:
        generator = torch.Generator().manual_seed(0)
        tensors = {
            key: torch.randn(value, generator=generator)
            if isinstance(value, tuple)
            else torch.as_tensor(value)
            for key, value in values.items()
        }
        write_tensors(tmp_path / name, tensors, metadata)
        return tmp_path / name

    return random_file
