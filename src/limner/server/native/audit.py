"""The audit log: entries and checkpoints for operators, and proofs for whoever owns what they are about."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from limner.errors import InvalidRequest, NotFound
from limner.server.auth import Operator, Reader
from limner.server.state import ServerState, in_thread, state_of
from limner.service.audit.sequencer import AuditLog
from limner.service.identity import Principal

from .access import owner_of

router = APIRouter(tags=["accounts"])

_NOTE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A signed note.", "content": {"text/plain": {}}},
}


class AuditEntry(BaseModel):
    """An entry of the audit log."""

    id: int = Field(description="Its number; later entries have higher ones.")
    at: float = Field(description="Seconds since the epoch.")
    actor: str = Field(
        description="Who did it: an account, a worker, `operator`, `cli`, `ledger`, or `erased` for an "
        "account that is gone."
    )
    action: str = Field(description="What was done, such as `job.done`.")
    subject: str = Field(description="Id of what it was done to.")
    details: dict[str, Any] = Field(
        description="More about it; of a request never more than `prompts`, hashed or encrypted."
    )
    leaf: int | None = Field(
        description="Its number in the Merkle tree, from 0; null for the first seconds, until it is in it."
    )


class AuditProof(BaseModel):
    """The proof that an entry is in the log. `limner audit verify FILE` checks it anywhere."""

    format: str = Field(description="`limner-audit-inclusion-1`.")
    entry: dict[str, Any] = Field(
        description="The entry. Its canonical JSON (RFC 8785) is the leaf; accounts stand in it by an alias."
    )
    leaf: int = Field(description="Number of the leaf, from 0.")
    path: list[str] = Field(
        description="Hashes of the inclusion proof of RFC 6962, from the leaf, in base64."
    )
    checkpoint: str = Field(description="The signed checkpoint whose root they lead to.")
    key: str = Field(description="Public key that has signed it. Compare it with one that you know.")


class AuditConsistency(BaseModel):
    """The proof that the log continues an older state of it."""

    format: str = Field(description="`limner-audit-consistency-1`.")
    old: str = Field(description="The older checkpoint.")
    path: list[str] = Field(description="Hashes of the consistency proof of RFC 6962, in base64.")
    checkpoint: str = Field(description="The newest checkpoint.")
    keys: list[str] = Field(description="Public keys of the log, the newest last.")


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
    actor: Annotated[
        str | None, Query(max_length=128, description="Only what this account or worker did.")
    ] = None,
    action: Annotated[str | None, Query(max_length=64, description="Only entries of this action.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Number of entries.")] = 100,
) -> list[AuditEntry]:
    """The audit log, oldest first. For operators."""
    ledger = state_of(request).ledger
    rows = await in_thread(
        ledger.audit_log, after=after, subject=subject, actor=actor, action=action, limit=limit
    )
    return [AuditEntry(**asdict(row)) for row in rows]


@router.get("/audit/checkpoint", response_class=PlainTextResponse, responses=_NOTE)
async def audit_checkpoint(request: Request, caller: Operator) -> PlainTextResponse:
    """A signed checkpoint of all entries that there are: a C2SP signed note. For operators."""
    state = state_of(request)
    return PlainTextResponse(await in_thread(lambda: AuditLog(state.ledger, state.settings).checkpoint()))


@router.get("/audit/consistency")
async def audit_consistency(
    request: Request,
    caller: Operator,
    size: Annotated[
        int, Query(ge=1, lt=2**63, description="Size of an older checkpoint, which the service still keeps.")
    ],
) -> AuditConsistency:
    """The proof that the log continues an older checkpoint. For operators."""
    state = state_of(request)

    def proved() -> Mapping[str, Any]:
        log = AuditLog(state.ledger, state.settings)
        found = state.ledger.checkpoints(after=size - 1, limit=1)
        if not found or found[0][0] != size:
            raise NotFound(
                f"the service keeps no checkpoint of {size} entries",
                hint="give the size of one that it keeps; `limner audit checkpoint --since FILE` takes any",
            )
        return log.prove_consistency(found[0][1])

    return AuditConsistency(**await in_thread(proved))


@router.get("/audit/proof")
async def audit_proof(
    request: Request,
    caller: Reader,
    id: Annotated[
        str,
        Query(
            min_length=1,
            max_length=128,
            description="Id of an image of one's own: how it was made; or of a job: how it ended. For "
            "operators also any other id, or the number of an entry.",
        ),
    ],
) -> AuditProof:
    """The proof that an entry is in the audit log, without showing any other."""
    state = state_of(request)
    found = await in_thread(_proved, state, caller, id)
    return AuditProof(**cast(dict[str, Any], found))


def _proved(state: ServerState, caller: Principal, name: str) -> Mapping[str, object]:
    owner = owner_of(caller)
    if owner is not None:
        if name.startswith("img_"):
            state.ledger.find_image(name, account_id=owner)
        elif name.startswith("job_"):
            state.ledger.get_job(name, account_id=owner)
        else:
            raise InvalidRequest(
                f"{name!r} is no id of an image or a job",
                hint="only operators get other entries",
                fields=("id",),
            )
    return AuditLog(state.ledger, state.settings).prove(name)
