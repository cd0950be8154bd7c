"""What was used: sums by account, key, model and day, and what counts against quotas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from limner.errors import InvalidRequest

from .quotas import DAY, MONTH, stored_bytes
from .schema import accounts, jobs, usage
from .states import PAUSED, QUEUED, RUNNING
from .writing import Writing

UsageKey = Literal["account", "key", "model", "day"]


@dataclass(frozen=True)
class UsageRow:
    """Usage, summed.

    Attributes:
        account, key, model: What it was used by; None where it is not summed by that. A key is None too for
            what was used without one.
        day: Day in UTC, such as "2026-11-30".
        images: Number of images that were done.
        jobs: Number of attempts that used a device.
        device_seconds: Device seconds, those of failed and cancelled attempts included.
        cost: Device seconds times the price of the device.
    """

    images: int
    jobs: int
    device_seconds: float
    cost: float
    account: str | None = None
    key: str | None = None
    model: str | None = None
    day: str | None = None


@dataclass(frozen=True)
class Spent:
    """What counts against an account's quotas now, named as in `Quotas`."""

    images_per_day: int
    device_seconds_per_day: float
    cost_per_month: float
    stored_bytes: int
    queued_jobs: int
    running_jobs: int


class Usage(Writing):
    """Usage."""

    def usage(
        self,
        by: Sequence[UsageKey] = (),
        *,
        account_id: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[UsageRow]:
        """What was used, summed by the given things, in their order.

        Args:
            by: What to sum by; empty: one row with the whole, if anything was used.
            account_id: Whose usage; None: everybody's.
            since, until: Seconds since the epoch between which it was used.
        """
        columns = {
            "account": usage.c.account_id,
            "key": usage.c.key_id,
            "model": usage.c.model,
            "day": self._day(),
        }
        unknown = [name for name in by if name not in columns]
        if unknown:
            raise InvalidRequest(
                f"usage cannot be summed by {', '.join(unknown)}; expected some of {', '.join(columns)}",
                fields=("by",),
            )
        keys = [columns[name].label(f"by_{name}") for name in dict.fromkeys(by)]
        query = select(
            *keys,
            func.sum(usage.c.images).label("images"),
            func.count().label("jobs"),
            func.sum(usage.c.device_seconds).label("device_seconds"),
            func.sum(usage.c.cost).label("cost"),
        ).select_from(usage)
        if account_id is not None:
            query = query.where(usage.c.account_id == account_id)
        if since is not None:
            query = query.where(usage.c.at >= since)
        if until is not None:
            query = query.where(usage.c.at < until)
        # Without a key the sum of nothing would be a row too.
        query = query.group_by(*keys).order_by(*keys) if keys else query.having(func.count() > 0)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        return [
            UsageRow(
                images=int(row.images),
                jobs=row.jobs,
                device_seconds=row.device_seconds,
                cost=row.cost,
                **{name: row._mapping[f"by_{name}"] for name in by},
            )
            for row in rows
        ]

    def _day(self) -> Any:
        if self._db.is_sqlite:
            return func.strftime("%Y-%m-%d", usage.c.at, "unixepoch")
        return func.to_char(func.timezone("UTC", func.to_timestamp(usage.c.at)), "YYYY-MM-DD")

    def spent(self, account_id: str) -> Spent:
        """What counts against an account's quotas now."""
        with self._db.read() as connection:
            now = self._db.time(connection)
            return Spent(
                images_per_day=int(_sum(connection, "images", account_id, now - DAY)),
                device_seconds_per_day=_sum(connection, "device_seconds", account_id, now - DAY),
                cost_per_month=_sum(connection, "cost", account_id, now - MONTH),
                stored_bytes=stored_bytes(connection, account_id),
                queued_jobs=sum(_count(connection, state, account_id) for state in (QUEUED, PAUSED)),
                running_jobs=_count(connection, RUNNING, account_id),
            )

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state, and of accounts."""
        with self._db.read() as connection:
            states = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
            found = {str(state): int(count) for state, count in states}
            found["accounts"] = int(
                connection.execute(select(func.count()).select_from(accounts)).scalar_one()
            )
        return found


def _sum(connection: Connection, column: str, account_id: str, since: float) -> float:
    mine = select(func.coalesce(func.sum(usage.c[column]), 0)).where(
        usage.c.account_id == account_id, usage.c.at > since
    )
    return float(connection.execute(mine).scalar_one())


def _count(connection: Connection, state: Any, account_id: str) -> int:
    mine = select(func.count()).select_from(jobs).where(state, jobs.c.account_id == account_id)
    return int(connection.execute(mine).scalar_one())
