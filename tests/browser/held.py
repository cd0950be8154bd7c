"""Requests that are kept waiting on their way to the server."""

import re
import time
from collections.abc import Callable

from playwright.sync_api import Page, Request, Route

_PATIENCE = 60
_PAUSE_MS = 20


class Held:
    """Requests of a page that wait until they are let go.

    Args:
        page: The page.
        url: Pattern of their addresses.
        wanted: Whether a request is to be held, of those with such an address.
    """

    def __init__(
        self, page: Page, url: str | re.Pattern[str], wanted: Callable[[Request], bool] = lambda _: True
    ) -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(
            url, lambda route: self._routes.append(route) if wanted(route.request) else route.continue_()
        )

    def next(self) -> Route:
        """The one that has waited longest. Waits until there is one."""
        deadline = time.monotonic() + _PATIENCE
        while not self._routes:
            assert time.monotonic() < deadline, "the page has sent no such request"
            self._page.wait_for_timeout(_PAUSE_MS)
        return self._routes.pop(0)
