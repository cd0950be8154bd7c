"""The library: an account's finished images, which it keeps or deletes, and their lineage.

An image is named by its id or by its number, in decimal; numbers are shorter, and grow with time. Methods
that take an `account_id` see that account's images alone, with None everybody's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    func,
    literal,
    select,
    update,
)

from limner.errors import NotFound
from limner.service.jobs import ImageFile, LibraryImage

from .rows import LIBRARY_COLUMNS, library_image
from .schema import album_images, images, jobs, reviews, set_parents, sets
from .writing import Writing, actor_of, parts

_LIBRARY = (
    select(*LIBRARY_COLUMNS)
    .select_from(images)
    .join(jobs, jobs.c.id == images.c.job_id)
    .join(sets, sets.c.id == jobs.c.set_id)
)
"""Images with what their jobs and sets know of them."""

_OF_FILE = [
    images.c[name]
    for name in (
        *("seq", "id", "account_id", "job_id", "key", "sha256", "created_at"),
        *("watermark", "delivered_sha256", "blurred"),
    )
]

MAX_RELATIVES = 200
"""Number of images of a lineage in each direction."""


@dataclass(frozen=True)
class ImageFilter:
    """Which images of a library are meant. What is None does not matter.

    Attributes:
        album: Id of the album that they are in.
        kept: Whether they are marked.
        deleted: Whether they are in the trash.
        model: Id of their checkpoint in the catalogue.
        lora: Name of a LoRA that their request has.
        seed: Their seed.
        since, until: They were made from the first time on and before the second, in seconds since the epoch.
        numbers: Their numbers.
    """

    album: str | None = None
    kept: bool | None = None
    deleted: bool = False
    model: str | None = None
    lora: str | None = None
    seed: int | None = None
    since: float | None = None
    until: float | None = None
    numbers: tuple[int, ...] | None = None

    def conditions(self, *, sqlite: bool) -> list[ColumnElement[bool]]:
        """What it demands of the table of images, for SQLite or PostgreSQL."""
        found: list[ColumnElement[bool]] = [
            images.c.deleted_at > 0 if self.deleted else images.c.deleted_at.is_(None)
        ]
        if self.kept is not None:
            found.append(images.c.kept.is_(self.kept))
        if self.since is not None:
            found.append(images.c.created_at >= self.since)
        if self.until is not None:
            found.append(images.c.created_at < self.until)
        if self.numbers is not None:
            found.append(images.c.seq.in_(self.numbers))
        if self.album is not None:
            its = select(album_images.c.number).where(album_images.c.album_id == self.album)
            found.append(images.c.seq.in_(its))
        if of_job := self._of_job(sqlite):
            its_job = select(literal(1)).select_from(jobs).where(jobs.c.id == images.c.job_id, *of_job)
            found.append(its_job.correlate(images).exists())  # its own jobs, also where the query has jobs
        return found

    def _of_job(self, sqlite: bool) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.model is not None:
            found.append(jobs.c.model == self.model)
        if self.seed is not None:
            seed: ColumnElement[Any] = func.json_extract(jobs.c.params, "$.seed")
            found.append(seed == self.seed if sqlite else jobs.c.params["seed"].as_string() == str(self.seed))
        if self.lora is not None:
            if sqlite:
                each = func.json_each(jobs.c.params, "$.loras").table_valued("value")
                name: ColumnElement[Any] = func.json_extract(each.c.value, "$.name")
            else:
                each = func.json_array_elements(jobs.c.params["loras"]).table_valued("value")
                name = each.c.value.op("->>")("name")
            found.append(select(literal(1)).select_from(each).where(name == self.lora).exists())
        return found


ANY_IMAGE = ImageFilter()
"""All images but those in the trash."""


@dataclass(frozen=True)
class Marked:
    """What `mark_images` has done.

    Attributes:
        changed: Number of images that were changed.
        unknown: Those of the names that are no image's.
    """

    changed: int
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Images that one was made from, and that were made from it.

    Attributes:
        image: The image.
        parents: Those that it was made from, and theirs in turn: the nearest first.
        children: Those that were made from it, and theirs in turn: the nearest first.
        complete: Whether these are all; there are at most MAX_RELATIVES of each.
    """

    image: LibraryImage
    parents: tuple[LibraryImage, ...]
    children: tuple[LibraryImage, ...]
    complete: bool


class Library(Writing):
    """Images, and how they are marked, deleted and related."""

    def get_image(self, name: str, *, account_id: str | None = None) -> LibraryImage:
        """An image, also one in the trash. Raises NotFound."""
        with self._db.read() as connection:
            return self._image(connection, name, account_id)

    def find_image(self, name: str, *, account_id: str | None = None) -> ImageFile:
        """The file of an image, also of one in the trash, without reading its record. Raises NotFound."""
        with self._db.read() as connection:
            row = find_image(connection, name, account_id)
        return ImageFile(
            row.id,
            row.seq,
            row.key,
            row.sha256,
            row.created_at,
            row.account_id,
            row.watermark,
            row.delivered_sha256,
            row.blurred,
        )

    def replace_delivered(self, name: str, sha256: str, size: int) -> None:
        """Note that the delivered file of an image was made again, with other bytes. Raises NotFound.

        Args:
            sha256: Hash of the new file, in hex.
            size: Its size in bytes.
        """
        with self._db.write() as tx:
            row = find_image(tx, name, None)
            changed = {"delivered_sha256": sha256, "delivered_bytes": size}
            tx.execute(update(images).where(images.c.seq == row.seq).values(**changed))
            now, details = self._db.time(tx), {"before": row.delivered_sha256, **changed}
            self._audit(tx, now, "service", "image.delivered_again", row.id, **details)

    def find_watermark(
        self, digits: str, *, account_id: str | None = None, limit: int = 10
    ) -> list[LibraryImage]:
        """The images whose watermark has an id that begins with these hexadecimal digits, newest first."""
        its = (images.c.watermark >= digits, images.c.watermark < f"{digits}g")
        mine = [] if account_id is None else [images.c.account_id == account_id]
        with self._db.read() as connection:
            query = _LIBRARY.where(*its, *mine).order_by(images.c.seq.desc()).limit(limit)
            return _whole(connection, connection.execute(query).all())

    def list_images(
        self,
        account_id: str | None,
        *,
        which: ImageFilter = ANY_IMAGE,
        limit: int = 100,
        before: str | None = None,
    ) -> list[LibraryImage]:
        """Images, newest first.

        Args:
            limit: Number of images at most.
            before: Name of an image: only older ones. With the last one's id this is the next page.
        """
        query = _LIBRARY.where(*self._of(account_id, which)).order_by(images.c.seq.desc()).limit(limit)
        with self._db.read() as connection:
            if before is not None:
                last = find_image(connection, before, account_id, field="before")
                query = query.where(images.c.seq < last.seq)
            return _whole(connection, connection.execute(query).all())

    def image_index(self, account_id: str | None, which: ImageFilter = ANY_IMAGE) -> Sequence[Row[Any]]:
        """All images, newest first: number, width, height, whether it is kept, and time of creation."""
        columns = [images.c[name] for name in ("seq", "width", "height", "kept", "created_at")]
        query = select(*columns).where(*self._of(account_id, which)).order_by(images.c.seq.desc())
        with self._db.read() as connection:
            return connection.execute(query).all()

    def _of(self, account_id: str | None, which: ImageFilter) -> list[ColumnElement[bool]]:
        mine = [] if account_id is None else [images.c.account_id == account_id]
        return [*mine, *which.conditions(sqlite=self._db.is_sqlite)]

    def mark_images(
        self,
        names: Sequence[str],
        *,
        account_id: str | None,
        kept: bool | None = None,
        deleted: bool | None = None,
    ) -> Marked:
        """Mark images as kept, or put them into the trash or take them out of it.

        Args:
            names: Ids or numbers.
            kept, deleted: What they are to be; None leaves it as it is.
        """
        with self._db.write() as tx:
            now = self._db.time(tx)
            found, unknown = find_images(tx, names, account_id)
            changed: set[int] = set()
            if kept is not None:
                rows = [row for row in found if row.kept != kept]
                changed |= self._mark(tx, rows, now, "kept", {"kept": kept}, kept=kept)
            if deleted is not None:
                rows = [row for row in found if (row.deleted_at is not None) != deleted]
                change: Literal["deleted", "restored"] = "deleted" if deleted else "restored"
                changed |= self._mark(tx, rows, now, change, {}, deleted_at=now if deleted else None)
                for owner in by_account(rows):
                    actor, its = actor_of(account_id), [row.id for row in rows if row.account_id == owner]
                    self._audit(tx, now, actor, f"images.{change}", owner, images=its)
        return Marked(len(changed), unknown)

    def _mark(
        self,
        tx: Connection,
        rows: Sequence[Row[Any]],
        now: float,
        change: Literal["kept", "deleted", "restored"],
        data: Mapping[str, Any],
        **values: Any,
    ) -> set[int]:
        """Change images, and tell of it. Returns their numbers."""
        numbers = [row.seq for row in rows]
        for part in parts(numbers):
            tx.execute(update(images).where(images.c.seq.in_(part)).values(**values))
        self._library_events(tx, change, by_account(rows), now, data)
        return set(numbers)

    def lineage(self, name: str, *, account_id: str | None = None) -> Lineage:
        """What an image was made from and what was made from it, without what is in the trash.

        Raises NotFound.
        """
        with self._db.read() as connection:
            image = self._image(connection, name, account_id)
            parents, all_parents = _relatives(connection, image, _parents_of)
            children, all_children = _relatives(connection, image, _children_of)
        return Lineage(image, parents, children, all_parents and all_children)

    @staticmethod
    def _image(connection: Connection, name: str, account_id: str | None) -> LibraryImage:
        (image,) = _whole(connection, connection.execute(_LIBRARY.where(_is(name))).all()) or (None,)
        if image is None or account_id not in (None, image.account_id):
            raise _missing(connection, name, account_id)
        return image


def find_image(
    connection: Connection, name: str, account_id: str | None, *, field: str | None = None
) -> Row[Any]:
    """The image of a name: its number as `seq`, its id, account, job, key, hash and time of creation.

    Raises NotFound, which names `field`.
    """
    row = connection.execute(select(*_OF_FILE).where(_is(name))).first()
    if row is None or account_id not in (None, row.account_id):
        raise _missing(connection, name, account_id, (field,) if field else ())
    return row


def _missing(
    connection: Connection, name: str, account_id: str | None, fields: tuple[str, ...] = ()
) -> NotFound:
    """The error about an image that there is none of, or that is withheld from the account."""
    its = (reviews.c.image_id == name, reviews.c.withheld_key.is_not(None))
    withheld = connection.execute(select(reviews.c.account_id, reviews.c.decision).where(*its)).first()
    if withheld is None or withheld.account_id != account_id:
        return NotFound(f"no image {name}", fields=fields)
    return NotFound(
        f"the image {name} is withheld: {withheld.decision['reason']}",
        hint="`GET /api/v1/notices` says who decided so, and why",
        fields=fields,
    )


def find_images(
    tx: Connection, names: Sequence[str], account_id: str | None
) -> tuple[list[Row[Any]], tuple[str, ...]]:
    """The images of these names that are not another account's, locked, and the names that are no image's.

    Each has its number as `seq`, its id and account, and whether it is kept and deleted.
    """
    numbers = {name: int(name) for name in names if _is_number(name)}
    for part in parts([name for name in names if name not in numbers]):
        query = select(images.c.id, images.c.seq).where(images.c.id.in_(part))
        numbers |= {row.id: row.seq for row in tx.execute(query)}
    columns = [images.c[name] for name in ("seq", "id", "account_id", "kept", "deleted_at")]
    found: dict[int, Row[Any]] = {}
    for wanted in parts(sorted({*numbers.values()})):  # in one order, so that no two wait for each other
        locked = select(*columns).where(images.c.seq.in_(wanted)).order_by(images.c.seq).with_for_update()
        found |= {row.seq: row for row in tx.execute(locked) if account_id in (None, row.account_id)}
    rows = {seq: found[seq] for name in names if (seq := numbers.get(name)) in found}
    return list(rows.values()), tuple({name: None for name in names if numbers.get(name) not in found})


def by_account(rows: Iterable[Row[Any]]) -> dict[str, list[int]]:
    """Numbers of images by their account."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[row.account_id].append(row.seq)
    return dict(found)


def parents_of_sets(connection: Connection, set_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Ids of the images that those of sets were made from."""
    found: dict[str, tuple[str, ...]] = {}
    for part in parts(list(set_ids)):
        query = select(set_parents).where(set_parents.c.set_id.in_(part)).order_by(set_parents.c.position)
        for row in connection.execute(query):
            found[row.set_id] = (*found.get(row.set_id, ()), row.image_id)
    return found


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 18


def _is(name: str) -> ColumnElement[bool]:
    return images.c.seq == int(name) if _is_number(name) else images.c.id == name


def _whole(connection: Connection, rows: Sequence[Row[Any]]) -> list[LibraryImage]:
    """Images from rows of `_LIBRARY`, with their parents and albums."""
    parents = parents_of_sets(connection, {row.set_id for row in rows if row.relation is not None})
    albums: dict[int, tuple[str, ...]] = {}
    for part in parts([row.number for row in rows]):
        query = select(album_images).where(album_images.c.number.in_(part)).order_by(album_images.c.album_id)
        for row in connection.execute(query):
            albums[row.number] = (*albums.get(row.number, ()), row.album_id)
    return [library_image(row, parents.get(row.set_id, ()), albums.get(row.number, ())) for row in rows]


def _parents_of(ids: Sequence[str]) -> Select[str]:
    child = images.alias()
    its = (
        select(set_parents.c.image_id)
        .join(jobs, jobs.c.set_id == set_parents.c.set_id)
        .join(child, child.c.job_id == jobs.c.id)
        .where(child.c.id.in_(ids))
    )
    return select(images.c.id).where(images.c.id.in_(its)).order_by(images.c.seq.desc())


def _children_of(ids: Sequence[str]) -> Select[str]:
    its = (
        select(jobs.c.id)
        .join(set_parents, set_parents.c.set_id == jobs.c.set_id)
        .where(set_parents.c.image_id.in_(ids))
    )
    return select(images.c.id).where(images.c.job_id.in_(its)).order_by(images.c.seq)


def _relatives(
    connection: Connection, image: LibraryImage, next_of: Callable[[Sequence[str]], Select[str]]
) -> tuple[tuple[LibraryImage, ...], bool]:
    """Images that can be reached from one, the nearest first, and whether these are all."""
    order = {image.id: 0}
    nearest = [image.id]
    while nearest and len(order) <= MAX_RELATIVES:
        query = next_of(nearest).where(images.c.account_id == image.account_id).limit(2 * MAX_RELATIVES)
        nearest = [one for one in connection.execute(query).scalars() if one not in order]
        order |= {one: len(order) + place for place, one in enumerate(nearest)}
    reached = list(order)[1:]
    ids = reached[:MAX_RELATIVES]
    rows = connection.execute(_LIBRARY.where(images.c.id.in_(ids), images.c.deleted_at.is_(None))).all()
    found = sorted(_whole(connection, rows), key=lambda one: order[one.id])
    return tuple(found), len(reached) <= MAX_RELATIVES
