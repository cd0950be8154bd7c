"""Checks of a request's input images, without their pixels and without torch."""

from collections.abc import Iterator

from PIL import Image

from limner.errors import InvalidRequest
from limner.request import Control, GenerationRequest

from .inputs import InputImages
from .preprocess import preprocessed

INPAINT = "inpaint"  # the preprocessor that needs a mask
_LIKE = 1.02  # proportions that differ by less are taken for the same


def check_images(request: GenerationRequest, images: InputImages) -> tuple[str, ...]:
    """Warnings about the images of a resolved request.

    Raises:
        InvalidRequest: An image cannot be read, or a control image could not be made of it.
    """
    for control in request.controls:
        try:
            _check_control(control, request, images)
        except InvalidRequest as error:
            error.fields = error.fields or ("controls",)
            raise
    return (*_stretched(request, images), *_of_images(request, images))


def lacks_margin(size: tuple[int, int], request: GenerationRequest, images: InputImages) -> bool:
    """Whether a control image has the size of the input image before that is extended."""
    return request.image is not None and any(request.extend) and size == images.size(request.image)


def _check_control(control: Control, request: GenerationRequest, images: InputImages) -> None:
    """Raise InvalidRequest if the control image cannot be made from the request."""
    if control.preprocessor == INPAINT:
        if request.mask is None and not any(request.extend):
            raise InvalidRequest(
                "the preprocessor inpaint needs a mask of what is regenerated",
                hint="give `mask`, or margins with `extend`",
                fields=("controls",),
            )
        return
    preprocessed(Image.new("RGB", (8, 8)), control.preprocessor)  # checks its options too
    if any(request.extend) and lacks_margin(size := images.size(control.image), request, images):
        left, top, right, bottom = request.extend
        whole = size[0] + left + right, size[1] + top + bottom
        raise InvalidRequest(
            f"a control image is {size[0]} x {size[1]}, as large as the image before it is extended, and "
            "does not cover the margins",
            hint=f"give one that covers them, {whole[0]} x {whole[1]}",
        )


def _of_images(request: GenerationRequest, images: InputImages) -> Iterator[str]:
    """Warnings about the input images themselves."""
    colours = [
        request.image,
        *(control.image for control in request.controls if control.preprocessor != "none"),
    ]
    colours += [image for prompt in request.image_prompts for image in prompt.images]
    values = [request.mask, request.depth, *(c.image for c in request.controls if c.preprocessor == "none")]
    for sources, are_values in ((colours, False), (values, True)):
        for source in dict.fromkeys(filter(None, sources)):
            yield from images.warnings(source, values=are_values)


def _stretched(request: GenerationRequest, images: InputImages) -> Iterator[str]:
    if request.mask is None or request.image is None:
        return
    (width, height), (w, h) = images.size(request.image), images.size(request.mask)
    if not 1 / _LIKE < width * h / (w * height) < _LIKE:
        yield f"the mask is {w} x {h} and its image {width} x {height}: the mask is stretched to fit"
