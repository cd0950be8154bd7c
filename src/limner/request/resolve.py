"""Resolving a request against the facts of its model: every default filled in, for each image and each pass.

    resolved = resolve(request, facts, files)
    resolved.request             # the request with every default filled in
    resolved.pictures[0].passes  # what a generation reads

A resolved request is plain data: it can be stored as JSON and be generated from elsewhere.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import TypeAdapter

from limner.diffusion.plan import Outline, make_outline
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SigmaScheduleName, Spacing
from limner.errors import InvalidRequest

from .checks import check_fields, check_size
from .estimate import Cost, Device, Estimate, cost_of, estimate_of
from .facts import ModelFacts
from .fields import MAX_SIDE, MIN_SIDE, NEW_SEEDS
from .loras import with_loras
from .names import own_sampler
from .networks import UsedAdapter, UsedControl, UsedImagePrompt
from .no_effect import no_effect
from .parts import Control, ImagePrompt, Lora
from .request import GenerationRequest
from .script import PromptRange, guidance_of, prompt_ranges
from .templates import with_final_prompts

RESOLVED_VERSION = "1.0"

STEPS, GUIDANCE_SCALE = 30, 7.5  # where neither the request nor the model says
CFG_PP_SCALE = 0.6  # corresponds to 7.5 with other samplers
STRENGTH = 0.8
HIRES_STRENGTH, HIRES_UPSCALER = 0.7, "latent"
LARGE = 4.0  # an input image of more than so many times the model's area is generated at that area

_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")


class Files(Protocol):
    """Finds what a request names: networks, and the sizes of its images."""

    def adapters(self, loras: Sequence[Lora]) -> tuple[UsedAdapter, ...]:
        """The adapters of a pass, except those of weight 0."""

    def controls(self, controls: Sequence[Control]) -> tuple[UsedControl, ...]:
        """The network of each control."""

    def image_prompts(self, prompts: Sequence[ImagePrompt]) -> tuple[UsedImagePrompt, ...]:
        """The networks of each image prompt."""

    def image_size(self, source: str) -> tuple[int, int]:
        """Width and height of an image, turned upright."""

    def check_images(self, request: GenerationRequest) -> tuple[str, ...]:
        """Warnings about the images of a resolved request.

        Raises:
            InvalidRequest: An image cannot be read, or a control image could not be made of it.
        """


@dataclass(frozen=True)
class PassSpec:
    """One sampling run of an image, to clean latents: from noise, or from a noised image. A hires pass is a
    second run.

    Attributes:
        width, height: Size of the image in this pass, in pixels.
        prompts: The prompts from step to step.
        negative_given: There is a negative prompt, though it may be empty.
        guidance_scale: Scale of the guidance.
        sampler, timestep_spacing, sigma_schedule: How sigmas are chosen and visited.
        options: Options of the sampler that the request sets.
        steps: Steps of the whole sigma schedule.
        begin: Number of first steps that are not run, as the pass starts from an image.
        steps_before: Steps of the pass before; None for the first pass.
        total_steps: Steps of the image's progress: all of the first pass, those left out included, and those
            that the second pass runs.
        adapters: Adapters that change the networks.
        rows: Rows of the U-Net that the image takes at a step, at most.
    """

    width: int
    height: int
    prompts: tuple[PromptRange, ...]
    negative_given: bool
    guidance_scale: float
    sampler: str
    timestep_spacing: Spacing
    sigma_schedule: SigmaScheduleName
    options: tuple[tuple[str, float], ...]
    steps: int
    begin: int
    steps_before: int | None
    total_steps: int
    adapters: tuple[UsedAdapter, ...]
    rows: int

    @property
    def cfg_pp(self) -> bool:
        """Whether the sampler is one of CFG++."""
        return SAMPLER_TABLE[self.sampler].cfg_pp

    @property
    def run_steps(self) -> int:
        """Steps that are run."""
        return self.steps - self.begin


@dataclass(frozen=True)
class PictureSpec:
    """One image of a resolved request.

    Attributes:
        request: The request for this image alone, its prompts final: what the image's record holds.
        seed: Seed of its noise.
        variation_seed: Seed of the noise that is mixed in; None for none.
        passes: The sampling runs, in order.
        controls: The network of each of the request's controls.
        image_prompts: The networks of each of the request's image prompts.
        cost: What it takes, about, whatever the device.
    """

    request: GenerationRequest
    seed: int
    variation_seed: int | None
    passes: tuple[PassSpec, ...]
    controls: tuple[UsedControl, ...]
    image_prompts: tuple[UsedImagePrompt, ...]
    cost: Cost

    @property
    def total_steps(self) -> int:
        """Steps of its progress, as in `PassSpec`."""
        return self.passes[-1].total_steps

    @property
    def rows(self) -> int:
        """Rows of the U-Net that the image takes at a step, at most."""
        return max(one.rows for one in self.passes)


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with every default filled in.

    Attributes:
        request: The whole request; resolving it again gives the same.
        pictures: Each of its images.
        warnings: What the caller should know.
        schema_version: Version of this form.
    """

    request: GenerationRequest
    pictures: tuple[PictureSpec, ...]
    warnings: tuple[str, ...] = ()
    schema_version: str = RESOLVED_VERSION

    def estimate(self, device: Device) -> Estimate:
        """Time, memory and price of all images on a device, about."""
        return estimate_of([picture.cost for picture in self.pictures], device)

    def to_json(self) -> str:
        """The resolved request as JSON, which `from_json` reads."""
        return _type_adapter().dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises InvalidRequest for another version or malformed data."""
        try:
            resolved: Self = _type_adapter().validate_json(text)
        except ValueError as error:
            raise InvalidRequest(f"not a resolved request: {error}") from None
        if resolved.schema_version.split(".")[0] != RESOLVED_VERSION.split(".")[0]:
            raise InvalidRequest(
                f"the resolved request has version {resolved.schema_version}; expected {RESOLVED_VERSION}",
                fields=("schema_version",),
            )
        return resolved


@cache
def _type_adapter() -> TypeAdapter[Any]:
    return TypeAdapter(ResolvedRequest)


def resolve(
    request: GenerationRequest,
    facts: ModelFacts,
    files: Files,
    *,
    styles_files: Sequence[Path] = (),
    wildcards_dirs: Sequence[Path] = (),
) -> ResolvedRequest:
    """Fill in every default, choose a seed where none is given, and find the files of each image.

    Raises:
        InvalidRequest: This model cannot do what the request asks.
        ModelNotFound, InvalidCheckpoint, UnsupportedModel: A network that cannot be found or used.
    """
    check_fields(request, facts)
    request, warnings = _with_defaults(request, facts, files)
    if not (request.styles or request.wildcards):
        request = with_loras(request)
    controls, image_prompts = files.controls(request.controls), files.image_prompts(request.image_prompts)
    request = _with_names(request, facts)
    adapters = cache(files.adapters)
    passes = cache(lambda own: _passes(own, facts, adapters))
    pictures = []
    for index in range(request.num_images):
        own = request.of_picture(index)
        if index == 0 or request.wildcards:
            final = with_loras(with_final_prompts(own, styles_files, wildcards_dirs))
        own = final.model_copy(update={"seed": own.seed, "variation_seed": own.variation_seed})
        assert own.seed is not None
        own_passes = passes(own.model_copy(update={"seed": None, "variation_seed": None}))
        pictures.append(
            PictureSpec(
                request=own,
                seed=own.seed,
                variation_seed=own.variation_seed if own.variation_strength else None,
                passes=own_passes,
                controls=controls,
                image_prompts=image_prompts,
                cost=cost_of(own_passes, controls, facts, encodes=own.image is not None),
            )
        )
    _check_sizes(pictures[0], facts)
    choices = [control.warnings for control in controls]
    choices += [prompt.warnings for prompt in image_prompts]
    runs = (run for picture in pictures for run in picture.passes)  # wildcards may choose other LoRAs
    choices += [adapter.warnings for run in runs for adapter in run.adapters]
    warnings += tuple(chain(*choices))
    warnings += no_effect(request, facts) + files.check_images(request)
    return ResolvedRequest(request, tuple(pictures), tuple(dict.fromkeys(warnings)))


def _with_defaults(
    request: GenerationRequest, facts: ModelFacts, files: Files
) -> tuple[GenerationRequest, tuple[str, ...]]:
    """The request with a value in every field that has a default, and warnings."""
    (width, height), warnings = _size(request, facts, files)
    of_model = facts.defaults.get("sampler")
    cfg_pp = _is_cfg_pp(request.sampler or of_model)
    scale = CFG_PP_SCALE if cfg_pp else GUIDANCE_SCALE
    varies = request.variation_strength > 0
    starts = request.image is not None and facts.kind in ("text", "depth")
    filled: dict[str, Any] = {
        "model": facts.name,
        "revision": facts.revision,
        "variant": facts.variant,
        "steps": STEPS,
        "guidance_scale": scale,
        **facts.defaults,
        # The model's default scale is for samplers of the same kind as its default sampler.
        **({"guidance_scale": scale} if cfg_pp != _is_cfg_pp(of_model) else {}),
        "width": width,
        "height": height,
        **({"strength": STRENGTH} if starts else {}),
        "seed": secrets.randbelow(NEW_SEEDS),
        **({"variation_seed": secrets.randbelow(NEW_SEEDS)} if varies else {}),
        **request.model_dump(exclude_none=True, exclude={"model", "revision", "variant"}),
    }
    if request.has_second_pass:
        again = {"steps": filled["steps"], "strength": HIRES_STRENGTH, "upscaler": HIRES_UPSCALER}
        filled = {**{f"hires_{name}": value for name, value in again.items()}, **filled}
    return GenerationRequest.of(filled), warnings


def _is_cfg_pp(sampler: str | None) -> bool:
    return sampler is not None and SAMPLER_TABLE[own_sampler(sampler)[0]].cfg_pp


def _size(
    request: GenerationRequest, facts: ModelFacts, files: Files
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Width and height where the request gives none: those of its image, or the model's own.

    A large image, such as a photo, is generated at the model's own area, in the image's proportions: far
    beyond the size that it was trained on, a model repeats objects, and needs much memory and time.

    Raises:
        InvalidRequest: A side of the image is beyond the largest.
    """
    if request.image is None:
        return facts.size, ()
    left, top, right, bottom = request.extend
    width, height = files.image_size(request.image)
    width, height = width + left + right, height + top + bottom
    unit, area = facts.downscale, max(facts.size[0] * facts.size[1], MIN_SIDE**2)
    given = request.width is not None or request.height is not None
    if not given and width * height > LARGE * area:
        scale = max(math.sqrt(area / (width * height)), MIN_SIDE / min(width, height))
        unit = facts.seamless_unit if request.tiling else unit
        size = round(width * scale / unit) * unit, round(height * scale / unit) * unit
        if scale < 1.0 and max(size) <= MAX_SIDE:
            return size, (
                f"the image is {width}x{height}, far larger than the {facts.size[0]}x{facts.size[1]} of "
                f"{facts.name}: it is generated at {size[0]}x{size[1]}; to change that, "
                "give `width` and `height`",
            )
    if (request.width is None and width > MAX_SIDE) or (request.height is None and height > MAX_SIDE):
        raise InvalidRequest(
            f"the image is {width}x{height}; a side has at most {MAX_SIDE} pixels",
            hint="give `width` and `height`",
            fields=("width", "height"),
        )
    return (max(MIN_SIDE, width // unit * unit), max(MIN_SIDE, height // unit * unit)), ()


def _with_names(request: GenerationRequest, facts: ModelFacts) -> GenerationRequest:
    """The request with its sampler, timestep spacing and sigma schedule named."""
    assert request.steps is not None
    outline = _outline(request, facts, request.steps)
    names = {
        "sampler": outline.sampler,
        "timestep_spacing": outline.spacing,
        "sigma_schedule": outline.sigma_schedule,
    }
    return request.model_copy(update=names)


def _outline(request: GenerationRequest, facts: ModelFacts, steps: int) -> Outline:
    """Names of the sampler, spacing and sigma schedule of a pass of so many steps.

    Raises:
        InvalidRequest: They do not go together, or the steps are more than the model has.
    """
    try:
        return make_outline(
            facts.scheduler,
            steps,
            sampler=request.sampler,
            spacing=request.timestep_spacing,
            sigma_schedule=request.sigma_schedule,
            options=_options(request),
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _options(request: GenerationRequest) -> dict[str, float]:
    """The options of the sampler that a request sets."""
    return {name: value for name in _OPTIONS if (value := getattr(request, name)) is not None}


def _passes(
    request: GenerationRequest,
    facts: ModelFacts,
    adapters: Callable[[tuple[Lora, ...]], tuple[UsedAdapter, ...]],
) -> tuple[PassSpec, ...]:
    """The passes of a request for one image whose prompts are final."""
    assert request.steps is not None
    begin, later = 0, request.of_second_pass()
    if request.image is not None and request.strength is not None:
        taken = min(int(request.steps * request.strength), request.steps)
        if taken == 0:
            raise InvalidRequest(
                f"a strength of {request.strength} leaves none of {request.steps} steps; raise one of them",
                fields=("strength", "steps"),
            )
        begin = request.steps - taken
    if later is None:
        return (_pass(request, facts, request.steps, begin, None, request.steps, adapters),)
    assert later.steps is not None
    assert request.hires_strength is not None
    # As in AUTOMATIC1111: `hires_steps` is the number of steps that are run, after those that are left out.
    taken, whole = later.steps, int(later.steps / min(request.hires_strength, 0.999))
    if whole > facts.scheduler.num_train_timesteps:
        raise InvalidRequest(
            f"{taken} steps within a hires_strength of {request.hires_strength} are {whole} in all, more "
            f"than the {facts.scheduler.num_train_timesteps} that there are",
            fields=("hires_steps", "hires_strength"),
        )
    own = with_loras(later.model_copy(update={"loras": ()}))
    later = own if own.loras else later
    total = request.steps + taken
    first = _pass(request, facts, request.steps, begin, None, total, adapters)
    try:
        second = _pass(later, facts, whole, whole - taken, request.steps, total, adapters)
    except InvalidRequest as error:
        message = f"in the hires pass, {error.message}"
        raise type(error)(message, hint=error.hint, fields=error.fields) from None
    return first, second


def _pass(
    request: GenerationRequest,
    facts: ModelFacts,
    steps: int,
    begin: int,
    steps_before: int | None,
    total_steps: int,
    adapters: Callable[[tuple[Lora, ...]], tuple[UsedAdapter, ...]],
) -> PassSpec:
    outline = _outline(request, facts, steps)
    assert request.width is not None
    assert request.height is not None
    assert request.guidance_scale is not None
    prompts = prompt_ranges(
        request.prompt,
        request.negative_prompt or "",
        request.prompt_syntax,
        steps if steps_before is None else steps - begin,
        steps_before,
    )
    cfg_pp = SAMPLER_TABLE[outline.sampler].cfg_pp
    guidances = [
        guidance_of(request, facts, request.guidance_scale, cfg_pp=cfg_pp, weights=one.weights)
        for one in prompts
    ]
    return PassSpec(
        width=request.width,
        height=request.height,
        prompts=prompts,
        negative_given=request.negative_prompt is not None,
        guidance_scale=request.guidance_scale,
        sampler=outline.sampler,
        timestep_spacing=outline.spacing,
        sigma_schedule=outline.sigma_schedule,
        options=tuple(_options(request).items()),
        steps=steps,
        begin=begin,
        steps_before=steps_before,
        total_steps=total_steps,
        adapters=adapters(request.loras),
        rows=max(len(guidance.names) for guidance in guidances),
    )


def _check_sizes(picture: PictureSpec, facts: ModelFacts) -> None:
    """Raise InvalidRequest for a pass at a size that the networks cannot run at."""
    request = picture.request
    for one in picture.passes:
        where = "" if one.steps_before is None else "the hires pass's "
        check_size(request, facts, one.width, one.height, where)
    first, last = (
        facts.latent_shape(one.width, one.height)[2:] for one in (picture.passes[0], picture.passes[-1])
    )
    if request.tiling and first[0] * last[1] != last[0] * first[1]:
        raise InvalidRequest(
            "a hires pass of other proportions crops the image, so that its edges no longer meet",
            hint="give `hires_scale`, or one of `hires_width` and `hires_height`",
            fields=("tiling",),
        )


def check_refiner(refiner: ModelFacts, facts: ModelFacts, picture: PictureSpec) -> None:
    """Raise InvalidRequest unless a model can take over as the refiner of another's image."""
    if refiner.kind != "text" or refiner.latent_channels != facts.latent_channels:
        raise InvalidRequest(
            f"{refiner.name} cannot take over from {facts.name}: it is a model for {refiner.kind} with "
            f"{refiner.latent_channels} latent channels; expected a model for text with "
            f"{facts.latent_channels}",
            fields=("refiner",),
        )
    last = picture.passes[-1]
    check_size(picture.request, refiner, last.width, last.height, "for the refiner the ")
