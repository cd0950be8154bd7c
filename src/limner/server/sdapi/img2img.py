"""The image that img2img begins with, and its mask, as fields of a `GenerationRequest`.

Filling and fitting are done on pixels before the request is made, so that everything behind it sees images.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from limner.images.opening import to_rgb
from limner.request.facts import ModelFacts

from . import pictures
from .bodies import Img2ImgBody
from .errors import Refusal

STRENGTH = 0.75
_IMAGE_CFG_SCALES = (None, 0.0, 1.5)  # that say nothing: the default of AUTOMATIC1111, and of its clients
_BLURS = {"mask_blur", "mask_blur_x", "mask_blur_y"}
_FILL, _ORIGINAL, _NOISE, _NOTHING = range(4)
_CONTENTS = {_NOISE: ("noise", pictures.noise), _NOTHING: ("gray", pictures.gray)}
_CROP, _EDGES, _LATENT = 1, 2, 3


@dataclass
class Start:
    """What img2img begins with.

    Attributes:
        fields: Fields of the request, those given included.
        without_effect: Names of fields that ask for something else than is done.
        notes: What else is not done as the body says.
    """

    fields: dict[str, Any]
    without_effect: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def init_image(body: Img2ImgBody, max_pixels: int) -> str:
    """The data URL of the image. Raises Refusal where it is missing, too large or broken."""
    images = body.init_images or []
    if not images:
        raise Refusal("Init image not found", status=404, fields=("init_images",))
    if len(images) > 1:
        raise Refusal(
            f"init_images has {len(images)} images; expected one",
            hint="send a request for each",
            fields=("init_images",),
        )
    url = pictures.source(pictures.decoded(images[0], "init_images", max_pixels=max_pixels))
    pictures.opened(url, "init_images")  # a cut-off file is refused now, and not by a worker
    return url


def start_of(
    body: Img2ImgBody,
    given: Collection[str],
    fields: Mapping[str, Any],
    image: str,
    facts: ModelFacts | None,
    max_pixels: int,
) -> Start:
    """What a body begins with.

    Args:
        given: Names of the body's fields that the client gave; an infotext's count where it did not.
        fields: Fields of the request so far: steps, width and height among them.
        image: What `init_image` returns.
        facts: Facts about the model.
        max_pixels: Largest number of pixels of the mask.

    Raises:
        Refusal: A value that cannot be used, or a broken image.
    """
    start = Start({**fields, "image": image})
    _strength(start, body, given)
    if facts is not None and facts.kind == "edit":  # which starts from noise
        del start.fields["strength"]
        if body.image_cfg_scale:
            start.fields["image_guidance_scale"] = body.image_cfg_scale
    elif body.image_cfg_scale not in _IMAGE_CFG_SCALES:
        start.without_effect.append("image_cfg_scale")
    if body.initial_noise_multiplier not in (None, 1.0):
        start.without_effect.append("initial_noise_multiplier")
    if body.resize_mode not in (0, _CROP, _EDGES, _LATENT):
        raise Refusal(f"resize_mode is {body.resize_mode}; expected 0 to 3", fields=("resize_mode",))
    if body.resize_mode == _LATENT:
        start.without_effect.append("resize_mode")
    _mask(start, body, given, max_pixels)
    if start.fields.get("inpaint_area") != "masked":  # a part is generated: the image keeps its size
        _fit(start.fields, body.resize_mode)
    return start


def _strength(start: Start, body: Img2ImgBody, given: Collection[str]) -> None:
    fields = start.fields
    strength = fields.get("strength")
    if "denoising_strength" in given or strength is None:
        strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    least = 1 / fields["steps"] if fields["steps"] > 0 else 1.0
    if 0 <= strength < least:
        start.notes.append(
            f"denoising_strength is {strength:g}, which is less than one step: one step is taken"
        )
        strength = least
    fields["strength"] = strength


def _mask(start: Start, body: Img2ImgBody, given: Collection[str], max_pixels: int) -> None:
    """Add the mask and its fields, and fill the masked part of the image."""
    fields = start.fields
    if not body.mask:
        _without_mask(fields)
        return
    encoded = pictures.decoded(body.mask, "mask", max_pixels=max_pixels)
    mask = pictures.mask_of(pictures.source(encoded))
    if body.inpainting_mask_invert:
        mask = mask.point(lambda value: 255 - value)
    if body.inpaint_full_res and mask.getbbox() is None:
        start.notes.append("the mask is black everywhere: all of the image is generated, as without a mask")
        _without_mask(fields)
        return
    content = body.inpainting_fill
    if content not in range(4):
        raise Refusal(f"inpainting_fill is {content}; expected 0 to 3", fields=("inpainting_fill",))
    if content == _FILL:
        filled = pictures.filled(pictures.opened(fields["image"], "init_images"), mask)
        fields["image"] = pictures.url_of(filled)
    elif content in _CONTENTS:
        name, made = _CONTENTS[content]
        opened = pictures.opened(fields["image"], "init_images")
        fields["image"] = pictures.url_of(pictures.replaced(opened, mask, made))
        start.notes.append(
            f"inpainting_fill is {content}: the masked part begins as {name} in pixels, not in latents"
        )
    x, y = body.mask_blur_x, body.mask_blur_y
    if body.mask_blur is not None:
        x = y = body.mask_blur
    if min(x, y) < 0:
        raise Refusal(f"mask_blur is {min(x, y)}; expected 0 or more", fields=("mask_blur",))
    if x != y:
        mask = pictures.blurred(mask, min(x, 256), min(y, 256))
        x = 0
    if _BLURS & set(given) or "mask_blur" not in fields:
        fields["mask_blur"] = float(x)
    fields["mask"] = pictures.url_of(mask)
    if "inpaint_full_res" in given or "inpaint_area" not in fields:
        fields["inpaint_area"] = "masked" if body.inpaint_full_res else "whole"
    if fields["inpaint_area"] != "masked":
        fields.pop("mask_padding", None)
    elif "inpaint_full_res_padding" in given or "mask_padding" not in fields:
        fields["mask_padding"] = body.inpaint_full_res_padding


def _without_mask(fields: dict[str, Any]) -> None:
    for name in ("mask", "mask_blur", "inpaint_area", "mask_padding"):
        fields.pop(name, None)


def _fit(fields: dict[str, Any], mode: int) -> None:
    """Crop or fill the image, and its mask, to the size of the request."""
    if mode not in (_CROP, _EDGES):
        return
    size = fields["width"], fields["height"]
    opened = pictures.opened(fields["image"], "init_images")
    if opened.size == size or not pictures.is_sensible(size):
        return
    fields["image"] = pictures.url_of(pictures.fitted(to_rgb(opened), size, mode))
    if "mask" in fields:
        mask = pictures.mask_of(fields["mask"])
        fields["mask"] = pictures.url_of(pictures.fitted(mask, size, mode))
