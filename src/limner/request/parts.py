"""The parts of a request that are more than a value: adapters, control images, image prompts."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .fields import Fraction, Name, Source

_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Lora(BaseModel):
    """An adapter that changes a model's weights for one request: a LoRA, LoHa, LoKr, (IA)^3, OFT …

    The text "name:0.8:0.5" stands for a name, its weight and its text weight; both weights may be left out.
    """

    model_config = _STRICT

    name: Name = Field(
        description="Name of a file in the LoRA folders, without its suffix, or a path.", examples=["ink"]
    )
    weight: Annotated[float, Field(ge=-100, le=100)] = Field(
        default=1.0, description="Strength in the U-Net. 0 is no effect; negative values steer away from it."
    )
    text_weight: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        default=None, description="Strength in the text encoders. Default: `weight`."
    )

    @property
    def for_text(self) -> float:
        """The strength in the text encoders."""
        return self.weight if self.text_weight is None else self.text_weight

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        match = re.fullmatch(r"(.+?)(?::([-+.\d]+))?(?::([-+.\d]+))?", given, re.DOTALL)
        if match is None:
            raise ValueError("expected a name and an optional weight: name:0.8")
        try:
            weights = [float(number) for number in match.groups()[1:] if number is not None]
        except ValueError:
            raise ValueError("the weight is no number; expected name:0.8") from None
        return dict(zip(("name", "weight", "text_weight"), (match[1], *weights), strict=False))


class StepRange(BaseModel):
    """Active between two fractions of the steps."""

    model_config = _STRICT

    start: Fraction = Field(default=0.0, description="Fraction of the steps before the first active one.")
    end: Fraction = Field(default=1.0, description="Fraction of the steps after the last active one.")

    def holds_at(self, step: int, steps: int) -> bool:
        """Whether it is active at `step` of `steps`, counted from 1."""
        return self.start <= (step - 1) / steps and step / steps <= self.end

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start is {self.start} and end {self.end}; expected the lower one first")
        return self

    @classmethod
    def _fields_in(cls, text: str, repeated: str = "") -> dict[str, Any]:
        """The fields of a text such as "model=…,image=…,weight=0.8", in any order.

        Args:
            text: fields separated by commas. Only a comma before a name and "=" ends a value, so values may
                contain commas.
            repeated: singular of the one field that is a tuple; each time it is given adds an element.

        Raises:
            ValueError: an unknown field, a field given twice, or an invalid number.
        """
        names = [repeated if name == f"{repeated}s" else name for name in cls.model_fields]
        fields: dict[str, Any] = {}
        for part in re.split(r",\s*(?=[a-z_]+=)", text):
            name, sign, value = part.partition("=")
            if not sign or name not in names:
                raise ValueError(f"{part!r} is no field with its value; expected {'=…, '.join(names)}=…")
            if name == repeated:
                fields[f"{name}s"] = (*fields.get(f"{name}s", ()), value)
            elif name in fields:
                raise ValueError(f"{name} is given twice")
            elif cls.model_fields[name].annotation is float:
                try:
                    fields[name] = float(value)
                except ValueError:
                    raise ValueError(f"{name} is {value!r}; expected a number") from None
            else:
                fields[name] = value
        return fields


class Control(StepRange):
    """An image that guides the layout, through a ControlNet or a T2I-Adapter.

    The text "model=…,image=…,weight=0.8" gives the fields in any order.
    """

    model: Name = Field(description="The control network: a folder, a file, or a hub id.")
    image: Source = Field(description="The image: its path or a data URL.")
    preprocessor: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        default="none",
        description="How the control image is made from `image`; `none` where it is one already.",
        examples=["canny", "none"],
    )
    weight: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0, description="Factor on the residuals that the network adds."
    )
    mode: Literal["balanced", "prompt", "guess"] = Field(
        default="balanced",
        description="`prompt` favours the prompt: the weight decays towards the outer layers. `guess` "
        "favours the control image: it guides the positive prediction only.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return cls._fields_in(given) if isinstance(given, str) else given


class ImagePrompt(StepRange):
    """Images that act as part of the prompt, through an IP-Adapter.

    The text "model=…,image=…,image=…,weight=0.6" gives the fields in any order; `image` adds one to `images`.
    """

    model: Name = Field(
        description="The adapter: a file, or a file on the hub: organisation/name:folder/file."
    )
    images: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)] = Field(
        description="The images: their paths or data URLs."
    )
    weight: Annotated[float, Field(ge=-10, le=10)] = Field(
        default=1.0, description="Strength relative to the text prompt."
    )
    image_encoder: Name | None = Field(
        default=None,
        description="The image encoder that the adapter was trained with: a folder, or a folder on the hub. "
        "Default: `image_encoder` in the adapter's folder, or `models/image_encoder` in the folder above it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            images = given.get("images")
            return {**given, "images": tuple(images)} if isinstance(images, list) else given
        return cls._fields_in(given, repeated="image") if isinstance(given, str) else given
