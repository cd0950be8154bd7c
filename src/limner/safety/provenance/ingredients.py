"""The images that an image was made from, as a manifest names them."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from limner.errors import InvalidRequest
from limner.images.assets import Assets
from limner.images.inputs import inputs_of
from limner.request import GenerationRequest

Role = Literal["parentOf", "inputTo", "componentOf"]


@dataclass(frozen=True)
class Ingredient:
    """An image that an image was made from.

    Attributes:
        data: Bytes of its file. A manifest in it is kept in the manifest of the image.
        role: "parentOf" for the image that is edited or converted, "inputTo" for masks, control images and
            image prompts, "componentOf" for an image on a sheet.
        title: What the image is, such as "mask". Not the name of its file, which may be private.
    """

    data: bytes
    role: Role
    title: str

    @property
    def sha256(self) -> str:
        """Hash of its file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


_TITLES = {"controls": "control image", "image_prompts": "image prompt"}  # others are named as their field


def ingredients_of(
    request: GenerationRequest, assets: Assets | None = None, *, gone: bool = False
) -> tuple[Ingredient, ...]:
    """The input images of a request, each file once in each role, the edited image first.

    Args:
        assets: Opens the images; by default any path.
        gone: Whether an image that is not found is named without its data; else it is an error.

    Raises:
        InvalidRequest: An image is not found, or its reference is not allowed.
    """
    opening = Assets() if assets is None else assets
    found: dict[tuple[Role, str], Ingredient] = {}
    for name, source in inputs_of(request):
        role: Role = "parentOf" if name == "image" else "inputTo"
        data, title = b"", _TITLES.get(name, name)
        try:
            data = opening.read(source, name)
        except InvalidRequest:
            if not gone:
                raise
            title = f"{title}, not stored any more"
        one = Ingredient(data, role, title)
        found.setdefault((role, one.sha256), one)
    return tuple(found.values())
