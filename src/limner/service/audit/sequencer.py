"""The sequencer of the audit log: makes leaves of new entries, signs the tree, copies checkpoints away."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from limner import __version__
from limner.errors import InvalidRequest, LimnerError, NotFound
from limner.files import whole_file
from limner.service.ledger.auditing import Leaf
from limner.service.ledger.ledger import Ledger
from limner.settings.serve import ServeSettings

from .canonical import storable
from .key import MISSING, audit_key, new_audit_key
from .notes import Checkpoint, SigningKey, open_checkpoint, opened_checkpoint
from .proofs import consistency_document, inclusion_document
from .sealing import PROMPTS, Sealer

_LOG = logging.getLogger("limner.audit")

_SECONDS = 2.0
_BATCH = 200
_ORIGIN_BYTES = 8
_SERVICE = "service"
_POLICY = (
    *("safety", "limits", "quotas", "max_queued_jobs", "require_key", "prompt_log", "keep_prompts_days"),
    *("keep_images_days", "keep_uploads_days", "keep_jobs_days", "keep_withheld_days", "trash_days"),
)

T = TypeVar("T")


class AuditLog:
    """The audit log of a service with its key. All methods can be called in any thread.

    Attributes:
        key: The public key that signs it now.

    Args:
        ledger: Where it is kept.
        settings: Settings of the service: its data folder, and where checkpoints are copied to.

    Raises:
        InvalidRequest: The key is missing, or it is not the one that the log was signed with last.
        OutputError: The key of a new log cannot be written.
    """

    def __init__(self, ledger: Ledger, settings: ServeSettings) -> None:
        self._ledger, self._settings = ledger, settings
        signers = ledger.audit_signers()
        seed = audit_key(settings.data, create=not signers)
        if not signers:
            # The first of several that start at once names the log.
            ledger.add_audit_signer(_named(seed).public, first=True)
            signers = ledger.audit_signers()
        self._signing = SigningKey(signers[0].name, seed)
        self.key = self._signing.public
        if self.key != signers[-1]:
            raise InvalidRequest(
                f"the key in {settings.data} is not the one that the audit log was signed with last",
                hint=MISSING,
            )
        self._sealer = Sealer(seed)
        self._copied = -1

    @classmethod
    def with_new_key(cls, ledger: Ledger, settings: ServeSettings, *, actor: str) -> "AuditLog":
        """The audit log with a new key, in place of one that was lost or is to be used no longer."""
        signers = ledger.audit_signers()
        seed = new_audit_key(settings.data)
        if signers:
            ledger.add_audit_signer(SigningKey(signers[0].name, seed).public, actor=actor)
        return cls(ledger, settings)

    def record_policy(self) -> None:
        """Write an entry if the settings that decide about requests are others than at the last start."""
        settings = self._settings
        now = {name: getattr(settings, name) for name in _POLICY} | {"version": __version__}
        plain = storable(
            {name: dict(value) if isinstance(value, Mapping) else value for name, value in now.items()}
        )
        last = self._ledger.last_audit_entry(_SERVICE, "policy.changed")
        if last is None or last.details != plain:
            self._ledger.audit("cli", "policy.changed", _SERVICE, **plain)

    def sequence(self) -> int:
        """Make leaves of all entries that are none yet. Returns their number."""
        count = 0
        while done := self._ledger.sequence(self._sealer, self._sign, limit=_BATCH):
            count += done
            if done < _BATCH:
                break
        return count

    def _sign(self, size: int, root: bytes) -> str:
        return self._signing.sign(Checkpoint(self.key.name, size, root).text())

    def checkpoint(self) -> str:
        """The newest checkpoint, of all entries that there are by now."""
        self.sequence()
        note = self._ledger.checkpoint()
        if note is None:
            raise NotFound("the audit log has no entry yet")
        return note

    def prove(self, name: str) -> dict[str, object]:
        """The proof that an entry is in the log.

        Args:
            name: As of `Ledger.find_audit_entry`.

        Raises:
            NotFound: There is no such entry.
        """
        leaf, note = self._leaf_of(name), self.checkpoint()
        try:  # after a new key, the last checkpoints may be signed by the one before
            checkpoint, key = opened_checkpoint(note, self._ledger.audit_signers())
        except InvalidRequest:
            raise InvalidRequest(
                "the newest checkpoint is not signed by a key of this log", hint=MISSING
            ) from None
        path = self._ledger.audit_proof(leaf.number, checkpoint.size)
        return inclusion_document(leaf.entry, leaf.number, path, note, key)

    def prove_consistency(self, old: str) -> dict[str, object]:
        """The proof that the log continues that of a checkpoint.

        Args:
            old: A checkpoint of this log, as a note.

        Raises:
            InvalidRequest: It is no checkpoint of this log, or of a larger one.
        """
        keys, note = self._ledger.audit_signers(), self.checkpoint()
        earlier, now = open_checkpoint(old, keys), open_checkpoint(note, keys)
        if earlier.size > now.size:
            raise InvalidRequest(
                f"the checkpoint is of {earlier.size} entries, and the log has {now.size}",
                hint="entries at its end are missing, or it is another log; `limner audit verify` checks it",
            )
        return consistency_document(old, note, self._ledger.audit_consistency(earlier.size, now.size), keys)

    def prompts_of(self, name: str) -> dict[str, object] | None:
        """The prompts of an entry, where it has any: readable by their fields, hashed, or erased.

        Raises:
            NotFound: There is no such entry.
        """
        return self._prompts_of(self._leaf_of(name))

    def fields_with(self, name: str, text: str) -> tuple[str, ...] | None:
        """The fields of an entry whose prompt is a text; None where its prompts cannot be compared any more.

        Raises:
            NotFound: There is no such entry.
        """
        return self._fields_with(self._leaf_of(name), text)

    def _prompts_of(self, leaf: Leaf) -> dict[str, object] | None:
        sealed = leaf.entry["details"].get(PROMPTS)
        if sealed is None:
            return None
        if leaf.prompts is not None:
            return dict(leaf.prompts)
        found = self._opened(leaf, lambda key, alias: self._sealer.open(sealed, key, alias, leaf.entry["id"]))
        return {"erased": True} if found is None else dict(found)

    def _fields_with(self, leaf: Leaf, text: str) -> tuple[str, ...] | None:
        prompts = self._prompts_of(leaf)
        if prompts is None or "erased" in prompts:
            return None
        if "hashed" not in prompts:
            return tuple(field for field, its in prompts.items() if its == text)
        return self._opened(leaf, lambda key, alias: self._sealer.fields_with(prompts, key, alias, text))

    def _opened(self, leaf: Leaf, read: Callable[[bytes, str], T]) -> T | None:
        """What `read` makes of the key of a leaf's sealed prompts, encrypted, and the alias of their account;
        None if the key was erased, or encrypted with another key of the log."""
        alias = str(leaf.entry["actor"])
        wrapped = self._ledger.sealed_with(alias, leaf.entry["details"][PROMPTS]["month"])
        try:
            return None if wrapped is None else read(wrapped, alias)
        except ValueError:
            return None

    def _leaf_of(self, name: str) -> Leaf:
        """The leaf that an entry is by now. Raises NotFound."""
        self.sequence()
        found = self._ledger.find_audit_entry(name)
        assert found.leaf is not None
        return self._ledger.audit_leaf(found.leaf)

    def copy_checkpoint(self) -> Path | None:
        """Copy the newest checkpoint into the folder of the settings, unless it is there. Returns its file.

        Raises:
            OSError: The folder cannot be written.
        """
        folder = self._settings.audit_checkpoints
        if folder is None or (note := self._ledger.checkpoint()) is None:
            return None
        if (size := Checkpoint.parse(note).size) == self._copied:
            return None
        path = folder / f"checkpoint-{size:012d}.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(note, encoding="utf-8")
        self._copied = size
        return path


def _named(seed: bytes) -> SigningKey:
    """The key of a new log, with a name for it."""
    return SigningKey(f"limner/{os.urandom(_ORIGIN_BYTES).hex()}", seed)


class Sequencer:
    """A thread that sequences every two seconds, and copies a checkpoint every minute if it is to."""

    COPY_ROUNDS = 30

    def __init__(self, log: AuditLog) -> None:
        self._log, self._stopping = log, threading.Event()
        self._thread = threading.Thread(target=self._run, name="limner-sequencer", daemon=True)

    def start(self) -> None:
        """Start. The first round begins at once."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Sequence what is left, and end."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        rounds = 0
        while not self._stopping.is_set():
            self._once(copy=rounds % self.COPY_ROUNDS == 0)
            rounds += 1
            self._stopping.wait(_SECONDS)
        self._once(copy=True)

    def _once(self, *, copy: bool) -> None:
        try:
            self._log.sequence()
            if copy:
                self._log.copy_checkpoint()
        except (LimnerError, OSError) as error:
            _LOG.warning("the audit log could not be sequenced, which is tried again: %s", error)
        except Exception:  # the service goes on: entries are kept until they can be sequenced
            _LOG.exception("the audit log could not be sequenced")
