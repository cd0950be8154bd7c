"""Checks of a request against the facts of its model."""

from collections.abc import Iterable

from limner.errors import InvalidRequest

from .facts import Kind, ModelFacts
from .fields import MAX_SIDE, MIN_SIDE
from .request import GenerationRequest

_IMAGES = ("image", "mask", "depth")
_NEEDED: dict[Kind, set[str]] = {
    "text": set(),
    "edit": {"image"},
    "inpainting": {"image", "mask"},
    "depth": {"image", "depth"},
}


def check_fields(request: GenerationRequest, facts: ModelFacts) -> None:
    """Raise InvalidRequest where images are missing, or fields have no use with this model."""
    _check_mask(request)
    _check_images(request, facts)
    _check_conditioning(request, facts)
    if request.clip_skip > facts.text_layers:
        raise InvalidRequest(
            f"clip_skip is {request.clip_skip}; the text encoder has {facts.text_layers} layers",
            fields=("clip_skip",),
        )


def has_mask(request: GenerationRequest) -> bool:
    """Whether a part of the image is generated and the rest kept: by a mask, or by extending the image."""
    return request.mask is not None or any(request.extend)


def _check_mask(request: GenerationRequest) -> None:
    if any(request.extend):
        if request.image is None:
            raise InvalidRequest("there is no image to extend", hint="give `image`", fields=("extend",))
        if request.mask is not None or request.inpaint_area != "whole":
            raise InvalidRequest(
                "an image is either extended or inpainted where a mask says, not both",
                hint="leave `extend` out, or `mask` and `inpaint_area`",
                fields=("extend", "mask"),
            )
    elif request.inpaint_area != "whole" and request.mask is None:
        raise InvalidRequest(
            f"inpaint_area is {request.inpaint_area}, but there is no mask",
            hint="give `mask`",
            fields=("inpaint_area",),
        )
    needs = {
        "mask_blur": ("mask", has_mask(request)),
        "mask_padding": ("inpaint_area of masked", request.inpaint_area == "masked"),
    }
    for name, (what, given) in needs.items():
        if not given and getattr(request, name) != GenerationRequest.model_fields[name].default:
            raise InvalidRequest(
                f"{name} is {getattr(request, name)}, but there is no {what}",
                hint="leave it out",
                fields=(name,),
            )
    if request.mask is not None and request.image is None:
        raise InvalidRequest("there is a mask, but no image", hint="give `image`", fields=("mask",))
    if has_mask(request) and request.has_second_pass:
        raise InvalidRequest(
            "a mask keeps the pixels of its image, which a hires pass generates at another size",
            hint="leave the hires fields out, or enlarge the image first",
            fields=("mask",),
        )
    if request.inpaint_area == "masked" and request.tiling:
        raise InvalidRequest(
            "the ends of a part of an image do not meet: tiling needs the whole",
            hint="leave `tiling` out, or `inpaint_area`",
            fields=("tiling", "inpaint_area"),
        )


def _check_images(request: GenerationRequest, facts: ModelFacts) -> None:
    given = {name for name in _IMAGES if getattr(request, name) is not None}
    given |= {"mask"} if has_mask(request) else set()
    needed = _NEEDED[facts.kind]
    idle = given - needed - {"image"}
    if "image" in given and facts.kind == "text":
        idle -= {"mask"}
    if missing := needed - given:
        raise InvalidRequest(
            f"{facts.name}, a model for {facts.kind}, needs {_list(needed)}", fields=tuple(sorted(missing))
        )
    if idle:
        raise InvalidRequest(
            f"{facts.name} has no use for {_list(idle)}",
            hint="leave it out, or name a model that is made for it",
            fields=tuple(sorted(idle)),
        )
    if request.strength is not None and "image" not in given:
        raise InvalidRequest(
            f"strength is {request.strength}, but there is no image to begin with",
            hint="give `image`, or leave `strength` out",
            fields=("strength",),
        )
    if request.strength is not None and facts.kind == "edit":
        raise InvalidRequest(
            f"strength is {request.strength}, which {facts.name} has no use for: it starts from noise",
            hint="leave it out; `image_guidance_scale` says how closely it keeps to the image",
            fields=("strength",),
        )


def _check_conditioning(request: GenerationRequest, facts: ModelFacts) -> None:
    """Reject conditioning fields that this model does not use."""
    idle = set()
    if facts.kind != "edit":
        idle |= {"image_guidance_scale"}
    if request.refiner is None and facts.sizes != 5:
        idle |= {"aesthetic_score", "negative_aesthetic_score"}
        if not facts.sizes:
            idle |= {"original_size", "target_size", "crop"}
    fields = GenerationRequest.model_fields
    given = {name for name in idle if getattr(request, name) != fields[name].default}
    if given:
        raise InvalidRequest(
            f"{facts.name} is not conditioned on {_list(given)}",
            hint="leave it out, or name a model that is",
            fields=tuple(sorted(given)),
        )


def check_size(
    request: GenerationRequest, facts: ModelFacts, width: int, height: int, where: str = ""
) -> None:
    """Raise InvalidRequest for a size that the networks cannot run at, or not so that the ends meet.

    Args:
        where: What has this size, for the message: "the hires pass's ".
    """
    for axis, name, side in (("x", "width", width), ("y", "height", height)):
        problem = None
        if not MIN_SIDE <= side <= MAX_SIDE:
            problem = f"expected {MIN_SIDE} to {MAX_SIDE}"
        elif side % facts.downscale:
            problem = f"this model's images are multiples of {facts.downscale}"
        elif axis in (request.tiling or "") and side % facts.seamless_unit:  # halving would round at the seam
            problem = f"to tile it must be a multiple of {facts.seamless_unit}"
        if problem:
            raise InvalidRequest(f"{where}{name} is {side}; {problem}", fields=(name,))


def _list(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
