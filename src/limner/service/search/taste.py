"""The settings of accounts for their tastes, which are preferences in the ledger."""

from dataclasses import dataclass

from limner.service.ledger.ledger import Ledger

_TASTE = "taste"  # name of the preference


@dataclass(frozen=True)
class Taste:
    """The account's settings for its taste.

    Attributes:
        enabled: Whether it may be used.
        since: Number of an image: only kept ones that are newer count.
    """

    enabled: bool = True
    since: int = 0


def taste_settings(ledger: Ledger, account_id: str) -> Taste:
    """The account's settings for its taste."""
    return Taste(**(ledger.get_preference(account_id, _TASTE) or {}))


def switch_taste(ledger: Ledger, account_id: str, enabled: bool) -> None:
    """Switch the taste on or off. Raises NotFound for an account that there is not."""
    ledger.change_preference(account_id, _TASTE, {"enabled": enabled})


def forget_taste(ledger: Ledger, account_id: str, since: int) -> None:
    """Have only images count that are newer than the one of this number. Raises as `switch_taste`."""
    ledger.change_preference(account_id, _TASTE, {"since": since})
