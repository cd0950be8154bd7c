"""Jobs as values: what is submitted, what the ledger keeps, and what a worker claims and hands in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from limner.request.dial import Dial, DialValue
from limner.settings.values import PromptLog

JobKind = Literal["generate", "train", "animate", "campaign"]
Lane = Literal["interactive", "batch"]
JobState = Literal["queued", "paused", "running", "done", "failed", "cancelled", "dead"]
"""`failed` is the request's own fault and final at once; `dead` has used up its attempts. Both can be retried
by their owner."""

Relation = Literal["variation", "refined", "edited", "redrawn"]
"""What the images of a set are of the images that they were made from."""

ReviewStage = Literal["prompt", "image"]

FINAL_STATES: frozenset[JobState] = frozenset({"done", "failed", "cancelled", "dead"})
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class JobError:
    """Why an attempt or a job failed.

    Attributes:
        code: Code of the error, as `LimnerError.code`, or of the service: `worker_lost`, `deadline_exceeded`.
        message: One sentence: what was given, what was expected.
        hint: What to do about it.
        fields: Names of the request's fields at fault.
    """

    code: str
    message: str
    hint: str | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewJob:
    """A job to be accepted: one image of a request.

    Attributes:
        params: Request of this job as JSON (`GenerationRequest` with one image, defaults filled in).
        model: Id of the checkpoint in the catalogue; "" where the kind needs none.
        predicted_seconds: Estimate of its device seconds, for fair shares and back-pressure.
        safety: What the safety policy says about its prompts, as `limner.safety.prompts.Decision.to_dict`.
    """

    params: Mapping[str, Any]
    model: str
    predicted_seconds: float
    safety: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LoggedPrompts:
    """Prompts for the audit log.

    Attributes:
        keep: What the log keeps of them.
        texts: The prompts, by the field of the request.
    """

    keep: PromptLog
    texts: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Submission:
    """A set of jobs to be accepted in one transaction.

    Attributes:
        jobs: The jobs, in the order of the images.
        request: The request as the user gave it, as JSON.
        dial: The dial whose values the jobs have, one each; None: the jobs differ in their seeds.
        kind: Kind of all its jobs.
        lane: Lane of all its jobs.
        client: API that it came through: "native", "openai", "sdapi", "cli".
        idempotency_key: The same key of an account always means the same set.
        digest: SHA-256 of what the caller sent, to notice that a key is used for something else.
        external_id: The caller's own name for the set, such as A1111's `force_task_id`.
        deadline_seconds: Seconds from acceptance after which jobs that are not done fail.
        webhook: Where to report the end of the set: {"url": …, "secret": …}.
        traceparent: W3C trace context of the request.
        warnings: Warnings that resolving gave.
        uploads: Hashes of the account's uploads that the jobs need.
        parents: Images of the account that these are made from: ids, or numbers.
        relation: What they are of their parents; None without any.
        prompts: What the audit log keeps of the prompts; None: nothing.
    """

    jobs: tuple[NewJob, ...]
    request: Mapping[str, Any]
    dial: Dial | None = None
    kind: JobKind = "generate"
    lane: Lane = "interactive"
    client: str = "native"
    idempotency_key: str | None = None
    digest: str = ""
    external_id: str | None = None
    deadline_seconds: float | None = None
    webhook: Mapping[str, str] | None = None
    traceparent: str | None = None
    warnings: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    relation: Relation | None = None
    prompts: LoggedPrompts | None = None


@dataclass(frozen=True)
class StoredImage:
    """An image in the image store, as a worker hands it in.

    Attributes:
        id: Its public id.
        job_id, account_id: Whose it is.
        key: Where the master (PNG with its record) is in the store; holds the fence of the attempt.
        sha256: Hash of the master's bytes, in hex.
        pixels_sha256: Hash of its pixels, as RGB(A) bytes row by row.
        width, height: Pixels.
        bytes: Size of the master.
        record: The record of the image, as JSON.
        created_at: Seconds since the epoch.
        watermark: Id of the watermark in what is delivered: 16 hexadecimal digits; None: it has none.
        delivered_sha256: Hash of the file that is delivered, in hex; None: it is the master.
        delivered_bytes: Its size; 0 where it is the master.
        safety: What the safety policy says about the pixels; None: they were not checked.
        blurred: Whether what is delivered is blurred.
    """

    id: str
    job_id: str
    account_id: str
    key: str
    sha256: str
    pixels_sha256: str
    width: int
    height: int
    bytes: int
    record: Mapping[str, Any] = field(repr=False)
    created_at: float = 0.0
    watermark: str | None = None
    delivered_sha256: str | None = None
    delivered_bytes: int = 0
    safety: Mapping[str, Any] | None = field(default=None, repr=False)
    blurred: bool = False

    @property
    def file_sha256(self) -> str:
        """Hash of the file that is delivered, in hex."""
        return self.delivered_sha256 or self.sha256


@dataclass(frozen=True)
class LibraryImage(StoredImage):
    """A finished image, as the ledger has it.

    Attributes:
        number: Its number in the ledger; later images have higher ones.
        kept: Whether its owner has marked it.
        deleted_at: When it was put into the trash, in seconds since the epoch; None: it is not there.
        set_id, index: Its place in its set.
        prompt, seed: Of its request; None where that has none.
        dialled: Field of its set's dial, and its value; None where that has no dial, and in `Job.image`.
        relation: What it is of its parents; None without any, and in `Job.image`.
        parents: Ids of the images that it was made from; None in `Job.image`.
        albums: Ids of the albums that it is in; None in `Job.image`.
    """

    number: int = 0
    kept: bool = False
    deleted_at: float | None = None
    set_id: str = ""
    index: int = 0
    prompt: str | None = None
    seed: int | None = None
    dialled: tuple[str, DialValue] | None = None
    relation: Relation | None = None
    parents: tuple[str, ...] | None = None
    albums: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ImageFile:
    """What the ledger knows of the file of a finished image.

    Attributes:
        id, number: Its public id, and its number in the ledger.
        key: Where the master is in the store.
        sha256: Hash of the master's bytes, in hex.
        created_at: Seconds since the epoch.
        account_id: Whose it is.
        watermark, delivered_sha256, blurred: As `StoredImage`.
    """

    id: str
    number: int
    key: str
    sha256: str
    created_at: float
    account_id: str
    watermark: str | None = None
    delivered_sha256: str | None = None
    blurred: bool = False

    @property
    def file_sha256(self) -> str:
        """Hash of the file that is delivered, in hex."""
        return self.delivered_sha256 or self.sha256


@dataclass(frozen=True)
class Attempt:
    """One try at a job.

    Attributes:
        number: From 1.
        fence: Number that only this try has.
        worker: Id of the worker.
        started_at, ended_at: Seconds since the epoch.
        outcome: "done", "failed", "cancelled", "lost", "released"; None while it runs.
        error: Why it failed.
    """

    number: int
    fence: int
    worker: str
    started_at: float
    ended_at: float | None = None
    outcome: str | None = None
    error: JobError | None = None


@dataclass(frozen=True)
class Job:
    """A job, as the ledger has it.

    Attributes:
        id, set_id: Ids of the job and of its set.
        index: Number of the image in the set, from 0.
        account_id, key_id: Who asked for it.
        params, model, predicted_seconds: As `NewJob`.
        position: Place among the waiting jobs of its account: lower goes first.
        attempt: Number of attempts begun.
        fence: Number of the last attempt's claim; it only grows.
        cancel_requested: Whether the worker is to stop it.
        device_seconds: Device seconds that it used, once it has ended.
        cost: Device seconds times the device's price, once it has ended.
        safety: As `NewJob`; None for one that was accepted without a policy.
        image: The result; None until it is done, and once it is deleted.
        created_at, started_at, finished_at, deadline_at, lease_until: Seconds since the epoch.
    """

    id: str
    set_id: str
    index: int
    account_id: str
    key_id: str | None
    kind: JobKind
    lane: Lane
    state: JobState
    params: Mapping[str, Any] = field(repr=False)
    model: str
    predicted_seconds: float
    position: float
    attempt: int
    fence: int
    cancel_requested: bool
    created_at: float
    owner: str | None = None
    lease_until: float | None = None
    deadline_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    error: JobError | None = None
    device_seconds: float | None = None
    cost: float | None = None
    safety: Mapping[str, Any] | None = field(default=None, repr=False)
    image: LibraryImage | None = None


@dataclass(frozen=True)
class JobSet:
    """A set of jobs: the images of one request.

    Attributes:
        jobs: Its jobs, in the order of the images.
        dial: As of `Submission`: the job of index `i` has its value `i`.
        parents: Ids of the images that these are made from.
        relation: What they are of their parents; None without any.
        replayed: Whether an earlier set was found under the idempotency key.
    """

    id: str
    account_id: str
    kind: JobKind
    lane: Lane
    client: str
    request: Mapping[str, Any] = field(repr=False)
    created_at: float
    jobs: tuple[Job, ...]
    dial: Dial | None = None
    external_id: str | None = None
    webhook: Mapping[str, str] | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    relation: Relation | None = None
    replayed: bool = False

    @property
    def ended(self) -> bool:
        """Whether all its jobs are in a final state."""
        return all(job.state in FINAL_STATES for job in self.jobs)


@dataclass(frozen=True)
class Claim:
    """A job that a worker has taken.

    Attributes:
        job: The job, with its new fence, attempt and lease.
        seconds_left: Seconds until its deadline; None without one.
    """

    job: Job
    seconds_left: float | None = None


@dataclass(frozen=True)
class NewReview:
    """A decision of the safety policy that a person is to look at: to flag, blur or block an image.

    Attributes:
        stage: What it is about: the prompts of the image, or its pixels.
        decision: The decision, as JSON.
        withheld: The image, where it is stored and withheld; None: it is delivered, or not stored.
    """

    stage: ReviewStage
    decision: Mapping[str, Any] = field(repr=False)
    withheld: StoredImage | None = None


@dataclass(frozen=True)
class Completion:
    """What a worker hands in for a job that is done.

    Attributes:
        image: The stored image; None for kinds that make none.
        device_seconds: The job's share of the forward passes that it took part in.
        price: Price of a device second.
        batch_size: Number of images that were decoded together with it.
        review: What a person is to look at; None: nothing.
    """

    image: StoredImage | None
    device_seconds: float
    price: float = 0.0
    batch_size: int = 1
    review: NewReview | None = None
