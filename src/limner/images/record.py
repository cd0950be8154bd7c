"""The record of an image: its request, model and environment."""

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from limner.request import GenerationRequest

from . import a1111_write
from .infotext import write_infotext

LORA, EMBEDDING = "lora", "embedding"  # precede the names of files in `Record.model`
_HASH_KEY_STOPS = re.compile("[:,]")  # webui drops these from the names in "Lora hashes"


class Origin(BaseModel):
    """The prompts of a request before its styles and wildcards were applied.

    Attributes:
        prompt, negative_prompt, hires_prompt, hires_negative_prompt: As the user wrote them.
        styles: Names of the styles that were applied.
        wildcards: Whether the prompts are templates.
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
        """The origin of a request's prompts; None if it has neither styles nor wildcards."""
        if not (request.styles or request.wildcards):
            return None
        return cls(**{name: getattr(request, name) for name in cls.model_fields})


class Watermark(BaseModel):
    """The watermark in an image's pixels.

    Attributes:
        id: 16 hexadecimal digits; `limner.safety.marking.id_of` says what they are.
        bits: How many bits of the id the pixels carry: all 64, or the first 32 in a small image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    bits: Literal[32, 64]


class Record(BaseModel):
    """Everything needed to generate an image again.

    Attributes:
        schema_version: Version of this schema.
        request: Resolved request, with this image's own seed, num_images 1, and the prompts after
            styles and wildcards.
        origin: The prompts before that, if there were styles or wildcards.
        grid: Axes of an X/Y/Z sheet, as {"x": {"steps": ("10", "20")}}; `request` is then that of its first
            image.
        model: Name, family, and hash over the weights ("sha256"); "lora NAME", "embedding NAME",
            "control NAME", "image prompt NAME" and "part NAME" are hashes of other files, "refiner_sha256" is
            that of a refiner's weights.
        inputs: SHA-256 of the files of input images that the request names by their paths.
        environment: Versions, device, precision, backend, threads: must agree for the same bits.
        warnings: Warnings that the request gave.
        notes: Notes of those who reviewed the finished image, such as a safety checker.
        pixels: SHA-256 of the pixels as they were drawn (`picture.pixel_hash`), before a watermark or a lossy
            format changed them; "" where that is not known.
        watermark: The watermark in the image's pixels; None if it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    request: GenerationRequest
    origin: Origin | None = None
    grid: dict[str, dict[str, tuple[str, ...]]] = {}
    model: dict[str, str]
    inputs: dict[str, str] = {}
    environment: dict[str, str | int]
    warnings: tuple[str, ...] = ()
    notes: dict[str, str] = {}
    pixels: str = ""
    watermark: Watermark | None = None

    def infotext(self) -> str:
        """The `parameters` text in webui's grammar."""
        fields = a1111_write.fields(self.request) | {
            "Model hash": self.model.get("sha256", "")[:10],
            "Model": a1111_write.file_stem(self.model["name"]),
            "Lora hashes": self._lora_hashes_text(),
            **self._source_fields(),
            "Watermark": self.watermark.id if self.watermark is not None else None,
            "Version": f"limner {self.environment['limner']}",
        }
        prompt = self.request.prompt + a1111_write.lora_tags(self.request)
        return write_infotext(prompt, self.request.negative_prompt or "", fields)

    @property
    def lora_hashes(self) -> dict[str, str]:
        """The hash of each LoRA, by its name."""
        prefix = f"{LORA} "
        return {
            name.removeprefix(prefix): digest
            for name, digest in self.model.items()
            if name.startswith(prefix)
        }

    def _lora_hashes_text(self) -> str:
        hashes = {a1111_write.file_stem(name): digest for name, digest in self.lora_hashes.items()}
        return ", ".join(f"{_HASH_KEY_STOPS.sub('', n)}: {digest[:12]}" for n, digest in hashes.items())

    def _source_fields(self) -> dict[str, object]:
        """Templates, styles and axes, as sd-dynamic-prompts, SD.Next and webui's X/Y/Z plot name them."""
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
        """Phrases for the differences between the environment of the image and another one."""
        names = self.environment.keys() | environment.keys()
        return [
            f"{name} was {self.environment.get(name, 'unknown')}, is {environment.get(name, 'unknown')}"
            for name in sorted(names)
            if self.environment.get(name) != environment.get(name)
        ]
