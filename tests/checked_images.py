"""A service whose safety policy flags, blurs and blocks images that its checker knows by their pixels."""

import functools
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from limner.engine.events import Subscriber
from limner.request import GenerationRequest
from limner.service import worker
from limner.service.fake import FakeDevice, _pattern
from limner.service.image_safety import ImageSafety
from limner.service.measuring import WorkerMeter
from limner.settings.serve import ServeSettings
from tests.serving import Painter, Served, serving

POLICY = """
schema = 1
base = "none"
"""
RULE = """
[[image_rules]]
name = "{name}"
action = "{action}"
reason = "a known pattern"
category = "nsfw"
min_score = {score}
"""
RULES = (("seen", "flag", 0.3), ("hidden", "blur", 0.6), ("refused", "block", 0.8))
SCORES = {"a forbidden boat": 0.9, "a hidden boat": 0.7, "a doubtful boat": 0.4}
ASK: dict[str, Any] = {"width": 128, "height": 128, "seed": 1, "steps": 4}
ANY_IMAGE = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"WEBPVP8",
    b"iVBORw0KGgo",
    b"/9j/",
    b"UklGR",
)  # as bytes, in base64


def pattern(prompt: str) -> NDArray[np.uint8]:
    """What the fake device draws."""
    return np.asarray(_pattern(GenerationRequest(prompt=prompt, **ASK)))


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def holds_image(data: bytes) -> bool:
    """Whether an image file is in some bytes."""
    return any(mark in data for mark in ANY_IMAGE)


class Stub:
    """A checker that knows some patterns by their pixels."""

    name, version = "opennsfw", "stub"

    def check(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        known = [(pattern(prompt), score) for prompt, score in SCORES.items()]
        return [
            {"nsfw": next((score for one, score in known if np.array_equal(one, image)), 0.0)}
            for image in images
        ]


class Drawing(Painter):
    """What a worker draws with: patterns of prompts, on a fake device of this name."""

    def __init__(self, name: str = "fake") -> None:
        super().__init__()
        self._name = name

    def device(
        self, settings: ServeSettings, name: str, subscribers: Sequence[Subscriber], meter: WorkerMeter
    ) -> FakeDevice:
        return FakeDevice(settings, self._name, subscribers, meter)


def checked_service(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[Served]]:
    """Serves with the policy and the checker.

    Args:
        folder: Folder of the policy, and of the data folder `data`.
    """
    load = functools.partial(ImageSafety, load=lambda _: {"opennsfw": Stub()})
    monkeypatch.setattr(worker, "ImageSafety", load)
    rules = [RULE.format(name=name, action=action, score=score) for name, action, score in RULES]
    path = folder / "own.toml"
    path.write_text(POLICY + "".join(rules))

    def serve(device: str = "fake", **settings: Any) -> AbstractContextManager[Served]:
        return serving(folder / "data", painter=Drawing(device), safety=str(path), **settings)

    return serve
