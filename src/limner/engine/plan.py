"""The plan of a request, made before its first image begins: defaults, steps, memory."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from weakref import ref

from limner.errors import OutOfMemory
from limner.generation.calls import Role
from limner.generation.no_effect import other_model, without_effect
from limner.images.inputs import InputImages
from limner.model.model import Model
from limner.request import GenerationRequest
from limner.request.estimate import picture_bytes
from limner.request.networks import UsedAdapter
from limner.request.resolve import ResolvedRequest

from .memory import Limits, Merged, element_size, weigh
from .scheduler import Demand, bytes_of

Models = Mapping[Role, Model]
"""The models of a request, by role."""


@dataclass(frozen=True)
class Plan:
    """A resolved request, with its cost. It does not keep models in memory.

    Attributes:
        resolved: The resolved request.
        images: Decodes its input images, each once.
        work: Elements of latents to denoise in all steps of one image, for the estimate of the time left.
        demands: Rows and memory that each of its images takes.
        warnings: Warnings about the request itself.
    """

    resolved: ResolvedRequest
    images: InputImages
    work: int
    demands: tuple[Demand, ...]
    warnings: tuple[str, ...]

    @property
    def request(self) -> GenerationRequest:
        """The request with every default filled in."""
        return self.resolved.request

    @property
    def steps(self) -> int:
        """Number of steps of one of its images."""
        return self.resolved.pictures[0].total_steps

    @property
    def batch_key(self) -> Hashable:
        """Model and size, which images must have in common to share forward passes."""
        return self.demands[0].batch_key

    def is_for(self, models: Models) -> bool:
        """Whether it was made with these models, which may have been dropped and loaded again since."""
        return {*map(ref, models.values())} == {*self.demands[0].networks}


def plan_request(
    given: GenerationRequest | ResolvedRequest, models: Models, limits: Limits, *, one_model: bool
) -> Plan:
    """The plan of a request.

    Args:
        given: The request, or what it was resolved to.
        one_model: Whether the engine has only this model, whatever model the request names.

    Raises:
        InvalidRequest: The request does not suit its models.
        PromptRefused: The safety policy of the model refuses it.
        OutOfMemory: An image takes more memory than the limits allow.
        LimnerError: As `Model.resolve`.
    """
    model = models["model"]
    images = InputImages()
    resolved = given if isinstance(given, ResolvedRequest) else model.resolve(given, images)
    asked = given.request if isinstance(given, ResolvedRequest) else given
    flagged = model.check_prompts(resolved)
    first, facts = resolved.pictures[0], model.facts
    if "refiner" in models:
        models["refiner"].check_refines(model, first)
    shapes = [facts.latent_shape(one.width, one.height) for one in first.passes]
    size = element_size(model)
    rows = max(picture.rows for picture in resolved.pictures)
    pass_bytes = max(picture_bytes(picture, facts, size) for picture in resolved.pictures)

    def demand_of(adapters: tuple[tuple[UsedAdapter, ...], ...]) -> Demand:
        """What an image takes whose passes use these adapters; only they differ from image to image."""
        auxiliary = frozenset[Hashable](model.auxiliary_networks(first)) | {
            Merged(of_pass, model.executor.merged_bytes(of_pass, shape, asked.exact))
            for of_pass, shape in zip(adapters, shapes, strict=True)
            if of_pass
        }
        return Demand(
            batch_key=(ref(model), shapes[0]),
            rows=rows,
            most_rows=limits.rows_of(model, *shapes[0][2:]),
            networks={
                ref(each): auxiliary if role == "model" else frozenset() for role, each in models.items()
            },
            pass_bytes=pass_bytes,
            memory=limits.memory,
        )

    used = [tuple(one.adapters for one in picture.passes) for picture in resolved.pictures]
    demands = {adapters: demand_of(adapters) for adapters in dict.fromkeys(used)}
    largest = max(demands.values(), key=lambda demand: bytes_of([demand], weigh))
    needed = bytes_of([largest], weigh)
    if needed > limits.memory:
        width, height = first.passes[-1].width, first.passes[-1].height
        auxiliary = any(largest.networks.values())
        extra = " and the networks that the request names" if auxiliary else ""
        raise OutOfMemory(
            f"{width}x{height} pixels{extra} take about {needed / 1e9:.1f} GB; "
            f"{limits.memory / 1e9:.1f} GB may be used",
            hint=f"ask for fewer pixels{', or name fewer or smaller networks' if auxiliary else ''}",
            fields=("width", "height"),
        )
    before = first.passes[-1].steps_before or 0
    work = before * prod(shapes[0]) + (first.total_steps - before) * prod(shapes[-1])
    warnings = tuple(dict.fromkeys((*flagged, *resolved.warnings, *without_effect(resolved, facts))))
    if one_model:
        named = {"model": model.name, "revision": model.revision, "variant": model.variant}
        warnings += other_model(asked, named)
    return Plan(resolved, images, work, tuple(demands[adapters] for adapters in used), warnings)


def wanted_models(request: GenerationRequest) -> dict[Role, GenerationRequest]:
    """The models of a request, each as a request for it alone."""
    wanted: dict[Role, GenerationRequest] = {"model": request}
    if request.refiner is not None:
        named = {"model": request.refiner, "revision": None, "variant": request.variant}
        wanted["refiner"] = request.model_copy(update=named)
    return wanted


def opens_images(request: GenerationRequest) -> bool:
    """Whether input images are decoded while the images of a request are generated."""
    given = request.image, request.mask, request.depth, request.controls, request.image_prompts
    return any(given)


def opens_files(request: GenerationRequest) -> bool:
    """Whether resolving a request opens files: images, adapters, networks, wildcards or styles."""
    named = request.loras, request.styles, request.wildcards
    tags = any("<" in prompt for prompt in request.prompts)
    return opens_images(request) or any(named) or tags
