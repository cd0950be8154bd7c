"""A grid: one request with every value of one, two or three axes, on one labelled sheet (X/Y/Z plot).

    sheet = limner.grid(model, request, x="steps=10,20,30", y="sampler=euler,dpmpp_2m")
    sheet.image.save("sheet.png")

All images go through one engine, so they share forward passes. x runs from left to right, y from top to
bottom, and each value of z makes a table of its own. A cell is the number of an image, counted row by row,
table after table.
"""

import secrets
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from math import prod, sqrt
from queue import SimpleQueue

from limner.engine.engine import Engine
from limner.engine.models import ModelCache
from limner.errors import InvalidRequest
from limner.images.picture import Picture, pixel_hash
from limner.model.model import Model
from limner.prompts.chunks import tokenize_prompt
from limner.request import NEW_SEEDS, GenerationRequest

from .axes import Axis, requests_of
from .sheet import sheet_of

LIMIT = 100  # images, unless another limit is given
_MOST_PIXELS = 80_000_000  # of a sheet: PIL warns of larger files


@dataclass(frozen=True)
class Grid:
    """A grid, finished or not.

    Attributes:
        x, y, z: The axes.
        pictures: The images by cell; unfinished cells are missing.
        errors: Why a cell has no image.
    """

    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    errors: Mapping[int, BaseException] = field(default_factory=dict)

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes that it has, by "x", "y" and "z"."""
        named = {"x": self.x, "y": self.y, "z": self.z}
        return {name: axis for name, axis in named.items() if axis is not None}

    @cached_property
    def image(self) -> Picture:
        """The sheet of all images, with labels. Its record is that of the first image, with the axes.

        Raises:
            InvalidRequest: The grid has no image.
        """
        if not self.pictures:
            raise InvalidRequest("the grid has no image", hint="`errors` says why")
        first = self.pictures[min(self.pictures)].record
        values = {name: {axis.name: axis.texts} for name, axis in self.axes.items()}
        labels = [("",) if axis is None else axis.labels for axis in (self.x, self.y, self.z)]
        errors = {cell: str(error) for cell, error in self.errors.items()}
        sheet = sheet_of(labels, self.pictures, errors, self.scale)
        return Picture(sheet, first.model_copy(update={"grid": values, "pixels": pixel_hash(sheet)}))

    @property
    def scale(self) -> float:
        """Scale of the images on the sheet; below 1 where the sheet would be too large for most programs."""
        count = prod(len(axis.values) for axis in self.axes.values())
        largest = max((picture.width * picture.height for picture in self.pictures.values()), default=1)
        return min(1.0, sqrt(_MOST_PIXELS / (count * largest)))


def grid(
    models: Model | ModelCache,
    request: GenerationRequest,
    *,
    x: Axis | str | None = None,
    y: Axis | str | None = None,
    z: Axis | str | None = None,
    limit: int = LIMIT,
) -> Grid:
    """Generate an image for each combination of the axes' values, and wait for all of them.

    Args:
        models: One model, or, for an axis of models, a cache to load them into.
        request: What all images have in common. They share one seed, random if the request gives none, unless
            the seed is an axis.
        x, y, z: An `Axis`, or a text such as "steps=10,20,30".
        limit: Largest number of images.

    Raises:
        InvalidRequest: A value that the field or the model does not take, or more images than the limit;
            before the first image.
        LimnerError: As `load`. Errors of single images are in the grid's `errors`.
    """
    given = {name: axis for name, axis in (("x", x), ("y", y), ("z", z)) if axis is not None}
    axes = {name: Axis.read(axis) if isinstance(axis, str) else axis for name, axis in given.items()}
    requests = cell_requests(request, axes.values(), limit)
    check(requests, models)
    drawn: dict[int, Picture] = {}
    errors: dict[int, BaseException] = {}
    for cell, outcome in draw(requests, models):
        if isinstance(outcome, Picture):
            drawn[cell] = outcome
        else:
            errors[cell] = outcome
    return Grid(**axes, pictures=drawn, errors=errors)


def cell_requests(
    request: GenerationRequest, axes: Collection[Axis], limit: int = LIMIT
) -> list[GenerationRequest]:
    """The request of each cell, all with the same seed unless the seed is an axis.

    Args:
        axes: In the order x, y, z.

    Raises:
        InvalidRequest: More images than the limit, or as `requests_of`.
    """
    if not axes:
        raise InvalidRequest("a grid needs an axis", hint="give one as `x=steps=10,20,30`")
    count = prod(len(axis.values) for axis in axes)
    if count > limit:
        sizes = f"{' x '.join(str(len(axis.values)) for axis in axes)} = " if len(axes) > 1 else ""
        raise InvalidRequest(
            f"the grid has {sizes}{count} images, more than {limit}",
            hint=f"raise the limit: `limit={count}`",
        )
    seeds = {"seed": secrets.randbelow(NEW_SEEDS)} if request.seed is None else {}
    if request.variation_strength and request.variation_seed is None:
        seeds["variation_seed"] = secrets.randbelow(NEW_SEEDS)
    return requests_of(request.model_copy(update=seeds), axes)


def check(requests: Sequence[GenerationRequest], models: Model | ModelCache) -> None:
    """Check each request against its model, which is loaded.

    Raises:
        InvalidRequest: What a model does not take, or a prompt that cannot be read.
        LimnerError: As `load`.
    """
    if isinstance(models, Model) and len({_model_of(request) for request in requests}) > 1:
        raise InvalidRequest("one model was given for an axis of models", hint="give a ModelCache")
    for _, of_one in groupby(sorted(requests, key=_model_of), _model_of):
        model = None
        for request in of_one:
            model = model or (models if isinstance(models, Model) else models.get(request))
            own = model.resolve(request).pictures[0].request
            syntax = "literal" if own.emphasis == "none" else own.prompt_syntax
            for text in own.prompts:
                tokenize_prompt(text, next(iter(model.tokenizers.values())), syntax)


def draw(
    requests: Sequence[GenerationRequest], models: Model | ModelCache
) -> Generator[tuple[int, Picture | BaseException]]:
    """Generate an image for each request, yielding each cell with its image or error as it ends.

    Closing the generator cancels the rest.
    """
    ended: SimpleQueue[int] = SimpleQueue()
    with Engine(models, max_waiting=len(requests)) as engine:
        handles = {}
        # Images of one model are consecutive, so that no model is loaded twice.
        for cell in sorted(range(len(requests)), key=lambda cell: _model_of(requests[cell])):
            handles[cell] = engine.submit(requests[cell])
            handles[cell].when_done(partial(ended.put, cell))
        for _ in requests:
            cell = ended.get()
            error = handles[cell].exception()
            yield cell, handles[cell].result().images[0] if error is None else error


def _model_of(request: GenerationRequest) -> tuple[str, str, str]:
    return request.model, request.revision or "", request.variant or ""
