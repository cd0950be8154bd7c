"""Quotas of an account, checked in the transaction that accepts its jobs."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from limner.errors import QuotaExceeded
from limner.service.identity import Account
from limner.service.jobs import NewJob

from .schema import accounts, images, jobs, uploads, usage
from .states import PAUSED, QUEUED, RUNNING

DAY = 86400.0
MONTH = 30 * DAY
_HINT = "ask the operator for a larger quota"


def check_quotas(tx: Connection, account: Account, new: Sequence[NewJob], now: float) -> None:
    """Check whether an account may submit these jobs, counting what it has waiting and running as used.

    Raises:
        QuotaExceeded: Naming the quota, what is used of it, and when there will be room.
    """
    quotas = account.quotas
    limits = (quotas.images_per_day, quotas.device_seconds_per_day, quotas.cost_per_month)
    if limits == (None, None, None) and quotas.stored_bytes is None and quotas.queued_jobs is None:
        return
    # One submission of an account at a time, or two at once would both find room for themselves.
    tx.execute(select(accounts.c.id).where(accounts.c.id == account.id).with_for_update())
    count = len(new)
    open_jobs, open_seconds = 0, 0.0
    waiting = 0
    for state in (QUEUED, PAUSED, RUNNING):
        figures = select(func.count(), func.coalesce(func.sum(jobs.c.predicted_seconds), 0.0))
        number, seconds = tx.execute(figures.where(state, jobs.c.account_id == account.id)).one()
        open_jobs, open_seconds = open_jobs + number, open_seconds + seconds
        waiting += number if state is not RUNNING else 0
    if quotas.queued_jobs is not None and waiting + count > quotas.queued_jobs:
        never = count > quotas.queued_jobs
        raise QuotaExceeded(
            f"{account.id} has {waiting} jobs waiting and may have {quotas.queued_jobs}; "
            f"this request needs {count} more",
            hint="ask for fewer images" if never else "wait until some of them are done",
            retry_after=None if never else max(1.0, min(60.0, open_seconds / max(open_jobs, 1))),
        )
    if quotas.images_per_day is not None:
        _window(
            tx, account, "images", "images in 24 hours", quotas.images_per_day, DAY, open_jobs, count, now
        )
    if quotas.device_seconds_per_day is not None:
        needed = sum(job.predicted_seconds for job in new)
        limit = quotas.device_seconds_per_day
        what = "device seconds in 24 hours"
        _window(tx, account, "device_seconds", what, limit, DAY, open_seconds, needed, now)
    if quotas.cost_per_month is not None:
        # What a job will cost depends on the device that takes it: a limit reached, not one to be reached.
        _window(tx, account, "cost", "of cost in 30 days", quotas.cost_per_month, MONTH, 0.0, 0.0, now)
    if quotas.stored_bytes is not None:
        stored = stored_bytes(tx, account.id)
        if stored >= quotas.stored_bytes:
            raise QuotaExceeded(
                f"{account.id} keeps {stored:,} bytes of images and uploads and may keep "
                f"{quotas.stored_bytes:,}",
                hint="delete some of them for good: what is in the trash counts",
            )


def stored_bytes(tx: Connection, account_id: str) -> int:
    """Bytes of an account's images and uploads."""
    return sum(
        int(tx.execute(select(func.sum(size)).where(table.c.account_id == account_id)).scalar() or 0)
        for table, size in (
            (images, images.c.bytes + images.c.delivered_bytes),
            (uploads, uploads.c.bytes),
        )
    )


def _window(
    tx: Connection,
    account: Account,
    column: str,
    what: str,
    limit: float,
    seconds: float,
    pending: float,
    needed: float,
    now: float,
) -> None:
    mine = (usage.c.account_id == account.id, usage.c.at > now - seconds)
    used = tx.execute(select(func.coalesce(func.sum(usage.c[column]), 0)).where(*mine)).scalar_one()
    over = used + pending + needed - limit
    if over < 0 or (over <= 0 and needed > 0):
        return
    raise QuotaExceeded(
        f"{account.id} has used {used:g} {what}, has {pending:g} under way and may use {limit:g}; "
        f"this request needs {needed:g} more",
        hint=_HINT if needed > limit else "wait, or " + _HINT,
        retry_after=None if needed > limit else _room(tx, mine, column, over, seconds, now),
    )


def _room(
    tx: Connection, mine: tuple[object, ...], column: str, over: float, seconds: float, now: float
) -> float:
    """Seconds until enough of what was used has left the window, as far as it has been used up already."""
    oldest = select(usage.c.at, usage.c[column]).where(*mine).order_by(usage.c.at).limit(10_000)  # type: ignore[arg-type]
    freed = 0.0
    for at, amount in tx.execute(oldest):
        freed += amount
        if freed >= over:
            return float(max(1.0, at + seconds - now))
    return seconds
