"""From the body of a request to images to a `GenerationRequest` and to how its images are delivered.

Besides OpenAI's parameters, the fields of Limner's requests are accepted at the top level of the body, where
the SDKs put `extra_body`: seed, steps, guidance_scale, negative_prompt … by their names and by those of other
programs. Nothing else is accepted.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal

from pydantic import ValidationError

from limner.errors import InvalidRequest
from limner.request import GenerationRequest
from limner.request.parsing import invalid_request, other_names

from .bodies import Body, File, decode_base64
from .errors import PARAMS, InvalidParameter
from .parameters import PARAMETERS, REFUSED, Operation, read_size, shown

ResponseFormat = Literal["url", "b64_json"]
OutputFormat = Literal["png", "jpeg", "webp"]

QUALITIES: Mapping[str, Fraction] = {
    "low": Fraction(1, 2),
    "standard": Fraction(1),
    "medium": Fraction(1),
    "auto": Fraction(1),
    "hd": Fraction(3, 2),
    "high": Fraction(3, 2),
    "xhigh": Fraction(2),
    "max": Fraction(3),
}
"""By quality: the factor on the model's own number of steps."""

HIGH_FIDELITY = 0.5
"""`strength` of an edit with `input_fidelity` "high"."""

MASKED_STRENGTH = 1.0
"""`strength` of an edit with a mask: nothing of what was there is to show through. Without one it is the
model's own."""

_PICTURES = ("image", "images", "mask")  # of an edit
MAX_INPUTS = 16  # OpenAI's limit of images in an edit
_NOT_TAKEN = {"schema_version", "prompt", "model", "revision", "variant", "image", "mask", *PARAMS}
OWN_FIELDS = frozenset(GenerationRequest.model_fields.keys() - _NOT_TAKEN)
"""Fields of Limner's requests that are accepted at the top level."""

SYNONYMS: Mapping[str, str] = {
    "step": "steps",  # LocalAI's
    **{
        other: name
        for name in sorted(OWN_FIELDS)
        for other in other_names(GenerationRequest.model_fields[name])
        if other not in GenerationRequest.model_fields
    },
}
"""Other programs' names -> the field that they mean."""


@dataclass(frozen=True)
class ImageCall:
    """A request for images, read and checked as far as can be done without its model.

    Attributes:
        operation: Generation or edit.
        fields: Fields of the request that were given, without those that follow.
        model: Name of the model as it was given; None leaves the choice to the server.
        quality: OpenAI's word for it.
        images: Input images, in order, as bytes of files; the first one is edited, further ones are image
            prompts.
        mask: Bytes of the mask's file.
        response_format, output_format, output_compression: How finished images are delivered.
        stream: Whether events are sent as they come.
        partial_images: Number of previews of each image, at most.
        sources: Field of the request -> the parameter that set it, where it has another name.
        user: Who the images are made for, in the caller's words; it is repeated in the answer.
    """

    operation: Operation
    fields: Mapping[str, Any]
    model: str | None = None
    quality: str = "auto"
    images: tuple[bytes, ...] = field(default=(), repr=False)
    mask: bytes | None = field(default=None, repr=False)
    response_format: ResponseFormat = "b64_json"
    output_format: OutputFormat = "png"
    output_compression: int = 100
    stream: bool = False
    partial_images: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height that were asked for; None for the model's or the image's own."""
        return (self.fields["width"], self.fields["height"]) if "width" in self.fields else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Size that the input image is brought to; None where it is used as it is."""
        fields = self.fields
        if fields.get("inpaint_area", "whole") != "whole" or any(fields.get("extend", ())):
            return None  # `size` is then that of a part of the image, or of more than it
        return self.size

    @property
    def mask_is_in_image(self) -> bool:
        """Whether transparent parts of the image are the mask if none is given, as for DALL-E 2."""
        return self.mask is None and self.model == "dall-e-2"

    def request(
        self,
        model: str,
        *,
        default_steps: int,
        max_steps: int | None = None,
        image: str | None = None,
        mask: str | None = None,
        image_prompt: Mapping[str, Any] | None = None,
    ) -> GenerationRequest:
        """The request for a model.

        Args:
            model: Its name.
            default_steps: Number of steps where a request gives none.
            max_steps: Largest number that the quality may lead to.
            image, mask: References to the input image and to its mask, white where it is regenerated.
            image_prompt: One that is added to those of the fields.

        Raises:
            InvalidRequest: Fields that contradict each other.
        """
        fields = {**self.fields, "model": model}
        if image is not None:
            fields |= {"image": image}
        if mask is not None:
            fields = {"strength": MASKED_STRENGTH, **fields, "mask": mask}
        if image_prompt is not None:
            fields |= {"image_prompts": [*fields.get("image_prompts", ()), image_prompt]}
        if "steps" not in fields and QUALITIES[self.quality] != 1:
            fields["steps"] = steps_of(self.quality, default_steps, max_steps)
        return GenerationRequest.of(fields)


def steps_of(quality: str, default: int, highest: int | None = None) -> int:
    """Number of steps of a quality.

    Args:
        default: Number of steps of the model.
        highest: Largest number that is allowed.
    """
    steps = max(1, math.ceil(default * QUALITIES[quality]))
    return steps if highest is None else max(1, min(steps, highest))


def read_call(operation: Operation, body: Body) -> ImageCall:
    """Read the body of a request for images.

    Raises:
        InvalidRequest: Naming the parameter at fault.
    """
    given = {name: value for name, value in body.values.items() if value is not None}
    pictures: dict[str, Any] = {}
    if operation == "edit":
        pictures = {name: given.pop(name) for name in _PICTURES if name in given}
    values, own = _divided(operation, given, body.texts)
    missing = [] if "prompt" in values else ["prompt"]
    if operation == "edit" and not pictures.keys() & {"image", "images"}:
        missing.append("image")
    if missing:
        raise InvalidParameter(missing[0], f"{missing[0]} is missing", reason="missing_required_parameter")
    fields, sources = _fields(values, own, body.texts)
    _check_delivery(values)
    return ImageCall(
        operation=operation,
        fields=fields,
        model=values.get("model"),
        quality=values.get("quality", "auto"),
        images=_images(pictures),
        mask=_file(pictures["mask"], "mask") if "mask" in pictures else None,
        response_format=_response_format(values),
        output_format=values.get("output_format", "png"),
        output_compression=values.get("output_compression", 100),
        stream=values.get("stream", False),
        partial_images=values.get("partial_images", 0),
        sources=sources,
        user=values.get("safety_identifier") or values.get("user", ""),
    )


def _divided(
    operation: Operation, given: Mapping[str, Any], texts: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of OpenAI's parameters, and the fields of Limner's by their own names."""
    values: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in given.items():
        field_name = SYNONYMS.get(name, name)
        if name in PARAMETERS[operation]:
            values[name] = PARAMETERS[operation][name].read(name, value, texts=texts)
        elif field_name not in OWN_FIELDS:
            raise _unknown(operation, name)
        elif field_name in own:
            raise InvalidParameter(
                name, f"{name} and {field_name} say the same, and both are given", hint="give one of them"
            )
        else:
            own[field_name] = value
    return values, own


def _fields(
    values: Mapping[str, Any], own: Mapping[str, Any], texts: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a request, and the parameters that set those with other names."""
    fields, sources = {"prompt": values["prompt"], **_own_values(own, texts)}, {}
    if "n" in values:
        fields["num_images"] = values["n"]
    if (size := read_size(values.get("size", "auto"))) is not None:
        fields["width"], fields["height"] = size
    if QUALITIES[values.get("quality", "auto")] != 1 and "steps" not in fields:
        sources["steps"] = "quality"
    if values.get("input_fidelity") == "high" and "strength" not in fields:
        fields["strength"] = HIGH_FIDELITY
        sources["strength"] = "input_fidelity"
    try:
        read = GenerationRequest.model_validate(fields, strict=not texts)
    except ValidationError as error:
        fault = invalid_request(error, GenerationRequest.model_fields)
        names = fault.fields or tuple(name for name in own if _is_invalid(name, fields[name]))
        raise InvalidRequest(fault.message, hint=fault.hint, fields=names) from None
    return read.model_dump(exclude_unset=True), sources


def _is_invalid(name: str, value: Any) -> bool:
    """Whether a field alone is at fault, which an error about the whole request does not say."""
    try:
        GenerationRequest.model_validate({"prompt": "", name: value}, strict=False)
    except ValidationError:
        return True
    return False


def _own_values(own: Mapping[str, Any], texts: bool) -> dict[str, Any]:
    """Values of Limner's fields, those of a form as the schema reads them: objects and lists may be JSON."""
    if not texts:
        return dict(own)
    read: dict[str, Any] = {}
    for name, value in own.items():
        if isinstance(value, str) and value[:1] in ("[", "{"):
            try:
                read[name] = json.loads(value)
            except (ValueError, RecursionError):
                read[name] = value
        elif isinstance(value, str):
            read[name] = GenerationRequest.read_text(name, value)
        else:
            read[name] = value
    return read


def _response_format(values: Mapping[str, Any]) -> ResponseFormat:
    """How images are delivered: as asked, else as OpenAI's model of that name does."""
    stream = values.get("stream", False)
    if stream and values.get("response_format") == "url":
        raise InvalidParameter(
            "response_format",
            "response_format is 'url', but a stream carries its images in b64_json",
            reason="unsupported_value",
            hint="leave response_format out, or stream",
        )
    default = "url" if str(values.get("model", "")).startswith("dall-e") and not stream else "b64_json"
    found: ResponseFormat = values.get("response_format", default)
    return found


def _check_delivery(values: Mapping[str, Any]) -> None:
    if values.get("partial_images", 0) and not values.get("stream", False):
        raise InvalidParameter(
            "partial_images",
            f"partial_images is {values['partial_images']}, but without a stream there are none",
            hint="set stream to true, or leave partial_images out",
        )
    if values.get("output_compression", 100) < 100 and values.get("output_format", "png") == "png":
        raise InvalidParameter(
            "output_compression",
            f"output_compression is {values['output_compression']}, but a png is compressed without loss",
            hint="give output_format as jpeg or webp",
        )


def _images(pictures: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The input images, in order. A list is accepted where one is expected, and one for a list."""
    given = [
        one
        for name in ("image", "images")
        if name in pictures
        for one in (pictures[name] if isinstance(pictures[name], list) else [pictures[name]])
    ]
    if pictures.keys() & {"image", "images"} and not given:
        raise InvalidParameter("image", "image is an empty list; expected an image")
    if len(given) > MAX_INPUTS:
        raise InvalidParameter("image", f"there are {len(given)} images; expected {MAX_INPUTS} at most")
    return tuple(_file(one, "image") for one in given)


def _file(value: Any, param: str) -> bytes:
    """The bytes of an image: an upload, base64, a data URL, or an object with one as its `image_url`."""
    if isinstance(value, File):
        if not value.data:
            raise InvalidParameter(param, f"{param} is an empty file; expected an image")
        return value.data
    if isinstance(value, Mapping):
        if "file_id" in value:
            raise InvalidParameter(
                param,
                f"{param} is a file_id, and there are no stored files in this API",
                reason="unsupported_value",
                hint="send the image itself, as a file or a data: URL",
            )
        url = value.get("image_url")
        value = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(value, str):
        raise InvalidParameter(
            param, f"{param} is {shown(value)}; expected a file or a data: URL", reason="invalid_type"
        )
    return decode_base64(value, param)


def _unknown(operation: Operation, name: str) -> InvalidRequest:
    """The error for a parameter that is not accepted, with what to do instead."""
    if name in REFUSED:
        return InvalidParameter(
            name, f"{name} is not supported: {REFUSED[name]}", reason="unsupported_parameter"
        )
    hint = None
    renamed = next(
        (
            ours
            for field_name, ours in PARAMS.items()
            if name in (field_name, *other_names(GenerationRequest.model_fields[field_name]))
        ),
        None,
    )
    if name == "extra_body":
        hint = "its fields belong at the top level of the body"
    elif renamed is not None:
        hint = f"it is {renamed} here"
    elif name in (*_PICTURES, "init_image", "init_images", "mask_image"):
        hint = "images are edited at /v1/images/edits, which takes image and mask"
    else:
        known = [*PARAMETERS[operation], *OWN_FIELDS, *SYNONYMS]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else None
    return InvalidParameter(name, f"unknown parameter: {shown(name)}", reason="unknown_parameter", hint=hint)
