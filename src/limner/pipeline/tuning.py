"""What was measured on this machine: how attention is computed best, and how many rows pay together.

`limner tune` measures and stores it, for one processor, number of threads and version of PyTorch. Where
nothing is stored that fits, estimates serve.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from limner.device import processor_facts
from limner.errors import InvalidRequest
from limner.weights.files import user_cache, whole_file

NEVER = 1 << 62  # scores

# Rows times weights times latent pixels at which a forward pass is long enough to hide what it costs to
# start, on devices of either kind: SD 1.5 at 512 x 512 has 3.5e12 a row, the shipped model 2.6e9.
_ENOUGH_WORK = {"cpu": 1.4e11, "cuda": 6e13}


def rows_estimate(parameters: int, height: int, width: int, device: str) -> int:
    """How many rows of a U-Net about pay together, for latents of height x width on "cpu" or "cuda"."""
    return int(_ENOUGH_WORK[device] / (parameters * height * width))


@dataclass(frozen=True)
class Tuning:
    """Measurements.

    Attributes:
        machine: what they hold for.
        blocks_from: by precision, the number of scores (queries times keys) of one head from which attention
            in blocks is faster than the fused kernel.
        rows: how many rows of the U-Net pay together, by `limits.row_key`.
    """

    machine: str
    blocks_from: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def stored(cls) -> "Tuning":
        """What was measured on this machine; without figures if nothing was."""
        path, machine = tuning_file(), this_machine()
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

    def store(self) -> Path:
        """Keep it for this user. Raises OutputError."""
        path = tuning_file()
        with whole_file(path) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    def first_in_blocks(self, precision: str) -> int:
        """The number of scores of one head from which attention on the CPU is faster in blocks."""
        # The fused kernel computes in bfloat16 as slowly as in fp32 where its library is not at home.
        guess = 0 if precision == "bf16" and "AMD" in _processor() else NEVER
        return self.blocks_from.get(precision, guess)


def tuning_file() -> Path:
    """Where measurements are kept."""
    return user_cache() / "tuning.json"


def this_machine() -> str:
    """What measurements hold for."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{_processor()}, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}"


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor_facts().get('cpu_name') or 'CPU'} {capability}"
