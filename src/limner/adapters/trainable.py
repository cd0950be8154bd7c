"""Training of LoRA: small layers added to the frozen layers of a network (Hu et al. 2021)."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.weights.tensors import write_tensors

from .targets import Targets


class LoRALayer(nn.Module):
    """A frozen layer plus alpha / rank * up(down(x)).

    `down` is initialised at random and `up` at zero, so that training starts from the unchanged network. Both
    are float32, whatever the dtype of the frozen layer, as an optimizer's steps are small.

    Attributes:
        base: The frozen layer.
        down, up: Layers of the same type, to `rank` channels and from them; `down` has the kernel.
    """

    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.alpha, self.scale = alpha, alpha / rank
        if isinstance(base, nn.Conv2d):
            kernel: dict[str, Any] = {
                "kernel_size": base.kernel_size,
                "stride": base.stride,
                "padding": base.padding,
            }
            self.down = nn.Conv2d(base.in_channels, rank, bias=False, **kernel)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.down.to(base.weight.device)
        self.up.to(base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        added: Tensor = self.up(self.down(x.to(self.down.weight.dtype)))
        return y + (self.scale * added).to(y.dtype)


def attach_lora(network: nn.Module, pattern: str, *, rank: int, alpha: float) -> dict[str, LoRALayer]:
    """Freeze a network, and replace linear layers and convolutions by `LoRALayer`s around them.

    Args:
        pattern: A regular expression that matches the whole names of the modules to replace.

    Returns:
        Module -> its LoRA layer, whose `down` and `up` are trainable.

    Raises:
        ValueError: The pattern matches no module, or one that is neither linear nor a convolution.
    """
    matched = {name: module for name, module in network.named_modules() if re.fullmatch(pattern, name)}
    if not matched:
        raise ValueError(f"{pattern!r} matches no module of {type(network).__name__}")
    network.requires_grad_(False)
    layers: dict[str, LoRALayer] = {}
    for name, module in matched.items():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(f"{name} is a {type(module).__name__}, expected a linear layer or a convolution")
        layers[name] = LoRALayer(module, rank, alpha)
        network.set_submodule(name, layers[name])
    return layers


def detach_lora(network: nn.Module, layers: Mapping[str, LoRALayer]) -> None:
    """Restore the layers that `attach_lora` replaced. The network stays frozen."""
    for name, layer in layers.items():
        network.set_submodule(name, layer.base)


def write_lora(
    path: Path,
    layers: Mapping[str, Mapping[str, LoRALayer]],
    targets: Targets,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a LoRA file with kohya's names, which every program reads.

    Args:
        layers: Part -> the result of `attach_lora` for its network.
        targets: Targets of the networks without LoRA layers.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for part, attached in layers.items():
        for module, layer in attached.items():
            name = targets.kohya[part, module]
            tensors[f"{name}.lora_down.weight"] = layer.down.weight.detach().to(dtype)
            tensors[f"{name}.lora_up.weight"] = layer.up.weight.detach().to(dtype)
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
    write_tensors(path, tensors, metadata)
