"""Executes calls that share a forward pass: in tiles where memory is short, and again in halves where it
fails."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from limner.errors import InternalError, LimnerError, OutOfMemory
from limner.generation.calls import Answer, Call, DecodeLatents, Denoise, EncodeImage
from limner.model.model import Model

IN_TILES = "decoded or encoded in tiles, because the whole image does not fit into memory"

Passed = Callable[[Sequence[int]], None]
"""Called after each forward pass with the indices of its calls."""


def execute(model: Model, calls: Sequence[Call], passed: Passed) -> list[Answer]:
    """Answer calls of one group together; if that fails, in halves, until the failing call is alone."""

    def answer(which: Sequence[int]) -> list[Answer]:
        try:
            answers = model.answer([calls[index] for index in which])
        except Exception as error:
            failure = error
        else:
            passed(which)
            return answers
        passed(which)
        if len(which) == 1:
            return [_alone(model, calls[which[0]], failure, lambda: passed(which))]
        middle = len(which) // 2
        return answer(which[:middle]) + answer(which[middle:])

    return answer(range(len(calls)))


def _alone(model: Model, call: Call, failure: Exception, passed: Callable[[], None]) -> Answer:
    """The answer to a call that has failed alone: in tiles if memory is short, else the error."""
    error, smaller = limner_error(failure), tiled(call)
    if not isinstance(error, OutOfMemory) or smaller is None:
        return Answer(error=error)
    try:
        [answer] = model.answer([smaller])
    except Exception as again:
        return Answer(error=limner_error(again))
    finally:
        passed()
    return replace(answer, warnings=(*answer.warnings, IN_TILES))


def tiled(call: Call) -> Call | None:
    """The same call in tiles, which take less memory; None if it has no such form."""
    return (
        replace(call, tiled=True)
        if isinstance(call, DecodeLatents | EncodeImage) and not call.tiled
        else None
    )


def rows_of(call: Call) -> int:
    """Number of rows of a forward pass that a call takes."""
    return len(call.branches) if isinstance(call, Denoise) else 1


def limner_error(error: Exception) -> LimnerError:
    """The error that the handle of a request raises for an error in its execution."""
    if isinstance(error, LimnerError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        raised: LimnerError = OutOfMemory(
            "there is not enough memory for this image", hint="ask for fewer pixels"
        )
    else:
        raised = InternalError(
            f"{type(error).__name__}: {error}", hint="report this, with the log's traceback"
        )
    raised.__cause__ = error
    return raised
