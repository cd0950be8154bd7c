"""The changes that a busy ledger makes most, in as few statements as possible for PostgreSQL.

What SQLite does in a transaction of several statements (`claiming`, `ending`), PostgreSQL does in one, with
data-modifying common table expressions: nothing is in between that others could wait for. A statement is
described as all others are, but goes to the driver as text (`Prepared`), as SQLAlchemy's work at each
execution takes longer than the server's.

Plans must not depend on how many jobs wait. The planner knows the size of the index of the waiting jobs from
long ago, and may choose to read all of it where a key would do; `_IS_QUEUED` is for conditions next to a key.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    CTE,
    Double,
    Integer,
    String,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.psycopg import dialect

from .order import LANES
from .rows import JOB_COLUMNS, STORED_FIELDS
from .schema import attempts, audit, events, images, jobs, shares, usage
from .states import QUEUED, RUNNING, charged, claim_values, claimable, flows, lanes_with, passed_values

if TYPE_CHECKING:
    from psycopg import Cursor

_DIALECT = dialect()  # type: ignore[no-untyped-call]
CLOCK: Any = func.date_part(literal_column("'epoch'"), func.statement_timestamp(), type_=Double)
_IS_QUEUED = func.concat(jobs.c.state) == "queued"
"""As `QUEUED`, where the index of the waiting jobs must not serve."""
_SOON: Any = func.set_config("synchronous_commit", "off", true()) == "off"
"""Condition that always holds: the transaction need not be on the disk when it is confirmed."""


class Prepared:
    """A statement as text for the driver, which the server prepares once in each connection.

    Args:
        statement: A statement of SQLAlchemy, without parameters that are expanded to several.
    """

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._columns = tuple(statement.exported_columns.keys())

    @cached_property
    def _compiled(self) -> tuple[str, dict[str, Any]]:
        """The text, and the values of its literals."""
        compiled = self._statement.compile(dialect=_DIALECT)
        return str(compiled), compiled.params

    def run(self, cursor: "Cursor[Any]", **values: Any) -> list[dict[str, Any]]:
        """Run it. Returns the rows, by their columns."""
        text, literals = self._compiled
        cursor.execute(text, literals | values, prepare=True)
        if not self._columns:
            return []
        return [dict(zip(self._columns, row, strict=True)) for row in cursor]


def _inserted(table: Any, values: dict[str, Any], source: Any, name: str) -> CTE:
    """Rows of a table, made from those of another part of the statement."""
    typed = [
        value if hasattr(value, "type") else literal(value, table.c[column].type)
        for column, value in values.items()
    ]
    made = select(*(part.label(column) for part, column in zip(typed, values, strict=True))).select_from(
        source
    )
    return insert(table).from_select(list(values), made).cte(name)


def _event(job: Any, change: str, at: Any, data: Any) -> dict[str, Any]:
    return {
        "account_id": job.c.account_id,
        "set_id": job.c.set_id,
        "job_id": job.c.id,
        "index": job.c["index"],
        "change": change,
        "at": at,
        "data": data,
    }


def _window(lane: Any, account_id: Any, now: Any) -> Any:
    """The first jobs of an account in a lane, as a list of lists of the fields of `Candidate`."""
    fields = func.json_build_array(
        jobs.c.seq, jobs.c.model, jobs.c.predicted_seconds, jobs.c.passed_over, jobs.c.passed_since
    )
    first = (
        select(fields)
        .where(
            *claimable(lane=lane, account_id=account_id, now=now),
            jobs.c.kind == func.any(bindparam("kinds", type_=ARRAY(String))),
        )
        .order_by(jobs.c.position, jobs.c.seq)
        .limit(bindparam("count"))
    )
    return func.array_to_json(func.array(first.scalar_subquery())).label("waiting")


WINDOW = Prepared(
    select(_window(bindparam("of_lane", type_=String), bindparam("of_account", type_=String), CLOCK))
)
"""The first waiting jobs of an account in a lane."""


def _flows() -> Any:
    # The accounts with waiting jobs, each found in the index from the one before it.
    key = (jobs.c.lane, jobs.c.account_id)
    first = select(*key).where(QUEUED).order_by(*key).limit(literal_column("1"))
    found = first.cte("found", recursive=True)
    following = first.where(tuple_(*key) > tuple_(found.c.lane, found.c.account_id)).lateral("following")
    found = found.union_all(select(following).select_from(found.join(following, true())))
    mine = tuple_(shares.c.lane, shares.c.account_id) == tuple_(found.c.lane, found.c.account_id)
    its = flows(mine).subquery("its")
    lanes, lane = lanes_with(its)
    place = func.row_number().over(
        partition_by=lane.c.lane, order_by=[func.greatest(lane.c.virtual, its.c.finish), its.c.account_id]
    )
    ranked = (
        lanes.add_columns(place.label("place"), CLOCK.label("now"))
        .where(lane.c.lane.in_([literal_column(f"'{one}'") for one in LANES]))
        .subquery("ranked")
    )
    first = _window(ranked.c.lane, ranked.c.account_id, ranked.c.now)
    waiting = case((ranked.c.place <= bindparam("wide"), first)).label("waiting")
    return select(ranked, waiting).order_by(ranked.c.place)


FLOWS = Prepared(_flows())
"""The lanes with their accounts that have waiting jobs, in the order of their turns, and the first jobs of
the first `wide` accounts of each."""


def _take() -> Any:
    offered = (
        func.unnest(bindparam("wanted", type_=ARRAY(Integer)))
        .table_valued("seq", with_ordinality="place", name="offered")
        .render_derived()
    )
    # One after the other, so that no more are locked than are taken.
    one = (
        select(jobs.c.seq)
        .where(jobs.c.seq == offered.c.seq, _IS_QUEUED)
        .with_for_update(skip_locked=True)
        .lateral("one")
    )
    free = select(one.c.seq).select_from(offered.join(one, true())).limit(bindparam("count")).cte("free")
    taken = (
        update(jobs)
        .where(jobs.c.seq == free.c.seq)
        .values(claim_values(now=CLOCK, until=CLOCK + bindparam("lease")))
        .returning(jobs.c.seq, *JOB_COLUMNS)
        .cte("taken")
    )
    begun = _inserted(
        attempts,
        {
            "job_id": taken.c.id,
            "fence": taken.c.fence,
            "number": taken.c.attempt,
            "worker": taken.c.owner,
            "started_at": taken.c.started_at,
        },
        taken,
        "begun",
    )
    data = func.json_build_object(
        "attempt", taken.c.attempt, "worker", taken.c.owner, type_=events.c.data.type
    )
    told = _inserted(events, _event(taken, "started", taken.c.started_at, data), taken, "told")
    return select(taken).add_cte(begun, told)


TAKE = Prepared(_take())
"""Claims the first free ones of the jobs `wanted`, with their attempts and events."""

# What is lost of these in a crash is a little fairness.
CHARGE = Prepared(charged(func.greatest).where(_SOON))
PASS = Prepared(
    update(jobs)
    .where(jobs.c.seq == func.any(bindparam("passed", type_=ARRAY(Integer))), _IS_QUEUED, _SOON)
    .values(passed_values(now=CLOCK))
)


def _finish() -> Any:
    ended = (
        update(jobs)
        .where(
            RUNNING,
            jobs.c.id == bindparam("of_job"),
            jobs.c.fence == bindparam("of_fence"),
            jobs.c.notify.is_(False),
        )
        .values(
            state="done",
            lease_until=null(),
            finished_at=CLOCK,
            error=null(),
            device_seconds=func.coalesce(jobs.c.device_seconds, 0.0) + bindparam("seconds"),
            cost=func.coalesce(jobs.c.cost, 0.0) + bindparam("price"),
        )
        .returning(
            *(jobs.c.id, jobs.c.set_id, jobs.c.index, jobs.c.account_id, jobs.c.key_id, jobs.c.kind),
            *(jobs.c.model, jobs.c.fence, jobs.c.owner, jobs.c.predicted_seconds, jobs.c.started_at),
            jobs.c.finished_at,
        )
        .cte("ended")
    )
    attempt = (
        update(attempts)
        .where(and_(attempts.c.job_id == ended.c.id, attempts.c.fence == ended.c.fence))
        .values(ended_at=ended.c.finished_at, outcome="done")
        .cte("attempt")
    )
    own = {"job_id": ended.c.id, "account_id": ended.c.account_id, "created_at": ended.c.finished_at}
    image = _inserted(
        images,
        {
            name: own.get(name, bindparam(f"image_{name}", type_=images.c[name].type))
            for name in STORED_FIELDS
        },
        ended,
        "image",
    )
    used = _inserted(
        usage,
        {
            **{
                name: ended.c[name]
                for name in (
                    "fence",
                    "account_id",
                    "key_id",
                    "kind",
                    "model",
                    "predicted_seconds",
                    "started_at",
                )
            },
            "job_id": ended.c.id,
            "images": 1,
            "device_seconds": bindparam("seconds", type_=Double),
            "cost": bindparam("price", type_=Double),
            "at": ended.c.finished_at,
        },
        ended,
        "used",
    )
    logged = _inserted(
        audit,
        {
            "at": ended.c.finished_at,
            "actor": func.coalesce(ended.c.owner, "ledger", type_=String),
            "action": "job.done",
            "subject": ended.c.id,
            "details": bindparam("details", type_=audit.c.details.type),
        },
        ended,
        "logged",
    )
    data = bindparam("data", type_=events.c.data.type)
    told = _inserted(events, _event(ended, "done", ended.c.finished_at, data), ended, "told")
    return select(ended.c.id).add_cte(attempt, image, used, logged, told)


FINISH = Prepared(_finish())
"""Ends a job without a webhook as done, with its image, attempt, usage, audit row and event."""
