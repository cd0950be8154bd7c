"""Every error that Limner raises on purpose.

    LimnerError
    ├── InvalidRequest        a request, argument or prompt that cannot be honoured
    │   ├── PromptError       a prompt that cannot be parsed or tokenized
    │   └── PromptRefused     a prompt that the safety policy refuses
    ├── ImageRefused          an image that the safety policy withholds
    ├── ModelNotFound         no such model: not shipped, not a folder, not on the hub or in its cache
    ├── InvalidCheckpoint     files that are there, but broken, hostile or not what their config says
    │   └── PickleRefused     weights stored as a pickle, which could run code when opened
    ├── UnsupportedModel      a well-formed checkpoint of a kind that Limner cannot run
    ├── InvalidPicture        an image file without the metadata that was asked of it
    ├── InvalidDataset        training data that cannot be used
    ├── InvalidTrainingState  a run folder that cannot be resumed
    ├── OutputError           a file or folder that cannot be written
    ├── StorageError          an image store that cannot be read or written
    ├── NumericalError        networks that produced NaN or infinity
    ├── OutOfMemory           images or models that are too large for this machine
    ├── WorkerUnavailable     a question to a worker while none is connected, or none answers
    ├── QueueFull             more requests than an engine keeps waiting
    ├── EngineClosed          a request to an engine that takes no more
    ├── DeadlineExceeded      a request that was not done in the time it was given
    ├── NotFound              no such job, image, key or account, or one of somebody else
    ├── Conflict              a change that the present state of a job does not allow
    │   └── IdempotencyConflict   an idempotency key that was used for another request
    ├── QuotaExceeded         an account that has used up what it may use
    ├── LedgerError           a ledger that cannot be opened or used
    │   └── LedgerUnavailable     a ledger that cannot be reached or written just now
    └── InternalError         a fault of Limner itself

An error is one sentence that says what was given and what was expected, a stable `code` for
programs, a `hint` that says what to do about it, the names of the request's `fields` at fault, and
whether the same request may succeed later (`retryable`).

In messages, hints and warnings, `name` or `name=value` in backticks is a field of the request or an argument
of `limner.load`. Each front end writes it in its own way: see `spelled`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

_NAMED = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def spelled(text: str, spell: Callable[[str, str], str | None]) -> str:
    """A message, hint or warning with the names in backticks as a front end writes them.

    Args:
        spell: The front end's form of a name and its value ("" for none), such as "--steps 20"; None leaves
            the name as it stands.
    """

    def form(match: re.Match[str]) -> str:
        own = spell(match[1], match[2] or "")
        return match[0] if own is None else own

    return _NAMED.sub(form, text)


class LimnerError(Exception):
    """Base of all of Limner's errors.

    Attributes:
        code: Stable name of the kind of error, for programs.
        retryable: Whether the same request may succeed later or on another machine.

    Args:
        message: One sentence: what was given, what was expected.
        hint: What to do about it, if anything can be said.
        fields: Names of the request's fields at fault, such as "width".
        retry_after: Seconds after which the same request may succeed, where that is known.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        fields: tuple[str, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields
        self.retry_after = retry_after


class InvalidRequest(LimnerError):
    """A request, argument or prompt that cannot be honoured as given."""

    code = "invalid_request"


class PromptError(InvalidRequest):
    """A prompt that is too long, too deep or cannot be tokenized."""

    code = "invalid_prompt"


class PromptRefused(InvalidRequest):
    """A prompt that the safety policy refuses.

    Attributes:
        decision: The decision as plain data, as `limner.safety.prompts.Decision.to_dict` returns it.
    """

    code = "prompt_refused"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        fields: tuple[str, ...] = (),
        retry_after: float | None = None,
        decision: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, fields=fields, retry_after=retry_after)
        self.decision: Mapping[str, Any] = decision or {}


class ImageRefused(LimnerError):
    """An image that was drawn, and that the safety policy withholds."""

    code = "image_refused"


class ModelNotFound(LimnerError):
    """No model under this name: not shipped, not a folder, not on the hub or in its cache."""

    code = "model_not_found"


class InvalidCheckpoint(LimnerError):
    """Model files that are broken, hostile, incomplete or at odds with their own config."""

    code = "invalid_checkpoint"


class PickleRefused(InvalidCheckpoint):
    """Weights in a pickle (.bin, .ckpt, .pt). Opening one can run any code, so it is not opened."""

    code = "pickle_refused"


class UnsupportedModel(LimnerError):
    """A well-formed checkpoint of a kind that Limner cannot run."""

    code = "unsupported_model"


class InvalidPicture(LimnerError):
    """An image file that cannot be read, or that lacks the metadata asked of it."""

    code = "invalid_picture"


class InvalidDataset(LimnerError):
    """Training data that cannot be used: missing, unreadable, without captions."""

    code = "invalid_dataset"


class InvalidTrainingState(LimnerError):
    """A run folder that cannot be resumed: broken, or of another task or configuration."""

    code = "invalid_training_state"


class OutputError(LimnerError):
    """A file or folder that cannot be written."""

    code = "output_error"


class StorageError(LimnerError):
    """An image store that cannot be read or written: a full disk, missing rights, a store that is down."""

    code = "storage_error"
    retryable = True


class NumericalError(LimnerError):
    """The networks produced NaN or infinity."""

    code = "numerical_error"


class OutOfMemory(LimnerError):
    """Images or models that are too large for this machine."""

    code = "out_of_memory"


class WorkerUnavailable(LimnerError):
    """A question to a worker while none is connected, or none that answers in time."""

    code = "worker_unavailable"
    retryable = True


class QueueFull(LimnerError):
    """An engine has as many requests waiting as it keeps."""

    code = "queue_full"
    retryable = True


class EngineClosed(LimnerError):
    """An engine that takes no more requests."""

    code = "engine_closed"
    retryable = True


class DeadlineExceeded(LimnerError):
    """A request was not done in the time that it was given."""

    code = "deadline_exceeded"
    retryable = True


class NotFound(LimnerError):
    """No such job, image, key or account. An object of another account is reported in the same way."""

    code = "not_found"


class Conflict(LimnerError):
    """A change that the present state of an object does not allow."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """An idempotency key that the account has used for another request."""

    code = "idempotency_conflict"


class QuotaExceeded(LimnerError):
    """An account that has used up what it may use. Without a `retry_after`, the same request never will be
    accepted under this quota."""

    code = "quota_exceeded"
    retryable = True


class LedgerError(LimnerError):
    """A ledger that cannot be opened or used: broken, of a newer version, on a file system without locks."""

    code = "ledger_error"


class LedgerUnavailable(LedgerError):
    """A ledger that cannot be reached or written just now: disk full, database down, locked for too long."""

    code = "ledger_unavailable"
    retryable = True


class InternalError(LimnerError):
    """A fault of Limner itself. The log has its traceback, and `__cause__` the exception."""

    code = "internal_error"
    retryable = True
