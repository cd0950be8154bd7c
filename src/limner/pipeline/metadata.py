"""The words in a picture: what drew it, stored so that it can be drawn again and so that others can read it.

A PNG carries two text chunks: `parameters`, in the grammar of AUTOMATIC1111 that viewers read, and
`limner`, a JSON `Record` that loses nothing. JPEG and WebP carry them in EXIF, as UserComment and MakerNote.
"""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from limner.errors import InvalidPicture, OutputError
from limner.prompts.infotext import write_infotext
from limner.request import GenerationRequest
from limner.weights.files import whole_file

from . import webui
from .webui import ReadRequest

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
        fields = webui.written(self.request) | {
            "Model hash": self.model.get("sha256", "")[:10],
            "Model": Path(self.model["name"]).name,
            "Lora hashes": ", ".join(
                f"{name.removeprefix(f'{LORA} ')}: {digest[:12]}"
                for name, digest in self.model.items()
                if name.startswith(f"{LORA} ")
            ),
            **self._made_of(),
            "Version": f"limner {self.environment['limner']}",
        }
        prompt = self.request.prompt + webui.tags(self.request)
        return write_infotext(prompt, self.request.negative_prompt or "", fields)

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


def read_request(path: Path, overriding: Collection[str] = ()) -> ReadRequest:
    """The request that drew a picture, from its record or else from its `parameters` text.

    Args:
        overriding: as `webui.read` takes them.

    Raises:
        InvalidPicture: no picture, or one without either text.
        InvalidRequest: its `parameters` name a sampler that Limner does not have.
    """
    record = read_record(path)
    if record is not None:
        return ReadRequest(record.request.model_dump(exclude_none=True))
    text = read_texts(path).get("parameters")
    if text is None:
        raise InvalidPicture(f"{path} does not say what drew it", hint=_silent(path))
    return webui.read(text, path, overriding)


def _silent(path: Path) -> str:
    """What to do about a picture without either text."""
    with Image.open(path) as image:
        if "workflow" in image.info or "prompt" in image.info:
            return "it holds a workflow of ComfyUI's, which Limner does not read: give its prompt yourself"
    return "editors and websites often strip a picture's metadata; use the original file"


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
