"""Removes paths of this machine from texts for callers."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from limner.catalogue.catalogue import Entry
from limner.settings.serve import ServeSettings

_STORED = re.compile(r"\S*[/\\]uploads[/\\][0-9a-f]{2}[/\\]([0-9a-f]{64})")  # content by its hash


class PathFilter:
    """Removes paths of the service's folders from texts.

    Args:
        entries: Returns files of the catalogue, which are called by their names.
    """

    def __init__(self, settings: ServeSettings, entries: Callable[[], Iterable[Entry]] = tuple) -> None:
        folders = (
            settings.data,
            settings.cache_dir,
            *settings.model_dirs,
            *settings.lora_dirs,
            *settings.embedding_dirs,
            *settings.control_dirs,
            *settings.image_prompt_dirs,
            *settings.wildcards_dirs,
            *(file.parent for file in settings.styles_files),
        )
        # Absolute ones only: a folder "lora" would be found in every other sentence.
        absolute = {str(one.absolute()) for one in folders if one != Path()}
        self._folders = sorted(absolute - {os.sep}, key=len, reverse=True)
        self._entries = entries

    def __call__(self, text: str) -> str:
        """The text without paths."""
        if "/" not in text and "\\" not in text:
            return text
        for entry in self._entries():
            text = text.replace(str(entry.path), entry.name)
        text = _STORED.sub(r"sha256:\1", text)
        for folder in self._folders:
            text = text.replace(f"{folder}{os.sep}", "").replace(folder, "a folder of this service")
        return text
