"""Files of a single component, in a folder or in a hub repository."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from limner.catalogue.headers import read_index
from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.errors import InvalidRequest, ModelNotFound
from limner.weights.hub import ANYWHERE, Access, locate_file

_LINK = re.compile(
    r"(?:https://)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:(?:blob|resolve)/([^/]+)/)?([^?]+)(?:\?.*)?"
)
_UNSUPPORTED = ("device_map", "force_download", "proxies", "resume_download")


@dataclass(frozen=True)
class ComponentLocation:
    """Location of a component's files.

    Attributes:
        reference: Name of a model that ships with Limner, a folder, or "organisation/name" on the hub.
        subfolder: Folder within `reference`, or None.
        revision: Branch, tag or commit on the hub.
        access: Access to the hub: cache, token, offline mode.
    """

    reference: str | Path
    subfolder: str | None = None
    revision: str | None = None
    access: Access = ANYWHERE

    @classmethod
    def from_arguments(
        cls, reference: str | Path, given: Mapping[str, Any]
    ) -> "tuple[ComponentLocation, dict[str, Any]]":
        """Return the location that the arguments of `from_pretrained` describe, and the remaining arguments.

        Raises:
            InvalidRequest: A location argument is not supported.
        """
        own = dict(given)
        reject_unsupported({name: own.pop(name) for name in _UNSUPPORTED if name in own}, _UNSUPPORTED)
        about = {one.name: own.pop(one.name) for one in fields(Access) if one.name in own}
        subfolder, revision = own.pop("subfolder", None), own.pop("revision", None)
        return cls(reference, subfolder or None, revision, Access(**about)), own

    def _inside(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def find(self, name: str) -> Path:
        """Return the path of a file, downloaded if necessary. Raises ModelNotFound if there is none."""
        inside = self._inside(name)
        shipped = {**SHIPPED, **SHIPPED_NETWORKS}.get(str(self.reference))
        folder = shipped or Path(os.path.expanduser(self.reference))
        if not folder.is_dir():
            return locate_file(f"{self.reference}:{inside}", revision=self.revision, access=self.access)
        if not (folder / inside).is_file():
            raise ModelNotFound(f"{folder} has no {inside}", hint="name the subfolder that it is in")
        return folder / inside

    def has(self, name: str) -> bool:
        """Whether a file exists. Raises ModelNotFound if the hub cannot be reached and the cache does not
        know."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            self.find(name)
        except ModelNotFound as error:
            if error.__cause__ is None:
                return False  # in the folder
            known_missing = isinstance(error.__cause__, EntryNotFoundError)
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                where: dict[str, Any] = {"cache_dir": self.access.cache_dir, "revision": self.revision}
                cached = try_to_load_from_cache(str(self.reference), self._inside(name), **where)
                known_missing = cached is _CACHED_NO_EXIST
            if not known_missing:
                raise
            return False
        return True

    def find_weights(self, stem: str, variant: str | None) -> Path:
        """Return the path of a weight file, or of the index of its shards, which are downloaded too. Raises
        as `find`."""
        end = "" if variant is None else f".{variant}"
        try:
            return self.find(f"{stem}{end}.safetensors")
        except ModelNotFound as missing:
            try:
                index = self.find(f"{stem}.safetensors.index{end}.json")
            except ModelNotFound:
                raise missing from None
        for shard in read_index(index):
            self.find(shard)
        return index


def single_file(link_or_path: str | Path, given: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the path of a file, given by its path or hub URL, and the remaining arguments of
    `from_single_file`.

    Raises:
        ModelNotFound: There is no such file.
        InvalidRequest: A location argument is not supported.
    """
    link = _LINK.fullmatch(str(link_or_path))
    location, own = ComponentLocation.from_arguments(link[1] if link else link_or_path, given)
    if link is None:
        path = Path(os.path.expanduser(link_or_path))
        if not path.is_file():
            raise ModelNotFound(
                f"there is no file {link_or_path}",
                hint="name a file, or its page: https://huggingface.co/organisation/name/blob/main/file",
            )
        return path, own
    access, revision = location.access, location.revision or link[2]
    return locate_file(f"{link[1]}:{link[3]}", revision=revision, access=access), own


def reject_unsupported(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise for arguments that Limner does not support.

    Args:
        given: Remaining arguments and their values.
        known: Names of diffusers' arguments; None and False are accepted for them.

    Raises:
        TypeError: An argument is unknown to diffusers too.
        InvalidRequest: An argument of diffusers is set.
    """
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}")
        if value is not None and value is not False:
            raise InvalidRequest(f"{name} is not offered", hint="leave it out")


def reject_pickles(use_safetensors: bool | None) -> None:
    """Raise InvalidRequest for `use_safetensors=False`, which requests pickles."""
    if use_safetensors is False:
        raise InvalidRequest(
            "use_safetensors is False, which requests pickles; Limner never opens them", hint="leave it out"
        )
