"""The probe: a small network that reads what a picture of the world shows.

It is a one-stage detector on a 16x16 grid, after "Objects as Points" (Zhou et al. 2019): each cell predicts
whether the centre of a thing lies in it, its kind and colour, and the distances to its sides. Four heads over
the whole picture predict the setting, the time, the weather and the style. It is trained on rendered scenes
only (`limner train probe`), never on pictures that a model drew, and so it can judge those.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import InvalidCheckpoint
from limner.files import read_json, whole_file
from limner.picturebook.scene import COLOURS, KINDS, SETTINGS, STYLES, TIMES, WEATHERS
from limner.weights.load import load_module
from limner.weights.tensors import open_tensors, write_tensors

STRIDE = 8  # side of a cell in pixels
JUDGES = Path(__file__).parent / "judges"  # the weights that ship

_THRESHOLD = 0.35  # probability of a centre above which a cell counts as a thing


@dataclass(frozen=True)
class ProbeConfig:
    """Geometry and vocabulary; both are stored with the weights.

    Attributes:
        widths: Number of channels at 1/2, 1/4 and 1/8 of the picture's side.
        blocks: Number of residual blocks at 1/8.
        kinds, colours, settings, times, weathers, styles: Classes of each output, in order.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = COLOURS
    settings: tuple[str, ...] = SETTINGS
    times: tuple[str, ...] = TIMES
    weathers: tuple[str, ...] = WEATHERS
    styles: tuple[str, ...] = STYLES

    def __post_init__(self) -> None:
        if len(self.widths) != 3:
            raise ValueError(f"a probe's widths are {self.widths!r}; expected three")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the content of `probe.json`.

        Raises:
            ValueError: A key is missing or unknown, or a value has the wrong type.
        """
        defaults = cls().to_dict()
        if values.keys() != defaults.keys():
            raise ValueError(f"a probe's config has {sorted(values)}; expected {sorted(defaults)}")
        for name, value in values.items():
            default = defaults[name]
            alike = type(value) is type(default) and (
                not isinstance(value, list) or all(type(v) is type(default[0]) for v in value)
            )
            if not alike:
                raise ValueError(f"a probe's {name} is {value!r}; expected something like {default!r}")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The content of `probe.json`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


class Readings(NamedTuple):
    """Outputs of the network on a grid of h x w cells; logits, but for `sides`.

    `sides` are the distances from a cell's centre to the left, top, right and bottom of the thing, in
    fractions of the picture's side.
    """

    centre: Tensor  # [B, h, w]
    kind: Tensor  # [B, kinds, h, w]
    colour: Tensor  # [B, colours, h, w]
    sides: Tensor  # [B, 4, h, w]
    setting: Tensor  # [B, settings]
    time: Tensor  # [B, times]
    weather: Tensor  # [B, weathers]
    style: Tensor  # [B, styles]


class _Block(nn.Module):
    """A pre-activation residual block; the second convolution is dilated, for a wider receptive field."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return x + h


class Probe(nn.Module):
    """The network: pictures to `Readings`."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        half, quarter, eighth = config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(quarter, eighth, 3, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(*(_Block(eighth) for _ in range(config.blocks)))
        self.norm = nn.GroupNorm(8, eighth)
        self.cells = nn.Conv2d(eighth, sum(self._cell_sizes()), 1)
        self.whole = nn.Linear(2 * eighth, sum(self._whole_sizes()))
        assert self.cells.bias is not None
        nn.init.constant_(self.cells.bias[:1], -3.0)  # few cells hold a centre

    def _cell_sizes(self) -> tuple[int, ...]:
        return 1, len(self.config.kinds), len(self.config.colours), 4

    def _whole_sizes(self) -> tuple[int, ...]:
        c = self.config
        return len(c.settings), len(c.times), len(c.weathers), len(c.styles)

    def forward(self, pictures: Tensor) -> Readings:
        """Readings of pictures [B, 3, H, W] in [-1, 1]; H and W are multiples of 8, 128 in training."""
        features = F.relu(self.norm(self.blocks(self.stem(pictures))))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        centre, kind, colour, sides = self.cells(features).float().split(self._cell_sizes(), 1)
        whole = self.whole(pooled).float().split(self._whole_sizes(), 1)
        return Readings(centre[:, 0], kind, colour, sides, *whole)


@dataclass(frozen=True)
class SeenThing:
    """A thing that the probe found; its box in fractions of the picture's side, y downwards."""

    kind: str
    colour: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def extent(self) -> float:
        """The box's longer side."""
        return max(self.right - self.left, self.bottom - self.top)


@dataclass(frozen=True)
class Seen:
    """What the probe found in a picture."""

    things: tuple[SeenThing, ...]
    setting: str
    time: str
    weather: str
    style: str


@torch.no_grad()
def see(probe: Probe, pictures: Tensor) -> list[Seen]:
    """What the probe finds in each of pictures [B, 3, 128, 128] in [-1, 1]."""
    device = next(probe.parameters()).device
    seen = []
    for part in torch.split(pictures, 64):
        readings = Readings(*(r.cpu() for r in probe(part.float().clamp(-1, 1).to(device))))
        seen += [_decode(Readings(*(r[i] for r in readings)), probe.config) for i in range(len(part))]
    return seen


def _decode(one: Readings, config: ProbeConfig) -> Seen:
    """The readings of one picture as things: local maxima of the centre's probability."""
    probability = one.centre.sigmoid()
    height, width = probability.shape
    things = []
    for row, column in _peaks(probability):
        x, y = (column + 0.5) / width, (row + 0.5) / height
        left, top, right, bottom = one.sides[:, row, column].tolist()
        things.append(
            SeenThing(
                kind=config.kinds[int(one.kind[:, row, column].argmax())],
                colour=config.colours[int(one.colour[:, row, column].argmax())],
                left=x - left,
                top=y - top,
                right=x + right,
                bottom=y + bottom,
            )
        )
    return Seen(
        things=tuple(sorted(things, key=lambda thing: (thing.x, thing.y))),
        setting=config.settings[int(one.setting.argmax())],
        time=config.times[int(one.time.argmax())],
        weather=config.weathers[int(one.weather.argmax())],
        style=config.styles[int(one.style.argmax())],
    )


def _peaks(probability: Tensor) -> list[tuple[int, int]]:
    """Row and column of cells above the threshold, highest first, without neighbours of earlier ones."""
    rows, columns = (probability > _THRESHOLD).nonzero(as_tuple=True)
    order = probability[rows, columns].argsort(descending=True).tolist()
    peaks: list[tuple[int, int]] = []
    for row, column in [(int(rows[i]), int(columns[i])) for i in order]:
        if all(max(abs(row - r), abs(column - c)) > 1 for r, c in peaks):
            peaks.append((row, column))
    return peaks


def load_probe(folder: Path = JUDGES) -> Probe:
    """The probe in `probe.json` and `probe.safetensors` of a folder, in fp32; by default the shipped one.

    Raises:
        InvalidCheckpoint: Files that are missing, broken or not of one probe.
    """
    label, weights = folder / "probe.json", folder / "probe.safetensors"
    try:
        config = ProbeConfig.from_dict(read_json(label))
    except ValueError as error:
        raise InvalidCheckpoint(f"{label}: {error}") from None
    probe = load_module(
        lambda: Probe(config), open_tensors(weights), source=weights, names=str, dtype=torch.float32
    )
    return probe.eval().requires_grad_(False)


def save_probe(probe: Probe, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `probe.safetensors` and, last, `probe.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "probe.safetensors", {k: t.to(dtype) for k, t in probe.state_dict().items()})
    with whole_file(folder / "probe.json") as temporary:
        temporary.write_text(json.dumps(probe.config.to_dict(), indent=2) + "\n", encoding="utf-8")
