"""`python -m benchmarks.presets`: what `--speed balanced` and `fast` save, and what they do to pictures.

The shipped model draws the same prompts from the same seeds with every preset. Each picture is held against
the exact one (PSNR), and the probe says of each whether it shows what its prompt asks for.
"""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .harness import Chart, Report, Spread, Table, parser, ratio, say

if TYPE_CHECKING:
    from limner.picturebook.evaluation import Verdict

_ROUND = 50  # prompts that every preset draws before the next ones: noise meets all alike


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "", rounds=20)
    options.add_argument("--precision", default="auto", help="of the model")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.rounds = 1
    measure(chosen.rounds, 8 if chosen.quick else _ROUND, chosen.precision).publish(chosen)


def measure(rounds: int, size: int, precision: str) -> Report:
    """Draw `rounds` times `size` prompts with each preset."""
    import limner
    from limner.memory import keep_freed_memory
    from limner.picturebook.evaluation import fresh_scenes, judge, psnr
    from limner.picturebook.probe import load_probe, see
    from limner.picturebook.world import World
    from limner.pipeline.engine import Engine
    from limner.pipeline.images import to_tensor
    from limner.pipeline.speed import SPEEDS
    from limner.weights.checkpoint import CARD
    from limner.weights.files import read_json

    keep_freed_memory()
    model = limner.load(precision=precision)  # type: ignore[arg-type]
    kept = read_json(model.checkpoint.folder / CARD)["world"]
    world = World(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
    scenes, words = fresh_scenes(world, rounds * size, seed=0)
    probe = load_probe()
    model.generate(words[0], seed=0)  # the first one is slower

    seconds: dict[str, list[float]] = {name: [] for name in SPEEDS}
    verdicts: dict[str, list[Verdict]] = {name: [] for name in SPEEDS}
    distances: dict[str, list[float]] = {name: [] for name in SPEEDS if name != "exact"}
    for number in range(rounds):
        indices = range(number * size, (number + 1) * size)
        say(f"round {number + 1} of {rounds}")
        images = {}
        for name in SPEEDS if number % 2 == 0 else reversed(SPEEDS):
            requests = [
                limner.GenerationRequest(prompt=words[index], seed=index, speed=name) for index in indices
            ]
            began = time.perf_counter()
            with Engine(model) as engine:
                handles = [engine.submit(request) for request in requests]
                pictures = [handle.result().images[0] for handle in handles]
            seconds[name].append((time.perf_counter() - began) / size)
            images[name] = to_tensor(pictures)
            seen = see(probe, images[name])
            verdicts[name] += [judge(scenes[i], what) for i, what in zip(indices, seen, strict=True)]
        for name, those in distances.items():
            those += psnr(images[name], images["exact"]).tolist()
    return _report(model.environment(), seconds, verdicts, distances)


def _report(
    environment: dict[str, str | int],
    seconds: dict[str, list[float]],
    verdicts: "dict[str, list[Verdict]]",
    distances: dict[str, list[float]],
) -> Report:
    rows, data = [], {}
    for name, those in verdicts.items():
        faster = ratio(seconds["exact"], seconds[name])
        row = [name, Spread.of(seconds[name]).text(" s"), faster.text("x")]
        data[name] = {"seconds": seconds[name], "faster": faster}
        if name in distances:
            near = Spread.of(sorted(distances[name]))
            row.append(f"{near.middle:.1f} dB")
            data[name]["psnr"] = distances[name]
        else:
            row.append("")
        for figure in ("things", "colours", "entirely right"):
            share, difference = _share(those, figure), _difference(those, verdicts["exact"], figure)
            row.append(f"{100 * share:.1f} %" + ("" if name == "exact" else f", {_points(difference)}"))
            data[name][figure] = {"share": share, "difference": difference}
        rows.append(tuple(row))
    count = len(verdicts["exact"])
    return Report(
        name="presets",
        title="Presets of speed, on the shipped model",
        about=(
            f"{count} prompts, half of them with combinations kept from training, drawn by the engine with "
            "each preset from the same seeds, in turns. PSNR is to the picture of `exact`. The shares are "
            "the probe's, with the paired differences from `exact` in points and their 95 % intervals. "
            f"{', '.join(f'{name} {value}' for name, value in environment.items())}."
        ),
        tables=[
            Table(
                "Time and pictures",
                ("preset", "a picture", "faster", "PSNR, median", "things", "colours", "entirely right"),
                rows,
            )
        ],
        charts=[
            Chart("a picture", "s", {f"limner {name}": Spread.of(those) for name, those in seconds.items()})
        ],
        data=data,
    )


def _right(verdict: "Verdict", figure: str) -> tuple[int, int]:
    """How many are right, of how many."""
    if figure == "entirely right":
        return int(verdict.all_right), 1
    return (verdict.things_right if figure == "things" else verdict.colours_right), verdict.asked


def _share(verdicts: "Sequence[Verdict]", figure: str) -> float:
    counts = [_right(verdict, figure) for verdict in verdicts]
    return sum(right for right, _ in counts) / sum(of for _, of in counts)


def _difference(verdicts: "Sequence[Verdict]", exact: "Sequence[Verdict]", figure: str) -> Spread:
    """Of two shares over the same prompts, by the delta method: a ratio of sums over pictures."""
    pairs = [
        (_right(a, figure)[0] - _right(b, figure)[0], _right(a, figure)[1])
        for a, b in zip(verdicts, exact, strict=True)
    ]
    whole = sum(of for _, of in pairs)
    middle = sum(more for more, _ in pairs) / whole
    error = 1.96 * math.sqrt(sum((more - middle * of) ** 2 for more, of in pairs)) / whole
    return Spread(middle, middle - error, middle + error)


def _points(spread: Spread) -> str:
    low, middle, high = (f"{100 * value:+.1f}" for value in (spread.low, spread.middle, spread.high))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
