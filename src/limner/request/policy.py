"""Limits on requests as values, for whoever serves others.

The schema's own bounds are generous: they are what Limner can do at all. A policy is what one caller may ask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from limner.errors import InvalidRequest

from .request import GenerationRequest
from .resolve import PictureSpec, ResolvedRequest

_LISTS = ("loras", "controls", "image_prompts", "styles")


@dataclass(frozen=True)
class RequestPolicy:
    """What a request may ask for; None is no limit but the schema's.

    Attributes:
        max_side: Longest side of an image, hires pass included, in pixels.
        max_steps: Steps of one pass.
        max_images: Images of one request.
        max_work: Width x height x steps x images, over all passes.
        max_loras, max_controls, max_image_prompts, max_styles: Length of these lists.
        max_prompt_length: Characters of each prompt.
    """

    max_side: int | None = None
    max_steps: int | None = None
    max_images: int | None = None
    max_work: int | None = None
    max_loras: int | None = None
    max_controls: int | None = None
    max_image_prompts: int | None = None
    max_styles: int | None = None
    max_prompt_length: int | None = None

    def check(self, request: GenerationRequest) -> None:
        """Check what a request itself says, before it costs anything to resolve it.

        Raises:
            InvalidRequest: Naming each field, its value and the limit.
        """
        _raise(self._over(request))

    def check_resolved(self, resolved: ResolvedRequest) -> None:
        """Check a resolved request, whose sizes, steps and LoRAs of prompts are known. Raises as `check`."""
        passes = [one for picture in resolved.pictures for one in picture.passes]
        faults = list(self._over(resolved.request))
        faults += _over("width", max(one.width for one in passes), self.max_side)
        faults += _over("height", max(one.height for one in passes), self.max_side)
        faults += _over("steps", max(one.run_steps for one in passes), self.max_steps)
        faults += _over("loras", max(len(one.adapters) for one in passes), self.max_loras, "entries")
        _raise(faults)
        self.check_work(resolved.pictures)

    def check_work(self, pictures: Sequence[PictureSpec], *, many: str = "`num_images` of {}") -> None:
        """Check the work of all images that are asked for at once.

        Args:
            many: How their number is asked for, with a place for it.

        Raises:
            InvalidRequest: They exceed `max_work`. The hint says what would not.
        """
        each = [sum(one.width * one.height * one.run_steps for one in picture.passes) for picture in pictures]
        if self.max_work is None or (work := sum(each)) <= self.max_work:
            return
        largest = max(each)
        if images := self.max_work // largest:
            hint = f"ask for {many.format(images)} at most, or for smaller images or fewer `steps`"
        else:
            hint = f"ask for less than {self.max_work / largest:.0%} of the pixels, or of the `steps`"
        raise InvalidRequest(
            f"width x height x steps x images are {work:,} in all; the limit, max_work, is {self.max_work:,}",
            hint=hint,
            fields=("width", "height", "steps", "num_images"),
        )

    def _over(self, request: GenerationRequest) -> "Iterator[_Fault]":
        for name in ("width", "height", "hires_width", "hires_height"):
            yield from _over(name, getattr(request, name), self.max_side)
        for name in ("steps", "hires_steps"):
            yield from _over(name, getattr(request, name), self.max_steps)
        yield from _over("num_images", request.num_images, self.max_images)
        for name in _LISTS:
            yield from _over(name, len(getattr(request, name)), getattr(self, f"max_{name}"), "entries")
        for name in ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt"):
            yield from _over(name, len(getattr(request, name) or ""), self.max_prompt_length, "characters")


_Fault = tuple[tuple[str, ...], str]  # the fields, and what is wrong with them


def _over(name: str, value: int | None, limit: int | None, what: str = "") -> Iterator[_Fault]:
    if limit is not None and value is not None and value > limit:
        yield (name,), f"{name} {f'has {value} {what}' if what else f'is {value}'}; the limit is {limit}"


def _raise(faults: "Iterator[_Fault] | list[_Fault]") -> None:
    found = dict.fromkeys(faults)
    if found:
        fields = tuple(dict.fromkeys(name for names, _ in found for name in names))
        raise InvalidRequest("; ".join(message for _, message in found), hint="ask for less", fields=fields)
