"""Errors in the shape of AUTOMATIC1111's API, which clients show to people: `detail` says what is wrong."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from limner.errors import InvalidRequest, LimnerError, ModelNotFound, spelled
from limner.server.problems import STATUS

FIELD_NAMES: Mapping[str, str] = {
    "styles": "styles",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "num_images": "batch_size",
    "guidance_scale": "cfg_scale",
    "guidance_skip": "s_min_uncond",
    "sampler": "sampler_name",
    "sigma_schedule": "scheduler",
    "image": "init_images",
    "strength": "denoising_strength",
    "image_guidance_scale": "image_cfg_scale",
    "inpaint_area": "inpaint_full_res",
    "mask_padding": "inpaint_full_res_padding",
    "controls": "alwayson_scripts.ControlNet",
    "image_prompts": "alwayson_scripts.ControlNet",
    "hires_scale": "hr_scale",
    "hires_width": "hr_resize_x",
    "hires_height": "hr_resize_y",
    "hires_strength": "denoising_strength",
    "hires_steps": "hr_second_pass_steps",
    "hires_upscaler": "hr_upscaler",
    "hires_sampler": "hr_sampler_name",
    "hires_sigma_schedule": "hr_scheduler",
    "hires_prompt": "hr_prompt",
    "hires_negative_prompt": "hr_negative_prompt",
    "refiner": "refiner_checkpoint",
    "refiner_start": "refiner_switch_at",
    "model": "override_settings.sd_model_checkpoint",
}
"""This API's names of fields of a request, where they differ."""

# Names that are no English words, which are replaced wherever they occur.
_NAME = re.compile(rf"\b(?:{'|'.join(name for name in FIELD_NAMES if '_' in name)})\b")


class Refusal(InvalidRequest):
    """A request that this API refuses with a status of its own.

    Attributes:
        status: HTTP status.
    """

    def __init__(
        self, message: str, *, status: int = 400, hint: str | None = None, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint, fields=fields)
        self.status = status


def status_of(error: LimnerError) -> int:
    """HTTP status of an error."""
    return error.status if isinstance(error, Refusal) else status_of_code(error.code)


def status_of_code(code: str) -> int:
    """HTTP status by the code of an error: what the request is to blame for is a 400 here."""
    status = STATUS.get(code, 500)
    return 400 if status == 422 or code == ModelNotFound.code else status


def detail_of(error: LimnerError) -> str:
    """One text for people: what is wrong and what to do, with this API's names of fields."""

    def spell(name: str, value: str) -> str | None:
        own = FIELD_NAMES.get(name, name)
        return f"{own}={value}" if value else own

    text = error.message if not error.hint else f"{error.message} ({error.hint})"
    text = _NAME.sub(lambda match: FIELD_NAMES.get(match[0], match[0]), spelled(text, spell))
    if isinstance(error, Refusal):  # whose text names the field where that helps
        return text
    names = [FIELD_NAMES.get(name, name) for name in error.fields]
    missing = [name for name in dict.fromkeys(names) if name not in text]
    return f"{', '.join(missing)}: {text}" if missing else text


def body_of(kind: str, detail: str | Sequence[Any]) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": kind, "detail": detail, "body": "", "errors": detail if isinstance(detail, str) else ""}
