"""Reads SwarmUI's metadata: `sui_image_params` in the chunk `parameters`, or in EXIF."""

from collections.abc import Collection, Iterator
from typing import Any

from .base import ReadRequest, Texts, Values, hash_digits, without_suffix

NAME = "SwarmUI"
_IDLE = {"swarm_version", "date", "generation_time", "aspectratio", "images", "imageformat", "nopreviews"}
_IDLE |= {
    "wildcardseed",
    "original_prompt",
    "original_negativeprompt",
    "used_wildcards",
    "automaticvae",
    "prep_time",
}
_IDLE |= {
    "loraweights",
    "batchsize",
    "personalnote",
    "donotsave",
    "models",
    "resolution",
    "sidelength",
    "presets",
}


def matches(texts: Texts) -> bool:
    return bool(_given(texts))


def _given(texts: Texts) -> dict[str, Any]:
    values = _whole(texts).get("sui_image_params")
    return values if isinstance(values, dict) else {}


def _whole(texts: Texts) -> dict[str, Any]:
    return texts.json(texts.info.get("parameters"), texts.comment, *texts.exif.values())


def _files(texts: Texts) -> Iterator[tuple[str, str, str]]:
    """Parameter, name and hash of each model file. The hash is that of the tensors without the metadata."""
    listed = _whole(texts).get("sui_models")
    for file in listed if isinstance(listed, list) else ():
        if isinstance(file, dict):
            yield str(file.get("param")), str(file.get("name")), hash_digits(file.get("hash"))


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request of what SwarmUI asked its backend, ComfyUI, for.

    Raises:
        InvalidPicture: a number in it is none.
    """
    given = _given(texts)
    values = Values(given, texts, overriding)
    values.text("prompt", "prompt")
    values.text("negativeprompt", "negative_prompt")
    values.seed("seed")
    values.number("steps", "steps", int)
    values.number("cfgscale", "guidance_scale")
    values.number("width", "width", int)
    values.number("height", "height", int)
    values.number("clipstopatlayer", "clip_skip", lambda layer: -int(layer))
    values.number("variationseed", "variation_seed", int)
    values.number("variationseedstrength", "variation_strength")
    if not values.fields.get("variation_strength"):
        values.fields.pop("variation_seed", None)
    values.samplers(
        _first(values, "sampler", "comfyuisampler"), _first(values, "scheduler", "comfyuischeduler")
    )
    names, weights = _listed(values.take("loras")), _listed(given.get("loraweights"))
    values.loras((name, weights[i] if i < len(weights) else 1.0, None) for i, name in enumerate(names))
    files = _files(texts)
    values.hashes = {without_suffix(name): digits for param, name, digits in files if param == "loras"}
    values.fields |= {"noise": "cpu", "emphasis": "no_norm"}
    values.model(values.take("model"))
    if values.take("seamlesstileable") in (True, "true"):
        values.fields["tiling"] = "xy"
    if values.take("vae") not in (None, "None", "Automatic", ""):
        values.needs("`vae`", f"its autoencoder {given['vae']} is not looked for", {"vae": given["vae"]})
    if values.take("initimage") or "initimagecreativity" in given:
        values.number("initimagecreativity", "strength")
        values.needs("`image`", "it began with an image that it does not hold")
    if "<" in values.fields.get("prompt", ""):
        values.warn(
            "its prompt has commands in angle brackets, of which Limner knows <lora:name:weight> alone"
        )
    return values.request(_IDLE)


def _first(values: Values, *keys: str) -> str | None:
    found = [values.take(key) for key in keys]
    return next((value for value in found if isinstance(value, str)), None)


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(item) for item in value] if isinstance(value, list) else []
