"""What the queries of several routes share: whose objects are meant, and lists of names.

A caller sees the objects of its own account, an operator those of all accounts.
"""

from typing import Annotated

from fastapi import Query

from limner.errors import NotFound
from limner.service.identity import Principal

AccountQuery = Annotated[
    str | None,
    Query(
        alias="account",
        max_length=128,
        description="For operators: the objects of this account, or `*` for those of all.",
    ),
]


def owner_of(caller: Principal) -> str | None:
    """Account that an object must belong to for a caller to see it; None for any."""
    return None if caller.is_operator else caller.account.id


def listed_account(caller: Principal, asked: str | None) -> str | None:
    """Account whose objects a list has; None for all.

    Raises:
        NotFound: A user asks for another account.
    """
    if asked is None or asked == caller.account.id:
        return caller.account.id
    if not caller.is_operator:
        raise NotFound("there is no account of this id")
    return None if asked == "*" else asked


def split_at_commas(values: list[str] | None) -> list[str] | None:
    """The names of a repeated parameter, each of whose values may list several."""
    return values and [name for value in values for name in value.split(",")]
