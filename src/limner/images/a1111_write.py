"""Writes a request as the fields of AUTOMATIC1111's parameters text, as webui and Forge would write them."""

from pathlib import PurePath

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.request import Control, GenerationRequest, ImagePrompt, Lora
from limner.request.names import UPSCALERS

from .infotext import sampler_to_a1111

_MODEL_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx"}
EMPHASES = {"original": "Original", "no_norm": "No norm", "ignore": "Ignore", "none": "None"}
CFG_PP, CFG_PP_SCALE = "ddim_cfg_pp", 12.5  # webui divides the guidance scale of this sampler
CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "guess": "ControlNet is more important",
}
# webui has one UniPC, of B(h) = h and order 3 unless these fields say otherwise.
_UNIPC: dict[str, dict[str, object]] = {
    "unipc_bh1": {},
    "unipc_bh2": {"UniPC variant": "bh2"},
    "unipc": {"UniPC variant": "bh2", "UniPC order": 2},
}
TIMESTEP_SAMPLERS = {"ddim", "ddim_cfg_pp", "pndm", *_UNIPC}  # their sigmas ignore webui's schedule type


def fields(request: GenerationRequest) -> dict[str, object]:
    """The fields of a parameters text for a resolved request; None and empty values are left out later."""
    sampler, schedule = sampler_to_a1111(request.sampler or "", request.sigma_schedule or "")
    units: list[Control | ImagePrompt] = [*request.controls, *request.image_prompts]
    variant = _UNIPC.get(request.sampler or "")
    return {
        "Steps": request.steps,
        "Sampler": sampler if variant is None else SAMPLER_TABLE["unipc_bh1"].label,
        "Schedule type": schedule,
        "CFG scale": _webui_scale(request),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Denoising strength": request.hires_strength or (request.strength if request.image else None),
        "Emphasis": None if request.emphasis == "original" else EMPHASES[request.emphasis],
        **(variant or {}),
        "NGMS": request.guidance_skip or None,
        eta_key(sampler): request.eta,
        "Sigma churn": request.s_churn,
        "Sigma tmin": request.s_tmin,
        "Sigma tmax": request.s_tmax,
        "Sigma noise": request.s_noise,
        "RNG": "CPU" if request.noise == "cpu" else None,  # webui's default is the GPU's
        "Variation seed": request.variation_seed,
        "Variation seed strength": request.variation_strength or None,
        "Tiling": True if request.tiling == "xy" else None,  # webui has no tiling along one axis
        **_second_pass(request),
        **{f"ControlNet {index}": _unit(unit) for index, unit in enumerate(units)},
    }


def lora_tags(request: GenerationRequest) -> str:
    """The LoRAs of a request as tags of a prompt: <lora:name:weight>."""
    return "".join(f"<lora:{_tag(lora)}>" for lora in request.loras)


def _second_pass(request: GenerationRequest) -> dict[str, object]:
    """The fields of a hires pass."""
    width, height, prompt = request.hires_width, request.hires_height, request.hires_prompt
    if prompt is not None and "<lora:" not in prompt:  # webui takes the LoRAs of a hires prompt from it alone
        prompt += lora_tags(request)
    return {
        "Hires prompt": prompt,
        "Hires negative prompt": request.hires_negative_prompt,
        "Hires upscale": request.hires_scale,
        "Hires resize": f"{width or 0}x{height or 0}" if width or height else None,
        "Hires steps": request.hires_steps,
        "Hires upscaler": UPSCALERS.get(request.hires_upscaler or ""),
        "Hires sampler": SAMPLER_TABLE[request.hires_sampler].label if request.hires_sampler else None,
        "Hires schedule type": request.hires_sigma_schedule
        and SIGMA_SCHEDULES[request.hires_sigma_schedule].label,
    }


def _webui_scale(request: GenerationRequest) -> float | None:
    if request.sampler != CFG_PP or request.guidance_scale is None:
        return request.guidance_scale
    return round(request.guidance_scale * CFG_PP_SCALE, 6)


def eta_key(sampler: str) -> str:
    """The field that holds the eta of a sampler, given by webui's name."""
    return "Eta DDIM" if sampler.startswith("DDIM") else "Eta"


def _tag(lora: Lora) -> str:
    """Name and weights, the text encoder's first."""
    unet = "" if lora.text_weight is None else f":{lora.weight:.12g}"
    return f"{file_stem(lora.name)}:{lora.for_text:.12g}{unet}"


def _unit(unit: Control | ImagePrompt) -> str:
    """A unit of webui's ControlNet extension, which IP-Adapters belong to."""
    fields = {
        "Module": unit.preprocessor if isinstance(unit, Control) else "ip-adapter-auto",
        "Model": file_stem(unit.model),
        "Weight": f"{unit.weight:g}",
        "Guidance Start": f"{unit.start:g}",
        "Guidance End": f"{unit.end:g}",
        "Control Mode": CONTROL_MODES[unit.mode if isinstance(unit, Control) else "balanced"],
    }
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


def file_stem(name: str) -> str:
    """The name of a model file without folders and without its suffix; dots within the name stay."""
    base = PurePath(name).name
    return base[: -len(suffix)] if (suffix := PurePath(base).suffix).lower() in _MODEL_SUFFIXES else base
