"""Albums: images of an account that it has put together under a name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from limner.errors import Conflict, NotFound, QuotaExceeded

from .library import find_images
from .rows import new_id
from .schema import album_images, albums, images
from .writing import Writing, actor_of, check_name, parts

MAX_ALBUMS = 1000
"""Number of albums of an account."""


@dataclass(frozen=True)
class Album:
    """An album. Images in the trash do not count.

    Attributes:
        id: Its public id.
        account_id: Whose it is.
        name: Its name, which no other album of the account has.
        count: Number of images in it.
        cover: Number of the newest of them; None where there are none.
        created_at, updated_at: Seconds since the epoch.
    """

    id: str
    account_id: str
    name: str
    count: int
    cover: int | None
    created_at: float
    updated_at: float


_ALBUMS = (
    select(albums, func.count(images.c.seq).label("count"), func.max(images.c.seq).label("cover"))
    .outerjoin(album_images, album_images.c.album_id == albums.c.id)
    .outerjoin(images, and_(images.c.seq == album_images.c.number, images.c.deleted_at.is_(None)))
    .group_by(albums.c.id)
)


class Albums(Writing):
    """An account's albums. With None as the account, methods that take an album's id find anybody's."""

    def list_albums(self, account_id: str | None) -> list[Album]:
        """Albums of an account, or of all, the one that was changed last first."""
        query = _ALBUMS.order_by(albums.c.updated_at.desc(), albums.c.id)
        if account_id is not None:
            query = query.where(albums.c.account_id == account_id)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        return [Album(**row._mapping) for row in rows]

    def get_album(self, album_id: str, *, account_id: str | None = None) -> Album:
        """An album. Raises NotFound."""
        with self._db.read() as connection:
            row = connection.execute(_ALBUMS.where(albums.c.id == album_id)).first()
        if row is None or account_id not in (None, row.account_id):
            raise NotFound(f"no album {album_id}")
        return Album(**row._mapping)

    def create_album(self, account_id: str, name: str) -> Album:
        """Make an album.

        Raises:
            Conflict: The account has one of this name.
            QuotaExceeded: It has as many as it may have.
        """
        check_name("name", name)
        with _unique(name), self._db.write() as tx:
            mine = select(func.count()).select_from(albums).where(albums.c.account_id == account_id)
            if tx.execute(mine).scalar_one() >= MAX_ALBUMS:
                raise QuotaExceeded(
                    f"{account_id} has {MAX_ALBUMS} albums and may have no more", hint="delete some of them"
                )
            now, album_id = self._db.time(tx), new_id("alb")
            values = {"id": album_id, "account_id": account_id, "name": name}
            tx.execute(insert(albums).values(**values, created_at=now, updated_at=now))
            self._tell(tx, _find(tx, album_id, account_id), (), now)
            return _album(tx, album_id)

    def rename_album(self, album_id: str, name: str, *, account_id: str | None) -> Album:
        """Give an album another name. Raises NotFound, and Conflict as `create_album`."""
        check_name("name", name)
        with _unique(name), self._db.write() as tx:
            row, now = _find(tx, album_id, account_id), self._db.time(tx)
            tx.execute(update(albums).where(albums.c.id == album_id).values(name=name, updated_at=now))
            self._tell(tx, row, (), now)
            return _album(tx, album_id)

    def delete_album(self, album_id: str, *, account_id: str | None) -> None:
        """Delete an album; its images stay. Raises NotFound."""
        with self._db.write() as tx:
            row, now = _find(tx, album_id, account_id), self._db.time(tx)
            tx.execute(delete(albums).where(albums.c.id == album_id))
            self._tell(tx, row, (), now)
            self._audit(tx, now, actor_of(account_id), "album.deleted", album_id)

    def change_album(
        self, album_id: str, *, account_id: str | None, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> tuple[Album, tuple[str, ...]]:
        """Put images into an album, and take others out of it.

        Args:
            add, remove: Names of images of its account: ids or numbers.

        Returns:
            The album, and those of the names that are no image's.

        Raises:
            NotFound: There is no such album.
        """
        with self._db.write() as tx:
            row, now = _find(tx, album_id, account_id), self._db.time(tx)
            added, unknown = find_images(tx, add, row.account_id)
            removed, missing = find_images(tx, remove, row.account_id)
            upsert = self._upsert(album_images)
            for part in parts([{"album_id": album_id, "number": one.seq} for one in added]):
                tx.execute(upsert.on_conflict_do_nothing(), part)
            for numbers in parts([one.seq for one in removed]):
                its = (album_images.c.album_id == album_id, album_images.c.number.in_(numbers))
                tx.execute(delete(album_images).where(*its))
            tx.execute(update(albums).where(albums.c.id == album_id).values(updated_at=now))
            self._tell(tx, row, [one.seq for one in (*added, *removed)], now)
            return _album(tx, album_id), (*unknown, *missing)

    def _tell(self, tx: Connection, album: Row[Any], numbers: Sequence[int], now: float) -> None:
        """Write the event of a change of an album, which concerns images of these numbers."""
        self._library_events(tx, "albums", {album.account_id: numbers}, now, {"album": album.id})


@contextmanager
def _unique(name: str) -> Iterator[None]:
    """Raises Conflict where an album cannot have a name because another has it."""
    try:
        yield
    except IntegrityError:
        raise Conflict(f"there is an album {name!r} already", fields=("name",)) from None


def _find(tx: Connection, album_id: str, account_id: str | None) -> Row[Any]:
    """The id and account of an album, locked. Raises NotFound."""
    query = select(*[albums.c.id, albums.c.account_id]).where(albums.c.id == album_id).with_for_update()
    row = tx.execute(query).first()
    if row is None or account_id not in (None, row.account_id):
        raise NotFound(f"no album {album_id}")
    return row


def _album(connection: Connection, album_id: str) -> Album:
    return Album(**connection.execute(_ALBUMS.where(albums.c.id == album_id)).one()._mapping)
