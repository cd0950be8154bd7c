"""How many calls one forward pass can answer in the memory that is left at the moment."""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.generation.calls import Call
from limner.model.model import Model

from .execution import tiled
from .jobs import Batch, Client, ImageRun, Waiting
from .memory import Limits, resident_bytes


@dataclass(frozen=True)
class Capacity:
    """What a device holds in memory, and what forward passes may take in addition.

    Attributes:
        limits: Limits of the device, for calls that belong to no client.
        clients: All engines that use the device.
        runs: The images that have begun.
        batches: Calls of callers that run generations by themselves.
    """

    limits: Limits
    clients: Sequence[Client]
    runs: Sequence[ImageRun]
    batches: Sequence[Batch]

    def most(self, waiting: Waiting) -> int:
        """Number of calls like this one that are worthwhile and fit in a forward pass."""
        model, call, limits = waiting.model, self.affordable(waiting), self._limits_of(waiting)
        fitting = self._spare(waiting) // max(1, limits.needs(model, call))
        most = min(limits.calls_of(model, call), fitting)
        return min(most, waiting.owner.most) if isinstance(waiting.owner, Batch) else most

    def affordable(self, waiting: Waiting) -> Call:
        """The call, or where it does not fit, the same call in tiles, if it has that form."""
        in_tiles = tiled(waiting.call)
        if in_tiles is None:
            return waiting.call
        needed = self._limits_of(waiting).needs(waiting.model, waiting.call)
        return in_tiles if needed > self._spare(waiting) else waiting.call

    def models(self, client: Client | None) -> set[Model]:
        """The models that count among what is in memory for a client, or for a batch."""
        models = {model for run in self.runs for model in run.models.values()}
        models |= {batch.model for batch in self.batches}
        return models.union(*(one.source.models() for one in self._sharing(client)))

    def _limits_of(self, waiting: Waiting) -> Limits:
        owner = waiting.owner
        return self.limits if isinstance(owner, Batch) else owner.job.client.limits

    def _spare(self, waiting: Waiting) -> int:
        """Bytes that forward passes may take in addition to the weights."""
        owner = waiting.owner
        client = None if isinstance(owner, Batch) else owner.job.client
        resident = sum(resident_bytes(model) for model in self.models(client))
        expected = sum(one.source.expected for one in self._sharing(client))
        return self._limits_of(waiting).memory - resident - expected

    def _sharing(self, client: Client | None) -> Sequence[Client]:
        """The clients whose models count among what is in memory for one of them, or for a batch."""
        if client is not None and not client.shares_memory:
            return [client]
        return self.clients
