"""`python -m benchmarks.adapters`: requests with different adapters at once.

With the shipped model, an engine runs one request per adapter: with adapters applied by row, and with
changed weights, for which requests take turns. At SD 1.5's geometry and size, where one image keeps a CPU
busy, the two ways are compared on the U-Net alone.
"""

import argparse
import shutil
import tempfile
import time
import weakref
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
        from limner.allocator import keep_freed_memory

        keep_freed_memory()
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.model = limner.load(lora_dirs=[folder])
        targets = self.model.adapters.targets
        for number in range(adapters):
            write_random(folder / f"lora{number}.safetensors", targets, number)

    def draw(self, how: str, adapters: int, steps: int, seed: int) -> float:
        """Seconds for a number of requests at once, each with its own adapter.

        Args:
            how: "rows" (adapters by row), "turns" (changed weights) or "none" (no adapters).
            steps: Of each request.
        """
        from limner.engine.engine import Engine
        from limner.model.answers import CallExecutor
        from limner.request import GenerationRequest, Lora

        requests = [
            GenerationRequest(
                prompt=prompt,
                steps=steps,
                guidance_scale=_GUIDANCE,
                seed=seed + number,
                loras=() if how == "none" else (Lora(name=f"lora{number}", text_weight=0.0),),
            )
            for number, prompt in enumerate(captions(adapters, seed))
        ]
        by_row = CallExecutor._by_row
        if how == "turns":
            CallExecutor._by_row = lambda self, *_: False  # type: ignore[method-assign]
        try:
            with Engine(self.model) as engine:
                began = time.perf_counter()
                for handle in [engine.submit(request) for request in requests]:
                    handle.result()
                return time.perf_counter() - began
        finally:
            CallExecutor._by_row = by_row  # type: ignore[method-assign]


class Large:
    """A U-Net like SD 1.5's with random weights, and two guided images with an adapter each.

    Args:
        widths: Channels of its levels.
        side: Height and width of the latents.
    """

    def __init__(self, widths: tuple[int, ...], side: int) -> None:
        import torch

        from limner.allocator import keep_freed_memory
        from limner.backends.packed import can_pack, linear_layers, pack
        from limner.nn.unet import Conditions, UNet2DConditionModel
        from limner.nn.unet_config import UNetConfig

        keep_freed_memory()
        torch.manual_seed(0)
        config = UNetConfig(block_out_channels=widths)
        network = UNet2DConditionModel(config).eval().requires_grad_(False)
        dtype = torch.bfloat16 if can_pack(torch.bfloat16) else torch.float32
        self.unet = pack(network, dtype)
        self.inputs = (
            torch.randn(4, 4, side, side, dtype=dtype),
            torch.full((4,), 500.0),
            torch.randn(4, 77, 768, dtype=dtype),
        )
        with torch.device("meta"):
            plain = UNet2DConditionModel(config)
        terms = {}
        for name in linear_layers(self.unet):
            if ".attn" in name:
                out, into = plain.get_parameter(f"{name}.weight").shape
                terms[name] = [(torch.randn(_RANK, into), torch.randn(out, _RANK)) for _ in range(4)]
        self.conditions = Conditions(low_rank=terms).to(torch.device("cpu"), dtype)
        self.dtype = dtype

    def precision(self) -> str:
        """Precision of the weights: bf16, or fp32 where the CPU packs no bf16."""
        return str(self.dtype).removeprefix("torch.")

    def step(self, how: str) -> float:
        """Seconds for a step of both images: "rows" in one pass, or "turns" in two."""
        import torch

        began = time.perf_counter()
        with torch.inference_mode():
            if how == "rows":
                self.unet(*self.inputs, self.conditions)
            else:
                for half in (slice(0, 2), slice(2, 4)):
                    self.unet(*(tensor[half] for tensor in self.inputs))
        return time.perf_counter() - began


def write_random(path: Path, targets: Any, seed: int) -> None:
    """A LoRA of the U-Net's attention, too weak to degrade the image."""
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


def report(options: argparse.Namespace, data: dict[str, Any], steps: int) -> Report:
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
    found.tables.append(Table(f"The shipped model, images per second, {steps} steps", columns, rows))
    large = data["large"]
    cells = (Spread.of(large["rows"]).text(" s"), Spread.of(large["turns"]).text(" s"))
    found.tables.append(
        Table(
            f"A step of two pictures, SD 1.5 at 512 x 512, {large['precision']}",
            ("by row, one pass of four rows", "by turns, two passes of two rows", "turns ÷ row"),
            [(*cells, ratio(large["turns"], large["rows"]).text("×"))],
        )
    )
    return found


def turn(who: Contestant, how: str, number: int, steps: int) -> Callable[[], float]:
    return lambda: who.ask("draw", how, number, steps, 1000)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="numbers of requests")
    given = options.parse_args(argv)
    sizes, steps, rounds, widths, side = given.at_once, _STEPS, given.rounds, (320, 640, 1280, 1280), 64
    if given.quick:
        sizes, steps, rounds, widths, side = [1, 2], 2, 1, (32, 64, 64, 64), 8
    data: dict[str, Any] = {"shipped": {}}
    with Contestant(partial(Limner, max(sizes))) as limner:
        for number in sizes:
            say(f"{number} at once")
            ways = {how: turn(limner, how, number, steps) for how in ("none", "rows", "turns")}
            data["shipped"][number] = alternate(ways, rounds)
    say("SD 1.5's U-Net")
    with Contestant(partial(Large, widths, side)) as large:
        data["large"] = alternate({how: partial(large.ask, "step", how) for how in ("rows", "turns")}, rounds)
        data["large"]["precision"] = large.ask("precision")
    report(given, data, steps).publish(given)


if __name__ == "__main__":
    main()
