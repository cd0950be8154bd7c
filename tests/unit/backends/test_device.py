"""Which devices there are, and what is said of those that there are not."""

import pytest
import torch

from limner.backends.device import pick_device
from limner.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "built", "why"),
    [
        ("cuda", False, "for which the installed PyTorch, .*, is not built"),
        ("cuda", True, "which this machine does not have"),
        ("mps", True, "which Limner does not support; expected auto, cpu, cuda"),
        ("cpu:1", True, "which this machine does not have"),
        ("abacus", True, "expected auto, cpu, cuda"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused_with_the_reason(name, built, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0" if built else None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(InvalidRequest, match=f"device is '{name}'.*{why}"):
        pick_device(name)
