"""The words in a picture: what drew it, stored so that it can be drawn again and so that others can read it.

A PNG carries two text chunks: `parameters`, in the grammar of AUTOMATIC1111 that viewers read, and
`limner`, a JSON `Record` that loses nothing. JPEG and WebP carry them in EXIF, as UserComment and MakerNote.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from limner.errors import InvalidPicture, OutputError
from limner.prompts.infotext import (
    parse_infotext,
    sampler_from_a1111,
    sampler_to_a1111,
    write_infotext,
)
from limner.prompts.names import SAMPLERS, SIGMA_SCHEDULES, UPSCALERS
from limner.request import Control, GenerationRequest, ImagePrompt, Lora
from limner.weights.files import whole_file

_EMPHASES = {"no_norm": "No norm", "ignore": "Ignore", "none": "None"}  # webui's names; else "Original"
_SCALED, _WEBUI_CFG_PP = "ddim_cfg_pp", 12.5  # the sampler whose scale webui divides by this
LORA = "lora"  # before the name of an adapter, in what a record says of the model
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_UNICODE = b"UNICODE\0"  # EXIF's marker of UserComment's encoding


class Origin(BaseModel):
    """What a picture's prompts were made of.

    Attributes:
        prompt, negative_prompt, hires_prompt, hires_negative_prompt: without the styles, and before the
            wildcards were chosen.
        styles: that were put around them.
        wildcards: whether they are templates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    negative_prompt: str | None = None
    hires_prompt: str | None = None
    hires_negative_prompt: str | None = None
    styles: tuple[str, ...] = ()
    wildcards: bool = False

    @classmethod
    def of(cls, request: GenerationRequest) -> Self | None:
        """None where a request's prompts are read as they stand."""
        if not (request.styles or request.wildcards):
            return None
        return cls(**{name: getattr(request, name) for name in cls.model_fields})


class Record(BaseModel):
    """Everything that drew one picture.

    Attributes:
        schema_version: of this record.
        request: resolved, with this picture's own seed and num_images 1, and its prompts as they were read.
        origin: of its prompts, where styles or wildcards made them.
        grid: for a sheet, whose first picture the request drew: the axes, as {"x": {"steps": ("10", "20")}}.
        model: its name, family and, under "sha256", a hash over its weights; under "lora NAME" that of an
            adapter.
        environment: versions, device, precision, backend, threads: what must agree for the same bits.
        warnings: what the request's maker was told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    request: GenerationRequest
    origin: Origin | None = None
    grid: dict[str, dict[str, tuple[str, ...]]] = {}
    model: dict[str, str]
    environment: dict[str, str | int]
    warnings: tuple[str, ...] = ()

    def infotext(self) -> str:
        """The `parameters` text."""
        request = self.request
        sampler, schedule = sampler_to_a1111(request.sampler or "", request.sigma_schedule or "")
        units: list[Control | ImagePrompt] = [*request.controls, *request.image_prompts]
        fields: dict[str, object] = {
            "Steps": request.steps,
            "Sampler": sampler,
            "Schedule type": schedule,
            "CFG scale": _webui_scale(request),
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": self.model.get("sha256", "")[:10],
            "Model": Path(self.model["name"]).name,
            "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
            "Denoising strength": request.hires_strength or (request.strength if request.image else None),
            "Emphasis": _EMPHASES.get(request.emphasis),
            "Lora hashes": ", ".join(
                f"{name.removeprefix(f'{LORA} ')}: {digest[:12]}"
                for name, digest in self.model.items()
                if name.startswith(f"{LORA} ")
            ),
            "NGMS": request.guidance_skip or None,
            _eta_key(sampler): request.eta,
            "Sigma churn": request.s_churn,
            "Sigma tmin": request.s_tmin,
            "Sigma tmax": request.s_tmax,
            "Sigma noise": request.s_noise,
            "RNG": "CPU" if request.noise == "cpu" else None,  # where it is not said, it is the GPU's
            "Variation seed": request.variation_seed,
            "Variation seed strength": request.variation_strength or None,
            **self._made_of(),
            "Tiling": True if request.tiling == "xy" else None,  # webui has no other
            **_second_pass(request),
            **{f"ControlNet {index}": _unit(unit) for index, unit in enumerate(units)},
            "Version": f"limner {self.environment['limner']}",
        }
        return write_infotext(request.prompt + _tags(request), request.negative_prompt or "", fields)

    def _made_of(self) -> dict[str, object]:
        """Fields under the names of sd-dynamic-prompts, SD.Next and webui's X/Y/Z plot."""
        fields: dict[str, object] = {}
        if self.origin is not None:
            fields["Styles"] = ", ".join(self.origin.styles)
            if self.origin.wildcards:
                fields["Template"] = self.origin.prompt
                fields["Negative Template"] = self.origin.negative_prompt
        if self.grid:
            fields["Script"] = "X/Y/Z plot"
        for axis, said in self.grid.items():
            [(name, values)] = said.items()
            fields[f"{axis.upper()} Type"] = name
            fields[f"{axis.upper()} Values"] = ", ".join(values)
        return fields

    def differences(self, environment: Mapping[str, str | int]) -> list[str]:
        """What is not as it was when the picture was drawn, one phrase each."""
        names = self.environment.keys() | environment.keys()
        return [
            f"{name} was {self.environment.get(name, 'unknown')}, is {environment.get(name, 'unknown')}"
            for name in sorted(names)
            if self.environment.get(name) != environment.get(name)
        ]


def _second_pass(request: GenerationRequest) -> dict[str, object]:
    """webui's fields of a hires pass."""
    width, height, prompt = request.hires_width, request.hires_height, request.hires_prompt
    if prompt is not None and "<lora:" not in prompt:  # webui looks for LoRAs there too, and for no others
        prompt += _tags(request)
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


def _tags(request: GenerationRequest) -> str:
    return "".join(f"<lora:{_tag(lora)}>" for lora in request.loras)


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


_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "guess": "ControlNet is more important",
}


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


class Picture(Image.Image):
    """A PIL image that keeps its record when it is saved as PNG, JPEG or WebP."""

    def __init__(self, image: Image.Image, record: Record) -> None:
        super().__init__()
        self.im, self._mode, self._size = image.im, image.mode, image.size
        self.record = record

    @property
    def seed(self) -> int:
        assert self.record.request.seed is not None
        return self.record.request.seed

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As `PIL.Image.Image.save`, with the record added unless `pnginfo` or `exif` is given."""
        kind = format or (
            ""
            if not isinstance(fp, str | Path)
            else Image.registered_extensions().get(Path(fp).suffix.lower())
        )
        if kind == "PNG":
            params.setdefault("pnginfo", _png_text(self.record))
        elif kind in ("JPEG", "WEBP"):
            params.setdefault("exif", _exif(self.record))
        super().save(fp, format, **params)


def _png_text(record: Record) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in (("parameters", record.infotext()), ("limner", record.model_dump_json())):
        text.add_itxt(key, value)
    return text


def _exif(record: Record) -> Image.Exif:
    exif = Image.Exif()
    ifd = exif.get_ifd(_EXIF_IFD)
    ifd[_USER_COMMENT] = _UNICODE + record.infotext().encode("utf-16-be")
    ifd[_MAKER_NOTE] = record.model_dump_json().encode()
    return exif


def read_texts(path: Path) -> dict[str, str]:
    """The texts in a picture: those of "parameters" and "limner" that it has.

    Raises:
        InvalidPicture: the file is missing or not a picture.
    """
    try:
        with Image.open(path) as image:
            image.load()  # PNG text may stand behind the pixels
            texts = {
                key: value
                for key, value in image.info.items()
                if key in ("parameters", "limner") and _is_text(value)
            }
            ifd = image.getexif().get_ifd(_EXIF_IFD)
    except FileNotFoundError:
        raise InvalidPicture(f"{path} does not exist", hint="give the path of a picture") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidPicture(f"{path} cannot be read as a picture: {error}") from error
    comment, note = ifd.get(_USER_COMMENT), ifd.get(_MAKER_NOTE)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts.setdefault("parameters", comment.removeprefix(_UNICODE).decode("utf-16-be", "replace"))
    if isinstance(note, bytes) and note.startswith(b"{"):
        texts.setdefault("limner", note.decode("utf-8", "replace"))
    return texts


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def read_record(path: Path) -> Record | None:
    """The record in a picture; None where there is none.

    Raises:
        InvalidPicture: the file is not a picture, or its record is broken or of another schema.
    """
    text = read_texts(path).get("limner")
    if text is None:
        return None
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise InvalidPicture(
            f"{path} holds a record that this version cannot read ({where}: {first['msg']})",
            hint="it may come from a newer version of Limner; `limner show` prints it as it stands",
        ) from None


def read_request(path: Path) -> dict[str, Any]:
    """The fields of the request that drew a picture, from its record or else from its `parameters` text.

    Raises:
        InvalidPicture: no picture, or one without either text.
        InvalidRequest: its `parameters` name a sampler that Limner does not have.
    """
    record = read_record(path)
    if record is not None:
        return record.request.model_dump(exclude_none=True)
    text = read_texts(path).get("parameters")
    if text is None:
        raise InvalidPicture(
            f"{path} does not say what drew it",
            hint="editors and websites often strip a picture's metadata; use the original file",
        )
    return _from_infotext(parse_infotext(text), path)


def _from_infotext(given: Mapping[str, str], path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": given["Prompt"], "negative_prompt": given["Negative prompt"]}
    if "Sampler" in given:
        names = sampler_from_a1111(given["Sampler"], given.get("Schedule type"))
        fields["sampler"], fields["sigma_schedule"] = names
    if "Emphasis" in given:
        named = {name: ours for ours, name in _EMPHASES.items()}
        fields["emphasis"] = named.get(given["Emphasis"], "original")
    if given.get("Tiling") == "True":
        fields["tiling"] = "xy"
    fields["noise"] = "cpu" if given.get("RNG") == "CPU" else "gpu"
    texts = {
        "Hires prompt": "hires_prompt",
        "Hires negative prompt": "hires_negative_prompt",
        "Hires upscaler": "hires_upscaler",
        "Hires sampler": "hires_sampler",
        "Hires schedule type": "hires_sigma_schedule",
    }
    fields |= {name: given[key] for key, name in texts.items() if key in given}
    if given.get("Hires schedule type") == "Automatic":
        sampler = given.get("Hires sampler") or given.get("Sampler", "Euler")
        fields["hires_sigma_schedule"] = sampler_from_a1111(sampler)[1]
    numbers = {
        "Steps": ("steps", int),
        "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int),
        "Size-1": ("width", int),
        "Size-2": ("height", int),
        "Clip skip": ("clip_skip", int),
        **({"Denoising strength": ("hires_strength", float)} if "Hires upscaler" in given else {}),
        "Hires upscale": ("hires_scale", float),
        "Hires resize-1": ("hires_width", int),
        "Hires resize-2": ("hires_height", int),
        "Hires steps": ("hires_steps", int),
        "Variation seed": ("variation_seed", int),
        "Variation seed strength": ("variation_strength", float),
        "NGMS": ("guidance_skip", float),
        _eta_key(given.get("Sampler", "")): ("eta", float),
        "Sigma churn": ("s_churn", float),
        "Sigma tmin": ("s_tmin", float),
        "Sigma tmax": ("s_tmax", float),
        "Sigma noise": ("s_noise", float),
    }
    for key, (name, read) in numbers.items():
        if key in given:
            try:
                fields[name] = read(given[key])
            except ValueError:
                raise InvalidPicture(f"{path} says {key}: {given[key]!r}, expected a number") from None
    if fields.get("sampler") == _SCALED and "guidance_scale" in fields:
        fields["guidance_scale"] /= _WEBUI_CFG_PP
    if not fields.get("s_tmax"):
        fields.pop("s_tmax", None)  # 0 is no bound
    if not fields.get("s_churn"):
        fields = {name: value for name, value in fields.items() if name not in ("s_tmin", "s_tmax")}
    # A side or a number of steps that webui works out is 0 there.
    return {name: value for name, value in fields.items() if value != 0 or not name.startswith("hires_")}


def write_picture(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all.

    Raises:
        OutputError: the suffix names no image format, or the file cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path} has no known image suffix", hint="use .png, .jpg or .webp")
    encoded = io.BytesIO()
    image.save(encoded, format=kind)
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.getvalue())
