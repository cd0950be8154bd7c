"""The stream of events: changes of jobs and libraries, which can be resumed, and progress, which is live."""

import base64
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from limner.server.auth import Reader
from limner.server.problems import Refused
from limner.server.state import ServerState, in_thread, state_of
from limner.service.events import JobChanged, JobProgress, LedgerEvent, NoticeGiven, ServiceEvent
from limner.service.identity import Principal

from .access import AccountQuery, listed_account, owner_of
from .views import change_data, checked_id, progress_view

router = APIRouter(tags=["events"])

HEARTBEAT_SECONDS = 15.0
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events with an id: `job`, a change of a job's state; `library`, a change of images "
        "or albums; `notice`, what became of an image under the safety policy; and without one: `progress`.",
        "content": {"text/event-stream": {}},
    }
}


@router.get("/events", response_class=StreamingResponse, responses=_RESPONSES)
async def events(
    request: Request,
    caller: Reader,
    set_id: Annotated[
        list[str] | None, Query(max_length=100, description="Only events of these sets. May be repeated.")
    ] = None,
    previews: Annotated[bool, Query(description="Whether progress has previews, as data URLs.")] = False,
    last_event_id: Annotated[
        str | None,
        Header(max_length=20, description="Id of the last event received: the stream goes on after it."),
    ] = None,
    after: Annotated[
        int | None,
        Query(ge=0, le=10**18, description="As Last-Event-ID, for clients that cannot set it; 0 is all."),
    ] = None,
    account: AccountQuery = None,
) -> StreamingResponse:
    """Server-sent events of the account's jobs and library; with `set_id`, of the jobs of these sets alone.

    Without Last-Event-ID the stream begins with what happens now. A comment comes every 15 seconds at least.
    """
    state = state_of(request)
    if last_event_id is not None:
        if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 18):
            raise Refused(400, f"Last-Event-ID is {last_event_id!r}; expected the id of an event")
        after = int(last_event_id)
    owner = listed_account(caller, account)
    sets = None
    if set_id:
        for one in set_id:
            await in_thread(state.ledger.get_set, checked_id(one, "set"), account_id=owner_of(caller))
        owner, sets = owner_of(caller), frozenset(set_id)
    if state.streams.open >= state.settings.max_event_streams:
        raise Refused(
            503, "as many event streams are open as this service keeps", headers={"retry-after": "5"}
        )
    if state.streams.open_of[caller.account.id] >= state.settings.max_event_streams_per_account:
        raise Refused(
            429,
            "as many event streams of this account are open as this service keeps for one",
            hint="close one: a single stream has the events of all sets",
            headers={"retry-after": "5"},
        )
    stream = _Stream(state, caller, owner, sets, previews).lines(after)
    return _Counted(state, caller.account.id, stream)


class _Counted(StreamingResponse):
    """An answer with a stream of events, which counts as open from now until it has been sent.

    It is made in the same turn of the event loop in which the limits were looked at, so that no other call
    comes in between.
    """

    def __init__(self, state: ServerState, account_id: str, lines: AsyncIterator[str]) -> None:
        super().__init__(
            lines,
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._state, self._account = state, account_id
        self._count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._state.streams.count(self._account, change)
        self._state.metrics.set("limner_event_streams", self._state.streams.open)


class _Stream:
    """One stream of events.

    Args:
        caller: Who reads it. It ends soon after the key is revoked.
        account_id, set_ids: Whose events it has; None for all.
    """

    def __init__(
        self,
        state: ServerState,
        caller: Principal,
        account_id: str | None,
        set_ids: frozenset[str] | None,
        previews: bool,
    ) -> None:
        self._caller = caller
        self._state, self._account, self._sets, self._previews = state, account_id, set_ids, previews

    async def lines(self, after: int | None) -> AsyncIterator[str]:
        """The text of the stream, beginning after the event `after`; None: with what happens now."""
        state = self._state
        begin = "retry: 1000\n\n"
        if after is None:
            after = await in_thread(state.ledger.last_event)
            # An id without data sets Last-Event-ID: a client that is cut off before the first event
            # misses nothing either.
            begin += f"id: {after}\n\n"
        yield begin  # only now: a client that has read this misses nothing that happens from here on
        look = partial(in_thread, state.ledger.is_valid, self._caller)
        watched = state.hub.subscribe(self._account, set_ids=self._sets, after=after, previews=self._previews)
        async with watched as live:
            while (found := await live.batch(HEARTBEAT_SECONDS, turn=state.streams.turn)) is not None:
                if not await state.streams.may_read(self._caller, look):
                    return
                yield "".join(state.streams.text(one, self._previews, _text) for one in found) or ": \n\n"


def _text(event: ServiceEvent, previews: bool) -> str:
    """An event as streams send it, with or without the preview of its progress."""
    if not isinstance(event, JobProgress):
        kind, said = _said(event)
        return f"id: {event.seq}\nevent: {kind}\ndata: {json.dumps(said)}\n\n"
    data: dict[str, Any] = {
        "job_id": event.job_id,
        "set_id": event.set_id,
        "account_id": event.account_id,
        "index": event.index,
        **progress_view(event).model_dump(),
    }
    if previews and event.preview is not None:
        data["preview"] = f"data:{event.preview_type};base64,{base64.b64encode(event.preview).decode()}"
    return f"event: progress\ndata: {json.dumps(data)}\n\n"


def _said(event: LedgerEvent) -> tuple[str, dict[str, Any]]:
    """The kind and the data of a change."""
    if isinstance(event, JobChanged):
        return "job", change_data(event)
    if isinstance(event, NoticeGiven):
        return "notice", {"account_id": event.account_id, "at": event.at, **event.data}
    return "library", {"account_id": event.account_id, "change": event.change, "at": event.at, **event.data}
