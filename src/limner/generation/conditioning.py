"""Inputs of the U-Net besides the noisy latents, computed once per pass: prompts, sizes, channels, images."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.diffusion.samplers import Noise
from limner.images.inputs import InputImages
from limner.images.pixels import clip_pixels, depth_map
from limner.request import GenerationRequest, ImagePrompt
from limner.request.facts import ModelFacts
from limner.request.networks import UsedAdapter, UsedImagePrompt
from limner.request.resolve import PassSpec, PictureSpec

from .calls import Call, Conditioning, EncodeText, ReadControl, ReadImagePrompt, Role
from .canvas import Canvas, control_image, encoded
from .controls import Steering
from .networks import EncodedImagePrompt
from .passes import StepRange

ImagePrompts = Sequence[tuple[ImagePrompt, EncodedImagePrompt]]


def encode_prompts(
    spec: PassSpec,
    request: GenerationRequest,
    facts: ModelFacts,
    ranges: Sequence[StepRange],
    channels: Mapping[str, Tensor],
    role: Role,
    adapters: tuple[UsedAdapter, ...],
) -> Generator[Call, Any, list[dict[str, Conditioning]]]:
    """The conditionings of each range of steps, by name. Each text is encoded once.

    Args:
        channels: Extra channels by name of the conditioning, as `extra_channels` returns them.
        role: Which model encodes the texts.
        adapters: Adapters that change its text encoders.
    """
    zero: set[str] = set()  # conditionings that are zeros rather than an encoded text
    if facts.zero_negative:
        zero = {"empty"} if spec.negative_given else {"empty", "negative", "image"}
    texts = dict.fromkeys(
        steps.texts[name] for steps in ranges for name in steps.guidance.names if name not in zero
    )
    encoded_texts = yield EncodeText(
        tuple(texts),
        request.prompt_syntax,
        request.clip_skip,
        request.exact,
        role,
        adapters,
        request.emphasis,
    )
    known: dict[str, Conditioning] = dict(zip(texts, encoded_texts, strict=True))
    conditionings = []
    for steps in ranges:
        found = {}
        for name in steps.guidance.names:
            channels_name = name
            if name.startswith("positive"):  # "positive 2" …: prompts joined by AND
                channels_name = "positive"
            elif name == "empty":
                channels_name = "negative"
            encoded_text = None if name in zero else known.get(steps.texts[name])
            found[name] = replace(
                encoded_text or zero_conditioning(known[steps.texts["positive"]]),
                sizes=_micro_conditioning(spec, request, facts, negative=channels_name != "positive"),
                channels=channels.get(channels_name),
                guidance=spec.guidance_scale if facts.guides_itself else None,
            )
        conditionings.append(found)
    return conditionings


def zero_conditioning(like: Conditioning) -> Conditioning:
    """All-zero embedding of the same shape."""
    pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
    return replace(like, context=torch.zeros_like(like.context), pooled=pooled)


def _micro_conditioning(
    spec: PassSpec, request: GenerationRequest, facts: ModelFacts, *, negative: bool
) -> tuple[float, ...]:
    """The micro-conditioning of XL: size and crop (Podell et al. 2023, section 2.2) or aesthetic score."""
    if not facts.sizes:
        return ()
    whole = spec.height, spec.width
    first = (*(request.original_size or whole), *request.crop)
    if facts.sizes == 6:
        return (*first, *(request.target_size or whole))
    return (*first, request.negative_aesthetic_score if negative else request.aesthetic_score)


def extra_channels(
    spec: PassSpec,
    request: GenerationRequest,
    facts: ModelFacts,
    canvas: Canvas | None,
    noise: Noise,
    images: InputImages,
) -> Generator[Call, Any, dict[str, Tensor]]:
    """Extra input channels [1, K, h, w] by name of the conditioning, for models that have them."""
    if canvas is None or facts.kind == "text":
        return {}
    size = facts.latent_shape(spec.width, spec.height)[2:]
    if facts.kind == "depth":
        depth = depth_map(images(str(request.depth), values=True), (spec.width, spec.height))  # [1, 1, H, W]
        depth = F.interpolate(depth, size, mode="bicubic", align_corners=False)
        low, high = depth.amin(), depth.amax()
        channels = 2.0 * (depth - low) / (high - low).clamp(min=1e-6) - 1.0
        return {"positive": channels, "negative": channels}
    if facts.kind == "edit":
        mean, _ = yield from encoded(canvas.pixels, request)
        picture = mean / facts.scaling_factor  # these models were trained on the autoencoder's own scale
        return {"positive": picture, "image": picture, "negative": torch.zeros_like(picture)}
    assert canvas.masked is not None  # as `check_fields` requires
    mask = (canvas.masked >= 0.5).float()
    mean, spread = yield from encoded(canvas.pixels * (1.0 - mask), request)
    channels = torch.cat([F.interpolate(mask, size), mean + spread * noise()], dim=1)
    return {"positive": channels, "negative": channels}


def encode_image_prompts(picture: PictureSpec, images: InputImages) -> Generator[Call, Any, ImagePrompts]:
    """Encode the image prompts."""
    encoded_prompts = []
    for prompt, used in zip(picture.request.image_prompts, picture.image_prompts, strict=True):
        encoded_prompts.append((prompt, (yield read_image_prompt(used, images))))
    return encoded_prompts


def read_image_prompt(prompt: UsedImagePrompt, images: InputImages) -> ReadImagePrompt:
    """The call that encodes an image prompt, its images decoded and cropped."""
    return ReadImagePrompt(prompt, tuple(clip_pixels(images(one), prompt.side) for one in prompt.images))


def read_controls(
    spec: PassSpec, picture: PictureSpec, canvas: Canvas | None, images: InputImages
) -> Generator[Call, Any, Steering]:
    """Encode each control image once."""
    request, read = picture.request, []
    for control, used in zip(request.controls, picture.controls, strict=True):
        image = control_image(control, request, (spec.width, spec.height), used.channels, images, canvas)
        read.append((yield ReadControl(used, image, request.tiling)))
    return Steering(request.controls, picture.controls, tuple(read))
