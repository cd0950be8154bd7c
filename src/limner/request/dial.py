"""A dial: one field of a request at several values, for images that differ in nothing else."""

from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from limner.errors import InvalidRequest

from .describe import describe
from .fields import Name
from .request import GenerationRequest

MAX_VALUES = 16

_NEVER = ("num_images", "seed", "variation_seed")  # of which images of one set differ anyway

DialValue = StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=100)]


class Dial(BaseModel):
    """A field of a request, and the values that it is set to in turn: an image for each, of the same seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    field: Name = Field(
        description="Name of the field: one whose value is a number or one of several choices, such as "
        "`guidance_scale` or `sampler`."
    )
    values: tuple[DialValue, ...] = Field(
        min_length=2, max_length=MAX_VALUES, description="Its values, each of which makes an image."
    )

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest for a field that has no dial, a value that is there twice, or a request for
        more than one image."""
        if self.field not in dial_fields():
            raise InvalidRequest(
                f"dial.field is {self.field!r}; expected a field whose value is a number or a choice",
                hint=f"give one of {', '.join(dial_fields())}",
                fields=("dial",),
            )
        if len({*self.values}) < len(self.values):
            raise InvalidRequest(
                f"dial.values has {len(self.values)} values, but only {len({*self.values})} different ones",
                hint="give each value once",
                fields=("dial",),
            )
        if request.num_images > 1:
            raise InvalidRequest(
                f"num_images is {request.num_images}; with a dial, each value makes one image",
                hint="leave out num_images",
                fields=("num_images", "dial"),
            )

    def request_at(
        self, value: DialValue, request: GenerationRequest, seed: int, variation_seed: int
    ) -> GenerationRequest:
        """The request with the field at one of the values.

        Args:
            seed, variation_seed: Seeds of its image, where the request has none.

        Raises:
            InvalidRequest: The request cannot have this value.
        """
        fields = {
            "seed": seed,
            **request.model_dump(exclude_none=True, exclude_unset=True),
            self.field: value,
        }
        if fields.get("variation_strength"):
            fields.setdefault("variation_seed", variation_seed)
        else:
            fields.pop("variation_seed", None)
        try:
            return GenerationRequest.of(fields)
        except InvalidRequest as error:
            message = f"at {self.field} {value}, {error.message}"
            raise InvalidRequest(message, hint=error.hint, fields=("dial", *error.fields)) from None


@cache
def dial_fields() -> tuple[str, ...]:
    """Names of the fields that can have a dial: those with numbers or choices."""
    return tuple(
        one.name
        for one in describe()
        if one.name not in _NEVER
        and (one.kind in ("integer", "number") or (one.kind == "text" and one.accepts))
    )
