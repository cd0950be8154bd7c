"""Search for all accounts of a service: their indexes in the data folder, those used last kept open.

    search/ACCOUNT/index.sqlite3      words, settings and vectors
    search/ACCOUNT/*.usearch          graphs of many vectors

All of it is a cache, and can be deleted while nothing uses it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from limner.errors import NotFound
from limner.service.data_folder import erase_index
from limner.service.ledger.ledger import Ledger

from .account import AccountSearch
from .index import AccountIndex, IndexBroken

T = TypeVar("T")

_OPEN = 64  # accounts whose indexes are open at most
_IN_MEMORY = 400_000  # vectors of open indexes, beyond which those used longest ago are closed


class _Place:
    """The search of an account, and the lock under which it is used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.search: AccountSearch | None = None

    def close(self) -> None:
        if self.search is not None:
            self.search.index.close()
            self.search = None


class Searches:
    """Hands out the searches of accounts. Any thread may use it; those on one account take turns.

    Args:
        ledger: The truth.
        folder: Folder of the indexes.
    """

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder
        self._lock = threading.Lock()  # of the places; nobody waits for another lock under it
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def run(self, account_id: str, act: Callable[[AccountSearch], T]) -> T:
        """The result of `act` on an account's search.

        Raises:
            NotFound: There is no such account.
            StorageError: The index cannot be read or written. A damaged one is made again first.
        """
        with self._lock:
            place = self._places.setdefault(account_id, _Place())
            self._places.move_to_end(account_id)
        with place.lock:
            try:
                result = act(self._opened(account_id, place))
            except IndexBroken:
                place.close()
                erase_index(self._folder, account_id)
                result = act(self._opened(account_id, place))
        self._close_some()
        return result

    def forget(self, account_id: str) -> None:
        """Erase the index of an account, whose next search would make it again."""
        with self._lock:
            place = self._places.pop(account_id, None)
        if place is not None:
            with place.lock:
                place.close()
        erase_index(self._folder, account_id)

    def forget_erased(self) -> None:
        """Erase the indexes of accounts that are no more, as after the end of a process in mid-erasure."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                self._ledger.get_account(path.name)
            except NotFound:
                self.forget(path.name)

    def close(self) -> None:
        """Close all indexes."""
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        for place in places:
            with place.lock:
                place.close()

    def _opened(self, account_id: str, place: _Place) -> AccountSearch:
        if place.search is None or not place.search.index.is_there:
            place.close()
            if not (self._folder / account_id).exists():
                self._ledger.get_account(account_id)  # one that was erased gets no folder again
            index = AccountIndex(self._folder / account_id)
            place.search = AccountSearch(self._ledger, account_id, index)
        return place.search

    def _close_some(self) -> None:
        """Close what was used longest ago, but not what was used last, or is in use."""
        with self._lock:
            open_ = [(name, one) for name, one in self._places.items() if one.search is not None]
            sizes = [0 if one.search is None else one.search.size for _, one in open_]
            count, total = len(open_), sum(sizes)
            for (name, place), size in zip(open_[:-1], sizes, strict=False):
                if count <= _OPEN and total <= _IN_MEMORY:
                    break
                if place.lock.acquire(blocking=False):
                    place.close()
                    place.lock.release()
                    del self._places[name]
                    count, total = count - 1, total - size
