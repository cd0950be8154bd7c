"""AUTOMATIC1111's API (`/sdapi/v1`), as its clients use it, on the queue and the engine of Limner."""

from fastapi import APIRouter

from . import extras, generation, lists, watching
from .api import PREFIXES, error_response

router = APIRouter()
for part in (generation, watching, lists, extras):
    router.include_router(part.router)

__all__ = ["PREFIXES", "error_response", "router"]
