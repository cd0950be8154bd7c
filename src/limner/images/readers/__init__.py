"""Readers of the metadata that other programs write into images, one module for each.

A reader has a NAME, says by `matches` whether an image's texts are its program's, and `read`s them. A new
one is added to READERS. The first that matches reads; AUTOMATIC1111's grammar is the last, as several
programs write it in addition to their own.
"""

from collections.abc import Collection
from typing import Protocol

from . import a1111, comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from .base import ReadRequest, Texts


class Reader(Protocol):
    """What a module of this package offers."""

    NAME: str

    def matches(self, texts: Texts) -> bool: ...

    def read(self, texts: Texts, overriding: Collection[str] = ()) -> ReadRequest: ...


READERS: tuple[Reader, ...] = (
    swarmui,
    fooocus,
    invokeai,
    novelai,
    drawthings,
    easydiffusion,
    comfyui,
    a1111,
)

__all__ = ["READERS", "ReadRequest", "Reader", "Texts", "reader_of"]


def reader_of(texts: Texts) -> Reader | None:
    """The reader of an image's texts; None if no program is known to write such."""
    return next((reader for reader in READERS if reader.matches(texts)), None)
