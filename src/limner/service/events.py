"""What callers can watch: changes of jobs and libraries and notices, which are kept in the ledger, and
progress, which is not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Change = Literal["queued", "started", "done", "failed", "cancelled", "dead", "requeued", "paused", "moved"]
LibraryChange = Literal["kept", "deleted", "restored", "albums"]


@dataclass(frozen=True)
class JobChanged:
    """A change of a job's state, written in the transaction that made it. Ids resume a stream of them.

    Attributes:
        seq: Number of the event; later events have higher numbers.
        account_id, set_id, job_id: Whose job it is.
        index: Number of the image in the set, from 0.
        change: What happened.
        at: Seconds since the epoch.
        data: More about it: the image's id and size, the error, the attempt.
    """

    seq: int
    account_id: str
    set_id: str
    job_id: str
    index: int
    change: Change
    at: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LibraryChanged:
    """A change of an account's images or albums, kept and numbered as changes of jobs are.

    Attributes:
        seq, account_id, at: As of `JobChanged`.
        change: What happened: images were marked or unmarked as kept; deleted for good, into the trash or by
            a moderator; taken out of the trash or given back by a moderator; or albums were changed.
        data: The `numbers` of the images; for "kept" whether they are `kept` now, for "albums" the `album`.
    """

    seq: int
    account_id: str
    change: LibraryChange
    at: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NoticeGiven:
    """A notice to an account about one of its images; kept and numbered as changes of jobs are.

    Attributes:
        seq, account_id, at: As of `JobChanged`.
        data: Id of the `notice`, its `cause` and `delivery`, and its `job_id` and `image_id`.
        change: Always the same.
    """

    seq: int
    account_id: str
    at: float
    data: Mapping[str, Any]
    change: Literal["notice"] = "notice"


LedgerEvent = JobChanged | LibraryChanged | NoticeGiven


@dataclass(frozen=True)
class JobProgress:
    """A step of a running job.

    Attributes:
        step, steps: Number of steps taken, and of all steps of the image.
        seconds_left: Estimate of the seconds until the image is done.
        batch_size: Number of images in its last forward pass.
        preview: A small image in the file format `preview_type`, at most five a second; None without one.
    """

    account_id: str
    set_id: str
    job_id: str
    index: int
    step: int
    steps: int
    seconds_left: float
    batch_size: int = 1
    preview: bytes | None = field(default=None, repr=False)
    preview_type: str = "image/png"


ServiceEvent = LedgerEvent | JobProgress
