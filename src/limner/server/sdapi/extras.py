"""Routes about single images: upscaling, metadata, interrogation, and ControlNet's own."""

import io
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from PIL import Image
from pydantic import Field

from limner.errors import UnsupportedModel
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_all_texts
from limner.images.opening import to_rgb
from limner.images.picture import encode
from limner.server.auth import Reader, Submitter
from limner.server.state import ServerState, in_decoder, in_thread, state_of
from limner.service.identity import Principal

from . import names, pictures
from .api import Place, SdapiRoute, read_fields, read_object
from .bodies import Body, Int
from .delivery import text_of
from .errors import Refusal
from .maps import detected
from .units import SLIDERS, modules, preprocessor_of

router = APIRouter(route_class=SdapiRoute, include_in_schema=False)

_MAX_OUTPUT = 64_000_000  # pixels of an upscaled image
_MAX_PICTURES = 100  # of one request
_MAX_RESOLUTION = 4096
_UPSCALERS = {"none": None, "lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_DEFAULTS = {
    "Clip skip": "1",
    "Hires resize-1": "0",
    "Hires resize-2": "0",
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Schedule type": "Automatic",
    "RNG": "GPU",
    "Emphasis": "Original",
}
"""What AUTOMATIC1111 adds to parameters that do not say it."""


class ExtrasBody(Body):
    """The fields of the extras that single images and several share."""

    resize_mode: Int = 0
    show_extras_results: bool = True
    gfpgan_visibility: float = Field(0.0, ge=0, le=1)
    codeformer_visibility: float = Field(0.0, ge=0, le=1)
    codeformer_weight: float = Field(0.0, ge=0, le=1)
    upscaling_resize: float = Field(2.0, gt=0, le=64)
    upscaling_resize_w: Int = Field(512, ge=1, le=16_384)
    upscaling_resize_h: Int = Field(512, ge=1, le=16_384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = Field(0.0, ge=0, le=1)
    upscale_first: bool = False


class ExtraSingleBody(ExtrasBody):
    """The body of extra-single-image."""

    image: str = ""


class NamedPicture(Body):
    """An image among several."""

    data: str
    name: str = ""


class ExtraBatchBody(ExtrasBody):
    """The body of extra-batch-images."""

    imageList: list[NamedPicture] = Field(max_length=_MAX_PICTURES)


class PngInfoBody(Body):
    """The body of png-info."""

    image: str


class InterrogateBody(Body):
    """The body of interrogate."""

    image: str = ""
    model: str = "clip"


class DetectBody(Body):
    """The body of `/controlnet/detect`; `controlnet_images` is an old name."""

    controlnet_module: str = "none"
    controlnet_input_images: list[str] = Field([], max_length=_MAX_PICTURES)
    controlnet_images: list[str] = Field([], max_length=_MAX_PICTURES)
    controlnet_processor_res: Int = Field(512, le=_MAX_RESOLUTION)
    controlnet_threshold_a: float = 64.0
    controlnet_threshold_b: float = 64.0


@router.post("/sdapi/v1/extra-single-image")
async def extra_single(request: Request, caller: Submitter) -> dict[str, Any]:
    """An image, enlarged."""
    body = read_fields(ExtraSingleBody, await read_object(request))
    [image] = await _extras(state_of(request), caller, body, {"image": body.image})
    return {"image": image, "html_info": _html(body)}


@router.post("/sdapi/v1/extra-batch-images")
async def extra_batch(request: Request, caller: Submitter) -> dict[str, Any]:
    """Several images, enlarged."""
    body = read_fields(ExtraBatchBody, await read_object(request))
    given = {f"imageList.{index}.data": one.data for index, one in enumerate(body.imageList)}
    images = await _extras(state_of(request), caller, body, given)
    return {"images": images, "html_info": _html(body)}


@router.post("/sdapi/v1/png-info")
async def png_info(request: Request, caller: Reader) -> dict[str, Any]:
    """The generation metadata of an image."""
    body = read_fields(PngInfoBody, await read_object(request))
    limit = _limit(request)

    def read() -> dict[str, Any]:
        texts = read_all_texts(io.BytesIO(pictures.decoded(body.image, "image", max_pixels=limit)))
        info = texts.parameters
        parameters: Mapping[str, str] = {**_DEFAULTS, **parse_infotext(info)} if info else {}
        items = {key: value for key, value in texts.info.items() if key != "parameters"}
        return {"info": info, "items": items, "parameters": parameters}

    return await in_decoder(state_of(request), read)


@router.post("/sdapi/v1/interrogate")
async def interrogate(request: Request, caller: Submitter) -> dict[str, Any]:
    """A text for an image, by the probe of the shipped model's world: other images have none."""
    body = read_fields(InterrogateBody, await read_object(request))
    if body.model.strip().lower() not in ("", "clip"):
        raise Refusal(
            f"Model not found: {body.model[:40]!r}", hint="there is clip", status=404, fields=("model",)
        )
    data = await in_thread(pictures.decoded, body.image, "image", max_pixels=_limit(request))
    try:
        answer, _ = await state_of(request).hub.call("interrogate", {}, [data])
    except UnsupportedModel as error:
        raise Refusal(f"Model not found: {error.message}", hint=error.hint, status=404) from None
    return {"caption": answer["prompt"]}


@router.get("/controlnet/version")
async def controlnet_version(caller: Reader) -> dict[str, int]:
    """Version of ControlNet's API."""
    return {"version": 3}


@router.get("/controlnet/settings")
async def controlnet_settings(caller: Reader) -> dict[str, int]:
    """How many units a page shows; a request may have more."""
    return {"control_net_unit_count": 3}


@router.get("/controlnet/model_list")
async def controlnet_models(
    request: Request, caller: Reader, update: Annotated[bool, Query()] = True
) -> dict[str, list[str]]:
    """The control networks and IP-Adapters."""
    found = await in_thread(Place(state_of(request), caller).networks)
    return {"model_list": [names.network_title(entry) for entry in found]}


@router.get("/controlnet/module_list")
async def controlnet_modules(caller: Reader, alias_names: Annotated[bool, Query()] = False) -> dict[str, Any]:
    """The preprocessors."""
    found = modules()
    details = {
        name: {"model_free": name == "none", "sliders": [_slider(*one) for one in SLIDERS.get(name, ())]}
        for name in found
    }
    return {"module_list": found, "module_detail": details}


@router.get("/controlnet/control_types")
async def controlnet_types(request: Request, caller: Reader) -> dict[str, Any]:
    """Preprocessors and networks that belong together, by the names of both."""
    found = await in_thread(Place(state_of(request), caller).networks)
    titles = [names.network_title(entry) for entry in found]
    types = {"All": _type(modules(), titles)}
    for name in ("Canny", "Lineart", "Scribble", "SoftEdge", "Tile", "Shuffle", "IP-Adapter"):
        own = [one for one in modules() if one.startswith(name.lower())]
        fitting = [title for title in titles if name.lower() in title.lower().replace("_", "-")]
        types[name] = _type(["none", *own], fitting)
    return {"control_types": types}


@router.post("/controlnet/detect")
async def controlnet_detect(request: Request, caller: Submitter) -> dict[str, Any]:
    """Control images of images."""
    body = read_fields(DetectBody, await read_object(request))
    given = body.controlnet_input_images or body.controlnet_images
    if body.controlnet_module.strip().lower().startswith(("ip-adapter", "inpaint")):
        raise Refusal(
            f"Module not available: {body.controlnet_module[:40]} gives no image",
            hint=f"there are {', '.join(modules())}",
            status=422,
            fields=("controlnet_module",),
        )
    preprocessor = preprocessor_of(
        body.controlnet_module,
        body.controlnet_threshold_a,
        body.controlnet_threshold_b,
        "controlnet_module: Module not available",
    )
    if not given:
        raise Refusal("No image selected", status=422, fields=("controlnet_input_images",))

    files = [
        await in_thread(
            pictures.decoded, text, f"controlnet_input_images.{index}", max_pixels=_limit(request)
        )
        for index, text in enumerate(given)
    ]
    shorter = max(0, body.controlnet_processor_res) if preprocessor != "none" else 0
    images = await detected(state_of(request), caller, files, preprocessor, shorter)
    return {"images": images, "info": "Success"}


def _type(its_modules: list[str], titles: list[str]) -> dict[str, Any]:
    return {
        "module_list": its_modules,
        "model_list": ["None", *titles],
        "default_option": its_modules[min(1, len(its_modules) - 1)],
        "default_model": titles[0] if titles else "None",
    }


def _slider(low: float, high: float) -> dict[str, Any]:
    return {"name": "Threshold", "min": low, "max": high, "value": low}


def _limit(request: Request) -> int:
    """Largest number of pixels of an input image."""
    return state_of(request).settings.max_image_pixels


def _html(body: ExtrasBody) -> str:
    if body.gfpgan_visibility or body.codeformer_visibility:
        return "<p>Faces were not restored: there is no model for it.</p>"
    return ""


async def _extras(
    state: ServerState, caller: Principal, body: ExtrasBody, given: Mapping[str, str]
) -> list[str]:
    """Base64 of images, enlarged as the body says.

    Args:
        given: Images in base64 by the fields that hold them.

    Raises:
        Refusal: An image cannot be enlarged.
        LimnerError: As `ImageGate.passed`.
    """
    limit, texts = state.settings.max_image_pixels, list[str]()
    for field, text in given.items():
        data = await in_thread(pictures.decoded, text, field, max_pixels=limit)
        large = await in_decoder(state, _extra, body, data, field)
        passed = await state.gate.passed(caller, [large], made_from=[data])
        texts += map(text_of, passed)
    return texts


def _extra(body: ExtrasBody, data: bytes, field: str) -> bytes:
    """The PNG of an image, enlarged as the body says. Raises Refusal."""
    if body.resize_mode not in (0, 1):
        raise Refusal(f"resize_mode is {body.resize_mode}; expected 0 or 1", fields=("resize_mode",))
    image = pictures.opened(pictures.source(data), field)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = to_rgb(image)
    first = _upscaled(image, body, body.upscaler_1, "upscaler_1")
    share = body.extras_upscaler_2_visibility
    if share and body.upscaler_2.strip().lower() not in ("", "none"):
        second = _upscaled(image, body, body.upscaler_2, "upscaler_2")
        first = Image.blend(first, second.resize(first.size, Image.Resampling.LANCZOS), share)
    return encode(first, "png")


def _upscaled(image: Image.Image, body: ExtrasBody, upscaler: str, field: str) -> Image.Image:
    name = upscaler.strip().lower() or "none"
    if name not in _UPSCALERS:
        raise Refusal(
            f"{field} is {upscaler[:60]!r}; expected one of {', '.join(names.PIXEL_UPSCALERS)}",
            fields=(field,),
        )
    filter = _UPSCALERS[name]
    if filter is None:
        return image
    width, height = body.upscaling_resize_w, body.upscaling_resize_h
    scale = body.upscaling_resize
    if body.resize_mode == 1:
        sides = width / image.width, height / image.height
        scale = max(sides) if body.upscaling_crop else min(sides)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if size[0] * size[1] > _MAX_OUTPUT:
        raise Refusal(
            f"the image would have {size[0]} x {size[1]} pixels; the limit is {_MAX_OUTPUT:,} in all",
            fields=("upscaling_resize",),
        )
    large = image.resize(size, filter)
    if body.resize_mode == 1 and body.upscaling_crop and large.size != (width, height):
        left, top = (large.width - width) // 2, (large.height - height) // 2
        large = large.crop((left, top, left + width, top + height))
    return large
