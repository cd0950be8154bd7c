"""Executes calls that share a forward pass: in tiles where memory is short, and again in halves where it
fails."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from weakref import WeakKeyDictionary

import torch

from limner.errors import InternalError, LimnerError, OutOfMemory
from limner.generation.calls import Answer, Call, DecodeLatents, Denoise, EncodeImage
from limner.model.model import Model

_LOG = logging.getLogger("limner.engine")

IN_TILES = "decoded or encoded in tiles, because the whole image does not fit into memory"

Passed = Callable[[Sequence[int]], None]
"""Called after each forward pass with the indices of its calls."""


@dataclass(frozen=True)
class _Failures:
    """Forward passes of a model that have failed, by group of calls.

    Attributes:
        fitting: The number of calls that has fitted into memory where more have not.
        logged: Groups and types of errors.
    """

    fitting: dict[Hashable, int] = field(default_factory=dict)
    logged: set[tuple[Hashable, type[Exception]]] = field(default_factory=set)


_FAILURES: WeakKeyDictionary[Model, _Failures] = WeakKeyDictionary()


def execute(model: Model, calls: Sequence[Call], passed: Passed) -> list[Answer]:
    """Answer calls of one group together; if that fails, in halves, until the failing call is alone.

    Where the halves of a pass fit into memory and the whole did not, later passes of the group are no larger
    than the halves.
    """

    def answer(which: Sequence[int]) -> list[Answer]:
        try:
            answers = model.answer([calls[index] for index in which])
        except Exception as error:
            failure = limner_error(error)
        else:
            passed(which)
            return answers
        passed(which)
        if len(which) == 1:
            return [_alone(model, calls[which[0]], failure, lambda: passed(which))]
        failures, group = _FAILURES.setdefault(model, _Failures()), model.group(calls[0])
        _log_once(failures, group, failure, len(which))
        middle = len(which) // 2
        halves = answer(which[:middle]) + answer(which[middle:])
        if isinstance(failure, OutOfMemory) and all(one.error is None for one in halves):
            larger_half = len(which) - middle
            failures.fitting[group] = min(failures.fitting.get(group, larger_half), larger_half)
        return halves

    known, size = _FAILURES.get(model), len(calls)
    if known is not None:
        size = known.fitting.get(model.group(calls[0]), size)
    begins = range(0, len(calls), size)
    return [one for begin in begins for one in answer(range(begin, min(begin + size, len(calls))))]


def _log_once(failures: _Failures, group: Hashable, failure: LimnerError, calls: int) -> None:
    cause = failure.__cause__ or failure
    kind = type(cause) if isinstance(cause, Exception) else type(failure)
    if (group, kind) not in failures.logged:
        failures.logged.add((group, kind))
        _LOG.warning(
            "a forward pass of %d calls failed and is repeated in halves: %s: %s",
            calls,
            kind.__name__,
            cause,
            exc_info=cause,
        )


def _alone(model: Model, call: Call, failure: LimnerError, passed: Callable[[], None]) -> Answer:
    """The answer to a call that has failed alone: in tiles if memory is short, else the error."""
    smaller = tiled(call)
    if not isinstance(failure, OutOfMemory) or smaller is None:
        return Answer(error=failure)
    try:
        [answer] = model.answer([smaller])
    except Exception as error:
        return Answer(error=limner_error(error))
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
    """The error that the handle of a request raises for an error in its execution.

    The variables in its traceback are cleared: they hold the activations of the failed pass, whose memory is
    needed while others run.
    """
    _clear_variables(error)
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


def _clear_variables(error: BaseException) -> None:
    """Clear the local variables in the tracebacks of an error and of those that it was raised from."""
    chain, seen = [error], set[int]()
    while chain:
        one = chain.pop()
        if id(one) not in seen:
            seen.add(id(one))
            clear_frames(one.__traceback__)
            chain += [other for other in (one.__cause__, one.__context__) if other is not None]
