"""Shared by all benchmarks: turns, ratios, and the page that the figures are written to."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("limner", "torch", "diffusers", "transformers", "accelerate", "openvino", "nncf", "numpy")
_DISTURBED = 0.05  # of the cores' time that other programs may take
_COLOURS = {"limner": "#2f6fb0", "diffusers": "#b9b9b9"}


def parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options of all commands, and the time of their start, to measure the load by other programs."""
    options = argparse.ArgumentParser(description=description)
    options.set_defaults(began=spent())
    options.add_argument("--rounds", type=int, default=rounds, help="number of rounds")
    options.add_argument("--out", type=Path, help=f"folder to write to; by default {RESULTS}")
    options.add_argument("--quick", action="store_true", help="run a tiny version of everything, as a test")
    return options


def alternate(turns: Mapping[str, Callable[[], T]], rounds: int, warmup: int = 1) -> dict[str, list[T]]:
    """Run every contestant once a round, in an order that is reversed each round.

    A machine that is slow for a while then slows all of them, and none always follows the same one.

    Args:
        warmup: Number of rounds whose results are dropped.
    """
    answers: dict[str, list[T]] = {name: [] for name in turns}
    for number in range(-warmup, rounds):
        for name in turns if number % 2 == 0 else reversed(turns):
            answer = turns[name]()
            if number >= 0:
                answers[name].append(answer)
    return answers


@dataclass(frozen=True)
class Spread:
    """A figure with its range: the median with the extremes, or with a confidence interval."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median and extremes."""
        return cls(median(values), min(values), max(values))

    def text(self, unit: str = "", digits: int = 3) -> str:
        low, middle, high = (f"{value:.{digits}g}" for value in (self.low, self.middle, self.high))
        return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The median over rounds of the ratio of two contestants' figures in the same round.

    Its interval is the 95 % bootstrap interval over rounds (Efron 1979).
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    rng = random.Random(0)
    medians = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return Spread(median(ratios), medians[50], medians[-51])


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


@dataclass(frozen=True)
class Chart:
    """Bars with whiskers, one per contestant."""

    title: str
    unit: str
    bars: Mapping[str, Spread]


@dataclass
class Report:
    """Results of one command.

    Attributes:
        name: Name of the files.
        about: A paragraph on what was compared.
        data: All figures behind the tables, as JSON.
    """

    name: str
    title: str
    about: str
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def publish(self, options: argparse.Namespace) -> None:
        """Print the page, and write it unless this is a quick run without `--out`."""
        others = share_of_others(options.began, spent())
        facts = {
            **machine(),
            "other programs": "unknown" if others is None else f"{others:.1%} of the cores' time",
        }
        if others is not None and others > _DISTURBED:
            self.notes.insert(
                0, f"**Disturbed:** other programs took {others:.0%} of the cores' time meanwhile."
            )
        page = self._markdown(facts)
        print(page)
        folder = options.out or (None if options.quick else RESULTS)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {name: value for name, value in vars(options).items() if name != "began"}
        kept = {"name": self.name, "options": chosen, "machine": facts, **self.data}
        (folder / f"{self.name}.json").write_text(json.dumps(kept, indent=1, default=_plain) + "\n")
        (folder / f"{self.name}.md").write_text(page + "\n", encoding="utf-8")
        self._plot(folder / f"{self.name}.png")

    def _markdown(self, facts: Mapping[str, str]) -> str:
        parts = [f"# {self.title}", self.about, *(table.markdown() for table in self.tables)]
        if self.charts:
            parts.append(f"![the same as bars]({self.name}.png)")
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        parts.append(
            "\n".join(["## Where and when", "", *(f"- {name}: {fact}" for name, fact in facts.items())])
        )
        return "\n\n".join(parts)

    def _plot(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        heights = [len(chart.bars) + 1.5 for chart in self.charts]
        figure, axes = pyplot.subplots(
            len(heights), figsize=(9, 0.4 * sum(heights)), height_ratios=heights, squeeze=False
        )
        for chart, axis in zip(self.charts, axes[:, 0], strict=True):
            spreads = list(chart.bars.values())
            middles = [spread.middle for spread in spreads]
            whiskers = [
                [spread.middle - spread.low for spread in spreads],
                [spread.high - spread.middle for spread in spreads],
            ]
            colours = [_COLOURS.get(name.split()[0], "#777777") for name in chart.bars]
            axis.barh(list(chart.bars), middles, xerr=whiskers, color=colours, capsize=3)
            axis.bar_label(axis.containers[-1], [f" {value:.3g}" for value in middles], padding=6)
            axis.margins(x=0.12)
            axis.invert_yaxis()
            axis.set_title(f"{chart.title} [{chart.unit}]", loc="left", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def machine() -> dict[str, str]:
    """The machine and the versions that the figures apply to."""
    import torch

    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": platform.platform(),
        "threads": f"{torch.get_num_threads()} in each contestant",
        "Python": platform.python_version(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


@dataclass(frozen=True)
class Spent:
    """Seconds since a fixed time: of the clock, used on all cores, and used by this program."""

    clock: float
    all: float
    own: float


def spent() -> Spent | None:
    """Seconds spent so far, finished child processes included; None if the system does not report them."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, *rest = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    everybody = user + nice + system + sum(rest[:3])  # interrupts, and what the host gave to others
    own = sum(os.times()[:4])
    return Spent(time.monotonic(), everybody / os.sysconf("SC_CLK_TCK"), own)


def share_of_others(before: Spent | None, after: Spent | None) -> float | None:
    """Fraction of the cores' time that other programs used."""
    if before is None or after is None:
        return None
    others = after.all - before.all - (after.own - before.own)
    return max(0.0, others) / (after.clock - before.clock) / (os.cpu_count() or 1)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """A value that `json` cannot write, as one that it can."""
    return asdict(value) if isinstance(value, Spread) else str(value)


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
