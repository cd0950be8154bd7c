"""The events of an engine, for logs, metrics, billing and other subscribers.

The events of a request come in this order: `Admitted`, `Started`, `StepDone` and `ImageDone` for each image,
and at last `Finished`, `Failed` or `Cancelled`. Images of one request take their steps side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar

from limner.images.picture import Picture


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The engine has accepted a request.

    Attributes:
        job: Id of the request.
        images: Number of images that it asks for.
        priority: Its priority; higher goes first.
    """

    kind: ClassVar[str] = "admitted"
    job: str
    images: int
    priority: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """The first image of a request has begun.

    Attributes:
        job: Id of the request.
        seconds: Seconds since the request was admitted.
    """

    kind: ClassVar[str] = "started"
    job: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A call of the U-Net is done. Samplers of higher order make several calls per step.

    Attributes:
        job: Id of the request.
        image: Number of the image in the request, from 1.
        step: Number of the step, from 1.
        steps: Number of steps of the image.
        batch_size: Number of images that shared the forward pass.
        device_seconds: This image's share of the forward pass, by rows.
    """

    kind: ClassVar[str] = "step"
    job: str
    image: int
    step: int
    steps: int
    batch_size: int
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    """An image is finished.

    Attributes:
        job: Id of the request.
        image: Number of the image in the request, from 1.
        batch_size: Number of images that were decoded together.
        device_seconds: This image's share of all forward passes that it took part in.
        picture: The image with its record.
    """

    kind: ClassVar[str] = "picture"
    job: str
    image: int
    batch_size: int
    device_seconds: float
    picture: Picture = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A request is done.

    Attributes:
        job: Id of the request.
        images: Number of images that were finished.
        seconds: Seconds since the request was admitted.
        device_seconds: The request's share of all forward passes that it took part in.
    """

    kind: ClassVar[str] = "finished"
    job: str
    images: int
    seconds: float
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A request has failed.

    Attributes:
        job: Id of the request.
        error: What `Handle.result` raises.
        device_seconds: As in `Finished`.
    """

    kind: ClassVar[str] = "failed"
    job: str
    error: Exception
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """A request, or one image of it, was cancelled.

    Attributes:
        job: Id of the request.
        image: Number of the image, from 1; None for the request as a whole.
        device_seconds: Of the image or the request, as of `Finished`.
    """

    kind: ClassVar[str] = "cancelled"
    job: str
    image: int | None
    device_seconds: float


Event = Admitted | Started | StepDone | ImageDone | Finished | Failed | Cancelled

Subscriber = Callable[[Event], None]
"""Called with each event, in the thread where it happens, so it must return quickly."""


def event_data(event: Event) -> dict[str, str | int | float | None]:
    """The attributes of an event as plain data, without the image; an error is its text."""
    values = {one.name: getattr(event, one.name) for one in fields(event) if one.name != "picture"}
    return {name: str(value) if isinstance(value, Exception) else value for name, value in values.items()}
