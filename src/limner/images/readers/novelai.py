"""Reads NovelAI's metadata: the chunk `Comment`, or JSON in the lowest bits of the alpha channel.

Its weights become webui's: {word} is (word:1.05), [word] is (word:0.952), 1.2::words:: is (words:1.2). Round
brackets mean nothing there.
"""

import re
import zlib
from collections.abc import Collection
from typing import Any

from PIL import Image

from .base import ReadRequest, Texts, Values

NAME = "NovelAI"
_MAGIC = b"stealth_pngcomp"
_GZIP = 31  # zlib's `wbits` for a gzip header
_MAX_TEXT = 1 << 20  # bytes
_STEP = 1.05  # weight of one pair of braces
_SAMPLERS = {"k_dpmpp_2s_ancestral": "dpmpp_2s_a", "ddim_v3": "ddim", "nai_smea": "euler_a"}
_SCHEDULES = {"native": None}
_IDLE = {
    "n_samples",
    "request_type",
    "signed_hash",
    "version",
    "hide_debug_overlay",
    "legacy_v3_extend",
    "prompt",
}
_IDLE |= {"reference_information_extracted_multiple", "lora_unet_weights", "lora_clip_weights", "v4_prompt"}
_IDLE |= {"v4_negative_prompt", "stream", "uncond_per_vibe", "wonky_vibe_correlation", "extra_noise_seed"}
_NUMBERED = re.compile(r"(-?\d+(?:\.\d+)?)::(.*?)::", re.DOTALL)


def matches(texts: Texts) -> bool:
    return texts.info.get("Software") == "NovelAI"


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request, its prompts in webui's grammar.

    Raises:
        InvalidPicture: a number in it is none.
    """
    given = texts.json(texts.info.get("Comment"))
    values = Values(given, texts, overriding)
    prompt = given.get("prompt") or texts.info.get("Description", "")
    values.fields["prompt"] = in_webui_grammar(str(prompt))
    values.fields["negative_prompt"] = in_webui_grammar(str(values.take("uc") or ""))
    values.seed("seed")
    values.number("steps", "steps", int)
    values.number("scale", "guidance_scale")
    values.number("cfg_rescale", "guidance_rescale")
    values.number("width", "width", int)
    values.number("height", "height", int)
    if "width" not in values.fields:
        values.fields |= {"width": texts.size[0], "height": texts.size[1]}
    sampler, schedule = str(values.take("sampler") or ""), values.take("noise_schedule")
    values.samplers(_SAMPLERS.get(sampler, sampler), _SCHEDULES.get(str(schedule), schedule))
    values.fields["noise"] = "gpu"
    values.model(texts.info.get("Source"))
    if given.get("strength") and ("image" in overriding or given.get("request_type") == "Img2ImgRequest"):
        values.number("strength", "strength")
        values.needs("`image`", "it began with an image that it does not hold")
    for key in ("strength", "noise"):  # said of every image, and of no effect without one to begin with
        values.take(key)
    if values.take("uncond_scale") not in (None, 0, 0.0, 1, 1.0):
        said = {"uncond_scale": given["uncond_scale"]}
        values.warn(f"its negative prompt had the strength {given['uncond_scale']}, and has 1", said)
    for key in ("characterPrompts", "char_captions"):
        if prompts := values.take(key):
            values.warn("its prompts for characters are not taken over", {key: prompts})
    values.warn("its models and its noise are NovelAI's own, so another image of the kind comes out")
    return values.request(_IDLE)


def in_webui_grammar(prompt: str) -> str:
    """A prompt of NovelAI's in webui's grammar."""
    escaped = re.sub(r"(?<!\\)([()])", r"\\\1", prompt)
    escaped = _NUMBERED.sub(lambda found: f"({found[2]}:{float(found[1]):g})", escaped)
    depth, level, text = 0, 0, ""
    for sign in escaped:  # each run of one depth becomes one bracket
        depth = level
        level += {"{": 1, "}": -1, "[": -1, "]": 1}.get(sign, 0)
        if level != depth:
            text += f"\0{level}\0"
        else:
            text += sign
    return _weighted(text)


def _weighted(text: str) -> str:
    parts = re.split("\0(-?\\d+)\0", text)
    result = parts[0]
    for level, run in zip(map(int, parts[1::2]), parts[2::2], strict=True):
        if run:
            result += f"({run}:{_STEP**level:.3g})" if level and run.strip() else run
    return result


def hidden_texts(image: Image.Image) -> dict[str, str]:
    """The texts that NovelAI hides in the lowest bits of an alpha channel, column by column; or none."""
    if image.mode != "RGBA":
        return {}
    import numpy as np  # which nothing else here needs

    bits = np.asarray(image.getchannel("A")).T.reshape(-1) & 1
    head = 8 * len(_MAGIC)
    if len(bits) < head + 32 or np.packbits(bits[:head]).tobytes() != _MAGIC:
        return {}
    length = int.from_bytes(np.packbits(bits[head : head + 32]).tobytes())
    if length % 8 or head + 32 + length > len(bits):
        return {}
    gzipped = np.packbits(bits[head + 32 : head + 32 + length]).tobytes()
    reader = zlib.decompressobj(wbits=_GZIP)
    try:
        data = reader.decompress(gzipped, _MAX_TEXT)
    except zlib.error:
        return {}
    if not reader.eof:  # cut off, or longer than any text: gzip makes a thousand bytes of one
        return {}
    texts: dict[str, Any] = Texts().json(data.decode("utf-8", "replace"))
    return {key: value for key, value in texts.items() if isinstance(value, str)}
