"""From a request of a caller to accepted jobs: models and uploads resolved, limits checked, cost estimated.

What leaves here is trusted by all that follows: every model, adapter and network is one of the catalogue,
every input image is an upload of the caller, named by its `sha256:`, the request is within the caller's
limits, and its prompts have passed the safety policy.
Of a request that is refused, at most its uploads are stored. No torch.
"""

import base64
import binascii
import hashlib
import io
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool

from limner.catalogue.catalogue import Catalogue, Entry
from limner.catalogue.facts import model_facts
from limner.catalogue.files import CatalogueFiles
from limner.errors import (
    Conflict,
    EngineClosed,
    InvalidRequest,
    LimnerError,
    ModelNotFound,
    PromptError,
    PromptRefused,
    QueueFull,
)
from limner.files import FileStamp
from limner.images.assets import Assets
from limner.images.inputs import InputImages, inputs_of, map_inputs
from limner.images.opening import ImageInfo, image_info, shortened
from limner.request import NEW_SEEDS, GenerationRequest
from limner.request.dial import Dial
from limner.request.estimate import DEVICES, Device, Estimate
from limner.request.facts import ModelFacts
from limner.request.policy import RequestPolicy
from limner.request.resolve import ResolvedRequest, resolve
from limner.safety.decisions import most_severe
from limner.safety.prompts import Decision
from limner.settings.serve import ServeSettings

from .health import check_room
from .identity import Principal
from .image_safety import LEVELS
from .jobs import Job, JobSet, Lane, LoggedPrompts, NewJob, Relation, Submission
from .ledger.ledger import Ledger
from .ledger.reading import Load
from .ledger.submitting import Extended
from .metrics import Meter
from .paths import PathFilter
from .prompt_safety import PromptSafety
from .tracing import current_traceparent
from .webhooks import check_webhook

FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
"""Formats of input images, in Pillow's spelling -> media type. No other decoder sees what callers send."""

_LOAD_SECONDS = 0.25
_MODELS = 8  # names that a hint has
_RESTART_SECONDS = 10.0  # that a service which is started again usually takes
_PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
_LIMITS = tuple(one.name for one in fields(RequestPolicy))


@dataclass(frozen=True)
class Upload:
    """An input image whose header was checked.

    Attributes:
        data: Bytes of the file.
        sha256: Their hash, in hex.
        width, height: Pixels, turned upright.
    """

    data: bytes
    sha256: str
    media_type: str
    width: int
    height: int

    @property
    def data_url(self) -> str:
        """The file as a data URL."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def reference(self) -> str:
        """What a request holds for it."""
        return f"sha256:{self.sha256}"


@dataclass(frozen=True)
class _Named:
    """A request with its checkpoint, with the names of the catalogue and with `sha256:` references.

    Attributes:
        uploads: Images that it brought along, not stored yet, by their references.
    """

    entry: Entry
    request: GenerationRequest
    uploads: dict[str, Upload]


@dataclass(frozen=True)
class Prepared:
    """A request that can be accepted.

    Attributes:
        request: The request as it was given, with the model's name in the catalogue and `sha256:` references.
        resolved: With every default filled in.
        entry: The checkpoint.
        facts: Facts about it.
        device: What it is estimated for.
        decisions: What the safety policy says about each image: none of them blocks.
        levels: Levels of the safety policy of the account and of the key, as `Principal.safety`.
        uploads: Images that the request brought along, not stored yet.
        warnings: What the caller should know.
    """

    request: GenerationRequest
    resolved: ResolvedRequest
    entry: Entry
    facts: ModelFacts
    device: Device
    decisions: tuple[Decision, ...]
    levels: tuple[str | None, str | None]
    uploads: tuple[Upload, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def estimate(self) -> Estimate:
        """What all images take together."""
        return self.resolved.estimate(self.device)

    @cached_property
    def jobs(self) -> tuple[NewJob, ...]:
        """A job for each image. Their requests keep styles and wildcards, so that records tell of them."""
        whole = self.resolved.request
        return tuple(
            NewJob(
                whole.of_picture(index).model_dump(mode="json", exclude_none=True),
                self.entry.id,
                picture.cost.flops / self.device.flops,
                {**decision.to_dict(), LEVELS: self.levels},
            )
            for index, (picture, decision) in enumerate(
                zip(self.resolved.pictures, self.decisions, strict=True)
            )
        )


def read_upload(data: bytes, *, max_pixels: int, field: str = "image") -> Upload:
    """Check the header of an image file, without decoding its pixels.

    Args:
        field: Field of the request that holds it, for errors.

    Raises:
        InvalidRequest: No image of a known format, or one of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            format, (width, height) = str(image.format), image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(field, max_pixels) from None
    except Exception:  # what a decoder raises at hostile bytes is not documented
        raise InvalidRequest(
            f"{field} is no image that can be read",
            hint=f"expected one of {', '.join(FORMATS)}",
            fields=(field,),
        ) from None
    if width * height > max_pixels:
        raise _too_many_pixels(field, max_pixels, f"{width}x{height}, ")
    media_type, digest = FORMATS.get(format, "image/jpeg"), hashlib.sha256(data).hexdigest()
    return Upload(data, digest, media_type, *((height, width) if turned else (width, height)))


def decode_data_url(source: str, field: str = "image") -> bytes:
    """The bytes of a data URL, or of plain base64. Raises InvalidRequest for anything else."""
    head, comma, body = source.partition(",") if source.startswith("data:") else ("", "", source)
    if comma and not head.endswith(";base64"):
        raise InvalidRequest(f"{field} is a data URL that is not base64", fields=(field,))
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field} is not valid base64", fields=(field,)) from None


class Intake:
    """Prepares and accepts requests. Safe to use from any thread.

    Args:
        wake: Tells the workers that there are jobs.
        meter: Counts what is accepted and refused.
        devices: The devices of the connected workers: estimates are made for the first of them.
        stopping: Whether the service is about to stop.

    Attributes:
        safety: The safety policy.

    Raises:
        InvalidRequest: The safety policy of the settings cannot be used.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ledger: Ledger,
        catalogue: Catalogue,
        assets: Assets,
        wake: Callable[[], None],
        meter: Meter,
        devices: Callable[[], Sequence[str]] = tuple,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings, self._ledger, self._catalogue = settings, ledger, catalogue
        self._assets, self._wake, self._meter, self._devices = assets, wake, meter, devices
        self._stopping = stopping
        self.safety = PromptSafety(settings, catalogue)
        self._facts: dict[str, tuple[FileStamp, ModelFacts]] = {}  # by id of the checkpoint
        self._loading = threading.Lock()  # of what follows
        self._load, self._added, self._loaded_until = Load(), 0, float("-inf")
        self.without_paths = PathFilter(settings, catalogue.entries)

    @property
    def device_name(self) -> str:
        """The device that estimates are made for."""
        first = next(iter((*self._devices(), *self._settings.devices)))
        return "cpu" if first == "auto" else first

    @property
    def device(self) -> Device:
        """What is known of the device that estimates are made for."""
        known = DEVICES.get(self.device_name.partition(":")[0], DEVICES["cpu"])
        return replace(known, price=self._settings.price_of(self.device_name))

    def find_model(self, name: str, *, variant: str | None = None) -> Entry:
        """The checkpoint that a name, an alias or the beginning of a hash means.

        Raises:
            ModelNotFound, InvalidRequest: As `Catalogue.find`.
        """
        meant = self._settings.aliases.get(name, name)
        try:
            if meant.startswith(("/", "~", ".")):  # a path, which the catalogue would know as well
                raise ModelNotFound(f"there is no checkpoint {meant!r} in the catalogue")
            named = [
                one
                for one in self._catalogue.entries("checkpoint")
                if one.is_named(meant) and (variant is None or one.variant == variant)
            ]
            plain = [one for one in named if one.variant == variant]
            entry = plain[0] if len(plain) == 1 else self._catalogue.find("checkpoint", meant)
        except (ModelNotFound, InvalidRequest) as error:
            hint = error.hint or (self._known_models() if isinstance(error, ModelNotFound) else None)
            raise type(error)(error.message, hint=hint, fields=("model",)) from None
        if entry.problem is not None:
            raise InvalidRequest(f"the model {entry.name} cannot be used: {entry.problem}", fields=("model",))
        return entry

    def _known_models(self) -> str:
        """The models that a request may name, as a hint; the first few of many."""
        entries = [entry for entry in self._catalogue.entries("checkpoint") if entry.problem is None]
        names = list(dict.fromkeys([entry.name for entry in entries] + list(self._settings.aliases)))
        more = f" and {len(names) - _MODELS} more" if len(names) > _MODELS else ""
        return f"this service has {', '.join(names[:_MODELS])}{more}" if names else "this service has none"

    def facts(self, entry: Entry) -> ModelFacts:
        """The facts about a checkpoint. Raises as `model_facts`."""
        stamp, facts = self._facts.get(entry.id, (None, None))
        if facts is None or stamp != entry.stamp:
            facts = model_facts(entry)
            self._facts[entry.id] = entry.stamp, facts
        return facts

    def policy(self, principal: Principal) -> RequestPolicy:
        """What a caller may ask. The limits of the key and the account, the stricter of two, replace those of
        the server."""
        limits: dict[str, Any] = {**self._settings.limits, **principal.policy}
        return RequestPolicy(**{name: value for name, value in limits.items() if name in _LIMITS})

    def prepare(self, principal: Principal, request: GenerationRequest) -> Prepared:
        """Resolve a request and check it against the caller's limits. Blocks: it reads files and the ledger.

        Raises:
            LimnerError: With the fields at fault.
        """
        with self._without_paths():
            return self._prepare(principal, self._named(principal, request))

    def prepare_all(
        self, principal: Principal, request: GenerationRequest, dial: Dial | None
    ) -> tuple[Prepared, ...]:
        """The request, prepared as by `prepare`; with a dial one for each of its values, all with one seed.
        The `request` of each is the given one, without a value of the dial.

        Raises:
            InvalidRequest: The dial's field or a value of it cannot be used, or all of them together exceed
                the caller's limits.
            LimnerError: As `prepare`.
        """
        if dial is None:
            return (self.prepare(principal, request),)
        with self._without_paths():
            dial.check(request)
            policy = self.policy(principal)
            if policy.max_images is not None and len(dial.values) > policy.max_images:
                raise InvalidRequest(
                    f"dial.values has {len(dial.values)} values, each for an image; the limit is "
                    f"{policy.max_images}",
                    hint="give fewer values",
                    fields=("dial",),
                )
            named = self._named(principal, request)
            seeds = secrets.randbelow(NEW_SEEDS), secrets.randbelow(NEW_SEEDS)
            found = []
            for value in dial.values:
                at_value = dial.request_at(value, named.request, *seeds)
                policy.check(at_value)
                one = self._prepare(principal, replace(named, request=at_value))
                found.append(replace(one, request=named.request))
            pictures = [picture for one in found for picture in one.resolved.pictures]
            policy.check_work(pictures, many="a dial of {} values")
            return tuple(found)

    @contextmanager
    def _without_paths(self) -> Iterator[None]:
        """A context whose errors are raised without paths of this machine, and those of prompts with the
        field."""
        try:
            yield
        except LimnerError as error:
            if isinstance(error, PromptError) and not error.fields:
                error.fields = ("prompt",)
            error.message = self.without_paths(error.message)
            error.hint = error.hint and self.without_paths(error.hint)
            raise

    def _named(self, principal: Principal, request: GenerationRequest) -> _Named:
        self.policy(principal).check(request)
        named = request.model if "model" in request.model_fields_set else self._settings.model
        entry = self.find_model(named, variant=request.variant)
        return _Named(entry, *self._with_uploads(principal, self._with_names(request, entry)))

    def _prepare(self, principal: Principal, named: _Named) -> Prepared:
        request, entry, uploads = named.request, named.entry, named.uploads
        policy, facts = self.policy(principal), self.facts(entry)
        images = InputImages(info=lambda source: self._image_info(source, uploads))
        files = CatalogueFiles(self._catalogue, facts, images=images)
        resolved = resolve(
            request,
            facts,
            files,
            styles_files=self._settings.styles_files,
            wildcards_dirs=self._settings.wildcards_dirs,
        )
        policy.check_resolved(resolved)
        decisions = self.safety.decide(principal, resolved, facts.family)
        most_severe(decisions).raise_if_blocked()
        flags = dict.fromkeys(warning for one in decisions for warning in one.warnings)
        warnings = (*map(self.without_paths, resolved.warnings), *flags)
        return Prepared(
            request,
            resolved,
            entry,
            facts,
            self.device,
            decisions,
            principal.safety,
            tuple(uploads.values()),
            warnings,
        )

    async def accept(
        self,
        principal: Principal,
        request: GenerationRequest,
        *,
        dial: Dial | None = None,
        lane: Lane = "interactive",
        client: str = "native",
        idempotency_key: str | None = None,
        digest: str = "",
        external_id: str | None = None,
        deadline_seconds: float | None = None,
        webhook: Mapping[str, str] | None = None,
        parents: tuple[str, ...] = (),
        relation: Relation | None = None,
        warnings: Sequence[str] = (),
        waits: bool = False,
    ) -> JobSet:
        """Accept a request: its jobs are in the ledger when this returns, and the workers know of them.

        Args:
            warnings: Those of the API, before those of the request.
            waits: Whether the jobs are only for the call that waits for them, so that a service which is
                about to stop does not accept them.
            dial, lane, client, idempotency_key, digest, external_id, deadline_seconds, webhook, parents,
                relation: As of `Submission`.

        Raises:
            EngineClosed: The service is about to stop, and the caller waits.
            QueueFull: Too many jobs are waiting; `retry_after` says when to try again.
            StorageError: The disk has no room for images.
            LimnerError: As `prepare_all` and `Ledger.accept`.
        """

        def work() -> JobSet:
            if idempotency_key is not None:
                # Before anything that may refuse it by now: what was accepted once stays accepted.
                earlier = self._ledger.find_replayed(principal.account.id, idempotency_key, digest)
                if earlier is not None:
                    return earlier
            if webhook is not None:
                check_webhook(webhook, self._settings.webhook_hosts)
            prepared = self.prepare_all(principal, request, dial)
            jobs = tuple(job for one in prepared for job in one.jobs)
            given = prepared[0].request
            self._admit(len(jobs))
            for upload in prepared[0].uploads:
                self.store_upload(principal, upload)
            submission = Submission(
                jobs,
                given.model_dump(mode="json", exclude_unset=True),
                dial=dial,
                lane=lane,
                client=client,
                idempotency_key=idempotency_key,
                digest=digest,
                external_id=external_id,
                deadline_seconds=deadline_seconds,
                webhook=webhook,
                parents=parents,
                relation=relation,
                traceparent=current_traceparent(),
                warnings=tuple(
                    dict.fromkeys((*warnings, *(said for one in prepared for said in one.warnings)))
                ),
                uploads=_uploads_of(given),
                prompts=self.logged_prompts(given),
            )
            return self._ledger.accept(principal, submission)

        async with self._recorded(principal, client, request):
            try:
                if waits and self._stopping():
                    raise service_stops()
                accepted = await run_in_threadpool(work)
            except LimnerError as error:
                self._meter.count("limner_jobs_rejected_total", client=client, reason=error.code)
                raise
        if accepted.replayed:
            self._meter.count("limner_jobs_replayed_total", client=client)
        else:
            jobs = len(accepted.jobs)
            self._meter.count("limner_jobs_submitted_total", jobs, client=client, lane=lane)
            self._count_decisions(accepted.jobs)
        self._wake()
        return accepted

    async def find_replayed(
        self, principal: Principal, idempotency_key: str, digest: str, *, client: str
    ) -> JobSet | None:
        """What `accept` would return for an idempotency key that the account has used; None if it has not.

        Raises:
            IdempotencyConflict: As `Ledger.find_replayed`.
        """
        account_id = principal.account.id
        found = await run_in_threadpool(self._ledger.find_replayed, account_id, idempotency_key, digest)
        if found is not None:
            self._meter.count("limner_jobs_replayed_total", client=client)
        return found

    async def extend(
        self,
        principal: Principal,
        set_id: str,
        *,
        count: int = 1,
        seeds: Sequence[int] = (),
        instead_of: Sequence[str] = (),
        idempotency_key: str | None = None,
        digest: str = "",
    ) -> Extended:
        """Add further images of the same request to a set of the caller's own account.

        Args:
            count: Number of images. They take the next seeds.
            seeds: Their seeds, in place of `count`.
            instead_of: Jobs of the set that are cancelled, in place of both: one image is added for each that
                has not ended.
            idempotency_key, digest: As of `Submission`.

        Raises:
            Conflict: The set is not of generated images, is that of a dial, or would get too large.
            LimnerError: As `accept`.
        """

        def work() -> Extended:
            if idempotency_key is not None:
                # Before anything that may refuse it by now: what was accepted once stays accepted.
                earlier = self._ledger.find_replayed(principal.account.id, idempotency_key, digest)
                if earlier is not None:
                    return Extended(earlier)
            number = len(seeds) or len(instead_of) or count
            self._admit(number)
            while True:
                known = self._ledger.get_set(set_id, account_id=principal.account.id)
                further = self._further(principal, known, seeds, number)
                extended = self._ledger.extend(
                    principal,
                    set_id,
                    [job for prepared in further for job in prepared.jobs],
                    known=len(known.jobs),
                    uploads=_uploads_of(further[0].request),
                    instead_of=instead_of,
                    idempotency_key=idempotency_key,
                    digest=digest,
                )
                if extended is not None:  # else others came first, and took the seeds
                    return extended

        async with self._recorded(principal, "native"):
            extended = await run_in_threadpool(work)
        if extended.jobs.replayed:
            self._meter.count("limner_jobs_replayed_total", client="native")
            return extended
        added = len(extended.cancelled) if instead_of else len(seeds) or count
        labels = {"client": extended.jobs.client, "lane": extended.jobs.lane}
        self._meter.count("limner_jobs_submitted_total", added, **labels)
        self._count_decisions(extended.jobs.jobs[-added:] if added else ())
        self._wake()
        return extended

    async def retry(self, principal: Principal, job_id: str, *, account_id: str | None) -> Job:
        """Put a job that has ended without an image back into the queue, unless it is refused by now.

        Args:
            account_id: Whose jobs the caller may change; None: everybody's.

        Raises:
            PromptRefused: The safety policy refuses it by now.
            QueueFull, StorageError: As `accept`.
            LimnerError: As `prepare`, for the job's own account, and as `Ledger.retry`.
        """

        def work() -> Job:
            job = self._ledger.get_job(job_id, account_id=account_id)
            if job.kind == "generate" and job.state in ("failed", "dead", "cancelled"):
                own = job.account_id == principal.account.id
                owner = principal if own else Principal(self._ledger.get_account(job.account_id))
                self.prepare(owner, GenerationRequest.of(_params_of(job)))
            self._admit(1)
            return self._ledger.retry(account_id=account_id, job_id=job_id)

        async with self._recorded(principal, "native"):
            retried = await run_in_threadpool(work)
        self._wake()
        return retried

    @asynccontextmanager
    async def _recorded(
        self, principal: Principal, client: str, request: GenerationRequest | None = None
    ) -> AsyncIterator[None]:
        """A context in which a refusal by the safety policy is counted and recorded, as `_refused` does, and
        raised."""
        try:
            yield
        except PromptRefused as error:
            await run_in_threadpool(self._refused, principal, error, client, request)
            raise

    def _refused(
        self,
        principal: Principal,
        error: PromptRefused,
        client: str,
        request: GenerationRequest | None = None,
    ) -> None:
        """Count and record that the safety policy has refused a request. The audit log gets its prompts as
        the settings say, and no other word of it.

        Args:
            request: The request, where it is a new one.
        """
        decision = error.decision
        self._meter.count(
            "limner_safety_decisions_total", stage="prompt", action="block", rule=decision["rule"]
        )
        details = {name: decision[name] for name in ("rule", "score", "version")}
        account, key = principal.account.id, principal.key.id if principal.key else None
        self._ledger.audit(
            account,
            "request.refused",
            account,
            prompts=None if request is None else self.logged_prompts(request),
            fields=list(error.fields),
            client=client,
            key=key,
            **details,
        )

    def _count_decisions(self, jobs: Sequence[Job]) -> None:
        """Count what the safety policy has said about accepted jobs."""
        counts = Counter((one["action"], one["rule"] or "") for job in jobs if (one := job.safety))
        for (action, rule), number in counts.items():
            self._meter.count(
                "limner_safety_decisions_total", number, stage="prompt", action=action, rule=rule
            )

    def _further(
        self, principal: Principal, known: JobSet, seeds: Sequence[int], number: int
    ) -> list[Prepared]:
        """Further images of a set's request, with these seeds or else the next ones."""
        if known.kind != "generate":
            raise Conflict(f"{known.id} makes no images of a request: its kind is {known.kind}")
        if known.dial is not None:
            raise Conflict(
                f"{known.id} has an image for each value of {known.dial.field}, all of one seed",
                hint="submit a request of its own for further values or seeds",
            )
        job = known.jobs[0]
        params = _params_of(job)
        name = "variation_seed" if params.get("variation_strength") else "seed"
        if not seeds:
            last = max(one.params[name] for one in known.jobs)
            seeds = range(last + 1, last + 1 + number)
        runs: list[list[int]] = []  # of seeds that follow each other
        for seed in seeds:
            if runs and seed == runs[-1][-1] + 1:
                runs[-1].append(seed)
            else:
                runs.append([seed])
        return [
            self.prepare(principal, GenerationRequest.of({**params, name: run[0], "num_images": len(run)}))
            for run in runs
        ]

    def logged_prompts(self, request: GenerationRequest) -> LoggedPrompts | None:
        """What the audit log keeps of the prompts of a request; None: nothing."""
        if self._settings.prompt_log == "none":
            return None
        given = {name: getattr(request, name) for name in _PROMPTS}
        texts = {name: text for name, text in given.items() if text}
        return LoggedPrompts(self._settings.prompt_log, texts) if texts else None

    def read_image(self, data: bytes, field: str = "image") -> Upload:
        """Check an image that was sent by itself. Raises as `read_upload`."""
        return read_upload(data, max_pixels=self._settings.max_image_pixels, field=field)

    def store_upload(self, principal: Principal, upload: Upload) -> None:
        """Keep an upload for an account. Raises QuotaExceeded, OutputError."""
        digest = upload.sha256
        self._assets.put(upload.data)  # first, so that whatever the ledger lists is there
        try:
            self._ledger.add_upload(principal.account.id, digest, len(upload.data), upload.media_type)
        except LimnerError:
            self._ledger.delete_unowned([digest], self._assets.discard)
            raise
        if self._assets.find(digest) is None:  # deleted for the last account that had it, just before
            self._assets.put(upload.data)

    def _image_info(self, source: str, uploads: Mapping[str, Upload]) -> ImageInfo:
        """What is known of an upload, also of one that is not stored yet."""
        if (upload := uploads.get(source)) is not None:
            return image_info(upload.data_url)
        return image_info(self._assets.locate(source))

    def waiting(self) -> int:
        """Number of jobs that wait, as `_check_load` knows it. Blocks where the ledger is asked."""
        with self._loading:
            return self._newest_load().all_waiting + self._added

    def _newest_load(self) -> Load:
        """The load, for which the ledger is asked four times a second at most. Needs the lock `_loading`."""
        if time.monotonic() >= self._loaded_until:
            self._load, self._added = self._ledger.load(), 0
            self._loaded_until = time.monotonic() + _LOAD_SECONDS
        return self._load

    def _admit(self, jobs: int) -> None:
        """Raise QueueFull or StorageError where further jobs cannot be accepted."""
        self._check_load(jobs)
        check_room(self._settings.data, self._settings.min_free_bytes)

    def _check_load(self, jobs: int) -> None:
        """Raise QueueFull where too many jobs wait. What is accepted since the ledger was asked is added, as
        if none of it was begun."""
        with self._loading:
            load = self._newest_load()
            waiting, limit = load.all_waiting + self._added, self._settings.max_queued_jobs
            if waiting + jobs <= limit:
                self._added += jobs
                return
        each = load.all_waiting_seconds / max(1, load.all_waiting)
        retry_after = min(3600.0, max(1.0, (waiting + jobs - limit) * each / (load.work_per_second or 1.0)))
        raise QueueFull(
            f"{waiting} jobs are waiting, and {jobs} more exceed the {limit} that this service keeps",
            hint=f"try again in about {round(retry_after)} s",
            retry_after=retry_after,
        )

    def _with_names(self, request: GenerationRequest, entry: Entry) -> GenerationRequest:
        """The request with the names of the catalogue, so that no path of a caller goes further."""
        update: dict[str, Any] = {"model": entry.name, "variant": entry.variant}
        if request.revision is not None and request.revision != entry.revision:
            raise InvalidRequest(
                f"revision is {request.revision}; this service has {entry.revision or 'one only'}",
                fields=("revision",),
            )
        update["revision"] = entry.revision
        if request.refiner is not None:
            update["refiner"] = self.find_model(request.refiner).name
        return request.model_copy(update=update)

    def _with_uploads(
        self, principal: Principal, request: GenerationRequest
    ) -> tuple[GenerationRequest, dict[str, Upload]]:
        """The request with a `sha256:` for each input image, and the images that came with it."""
        uploads: dict[str, Upload] = {}

        def reference(field: str, source: str) -> str:
            if source.startswith("data:"):
                upload = self.read_image(decode_data_url(source, field), field)
                uploads[upload.reference] = upload
                return upload.reference
            digest = source.removeprefix("sha256:")
            if digest == source:
                raise InvalidRequest(
                    f"{field} is {shortened(source)}; paths and addresses are not opened here",
                    hint="give a data URL, or upload the image and give its `sha256:` reference",
                    fields=(field,),
                )
            if not self._ledger.has_upload(principal.account.id, digest):
                raise InvalidRequest(
                    f"{field} is {shortened(source)}, which is no upload of this account",
                    hint="upload it first",
                    fields=(field,),
                )
            return source

        return map_inputs(request, reference), uploads


def service_stops() -> EngineClosed:
    """The error for a call that waits for images when the service is about to stop."""
    return EngineClosed(
        "the service is about to stop",
        hint="send the request again when it is back",
        retry_after=_RESTART_SECONDS,
    )


def _params_of(job: Job) -> dict[str, Any]:
    """The request of a job, with the id of its checkpoint as its model."""
    return {**job.params, "model": job.model, "revision": None, "variant": None}


def _uploads_of(request: GenerationRequest) -> tuple[str, ...]:
    """Hashes of the uploads that a request names."""
    return tuple({source.removeprefix("sha256:"): None for _, source in inputs_of(request)})


def _too_many_pixels(field: str, limit: int, size: str = "") -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {size}larger than the {limit:,} pixels that are taken",
        hint="scale it down",
        fields=(field,),
    )
