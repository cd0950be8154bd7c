"""What operators look at of other accounts, for the audit log."""

import time

from fastapi import Request

from limner.server.state import in_thread, state_of
from limner.service.identity import Principal

_SECONDS = 600.0  # in which looking at the same again is no entry of its own
_MANY = 10_000


async def note_view(
    request: Request, caller: Principal, owner: str | None, action: str, subject: str
) -> None:
    """Write an entry if a caller looks at what is not its own: at most one in ten minutes for the same.

    Args:
        owner: Account whose it is; None: those of all accounts.
        action: What is looked at, such as "image.viewed".
        subject: Its id, or which list.
    """
    if owner == caller.account.id:
        return
    state = state_of(request)
    now, seen = time.monotonic(), (caller.account.id, owner, action, subject)
    if now < state.views.get(seen, now):
        return
    for old in [one for one, until in state.views.items() if until <= now or len(state.views) > _MANY]:
        del state.views[old]
    await in_thread(state.ledger.audit, caller.account.id, action, subject, account=owner or "*")
    state.views[seen] = now + _SECONDS
