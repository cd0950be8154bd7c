"""Devices that networks run on, and what they compute in."""

from typing import Any

import torch

from limner.errors import InvalidRequest


def pick_device(name: str, backend: str = "torch") -> torch.device:
    """The device of this name; "auto" is CUDA where there is one and the backend runs on it, else the CPU.

    Raises:
        InvalidRequest: An unknown device, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and backend != "openvino" else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidRequest(f"device is {name!r}; expected auto, cpu, cuda or cuda:1 …") from None
    count = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= count:
        raise InvalidRequest(f"device is {name!r}, {_why_not(device.type)}", hint="use auto")
    return device


def _why_not(kind: str) -> str:
    """Why a device that PyTorch can name is not available, as a clause."""
    if kind not in ("cpu", "cuda"):
        return "which Limner does not support; expected auto, cpu, cuda or cuda:1 …"
    if kind == "cuda" and not (torch.version.cuda or torch.version.hip):
        return f"for which the installed PyTorch, {torch.__version__}, is not built"
    return "which this machine does not have"


def computes_in_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512_BF16 or AMX)."""
    facts = processor_facts()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; others emulate it, 50 to 100 times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return computes_in_bf16()


def multiplies_int8_exactly() -> bool:
    """Whether this CPU sums products of 8-bit numbers without overflow (VNNI or AMX).

    AVX2 alone adds pairs of products in 16 bits, which saturate.
    """
    facts = processor_facts()
    return bool(facts.get("avx512_vnni") or facts.get("avx_vnni") or facts.get("amx_int8"))


def processor_facts() -> dict[str, Any]:
    """PyTorch's facts about this CPU, by name ("cpu_name", "avx512_bf16"); empty where it has none."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return facts
