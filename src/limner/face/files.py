"""Files of a single component: in a folder, or of a repository on the hub."""

import os
from pathlib import Path

from limner.errors import ModelNotFound
from limner.weights.hub import SHIPPED


def find_file(reference: str | Path, name: str, subfolder: str | None, revision: str | None) -> Path:
    """A file of a model, fetched if need be.

    Args:
        reference: the name of the shipped model, a folder, or "organisation/name" on the hub.
        name: of the file.
        subfolder: that it is in.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelNotFound: there is none.
    """
    inside = name if subfolder is None else f"{subfolder}/{name}"
    folder = SHIPPED.get(str(reference)) or Path(os.path.expanduser(reference))
    if folder.is_dir():
        if not (folder / inside).is_file():
            raise ModelNotFound(f"{folder} has no {inside}", hint="name the subfolder that it is in")
        return folder / inside
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(reference), inside, revision=revision))
    except Exception as error:  # of many libraries underneath
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelNotFound(
            f"there is no folder {reference} here, and no {inside} of it: {reason}"
        ) from error
