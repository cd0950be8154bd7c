"""The input images of a request: which there are, other references to them, and decoding each once."""

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from PIL import Image

from limner.request import Control, GenerationRequest, ImagePrompt

from .opening import ImageInfo, image_info, open_image

IMAGE_FIELDS = ("image", "mask", "depth")


def inputs_of(request: GenerationRequest) -> Iterator[tuple[str, str]]:
    """The name of the field and the reference of each input image."""
    for name in IMAGE_FIELDS:
        if (source := getattr(request, name)) is not None:
            yield name, source
    yield from (("controls", control.image) for control in request.controls)
    yield from (("image_prompts", image) for prompt in request.image_prompts for image in prompt.images)


def map_inputs(request: GenerationRequest, change: Callable[[str, str], str]) -> GenerationRequest:
    """A request with other references to its input images.

    Args:
        change: Given the name of a field and a reference, returns the new reference.
    """
    update: dict[str, Any] = {
        name: change(name, source) for name in IMAGE_FIELDS if (source := getattr(request, name)) is not None
    }
    update["controls"] = tuple(_control(control, change) for control in request.controls)
    update["image_prompts"] = tuple(_prompt(prompt, change) for prompt in request.image_prompts)
    changed = {name: value for name, value in update.items() if value != getattr(request, name)}
    return request.model_copy(update=changed) if changed else request


def _control(control: Control, change: Callable[[str, str], str]) -> Control:
    return control.model_copy(update={"image": change("controls", control.image)})


def _prompt(prompt: ImagePrompt, change: Callable[[str, str], str]) -> ImagePrompt:
    images = tuple(change("image_prompts", image) for image in prompt.images)
    return prompt.model_copy(update={"images": images})


Open = Callable[..., Image.Image]


class InputImages:
    """Decodes the input images of a request, each once. Safe to use from any thread.

    Sizes and warnings are known without decoding, so that requests that wait hold no pixels.

    Args:
        open: Decodes an image, with the arguments of `open_image`.
        info: Reads what is known without decoding.
    """

    def __init__(self, open: Open = open_image, info: Callable[[str], ImageInfo] = image_info) -> None:
        self._open, self._info, self._lock = open, info, Lock()
        self._opened: dict[tuple[str, bool], Image.Image] = {}
        self._infos: dict[str, ImageInfo] = {}

    def __call__(self, source: str, *, values: bool = False) -> Image.Image:
        """An image, as `open_image` returns it. Raises InvalidRequest where it cannot be read."""
        with self._lock:
            if (source, values) not in self._opened:
                self._opened[source, values] = self._open(source, values=values)
            return self._opened[source, values]

    def size(self, source: str) -> tuple[int, int]:
        """Width and height of an image, turned as its EXIF says. Raises as `__call__`."""
        return self._info_of(source).size

    def warnings(self, source: str, *, values: bool = False) -> tuple[str, ...]:
        """Warnings about an image whose meaning its file leaves open, or that is not taken over as it is.

        Args:
            values: As in `open_image`.
        """
        info = self._info_of(source)
        return info.warnings if values else (*info.warnings, *info.colour_warnings)

    def _info_of(self, source: str) -> ImageInfo:
        with self._lock:
            if source not in self._infos:
                self._infos[source] = self._info(source)
            return self._infos[source]
