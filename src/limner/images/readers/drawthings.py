"""Reads Draw Things' metadata: JSON in the UserComment of EXIF, or of the XMP packet of a PNG."""

import html
import re
from collections.abc import Collection
from typing import Any

from .base import ReadRequest, Texts, Values

NAME = "Draw Things"
_IN_XMP = re.compile(r"<exif:UserComment>.*?<rdf:li[^>]*>(.*?)</rdf:li>", re.DOTALL)
_IDLE = {
    "v2",
    "profile",
    "mask_blur",
    "mask_blur_outset",
    "sharpness",
    "hires_fix",
    "batch_size",
    "batch_count",
}
_IDLE |= {"aesthetic_score", "negative_aesthetic_score", "zero_negative_prompt", "shift", "version"}


def matches(texts: Texts) -> bool:
    return {"c", "uc"} <= _given(texts).keys()


def _given(texts: Texts) -> dict[str, Any]:
    found = _IN_XMP.search(texts.xmp)
    return texts.json(texts.comment, html.unescape(found[1]) if found else None)


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request.

    Raises:
        InvalidPicture: a number in it is none.
    """
    given = _given(texts)
    values = Values(given, texts, overriding)
    values.text("c", "prompt")
    values.text("uc", "negative_prompt")
    values.seed("seed")
    values.number("steps", "steps", int)
    values.number("scale", "guidance_scale")
    values.number("clip_skip", "clip_skip", int)
    if size := re.fullmatch(r"(\d+)x(\d+)", str(values.take("size"))):
        values.fields["width"], values.fields["height"] = int(size[1]), int(size[2])
    values.samplers(values.take("sampler"))
    values.loras(
        (str(lora.get("model", lora.get("file"))), lora.get("weight", 1.0), None)
        for lora in values.take("lora") or []
        if isinstance(lora, dict)
    )
    mode = values.take("seed_mode")
    values.fields["noise"] = "gpu" if "NVIDIA" in str(mode) else "cpu"
    if mode not in (None, "NVIDIA GPU Compatible", "Torch CPU Compatible"):
        values.warn(
            f"its noise is of Draw Things' own kind, {mode}, so another image of the kind comes out",
            {"seed_mode": mode},
        )
    values.model(values.take("model"))
    strength = values.take("strength")
    if isinstance(strength, int | float) and 0 < strength < 1:
        values.fields["strength"] = float(strength)
        values.needs("`image`", "it began with an image that it does not hold")
    return values.request(_IDLE)
