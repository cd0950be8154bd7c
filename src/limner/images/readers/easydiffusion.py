"""Reads Easy Diffusion's metadata: text chunks of a PNG, or JSON in UserComment, by two sets of names."""

from collections.abc import Collection
from typing import Any

from .base import ReadRequest, Texts, Values

NAME = "Easy Diffusion"
_NAMES = {  # those shown to users, and those of requests
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Sampler": "sampler_name",
    "Width": "width",
    "Height": "height",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "VAE model": "use_vae_model",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
    "Hypernetwork model": "use_hypernetwork_model",
    "Clip Skip": "clip_skip",
    "Prompt Strength": "prompt_strength",
    "Seamless Tiling": "tiling",
    "Use Face Correction": "use_face_correction",
    "Use Upscaling": "use_upscale",
}


def matches(texts: Texts) -> bool:
    return {"use_stable_diffusion_model", "num_inference_steps"} <= _given(texts).keys()


def _given(texts: Texts) -> dict[str, Any]:
    own = {key: value for key, value in texts.info.items() if _NAMES.get(key, key) in _NAMES.values()}
    return {_NAMES.get(key, key): value for key, value in {**texts.json(texts.comment), **own}.items()}


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request.

    Raises:
        InvalidPicture: a number in it is none.
    """
    given = _given(texts)
    values = Values(given, texts, overriding)
    values.text("prompt", "prompt")
    values.text("negative_prompt", "negative_prompt")
    values.seed("seed")
    values.number("num_inference_steps", "steps", int)
    values.number("guidance_scale", "guidance_scale")
    values.number("width", "width", int)
    values.number("height", "height", int)
    values.samplers(values.take("sampler_name"))
    values.fields["noise"] = "gpu"
    if values.take("clip_skip") in (True, "True", "true"):
        values.fields["clip_skip"] = 2
    values.model(values.take("use_stable_diffusion_model"))
    lora, weight = values.take("use_lora_model"), values.take("lora_alpha")
    if lora not in (None, "", "None"):
        values.loras([(str(lora), weight or 1.0, None)])
    if (vae := values.take("use_vae_model")) not in (None, "", "None"):
        values.needs("`vae`", f"its autoencoder {vae} is not looked for", {"use_vae_model": vae})
    if values.take("prompt_strength") not in (None, "", "None"):
        values.fields["strength"] = float(given["prompt_strength"])
        values.needs("`image`", "it began with an image that it does not hold")
    tiling = str(values.take("tiling") or "none").lower()
    if tiling in ("x", "y", "xy"):
        values.fields["tiling"] = tiling
    return values.request()
