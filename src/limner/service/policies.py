"""The safety policies of the service: its own, and the levels of accounts and keys. No torch."""

from functools import cache

from limner.safety.policy import Policy, load_policy
from limner.settings.serve import ServeSettings


class SafetyPolicies:
    """Loads policies, each once. Safe to use from any thread.

    Args:
        settings: Settings of the service: its own policy.

    Raises:
        InvalidRequest: The policy of the settings cannot be used.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.own = load_policy(settings.safety_policy)
        self._level = cache(load_policy)

    def of(self, account: str | None, key: str | None) -> tuple[Policy, ...]:
        """The policies that a request must pass, all of them. Each has the tier that is always active.

        Args:
            account: Level of the account; None: the service's own policy.
            key: Level of the key, whose policy is a further one; None: it has none.
        """
        found = [self.own if account is None else self._level(account)]
        return tuple(found if key is None else [*found, self._level(key)])
