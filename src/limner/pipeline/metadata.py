"""An old import path, kept for programs: see `limner.images.metadata`."""

from limner.images.metadata import read_record, read_request, read_texts
from limner.images.picture import Picture
from limner.images.record import Record

__all__ = ["Picture", "Record", "read_record", "read_request", "read_texts"]
