"""Answers of the Images API: finished images, their usage, and the events of a stream.

Everything that OpenAI's SDKs read is here, and in each image also its `seed` and its `id` in the native API.
"""

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from limner.images.picture import encode
from limner.service.jobs import Job, JobSet, StoredImage

from .errors import ApiError, error_of
from .translate import ImageCall

PATCH = 16  # side in pixels of the square that counts as one token of an image
_QUALITY = {"standard": "medium", "auto": "medium", "hd": "high"}  # as an answer names it


@dataclass(frozen=True)
class Usage:
    """What images were made of, in tokens.

    Attributes:
        text_tokens: Tokens of the prompts, as the model's tokenizer reads them.
        image_tokens: Patches of the input images.
        output_tokens: Patches of the finished images.
    """

    text_tokens: int
    image_tokens: int
    output_tokens: int

    @property
    def view(self) -> dict[str, Any]:
        """As an answer has it."""
        given = self.text_tokens + self.image_tokens
        return {
            "input_tokens": given,
            "input_tokens_details": {"text_tokens": self.text_tokens, "image_tokens": self.image_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": self.output_tokens},
            "total_tokens": given + self.output_tokens,
        }


def usage_of(call: ImageCall, images: Sequence[StoredImage], text_tokens: int) -> Usage:
    """The usage of finished images. An input image counts at the size that it was drawn at."""
    sizes = [patches(image.width, image.height) for image in images]
    return Usage(text_tokens, len(call.images) * (sizes[0] if sizes else 0), sum(sizes))


def patches(width: int, height: int) -> int:
    """Number of tokens of an image: squares of 16 x 16 pixels, those that are cut at an edge included."""
    return -(-width // PATCH) * -(-height // PATCH)


def images_answer(
    call: ImageCall,
    finished: JobSet,
    images: Sequence[StoredImage],
    contents: Sequence[str],
    usage: Usage,
) -> dict[str, Any]:
    """The body of the answer with all images.

    Args:
        images: The images, in the order of the jobs.
        contents: Base64 of each, or its address.
    """
    return {
        "id": finished.id,
        "created": int(time.time()),
        "data": [
            {call.response_format: content, **_about(call, image)}
            for image, content in zip(images, contents, strict=True)
        ],
        **_settings(call, images[0].width, images[0].height),
        "usage": usage.view,
        **({"warnings": list(finished.warnings)} if finished.warnings else {}),
    }


def completed_event(
    call: ImageCall, index: int, image: StoredImage, content: str, usage: Usage, warnings: Sequence[str]
) -> bytes:
    """The event of a finished image.

    Args:
        index: Number of the image in the set, from 0.
        content: Base64 of its file.
    """
    return _event(
        f"{_event_name(call)}.completed",
        {
            "b64_json": content,
            "created_at": int(image.created_at or time.time()),
            "image_index": index,
            **_about(call, image),
            **_settings(call, image.width, image.height),
            "usage": usage.view,
            **({"warnings": list(warnings)} if warnings else {}),
        },
    )


def partial_event(call: ImageCall, index: int, number: int, content: str, size: tuple[int, int]) -> bytes:
    """The event of a preview.

    Args:
        index: Number of the image in the set, from 0.
        number: Number of the preview, from 0.
    """
    return _event(
        f"{_event_name(call)}.partial_image",
        {
            "b64_json": content,
            "partial_image_index": number,
            "image_index": index,
            "created_at": int(time.time()),
            **_settings(call, *size),
        },
    )


def error_event(error: ApiError) -> bytes:
    """The event of an error after the answer has begun, which both SDKs raise."""
    return f"event: error\ndata: {json.dumps(error.body)}\n\n".encode()


PING = b": ping\n\n"
"""A comment, which keeps a connection from being closed as idle."""


def partial_file(preview: bytes, size: tuple[int, int], format: str, compression: int) -> bytes:
    """A small preview as a file of the finished image's size and format."""
    with Image.open(io.BytesIO(preview)) as opened:
        image = opened.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if format == "png":  # a larger file is better than a later one
        return encode(image, format, compress_level=1)
    return encode(image, format, **quality_of(format, compression))


def quality_of(format: str, compression: int) -> dict[str, int]:
    """Pillow's parameters for an `output_compression`; none for PNG."""
    return {} if format == "png" else {"quality": max(1, compression)}


def failure_of(finished: JobSet) -> ApiError | None:
    """The error of a set in which a job did not end with an image; None where all did.

    It is never repeated by itself: what could be tried again has been, by the workers.
    """
    failed = next((job for job in finished.jobs if job.image is None), None)
    if failed is None:
        return None
    fault = _job_error(failed)
    done = sum(job.image is not None for job in finished.jobs)
    message = fault.message
    if len(finished.jobs) > 1:
        message = (
            f"image {failed.index + 1} of {len(finished.jobs)}: {message}; {done} others are done, in "
            f"set {finished.id} of the native API"
        )
    return ApiError(fault.kind, message, fault.param, fault.code, repeat=False)


def _job_error(job: Job) -> ApiError:
    if job.state == "cancelled":
        return error_of("cancelled", "the image was cancelled", "it can be retried in the native API")
    if job.error is not None:
        return error_of(job.error.code, job.error.message, job.error.hint, job.error.fields)
    return error_of("not_found", "the image was deleted before it could be delivered")


def _about(call: ImageCall, image: StoredImage) -> dict[str, Any]:
    """What an answer tells of one image: its id, its seed, and its prompt where that is not the one given."""
    request: Mapping[str, Any] = image.record.get("request", {})
    entry: dict[str, Any] = {"id": image.id, "seed": request.get("seed")}
    if request.get("prompt", call.fields["prompt"]) != call.fields["prompt"]:
        entry["revised_prompt"] = request["prompt"]  # with its styles and wildcards applied
    return entry


def _settings(call: ImageCall, width: int, height: int) -> dict[str, Any]:
    """What an answer tells of all images."""
    return {
        "background": "opaque",
        "output_format": call.output_format,
        "quality": _QUALITY.get(call.quality, call.quality),
        "size": f"{width}x{height}",
        **({"safety_identifier": call.user} if call.user else {}),
    }


def _event_name(call: ImageCall) -> str:
    return "image_generation" if call.operation == "generation" else "image_edit"


def _event(type: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **data})}\n\n".encode()


def in_base64(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode()
