"""Limner: the whole of Stable Diffusion in one Python package.

    import limner

    model = limner.load("picturebook")
    result = model.generate("a yellow boat on the sea at sunset", seed=42, num_images=4)
    result.images[0].save("boat.png")

Importing this does not import torch: a name is looked up when it is first used.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import (
    Conflict,
    DeadlineExceeded,
    EngineClosed,
    IdempotencyConflict,
    ImageRefused,
    InternalError,
    InvalidCheckpoint,
    InvalidDataset,
    InvalidPicture,
    InvalidRequest,
    InvalidTrainingState,
    LedgerError,
    LedgerUnavailable,
    LimnerError,
    ModelNotFound,
    NotFound,
    NumericalError,
    OutOfMemory,
    OutputError,
    PickleRefused,
    PromptError,
    PromptRefused,
    QueueFull,
    QuotaExceeded,
    StorageError,
    UnsupportedModel,
    WorkerUnavailable,
)

if TYPE_CHECKING:
    from limner.engine.engine import Engine
    from limner.engine.handle import Handle, Progress
    from limner.engine.loaded import Model, load
    from limner.engine.models import ModelCache
    from limner.grids.axes import Axis
    from limner.grids.grid import Grid, grid
    from limner.images.picture import Picture
    from limner.images.result import GenerationResult
    from limner.request import GenerationRequest

    from .compat import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "Conflict",
    "DeadlineExceeded",
    "Engine",
    "EngineClosed",
    "GenerationRequest",
    "GenerationResult",
    "Grid",
    "Handle",
    "IdempotencyConflict",
    "ImageRefused",
    "InternalError",
    "InvalidCheckpoint",
    "InvalidDataset",
    "InvalidPicture",
    "InvalidRequest",
    "InvalidTrainingState",
    "LedgerError",
    "LedgerUnavailable",
    "LimnerError",
    "Model",
    "ModelCache",
    "ModelNotFound",
    "NotFound",
    "NumericalError",
    "OutOfMemory",
    "OutputError",
    "PickleRefused",
    "Picture",
    "Progress",
    "PromptError",
    "PromptRefused",
    "QueueFull",
    "QuotaExceeded",
    "StorageError",
    "UnsupportedModel",
    "WorkerUnavailable",
    "generate",
    "grid",
    "load",
]

_HOMES = {
    "Axis": "limner.grids.axes",
    "Engine": "limner.engine.engine",
    "GenerationRequest": "limner.request",
    "GenerationResult": "limner.images.result",
    "Grid": "limner.grids.grid",
    "Handle": "limner.engine.handle",
    "Model": "limner.engine.loaded",
    "Picture": "limner.images.picture",
    "ModelCache": "limner.engine.models",
    "Progress": "limner.engine.handle",
    "grid": "limner.grids.grid",
    "load": "limner.engine.loaded",
}


@cache
def _compat_names() -> frozenset[str]:
    """The names of diffusers that `limner.compat` has, read from its source: importing it imports torch."""
    import ast

    source = Path(__file__).with_name("compat") / "__init__.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise InternalError(f"{source} has no __all__")


def generate(
    prompt: str,
    *,
    model: str | Path = "picturebook",
    **fields: Any,
) -> "GenerationResult":
    """Load a model, generate images and release the model. To generate more, keep what `load` returns.

    Args:
        prompt: Description of the image.
        model: Name of the model, as `load` takes it.
        **fields: Arguments of `load`, such as precision and vae, and fields of `GenerationRequest`, such as
            steps, guidance_scale, seed and num_images.

    Raises:
        LimnerError: As `load` and `Model.generate` do.
    """
    from limner.engine.loaded import load
    from limner.model.options import OPTION_NAMES

    options = {name: fields.pop(name) for name in OPTION_NAMES & fields.keys()}
    return load(model, **options).generate(prompt, **fields)


if not TYPE_CHECKING:  # else a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None and not name.startswith("_") and name in _compat_names():
            home = "limner.compat"
        if home is None:
            raise AttributeError(f"module 'limner' has no attribute {name!r}")
        return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_compat_names()})
