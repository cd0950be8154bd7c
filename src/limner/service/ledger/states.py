"""What a claim is, for SQLite and PostgreSQL: conditions on the state of a job, and what a claim changes.

The states are literals and not parameters, so that the database sees that its partial indexes serve.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Update,
    and_,
    bindparam,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)

from .schema import accounts, jobs, shares

QUEUED = jobs.c.state == literal_column("'queued'")
PAUSED = jobs.c.state == literal_column("'paused'")
RUNNING = jobs.c.state == literal_column("'running'")
WAITING = jobs.c.state.in_([literal_column("'queued'"), literal_column("'paused'")])


def flows(*which: ColumnElement[bool]) -> Select[Any]:
    """Accounts in lanes with what decides on their turns, without those that are locked.

    Args:
        which: Conditions on `shares`.
    """
    return (
        select(shares.c.lane, shares.c.account_id, shares.c.finish, accounts.c.weight)
        .join(accounts, and_(accounts.c.id == shares.c.account_id, accounts.c.disabled.is_(False)))
        .where(*which)
    )


def lanes_with(its: Subquery) -> tuple[Select[Any], FromClause]:
    """The lanes with their accounts, a row for each; a lane without any has one, whose account is null.

    Args:
        its: A subquery of `flows`.

    Returns:
        The query, and the lane's own row of `shares` in it.
    """
    lane = shares.alias("of_lane")
    query = (
        select(lane.c.lane, lane.c.start, lane.c.finish.label("lane_finish"), lane.c.virtual)
        .add_columns(its.c.account_id, its.c.finish, its.c.weight)
        .select_from(lane.outerjoin(its, its.c.lane == lane.c.lane))
        .where(lane.c.account_id == "")
    )
    return query, lane


def claimable(*, lane: Any, account_id: Any, now: Any) -> list[ColumnElement[bool]]:
    """Conditions on a job that may be claimed: it waits in a lane for an account, and its time has come."""
    return [
        QUEUED,
        jobs.c.lane == lane,
        jobs.c.account_id == account_id,
        or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now),
        or_(jobs.c.deadline_at.is_(None), jobs.c.deadline_at > now),
    ]


def claim_values(*, now: Any, until: Any) -> dict[str, Any]:
    """The columns of a job that a worker takes: the bound parameters `worker` and `lease`, and a new fence.

    Args:
        now: The database's time.
        until: End of the lease.
    """
    return {
        "state": "running",
        "owner": bindparam("worker"),
        "fence": jobs.c.fence + 1,
        "attempt": jobs.c.attempt + 1,
        "lease_seconds": bindparam("lease"),
        "lease_until": until,
        "started_at": now,
        "not_before": null(),
        "passed_over": 0,
        "passed_since": null(),
    }


def passed_values(*, now: Any) -> dict[str, Any]:
    """The columns of a job that was passed over when its turn had come."""
    return {
        "passed_over": jobs.c.passed_over + 1,
        "passed_since": func.coalesce(jobs.c.passed_since, now),
    }


def charged(greater: Any) -> Update:
    """The update of the tags of an account in a lane, or of a lane itself, by an `order.Charge`.

    Args:
        greater: The database's function for the greater of two values.
    """
    return (
        update(shares)
        .where(shares.c.lane == bindparam("of_lane"), shares.c.account_id == bindparam("of_account"))
        .values(
            start=greater(shares.c.start, bindparam("last_start")),
            finish=greater(shares.c.finish, bindparam("floor")) + bindparam("amount"),
            virtual=greater(shares.c.virtual, bindparam("new_virtual")),
        )
    )
