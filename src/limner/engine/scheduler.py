"""The engine's policy, as functions of plain data: which images begin, and which calls share a forward pass.

Images begin in the order of their requests' priority and age. At most as many images of one model and size
run at a time as share a forward pass; further ones wait. An image whose auxiliary networks (control networks,
IP-Adapters, merged adapters) do not fit into memory next to those in use waits until they do, and all images
behind it wait too. Calls that cannot share a forward pass are in different groups. Groups that encode
prompts, and calls that somebody waits for at once, go first; among the others the group whose oldest call has
waited longest goes first.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

Weigh = Callable[[Hashable, frozenset[Hashable]], int]
"""A model and auxiliary networks -> bytes of all their weights."""


@dataclass(frozen=True)
class Demand:
    """Rows and memory that one image takes on its device from its first step to its last.

    Attributes:
        batch_key: Model and size, which images must have in common to share forward passes.
        rows: Largest number of rows of the U-Net at a step.
        most_rows: Largest number of rows in one forward pass for this `batch_key`.
        networks: The models that generate it, each with the auxiliary networks that it needs.
        pass_bytes: Bytes that its most demanding forward pass takes in addition to the weights.
        memory: Bytes that may be used.
    """

    batch_key: Hashable
    rows: int
    most_rows: int
    networks: Mapping[Hashable, frozenset[Hashable]]
    pass_bytes: int
    memory: int


def networks_of(demands: Iterable[Demand]) -> dict[Hashable, frozenset[Hashable]]:
    """The models that generate these images, each with the auxiliary networks that they need."""
    networks: dict[Hashable, frozenset[Hashable]] = {}
    for demand in demands:
        for model, auxiliary in demand.networks.items():
            networks[model] = networks.get(model, frozenset()) | auxiliary
    return networks


def bytes_of(demands: Sequence[Demand], weigh: Weigh) -> int:
    """Bytes that images take together: weights, and the most demanding forward pass of one of them."""
    weights = sum(weigh(model, auxiliary) for model, auxiliary in networks_of(demands).items())
    return weights + max(demand.pass_bytes for demand in demands)


class Decision(Enum):
    """Whether an image may begin.

    Attributes:
        BEGIN: It may.
        BATCH_FULL: The images of its `batch_key` take all rows; those of another size or model may begin.
        NO_MEMORY: Its networks do not fit into memory; no image behind it may begin before it.
    """

    BEGIN = "begin"
    BATCH_FULL = "batch full"
    NO_MEMORY = "no memory"


class Admission:
    """One round of admission. Ask for images in order of rank.

    Args:
        running: Demands of the images that have begun.
        weigh: Bytes of networks.
    """

    def __init__(self, running: Iterable[Demand], weigh: Weigh) -> None:
        self._running, self._weigh = list(running), weigh
        self._rows: Counter[Hashable] = Counter()
        for demand in self._running:
            self._rows[demand.batch_key] += demand.rows
        self._full: set[Hashable] = set()

    def is_full(self, batch_key: Hashable) -> bool:
        """Whether an image with this key was refused in this round, so that those behind it wait too."""
        return batch_key in self._full

    def ask(self, demand: Demand) -> Decision:
        """Whether an image may begin; if so, it counts among those that have."""
        if self.is_full(demand.batch_key) or self._rows[demand.batch_key] + demand.rows > demand.most_rows:
            self._full.add(demand.batch_key)
            return Decision.BATCH_FULL
        together = [*self._running, demand]
        # Waiting frees the memory of auxiliary networks only; models stay.
        can_free_memory = bool(self._running) and any(networks_of(together).values())
        if can_free_memory and bytes_of(together, self._weigh) > demand.memory:
            return Decision.NO_MEMORY
        self._rows[demand.batch_key] += demand.rows
        self._running.append(demand)
        return Decision.BEGIN

    def spare(self, memory: int) -> int:
        """Bytes of `memory` that remain beyond the demands of the images that have begun."""
        return memory - bytes_of(self._running, self._weigh)

    @property
    def networks(self) -> dict[Hashable, frozenset[Hashable]]:
        """The models and auxiliary networks of the images that have begun."""
        return networks_of(self._running)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pending:
    """A call that waits for its answer.

    Attributes:
        group: What calls must have in common to share a forward pass.
        rank: Priority, age and image of its owner; the lowest goes first.
        since: Tick at which the call was made.
        first: Whether it goes before others: it encodes prompts, which takes little time and lets its image
            share forward passes, or somebody waits for it at once.
    """

    group: Hashable
    rank: tuple[int, ...]
    since: int
    first: bool = False


P = TypeVar("P", bound=Pending)


def choose(pending: Iterable[P], most: Callable[[P], int]) -> list[P]:
    """The calls to answer next, in order of rank; none if none waits.

    Args:
        most: Number of calls like this one that may share a forward pass.
    """
    groups: dict[Hashable, list[P]] = defaultdict(list)
    for call in sorted(pending, key=lambda call: call.rank):
        groups[call.group].append(call)
    if not groups:
        return []
    group = min(
        groups.values(), key=lambda group: (not group[0].first, min(c.since for c in group), group[0].rank)
    )
    return group[: max(1, most(group[0]))]


def shares(seconds: float, rows: Sequence[int]) -> list[float]:
    """The seconds of a forward pass, shared among its calls in proportion to their rows."""
    whole = sum(rows)
    return [seconds * count / whole for count in rows]
