"""What search needs of the ledger, and what accounts prefer, such as of their taste."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select

from limner.errors import NotFound

from .reading import Reading
from .schema import accounts, events, images, preferences
from .writing import parts

_CHANGES = 5000  # changes that are read at most


class Searching(Reading):
    """Images by their numbers, and preferences."""

    def library_version(self, account_id: str) -> int:
        """A number that is another one whenever an account's images have changed: which there are, which are
        kept or in the trash, and what albums have."""
        self._number_events()
        number = events.c.id if self._db.is_sqlite else events.c.seq
        with self._db.read() as connection:
            its = select(func.max(number)).where(events.c.account_id == account_id)
            return int(connection.execute(its).scalar() or 0)

    def changed_images(self, account_id: str, *, after: int) -> list[int] | None:
        """Numbers of the images that have changed since a `library_version`, and of some that have not; None
        if they are too many, or not known any more."""
        found = self.events(account_id, after=after, limit=_CHANGES)
        if len(found) == _CHANGES or not after:
            return None
        numbers = {number for one in found for number in one.data.get("numbers", ())}
        done = [str(one.data["image"]) for one in found if one.change == "done" and "image" in one.data]
        with self._db.read() as connection:
            for part in parts(done):
                numbers |= {*connection.execute(select(images.c.seq).where(images.c.id.in_(part))).scalars()}
        return sorted(numbers) if len(numbers) <= _CHANGES else None

    def image_states(self, numbers: Sequence[int]) -> list[Row[Any]]:
        """Number, size, and whether it is kept and deleted, of the images of these numbers that there are."""
        columns = [images.c[name] for name in ("seq", "width", "height", "kept", "deleted_at")]
        with self._db.read() as connection:
            found = [
                connection.execute(select(*columns).where(images.c.seq.in_(part))).all()
                for part in parts(numbers)
            ]
        return [row for rows in found for row in rows]

    def image_records(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Number, record, size and time of creation of images, those that there are."""
        columns = (images.c.record, images.c.width, images.c.height, images.c.created_at)
        found = []
        with self._db.read() as connection:
            for part in parts(numbers):
                query = select(images.c.seq.label("number"), *columns).where(images.c.seq.in_(part))
                found += [dict(row._mapping) for row in connection.execute(query)]
        return found

    def image_keys(self, numbers: Sequence[int]) -> dict[int, str]:
        """Keys of images in the image store by their numbers, in the order that is given."""
        return self._by_number(numbers, images.c.key)

    def image_ids(self, numbers: Sequence[int]) -> dict[int, str]:
        """Ids of images by their numbers, in the order that is given."""
        return self._by_number(numbers, images.c.id)

    def _by_number(self, numbers: Sequence[int], column: Any) -> dict[int, str]:
        found: dict[int, str] = {}
        with self._db.read() as connection:
            for part in parts(numbers):
                query = select(images.c.seq, column).where(images.c.seq.in_(part))
                found |= {row[0]: row[1] for row in connection.execute(query)}
        return {number: found[number] for number in numbers if number in found}

    # -- preferences --

    def get_preference(self, account_id: str, name: str) -> Mapping[str, Any] | None:
        """What an account prefers under a name; None if it has said nothing."""
        mine = (preferences.c.account_id == account_id, preferences.c.name == name)
        with self._db.read() as connection:
            return connection.execute(select(preferences.c.value).where(*mine)).scalar()

    def change_preference(self, account_id: str, name: str, changes: Mapping[str, Any]) -> None:
        """Change values of what an account prefers under a name; its other values stay. Raises NotFound."""
        with self._db.write() as tx:
            owner = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
            if tx.execute(owner).first() is None:
                raise NotFound(f"no account {account_id!r}")
            mine = (preferences.c.account_id == account_id, preferences.c.name == name)
            known = tx.execute(select(preferences.c.value).where(*mine)).scalar() or {}
            values = {"value": {**known, **changes}, "updated_at": self._db.time(tx)}
            upsert = self._upsert(preferences).values(account_id=account_id, name=name, **values)
            tx.execute(upsert.on_conflict_do_update(index_elements=["account_id", "name"], set_=values))
