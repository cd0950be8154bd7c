"""Always-on scripts of a request: ControlNet's units, and the built-in Refiner, Seed and Sampler.

A script that is not known is refused, with the list of those that are, unless it is switched off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image
from pydantic import Field, ValidationError

from limner.errors import InvalidRequest
from limner.images.opening import to_rgb

from .bodies import Body, Int
from .errors import Refusal
from .pictures import MAX_PIXELS, decoded, fitted, is_sensible, opened, source, url_of

CONTROLNET = "controlnet"
BUILT_IN = ("refiner", "seed", "sampler")
KNOWN = (CONTROLNET, *BUILT_IN)
"""Titles of the always-on scripts that there are, in lower case."""

_OFF = (None, False, 0, "", "false", "False", "None", "none")
_MODES = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "guess",
    "0": "balanced",
    "1": "prompt",
    "2": "guess",
}
_RESIZE_MODES = {
    "0": 0,
    "just resize": 0,
    "1": 1,
    "crop and resize": 1,
    "inner fit (scale to fit)": 1,
    "scale to fit (inner fit)": 1,
    "2": 2,
    "resize and fill": 2,
    "outer fit (shrink to fit)": 2,
    "envelope (outer fit)": 2,
}
_IP_ADAPTER = "ip-adapter"
_INPAINT = ("inpaint", "inpaint_only", "inpaint_only+lama", "inpaint_global_harmonious")


class Unit(Body):
    """A unit of ControlNet."""

    enabled: bool | None = None
    module: str = "none"
    model: str = "None"
    weight: float = 1.0
    image: str | dict[str, Any] | None = None
    input_image: str | None = None
    mask: str | None = None
    mask_image: str | None = None
    resize_mode: str = "Crop and Resize"
    processor_res: Int = -1
    threshold_a: float = -1.0
    threshold_b: float = -1.0
    guidance_start: float = Field(0.0, ge=0, le=1)
    guidance_end: float = Field(1.0, ge=0, le=1)
    guidance: float | None = None
    control_mode: str = "Balanced"
    pixel_perfect: bool = False
    hr_option: str = "Both"
    save_detected_map: bool = True
    advanced_weighting: list[Any] | None = None

    @property
    def picture(self) -> str | None:
        """Its image in base64; None where it has none."""
        given = self.image if self.image else self.input_image
        found = given.get("image") if isinstance(given, dict) else given
        return found if isinstance(found, str) and found.strip() else None

    @property
    def masked(self) -> bool:
        """Whether it has a mask of its own."""
        inner = self.image.get("mask") if isinstance(self.image, dict) else None
        return bool(self.mask or self.mask_image or inner)

    @property
    def has_model(self) -> bool:
        """Whether it names a model."""
        return self.model.strip().lower() not in ("", "none")

    @property
    def on(self) -> bool:
        """Whether it is to be used. One that does not say so is, if it has a model or an image."""
        something = self.has_model or self.picture is not None
        return something if self.enabled is None else self.enabled and something


class Networks(Protocol):
    """Finds what units name."""

    def control(self, name: str) -> str:
        """Catalogue's name of a control network. Raises Refusal."""

    def image_prompt(self, name: str) -> str:
        """Catalogue's name of an IP-Adapter. Raises Refusal."""


@dataclass(frozen=True)
class DetectedMap:
    """A control image that follows the images in an answer.

    Attributes:
        image: Data URL of the image that it is made from.
        preprocessor: How it is made, as a `Control` has it.
    """

    image: str = field(repr=False)
    preprocessor: str


@dataclass
class Scripts:
    """What the always-on scripts of a request ask for.

    Attributes:
        controls, image_prompts: Values of these fields of the request.
        maps: Control images to answer with.
        body: Fields of the body that Refiner, Seed and Sampler set.
        notes: What is not done as the request says.
    """

    controls: list[dict[str, Any]] = field(default_factory=list)
    image_prompts: list[dict[str, Any]] = field(default_factory=list)
    maps: list[DetectedMap] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_scripts(
    given: Mapping[str, Any],
    networks: Networks,
    *,
    size: tuple[int, int] | None,
    init_image: str | None,
    inpainting: bool,
    max_pixels: int = MAX_PIXELS,
) -> Scripts:
    """What the always-on scripts of a request ask for.

    Args:
        given: Title -> {"args": […]}.
        size: Size of the images; None where the model's own counts.
        init_image: Data URL of img2img's image, which units without an image use.
        inpainting: Whether the request has a mask.
        max_pixels: Largest number of pixels of a unit's image.

    Raises:
        Refusal: A script that is not known and not switched off, or arguments that cannot be used.
    """
    found = Scripts()
    for name, value in given.items():
        args = _args(name, value)
        match name.strip().lower():
            case "controlnet":
                for index, unit in enumerate(args):
                    if not _is_off(unit):
                        _read_unit(unit, index, found, networks, size, init_image, inpainting, max_pixels)
            case "refiner":
                found.body |= _refiner(args)
            case "seed":
                found.body |= _seed(args)
            case "sampler":
                found.body |= _values(args, ("steps", "sampler_name", "scheduler"))
            case _ if switched_off(args):
                continue
            case _:
                raise Refusal(
                    f"always on script {name[:80]} not found",
                    hint=f"there are {', '.join(KNOWN)}",
                    status=422,
                    fields=("alwayson_scripts",),
                )
    return found


def switched_off(args: Sequence[Any]) -> bool:
    """Whether the arguments of a script that is not known say that it is not to be used."""
    if not args:
        return True
    first, rest = args[0], [one for one in args[1:] if isinstance(one, dict)]
    if isinstance(first, dict):
        return all(_is_off(one) for one in args if isinstance(one, dict))
    if first in _OFF:
        return True
    return first is True and bool(rest) and all(_is_off(one) for one in rest)


def _is_off(unit: Any) -> bool:
    if not isinstance(unit, dict):
        return unit in _OFF if isinstance(unit, str | bool | int | float | None) else False
    for key in ("enabled", "enable", "ad_tab_enable", "is_enabled"):
        if key in unit and unit[key] in _OFF:
            return True
    return "ad_model" in unit and unit["ad_model"] in _OFF


def _args(name: str, value: Any) -> list[Any]:
    if isinstance(value, Mapping) and "args" not in value:
        return []
    args = value.get("args") if isinstance(value, Mapping) else value
    if args is None:
        return []
    if isinstance(args, Mapping):
        return [dict(args)]
    if not isinstance(args, list):
        raise Refusal(
            f"the always on script {name[:80]} is {type(value).__name__}; expected an object with a list "
            "`args`",
            status=422,
            fields=("alwayson_scripts",),
        )
    return args


def _values(args: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in zip(names, args, strict=False) if value is not None}


def _refiner(args: Sequence[Any]) -> dict[str, Any]:
    if not args or args[0] in _OFF:
        return {}
    return _values(args[1:], ("refiner_checkpoint", "refiner_switch_at"))


def _seed(args: Sequence[Any]) -> dict[str, Any]:
    found = _values(args[:1], ("seed",))
    if len(args) > 1 and args[1] not in _OFF:
        names = ("subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h")
        found |= _values(args[2:], names)
    return found


def _read_unit(
    given: Any,
    index: int,
    found: Scripts,
    networks: Networks,
    size: tuple[int, int] | None,
    init_image: str | None,
    inpainting: bool,
    max_pixels: int,
) -> None:
    """Add a unit to the result. Raises Refusal."""
    where = f"alwayson_scripts.ControlNet.args.{index}"

    def refusal(message: str, name: str, hint: str | None = None) -> Refusal:
        return Refusal(f"{where}.{name} {message}", hint=hint, status=422, fields=("controls",))

    if not isinstance(given, Mapping):
        raise Refusal(f"{where} is no object", status=422, fields=("controls",))
    try:
        unit = Unit.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise refusal(f": {first['msg']}", ".".join(map(str, first["loc"]))) from None
    if not unit.on:
        return
    end = unit.guidance_end if unit.guidance is None else unit.guidance
    if unit.guidance_start >= end:
        raise refusal(
            f"is {unit.guidance_start} and guidance_end {end}; expected the lower one first", "guidance_start"
        )
    if not unit.has_model:
        raise refusal("is None; expected one of /controlnet/model_list", "model")
    image = _image(unit, where, init_image, size, max_pixels)
    module = unit.module.strip()
    steps = {"start": unit.guidance_start, "end": end, "weight": unit.weight}
    if unit.masked:
        found.notes.append(f"{where}.mask is not used: a control counts everywhere")
    if unit.hr_option.lower() not in ("both", "hiresfixoption.both"):
        found.notes.append(f"{where}.hr_option is {unit.hr_option[:40]}: a control counts in both passes")
    if unit.advanced_weighting:
        found.notes.append(f"{where}.advanced_weighting is not used")
    if module.lower().startswith(_IP_ADAPTER):
        found.image_prompts.append({"model": networks.image_prompt(unit.model), "images": (image,), **steps})
        return
    mode = _MODES.get(unit.control_mode.strip().lower())
    if mode is None:
        raise refusal(
            f"is {unit.control_mode[:40]!r}; expected Balanced, My prompt is more important or "
            "ControlNet is more important",
            "control_mode",
        )
    preprocessor = preprocessor_of(module, unit.threshold_a, unit.threshold_b, f"{where}.module")
    if preprocessor == "inpaint" and not inpainting:
        raise refusal(f"is {module}, which needs the mask of img2img", "module")
    if (
        unit.processor_res > 0
        and not unit.pixel_perfect
        and preprocessor not in ("none", "inpaint", "invert")
    ):
        found.notes.append(f"{where}.processor_res is not used: preprocessors work at the image's own size")
    found.controls.append(
        {
            "model": networks.control(unit.model),
            "image": image,
            "preprocessor": preprocessor,
            "mode": mode,
            **steps,
        }
    )
    if unit.save_detected_map and preprocessor != "inpaint":
        found.maps.append(DetectedMap(image, preprocessor))


def _image(
    unit: Unit, where: str, init_image: str | None, size: tuple[int, int] | None, max_pixels: int
) -> str:
    """Data URL of a unit's image, cropped or filled to the proportions of the image to be made."""
    if unit.picture is None:
        if init_image is None:
            raise Refusal(
                f"{where}.image is missing: the unit has a model, but no image",
                status=422,
                fields=("controls",),
            )
        return init_image
    url = source(decoded(unit.picture, f"{where}.image", max_pixels=max_pixels))
    mode = _RESIZE_MODES.get(unit.resize_mode.strip().lower().removeprefix("resizemode."))
    if mode is None:
        raise Refusal(
            f"{where}.resize_mode is {unit.resize_mode[:40]!r}; expected Just Resize, Crop and Resize or "
            "Resize and Fill",
            status=422,
            fields=("controls",),
        )
    if mode == 0 or size is None or not is_sensible(size):
        return url
    image = opened(url, f"{where}.image")
    if abs(image.width * size[1] - image.height * size[0]) <= max(size):
        return url  # the proportions are those of the image already
    return url_of(fitted(_plain(image), size, mode))


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB") else to_rgb(image)


def preprocessor_of(module: str, threshold_a: float, threshold_b: float, field: str) -> str:
    """A preprocessor with its options, as `Control.preprocessor` has them: "canny:100:200".

    Args:
        threshold_a, threshold_b: Its options; those beyond its sliders, such as -1, mean its defaults.
        field: Name of the request's field, for errors.

    Raises:
        Refusal: It is not known, or it is a network.
    """
    from limner.images.preprocess import PREPROCESSORS, preprocessor

    name = module.strip() or "none"
    if name.lower() in _INPAINT:
        return "inpaint"
    if name.lower().startswith("invert"):
        return "invert"
    try:
        ours, _ = preprocessor(name if name in PREPROCESSORS else name.lower())
    except InvalidRequest as error:
        known = ", ".join(modules())
        raise Refusal(
            f"{field}: {error.message}",
            hint=error.hint or f"there are {known}",
            status=422,
            fields=("controls",),
        ) from None
    values: list[float] = []
    for (low, high), threshold in zip(SLIDERS.get(ours, ()), (threshold_a, threshold_b), strict=False):
        if not low <= threshold <= high:
            break  # beyond its slider, as a client's value for another preprocessor
        values.append(threshold)
    if not values:
        return ours if ours == name else name.lower()
    return ":".join([ours, *(f"{value:g}" for value in values)])


SLIDERS: dict[str, tuple[tuple[float, float], ...]] = {
    "canny": ((1, 255), (1, 255)),
    "scribble": ((1, 64),),
    "tile": ((1, 8),),
    "blur": ((0.01, 64),),
    "threshold": ((0, 255),),
    "binary": ((0, 255),),
}
"""Ranges of threshold_a and threshold_b, by preprocessor; others have none."""


def modules() -> list[str]:
    """The preprocessors that there are."""
    from limner.images.preprocess import PREPROCESSORS

    return [*PREPROCESSORS, "inpaint_only", "ip-adapter-auto"]
