"""The audit log: entries, the Merkle tree that they are leaves of, and its checkpoints.

Entries are inserted in the transaction of what they record (`Writing._audit`), and cost no more than that.
A moment later `sequence` moves them into the tree: it gives them their numbers, hashes them and signs the
root, all in one transaction under the lock of the counter. So a process may die at any time, and several may
sequence at once, and each entry becomes one leaf.

Names of accounts do not stand in leaves, but aliases: `limner.service.audit.sealing`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, null, or_, select, update

from limner.errors import NotFound
from limner.service.audit.canonical import canonical, storable
from limner.service.audit.merkle import (
    TILE_LEVELS,
    Frontier,
    Subtree,
    complete_parts,
    consistency_proof,
    folded,
    inclusion_proof,
    joined,
    leaf_hash,
)
from limner.service.audit.notes import PublicKey
from limner.service.audit.sealing import ALIAS, PROMPTS, Sealer, entry_object, month_of, seal
from limner.service.identity import LOCAL_ACCOUNT
from limner.service.jobs import LoggedPrompts

from .rows import new_id
from .schema import (
    accounts,
    audit,
    audit_aliases,
    audit_checkpoints,
    audit_keys,
    audit_leaves,
    audit_nodes,
    audit_signers,
    counters,
    images,
)
from .writing import Writing, parts

ERASED = "erased"
"""What stands in place of an account that was erased."""

KEEP_SECONDS = 60.0
"""Least time between two checkpoints that are kept: the newest one is replaced until it is as old."""

_BATCH = 200
_PAGE = 1000
_TELLING = (
    "job.done",
    "job.failed",
    "job.cancelled",
    "job.dead",
    "set.accepted",
)  # the most, of their subject
_SYSTEM = {"operator", "cli", "ledger", LOCAL_ACCOUNT, ERASED}  # actors that are no accounts to be erased
_OF_ACCOUNTS = ("account.", "images.", "request.")  # actions whose subject is an account

_SIZE = select(counters.c.value).where(counters.c.name == "audit")
_PENDING = select(audit).order_by(audit.c.id).limit(bindparam("count"))
_ANY_PENDING = select(audit.c.id).limit(1)
_LEAF, _NODE, _CHECKPOINT = insert(audit_leaves), insert(audit_nodes), insert(audit_checkpoints)
_HASHES = (
    select(audit_leaves.c.hash)
    .where(audit_leaves.c.leaf >= bindparam("first"), audit_leaves.c.leaf < bindparam("end"))
    .order_by(audit_leaves.c.leaf)
)
_NODES = (
    select(audit_nodes.c.hash)
    .where(
        audit_nodes.c.level == bindparam("of_level"),
        audit_nodes.c.number >= bindparam("first"),
        audit_nodes.c.number < bindparam("end"),
    )
    .order_by(audit_nodes.c.number)
)


@dataclass(frozen=True)
class AuditRow:
    """An entry of the audit log.

    Attributes:
        id: Its number in the order of insertion.
        at: Seconds since the epoch.
        actor: Who did it: an account, a worker, "operator", "cli" or "ledger".
        action: What was done, such as "job.done".
        subject: What it was done to: an id.
        details: More about it.
        leaf: Its number in the tree, from 0; None until it is in it.
    """

    id: int
    at: float
    actor: str
    action: str
    subject: str
    details: Mapping[str, Any] = field(default_factory=dict)
    leaf: int | None = None


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree, as it is stored.

    Attributes:
        number: Its number, from 0.
        entry: The object that it is the hash of.
        hash: Its hash.
        prompts: Prompts that are kept as they are.
    """

    number: int
    entry: Mapping[str, Any]
    hash: bytes
    prompts: Mapping[str, str] | None = field(default=None, repr=False)


class Auditing(Writing):
    """Writing, sequencing, reading and proving."""

    _frontier = Frontier()

    def audit(
        self,
        actor: str,
        action: str,
        subject: str,
        *,
        prompts: LoggedPrompts | None = None,
        **details: Any,
    ) -> None:
        """Append an entry to the audit log, for an action that does not change the ledger."""
        with self._db.write() as tx:
            self._audit(tx, self._db.time(tx), actor, action, subject, prompts=prompts, **details)

    # -- the tree --

    def sequence(self, sealer: Sealer, sign: Callable[[int, bytes], str], *, limit: int = _BATCH) -> int:
        """Make leaves of entries that are none yet, and sign the tree with them.

        Args:
            sealer: Seals their prompts.
            sign: Returns the checkpoint for a size and a root, as a note.
            limit: Number of entries at most.

        Returns:
            Number of entries that became leaves; `limit` of them means that there may be more.
        """
        with self._db.read() as connection:
            if connection.execute(_ANY_PENDING).first() is None:
                return 0
        with self._db.write() as tx:
            size = tx.execute(_SIZE.with_for_update()).scalar_one()
            rows = tx.execute(_PENDING, {"count": limit}).all()
            if not rows:
                return 0
            frontier = self._frontier_of(tx, size)
            aliases = self._aliases_for(tx, rows)
            keys: dict[tuple[str, str], bytes] = {}
            leaves, nodes = [], []
            for row in rows:
                leaf = self._leaf(tx, row, frontier.size, aliases, sealer, keys)
                done = frontier.append(leaf["hash"])
                leaves.append(leaf)
                nodes += [dict(zip(("level", "number", "hash"), node, strict=True)) for node in done]
            tx.execute(_LEAF, leaves)
            if nodes:
                tx.execute(_NODE, nodes)
            for part in parts([row.id for row in rows]):
                tx.execute(delete(audit).where(audit.c.id.in_(part)))
            tx.execute(update(counters).where(counters.c.name == "audit").values(value=frontier.size))
            self._keep_checkpoint(tx, frontier.size, sign(frontier.size, frontier.root))
        self._frontier = frontier
        return len(rows)

    def _frontier_of(self, connection: Connection, size: int) -> Frontier:
        """The right edge of the tree of a size."""
        if self._frontier.size == size:
            return self._frontier.copy()
        parts = [_complete(connection, level, number) for level, number in complete_parts(0, size)]
        return Frontier(size, parts)

    def _leaf(
        self,
        tx: Connection,
        row: Row[Any],
        number: int,
        aliases: Mapping[str, str],
        sealer: Sealer,
        keys: dict[tuple[str, str], bytes],
    ) -> dict[str, Any]:
        """The row of a leaf for an entry. `keys` is that of `_prompt_key`."""
        details = storable(row.details)
        if "account" in details:
            details["account"] = aliases.get(details["account"], details["account"])
        actor, kept = aliases.get(row.actor, row.actor), None
        if row.prompts:
            prompts, month = storable(row.prompts["texts"]), month_of(row.at)
            key = self._prompt_key(tx, row.actor, actor, month, sealer, keys)
            details[PROMPTS] = seal(prompts, row.prompts["keep"], key, actor, month, row.id)
            kept = prompts if row.prompts["keep"] == "plain" else None
        subject = aliases.get(row.subject, row.subject)
        entry = entry_object(row.id, row.at, actor, row.action, subject, details)
        columns = {name: value for name, value in entry.items() if name != "v"}
        return {"leaf": number, **columns, "hash": leaf_hash(canonical(entry)), "prompts": kept}

    def _aliases_for(self, tx: Connection, rows: Sequence[Row[Any]]) -> dict[str, str]:
        """What the entries call the accounts that are named in rows; new aliases are made.

        A name that can only be that of an account gets an alias that is kept nowhere if there is no such
        account any more.
        """
        certain: dict[str, None] = {}  # in order, so that rows are written in one order
        possible: dict[str, None] = {}
        for row in rows:
            possible |= {row.actor: None, row.subject: None}
            if "/" not in row.actor:  # as in the names of workers
                certain[row.actor] = None
            if row.action.startswith(_OF_ACCOUNTS):
                certain[row.subject] = None
            if isinstance(name := row.details.get("account"), str):
                certain[name] = None
        names = [
            name for name in {**certain, **possible} if name not in _SYSTEM and not ALIAS.fullmatch(name)
        ]
        known: dict[str, str] = {}
        there: set[str] = set()
        for part in parts(names):
            its = select(audit_aliases).where(audit_aliases.c.account_id.in_(part))
            known |= {row.account_id: row.alias for row in tx.execute(its)}
            there |= set(tx.execute(select(accounts.c.id).where(accounts.c.id.in_(part))).scalars())
        new = {
            name: new_id("acc") for name in names if name not in known and (name in there or name in certain)
        }
        lasting = [{"account_id": name, "alias": alias} for name, alias in new.items() if name in there]
        if lasting:
            tx.execute(insert(audit_aliases), lasting)
        return known | new

    def _prompt_key(
        self,
        tx: Connection,
        account_id: str,
        alias: str,
        month: str,
        sealer: Sealer,
        keys: dict[tuple[str, str], bytes],
    ) -> bytes:
        """The key of an account's prompts for a month; a new one, kept nowhere, if the account is gone.

        Args:
            keys: The stored keys that this transaction has used, by account and month. It is extended.
        """
        if (known := keys.get((account_id, month))) is not None:
            return known
        its = (audit_keys.c.account_id == account_id, audit_keys.c.month == month)
        found = tx.execute(select(audit_keys.c.key).where(*its)).scalar()
        if found is not None:
            with suppress(ValueError):  # encrypted with a key of the log that was lost
                keys[account_id, month] = key = sealer.unwrapped(bytes(found), alias, month)
                return key
        key, wrapped = sealer.new_key(alias, month)
        if tx.execute(select(accounts.c.id).where(accounts.c.id == account_id)).first() is not None:
            if found is not None:
                tx.execute(delete(audit_keys).where(*its))
            tx.execute(insert(audit_keys).values(account_id=account_id, month=month, key=wrapped))
            keys[account_id, month] = key
        return key

    def _keep_checkpoint(self, tx: Connection, size: int, note: str) -> None:
        now = self._db.time(tx)
        newest = select(audit_checkpoints.c.size, audit_checkpoints.c.at)
        last = tx.execute(newest.order_by(audit_checkpoints.c.size.desc()).limit(2)).all()
        if len(last) == 2 and now - last[1].at < KEEP_SECONDS:
            tx.execute(delete(audit_checkpoints).where(audit_checkpoints.c.size == last[0].size))
        tx.execute(_CHECKPOINT, {"size": size, "at": now, "note": note})

    def audit_size(self) -> int:
        """Number of leaves of the tree."""
        with self._db.read() as connection:
            return int(connection.execute(_SIZE).scalar_one())

    def audit_proof(self, leaf: int, size: int) -> list[bytes]:
        """The hashes that prove that a leaf is in the tree of a size. Raises ValueError if it is not."""
        with self._db.read() as connection:
            return inclusion_proof(leaf, size, _subtree(connection))

    def audit_consistency(self, old: int, new: int) -> list[bytes]:
        """The hashes that prove that the tree of a size continues an older one. Raises ValueError where it is
        smaller."""
        with self._db.read() as connection:
            return consistency_proof(old, new, _subtree(connection))

    # -- keys and checkpoints --

    def audit_signers(self) -> list[PublicKey]:
        """The public keys of the log, oldest first; empty before the first checkpoint."""
        with self._db.read() as connection:
            rows = connection.execute(select(audit_signers.c.key).order_by(audit_signers.c.number)).scalars()
            return [PublicKey.parse(key) for key in rows]

    def add_audit_signer(self, key: PublicKey, *, actor: str = "ledger", first: bool = False) -> None:
        """Note a key that signs the log from now on, unless it is the newest one.

        Args:
            first: Only if there is none.
        """
        with self._db.write() as tx:
            tx.execute(_SIZE.with_for_update()).scalar_one()
            newest = select(audit_signers).order_by(audit_signers.c.number.desc()).limit(1)
            last = tx.execute(newest).first()
            if last is not None and (first or last.key == str(key)):
                return
            now = self._db.time(tx)
            number = 0 if last is None else last.number + 1
            tx.execute(insert(audit_signers).values(number=number, key=str(key), created_at=now))
            self._audit(tx, now, actor, "audit.key_made", key.id.hex(), key=str(key))

    def checkpoint(self, *, beyond: int = 0) -> str | None:
        """The newest checkpoint, as a note; None if there is none of more than `beyond` leaves."""
        newest = (
            select(audit_checkpoints.c.note)
            .where(audit_checkpoints.c.size > beyond)
            .order_by(audit_checkpoints.c.size.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            return connection.execute(newest).scalar()

    def checkpoints(self, *, after: int = 0, limit: int = _PAGE) -> list[tuple[int, str]]:
        """Checkpoints of more than `after` leaves that are kept, smallest first: their sizes and notes."""
        query = (
            select(audit_checkpoints.c.size, audit_checkpoints.c.note)
            .where(audit_checkpoints.c.size > after)
            .order_by(audit_checkpoints.c.size)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [(row.size, row.note) for row in connection.execute(query)]

    # -- reading --

    def audit_log(
        self,
        *,
        after: int = 0,
        subject: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        limit: int = 1000,
    ) -> list[AuditRow]:
        """Entries of the audit log with numbers above `after`, oldest first.

        Args:
            subject, actor, action: What they must have.
        """
        found: dict[int, AuditRow] = {}
        with self._db.read() as connection:
            aliases = self._known(connection, [one for one in (subject, actor) if one is not None])
            # Entries in waiting first: one that is moved in between is found twice rather than missed.
            for table in (audit, audit_leaves):
                query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
                for column, value in (("subject", subject), ("actor", actor), ("action", action)):
                    if value is not None:
                        query = query.where(table.c[column].in_({value, aliases.get(value, value)}))
                found |= {row.id: _row(row) for row in connection.execute(query)}
            rows = [found[number] for number in sorted(found)][:limit]
            return self._named(connection, rows)

    def last_audit_entry(self, subject: str, *actions: str) -> AuditRow | None:
        """The newest entry about something; None without one.

        Args:
            actions: Of these actions; none: of any.
        """
        with self._db.read() as connection:
            names = {subject, *self._known(connection, [subject]).values()}
            for table in (audit, audit_leaves):
                query = select(table).where(table.c.subject.in_(names)).order_by(table.c.id.desc()).limit(1)
                if actions:
                    query = query.where(table.c.action.in_(actions))
                if (row := connection.execute(query).first()) is not None:
                    return self._named(connection, [_row(row)])[0]
        return None

    def find_audit_entry(self, name: str) -> AuditRow:
        """The entry that a name means.

        Args:
            name: Number of an entry, or the id of an image (how it was made), a job (how it ended), a set
                (how it was accepted) or anything else (the last entry about it).

        Raises:
            NotFound: There is none.
        """
        if name.isascii() and name.isdigit():
            rows = self.audit_log(after=int(name) - 1, limit=1)
            found = rows[0] if rows and rows[0].id == int(name) else None
        else:
            of_image = name.startswith("img_")
            subject = self._job_of_image(name) if of_image else name
            found = self.last_audit_entry(subject, *_TELLING)
            if found is None and not of_image:
                found = self.last_audit_entry(name)
        if found is None:
            raise NotFound(
                f"the audit log has no entry about {name}",
                hint="`limner audit list` shows what it has; give a number, or the id of an image or a job",
            )
        return found

    def _job_of_image(self, image_id: str) -> str:
        with self._db.read() as connection:
            found = connection.execute(select(images.c.job_id).where(images.c.id == image_id)).scalar()
        if found is not None:
            return str(found)
        deleted = self.last_audit_entry(image_id, "image.deleted")
        return image_id if deleted is None else str(deleted.details.get("job", image_id))

    def audit_leaf(self, number: int) -> Leaf:
        """A leaf of the tree. Raises NotFound."""
        found = next(self.audit_leaves(start=number, end=number + 1), None)
        if found is None:
            raise NotFound(f"the audit log has no leaf {number}")
        return found

    def audit_leaves(self, *, start: int = 0, end: int | None = None) -> Iterator[Leaf]:
        """The leaves of the tree as they are stored, in order.

        Args:
            start, end: Numbers of the first, and of the one after the last; None: all that are there by now.
        """
        while end is None or start < end:
            query = select(audit_leaves).where(audit_leaves.c.leaf >= start)
            if end is not None:
                query = query.where(audit_leaves.c.leaf < end)
            with self._db.read() as connection:
                rows = connection.execute(query.order_by(audit_leaves.c.leaf).limit(_PAGE)).all()
            for row in rows:
                entry = entry_object(row.id, row.at, row.actor, row.action, row.subject, row.details)
                yield Leaf(row.leaf, entry, bytes(row.hash), row.prompts)
            if len(rows) < _PAGE:
                return
            start = rows[-1].leaf + 1

    def audit_nodes(self) -> dict[tuple[int, int], bytes]:
        """The inner nodes that are stored: hashes by level and number."""
        with self._db.read() as connection:
            return {
                (row.level, row.number): bytes(row.hash) for row in connection.execute(select(audit_nodes))
            }

    def sealed_with(self, alias: str, month: str) -> bytes | None:
        """The key that prompts of an account were sealed with in a month; None if it was erased."""
        owner = select(audit_aliases.c.account_id).where(audit_aliases.c.alias == alias)
        with self._db.read() as connection:
            # The account of the service itself has no alias: it is not erased.
            account_id = connection.execute(owner).scalar() or alias
            its = (audit_keys.c.account_id == account_id, audit_keys.c.month == month)
            found = connection.execute(select(audit_keys.c.key).where(*its)).scalar()
        return None if found is None else bytes(found)

    @staticmethod
    def _known(connection: Connection, names: Sequence[str]) -> dict[str, str]:
        its = select(audit_aliases).where(audit_aliases.c.account_id.in_(names))
        return {row.account_id: row.alias for row in connection.execute(its)} if names else {}

    @staticmethod
    def _named(connection: Connection, rows: Sequence[AuditRow]) -> list[AuditRow]:
        """Entries with the names of accounts in place of their aliases."""
        said = [one for row in rows for one in (row.actor, row.subject, row.details.get("account"))]
        aliases = list({one for one in said if isinstance(one, str) and ALIAS.fullmatch(one)})
        names: dict[Any, str] = dict.fromkeys(aliases, ERASED)
        for part in parts(aliases):
            its = select(audit_aliases).where(audit_aliases.c.alias.in_(part))
            names |= {row.alias: row.account_id for row in connection.execute(its)}
        shown = []
        for row in rows:
            details = dict(row.details)
            if details.get("account") in names:
                details["account"] = names[details["account"]]
            actor, subject = names.get(row.actor, row.actor), names.get(row.subject, row.subject)
            shown.append(replace(row, actor=actor, subject=subject, details=details))
        return shown

    def audit_of_account(self, account_id: str) -> Iterator[AuditRow]:
        """Entries that an account has caused, or that are about it."""
        with self._db.read() as connection:
            alias = self._known(connection, [account_id]).get(account_id, account_id)
            for table in (audit, audit_leaves):
                its = or_(table.c.actor.in_({account_id, alias}), table.c.subject.in_({account_id, alias}))
                query = select(table).where(its).order_by(table.c.id).execution_options(yield_per=200)
                for part in connection.execute(query).partitions():
                    yield from self._named(connection, [_row(row) for row in part])

    # -- erasing --

    def _erase_from_audit(self, tx: Connection, account_id: str) -> str:
        """Erase the name and the prompts of an account from the log.

        Returns:
            What further entries call it.
        """
        tx.execute(_SIZE.with_for_update()).scalar_one()  # none is made a leaf meanwhile
        alias = self._known(tx, [account_id]).get(account_id) or new_id("acc")
        tx.execute(update(audit).where(audit.c.actor == account_id).values(actor=alias, prompts=null()))
        tx.execute(update(audit).where(audit.c.subject == account_id).values(subject=alias))
        naming = audit.c.details["account"].as_string() == account_id
        for row in tx.execute(select(audit.c.id, audit.c.details).where(naming)).all():
            details = {**row.details, "account": alias}
            tx.execute(update(audit).where(audit.c.id == row.id).values(details=details))
        kept = and_(audit_leaves.c.actor == alias, audit_leaves.c.prompts.is_not(None))
        tx.execute(update(audit_leaves).where(kept).values(prompts=null()))
        for table in (audit_aliases, audit_keys):
            tx.execute(delete(table).where(table.c.account_id == account_id))
        return alias

    def forget_prompts(self, *, older_than: float) -> int:
        """Make prompts in the log unreadable that are older than some seconds: those that are sealed by whole
        months. Returns the number of keys and texts that were deleted."""
        with self._db.read() as connection:
            before = self._db.time(connection) - older_than
            old = (
                select(audit_keys.c.month).where(audit_keys.c.month < month_of(before)),
                select(audit_leaves.c.leaf).where(
                    audit_leaves.c.prompts.is_not(None), audit_leaves.c.at < before
                ),
            )
            if not any(connection.execute(query.limit(1)).first() for query in old):
                return 0
        with self._db.write() as tx:
            keys = tx.execute(delete(audit_keys).where(audit_keys.c.month < month_of(before))).rowcount
            kept = and_(audit_leaves.c.prompts.is_not(None), audit_leaves.c.at < before)
            return keys + tx.execute(update(audit_leaves).where(kept).values(prompts=null())).rowcount


def _row(row: Row[Any]) -> AuditRow:
    leaf = row._mapping.get("leaf")
    return AuditRow(row.id, row.at, row.actor, row.action, row.subject, row.details, leaf)


def _subtree(connection: Connection) -> Subtree:
    """The function that hashes ranges of leaves, from what is stored."""
    return lambda start, end: joined(
        [_complete(connection, level, number) for level, number in complete_parts(start, end)]
    )


def _complete(connection: Connection, level: int, number: int) -> bytes:
    """The root of a complete subtree, from the stored hashes below it."""
    below = level - level % TILE_LEVELS
    first, count = number << (level - below), 1 << (level - below)
    values = {"first": first, "end": first + count}
    found: Iterable[Any]
    if below:
        found = connection.execute(_NODES, values | {"of_level": below}).scalars()
    else:
        found = connection.execute(_HASHES, values).scalars()
    hashes = [bytes(one) for one in found]
    if len(hashes) != count:
        raise NotFound(
            f"the tree of the audit log lacks hashes: level {below} has {len(hashes)} of {count} at {first}",
            hint="`limner audit verify` says what is missing; restore the ledger from a backup",
        )
    return folded(hashes)
