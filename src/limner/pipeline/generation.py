"""How a picture comes about, as plain sequential code: coroutines that yield calls and are sent answers.

    generation = picture_of(request, model)
    image = run(generation, model)

Nothing here touches a network. A generation can therefore run alone (`run`), be watched (`watch`: the
answer to a `Denoise` holds a preview), run in company of many (`Engine`), and be stopped by closing it.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.guidance import ClassifierFreeGuidance, EditGuidance, Guidance
from limner.diffusion.noise import cpu_noise, gpu_noise, varied
from limner.diffusion.plan import Plan, make_plan
from limner.diffusion.samplers import CFG_PP, SAMPLERS, AnySteps, Noise
from limner.errors import InvalidRequest
from limner.prompts.schedule import Part, compose, prompt_schedule
from limner.request import GenerationRequest, ImagePrompt
from limner.weights.checkpoint import Kind

from .adapting import UsedAdapter, with_loras
from .calls import (
    Answer,
    Call,
    Conditioning,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeImage,
    EncodeText,
    ReadControl,
    ReadImagePrompt,
    Role,
)
from .controlling import Steering, UsedControl
from .enlarging import enlarged, works_on
from .image_prompts import SeenPictures, UsedImagePrompt
from .images import Canvas, canvas_of, control_picture, read_gray
from .speed import SPEEDS, Speed

Generation = Generator[Call, Any, Tensor]
Sights = Sequence[tuple[ImagePrompt, SeenPictures]]


class AnswersCalls(Protocol):
    """What `run` needs of a model."""

    def answer(self, calls: Sequence[Call]) -> list[Answer]: ...


@dataclass(frozen=True)
class Traits:
    """What sets a model apart from plain text-to-image.

    Attributes:
        kind: what its U-Net is given beside the noisy latents.
        sizes: how many sizes it is told: 6 (XL), 5 (its refiner) or 0.
        zero_negative: no negative prompt means an embedding of zeros.
        guides_itself: the guidance scale is an input of the network.
        scaling_factor: of the latents as the U-Net knows them.
    """

    kind: Kind = "text"
    sizes: int = 0
    zero_negative: bool = False
    guides_itself: bool = False
    scaling_factor: float = 1.0


class Facts(Protocol):
    """What a generation needs to know of a model, without touching a network."""

    @property
    def scheduler(self) -> SchedulerConfig: ...

    @property
    def traits(self) -> Traits: ...

    def adapters_of(self, request: GenerationRequest) -> tuple[UsedAdapter, ...]: ...

    def controls_of(self, request: GenerationRequest) -> tuple[UsedControl, ...]: ...
    def image_prompts_of(self, request: GenerationRequest) -> tuple[UsedImagePrompt, ...]: ...

    def latent_shape(self, request: GenerationRequest) -> tuple[int, ...]: ...


def noise_of(request: GenerationRequest, shape: tuple[int, ...]) -> Noise:
    """The noise of a resolved request."""
    assert request.seed is not None
    source = {"cpu": cpu_noise, "gpu": gpu_noise}[request.noise]
    noise = source(request.seed, shape)
    if not request.variation_strength:
        return noise
    assert request.variation_seed is not None
    return varied(noise, source(request.variation_seed, shape), request.variation_strength)


def picture_of(
    request: GenerationRequest,
    model: Facts,
    refiner: Facts | None = None,
) -> Generation:
    """Draw one picture.

    Args:
        request: resolved, its seed that of this picture.
        model: facts about the model whose calls these will be.
        refiner: facts about the model that the request names to finish the picture.

    Returns:
        [1, 3, H, W], about [-1, 1].
    """
    first, *later = passes_of(request, model.scheduler)
    plan, shape = first.plan, model.latent_shape(request)
    noise = noise_of(request, shape)
    canvas, kind = canvas_of(request), model.traits.kind
    masked = None if canvas is None else canvas.masked
    kept: Kept | None = None
    if canvas is None or kind == "edit" or (kind == "inpainting" and plan.begun == 0):
        x = noise() * plan.start_scale
    else:
        picture = yield from _drawn_from(canvas.pixels, request, noise)
        added = noise()
        begins_anew = masked is not None and plan.begun == 0
        x = added * plan.start_scale if begins_anew else picture + added * plan.sigmas[0]
        if masked is not None and kind == "text":
            kept = Kept(picture, added, _small(masked, shape[2:]))

    refining = None if refiner is None else (refiner, passes_of(request, refiner.scheduler)[-1].plan)
    latents = yield from _walked(first, model, x, noise, canvas, kept, None if later else refining)
    for second in later:
        shape = model.latent_shape(second.request)
        noise, canvas = noise_of(second.request, shape), canvas_of(second.request)
        start = yield from _enlarged(latents, shape, request, noise)
        x = start + noise() * second.plan.sigmas[0]
        latents = yield from _walked(second, model, x, noise, canvas, None, refining)
    image = yield from _decoded(latents if kept is None else kept.within(latents), request)
    return image if canvas is None else canvas.finished(image)


def _walked(
    one: "Pass",
    model: Facts,
    x: Tensor,
    noise: Noise,
    canvas: Canvas | None,
    kept: "Kept | None",
    refining: tuple[Facts, Plan] | None,
) -> Generator[Call, Any, Tensor]:
    """Make one pass, from noisy latents to clean ones.

    Args:
        refining: who takes over on the way, and its plan for the whole of it.
    """
    request, plan = one.request, one.plan
    beside: Mapping[str, Tensor] = {}
    if canvas is not None and model.traits.kind != "text":
        beside = yield from _channels(request, model.traits, canvas, x.shape[2:], noise)
    steering = yield from _steering(request, model, canvas)
    if refining is None or request.refiner_start is None:
        x = yield from _denoised(one, plan, model, x, noise, beside, kept, steering)
    else:
        handover = plan.step_at(request.refiner_start)
        x = yield from _denoised(one, plan.part(0, handover), model, x, noise, beside, kept, steering)
        refiner, plan = refining[0], refining[1].part(handover)
        x = yield from _denoised(one, plan, refiner, x, noise, {}, kept, Steering(), role="refiner")
    return x / plan.end_scale


def _decoded(latents: Tensor, request: GenerationRequest) -> Generator[Call, Any, Tensor]:
    picture: Tensor = yield DecodeLatents(latents, request.vae_tiling, request.tiling)
    return picture


def _encoded(picture: Tensor, request: GenerationRequest) -> Generator[Call, Any, tuple[Tensor, Tensor]]:
    mean, spread = yield EncodeImage(picture, request.vae_tiling, request.tiling)
    return mean, spread


def _drawn_from(picture: Tensor, request: GenerationRequest, noise: Noise) -> Generator[Call, Any, Tensor]:
    """Latents of a picture [1, 3, H, W], drawn from what the autoencoder says of it."""
    mean, spread = yield from _encoded(picture, request)
    return mean + spread * noise()


def _enlarged(
    latents: Tensor, shape: Sequence[int], request: GenerationRequest, noise: Noise
) -> Generator[Call, Any, Tensor]:
    """What a second pass begins with: the latents of the first one, or of its picture, larger."""
    size, upscaler = request.hires_size, request.hires_upscaler
    assert size is not None
    assert upscaler is not None
    if works_on(upscaler) == "latents":
        return enlarged(latents, (shape[2], shape[3]), upscaler, request.tiling)
    picture = yield from _decoded(latents, request)
    picture = enlarged(picture, size[::-1], upscaler, request.tiling)
    return (yield from _drawn_from(picture, request, noise))


@dataclass(frozen=True, eq=False)
class Kept:
    """Latents that are to stay as they are where a mask [1, 1, h, w] is 0, and the noise that is on them."""

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def noisy(self, x: Tensor, sigma: float) -> Tensor:
        """Latents with noise of sigma, drawn where the mask is 1."""
        return self.latents + sigma * self.noise + self.mask * (x - self.latents - sigma * self.noise)

    def within(self, drawn: Tensor) -> Tensor:
        """Latents without noise, drawn where the mask is 1."""
        return self.latents + self.mask * (drawn - self.latents)


def _small(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [1, 1, H, W] for latents; edges that are soft stay so."""
    hard = bool(((mask == 0.0) | (mask == 1.0)).all())
    return F.interpolate(mask, tuple(size), mode="nearest" if hard else "area")


def _steering(
    request: GenerationRequest, model: Facts, canvas: Canvas | None
) -> Generator[Call, Any, Steering]:
    """Have the control networks read their pictures."""
    used, read = model.controls_of(request), []
    for control, one in zip(request.controls, used, strict=True):
        picture = control_picture(control, request, one.channels, canvas)
        read.append((yield ReadControl(one, picture, request.tiling)))
    return Steering(request.controls, used, tuple(read))


def _denoised(
    one: "Pass",
    plan: Plan,
    model: Facts,
    x: Tensor,
    noise: Noise,
    beside: Mapping[str, Tensor],
    kept: Kept | None,
    steering: Steering,
    role: Role = "model",
) -> Generator[Call, Any, Tensor]:
    """Have one model read the prompts and walk its part of a pass."""
    request = one.request
    script = script_of(request, plan, model.traits, one.done)
    adapters = model.adapters_of(request) if role == "model" else ()
    told = yield from _read(request, model.traits, script, beside, role, adapters)
    done, steps = one.done or 0, one.steps
    ask = Denoise(x, plan.sigmas[0], 0.0, {}, script[0].guidance, done, steps, role=role, adapters=adapters)
    ask = replace(ask, exact=request.exact, tiling=request.tiling, paired=plan.sampler in CFG_PP)
    sights = (yield from _sights(request, model)) if role == "model" else ()
    sampler = SAMPLERS[plan.sampler](x, plan.sigmas, noise, **plan.options)
    speed = SPEEDS[request.speed]
    return (yield from denoised(sampler, plan, script, told, speed, ask, kept, steering, sights))


def _sights(request: GenerationRequest, model: Facts) -> Generator[Call, Any, Sights]:
    """Have the pictures that stand beside the prompt looked at."""
    sights = []
    for prompt, used in zip(request.image_prompts, model.image_prompts_of(request), strict=True):
        sights.append((prompt, (yield ReadImagePrompt(used))))
    return sights


@dataclass(frozen=True)
class Scene:
    """What holds for some of the steps.

    Attributes:
        last: step, of the whole run, from 1.
        texts: to be evaluated, by name: "positive", "positive 2" …, "negative", "empty".
        guidance: how they combine.
    """

    last: int
    texts: Mapping[str, str]
    guidance: Guidance


Script = Sequence[Scene]


def script_of(request: GenerationRequest, plan: Plan, traits: Traits, done: int | None = None) -> Script:
    """The prompts of a resolved request from step to step.

    Args:
        done: steps of the pass before, as `prompt_schedule` takes them.
    """
    steps = plan.begun + len(plan.timesteps) + plan.left
    schedules = [[(steps, text)] for text in (request.prompt, request.negative_prompt or "")]
    if request.prompt_syntax == "a1111":
        schedules = [prompt_schedule(text, steps, done) for [(_, text)] in schedules]
    positive, negative = schedules
    scenes = []
    for last in sorted({end for end, _ in (*positive, *negative)}):
        wanted, unwanted = (next(text for end, text in s if last <= end) for s in (positive, negative))
        parts = compose(wanted) if request.prompt_syntax == "a1111" else [Part(wanted)]
        names = ["positive", *(f"positive {n}" for n in range(2, len(parts) + 1))]
        texts = {name: part.text for name, part in zip(names, parts, strict=True)}
        weights = tuple(part.weight for part in parts)
        if traits.kind == "edit" and weights != (1.0,):
            raise InvalidRequest("AND and its weights are not for models that edit", hint="leave them out")
        guidance = guidance_of(request, plan, traits, weights)
        scenes.append(Scene(last, {**texts, "negative": unwanted, "image": unwanted, "empty": ""}, guidance))
    return scenes


def _read(
    request: GenerationRequest,
    traits: Traits,
    script: Script,
    beside: Mapping[str, Tensor],
    role: Role,
    adapters: tuple[UsedAdapter, ...],
) -> Generator[Call, Any, list[dict[str, Conditioning]]]:
    """What the U-Net is told in each branch of the guidance, for each scene; texts are read once."""
    branches = [scene.guidance.names for scene in script]
    silent: set[str] = set()  # branches that are told of no text at all
    if traits.zero_negative:
        silent = {"empty"} if request.negative_prompt is not None else {"empty", "negative", "image"}
    texts = dict.fromkeys(
        scene.texts[name]
        for scene, names in zip(script, branches, strict=True)
        for name in names
        if name not in silent
    )
    encoded = yield EncodeText(
        tuple(texts),
        request.prompt_syntax,
        request.clip_skip,
        request.exact,
        role,
        adapters,
        request.emphasis,
    )
    read: dict[str, Conditioning] = dict(zip(texts, encoded, strict=True))
    told = []
    for scene, names in zip(script, branches, strict=True):
        found = {}
        for name in names:
            like = "positive" if name.startswith("positive") else "negative" if name == "empty" else name
            known = None if name in silent else read.get(scene.texts[name])
            found[name] = replace(
                known or _silence(read[scene.texts["positive"]]),
                sizes=_sizes(request, traits, negative=like != "positive"),
                channels=beside.get(like),
                guidance=request.guidance_scale if traits.guides_itself else None,
            )
        told.append(found)
    return told


def _silence(told: Conditioning) -> Conditioning:
    """An embedding of zeros, as long as a text's of one chunk is at least."""
    assert told.pooled is not None
    return replace(told, context=torch.zeros_like(told.context), pooled=torch.zeros_like(told.pooled))


def _sizes(request: GenerationRequest, traits: Traits, *, negative: bool) -> tuple[float, ...]:
    """What XL is told about the size of the picture (Podell et al. 2023, section 2.2)."""
    if not traits.sizes:
        return ()
    assert request.height is not None
    assert request.width is not None
    whole = request.height, request.width
    first = (*(request.original_size or whole), *request.crop)
    if traits.sizes == 6:
        return (*first, *(request.target_size or whole))
    return (*first, request.negative_aesthetic_score if negative else request.aesthetic_score)


def _channels(
    request: GenerationRequest, traits: Traits, canvas: Canvas, size: Sequence[int], noise: Noise
) -> Generator[Call, Any, dict[str, Tensor]]:
    """What stands behind the latents' own channels, in each branch, for models that have more of them.

    Args:
        size: height and width of the latents.
    """
    if traits.kind == "depth":
        assert request.depth is not None
        depth = read_gray(request.depth, request)  # [1, 1, H, W]
        depth = F.interpolate(depth, tuple(size), mode="bicubic", align_corners=False)
        low, high = depth.amin(), depth.amax()
        channels = 2.0 * (depth - low) / (high - low).clamp(min=1e-6) - 1.0
        return {"positive": channels, "negative": channels}
    if traits.kind == "edit":
        mean, _ = yield from _encoded(canvas.pixels, request)
        picture = mean / traits.scaling_factor  # these models were trained on the autoencoder's own scale
        return {"positive": picture, "image": picture, "negative": torch.zeros_like(picture)}
    assert canvas.masked is not None
    mask = (canvas.masked >= 0.5).float()
    mean, spread = yield from _encoded(canvas.pixels * (1.0 - mask), request)
    small = F.interpolate(mask, tuple(size))
    channels = torch.cat([small, mean + spread * noise()], dim=1)
    return {"positive": channels, "negative": channels}


@dataclass(frozen=True)
class Pass:
    """One way from noise to clean latents. A drawing has a second one if a larger picture is asked for.

    Attributes:
        request: resolved, one for a picture like this pass alone.
        plan: its steps.
        done: steps of the pass before it; None for the first.
        steps: of all passes.
    """

    request: GenerationRequest
    plan: Plan
    done: int | None
    steps: int


def passes_of(request: GenerationRequest, scheduler: SchedulerConfig) -> tuple[Pass, ...]:
    """The passes of a resolved request. Raises ValueError where one cannot be made."""
    plan, larger = plan_of(request, scheduler), request.of_second_pass()
    done = plan.begun + len(plan.timesteps) + plan.left
    if larger is None:
        return (Pass(request, plan, None, done),)
    assert larger.steps is not None
    assert request.hires_strength is not None
    # As AUTOMATIC1111 has it: all steps asked for are made within the share of the noise.
    taken, whole = larger.steps, int(larger.steps / min(request.hires_strength, 0.999))
    if whole > scheduler.num_train_timesteps:
        raise ValueError(
            f"{taken} steps within a hires_strength of {request.hires_strength} are {whole} in all, more "
            f"than the {scheduler.num_train_timesteps} that there are"
        )
    try:
        second = plan_of(larger.model_copy(update={"steps": whole}), scheduler).part(whole - taken)
    except ValueError as error:
        raise ValueError(f"in the second pass, {error}") from None
    own = with_loras(larger.model_copy(update={"loras": ()}))
    larger = own if own.loras else larger
    steps = done + taken
    return Pass(request, plan, None, steps), Pass(larger, replace(second, begun=0), done, steps)


def plan_of(request: GenerationRequest, scheduler: SchedulerConfig) -> Plan:
    """The sigmas and timesteps of a resolved request. Raises ValueError where they cannot be had."""
    assert request.steps is not None
    names = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")
    given = {name: value for name in names if (value := getattr(request, name)) is not None}
    plan = make_plan(
        scheduler,
        request.steps,
        sampler=request.sampler,
        spacing=request.timestep_spacing,
        sigma_schedule=request.sigma_schedule,
        options=given,
    )
    if request.image is None or request.strength is None:
        return plan
    taken = min(int(request.steps * request.strength), request.steps)
    if taken == 0:
        raise ValueError(
            f"a strength of {request.strength} leaves none of {request.steps} steps; raise one of them"
        )
    return plan.part(request.steps - taken)


def guidance_of(
    request: GenerationRequest, plan: Plan, traits: Traits, weights: tuple[float, ...] = (1.0,)
) -> Guidance:
    """The guidance of a resolved request.

    Args:
        weights: of its prompts.
    """
    assert request.guidance_scale is not None
    if traits.guides_itself or traits.kind == "edit":
        _check_plain_guidance(request, plan)
    if traits.guides_itself:
        return ClassifierFreeGuidance(1.0, weights=weights)
    if traits.kind == "edit":
        return EditGuidance(request.guidance_scale, request.image_guidance_scale)
    lowest = SPEEDS[request.speed].lowest_guided(plan.sigmas)
    interval = request.guidance_interval or (lowest, math.inf)
    steps = enumerate(pairwise(plan.sigmas))
    return ClassifierFreeGuidance(
        request.guidance_scale,
        request.guidance_rescale,
        interval,
        weights,
        skipped=tuple((low, high) for i, (high, low) in steps if i % 2 and high < request.guidance_skip),
        perpendicular=request.perp_neg,
        paired=plan.sampler in CFG_PP,
    )


def _check_plain_guidance(request: GenerationRequest, plan: Plan) -> None:
    """Raise InvalidRequest for what a model that has a way of its own to guide cannot do."""
    asked = {
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": request.guidance_interval,
        "guidance_skip": request.guidance_skip,
        "perp_neg": request.perp_neg is not None,
        f"sampler {plan.sampler}": plan.sampler in CFG_PP,
    }
    idle = [name for name, given in asked.items() if given]
    if idle:
        raise InvalidRequest(
            f"{request.model} guides in a way of its own and has no use for {' and '.join(idle)}",
            hint="leave it out",
        )


def rows_of(script: Script) -> int:
    """How many rows of the U-Net a picture takes at once, at most."""
    return max(len(scene.guidance.names) for scene in script)


def denoised(
    sampler: AnySteps,
    plan: Plan,
    script: Script,
    told: Sequence[Mapping[str, Conditioning]],
    speed: Speed,
    ask: Denoise,
    kept: Kept | None = None,
    steering: Steering | None = None,
    sights: Sights = (),
) -> Generator[Call, Denoised, Tensor]:
    """Walk a sampler to its end, asking the model at every sigma that it visits.

    Args:
        told: for each scene of the script, what the U-Net is told in each branch.
        ask: a call that says whatever is the same in all; its `step` is what all steps are counted from.
        kept: what stays as it is of the picture.
        steering: by which the layers run anew at every step.
        sights: what stands beside the texts.
    """
    steering = steering or Steering()
    steps = plan.begun + len(plan.begins) + plan.left
    deep: Mapping[str, Tensor] = {}  # features kept, and how many calls ago they were made
    age = 0
    x, sigma = next(sampler)
    while True:
        step = plan.begun + max(1, sum(sigma <= s for s in plan.begins))
        scene = next(index for index, scene in enumerate(script) if step <= scene.last)
        branches = set(script[scene].guidance.branches(sigma))
        anew = speed.runs_deep_layers(age, step, steps) or not deep.keys() >= branches
        now = step - plan.begun, len(plan.begins) + plan.left
        controls, features = steering.at(*now)
        anew = anew or bool(controls or features)
        if kept is not None and sigma < plan.begins[0]:
            x = kept.noisy(x, sigma)
        answer = yield replace(
            ask,
            x=x,
            sigma=sigma,
            timestep=plan.timestep(sigma),
            conditionings=told[scene],
            guidance=script[scene].guidance,
            step=ask.step + step,
            keep=anew and speed.reuse > 1,
            deep=None if anew else deep,
            controls=controls,
            features=features,
            pictures=tuple(seen for prompt, seen in sights if prompt.holds_at(*now)),
        )
        deep, age = (answer.deep, 1) if anew else (deep, age + 1)
        estimates = [answer.latents] if answer.unguided is None else [answer.latents, answer.unguided]
        if kept is not None:
            estimates = [kept.within(estimate) for estimate in estimates]
        try:
            x, sigma = sampler.send(tuple(estimates) if ask.paired else estimates[0])
        except StopIteration as done:
            latents: Tensor = done.value
            return latents


def watch(generation: Generation, model: AnswersCalls) -> Generator[tuple[Call, Answer], None, Tensor]:
    """Run a generation, yielding each call with its answer; closing this closes the generation."""
    try:
        call = next(generation)
        while True:
            [answer] = model.answer([call])
            if answer.error is not None:
                raise answer.error
            yield call, answer
            call = generation.send(answer.value)
    except StopIteration as done:
        image: Tensor = done.value
        return image
    finally:
        generation.close()


def run(generation: Generation, model: AnswersCalls) -> Tensor:
    """Run a generation to its end. Raises what an answer has for an error."""
    watched = watch(generation, model)
    while True:
        try:
            next(watched)
        except StopIteration as done:
            image: Tensor = done.value
            return image
