"""What there is: models, samplers, networks, styles, scripts; and the options of the caller's account."""

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from limner.catalogue.catalogue import Entry
from limner.errors import LimnerError
from limner.prompts.styles import read_styles
from limner.server.auth import Reader, Submitter
from limner.server.state import in_thread, state_of

from . import names
from .api import Place, SdapiRoute, read_object
from .units import BUILT_IN, KNOWN

router = APIRouter(prefix="/sdapi/v1", route_class=SdapiRoute, include_in_schema=False)

_WIDTHS = {"sd1": 768, "sd2": 1024, "xl": 2048, "xl_refiner": 1280}  # of embeddings, by family
_FLAGS = (
    "api_auth",
    "ckpt",
    "ckpt_dir",
    "controlnet_dir",
    "data_dir",
    "embeddings_dir",
    "hypernetwork_dir",
    "lora_dir",
    "medvram",
    "lowvram",
    "vae_dir",
    "xformers",
)
_ARGUMENTS = {
    "refiner": ("Refiner", "Checkpoint", "Switch at"),
    "seed": (
        "Seed",
        "Extra",
        "Variation seed",
        "Variation strength",
        "Resize seed from width",
        "Resize seed from height",
    ),
    "sampler": ("Sampling steps", "Sampling method", "Schedule type"),
}


@router.get("/options")
async def get_options(request: Request, caller: Reader) -> dict[str, Any]:
    """The options of the account, the model's title and hash among them."""
    place = Place(state_of(request), caller)

    def read() -> dict[str, Any]:
        options = place.options()
        named = options["sd_model_checkpoint"]
        try:
            entry = place.models().find(str(named), "sd_model_checkpoint") if named else place.default_model()
        except LimnerError:  # gone since it was set: the client sees that, and may set another
            return options
        return {
            **options,
            "sd_model_checkpoint": names.title(entry),
            "sd_checkpoint_hash": entry.sha256 or "",
        }

    return await in_thread(read)


@router.post("/options")
async def set_options(request: Request, caller: Submitter) -> JSONResponse:
    """Set options of the account. Clients may send back all that they got, with one changed."""
    place = Place(state_of(request), caller)
    await in_thread(place.keep_options, await read_object(request))
    return JSONResponse(None)


@router.get("/sd-models")
async def list_models(request: Request, caller: Reader) -> list[dict[str, Any]]:
    """The models."""
    models = await in_thread(Place(state_of(request), caller).models)
    return models.listed()


@router.get("/samplers")
async def list_samplers(caller: Reader) -> list[dict[str, Any]]:
    """The samplers."""
    return names.samplers()


@router.get("/schedulers")
async def list_schedulers(caller: Reader) -> list[dict[str, Any]]:
    """The sigma schedules."""
    return names.schedulers()


@router.get("/upscalers")
async def list_upscalers(caller: Reader) -> list[dict[str, Any]]:
    """The upscalers of pixels."""
    return names.upscalers()


@router.get("/latent-upscale-modes")
async def list_latent_upscale_modes(caller: Reader) -> list[dict[str, str]]:
    """The upscalers of latents."""
    return names.latent_upscale_modes()


@router.get("/loras")
async def list_loras(request: Request, caller: Reader) -> list[dict[str, Any]]:
    """LoRAs and similar adapters, by the names that prompts use."""
    return [
        {
            "name": names.stem(entry).rpartition("/")[2],
            "alias": names.stem(entry),
            "path": names.file_name(entry),
            "metadata": {"trigger_words": list(entry.trigger_words)} if entry.trigger_words else {},
        }
        for entry in await _entries(request, "lora")
    ]


@router.get("/embeddings")
async def list_embeddings(request: Request, caller: Reader) -> dict[str, Any]:
    """The textual inversions."""
    found = {}
    for entry in await _entries(request, "embedding"):
        shape = _WIDTHS.get(entry.family, 768)
        found[names.stem(entry).rpartition("/")[2]] = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": shape,
            "vectors": max(1, entry.parameters // shape),
        }
    return {"loaded": found, "skipped": {}}


@router.get("/prompt-styles")
async def list_styles(request: Request, caller: Reader) -> list[dict[str, Any]]:
    """The styles."""
    files = state_of(request).settings.styles_files

    def read() -> list[dict[str, Any]]:
        known = {style.name: style for file in files for style in read_styles(file)}
        return [
            {"name": one.name, "prompt": one.prompt, "negative_prompt": one.negative_prompt}
            for one in known.values()
        ]

    return await in_thread(read)


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/extensions")
async def list_nothing(caller: Reader) -> list[dict[str, Any]]:
    """Lists of what there is none of. Each model has its own autoencoder."""
    return []


@router.get("/scripts")
async def list_scripts(caller: Reader) -> dict[str, list[str]]:
    """The always-on scripts; there are no selectable ones."""
    return {"txt2img": list(KNOWN), "img2img": list(KNOWN)}


@router.get("/script-info")
async def describe_scripts(caller: Reader) -> list[dict[str, Any]]:
    """The scripts with their arguments, for either kind of request."""
    return [
        {
            "name": name,
            "is_alwayson": True,
            "is_img2img": is_img2img,
            "args": [
                {
                    "label": label,
                    "value": None,
                    "minimum": None,
                    "maximum": None,
                    "step": None,
                    "choices": None,
                }
                for label in (_ARGUMENTS[name] if name in BUILT_IN else ())
            ],
        }
        for is_img2img in (False, True)
        for name in KNOWN
    ]


@router.get("/cmd-flags")
async def list_flags(caller: Reader) -> dict[str, None]:
    """The flags that clients look for, none of which is set."""
    return dict.fromkeys(_FLAGS)


@router.get("/memory")
async def memory(request: Request, caller: Reader) -> dict[str, Any]:
    """Bytes of the machine's memory. What a device has is in the metrics."""
    return {"ram": await in_thread(_memory), "cuda": {"error": "unavailable"}}


def _memory() -> dict[str, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    return {"free": free, "used": total - free, "total": total}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
@router.post("/refresh-embeddings")
async def refresh(request: Request, caller: Submitter) -> JSONResponse:
    """Search the folders again."""
    await in_thread(state_of(request).catalogue.refresh)
    return JSONResponse(None)


@router.post("/unload-checkpoint")
@router.post("/reload-checkpoint")
async def load_model(caller: Submitter) -> dict[str, Any]:
    """Nothing: workers keep in memory what is used."""
    return {}


async def _entries(request: Request, kind: Any) -> list[Entry]:
    entries = await in_thread(state_of(request).catalogue.entries, kind)
    return [entry for entry in entries if entry.problem is None]
