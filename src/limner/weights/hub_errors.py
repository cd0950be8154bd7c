"""Errors for models that cannot be found, with hints: similar names, and how to get access to the hub."""

import difflib
import os
from pathlib import Path

from limner.catalogue.headers import PICKLE_HINT
from limner.catalogue.layout import MODEL_INDEX, PICKLE_SUFFIXES
from limner.catalogue.shipped import SHIPPED
from limner.errors import LimnerError, ModelNotFound, PickleRefused, UnsupportedModel

_TOKEN_HINT = "log in with `hf auth login` or set HF_TOKEN"


def hub_error(repo: str, revision: str | None, error: Exception) -> ModelNotFound:
    """The error for an exception of huggingface_hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return ModelNotFound(
                f"access to {repo} on the hub is restricted",
                hint=f"accept its terms at its page on the hub, then {_TOKEN_HINT}",
            )
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"there is no folder {repo} here, and no model {repo} on the hub that you may see",
                hint=f"{similar_names(repo)}if it is private, {_TOKEN_HINT}",
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"{repo} on the hub has no revision {revision!r}")
        case OfflineModeIsEnabled():
            return ModelNotFound(
                f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE forbids asking the hub",
                hint=f"{similar_names(repo)}unset HF_HUB_OFFLINE once to fetch it",
            )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ModelNotFound(
        f"the hub cannot be asked for {repo}: {reason}",
        hint=f"{similar_names(repo)}check the connection; a model that was fetched once is found without it",
    )


def no_pipeline(repo: str, files: list[str]) -> LimnerError:
    """The error for a repository without a model index.

    Args:
        files: The files of the repository.
    """
    pickles = sorted(file for file in files if file.endswith(PICKLE_SUFFIXES))
    single = sorted(file for file in files if file.endswith(".safetensors"))
    message = f"{repo} on the hub has no {MODEL_INDEX}, so it is no pipeline in the diffusers layout"
    if pickles and not single:
        return PickleRefused(f"{message}, and its weights are pickles ({pickles[0]})", hint=PICKLE_HINT)
    return UnsupportedModel(message, hint="look for a repository whose page says 'Diffusers'")


def not_a_model(name: str, path: Path) -> LimnerError:
    """The error for a name that is no shipped model, no folder, no .safetensors file and no hub id."""
    if path.suffix in PICKLE_SUFFIXES and os.path.exists(path):
        return PickleRefused(f"{name} is a pickle ({path.suffix})", hint=PICKLE_HINT)
    if os.path.exists(path):
        return UnsupportedModel(f"{name} is a file, expected a .safetensors file or a folder")
    return ModelNotFound(
        f"there is no model {name!r}: not shipped, no file or folder, no hub id such as organisation/name",
        hint=f"{similar_names(name)}shipped: {', '.join(SHIPPED)}",
    )


def similar_names(name: str) -> str:
    """A hint that names shipped models, folders and checkpoints of nearly this name; "" if there are none."""
    path = Path(os.path.expanduser(name))
    try:
        there = {
            other.name: str(other)
            for other in path.parent.iterdir()
            if other.is_dir() or other.suffix == ".safetensors"
        }
    except (OSError, ValueError):
        there = {}
    near = difflib.get_close_matches(path.name, [*there, *SHIPPED], n=3)
    return f"did you mean {' or '.join(there.get(other, other) for other in near)}? " if near else ""
