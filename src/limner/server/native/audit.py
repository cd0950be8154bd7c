"""The audit log, for operators."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from limner.server.auth import Operator
from limner.server.state import in_thread, state_of

router = APIRouter(tags=["accounts"])


class AuditEntry(BaseModel):
    """An entry of the audit log."""

    id: int = Field(description="Its number; later entries have higher ones.")
    at: float = Field(description="Seconds since the epoch.")
    actor: str = Field(description="Who did it: an account, a worker, `operator`, `cli` or `ledger`.")
    action: str = Field(description="What was done, such as `job.done`.")
    subject: str = Field(description="Id of what it was done to.")
    details: dict[str, Any] = Field(description="More about it; never what a request asked for.")


@router.get("/audit")
async def audit_log(
    request: Request,
    caller: Operator,
    after: Annotated[
        int, Query(ge=0, lt=2**63, description="Number of the last entry of the page before.")
    ] = 0,
    subject: Annotated[
        str | None, Query(max_length=128, description="Only what was done to the object of this id.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Number of entries.")] = 100,
) -> list[AuditEntry]:
    """The audit log, oldest first. For operators."""
    ledger = state_of(request).ledger
    rows = await in_thread(ledger.audit_log, after=after, subject=subject, limit=limit)
    return [AuditEntry(**asdict(row)) for row in rows]
