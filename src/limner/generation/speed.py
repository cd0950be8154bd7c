"""Speed presets: faster generation for small changes of the image.

Features of the deep layers are reused for some steps (DeepCache: Ma et al. 2023, arXiv:2312.00858), and
guidance ends before the last steps, where it changes little (Kynkäänniemi et al. 2024, arXiv:2404.07724).
`python -m benchmarks.presets` measures the time saved and the changes of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.request import SpeedName


@dataclass(frozen=True)
class Speed:
    """One preset.

    Attributes:
        reuse: Number of calls of the U-Net per run of the deep layers; 1 runs them at every call.
        fresh: Fraction of the steps, from the first one on, at which they always run, since these steps
            decide the layout of the image.
        guided: Fraction of the steps, from the first one on, that are guided.
    """

    reuse: int = 1
    fresh: float = 0.0
    guided: float = 1.0

    def runs_deep_layers(self, age: int, step: int, steps: int) -> bool:
        """Whether the deep layers run at a step, `age` calls after their last run."""
        return age >= self.reuse or step <= self.fresh * steps

    def lowest_guided(self, sigmas: Sequence[float]) -> float:
        """The sigma above which steps are guided; `sigmas` decrease."""
        guided = round(self.guided * (len(sigmas) - 1))
        return 0.0 if guided >= len(sigmas) - 1 else sigmas[guided]


SPEEDS: dict[SpeedName, Speed] = {
    "exact": Speed(),
    "balanced": Speed(reuse=2, fresh=0.3, guided=0.8),
    "fast": Speed(reuse=3, fresh=0.2, guided=0.6),
}
