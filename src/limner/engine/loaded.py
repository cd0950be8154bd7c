"""The model that `limner.load` returns: a `model.Model` with an engine."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, Self

from limner.errors import InvalidRequest
from limner.images.opening import image_source
from limner.images.result import GenerationResult
from limner.model import model
from limner.model.loading import find
from limner.model.options import LoadOptions, taking
from limner.request import GenerationRequest

from .engine import Engine

_IMAGES = {"image", "mask", "depth"}
_WITH_IMAGES = {"controls", "image_prompts"}  # fields whose items have images


class Model(model.Model):
    """A model in memory, with an engine that runs its requests. `load` makes one."""

    @classmethod
    def of(cls, loaded: model.Model) -> Self:
        """The same model, with an engine."""
        return cls(**{field.name: getattr(loaded, field.name) for field in fields(loaded) if field.init})

    def generate(
        self, prompt: str | None = None, *, request: GenerationRequest | None = None, **fields: Any
    ) -> GenerationResult:
        """Generate images and wait for them. Calls from several threads share forward passes.

        Args:
            prompt: Description of the image.
            request: A whole request, in place of a prompt and fields.
            **fields: Fields of `GenerationRequest`; images may be PIL images.

        Raises:
            InvalidRequest: A field that is unknown, out of range or beyond this model.
            NumericalError: The networks produced NaN or infinity.
            OutOfMemory: The images are too large for this machine.
        """
        if request is None:
            for name in fields.keys() & _IMAGES:
                fields[name] = None if fields[name] is None else image_source(fields[name])
            for name in fields.keys() & _WITH_IMAGES:
                if isinstance(fields[name], list | tuple):
                    fields[name] = tuple(map(_with_sources, fields[name]))
            request = GenerationRequest.of({"prompt": prompt, "model": self.name, **fields})
        elif prompt is not None or fields:
            raise InvalidRequest("both a request and fields of one were given", hint="give one of them")
        handle = self.engine.submit(request)
        try:
            return handle.result()
        finally:
            handle.cancel()  # after Ctrl-C; no effect on a request that is finished

    @cached_property
    def engine(self) -> Engine:
        """The engine that `generate` submits to."""
        return Engine(self)


def _with_sources(item: Any) -> Any:
    """An item of a request's field, with its images as strings."""
    if not isinstance(item, Mapping):
        return item
    item = dict(item)
    if "image" in item:
        item["image"] = image_source(item["image"])
    if "images" in item:
        images = item["images"] if isinstance(item["images"], list | tuple) else [item["images"]]
        item["images"] = tuple(map(image_source, images))
    return item


@taking(LoadOptions)
def load(options: LoadOptions) -> Model:
    """Load a model: the one that ships with Limner, a folder in the diffusers layout, a single file, or one
    from the hub.

    Raises:
        ModelNotFound: There is nothing of this name.
        InvalidCheckpoint, PickleRefused, UnsupportedModel: Files that are broken, that do not fit together,
            or that Limner cannot run.
        InvalidRequest: An unknown device, precision or backend.
    """
    return Model.of(find(options).load())
