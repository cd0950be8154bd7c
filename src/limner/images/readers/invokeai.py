"""Reads InvokeAI's metadata: `invokeai_metadata` (version 3 on), `sd-metadata` (2) and `Dream` (1)."""

import re
import shlex
from collections.abc import Collection
from itertools import pairwise
from typing import Any

from limner.errors import InvalidPicture

from .base import ReadRequest, Texts, Values

NAME = "InvokeAI"
# InvokeAI's names that are nobody else's; `_k` at the end is Karras' schedule.
_SAMPLERS = {
    "k_heun": "heun",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_dpm_2": "dpm2",
    "k_dpm_2_a": "dpm2_a",
    "plms": "pndm",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2_a",
    "dpmpp_2s": "dpmpp_2s",
    "dpmpp_2m": "dpmpp_2m",
    "unipc": "unipc",
}
_OPTIONS = {  # of the command of version 1
    "-s": "steps",
    "-S": "seed",
    "-W": "width",
    "-H": "height",
    "-C": "cfg_scale",
    "-A": "sampler",
    "-f": "strength",
    "-G": "gfpgan_strength",
    "-U": "upscale",
    "-v": "variation_amount",
    "-V": "with_variations",
}
_IDLE = {
    "app_version",
    "generation_mode",
    "model_hash",
    "type",
    "rand_device",
    "app_id",
    "model",
    "model_weights",
}
_IDLE |= {
    "postprocessing",
    "positive_style_prompt",
    "negative_style_prompt",
    "canvas_v2_metadata",
    "_canvas_objects",
}
_FAMILIES = {"sd-1": "sd1", "sd-2": "sd2", "sdxl": "xl", "sdxl-refiner": "xl_refiner"}
_WEIGHTS = re.compile(r"[\w)][+-]{1,}(?=\s|,|\)|$)|\)\d*\.?\d+|\.(?:blend|swap|and)\(")


def matches(texts: Texts) -> bool:
    return any(key in texts.info for key in ("invokeai_metadata", "sd-metadata", "Dream", "dream"))


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request in metadata of any version.

    Raises:
        InvalidPicture: the metadata is broken, or a number in it is none.
    """
    if "invokeai_metadata" in texts.info:
        given = texts.json(texts.info["invokeai_metadata"])
    elif "sd-metadata" in texts.info:
        given = _of_version_2(texts.json(texts.info["sd-metadata"]))
    else:
        given = _of_command(texts.info.get("Dream") or texts.info["dream"], texts)
    if not given:
        raise InvalidPicture(
            f"{texts.name} has metadata of InvokeAI that is broken", hint="give the prompt yourself"
        )
    values = Values(given, texts, overriding)
    values.text("positive_prompt", "prompt")
    values.text("negative_prompt", "negative_prompt")
    values.seed("seed")
    values.number("steps", "steps", int)
    values.number("cfg_scale", "guidance_scale")
    values.number("cfg_rescale_multiplier", "guidance_rescale")
    values.number("width", "width", int)
    values.number("height", "height", int)
    values.number("clip_skip", "clip_skip", lambda skipped: int(skipped) + 1)  # of layers that are left out
    _samplers(values)
    values.fields["noise"] = "gpu" if str(given.get("rand_device", "cpu")).startswith("cuda") else "cpu"
    values.loras(_lora(item) for item in values.take("loras") or [])
    model = given.get("model")
    if isinstance(model, dict):
        base = str(model.get("base_model") or model.get("base"))
        name = model.get("model_name") or model.get("name")
        values.model(name, model.get("hash"), _FAMILIES.get(base, ""))
    else:
        values.model(model, given.get("model_hash"))
    if values.take("seamless_x") or given.get("seamless"):
        values.fields["tiling"] = "xy" if values.take("seamless_y") or values.take("seamless") else "x"
    elif values.take("seamless_y"):
        values.fields["tiling"] = "y"
    if (image := values.take("init_image")) or given.get("strength"):
        values.number("strength", "strength")
        said = {"init_image": image} if image else None
        values.needs("`image`", "it began with an image that it does not hold", said)
    if values.take("hrf_enabled"):
        values.number("hrf_strength", "hires_strength")
        values.fields["hires_scale"] = 2.0
        values.take("hrf_method")
    for key, field in (
        ("controlnets", "controls"),
        ("t2iAdapters", "controls"),
        ("ipAdapters", "image_prompts"),
    ):
        if units := values.take(key):
            values.needs(f"`{field}`", f"it had {key}, whose images it does not hold", {key: units})
    vae = values.take("vae")
    if vae:
        name = vae.get("model_name") or vae.get("name") if isinstance(vae, dict) else vae
        values.needs("`vae`", f"its autoencoder {name} is not looked for", {"vae": name})
    if any(_WEIGHTS.search(values.fields.get(name, "")) for name in ("prompt", "negative_prompt")):
        values.warn(
            "its prompt has weights in InvokeAI's grammar (word++, (words)1.2), which are read as words"
        )
    return values.request(_IDLE)


def _samplers(values: Values) -> None:
    name = str(values.take("scheduler") or values.take("sampler") or "")
    core = name.removesuffix("_k") if name not in _SAMPLERS else name
    values.samplers(_SAMPLERS.get(core, core), "karras" if core != name else None)


def _lora(item: Any) -> tuple[str, Any, Any]:
    if not isinstance(item, dict):
        return str(item), 1.0, None
    lora = item.get("lora", item.get("model", item))
    name = (lora.get("model_name") or lora.get("name") or lora.get("key")) if isinstance(lora, dict) else lora
    return str(name), item.get("weight", 1.0), None


def _of_version_2(given: dict[str, Any]) -> dict[str, Any]:
    image = given.get("image")
    if not isinstance(image, dict):
        return {}
    prompt = image.pop("prompt", "")
    if isinstance(prompt, list):
        prompt = ", ".join(str(part.get("prompt", "")) for part in prompt if isinstance(part, dict))
    return {**image, **_split(str(prompt)), "model": given.get("model_weights") or given.get("model")}


def _of_command(command: str, texts: Texts) -> dict[str, Any]:
    try:
        words = shlex.split(command)
    except ValueError:
        raise InvalidPicture(
            f"{texts.name} has a command of InvokeAI that is broken: {command[:60]}"
        ) from None
    given: dict[str, Any] = _split(words[0] if words else "")
    for word in words[1:]:
        key, value = (word[:2], word[2:]) if not word.startswith("--") else word[2:].partition("=")[::2]
        given[_OPTIONS.get(key, key)] = value
    for previous, word in pairwise(words[1:]):
        if previous in _OPTIONS:
            given[_OPTIONS[previous]] = word
            given.pop(word[:2], None)
    return given


def _split(prompt: str) -> dict[str, Any]:
    """A prompt of versions 1 and 2, whose negative part is in square brackets."""
    negative = re.findall(r"\[([^\[\]]*)\]", prompt)
    positive = re.sub(r"\[[^\[\]]*\]", "", prompt).strip()
    return {"positive_prompt": positive, "negative_prompt": " ".join(negative).strip()}
