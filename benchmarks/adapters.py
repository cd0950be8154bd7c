"""`python -m benchmarks.adapters`: requests with different adapters at once, and what an adapter costs.

On the shipped model, as many requests as adapters go to an engine whose rows have adapters of their own, and
to one that changes weights and lets them take turns. At SD 1.5's geometry and size, where a picture alone
keeps a CPU busy, the two ways are compared on the U-Net alone.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .contestant import Contestant
from .harness import Chart, Report, Spread, Table, alternate, parser, ratio, say
from .many_requests import captions

_RANK, _STEPS, _GUIDANCE = 8, 20, 4.0


class Limner:
    """The shipped model with random LoRAs of all its attention."""

    def __init__(self, adapters: int) -> None:
        import limner
        from limner.memory import keep_freed_memory

        keep_freed_memory()
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.model = limner.load(lora_dirs=[folder])
        targets = self.model._library.targets
        for number in range(adapters):
            write_random(folder / f"lora{number}.safetensors", targets, number)

    def draw(self, how: str, adapters: int, seed: int) -> float:
        """Seconds for a request with each of so many adapters, at once.

        Args:
            how: "rows" have adapters of their own; or "turns" with changed weights; or "none".
        """
        from limner.pipeline.engine import Engine
        from limner.pipeline.model import Model
        from limner.request import GenerationRequest, Lora

        requests = [
            GenerationRequest(
                prompt=prompt,
                steps=_STEPS,
                guidance_scale=_GUIDANCE,
                seed=seed + number,
                loras=() if how == "none" else (Lora(name=f"lora{number}", text_weight=0.0),),
            )
            for number, prompt in enumerate(captions(adapters, seed))
        ]
        by_row = Model._by_row
        if how == "turns":
            Model._by_row = lambda self, call: False  # type: ignore[method-assign]
        try:
            with Engine(self.model) as engine:
                began = time.perf_counter()
                for handle in [engine.submit(request) for request in requests]:
                    handle.result()
                return time.perf_counter() - began
        finally:
            Model._by_row = by_row  # type: ignore[method-assign]


class Large:
    """A U-Net as SD 1.5's, of random weights, and two guided pictures with an adapter each.

    Args:
        widths: of its levels.
        side: of the latents.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        import torch

        from limner.memory import keep_freed_memory
        from limner.nn.unet import UNet2DConditionModel, UNetConfig
        from limner.pipeline.backends.packed import pack
        from limner.pipeline.backends.rowwise import Slot, rowwise, rowwise_modules

        keep_freed_memory()
        torch.manual_seed(0)
        config = UNetConfig(block_out_channels=widths)
        network = UNet2DConditionModel(config).eval().requires_grad_(False)
        self.unet = pack(network, torch.bfloat16)
        self.slot = Slot()
        self.wrapped = rowwise(self.unet, self.slot)
        self.inputs = (
            torch.randn(4, 4, side, side, dtype=torch.bfloat16),
            torch.full((4,), 500.0),
            torch.randn(4, 77, 768, dtype=torch.bfloat16),
        )
        with torch.device("meta"):
            plain = UNet2DConditionModel(config)
        terms = {}
        for name in rowwise_modules(self.unet):
            if ".attn" in name:
                out, into = plain.get_parameter(f"{name}.weight").shape
                terms[name] = torch.randn(4, _RANK, into), torch.randn(4, out, _RANK)
        self.slot.terms = terms

    def step(self, how: str) -> float:
        """Seconds for a step of both pictures: "rows" in one pass, or "turns" in two."""
        import torch

        began = time.perf_counter()
        with torch.inference_mode():
            if how == "rows":
                self.wrapped(*self.inputs)
            else:
                for half in (slice(0, 2), slice(2, 4)):
                    self.unet(*(tensor[half] for tensor in self.inputs))
        return time.perf_counter() - began


def write_random(path: Path, targets: Any, seed: int) -> None:
    """A LoRA of the U-Net's attention, too weak to spoil the picture."""
    import torch

    from limner.weights.tensors import write_tensors

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (part, module), name in targets.kohya.items():
        if part == "unet" and ".attn" in module:
            out, into = targets.shapes[part][f"{module}.weight"]
            tensors[f"{name}.lora_down.weight"] = torch.randn(_RANK, into, generator=generator) * 0.05
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, _RANK, generator=generator) * 0.05
    write_tensors(path, tensors)


def report(options: argparse.Namespace, data: dict[str, Any]) -> Report:
    found = Report(
        "adapters",
        "Requests with different adapters",
        f"LoRAs of rank {_RANK} on all attention of the U-Net, a different one for each request. "
        "Every ratio is of one round, with a 95 % interval.",
        data=data,
    )
    rows = []
    for number, seconds in data["shipped"].items():
        rates = {how: [number / second for second in taken] for how, taken in seconds.items()}
        rows.append(
            (
                str(number),
                *(Spread.of(rates[how]).text() for how in ("none", "rows", "turns")),
                ratio(rates["rows"], rates["turns"]).text("×"),
            )
        )
        bars = {f"limner {how}": Spread.of(rate) for how, rate in rates.items()}
        found.charts.append(Chart(f"{number} requests at once", "images/s", bars))
    columns = ("requests", "no adapters", "adapters by row", "by turns", "by row ÷ by turns")
    found.tables.append(Table(f"The shipped model, images per second, {_STEPS} steps", columns, rows))
    large = data["large"]
    cells = (Spread.of(large["rows"]).text(" s"), Spread.of(large["turns"]).text(" s"))
    found.tables.append(
        Table(
            "A step of two pictures, SD 1.5 at 512 x 512, bf16",
            ("by row, one pass of four rows", "by turns, two passes of two rows", "turns ÷ row"),
            [(*cells, ratio(large["turns"], large["rows"]).text("×"))],
        )
    )
    return found


def turn(who: Contestant, how: str, number: int) -> Callable[[], float]:
    return lambda: who.ask("draw", how, number, 1000)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="how many requests")
    given = options.parse_args(argv)
    sizes, rounds, widths, side = given.at_once, given.rounds, (320, 640, 1280, 1280), 64
    if given.quick:
        sizes, rounds, widths, side = [1, 2], 1, (32, 64, 64, 64), 8
    data: dict[str, Any] = {"shipped": {}}
    with Contestant(partial(Limner, max(sizes))) as limner:
        for number in sizes:
            say(f"{number} at once")
            ways = {how: turn(limner, how, number) for how in ("none", "rows", "turns")}
            data["shipped"][number] = alternate(ways, rounds)
    say("SD 1.5's U-Net")
    with Contestant(partial(Large, widths, side)) as large:
        data["large"] = alternate({how: partial(large.ask, "step", how) for how in ("rows", "turns")}, rounds)
    report(given, data).publish(given)


if __name__ == "__main__":
    main()
