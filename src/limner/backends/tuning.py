"""Measurements of this machine: the faster way to compute attention, and the best batch sizes of the U-Net.

`limner tune` stores them for a processor, number of threads and version of PyTorch. Without measurements,
estimates are used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from limner.errors import InvalidRequest
from limner.files import whole_file

from .device import processor_facts

NEVER = 1 << 62  # scores

# Batch size x weights x latent pixels from which a forward pass is long enough to hide its overhead, by kind
# of device: SD 1.5 at 512 x 512 has 3.5e12 per row, the shipped model 2.6e9.
_ENOUGH_WORK = {"cpu": 1.4e11, "cuda": 6e13}


def rows_estimate(parameters: int, height: int, width: int, device: str) -> int:
    """Estimate of the smallest efficient batch size of a U-Net, for latents of a size on a kind of device."""
    return int(_ENOUGH_WORK[device] / (parameters * height * width))


@dataclass(frozen=True)
class Tuning:
    """Measurements.

    Attributes:
        machine: Processor, threads and versions that they hold for (`this_machine`).
        blocks_from: By precision, the number of scores (queries times keys) of one head from which attention
            in blocks is faster than the fused kernel.
        rows: Best batch sizes of the U-Net, by `memory.row_key`.
    """

    machine: str
    blocks_from: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def stored(cls, cache_dir: Path) -> "Tuning":
        """The measurements of this machine in a cache folder; empty if there are none."""
        path, machine = tuning_file(cache_dir), this_machine()
        if not path.is_file():
            return cls(machine)
        try:
            tuning = cls(**json.loads(path.read_text(encoding="utf-8")))
            counts = [*tuning.blocks_from.values(), *tuning.rows.values()]
            if not all(isinstance(count, int) and count >= 0 for count in counts):
                raise ValueError("counts are whole numbers")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidRequest(
                f"{path} is broken: {error}", hint="run `limner tune`, or delete it"
            ) from None
        return tuning if tuning.machine == machine else cls(machine)

    def store(self, cache_dir: Path) -> Path:
        """Write it to the cache folder. Raises OutputError."""
        path = tuning_file(cache_dir)
        with whole_file(path) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    def first_in_blocks(self, precision: str) -> int:
        """The number of scores of one head from which attention on the CPU is faster in blocks."""
        # On AMD the fused kernel is as slow in bfloat16 as in fp32: it is tuned for Intel.
        guess = 0 if precision == "bf16" and "AMD" in _processor() else NEVER
        return self.blocks_from.get(precision, guess)


def tuning_file(cache_dir: Path) -> Path:
    """The file for measurements in a cache folder."""
    return cache_dir / "tuning.json"


def row_blocks_file(cache_dir: Path) -> Path:
    """The file for verdicts of `RowBlocks` on this machine in a cache folder."""
    digest = hashlib.sha256(this_machine().encode()).hexdigest()[:12]
    return cache_dir / f"row-blocks-{digest}.json"


def this_machine() -> str:
    """Name of everything that measurements depend on: processor, threads, GPU and version of PyTorch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{_processor()}, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}"


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor_facts().get('cpu_name') or 'CPU'} {capability}"
