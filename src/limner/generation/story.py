"""How an image is generated, as plain sequential code: a coroutine that yields calls and gets their values.

    resolved = model.resolve(request)
    image = run(picture_of(resolved.pictures[0], model.facts), model)

Nothing here touches a network. A generation can therefore run alone (`run`), be watched (`watch`: the value
of a `Denoise` holds a preview), share forward passes with many others (`Engine`), and be stopped by closing
it.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from limner.diffusion.plan import Plan
from limner.diffusion.samplers import SAMPLERS, Noise
from limner.images.inputs import InputImages
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts
from limner.request.resolve import PassSpec, PictureSpec

from .calls import Call, Denoise, Generation, Role
from .canvas import Canvas, Kept, canvas_of, decoded, encoded_sample, latent_mask
from .conditioning import ImagePrompts, encode_image_prompts, encode_prompts, extra_channels, read_controls
from .controls import Steering
from .passes import noise_of, plan_of, step_ranges
from .sampling import denoised
from .speed import SPEEDS
from .upscaling import enlarged, works_on


def picture_of(
    picture: PictureSpec,
    facts: ModelFacts,
    refiner: ModelFacts | None = None,
    images: InputImages | None = None,
) -> Generation:
    """Generate one image.

    Args:
        picture: One image of a resolved request.
        facts: Facts about the model that the calls are for.
        refiner: Facts about the model that the request names to finish the image.
        images: Opens the request's images; several images of a request can share what it has opened.

    Returns:
        [1, 3, H, W], about [-1, 1].
    """
    images = images or InputImages()
    request, [first, *later] = picture.request, picture.passes
    plan, shape = plan_of(first, facts.scheduler), facts.latent_shape(first.width, first.height)
    noise = noise_of(picture, shape)
    canvas = canvas_of(request, (first.width, first.height), images)
    masked = None if canvas is None else canvas.masked
    kept: Kept | None = None
    if canvas is None or facts.kind == "edit" or (facts.kind == "inpainting" and plan.begun == 0):
        x = noise() * plan.start_scale
    else:
        start = yield from encoded_sample(canvas.pixels, request, noise)
        added = noise()
        from_noise = masked is not None and plan.begun == 0
        x = added * plan.start_scale if from_noise else start + added * plan.sigmas[0]
        if masked is not None and facts.kind == "text":
            kept = Kept(start, added, latent_mask(masked, shape[2:]))

    run = _Run(picture, facts, None if later else refiner, images)
    latents = yield from run.sample(first, plan, x, noise, canvas, kept)
    for second in later:
        plan, shape = plan_of(second, facts.scheduler), facts.latent_shape(second.width, second.height)
        noise = noise_of(picture, shape)
        canvas = canvas_of(request, (second.width, second.height), images)
        start = yield from _enlarged(latents, second, shape, request, noise)
        x = start + noise() * plan.sigmas[0]
        run = _Run(picture, facts, refiner, images)
        latents = yield from run.sample(second, plan, x, noise, canvas, None)
    image = yield from decoded(latents if kept is None else kept.within(latents), request)
    return image if canvas is None else canvas.finished(image)


class _Run:
    """What the passes of an image have in common.

    Args:
        refiner: Facts about the model that takes over during this pass.
    """

    def __init__(
        self, picture: PictureSpec, facts: ModelFacts, refiner: ModelFacts | None, images: InputImages
    ) -> None:
        self.picture, self.request = picture, picture.request
        self.facts, self.refiner, self.images = facts, refiner, images

    def sample(
        self, spec: PassSpec, plan: Plan, x: Tensor, noise: Noise, canvas: Canvas | None, kept: Kept | None
    ) -> Generator[Call, Any, Tensor]:
        """Sample one pass, from noisy latents x to clean ones [1, C, h, w]."""
        channels = yield from extra_channels(spec, self.request, self.facts, canvas, noise, self.images)
        steering = yield from read_controls(spec, self.picture, canvas, self.images)
        if self.refiner is None or self.request.refiner_start is None:
            x = yield from self._part(spec, plan, x, noise, kept, channels, steering)
        else:
            handover = plan.step_at(self.request.refiner_start)
            x = yield from self._part(spec, plan.part(0, handover), x, noise, kept, channels, steering)
            plan = plan_of(spec, self.refiner.scheduler).part(handover)
            x = yield from self._part(spec, plan, x, noise, kept, role="refiner")
        return x / plan.end_scale

    def _part(
        self,
        spec: PassSpec,
        plan: Plan,
        x: Tensor,
        noise: Noise,
        kept: Kept | None,
        channels: Mapping[str, Tensor] | None = None,
        steering: Steering | None = None,
        role: Role = "model",
    ) -> Generator[Call, Any, Tensor]:
        """Have one model encode the prompts and sample its part of a pass."""
        request = self.request
        facts = self.refiner if role == "refiner" and self.refiner is not None else self.facts
        adapters = spec.adapters if role == "model" else ()
        ranges = step_ranges(spec, request, plan, facts)
        conditionings = yield from encode_prompts(
            spec, request, facts, ranges, channels or {}, role, adapters
        )
        ask = Denoise(
            x,
            plan.sigmas[0],
            0.0,
            {},
            ranges[0].guidance,
            spec.steps_before or 0,
            spec.total_steps,
            paired=spec.cfg_pp,
            role=role,
            adapters=adapters,
            exact=request.exact,
            tiling=request.tiling,
        )
        image_prompts: ImagePrompts = ()
        if role == "model":
            image_prompts = yield from encode_image_prompts(self.picture, self.images)
        sampler = SAMPLERS[plan.sampler](x, plan.sigmas, noise, **plan.options)
        speed = SPEEDS[request.speed]
        return (
            yield from denoised(
                sampler, plan, ranges, conditionings, speed, ask, kept, steering, image_prompts
            )
        )


def _enlarged(
    latents: Tensor, second: PassSpec, shape: Sequence[int], request: GenerationRequest, noise: Noise
) -> Generator[Call, Any, Tensor]:
    """The latents that a hires pass starts from: those of the first pass, or of its image, enlarged."""
    upscaler = request.hires_upscaler or "latent"
    if works_on(upscaler) == "latents":
        return enlarged(latents, (shape[2], shape[3]), upscaler, request.tiling)
    picture = yield from decoded(latents, request)
    picture = enlarged(picture, (second.height, second.width), upscaler, request.tiling)
    return (yield from encoded_sample(picture, request, noise))
