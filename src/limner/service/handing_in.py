"""Hands in the jobs of a worker: checks, encodes and stores the image, and records the result in the ledger.

If the disk is full or the ledger unavailable, the result is kept and tried again as long as the worker holds
the job.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from secrets import token_hex
from typing import Any

from limner.errors import (
    DeadlineExceeded,
    InternalError,
    LimnerError,
    NotFound,
    OutOfMemory,
)
from limner.images.picture import Picture, encode, pixel_hash
from limner.request import GenerationRequest
from limner.safety.images import ImageDecision, blurred, noted
from limner.safety.policy import Action

from .channel import for_callers
from .image_safety import ImageSafety, review_of
from .jobs import Completion, JobError, NewReview, StoredImage
from .ledger.ledger import Ledger
from .measuring import WorkerMeter
from .release import COMPRESSION, with_watermark
from .runs import Run
from .signing import DeliverySigning
from .storage import ImageStore

_LOG = logging.getLogger("limner.worker")

_LATER, _MUCH_LATER = 0.2, 5.0  # seconds until a retry


class HandingIn:
    """Hands in jobs. Safe to use from several threads.

    Args:
        ledger: Where jobs end.
        store: Where images are stored.
        meter: Counts what is used and drawn.
        price, currency: Price of a device second.
        ended: Set when the worker must end, so that nothing is tried again.
        trouble: Called with the reason when something has to be tried again.
        without_paths: Removes paths from messages for callers.
        watermark_key: Key of the watermark of what is delivered; None: it has none.
        safety: Decides about images; None: nothing does.
        keeps_withheld: Whether images that it blocks are stored for their review.
        signing: Signs what is delivered; None: nothing does.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: ImageStore,
        meter: WorkerMeter,
        *,
        price: float,
        currency: str,
        ended: threading.Event,
        trouble: Callable[[str], None],
        without_paths: Callable[[str], str],
        watermark_key: bytes | None = None,
        safety: ImageSafety | None = None,
        keeps_withheld: bool = False,
        signing: DeliverySigning | None = None,
    ) -> None:
        self._ledger, self._store, self._meter = ledger, store, meter
        self._price, self._currency, self._ended, self._trouble = price, currency, ended, trouble
        self._without_paths, self._watermark_key = without_paths, watermark_key
        self._safety, self._keeps_withheld, self._signing = safety, keeps_withheld, signing

    def end(self, run: Run, error: Exception | None) -> None:
        """End a job as its run says: done, failed, cancelled or given back.

        Args:
            error: Why it failed.
        """
        try:
            try:
                self._end(run, error)
            except Exception as failure:
                _LOG.exception("a job could not be handed in", extra=_log_fields(run))
                self._fail(run, failure)
        except Exception:  # its lease ends, and another worker takes it up
            _LOG.exception("the failure of a job could not be recorded", extra=_log_fields(run))

    def _end(self, run: Run, error: Exception | None) -> None:
        """Record in the ledger how a job has ended for this worker."""
        if run.lost:
            self._count_lost(run)
            return
        job = run.claim.job
        used = {"device_seconds": run.device_seconds, "price": self._price}
        if error is not None:
            self._fail(run, error)
        elif run.picture is not None:
            self._deliver(run, run.picture)
        elif run.released:
            if self._insist(run, lambda: self._ledger.release(job.id, job.fence, **used)):
                self._meter.used(job, run.device_seconds)
        elif run.cancelled:
            if self._insist(run, lambda: self._ledger.cancelled(job.id, job.fence, **used)):
                self._meter.used(job, run.device_seconds)
        else:
            self._fail(run, InternalError("the engine ended the job without an image"))

    def _fail(self, run: Run, error: Exception, review: NewReview | None = None) -> None:
        """Record an error in the ledger.

        Out of memory and internal errors are retryable: another batch or process may succeed. A missed
        deadline is not.

        Args:
            review: What a person is to look at, where the image was blocked.
        """
        job, public = run.claim.job, for_callers(error)
        retryable = isinstance(public, OutOfMemory) or public.retryable
        hint = public.hint and self._without_paths(public.hint)
        state = self._insist(
            run,
            lambda: self._ledger.fail(
                job.id,
                job.fence,
                JobError(public.code, self._without_paths(public.message), hint, public.fields),
                retryable=retryable and not isinstance(public, DeadlineExceeded),
                device_seconds=run.device_seconds,
                price=self._price,
                review=review,
            ),
        )
        if state is not None:
            self._meter.used(job, run.device_seconds)

    def _deliver(self, run: Run, picture: Picture) -> None:
        """Store an image and hand it in. One that the safety policy blocks is withheld: it is stored for its
        review, if at all."""
        job = run.claim.job
        picture.record = picture.record.model_copy(update={"notes": self._notes(run, picture)})
        decision = self._decided(run, picture)
        refusal = None if decision is None else decision.refusal
        about_image = None if decision is None else decision.to_dict()
        if refusal is not None and not self._keeps_withheld:
            self._fail(run, refusal, review_of(job, about_image))
            return
        # The master keeps its pixels, and has the decision in its record.
        picture = shown = picture if decision is None else noted(picture, decision)
        if is_blurred := decision is not None and decision.action is Action.BLUR:
            shown = Picture(blurred(picture), picture.record)
        with self._meter.stage("encode"):
            data = encode(picture, "png", compress_level=COMPRESSION)
        delivered, file = shown, b""
        if self._watermark_key is not None:
            with self._meter.stage("watermark"):
                delivered = with_watermark(shown, self._watermark_key)
        if refusal is None and self._signing is not None:
            with self._meter.stage("sign"):
                request = GenerationRequest.of(job.params)
                signed = self._signing.drawn(delivered, request, compress_level=COMPRESSION)
            file, record = signed.data, delivered.record
            if signed.warnings:
                _LOG.warning("%s", *signed.warnings, extra=_log_fields(run))
                record = record.model_copy(update={"warnings": (*record.warnings, *signed.warnings)})
            delivered = Picture(delivered, record)
        elif refusal is None and (delivered is not shown or is_blurred):
            with self._meter.stage("encode"):
                file = encode(delivered, "png", compress_level=COMPRESSION)
        with self._meter.stage("store"):
            key = self._insist(run, lambda: self._store.put_master(job.account_id, job.id, job.fence, data))
            if key is not None and file:
                put = partial(self._store.put_delivered, key, file, blurred=is_blurred)
                self._insist(run, partial(put, lasting=self._signing is not None))
        if key is None:
            return
        pixels = picture if picture.mode in ("RGB", "RGBA") else picture.convert("RGB")
        image = StoredImage(
            id=f"img_{token_hex(12)}",
            job_id=job.id,
            account_id=job.account_id,
            key=key,
            sha256=hashlib.sha256(data).hexdigest(),
            pixels_sha256=pixel_hash(pixels),
            width=picture.width,
            height=picture.height,
            bytes=len(data),
            record=delivered.record.model_dump(mode="json"),
            watermark=None if (mark := delivered.record.watermark) is None else mark.id,
            delivered_sha256=hashlib.sha256(file).hexdigest() if file else None,
            delivered_bytes=len(file),
            safety=about_image,
            blurred=is_blurred,
        )
        if refusal is not None:
            self._fail(run, refusal, review_of(job, about_image, image))
            return
        review = review_of(job, about_image)
        done = Completion(image, run.device_seconds, self._price, run.batch_size, review)
        accepted = self._insist(run, lambda: self._finish(run, done))
        if accepted:
            self._meter.used(job, run.device_seconds)
            self._meter.drawn(job)
            self._keep_steps(run, image)
            return
        self._meter.too_late()
        self._count_lost(run)
        _LOG.info("an image was handed in too late and is dropped", extra=_log_fields(run))
        if accepted is not None:
            self._store.delete([key])
        # Else the ledger may have taken it though its answer was lost. If not, collection deletes the file.

    def _decided(self, run: Run, picture: Picture) -> ImageDecision | None:
        """What the safety policy says about an image; None if nothing."""
        if self._safety is None:
            return None
        with self._meter.stage("safety"):
            decision = self._safety.decide(run.claim.job, picture)
        if decision is not None:
            action, rule = decision.action.value, decision.rule or ""
            self._meter.count("limner_safety_decisions_total", stage="image", action=action, rule=rule)
        return decision

    def _keep_steps(self, run: Run, image: StoredImage) -> None:
        """Store the strip of an image that has been handed in. A failure here does not affect the image."""
        if run.strip is None or image.blurred:
            return
        try:
            with self._meter.stage("strip"):
                strip = run.strip.finished()
                if strip is None:
                    return
                self._store.put_strip(image.key, strip.sprite, strip.layout)
            if not self._ledger.known_keys([image.key]):  # deleted meanwhile: no strip may be left over
                self._store.delete([image.key])
        except Exception:  # the image itself has been handed in
            _LOG.exception("the steps of an image are not kept", extra=_log_fields(run))

    def _count_lost(self, run: Run) -> None:
        """Count the device time of a job that another worker has taken over."""
        job, seconds = run.claim.job, run.device_seconds
        try:
            counted = seconds > 0 and self._ledger.count_lost(
                job.id, job.fence, device_seconds=seconds, price=self._price
            )
        except LimnerError as error:
            _LOG.warning("the usage of a lost job is not counted: %s", error, extra=_log_fields(run))
            return
        if counted:
            self._meter.used(job, seconds)

    def _finish(self, run: Run, done: Completion) -> bool:
        """Hand in an image. False if another worker has taken over the job.

        An earlier try may have been committed, though its answer was lost.
        """
        job = run.claim.job
        if self._ledger.finish(job.id, job.fence, done):
            return True
        try:
            kept = self._ledger.get_job(job.id).image
        except NotFound:  # erased
            return False
        return kept is not None and done.image is not None and kept.key == done.image.key

    def _notes(self, run: Run, picture: Picture) -> dict[str, str]:
        cost = run.device_seconds * self._price
        priced = {"cost": f"{cost:.6f} {self._currency}"} if self._price else {}
        job, seconds = run.claim.job, f"{run.device_seconds:.4f}"
        decided = {} if job.safety is None else {"safety": _sentence(job.safety)}
        return {**picture.record.notes, "job": job.id, "device_seconds": seconds, **priced, **decided}

    def _insist(self, run: Run, act: Callable[[], Any]) -> Any:
        """The result of `act`, which uses the ledger or the store.

        Retryable errors are retried as long as this worker holds the job. None if it has lost the job, or if
        the worker must end."""
        wait = _LATER
        while not run.lost:
            try:
                result = act()
            except LimnerError as error:
                if not error.retryable:
                    raise
                self._trouble(error.message)
            else:
                return result
            if self._ended.wait(wait):
                return None
            wait = min(2 * wait, _MUCH_LATER)
        return None


def _sentence(decision: Mapping[str, Any]) -> str:
    """A decision of the safety policy about prompts, for a record."""
    if decision["rule"] is None:
        return f"{decision['action']} by {decision['version']}"
    rule, score = decision["rule"], decision["score"]
    return f"{decision['action']} by {decision['version']}, rule {rule} ({score:g}): {decision['reason']}"


def _log_fields(run: Run) -> dict[str, Any]:
    return {"fields": {"job": run.claim.job.id, "fence": run.claim.job.fence}}
