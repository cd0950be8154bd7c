"""Control images made from images, by a worker: the detected maps of answers, and `/controlnet/detect`."""

from collections.abc import Mapping, Sequence
from typing import Any

from limner.server.state import ServerState
from limner.service.identity import Principal
from limner.service.intake import decode_data_url

from .delivery import text_of
from .units import DetectedMap


async def detected_map(
    state: ServerState, caller: Principal, one: DetectedMap, fields: Mapping[str, Any]
) -> str:
    """Base64 of the PNG of a control image, at the size of the request's images.

    Args:
        fields: Fields of the request.

    Raises:
        LimnerError: As `Hub.call` and `ImageGate.passed`.
    """
    size = {name: fields[name] for name in ("width", "height") if isinstance(fields.get(name), int)}
    files = [decode_data_url(one.image, "controls")]
    [made] = await _detected(state, caller, files, {"preprocessor": one.preprocessor, **size})
    return made


async def detected(
    state: ServerState, caller: Principal, files: Sequence[bytes], preprocessor: str, shorter: int
) -> list[str]:
    """Base64 of the PNGs of control images.

    Args:
        shorter: Length in pixels of the shorter side, to which the images are scaled before; 0: their own.

    Raises:
        LimnerError: As `Hub.call` and `ImageGate.passed`.
    """
    return await _detected(state, caller, files, {"preprocessor": preprocessor, "shorter": shorter})


async def _detected(
    state: ServerState, caller: Principal, files: Sequence[bytes], params: Mapping[str, Any]
) -> list[str]:
    """Base64 of control images."""
    _, made = await state.hub.call("preprocess", params, files)
    return [text_of(one) for one in await state.gate.passed(caller, made, made_from=files)]
