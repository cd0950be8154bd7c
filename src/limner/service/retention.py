"""Deletes images, uploads and sets past their time, files that nothing refers to, and whole accounts.

The ledger forgets first and the files follow. A process that dies in between leaves files that nothing refers
to, and the next collection finds them. Usage and audit rows stay: they hold ids and sums, and prompts only as
`limner.service.audit.sealing` leaves them.
"""

import json
import logging
import re
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

from limner.errors import ImageRefused, InvalidRequest, NotFound, StorageError
from limner.settings.serve import ServeSettings

from .data_folder import erase_index
from .jobs import ImageFile
from .ledger.ledger import Ledger
from .metrics import Meter
from .release import ImageRelease
from .storage import StoredFiles

_LOG = logging.getLogger("limner.retention")

_DAY = 86400.0
_GRACE = 3600.0  # seconds before a file without a row counts as left over: its attempt may be storing it
_KEEP_EVENTS = 7 * _DAY  # streams of events can be resumed for so long
_BATCH = 500
_LOCKED = 50  # files that are deleted while the ledger takes no new ones
_DIGEST = re.compile("[0-9a-f]{64}")
_FILES = {"usage": "usage", "audit": "audit"}  # of an export, where they are not called by the plural


_OF_FILE = (  # columns of a row
    *("id", "seq", "key", "sha256", "created_at", "account_id", "watermark", "delivered_sha256", "blurred"),
)


@dataclass(frozen=True)
class Deleted:
    """What was deleted.

    Attributes:
        images, uploads, sets, events: Number of each that was deleted from the ledger.
        leftovers: Number of files that nothing referred to.
    """

    images: int = 0
    uploads: int = 0
    sets: int = 0
    events: int = 0
    leftovers: int = 0


class Retention:
    """Deletes expired data; exports and deletes the data of an account."""

    def __init__(self, ledger: Ledger, store: StoredFiles, settings: ServeSettings, meter: Meter) -> None:
        self._ledger, self._store, self._settings, self._meter = ledger, store, settings, meter
        self._uploads = settings.data / "uploads"

    def run(self) -> Deleted:
        """Delete expired data.

        Raises:
            LedgerError, StorageError: A store cannot be read or written; the next round goes on.
        """
        settings, ledger = self._settings, self._ledger
        images = uploads = sets = 0
        images += self.empty_trash(deleted_for=settings.trash_days * _DAY)
        if (days := settings.keep_images_days) is not None:
            while keys := ledger.expire_images(older_than=days * _DAY, limit=_BATCH):
                self._delete(keys, "expired")
                images += len(keys)
        withheld = settings.keep_withheld_days * _DAY
        while keys := ledger.expire_withheld(older_than=withheld, limit=_BATCH):
            self._delete(keys, "expired")
            images += len(keys)
        if (days := settings.keep_uploads_days) is not None:
            # No loop: those that other accounts still have are not among the answers.
            digests = ledger.expire_uploads(unused_for=days * _DAY, limit=20 * _BATCH)
            uploads = self._delete_uploads(digests)
        if (days := settings.keep_jobs_days) is not None:
            while (freed := ledger.forget_sets(older_than=days * _DAY)).sets:
                self._delete(freed.keys, "expired")
                sets += freed.sets
                images += len(freed.keys)
        if (days := settings.keep_prompts_days) is not None:
            ledger.forget_prompts(older_than=days * _DAY)
        events = ledger.forget_events(older_than=_KEEP_EVENTS)
        deleted = Deleted(images, uploads, sets, events)
        if deleted != Deleted():
            _LOG.info("deleted expired data", extra={"fields": asdict(deleted)})
        return deleted

    def empty_trash(self, *, deleted_for: float = 0.0, account_id: str | None = None) -> int:
        """Delete images permanently that were deleted some seconds ago, and return their number.

        Args:
            account_id: Whose they are; None: everybody's.

        Raises:
            LedgerError, StorageError: As `run`.
        """
        count = 0
        while keys := self._ledger.empty_trash(deleted_for=deleted_for, account_id=account_id, limit=_BATCH):
            self._delete(keys, "trash")
            count += len(keys)
        return count

    def collect(self) -> int:
        """Delete masters that no image refers to, as attempts leave behind that came too late, and uploads
        that no account has and unfinished files, as a process leaves behind that dies. Returns their number.
        Those of the last hour stay: they may be about to be entered.

        Lists the whole store, so it is not for every minute. Raises as `run`.
        """
        before = datetime.fromtimestamp(self._ledger.now() - _GRACE, UTC)
        count = 0
        old = (one.key for one in self._store.masters() if one.modified < before)
        while keys := list(islice(old, _BATCH)):
            known = self._ledger.known_keys(keys)
            stale = [key for key in keys if key not in known]
            self._delete(stale, "leftover")
            count += len(stale)
        uploads = self._collect_uploads(before.timestamp())
        unfinished = self._store.remove_unfinished(before)
        if count or uploads or unfinished:
            fields = {"images": count, "uploads": uploads, "unfinished": unfinished}
            _LOG.info("deleted files that nothing refers to", extra={"fields": fields})
        return count + uploads + unfinished

    def _collect_uploads(self, before: float) -> int:
        """Delete uploads written before a time that no account has, and return their number."""
        count = 0
        old = (
            path.name
            for path in self._uploads.glob("??/*")
            if _DIGEST.fullmatch(path.name) and _modified(path) < before
        )
        while digests := list(islice(old, _BATCH)):
            known = self._ledger.known_uploads(digests)
            count += self._delete_uploads([one for one in digests if one not in known])
        return count

    def erase(self, account_id: str, *, actor: str = "operator") -> Deleted:
        """Delete everything of an account: its row, keys, sets, images, uploads and drafts. What it has used
        stays in the usage, under the account "erased".

        Raises:
            NotFound: There is no such account.
            Conflict: It is the account that the service itself needs.
            StorageError: A file cannot be deleted. The ledger has forgotten the account by then, and the next
                collection deletes the files.
        """
        freed = self._ledger.erase_account(account_id, actor=actor)
        # Among them those of attempts that came too late, or are at work: their workers lose the jobs.
        stored = {one.key for one in self._store.masters(account_id)}
        self._delete(sorted(stored | {*freed.keys}), "erased")
        self._delete_uploads(freed.uploads)
        erase_index(self._settings.data / "search", account_id)
        return Deleted(len(freed.keys), len(freed.uploads), leftovers=len(stored - {*freed.keys}))

    def export(
        self,
        account_id: str,
        out: BinaryIO,
        release: ImageRelease,
        passed: Callable[[bytes], bytes] | None = None,
    ) -> int:
        """Write everything of an account as a ZIP file: the ledger's rows as JSON lines, one file for each
        kind, images as they are delivered, and uploads as they are stored.

        Args:
            release: Reads the images.
            passed: What is written of an upload, None for all of it. One for which it raises ImageRefused or
                InvalidRequest is left out.

        Returns:
            Number of files in it.

        Raises:
            NotFound: There is no such account.
        """
        images: list[ImageFile] = []
        uploads: list[str] = []
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for kind, rows in groupby(self._ledger.export_account(account_id), lambda pair: pair[0]):
                with archive.open(
                    _entry(f"{_FILES.get(kind, f'{kind}s')}.jsonl"), "w", force_zip64=True
                ) as file:
                    for _, row in rows:
                        file.write(json.dumps(row, default=str).encode() + b"\n")
                        if kind == "image":
                            images.append(ImageFile(*(row[name] for name in _OF_FILE)))
                        elif kind == "upload":
                            uploads.append(row["sha256"])
            for image in images:
                _add(archive, f"images/{image.id}.png", partial(release.file, image))
            for digest in uploads:
                _add(archive, f"uploads/{digest}", partial(self._passed_upload, digest, passed))
            return len(archive.namelist())

    def _delete(self, keys: Sequence[str], reason: str) -> None:
        if keys:
            self._store.delete(keys)
            self._meter.count("limner_pictures_deleted_total", len(keys), reason=reason)

    def _delete_uploads(self, digests: Sequence[str]) -> int:
        """Delete the content of uploads that no account has by now, and return their number."""
        parts = [digests[start : start + _LOCKED] for start in range(0, len(digests), _LOCKED)]
        return sum(len(self._ledger.delete_unowned(part, self._unlink)) for part in parts)

    def _unlink(self, digest: str) -> None:
        try:
            self._upload(digest).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the upload {digest} cannot be deleted: {error.strerror}") from error

    def _passed_upload(self, digest: str, passed: Callable[[bytes], bytes] | None) -> bytes:
        data = self._upload(digest).read_bytes()
        return data if passed is None else passed(data)

    def _upload(self, digest: str) -> Path:
        return self._uploads / digest[:2] / digest  # as `limner.images.assets.Assets` lays them out


def _modified(path: Path) -> float:
    """When a file was written; never, where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _add(archive: zipfile.ZipFile, name: str, read: Callable[[], bytes]) -> None:
    """Add a file that is compressed already, unless it has been deleted since, or may not leave."""
    try:
        data = read()
    except (NotFound, FileNotFoundError, ImageRefused, InvalidRequest):
        return
    archive.writestr(_entry(name), data, zipfile.ZIP_STORED)


def _entry(name: str) -> zipfile.ZipInfo:
    """A file in an archive, made now."""
    entry = zipfile.ZipInfo(name, time.localtime()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
