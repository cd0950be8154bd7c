"""Notices: what became of an account's images under the safety policy, and why."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from limner.server.auth import Manager, Reader
from limner.server.state import in_thread, state_of
from limner.service.reviews import Cause, DeliveredAs, Notice

from .access import AccountQuery, listed_account
from .jobs import Before, Limit
from .viewing import note_view
from .views import Page, Seconds, checked_id

router = APIRouter(prefix="/notices", tags=["moderation"])


class NoticeView(BaseModel):
    """What became of an image."""

    id: str = Field(description="Id of the notice.")
    account_id: str = Field(description="Account that gets the notice.")
    job_id: str = Field(description="Job of the image.")
    image_id: str | None = Field(description="The image; null for one that was blocked and not stored.")
    cause: Cause = Field(
        description="`policy`: the safety policy said so; else what a person has decided: `uphold` it, "
        "`release` the image, `block` it, or `reverse` the decision before."
    )
    delivery: DeliveredAs = Field(description="How the image is delivered from then on.")
    reason: str = Field(description="What the policy says about the image.")
    note: str = Field(description="What the person says who decided; empty where it was the policy.")
    at: Seconds
    read_at: float | None = Field(description="When it was read; null until then.")


class NoticePage(Page):
    """Notices, newest first."""

    items: list[NoticeView] = Field(description="The notices.")


@router.get("")
async def list_notices(
    request: Request,
    caller: Reader,
    unread: Annotated[bool, Query(description="Only those that have not been read.")] = False,
    limit: Limit = 50,
    before: Before = None,
    account: AccountQuery = None,
) -> NoticePage:
    """Notices, newest first."""
    ledger, owner = state_of(request).ledger, listed_account(caller, account)
    await note_view(request, caller, owner, "list.viewed", "notices")
    found = await in_thread(ledger.list_notices, owner, unread=unread, limit=limit, before=before)
    items = [_view(one) for one in found]
    return NoticePage(items=items, next=items[-1].id if len(items) == limit else None)


@router.post("/{notice_id}/read")
async def read_notice(request: Request, caller: Manager, notice_id: str) -> NoticeView:
    """Mark a notice of one's own as read."""
    ledger, name = state_of(request).ledger, checked_id(notice_id, "notice")
    return _view(await in_thread(ledger.read_notice, name, account_id=caller.account.id))


def _view(notice: Notice) -> NoticeView:
    return NoticeView(**asdict(notice))
