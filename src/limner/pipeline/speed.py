"""Presets that give a little of the picture for time.

Features of the deep layers are kept for some steps (DeepCache: Ma et al. 2023, arXiv:2312.00858), and
guidance ends before the last steps, where it changes little (Kynkäänniemi et al. 2024, arXiv:2404.07724).
What that saves, and what it does to pictures, is measured by `python -m benchmarks.presets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.request import SpeedName


@dataclass(frozen=True)
class Speed:
    """One preset.

    Attributes:
        reuse: the deep layers run at every so many calls; 1 is always.
        fresh: the share of steps, from the first one on, at which they always run. What stands where is
            decided there.
        guided: the share of steps, from the first one on, that are guided.
    """

    reuse: int = 1
    fresh: float = 0.0
    guided: float = 1.0

    def runs_deep_layers(self, age: int, step: int, steps: int) -> bool:
        """Whether they run at this step of so many, `age` calls after they last did."""
        return age >= self.reuse or step <= self.fresh * steps

    def lowest_guided(self, sigmas: Sequence[float]) -> float:
        """The sigma, of a descending list, above which there is guidance."""
        guided = round(self.guided * (len(sigmas) - 1))
        return 0.0 if guided >= len(sigmas) - 1 else sigmas[guided]


SPEEDS: dict[SpeedName, Speed] = {
    "exact": Speed(),
    "balanced": Speed(reuse=2, fresh=0.3, guided=0.8),
    "fast": Speed(reuse=3, fresh=0.2, guided=0.6),
}
