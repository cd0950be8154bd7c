"""OpenAI's Images API: generations, edits and models, as its SDKs and the programs built on them speak it."""

from .routes import PREFIX, error_response, router

__all__ = ["PREFIX", "error_response", "router"]
