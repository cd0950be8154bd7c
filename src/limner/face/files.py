"""Files of a single component: in a folder, or of a repository on the hub."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from limner.errors import InvalidRequest, ModelNotFound
from limner.weights.hub import ANYWHERE, SHIPPED, SHIPPED_NETWORKS, Access, locate_file
from limner.weights.tensors import read_index

_LINK = re.compile(
    r"(?:https://)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:(?:blob|resolve)/([^/]+)/)?([^?]+)(?:\?.*)?"
)
_WITHOUT = ("device_map", "force_download", "proxies", "resume_download")


@dataclass(frozen=True)
class Place:
    """Where a component is.

    Attributes:
        reference: the name of what ships with Limner, a folder, or "organisation/name" on the hub.
        subfolder: that it is in.
        revision: branch, tag or commit on the hub.
        access: how the hub is asked.
    """

    reference: str | Path
    subfolder: str | None = None
    revision: str | None = None
    access: Access = ANYWHERE

    @classmethod
    def of(cls, reference: str | Path, given: Mapping[str, Any]) -> "tuple[Place, dict[str, Any]]":
        """A place by the arguments of `from_pretrained`, and those that are about something else.

        Raises:
            InvalidRequest: one that is not offered.
        """
        own = dict(given)
        refuse({name: own.pop(name) for name in _WITHOUT if name in own}, _WITHOUT)
        about = {one.name: own.pop(one.name) for one in fields(Access) if one.name in own}
        subfolder, revision = own.pop("subfolder", None), own.pop("revision", None)
        return cls(reference, subfolder or None, revision, Access(**about)), own

    def _inside(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def find(self, name: str) -> Path:
        """A file, fetched if need be. Raises ModelNotFound if there is none."""
        inside = self._inside(name)
        shipped = {**SHIPPED, **SHIPPED_NETWORKS}.get(str(self.reference))
        folder = shipped or Path(os.path.expanduser(self.reference))
        if not folder.is_dir():
            return locate_file(f"{self.reference}:{inside}", revision=self.revision, access=self.access)
        if not (folder / inside).is_file():
            raise ModelNotFound(f"{folder} has no {inside}", hint="name the subfolder that it is in")
        return folder / inside

    def has(self, name: str) -> bool:
        """Whether there is a file. Raises ModelNotFound where the hub cannot be asked, and never told."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            self.find(name)
        except ModelNotFound as error:
            if error.__cause__ is None:
                return False  # in the folder
            told = isinstance(error.__cause__, EntryNotFoundError)
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                where: dict[str, Any] = {"cache_dir": self.access.cache_dir, "revision": self.revision}
                cached = try_to_load_from_cache(str(self.reference), self._inside(name), **where)
                told = cached is _CACHED_NO_EXIST
            if not told:
                raise
            return False
        return True

    def find_weights(self, stem: str, variant: str | None) -> Path:
        """A weight file, or the index of its shards, which are there then too. Raises as `find`."""
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
    """A file by its path or its page on the hub, fetched if need be, and the arguments of `from_single_file`
    that are about something else.

    Raises:
        ModelNotFound: there is none.
        InvalidRequest: an argument that is not offered.
    """
    link = _LINK.fullmatch(str(link_or_path))
    place, own = Place.of(link[1] if link else link_or_path, given)
    if link is None:
        path = Path(os.path.expanduser(link_or_path))
        if not path.is_file():
            raise ModelNotFound(
                f"there is no file {link_or_path}",
                hint="name a file, or its page: https://huggingface.co/organisation/name/blob/main/file",
            )
        return path, own
    access, revision = place.access, place.revision or link[2]
    return locate_file(f"{link[1]}:{link[3]}", revision=revision, access=access), own


def refuse(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise for arguments that are not offered.

    Args:
        known: those that diffusers has, which may be None or False.

    Raises:
        TypeError: one that nobody has.
        InvalidRequest: one that is not offered.
    """
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}")
        if value is not None and value is not False:
            raise InvalidRequest(f"{name} is not offered", hint="leave it out")


def refuse_pickles(use_safetensors: bool | None) -> None:
    """Raise InvalidRequest where pickles are asked for."""
    if use_safetensors is False:
        raise InvalidRequest(
            "use_safetensors is False, which asks for pickles; they are never opened", hint="leave it out"
        )
