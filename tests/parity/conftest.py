"""What the comparisons with diffusers and transformers share: weights that hide nothing, and a verdict."""

from collections.abc import Callable

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peers ask no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], None]:
    """Give every parameter a value drawn from a seed: also those that start at zero or one.

    A matrix keeps the size of what passes through it, so that activations neither die nor explode in depth.
    """

    def randomise(module: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:  # of a norm, or a bias
                    parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))

    return randomise


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Tensor, Tensor, float], None]:
    """The largest difference is at most `tolerance` of the largest value, and the values do vary."""

    def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        assert ours.shape == theirs.shape
        assert theirs.std() > 0.1
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        assert difference <= tolerance, f"they differ by {difference:.1e} of the largest value"

    return assert_close
