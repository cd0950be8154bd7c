"""Checking a whole audit log: every leaf, their order, and every checkpoint that was signed over them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limner.errors import InvalidRequest

from .canonical import canonical
from .merkle import Frontier, leaf_hash
from .notes import Checkpoint, PublicKey, open_checkpoint

if TYPE_CHECKING:
    from limner.service.ledger.ledger import Ledger

_MANY = 20  # faults that a report names; of further ones it has the number


@dataclass(frozen=True)
class Checked:
    """What was found in a log.

    Attributes:
        size: Number of leaves.
        checkpoints: Number of checkpoints that hold.
        faults: What is wrong, a sentence each; empty for a log that is whole.
        signed: Number of leaves that the largest checkpoint is signed over.
    """

    size: int
    checkpoints: int
    faults: tuple[str, ...]
    signed: int


class Checking:
    """Checks a log, leaf by leaf.

    Args:
        checkpoints: Checkpoints that were signed over the log: those that it keeps, and any others.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint]) -> None:
        self._expected: dict[int, set[bytes]] = {}
        for one in checkpoints:
            self._expected.setdefault(one.size, set()).add(one.root)
        self._signed = max(self._expected, default=0)
        self._frontier, self._nodes = Frontier(), dict[tuple[int, int], bytes]()
        self._faults: list[str] = []
        self._held, self._since, self._whole = 0, 0, True
        self._compare()

    def leaf(self, number: int, entry: Mapping[str, Any], stored: bytes | None = None) -> None:
        """Check the next leaf.

        Args:
            number: Its number.
            entry: The object that it is the hash of.
            stored: Its hash as it was stored; None where that was not kept.
        """
        if number != (expected := self._frontier.size) and self._whole:
            missing = f"{expected}" if number == expected + 1 else f"{expected} to {number - 1}"
            self._fault(
                f"leaf {missing} is missing" if number > expected else f"leaf {number} is there twice"
            )
            self._whole = False
        try:
            found = leaf_hash(canonical(entry))
        except ValueError as error:
            found = b""
            self._fault(f"leaf {number} holds what no entry does: {error}")
        if stored is not None and found and found != stored:
            self._fault(f"leaf {number} was changed: entry {entry.get('id')}, {entry.get('action')}")
        for level, place, node in self._frontier.append(found if stored is None else stored):
            self._nodes[level, place] = node
        self._compare()

    def _compare(self) -> None:
        """Compare the root with what was signed at this size."""
        size = self._frontier.size
        roots = self._expected.get(size)
        if roots is None or not self._whole:
            return
        if roots == {self._frontier.root}:
            self._held, self._since = self._held + 1, size
            return
        among = f"leaves {self._since} to {size - 1}" if size > self._since else "the leaves"
        self._fault(
            f"the checkpoint of size {size} was signed over another log: among {among} an entry was changed, "
            "dropped, added or put elsewhere"
        )
        self._whole = False

    def nodes(self, stored: Mapping[tuple[int, int], bytes]) -> None:
        """Compare the inner nodes that are stored with those of the leaves."""
        for level, number in sorted(self._nodes.keys() | stored.keys()):
            if self._nodes.get((level, number)) != stored.get((level, number)):
                first, count = number << level, 1 << level
                self._fault(f"the stored node over leaves {first} to {first + count - 1} is wrong")

    def done(self) -> Checked:
        """The result, after the last leaf."""
        size = self._frontier.size
        if self._whole and size < self._signed:
            self._fault(
                f"the log has {size} leaves, but a checkpoint was signed over {self._signed}: "
                "the last ones are missing"
            )
        faults = self._faults[:_MANY]
        if len(self._faults) > _MANY:
            faults.append(f"and {len(self._faults) - _MANY} more faults")
        return Checked(size, self._held, tuple(faults), self._signed)

    def _fault(self, sentence: str) -> None:
        self._faults.append(sentence)


def check_ledger(ledger: "Ledger", keys: Sequence[PublicKey], others: Iterable[Checkpoint] = ()) -> Checked:
    """Check the log of a ledger against the checkpoints that it keeps.

    Args:
        keys: Public keys that may have signed them.
        others: Further checkpoints, from elsewhere.
    """
    checkpoints, faults = list(others), []
    for note in kept_notes(ledger):
        try:
            checkpoints.append(open_checkpoint(note, keys))
        except InvalidRequest as error:
            faults.append(f"a checkpoint in the ledger: {error.message}")
    checking = Checking(checkpoints)
    for leaf in ledger.audit_leaves():
        checking.leaf(leaf.number, leaf.entry, leaf.hash)
    checking.nodes(ledger.audit_nodes())
    found = checking.done()
    return replace(found, faults=(*faults, *found.faults))


def kept_notes(ledger: "Ledger") -> Iterator[str]:
    """The checkpoints that a ledger keeps, as notes, the smallest first."""
    after = 0
    while page := ledger.checkpoints(after=after):
        yield from (note for _, note in page)
        after = page[-1][0]
