"""Every error that Limner raises on purpose.

    LimnerError
    ├── InvalidRequest        a request, argument or prompt that cannot be honoured
    │   └── PromptError       a prompt that cannot be parsed or tokenized
    ├── ModelNotFound         no such model: not shipped, not a folder, not on the hub or in its cache
    ├── InvalidCheckpoint     files that are there, but broken, hostile or not what their config says
    │   └── PickleRefused     weights stored as a pickle, which could run code when opened
    ├── UnsupportedModel      a well-formed checkpoint of a kind that Limner cannot run
    ├── InvalidPicture        an image file without the metadata that was asked of it
    ├── InvalidDataset        training data that cannot be used
    ├── InvalidTrainingState  a run folder that cannot be resumed
    ├── OutputError           a file or folder that cannot be written
    ├── NumericalError        networks that gave numbers that are not finite
    ├── OutOfMemory           pictures or models that are too large for this machine
    ├── QueueFull             more requests than an engine keeps waiting
    ├── EngineClosed          a request to an engine that takes no more
    └── DeadlineExceeded      a request that was not done in the time it was given

An error is one sentence that says what was given and what was expected, a stable `code` for
programs, and a `hint` that says what to do about it.
"""

from typing import ClassVar


class LimnerError(Exception):
    """Base of all of Limner's errors.

    Args:
        message: one sentence: what was given, what was expected.
        hint: what to do about it, if anything can be said.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidRequest(LimnerError):
    """A request, argument or prompt that cannot be honoured as given."""

    code = "invalid_request"


class PromptError(InvalidRequest):
    """A prompt that is too long, too deep or cannot be tokenized."""

    code = "invalid_prompt"


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


class NumericalError(LimnerError):
    """The networks gave numbers that are not finite."""

    code = "numerical_error"


class OutOfMemory(LimnerError):
    """Pictures or models that are too large for this machine."""

    code = "out_of_memory"


class QueueFull(LimnerError):
    """An engine has as many requests waiting as it keeps."""

    code = "queue_full"


class EngineClosed(LimnerError):
    """An engine that takes no more requests."""

    code = "engine_closed"


class DeadlineExceeded(LimnerError):
    """A request was not done in the time that it was given."""

    code = "deadline_exceeded"
