"""`python -m benchmarks.networks`: the three networks of Stable Diffusion 1.5, compared with diffusers.

A step of the U-Net with guidance, the decoding of one image and the encoding of two prompts, all with the
same weights: random ones in the published geometry, or those of --checkpoint. Next to each time is the
difference of the result from that of diffusers in fp32.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from .contestant import Contestant, Unavailable
from .harness import Chart, Report, Spread, Table, alternate, parser, ratio, say

if TYPE_CHECKING:
    from torch import Tensor

    from limner.weights.checkpoint import Checkpoint

NETWORKS = {
    "unet": "U-Net: one step with guidance (batch 2)",
    "vae": "Autoencoder: decoding one picture",
    "text_encoder": "Text encoder: two prompts",
}
BASELINE = "diffusers fp32"
_SIZES = {"fp32": 4, "bf16": 2, "int8": 1}  # bytes of a weight
_HELD = 1.5  # bytes that a contestant holds for each byte of weights, about, with what its forward pass makes


@dataclass(frozen=True)
class Entry:
    """A contestant, not started yet."""

    name: str
    precision: str
    make: Callable[[], Any]


class _Networks:
    """Base of contestants: the inputs and the clock."""

    def __init__(self, folder: Path) -> None:
        import torch

        from limner.weights.checkpoint import read_checkpoint

        self.inputs = inputs(read_checkpoint(folder))
        # A text takes no longer than a hiccup of the machine, so a turn is several.
        self.repeats = {"unet": 1, "vae": 1, "text_encoder": 5}
        self.guard: Callable[[], Any] = torch.no_grad

    def forward(self, network: str) -> "Tensor":
        raise NotImplementedError

    def seconds(self, network: str) -> float:
        with self.guard():
            began = time.perf_counter()
            for _ in range(self.repeats[network]):
                self.forward(network)
            return (time.perf_counter() - began) / self.repeats[network]

    def output(self, network: str) -> np.ndarray:
        with self.guard():
            return self.forward(network).float().numpy()


class Diffusers(_Networks):
    """diffusers' networks as `from_pretrained` returns them, or as its guide on speed sets them up."""

    def __init__(self, folder: Path, precision: str, compiled: bool = False) -> None:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        super().__init__(folder)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=self.dtype).eval()
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=self.dtype).eval()
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").to(self.dtype).eval()
        self.unet, self.decode, self.text_encoder = unet, vae.decode, text_encoder
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
            self.unet, self.decode = torch.compile(unet), torch.compile(vae.decode)
            self.text_encoder = torch.compile(text_encoder)

    def forward(self, network: str) -> "Tensor":
        given = [t.to(self.dtype) if t.is_floating_point() else t for t in self.inputs[network]]
        if network == "unet":
            return self.unet(*given, return_dict=False)[0].float()
        if network == "vae":
            return self.decode(*given, return_dict=False)[0].float()
        return self.text_encoder(*given)[0].float()


class Limner(_Networks):
    """A model's backend, called as in a generation."""

    def __init__(self, folder: Path, precision: Any, backend: Any) -> None:
        import torch

        import limner

        super().__init__(folder)
        self.guard = torch.inference_mode
        if backend == "openvino" and importlib.util.find_spec("openvino") is None:
            raise Unavailable("OpenVINO is not installed")
        try:
            self.backend = limner.load(folder, precision=precision, backend=backend).backend
        except limner.LimnerError as error:
            if backend == "torch":
                raise
            raise Unavailable(str(error)) from error

    def forward(self, network: str) -> "Tensor":
        given = self.inputs[network]
        if network == "unet":
            return self.backend.denoise(*given)[0]
        if network == "vae":
            return self.backend.decode(*given)
        return self.backend.encode_text(*given, 1)[0]


class Peak:
    """The peak of this machine: PyTorch's fastest large matrix products and convolutions."""

    def __init__(self, side: int) -> None:
        self.side = side  # of the feature maps

    def gflops(self, precision: str) -> float:
        """The best rate of a plain and a prepacked product, and of a convolution in either layout."""
        import torch
        import torch.nn.functional as F

        from limner.backends.packed import can_pack

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        rows, width = self.side**2, 1280
        x, weight = torch.randn(rows, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        ways: list[tuple[float, Callable[[], Any]]] = [
            (2 * rows * width * 4 * width, lambda: F.linear(x, weight))
        ]
        if can_pack(dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            pointwise = torch.ops.mkldnn._linear_pointwise
            ways.append((ways[0][0], lambda: pointwise(x, packed, None, "none", [], "")))
        for layout in (torch.contiguous_format, torch.channels_last):
            image = torch.randn(2, 320, self.side, self.side, dtype=dtype).to(memory_format=layout)
            kernel = torch.randn(320, 320, 3, 3, dtype=dtype).to(memory_format=layout)
            flops = 2 * image.numel() * kernel[0].numel()
            ways.append((flops, partial(F.conv2d, image, kernel, padding=1)))
        with torch.inference_mode():
            return max(flops / self._fastest(way) / 1e9 for flops, way in ways)

    def _fastest(self, way: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
        return min(times)


def inputs(checkpoint: "Checkpoint") -> dict[str, "tuple[Tensor, ...]"]:
    """Inputs of each network, from one seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    unet, text = checkpoint.unet_config, checkpoint.text_configs["text_encoder"]
    side, length = unet.sample_size, text.max_position_embeddings
    x = torch.randn(2, unet.in_channels, side, side, generator=generator)
    context = torch.randn(2, length, unet.cross_attention_dim, generator=generator)
    latents = torch.randn(1, checkpoint.vae_config.latent_channels, side, side, generator=generator)
    ids = torch.randint(text.vocab_size, (2, length), generator=generator)
    return {"unet": (x, torch.tensor([501, 501]), context), "vae": (latents,), "text_encoder": (ids,)}


def random_checkpoint(folder: Path, tiny: bool) -> Path:
    """Random weights from a seed, in the published geometry of SD 1.5 or in one of a few thousand weights."""
    import torch

    from limner.catalogue.shipped import SHIPPED
    from limner.nn.clip import CLIPTextModel
    from limner.nn.clip_config import CLIPTextConfig
    from limner.nn.unet import UNet2DConditionModel
    from limner.nn.unet_config import UNetConfig
    from limner.nn.vae import AutoencoderKL
    from limner.nn.vae_config import VAEConfig
    from limner.weights.checkpoint import read_checkpoint
    from limner.weights.save import save_checkpoint

    unet, vae, text = UNetConfig(), VAEConfig(), CLIPTextConfig()
    if tiny:
        unet = UNetConfig(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=32,
            sample_size=8,
        )
        vae = VAEConfig(block_out_channels=(32, 32), layers_per_block=1)
        text = CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=32,
        )
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "unet": UNet2DConditionModel(unet),
            "vae": AutoencoderKL(vae),
            "text_encoder": CLIPTextModel(text),
        }
    generator = torch.Generator().manual_seed(0)
    for part, network in networks.items():
        networks[part] = network.to_empty(device="cpu")
        for name, weight in network.named_parameters():
            # A matrix keeps the size of what passes through it, so nothing dies or explodes in depth.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5, generator)
            else:
                torch.nn.init.normal_(
                    weight, float("norm" in name and name.endswith("weight")), 0.2, generator
                )
    shipped = read_checkpoint(SHIPPED["picturebook"])  # for what no network looks at
    save_checkpoint(
        folder,
        **networks,
        tokenizer=shipped.tokenizers["text_encoder"],
        scheduler_config=shipped.scheduler_config,
    )
    return folder


def flops(checkpoint: "Checkpoint") -> dict[str, int]:
    """Floating-point operations of each network on its inputs, counted without computing anything."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from limner.nn.clip import CLIPTextModel
    from limner.nn.unet import UNet2DConditionModel
    from limner.nn.vae import AutoencoderKL

    with torch.device("meta"):
        networks: dict[str, Callable[..., Any]] = {
            "unet": UNet2DConditionModel(checkpoint.unet_config),
            "vae": AutoencoderKL(checkpoint.vae_config).decode,
            "text_encoder": CLIPTextModel(checkpoint.text_configs["text_encoder"]),
        }
    counts = {}
    for name, given in inputs(checkpoint).items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            networks[name](*(tensor.to("meta") for tensor in given))
        counts[name] = counter.get_total_flops()
    return counts


def entries(folder: Path, compiled: bool, quick: bool) -> list[Entry]:
    """All contestants: the baseline first, and those that are most comparable next to each other."""
    theirs = [Entry(f"diffusers {p}", p, partial(Diffusers, folder, p)) for p in ("fp32", "bf16")]
    if compiled:
        theirs.append(Entry("diffusers bf16 compiled", "bf16", partial(Diffusers, folder, "bf16", True)))
    ours = [
        Entry(f"limner {backend} {precision}", precision, partial(Limner, folder, precision, backend))
        for backend, precision in [("torch", "fp32"), ("torch", "bf16"), *(("openvino", p) for p in _SIZES)]
    ]
    return [theirs[0], ours[0]] if quick else [theirs[0], ours[0], *theirs[1:], *ours[1:]]


def heats(all_entries: Sequence[Entry], weights: int, budget: float) -> list[list[Entry]]:
    """Groups that fit into `budget` bytes of memory together, each with the baseline, which comes first.

    Args:
        weights: Number of weights of a contestant.
    """
    baseline, *others = all_entries

    def held(entry: Entry) -> float:
        return _HELD * weights * _SIZES[entry.precision]

    groups = [[baseline]]
    for entry in others:
        if len(groups[-1]) > 1 and sum(map(held, [*groups[-1], entry])) > budget:
            groups.append([baseline])
        groups[-1].append(entry)
    return groups


def difference(output: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest and root-mean-square difference, each relative to the reference's own."""
    apart = (output - reference).astype(np.float64)
    return (
        float(np.abs(apart).max() / np.abs(reference).max()),
        float(np.sqrt(np.square(apart).mean() / np.square(reference, dtype=np.float64).mean())),
    )


def measure(group: Sequence[Entry], rounds: int, side: int, data: dict[str, Any]) -> None:
    """Run one heat and add its figures to `data`: those of each network and contestant, and the peaks."""
    with ExitStack() as stack:
        running: dict[str, Contestant] = {}
        for entry in group:
            say(f"starting {entry.name}")
            try:
                running[entry.name] = stack.enter_context(Contestant(entry.make))
            except Unavailable as reason:
                data["skipped"][entry.name] = str(reason)
        if len(running) == 1 and len(group) > 1:
            return  # nobody came
        peak = stack.enter_context(Contestant(partial(Peak, side)))
        for network in NETWORKS:
            reference = running[BASELINE].ask("output", network)
            apart = {
                name: difference(contestant.ask("output", network), reference)
                for name, contestant in running.items()
            }
            turns: dict[str, Callable[[], float]] = {
                name: partial(contestant.ask, "seconds", network) for name, contestant in running.items()
            }
            peaks = {f"peak {p}": partial(peak.ask, "gflops", p) for p in ("fp32", "bf16")}
            answers = alternate({**turns, **peaks}, rounds)
            for name in peaks:
                data["gflops"].setdefault(name.split()[1], []).extend(answers[name])
            medians = ", ".join(f"{name} {median(answers[name]):.3g} s" for name in running)
            say(f"{network}: {medians}")
            for name in running:
                if name != BASELINE or name not in data["networks"][network]:
                    data["networks"][network][name] = {
                        "seconds": answers[name],
                        "speedup": ratio(answers[BASELINE], answers[name]),
                        "largest difference": apart[name][0],
                        "rms difference": apart[name][1],
                    }


def report(options: argparse.Namespace, data: dict[str, Any], precisions: dict[str, str]) -> Report:
    found = Report(
        "networks",
        "The networks alone",
        f"One U-Net step, one decoding, one encoding of two prompts, in turns (rounds: {options.rounds}), on "
        f"the same {'random weights' if options.checkpoint is None else 'weights'} everywhere. The median "
        f"time with the extremes; how many times faster than {BASELINE} in the same round, with a 95 % "
        "interval; the share of the fastest product or convolution that was measured in between; and the "
        f"difference from the output of {BASELINE}, the largest and the root mean square, each relative.",
        data=data,
    )
    peaks = {precision: max(values) for precision, values in data["gflops"].items()}
    for network, title in NETWORKS.items():
        work, rows = data["flops"][network], []
        for name, figures in data["networks"][network].items():
            seconds = Spread.of(figures["seconds"])
            peak = peaks.get(precisions[name])
            rows.append(
                (
                    name,
                    seconds.text(" s"),
                    figures["speedup"].text("×"),
                    f"{work / seconds.middle / 1e9:.0f}",
                    "" if peak is None else f"{work / seconds.middle / 1e9 / peak:.0%}",
                    f"{figures['largest difference']:.1e}",
                    f"{figures['rms difference']:.1e}",
                )
            )
        columns = ("", "time", f"{BASELINE} ÷ it", "GFLOP/s", "of peak", "largest diff.", "RMS diff.")
        found.tables.append(Table(f"{title}, {work / 1e12:.3g} TFLOP", columns, rows))
        times = {n: Spread.of(f["seconds"]) for n, f in data["networks"][network].items()}
        found.charts.append(Chart(title, "s", times))
    found.notes += [f"Peak {p}: {value:.0f} GFLOP/s." for p, value in peaks.items()]
    found.notes += [f"Left out: {name}. {reason}." for name, reason in data["skipped"].items()]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--compile", action="store_true", help="also compile diffusers, which takes minutes")
    options.add_argument(
        "--checkpoint", type=Path, help="folder in the diffusers layout whose weights are used"
    )
    options.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="parts of the names of contestants, in addition to the baseline",
    )
    options.add_argument("--memory", type=float, default=20, help="GiB that contestants may take together")
    given = options.parse_args(argv)
    rounds = given.rounds = 1 if given.quick else given.rounds

    from limner.weights.checkpoint import read_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        say("writing the weights")
        folder = given.checkpoint or random_checkpoint(Path(scratch) / "model", given.quick)
        checkpoint = read_checkpoint(folder)
        data: dict[str, Any] = {
            "flops": flops(checkpoint),
            "gflops": {},
            "networks": {network: {} for network in NETWORKS},
            "skipped": {},
        }
        baseline, *others = entries(folder, given.compile, given.quick)
        taking_part = [baseline, *(e for e in others if any(part in e.name for part in given.only))]
        for group in heats(taking_part, checkpoint.parameters, given.memory * 2**30):
            measure(group, rounds, checkpoint.unet_config.sample_size, data)
    report(given, data, {entry.name: entry.precision for entry in taking_part}).publish(given)


if __name__ == "__main__":
    main()
