"""Rows of the ledger's tables as values, and back."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Row

from limner.request.dial import Dial
from limner.service.events import JobChanged, LedgerEvent, LibraryChanged, NoticeGiven
from limner.service.identity import Account, ApiKey, Quotas
from limner.service.jobs import Attempt, Job, JobError, JobSet, LibraryImage, StoredImage

from .schema import images, jobs, sets

STORED_FIELDS = [one.name for one in fields(StoredImage)]
"""Fields of an image that a worker hands in. Their columns have the same names."""

_IMAGE_COLUMNS = {
    **{name: images.c[name] for name in (*STORED_FIELDS, "kept", "deleted_at")},
    "number": images.c.seq,
}
IMAGE_COLUMNS = [column.label(f"image_{name}") for name, column in _IMAGE_COLUMNS.items()]
"""Columns of an image, named so that they differ from those of its job."""

LIBRARY_COLUMNS = [
    *(column.label(name) for name, column in _IMAGE_COLUMNS.items()),
    *(jobs.c.set_id, jobs.c.index, sets.c.relation, sets.c.dial),
    *(jobs.c.params[name].label(name) for name in ("prompt", "seed")),
]
"""Columns of an image with those of its job and its set."""

JOB_FIELDS = [
    *("id", "set_id", "index", "account_id", "key_id", "kind", "lane", "state", "params", "model"),
    *("predicted_seconds", "position", "attempt", "fence", "cancel_requested", "created_at", "owner"),
    *("lease_until", "deadline_at", "started_at", "finished_at", "device_seconds", "cost"),
    "safety",
]
JOB_COLUMNS = [*(jobs.c[name] for name in JOB_FIELDS), jobs.c.error]


def new_id(prefix: str) -> str:
    """A new id that cannot be guessed, such as "job_5b1c8e0f6d2a4c3b9e7f1a2d"."""
    return f"{prefix}_{secrets.token_hex(12)}"


def error_of(value: Mapping[str, Any] | None) -> JobError | None:
    """An error as it was stored."""
    if value is None:
        return None
    return JobError(
        value["code"], value["message"], hint=value.get("hint"), fields=tuple(value.get("fields", ()))
    )


def error_value(error: JobError | None) -> dict[str, Any] | None:
    """An error as it is stored."""
    return None if error is None else asdict(error)


def job_of(values: Mapping[Any, Any]) -> Job:
    """A job from the values of JOB_COLUMNS by name, and its image if those of IMAGE_COLUMNS are there too."""
    picture = None
    if values.get("image_id") is not None:
        picture = LibraryImage(
            **{name: values[f"image_{name}"] for name in _IMAGE_COLUMNS},
            set_id=values["set_id"],
            index=values["index"],
            prompt=values["params"].get("prompt"),
            seed=values["params"].get("seed"),
        )
    own = {name: values[name] for name in JOB_FIELDS}
    return Job(**own, error=error_of(values["error"]), image=picture)


def set_of(
    row: Row[Any], its_jobs: tuple[Job, ...], parents: tuple[str, ...] = (), *, replayed: bool = False
) -> JobSet:
    """A set from its row, its jobs and the ids of its parents."""
    return JobSet(
        id=row.id,
        account_id=row.account_id,
        kind=row.kind,
        lane=row.lane,
        client=row.client,
        request=row.request,
        created_at=row.created_at,
        jobs=its_jobs,
        dial=None if row.dial is None else Dial.model_validate(row.dial),
        external_id=row.external_id,
        webhook=row.webhook,
        warnings=tuple(row.warnings),
        parents=parents,
        relation=row.relation,
        replayed=replayed,
    )


def library_image(row: Row[Any], parents: tuple[str, ...], albums: tuple[str, ...]) -> LibraryImage:
    """An image from a row with LIBRARY_COLUMNS, its parents' ids and those of the albums that it is in."""
    values = dict(row._mapping)
    dial = values.pop("dial")
    dialled = None if dial is None else (dial["field"], dial["values"][values["index"]])
    return LibraryImage(**values, dialled=dialled, parents=parents, albums=albums)


def attempt_of(row: Row[Any]) -> Attempt:
    """An attempt from its row."""
    return Attempt(
        number=row.number,
        fence=row.fence,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        error=error_of(row.error),
    )


def event_of(row: Row[Any]) -> LedgerEvent:
    """An event from a row whose number is called `number`."""
    values = row._mapping
    if values["change"] == "notice":
        its = {name: values[name] for name in ("account_id", "at", "data")}
        return NoticeGiven(seq=values["number"], **its)
    if not values["job_id"]:
        return LibraryChanged(
            seq=values["number"],
            account_id=values["account_id"],
            change=values["change"],
            at=values["at"],
            data=values["data"],
        )
    return JobChanged(
        seq=values["number"],
        account_id=values["account_id"],
        set_id=values["set_id"],
        job_id=values["job_id"],
        index=values["index"],
        change=values["change"],
        at=values["at"],
        data=values["data"],
    )


def account_of(row: Row[Any]) -> Account:
    """An account from its row."""
    return Account(
        id=row.id,
        role=row.role,
        weight=row.weight,
        quotas=Quotas(**row.quotas),
        policy=row.policy,
        created_at=row.created_at,
        disabled=row.disabled,
    )


def quotas_value(quotas: Quotas) -> dict[str, Any]:
    """Quotas as they are stored: those that are set."""
    return {name: value for name, value in asdict(quotas).items() if value is not None}


def key_of(row: Row[Any]) -> ApiKey:
    """A key from its row."""
    return ApiKey(
        id=row.id,
        account_id=row.account_id,
        name=row.name,
        scopes=tuple(row.scopes),
        policy=row.policy,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
