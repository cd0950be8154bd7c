"""Reads AUTOMATIC1111's parameters text, as webui, Forge and the many programs that copy them write it.

Each field is taken over, or changes nothing, or is named in a warning that says what to do.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.errors import InvalidPicture, InvalidRequest
from limner.request.names import own_sigma_schedule

from ..a1111_write import CFG_PP, CFG_PP_SCALE, CONTROL_MODES, EMPHASES, TIMESTEP_SAMPLERS, eta_key
from ..infotext import parse_infotext, sampler_from_a1111
from .base import (
    IDLE,
    NamedModel,
    NotTaken,
    ReadRequest,
    Texts,
    grouped,
    hash_digits,
    shortened,
    without_suffix,
)

NAME = "AUTOMATIC1111"


def matches(texts: Texts) -> bool:
    return bool(texts.parameters)


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request in a parameters text.

    Args:
        overriding: Fields of the request and options of `limner.load` that are given besides, and replace
            what the text says. With an image or a mask among them, the text's fields about one count.

    Raises:
        InvalidPicture: the text is another program's, or a number in it is none.
    """
    if texts.parameters.lstrip().startswith("{"):
        _refuse_json(texts.parameters, texts.name)
    return _Source(parse_infotext(texts.parameters), texts.name, frozenset(overriding)).read()


def _refuse_json(text: str, name: str) -> None:
    """Raise InvalidPicture if a text is JSON, which would be taken for a prompt."""
    try:
        json.loads(text)
    except ValueError:
        return
    raise InvalidPicture(
        f"{name} has parameters in JSON, not in the grammar of AUTOMATIC1111's webui",
        hint="have its program write that grammar, or give the prompt and options yourself",
    )


# Fields of a request by webui's, and the types of their numbers.
_NUMBERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Clip skip": ("clip_skip", int),
    "Hires upscale": ("hires_scale", float),
    "Hires resize-1": ("hires_width", int),
    "Hires resize-2": ("hires_height", int),
    "Hires steps": ("hires_steps", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "NGMS": ("guidance_skip", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", float),
    "Sigma noise": ("s_noise", float),
}
_TEXTS = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Hires prompt": "hires_prompt",
    "Hires negative prompt": "hires_negative_prompt",
    "Hires upscaler": "hires_upscaler",
    "Hires sampler": "hires_sampler",
    "Hires schedule type": "hires_sigma_schedule",
}
# Fields without which a request is incomplete.
_EXPECTED = {**{key: key for key in ("Steps", "Sampler", "CFG scale", "Seed")}, "Size-1": "Size"}

# Fields that change no image. Adapters are found by their names in the prompt.
_IDLE = {
    "Version",
    "User",
    "Model hash",
    "VAE hash",
    "Lora hashes",
    "Hashes",
    "Template",
    "Negative Template",
    "Wildcard prompt",
    "Wildcard negative prompt",
    "Styles",
    "Batch size",
    "Batch pos",
    "Created Date",
    "Civitai resources",
    "Civitai metadata",
    "Watermark",
}
_OF_FILES = {"Model", "Model hash", "Lora hashes", "Hashes"}  # by which the files are found
_CIVITAI = "Civitai resources"
_EDITING = re.compile(r"\[[^\[\]]*[:|][^\[\]]*\]")  # [from:to:when] and [one|other]
_SAME = ("Use same sampler", "Use same scheduler", "Use same checkpoint", "Use same choices")  # as no value
# Fields with the value that webui has by default.
_USUAL = {
    ("Emphasis", "Original"),
    ("VAE Encoder", "Full"),
    ("VAE Decoder", "Full"),
    ("FP8 weight", "Disable"),
    ("Face restoration", "None"),
    ("Tiling", "False"),
    ("UniPC skip type", "time_uniform"),
    ("UniPC lower order final", "True"),
    ("Mask mode", "Inpaint masked"),
    ("Masked content", "original"),
    ("Inpaint area", "Whole picture"),
}

# Fields of image-to-image, whose image the text does not have.
_OF_PICTURES = {
    "Denoising strength": "`strength`",
    "Image CFG scale": "`image_guidance_scale`",
    "Init image hash": "",
    "Mask blur": "`mask_blur`",
    "Inpaint area": "`inpaint_area`",
    "Masked area padding": "`mask_padding`",
    "Mask mode": "",
    "Masked content": "",
    "Conditional mask weight": "",
    "Noise multiplier": "",
}

# Fields that Limner takes otherwise: names, what to give, and the option that makes the warning needless.
_INSTEAD = (
    (("VAE",), "give the autoencoder's file with `vae`", "vae"),
    (("Refiner", "Refiner switch at"), "give `refiner` and `refiner_start`", "refiner"),
    (
        ("TI hashes", "TI"),
        "give the folder of these textual inversions with `embedding_dirs`",
        "embedding_dirs",
    ),
    (("Skip Early CFG",), "give `guidance_interval`", "guidance_interval"),
    (("Script", "X Type", "X Values", "Y Type", "Y Values", "Z Type", "Z Values"), "use limner grid", ""),
)


class _Source:
    """A parsed parameters text on its way to a request.

    Args:
        given: Result of `parse_infotext`.
    """

    def __init__(self, given: Mapping[str, str], name: str, overriding: frozenset[str]) -> None:
        self._given = {key: value for key, value in given.items() if value not in _SAME}
        self._name, self._overriding = name, overriding
        self._left = dict(self._given)  # what is not yet accounted for
        self._unknown: dict[str, str] = {}  # field -> name of a sampler or sigma schedule
        self._refused: InvalidRequest | None = None

    def read(self) -> ReadRequest:
        """The request. Raises InvalidPicture for a number that is none."""
        fields = self._fields()
        warnings: list[str] = []
        not_taken: list[NotTaken] = []
        for warning, said in self._warnings():
            warnings.append(f"{self._name}: {warning}")
            # What names files is for those who look for them.
            own = {key: value for key, value in said.items() if key not in _OF_FILES}
            not_taken += [NotTaken(key, value, warning) for key, value in own.items()]
            if not said:
                not_taken.append(NotTaken("", None, warning))
        not_taken += [
            NotTaken(key, value, IDLE, idle=True)
            for key, value in self._given.items()
            if (key in _IDLE or (key, value) in _USUAL) and key not in _OF_FILES
        ]
        return ReadRequest(
            fields,
            tuple(warnings),
            tuple(not_taken),
            self._model(),
            self._hashes(),
            self._unknown,
            self._refused,
        )

    def _model(self) -> NamedModel | None:
        """The checkpoint that the text names."""
        name, digest = self._given.get("Model", ""), hash_digits(self._given.get("Model hash"))
        return NamedModel(without_suffix(name), digest) if name or digest else None

    def _hashes(self) -> dict[str, str]:
        """Adapter -> first digits of its hash, from both fields that programs write."""
        pairs = (pair.rpartition(":") for pair in self._given.get("Lora hashes", "").split(","))
        found = {name.strip(): digits.strip() for name, _, digits in pairs}
        listed = Texts().json(self._given.get("Hashes"))
        found |= {key[len("lora:") :]: digits for key, digits in listed.items() if key.startswith("lora:")}
        return {name: hash_digits(digits) for name, digits in found.items() if name}

    def _fields(self) -> dict[str, Any]:
        """The fields of the request that the text has."""
        self._first_pass_size()
        try:
            fields: dict[str, Any] = self._samplers()
        except InvalidRequest as error:
            fields, self._refused = {}, error
            given = {
                "sampler": self._given.get("Sampler"),
                "sigma_schedule": self._given.get("Schedule type"),
            }
            self._unknown = {name: value for name, value in given.items() if value not in (None, "Automatic")}
        fields |= {name: self._take(key) for key, name in _TEXTS.items() if key in self._left}
        numbers = dict(_NUMBERS)
        numbers[eta_key(self._given.get("Sampler", ""))] = ("eta", float)
        if self._given.keys() & {"Hires upscaler", "Hires upscale", "Hires resize-1"}:
            numbers["Denoising strength"] = ("hires_strength", float)
        elif "image" in self._overriding:
            numbers["Denoising strength"] = ("strength", float)
        if {"image", "mask"} <= self._overriding:
            numbers["Mask blur"] = ("mask_blur", float)
            if self._given.get("Inpaint area") == "Only masked":
                del self._left["Inpaint area"]
                fields["inpaint_area"] = "masked"
                numbers["Masked area padding"] = ("mask_padding", int)
        for key, (name, kind) in numbers.items():
            if key in self._left:
                fields[name] = self._number(key, kind)
        for ours, name in EMPHASES.items():
            if self._given.get("Emphasis") == name:
                fields["emphasis"] = ours
                del self._left["Emphasis"]
        if self._given.get("Tiling") == "True":
            fields["tiling"] = "xy"
            del self._left["Tiling"]
        fields["noise"] = "cpu" if self._given.get("RNG") == "CPU" else "gpu"
        if self._given.get("RNG") in ("CPU", "GPU", "NV"):
            del self._left["RNG"]
        return self._sensible(fields)

    def _sensible(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields without zeros that mean "not set" in webui."""
        if fields.get("sampler") == CFG_PP and "guidance_scale" in fields:
            fields["guidance_scale"] /= CFG_PP_SCALE
        idle = {"hires_steps", "hires_width", "hires_height", "hires_scale", "s_tmax", "clip_skip"}
        if not fields.get("variation_strength"):
            fields.pop("variation_seed", None)
        if not fields.get("s_churn"):
            fields = {name: value for name, value in fields.items() if name not in ("s_tmin", "s_tmax")}
        return {name: value for name, value in fields.items() if value != 0 or name not in idle}

    def _take(self, key: str) -> str:
        return self._left.pop(key)

    def _number(self, key: str, kind: Callable[[str], float]) -> float:
        value = self._take(key)
        try:
            return kind(value)
        except ValueError:
            raise InvalidPicture(f"{self._name} says {key}: {value!r}, expected a number") from None

    def _samplers(self) -> dict[str, str]:
        """The samplers and sigma schedules of both passes that are not overridden."""
        fields = {}
        name, schedule = self._left.pop("Sampler", None), self._left.pop("Schedule type", None)
        if "sigma_schedule" in self._overriding:
            schedule = None
        if name is not None and "sampler" not in self._overriding:
            sampler, sigmas = sampler_from_a1111(name, schedule)
            if sampler in TIMESTEP_SAMPLERS and not self._given.get("Version", "").startswith("limner"):
                sigmas = SAMPLER_TABLE[sampler].automatic
            fields = {
                "sampler": self._unipc() if sampler == "unipc_bh1" else sampler,
                "sigma_schedule": sigmas,
            }
        elif schedule and schedule != "Automatic":
            fields = {"sigma_schedule": own_sigma_schedule(schedule)}
        if self._given.get("Hires schedule type") == "Automatic":
            del self._left["Hires schedule type"]
            if "hires_sampler" not in self._overriding:
                own = self._given.get("Hires sampler") or name or "Euler"
                fields["hires_sigma_schedule"] = sampler_from_a1111(own)[1]
        return fields

    def _unipc(self) -> str:
        """Limner's name for the variant of UniPC."""
        keys = ("UniPC variant", "UniPC order")
        variant, order = (self._left.get(key, usual) for key, usual in zip(keys, ("bh1", "3"), strict=True))
        known = {("bh1", "3"): "unipc_bh1", ("bh2", "3"): "unipc_bh2", ("bh2", "2"): "unipc"}
        if (variant, order) in known:
            for key in keys:
                self._left.pop(key, None)
        return known.get((variant, order), "unipc_bh2" if variant == "bh2" else "unipc_bh1")

    def _first_pass_size(self) -> None:
        """Replace fields of old webui versions, whose Size is that of the second pass."""
        first = [self._left.pop(f"First pass size-{axis}", None) for axis in (1, 2)]
        size = [self._given.get(f"Size-{axis}") for axis in (1, 2)]
        if None in first or None in size:
            return
        width, height = (int(side) for side in first if side is not None)
        whole = [int(side) for side in size if side is not None]
        if 0 in whole:
            return  # which the request will refuse
        if not (width and height):  # as many pixels as 512 x 512 has, in steps of 64
            scale = math.sqrt(512 * 512 / math.prod(whole))
            width, height = (math.ceil(scale * side / 64) * 64 for side in whole)
        sizes = {"Size-1": width, "Size-2": height, "Hires resize-1": whole[0], "Hires resize-2": whole[1]}
        old = {**{key: str(side) for key, side in sizes.items()}, "Hires upscaler": "Latent"}
        self._given, self._left = self._given | old, self._left | old

    def _warnings(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Warnings for everything that the fields do not contain, each with the values that it is about."""
        for key in [key for key, value in self._left.items() if key in _IDLE or (key, value) in _USUAL]:
            del self._left[key]
        before = dict(self._left)
        for warning in self._particular():
            yield warning, {key: value for key, value in before.items() if key not in self._left}
            before = dict(self._left)
        if rest := grouped(self._left.items()):
            yield f"not taken over, though it may have changed the image: {rest}", self._left

    def _particular(self) -> Iterator[str]:
        """Warnings that say what to do, each yielded when its values are no longer left."""
        yield from self._nothing_said()
        yield from self._timelines()
        yield from self._of_model()
        yield from self._of_picture()
        for key in list(self._left):
            yield from self._of_unit(key)
        yield from self._of_civitai()
        for keys, advice, option in _INSTEAD:
            said = self._said(keys)
            if said and option not in self._overriding:
                yield f"{said} is not taken over: {advice}"

    def _nothing_said(self) -> Iterable[str]:
        lacking = [name for key, name in _EXPECTED.items() if key not in self._given]
        if lacking:
            yield f"it does not say {', '.join(lacking)}: the model's defaults and a random seed are used"

    def _timelines(self) -> Iterable[str]:
        """webui 1.6 changed how it counts the steps of prompt editing, above all in a hires pass."""
        old = self._left.pop("Old prompt editing timelines", None) == "True"
        version = re.match(r"v?(\d+)\.(\d+)", self._given.get("Version", ""))
        if version and (int(version[1]), int(version[2])) < (1, 6):
            old = True
        prompts = (self._given.get(key, "") for key in _TEXTS if "prompt" in key.lower())
        if old and any(_EDITING.search(prompt) for prompt in prompts):
            yield (
                "its prompts change on the way ([from:to:when]) by the timelines that webui had before 1.6, "
                "and are read by those it has since: the steps of a hires pass are counted otherwise"
            )

    def _of_model(self) -> Iterable[str]:
        named, checkpoint = self._left.pop("Model", None), self._left.pop("Hires checkpoint", None)
        if "model" not in self._overriding:
            called = "whose name it does not say" if named is None else f"{shortened(named)}"
            yield f"its model, {called}, is not looked for: give `model`"
        if checkpoint is not None:
            yield f"Hires checkpoint: {shortened(checkpoint)} is not taken over: both passes have one model"
        scale = self._left.get("Hires CFG Scale")
        if scale is not None and scale == self._given.get("CFG scale"):
            del self._left["Hires CFG Scale"]

    def _of_picture(self) -> Iterable[str]:
        options = ["`image`", "`mask`"] if self._left.keys() & {"Mask blur", "Mask mode"} else ["`image`"]
        options += [option for key, option in _OF_PICTURES.items() if option and key in self._left]
        if "image" in self._overriding:
            self._left.pop("Init image hash", None)
        elif said := self._said(_OF_PICTURES):
            yield f"it began with an image that it does not hold ({said}): give {', '.join(options)}"

    def _of_civitai(self) -> Iterable[str]:
        """Adapters of images that were generated at Civitai, whose prompts do not name them."""
        adapters = [
            str(one.get("modelName") or one.get("modelVersionId"))
            for one in _resources(self._given.get(_CIVITAI, ""))
            if str(one.get("type")).lower() in ("lora", "lycoris", "dora", "locon")
        ]
        if adapters and "<l" not in self._given.get("Prompt", "") and "loras" not in self._overriding:
            yield f"its adapters, {', '.join(adapters)}, are not looked for: give `loras`"

    def _of_unit(self, key: str) -> Iterable[str]:
        """A warning for a ControlNet or IP-Adapter, with the value of the field that asks for the same."""
        if not re.fullmatch(r"ControlNet \d+", key):
            return
        unit = _read_unit(self._take(key))
        if unit is not None and unit.field in self._overriding:
            return
        yield f"{key} is not taken over, as it does not hold its image: give " + (
            "`controls` yourself" if unit is None else f"{unit.option}{unit.more}"
        )

    def _said(self, keys: Iterable[str]) -> str:
        """The given fields as text; they count as handled."""
        return ", ".join(f"{key}: {shortened(self._take(key))}" for key in keys if key in self._left)


def _resources(text: str) -> list[dict[str, Any]]:
    """The models that an image from Civitai lists."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


@dataclass(frozen=True)
class _Unit:
    """A unit of webui's ControlNet extension.

    Attributes:
        field: Field of the request for such a unit.
        option: Text that asks for the same in Limner.
        more: What that leaves out, to append to the text.
    """

    field: str
    option: str
    more: str


# A key begins with a letter; a value may hold commas, as names of files do.
_PART = re.compile(r"([A-Za-z][\w /-]*):\s*(\([^)]*\)|.*?)\s*(?=,\s*[A-Za-z][\w /-]*:|$)")
# Keys of a unit that the text contains or makes needless; values that change nothing.
_OF_UNIT = {"module", "preprocessor", "model", "weight", "guidance start", "guidance end", "starting/ending"}
_OF_UNIT |= {"control mode", "threshold a", "threshold b", "pixel perfect"}
_USUAL_IN_UNIT = {
    ("resize mode", "just resize"),
    ("hr option", "both"),
    ("low vram", "true"),
    ("low vram", "false"),
}


def _read_unit(text: str) -> _Unit | None:
    """A unit in today's form or that of 2023; None for any other text."""
    said = {key.strip().lower(): value.strip() for key, value in _PART.findall(text)}
    module, name = said.get("module", said.get("preprocessor", "none")), said.get("model", "None")
    start, end = said.get("guidance start", "0"), said.get("guidance end", "1")
    if span := re.fullmatch(r"\((.+),(.+)\)", said.get("starting/ending", "")):
        start, end = span.groups()
    parts = ["model=" + re.sub(r" \[\w+\]$", "", name), "image=PICTURE"]
    shares = []
    for key, value, usual in (("weight", said.get("weight", "1"), 1), ("start", start, 0), ("end", end, 1)):
        try:
            shares += [f"{key}={float(value):g}"] if float(value) != usual else []
        except ValueError:
            return None
    if said.get("pixel perfect") == "True":  # as in Limner, whatever size is given with it
        said.pop("processor res", None)
    idle = [(key, value) for key, value in said.items() if (key, value.lower()) in _USUAL_IN_UNIT]
    rest = {key: value for key, value in said.items() if key not in _OF_UNIT and (key, value) not in idle}
    more = f"; without its {', '.join(f'{key}: {value}' for key, value in rest.items())}" if rest else ""
    if module.startswith("ip-adapter"):
        return _Unit("image_prompts", f"`image_prompts={','.join([*parts, *shares])}`", more)
    modes = [ours for ours, webui in CONTROL_MODES.items() if webui == said.get("control mode")]
    shares += [f"mode={mode}" for mode in modes if mode != "balanced"]
    if module.lower() != "none":
        try:
            parts.append(f"preprocessor={_with_thresholds(module, said)}")
        except InvalidRequest as error:
            more += f"; {error.message}" + (f": {error.hint}" if error.hint else "")
    return _Unit("controls", f"`controls={','.join([*parts, *shares])}`", more)


def _with_thresholds(module: str, said: Mapping[str, str]) -> str:
    """A preprocessor with its thresholds, such as canny:50:150.

    Raises:
        InvalidRequest: Limner does not have it, or a threshold is not a number.
    """
    from ..preprocess import option_names, preprocessor  # here, as it takes NumPy

    if module.startswith("inpaint"):
        return "inpaint"
    ours, _ = preprocessor(module)
    values = []
    for key, _ in zip(("threshold a", "threshold b"), option_names(ours), strict=False):
        if key not in said:
            break
        try:
            values.append(f"{float(said[key]):g}")
        except ValueError:
            raise InvalidRequest(f"its {key} is {said[key]!r}, expected a number") from None
    return ":".join([module, *values])
