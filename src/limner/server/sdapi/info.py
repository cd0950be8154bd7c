"""The answer of txt2img and img2img: `parameters`, and `info`, a JSON document inside a string."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from limner import __version__
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.images.a1111_write import file_stem
from limner.images.infotext import parse_infotext
from limner.images.record import Record

from .bodies import GenerationBody, Img2ImgBody, Txt2ImgBody
from .translate import Translated

_LONG = 256  # characters of a text in always-on scripts, such as an image, that `parameters` does not repeat
_PLACED = {
    "Prompt",
    "Negative prompt",
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size-1",
    "Size-2",
    "Model hash",
    "Model",
    "Variation seed",
    "Variation seed strength",
    "Denoising strength",
    "Clip skip",
    "Version",
}
"""Keys of an infotext that are elsewhere in `info`."""
_OF_THE_MODEL = ("width", "height", "steps", "cfg_scale", "sampler_name")  # where the request leaves them out


def timestamp(at: float) -> str:
    """A time as A1111 writes it in `job_timestamp`: YYYYMMDDhhmmss."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(at))


def info_of(
    translated: Translated, records: Sequence[Record], *, at: float, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The document in `info`.

    Args:
        records: Of the images, in their order.
        at: When the request was accepted, in seconds since the epoch.
        warnings: What else the caller should know.
    """
    body, first = translated.body, records[0] if records else None
    fields = translated.fields
    requests = [record.request for record in records]
    infotexts = [record.infotext() for record in records]
    request = requests[0] if requests else None
    varies = bool(fields.get("variation_strength"))
    seeds = [one.seed for one in requests]
    # Without a variation, AUTOMATIC1111 counts the subseeds up from a random one; here there is none.
    subseeds = [one.variation_seed if varies else one.seed for one in requests]
    hires = isinstance(body, Txt2ImgBody) and body.enable_hr
    sampler = str(request.sampler if request is not None else fields["sampler"])
    return {
        "prompt": request.prompt if request is not None else fields["prompt"],
        "all_prompts": [one.prompt for one in requests],
        "negative_prompt": (request.negative_prompt if request is not None else "") or "",
        "all_negative_prompts": [one.negative_prompt or "" for one in requests],
        "seed": seeds[0] if seeds else fields.get("seed", -1),
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else -1,
        "all_subseeds": subseeds,
        "subseed_strength": fields.get("variation_strength", 0.0),
        "width": request.width if request is not None else fields.get("width"),
        "height": request.height if request is not None else fields.get("height"),
        "sampler_name": SAMPLER_TABLE[sampler].label,
        "cfg_scale": body.cfg_scale if "cfg_scale" in body.model_fields_set else fields["guidance_scale"],
        "steps": fields["steps"],
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": file_stem(first.model["name"]) if first is not None else None,
        "sd_model_hash": first.model.get("sha256", "")[:10] if first is not None else None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": fields.get("hires_strength") if hires else fields.get("strength"),
        "extra_generation_params": _extra(infotexts[0]) if infotexts else {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": list(fields.get("styles", ())),
        "job_timestamp": timestamp(at),
        "clip_skip": fields.get("clip_skip", 1),
        "is_using_inpainting_conditioning": False,
        "version": f"limner {__version__}",
        "without_effect": list(translated.without_effect),
        "warnings": [*translated.notes, *warnings],
    }


def _extra(infotext: str) -> dict[str, str]:
    return {key: value for key, value in parse_infotext(infotext).items() if key not in _PLACED}


def parameters_of(body: GenerationBody, info: Mapping[str, Any]) -> dict[str, Any]:
    """The request with its defaults, which are the model's where it has its own, as `info` says.

    Images are repeated only where `include_init_images` asks for it.
    """
    values = body.model_dump()
    for name in _OF_THE_MODEL:
        if name not in body.model_fields_set and info.get(name) is not None:
            values[name] = info[name]
    if isinstance(body, Img2ImgBody) and not body.include_init_images:
        values |= {"init_images": None, "mask": None}
    values["alwayson_scripts"] = _without_pictures(values["alwayson_scripts"])
    return values


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_pictures(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_pictures(one) for one in value]
    return None if isinstance(value, str) and len(value) > _LONG else value


def answer(body: GenerationBody, images: Sequence[str], info: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of txt2img and img2img."""
    return {"images": list(images), "parameters": parameters_of(body, info), "info": json.dumps(info)}
