"""Where the networks run."""

from typing import Any

import torch

from limner.errors import InvalidRequest


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        InvalidRequest: no such device, or none on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidRequest(f"device is {name!r}; expected auto, cpu, cuda or cuda:1 …") from None
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise InvalidRequest(f"device is {name!r}, {_why_not(device.type)}", hint="use auto")
    return device


def _why_not(kind: str) -> str:
    """What is in the way of a device that PyTorch can name."""
    if kind not in ("cpu", "cuda"):
        return "on which Limner does not draw; expected auto, cpu, cuda or cuda:1 …"
    if kind == "cuda" and not (torch.version.cuda or torch.version.hip):
        return f"for which the installed PyTorch, {torch.__version__}, is not built"
    return "which this machine does not have"


def computes_in_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512_BF16 or AMX), without which it is slow."""
    facts = processor_facts()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def processor_facts() -> dict[str, Any]:
    """What PyTorch knows of this CPU, by name ("cpu_name", "avx512_bf16"); empty where it cannot tell."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return facts
