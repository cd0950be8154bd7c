"""A request in the words of AUTOMATIC1111's webui and its fork Forge: the fields of a parameters text.

What is written here is what webui would write. What is read is taken over, or changes nothing, or is named
in a warning that says what to do.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from limner.errors import InvalidPicture, InvalidRequest
from limner.prompts.infotext import parse_infotext, sampler_from_a1111, sampler_to_a1111
from limner.prompts.names import SAMPLERS, SIGMA_SCHEDULES, UPSCALERS, own_sigma_schedule
from limner.request import Control, GenerationRequest, ImagePrompt, Lora

_EMPHASES = {"original": "Original", "no_norm": "No norm", "ignore": "Ignore", "none": "None"}
_SCALED, _WEBUI_CFG_PP = "ddim_cfg_pp", 12.5  # the sampler whose scale webui divides by this
_MODES = {
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
_OF_TIMESTEPS = {"ddim", "ddim_cfg_pp", "pndm", *_UNIPC}  # whose sigmas webui never lets a schedule choose


def written(request: GenerationRequest) -> dict[str, object]:
    """The fields that say a resolved request, None or empty where there is nothing to say."""
    sampler, schedule = sampler_to_a1111(request.sampler or "", request.sigma_schedule or "")
    units: list[Control | ImagePrompt] = [*request.controls, *request.image_prompts]
    variant = _UNIPC.get(request.sampler or "")
    return {
        "Steps": request.steps,
        "Sampler": sampler if variant is None else SAMPLERS["unipc_bh1"][0],
        "Schedule type": schedule,
        "CFG scale": _webui_scale(request),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Denoising strength": request.hires_strength or (request.strength if request.image else None),
        "Emphasis": None if request.emphasis == "original" else _EMPHASES[request.emphasis],
        **(variant or {}),
        "NGMS": request.guidance_skip or None,
        _eta_key(sampler): request.eta,
        "Sigma churn": request.s_churn,
        "Sigma tmin": request.s_tmin,
        "Sigma tmax": request.s_tmax,
        "Sigma noise": request.s_noise,
        "RNG": "CPU" if request.noise == "cpu" else None,  # where it is not said, it is the GPU's
        "Variation seed": request.variation_seed,
        "Variation seed strength": request.variation_strength or None,
        "Tiling": True if request.tiling == "xy" else None,  # webui has no other
        **_second_pass(request),
        **{f"ControlNet {index}": _unit(unit) for index, unit in enumerate(units)},
    }


def tags(request: GenerationRequest) -> str:
    """A request's adapters as its prompt would name them there."""
    return "".join(f"<lora:{_tag(lora)}>" for lora in request.loras)


def _second_pass(request: GenerationRequest) -> dict[str, object]:
    """webui's fields of a hires pass."""
    width, height, prompt = request.hires_width, request.hires_height, request.hires_prompt
    if prompt is not None and "<lora:" not in prompt:  # webui looks for LoRAs there too, and for no others
        prompt += tags(request)
    return {
        "Hires prompt": prompt,
        "Hires negative prompt": request.hires_negative_prompt,
        "Hires upscale": request.hires_scale,
        "Hires resize": f"{width or 0}x{height or 0}" if width or height else None,
        "Hires steps": request.hires_steps,
        "Hires upscaler": UPSCALERS.get(request.hires_upscaler or ""),
        "Hires sampler": SAMPLERS[request.hires_sampler][0] if request.hires_sampler else None,
        "Hires schedule type": request.hires_sigma_schedule
        and SIGMA_SCHEDULES[request.hires_sigma_schedule][0],
    }


def _webui_scale(request: GenerationRequest) -> float | None:
    if request.sampler != _SCALED or request.guidance_scale is None:
        return request.guidance_scale
    return round(request.guidance_scale * _WEBUI_CFG_PP, 6)


def _eta_key(sampler: str) -> str:
    """What webui calls the eta of one of its samplers."""
    return "Eta DDIM" if sampler.startswith("DDIM") else "Eta"


def _tag(lora: Lora) -> str:
    """Name and weights as AUTOMATIC1111 writes them, the text encoder's first."""
    unet = "" if lora.text_weight is None else f":{lora.weight:g}"
    return f"{Path(lora.name).stem}:{lora.for_text:g}{unet}"


def _unit(unit: Control | ImagePrompt) -> str:
    """As AUTOMATIC1111's extension for ControlNet writes it, which IP-Adapters are part of."""
    fields = {
        "Module": unit.preprocessor if isinstance(unit, Control) else "ip-adapter-auto",
        "Model": Path(unit.model).stem,
        "Weight": f"{unit.weight:g}",
        "Guidance Start": f"{unit.start:g}",
        "Guidance End": f"{unit.end:g}",
        "Control Mode": _MODES[unit.mode if isinstance(unit, Control) else "balanced"],
    }
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


@dataclass(frozen=True)
class ReadRequest:
    """What a picture says of the request that drew it.

    Attributes:
        fields: of a `GenerationRequest`.
        warnings: what it says that those do not, and what to do about it.
    """

    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()


def read(text: str, path: Path, overriding: Collection[str] = ()) -> ReadRequest:
    """The request in a parameters text.

    Args:
        path: of its picture, for messages to tell.
        overriding: fields of the request and options of `limner.load` that will be given besides, and over
            what the text says. With a picture or a mask among them, the fields that are about one count.

    Raises:
        InvalidPicture: the text is another program's, or a number in it is none.
        InvalidRequest: a sampler or sigma schedule that Limner does not have.
    """
    if text.lstrip().startswith("{"):
        _refuse_json(text, path)
    source = _Source(parse_infotext(text), path, frozenset(overriding))
    fields = source.fields()
    return ReadRequest(fields, tuple(f"{path}: {warning}" for warning in source.warnings()))


def _refuse_json(text: str, path: Path) -> None:
    """Raise InvalidPicture if a text is JSON, which would be taken for a prompt."""
    try:
        json.loads(text)
    except ValueError:
        return
    raise InvalidPicture(
        f"{path} has parameters in JSON, not in the grammar of AUTOMATIC1111's webui",
        hint="have its program write that grammar, or give the prompt and options yourself",
    )


# Fields of a request by webui's, and how their numbers are read.
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
# What a text without it leaves open.
_EXPECTED = {**{key: key for key in ("Steps", "Sampler", "CFG scale", "Seed")}, "Size-1": "Size"}

# What tells of a picture and changes none. Adapters are found by their names in the prompt.
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
}
_SAME = ("Use same sampler", "Use same scheduler", "Use same checkpoint", "Use same choices")  # as no value
# Where webui says what it would do anyway.
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

# Fields of drawings that began with a picture, which the text does not have.
_OF_PICTURES = {
    "Denoising strength": "--strength",
    "Image CFG scale": "--image-guidance-scale",
    "Init image hash": "",
    "Mask blur": "--mask-blur",
    "Inpaint area": "--inpaint-area",
    "Masked area padding": "--mask-padding",
    "Mask mode": "",
    "Masked content": "",
    "Conditional mask weight": "",
    "Noise multiplier": "",
}

# Others that Limner has its own way to say: what they are about, what to give, and whoever gives it knows.
_INSTEAD = (
    (("VAE",), "give the autoencoder's file with --vae", "vae"),
    (("Refiner", "Refiner switch at"), "give --refiner and --refiner-start", "refiner"),
    (
        ("TI hashes", "TI"),
        "give the folder of these textual inversions with --embedding-dir",
        "embedding_dirs",
    ),
    (("Skip Early CFG",), "give --guidance-interval", "guidance_interval"),
    (("Script", "X Type", "X Values", "Y Type", "Y Values", "Z Type", "Z Values"), "use limner grid", ""),
)


class _Source:
    """A parsed parameters text on its way to a request. First its `fields`, then its `warnings`.

    Args:
        given: what `parse_infotext` gives.
    """

    def __init__(self, given: Mapping[str, str], path: Path, overriding: frozenset[str]) -> None:
        self._given = {key: value for key, value in given.items() if value not in _SAME}
        self._path, self._overriding = path, overriding
        self._left = dict(self._given)  # what is not yet accounted for

    def fields(self) -> dict[str, Any]:
        """Of the request, as far as the text has them.

        Raises:
            InvalidPicture, InvalidRequest: as `read`.
        """
        self._first_pass_size()
        fields: dict[str, Any] = self._samplers()
        fields |= {name: self._take(key) for key, name in _TEXTS.items() if key in self._left}
        numbers = dict(_NUMBERS)
        numbers[_eta_key(self._given.get("Sampler", ""))] = ("eta", float)
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
        for ours, name in _EMPHASES.items():
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
        """Without what says nothing in webui: a side, a number of steps or a bound of 0."""
        if fields.get("sampler") == _SCALED and "guidance_scale" in fields:
            fields["guidance_scale"] /= _WEBUI_CFG_PP
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
            raise InvalidPicture(f"{self._path} says {key}: {value!r}, expected a number") from None

    def _samplers(self) -> dict[str, str]:
        """The samplers and sigma schedules of both passes, but for those that are overridden."""
        fields = {}
        name, schedule = self._left.pop("Sampler", None), self._left.pop("Schedule type", None)
        if "sigma_schedule" in self._overriding:
            schedule = None
        if name is not None and "sampler" not in self._overriding:
            sampler, sigmas = sampler_from_a1111(name, schedule)
            if sampler in _OF_TIMESTEPS and not self._given.get("Version", "").startswith("limner"):
                sigmas = SAMPLERS[sampler][1]
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
        """Which UniPC is meant, if Limner has it."""
        keys = ("UniPC variant", "UniPC order")
        variant, order = (self._left.get(key, usual) for key, usual in zip(keys, ("bh1", "3"), strict=True))
        known = {("bh1", "3"): "unipc_bh1", ("bh2", "3"): "unipc_bh2", ("bh2", "2"): "unipc"}
        if (variant, order) in known:
            for key in keys:
                self._left.pop(key, None)
        return known.get((variant, order), "unipc_bh2" if variant == "bh2" else "unipc_bh1")

    def _first_pass_size(self) -> None:
        """Old versions of webui say the size of the first pass, and as Size that of the second."""
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

    def warnings(self) -> list[str]:
        """What of the text the fields do not say."""
        for key in [key for key, value in self._left.items() if key in _IDLE or (key, value) in _USUAL]:
            del self._left[key]
        warnings = [*self._nothing_said(), *self._of_model(), *self._of_picture()]
        warnings += [warning for key in list(self._left) for warning in self._of_unit(key)]
        for keys, advice, option in _INSTEAD:
            said = self._said(keys)
            if said and option not in self._overriding:
                warnings.append(f"{said} is not taken over: {advice}")
        if rest := _grouped(self._left.items()):
            warnings.append(f"not taken over, though it may have changed the picture: {rest}")
        return warnings

    def _nothing_said(self) -> Iterable[str]:
        lacking = [name for key, name in _EXPECTED.items() if key not in self._given]
        if lacking:
            yield f"it says nothing of {', '.join(lacking)}, which is the model's own or drawn by lot"

    def _of_model(self) -> Iterable[str]:
        named, checkpoint = self._left.pop("Model", None), self._left.pop("Hires checkpoint", None)
        if "model" not in self._overriding:
            called = "whose name it does not say" if named is None else f"{_short(named)}"
            yield f"its model, {called}, is not looked for: name one with --model"
        if checkpoint is not None:
            yield f"Hires checkpoint: {_short(checkpoint)} is not taken over: one model draws both passes"
        scale = self._left.get("Hires CFG Scale")
        if scale is not None and scale == self._given.get("CFG scale"):
            del self._left["Hires CFG Scale"]

    def _of_picture(self) -> Iterable[str]:
        options = ["--image", "--mask"] if self._left.keys() & {"Mask blur", "Mask mode"} else ["--image"]
        options += [option for key, option in _OF_PICTURES.items() if option and key in self._left]
        if "image" in self._overriding:
            self._left.pop("Init image hash", None)
        elif said := self._said(_OF_PICTURES):
            yield f"it began with a picture that it does not hold ({said}): give {', '.join(options)}"

    def _of_unit(self, key: str) -> Iterable[str]:
        """Of a ControlNet or IP-Adapter, with the option that asks for the same."""
        if not re.fullmatch(r"ControlNet \d+", key):
            return
        unit = _read_unit(self._take(key))
        if unit is not None and unit.field in self._overriding:
            return
        yield f"{key} is not taken over, as it does not hold its picture: give " + (
            "--control yourself" if unit is None else f"{unit.option}{unit.more}"
        )

    def _said(self, keys: Iterable[str]) -> str:
        """What the text says under these, which is accounted for thereby."""
        return ", ".join(f"{key}: {_short(self._take(key))}" for key in keys if key in self._left)


@dataclass(frozen=True)
class _Unit:
    """A unit of the extension for ControlNet: the field of a request that has its like, the option that asks
    for it, and what more there is to do."""

    field: str
    option: str
    more: str


_PART = re.compile(r"([^:,()]+):\s*(\([^)]*\)|[^,]*)")
# What a unit's option says, or what has no meaning beside it; and what changes nothing.
_OF_UNIT = {"module", "preprocessor", "model", "weight", "guidance start", "guidance end", "starting/ending"}
_OF_UNIT |= {"control mode", "threshold a", "threshold b", "pixel perfect"}
_USUAL_IN_UNIT = {
    ("resize mode", "just resize"),
    ("hr option", "both"),
    ("low vram", "true"),
    ("low vram", "false"),
}


def _read_unit(text: str) -> _Unit | None:
    """Read a unit, in the form of today or the one of 2023; None if it is neither."""
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
    if said.get("pixel perfect") == "True":  # as here, whatever is said of the size beside it
        said.pop("processor res", None)
    idle = [(key, value) for key, value in said.items() if (key, value.lower()) in _USUAL_IN_UNIT]
    rest = {key: value for key, value in said.items() if key not in _OF_UNIT and (key, value) not in idle}
    more = f"; without its {', '.join(f'{key}: {value}' for key, value in rest.items())}" if rest else ""
    if module.startswith("ip-adapter"):
        return _Unit("image_prompts", f"--image-prompt {','.join([*parts, *shares])}", more)
    modes = [ours for ours, webui in _MODES.items() if webui == said.get("control mode")]
    shares += [f"mode={mode}" for mode in modes if mode != "balanced"]
    if module.lower() != "none":
        try:
            parts.append(f"preprocessor={_with_thresholds(module, said)}")
        except InvalidRequest as error:
            more += f"; {error.message}" + (f": {error.hint}" if error.hint else "")
    return _Unit("controls", f"--control {','.join([*parts, *shares])}", more)


def _with_thresholds(module: str, said: Mapping[str, str]) -> str:
    """A preprocessor of the extension as Limner's, such as canny:50:150.

    Raises:
        InvalidRequest: Limner has none such, or a threshold is no number.
    """
    from limner.preprocess import option_names, preprocessor  # here, as it takes NumPy

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


def _grouped(fields: Iterable[tuple[str, str]]) -> str:
    """Fields as a list of few words: of an extension that writes many, their number."""
    parts = []
    for word, group in groupby(sorted(fields), lambda field: field[0].split()[0]):
        own = list(group)
        if len(own) > 3:
            parts.append(f"{word} ({len(own)} fields: {', '.join(key for key, _ in own[:2])} …)")
        else:
            parts += [f"{key}: {_short(value)}" for key, value in own]
    return ", ".join(parts)


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}…"
