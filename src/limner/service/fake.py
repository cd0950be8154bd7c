"""A device that draws patterns without a model and without torch: `limner serve --device fake`.

It is for tests of clients, of the studio, of the service itself and of its throughput.

    fake            draws at once
    fake:0.05       takes 0.05 seconds for each step
    fake:0.05:16    draws up to 16 images at the same time, as a batch of a real device

The image depends on the prompt, the seed and the size alone. Each step has a preview, in which the pattern
comes out of noise. A request whose prompt holds one of these marks fails half-way:

    fail:request    invalid_request: its own fault, and not tried again
    fail:prompt     invalid_prompt: the same, with the field at fault
    fail:device     out_of_memory: tried again until the attempts are used up
    fail:internal   internal_error: tried again, too
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from limner.engine.events import Subscriber
from limner.engine.fake import FakeEngine
from limner.engine.handle import Progress
from limner.engine.protocol import EngineProtocol
from limner.errors import InternalError, InvalidRequest, LimnerError, OutOfMemory, PromptError
from limner.request import GenerationRequest
from limner.settings.serve import ServeSettings

from .drawing import request_of
from .jobs import Job
from .measuring import WorkerMeter
from .worker_calls import CALLS, Handler

_NAME = re.compile(r"fake(?::(\d+(?:\.\d+)?)(?::([1-9]\d?))?)?")
_OF_PROMPT = ("prompt",)
_FAILURES: dict[str, Callable[[], LimnerError]] = {
    "fail:request": lambda: InvalidRequest(
        "the prompt asks for a failure", hint="take the mark fail:request out of it", fields=_OF_PROMPT
    ),
    "fail:prompt": lambda: PromptError(
        "the prompt cannot be read: it holds a mark", hint="take it out", fields=_OF_PROMPT
    ),
    "fail:device": lambda: OutOfMemory(
        "the device has not enough memory for this request", hint="ask for a smaller image"
    ),
    "fail:internal": lambda: InternalError("the engine failed at this request"),
}
"""Mark in a prompt -> makes what the request fails with."""

_SHAPES = 5  # of a pattern
_PREVIEW_SCALE = 8  # pixels of the image for one of its preview, as of latents


def is_fake(device: str) -> bool:
    """Whether a name is that of a fake device."""
    return _NAME.fullmatch(device) is not None


def fake_engine(device: str, subscribers: Sequence[Subscriber] = ()) -> FakeEngine:
    """The engine of a fake device.

    Args:
        device: "fake", "fake:SECONDS" of a step, or "fake:SECONDS:IMAGES" that are drawn at once.
        subscribers: Called with each event of the engine.

    Raises:
        InvalidRequest: For another name.
    """
    match = _NAME.fullmatch(device)
    if match is None:
        raise InvalidRequest(f"{device!r} is no fake device", fields=("devices",))
    return FakeEngine(
        step_seconds=float(match[1] or 0.0),
        subscribers=subscribers,
        at_once=int(match[2] or 1),
        draw=_pattern,
        draw_preview=fake_preview,
        failure_of=_failure,
    )


class FakeDevice:
    """A `DrawingDevice` over a `FakeEngine`.

    Args:
        settings: Settings of the service.
        device: Name, as `fake_engine` takes it.
        subscribers: Called with each event of the engine.
        meter: Not used.
    """

    def __init__(
        self, settings: ServeSettings, device: str, subscribers: Sequence[Subscriber], meter: WorkerMeter
    ) -> None:
        self.engine: EngineProtocol = fake_engine(device, subscribers)
        self.calls: Mapping[str, Handler] = {**CALLS, "echo": _echo}
        self._models: dict[str, None] = {}

    def models(self) -> tuple[str, ...]:
        """The models of the jobs so far, as if they were in memory."""
        return tuple(self._models)

    @property
    def gpu(self) -> str | None:
        """There is none."""
        return None

    def memory(self) -> dict[str, int]:
        """No memory is used."""
        return {"models": 0, "limit": 0}

    def load(self, name: str) -> None:
        """No effect."""

    def request(self, job: Job) -> GenerationRequest:
        """The request of a job. Raises as `request_of`."""
        self._models[job.model] = None
        return request_of(job)

    def unfinished(
        self, request: GenerationRequest, progress: Progress, seconds: float
    ) -> Image.Image | None:
        """The preview of the step in the size of the image."""
        return fake_preview(request, progress.step, progress.steps).resize(_size(request))


def _failure(request: GenerationRequest, step: int, steps: int) -> LimnerError | None:
    """What a request whose prompt has a mark fails with, half-way."""
    if 2 * step < steps:
        return None
    return next((make() for mark, make in _FAILURES.items() if mark in request.prompt), None)


def _size(request: GenerationRequest) -> tuple[int, int]:
    return request.width or 64, request.height or 64


def _pattern(request: GenerationRequest) -> Image.Image:
    """Some ellipses and rectangles on a ground, all of them a function of prompt and seed."""
    random = Random(f"{request.prompt} {request.seed} {request.variation_seed}")
    width, height = _size(request)
    image = Image.new("RGB", (width, height), _colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y = random.uniform(0, width), random.uniform(0, height)
        across, high = random.uniform(0.1, 0.35) * width, random.uniform(0.1, 0.35) * height
        shape = draw.ellipse if random.random() < 0.6 else draw.rectangle
        shape((x - across, y - high, x + across, y + high), fill=_colour(random))
    return image


def fake_preview(request: GenerationRequest, step: int, steps: int) -> Image.Image:
    """The pattern as it comes out of noise, a pixel for each eight."""
    width, height = (max(1, side // _PREVIEW_SCALE) for side in _size(request))
    noise = Random(f"{request.seed} {step}").randbytes(3 * width * height)
    small = _pattern(request).resize((width, height), Image.Resampling.BOX)
    return Image.blend(Image.frombytes("RGB", (width, height), noise), small, step / steps)


def _colour(random: Random) -> tuple[int, int, int]:
    return random.randrange(256), random.randrange(256), random.randrange(256)


def _echo(params: Mapping[str, Any], parts: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Answers with the question, after `seconds`."""
    time.sleep(float(params.get("seconds", 0.0)))
    return dict(params), list(parts)
