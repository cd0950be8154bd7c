"""Files of a single component: in a folder, or of a repository on the hub."""

import os
from pathlib import Path

from limner.errors import ModelNotFound
from limner.weights.hub import SHIPPED, SHIPPED_NETWORKS, locate_file


def find_file(reference: str | Path, name: str, subfolder: str | None, revision: str | None) -> Path:
    """A file of a model, fetched if need be.

    Args:
        reference: the name of what ships with Limner, a folder, or "organisation/name" on the hub.
        name: of the file.
        subfolder: that it is in.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelNotFound: there is none.
    """
    inside = f"{subfolder}/{name}" if subfolder else name
    shipped = {**SHIPPED, **SHIPPED_NETWORKS}.get(str(reference))
    folder = shipped or Path(os.path.expanduser(reference))
    if not folder.is_dir():
        return locate_file(f"{reference}:{inside}", revision=revision)
    if not (folder / inside).is_file():
        raise ModelNotFound(f"{folder} has no {inside}", hint="name the subfolder that it is in")
    return folder / inside
