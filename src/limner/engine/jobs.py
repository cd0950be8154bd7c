"""The work of a device: requests, their images that have begun, and calls that wait for an answer."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from limner.generation.calls import Answer, Call, Generation
from limner.model.model import Model
from limner.request import GenerationRequest
from limner.request.resolve import PictureSpec

from .front import Desk, Job
from .memory import Limits
from .models import ModelSource
from .plan import Models, Plan
from .scheduler import Demand, Pending

Review = Callable[[Tensor, Sequence[GenerationRequest]], tuple[Tensor, Sequence[Mapping[str, str]]]]
"""Finished images [B, 3, H, W] in [-1, 1], and the request of each -> images of the same size to keep in
their place, and notes for the record of each. An error fails the request; of several images, each is then
reviewed alone. It runs in the thread of the device, and may use the device."""


@dataclass(eq=False)
class Client:
    """An `Engine`, as its device sees it.

    Attributes:
        desk: Its requests.
        source: Its models.
        limits: Limits of batches and memory for its requests.
        shares_memory: Whether models of other engines count among what is in memory for them.
        review: Reviews finished images before they are recorded.
    """

    desk: Desk
    source: ModelSource
    limits: Limits
    shares_memory: bool
    review: Review | None


@dataclass(eq=False)
class DeviceJob(Job):
    """A request that a device runs.

    Attributes:
        client: The engine that it was submitted to.
        loading: Its models, from when they are loaded for it until an image of it holds them.
        fetching: Its model, while the auxiliary networks that it names are downloaded.
        planning: Its plan, while it is made.
        plan: Its plan, once it is made.
        begun: Number of images that have begun or were cancelled before.
        work: Elements of latents that were denoised in all steps of all images so far, for the time left.
        dropped: Indices of images that were cancelled.
    """

    client: Client = field(kw_only=True)
    loading: "Future[Models] | None" = None
    fetching: "tuple[Model, Future[None]] | None" = None
    planning: "Future[Plan] | None" = None
    plan: Plan | None = None
    begun: int = 0
    work: int = 0
    dropped: set[int] = field(default_factory=set)


@dataclass(eq=False)
class ImageRun:
    """An image that has begun.

    Attributes:
        job: The request.
        index: Index of the image in the request, from 0.
        spec: This image of the resolved request.
        models: The models that generate it, in memory until it is finished.
        plan: The plan of the request.
        generation: Its coroutine, once it is made.
        working: The next call or the finished image, while another thread computes it.
        pending: The call that waits for its answer; None while another thread works.
        image: The finished image [1, 3, H, W].
        latents: The last estimate of the clean latents.
        step: Number of steps taken.
        batch_size: Number of images in its last forward pass.
        device_seconds: Its share of all forward passes.
        warnings: Warnings so far.
    """

    job: DeviceJob
    index: int
    spec: PictureSpec
    models: Models
    plan: Plan
    generation: Generation | None = None
    working: "Future[Call | Tensor] | None" = None
    pending: "Waiting | None" = None
    image: Tensor | None = None
    latents: Tensor | None = None
    step: int = 0
    batch_size: int = 1
    device_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def request(self) -> GenerationRequest:
        """The request for this image alone."""
        return self.spec.request

    @property
    def demand(self) -> Demand:
        """Rows and memory that it takes."""
        return self.plan.demands[self.index]

    def close(self) -> None:
        """Close its generation."""
        if self.generation is not None:
            self.generation.close()


@dataclass(eq=False)
class Batch:
    """Calls of a caller that runs generations by itself and waits for the answers.

    Attributes:
        model: The model.
        calls: Calls of one group.
        most: Largest number of calls in one forward pass.
        rank: Place in the queue.
        first: Whether the calls go before other work.
        since: The tick of the last answer.
        answers: Answers so far.
        future: All answers.
    """

    model: Model
    calls: Sequence[Call]
    most: int
    rank: tuple[int, int]
    first: bool = False
    since: int = 0
    answers: list[Answer] = field(default_factory=list)
    future: "Future[list[Answer]]" = field(default_factory=Future)

    def waiting(self) -> list["Waiting"]:
        """The calls that have no answer yet."""
        return [
            Waiting(
                group=id(self),
                rank=(*self.rank, index),
                since=self.since,
                first=self.first,
                model=self.model,
                call=call,
                owner=self,
            )
            for index, call in enumerate(self.calls)
            if index >= len(self.answers)
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Waiting(Pending):
    """A call that waits for its answer, with its model and its owner."""

    model: Model
    call: Call
    owner: ImageRun | Batch
