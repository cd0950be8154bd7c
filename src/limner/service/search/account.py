"""What search knows of one account: its index, its vectors in memory, and the state of its library.

The index holds what never changes of an image, and follows the ledger by comparing the numbers of the images;
what changes (whether an image is kept, in the trash, in an album) is read from the ledger. Nothing is looked
up before both agree, up to a number of images that may be indexed while a caller waits.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.errors import Conflict, InvalidRequest
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.library import ImageFilter

from .index import AccountIndex, IndexedImage, Numbers, Vector, VectorsOf
from .query import Query, Term, words_of
from .taste import forget_taste, taste_settings
from .vectors import Vectors

Scores = NDArray[np.floating[Any]]
Order = Literal["relevance", "newest", "taste"]

_MEMORY = "prompt_memory"  # name of a preference
_NONE: Numbers = np.zeros(0, np.int64)
_FIRST = 2**53  # more than the number of any image: added to those that go before all others
_FORGETTING = 86400.0  # seconds after which changes may be forgotten by the ledger
_AT_ONCE = 500  # images that are indexed in a transaction, which a search may wait for
_RANK = 60.0  # of reciprocal rank fusion: how much the first ranks differ
_WORDS = 1.5  # weight of words beside meaning: what a prompt says is surer than what it may mean
_NEAR = 500  # images that are found by meaning at most
_FEW = 50  # images, where likenesses spread too little for two deviations
_PICKS = 200  # kept images that make the taste
_HALF_LIFE = 50.0  # picks until one counts half
_KEPT_COUNTS = 0.1  # share of a score that each doubling of the kept images adds


@dataclass(frozen=True)
class Embedded:
    """A text or an image as a vector.

    Attributes:
        encoder: Hash of the encoder.
        vector: The vector, of length 1.
    """

    encoder: str
    vector: Vector = field(repr=False)


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        number: Its number in the ledger.
        score: How well it fits: by fused ranks, by likeness (a cosine), or by taste; more is better.
        ratio: Its width over its height.
        by_words: Whether its prompt has the words.
    """

    number: int
    score: float
    ratio: float
    by_words: bool


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        hits: The best, in the order that was asked for.
        total: Number of all.
        terms: How the query was read.
        meaning: Whether vectors took part.
        notes: Warnings: parts of the query that were not applied, or images not yet indexed.
    """

    hits: tuple[Hit, ...]
    total: int
    terms: tuple[Term, ...] = ()
    meaning: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RememberedPrompt:
    """A prompt of the account.

    Attributes:
        kept, drawn: Number of its images that are kept, and of all.
        score: How well it fits; more is better.
        image: Number of the newest image that is kept, or of the newest of all.
    """

    prompt: str
    negative_prompt: str
    kept: int
    drawn: int
    score: float
    image: int


@dataclass(frozen=True)
class _State:
    """The images of a library.

    Attributes:
        version: Number of the last change.
        numbers: Those that are not in the trash, in order.
        kept: Which of them are kept.
        ratios: Their widths over their heights.
        trash: Those in the trash.
        read_at: When it was read, by the clock of this process.
    """

    version: int
    numbers: Numbers
    kept: NDArray[np.bool_]
    ratios: NDArray[np.float64]
    trash: Numbers
    read_at: float = field(default_factory=time.monotonic)


class AccountSearch:
    """Searches one account's images and prompts. For one thread at a time.

    Args:
        ledger: The truth.
        account_id: The account.
        index: Its index.
    """

    def __init__(self, ledger: Ledger, account_id: str, index: AccountIndex) -> None:
        self._ledger, self.account_id, self.index = ledger, account_id, index
        self._state = _State(-1, *_columns(()), _NONE, -inf)
        self._changes = -1
        self._agreed: tuple[int, int] | None = None  # when index and ledger had the same images
        self._numbers = self._prompt_ids = _NONE  # all that are indexed, and their prompts
        self.images = Vectors(index, "image_vectors")
        self.prompts = Vectors(index, "prompt_vectors")

    @property
    def size(self) -> int:
        """Number of vectors in memory."""
        return len(self.images.owners) + len(self.prompts.owners)

    def needed_graphs(self) -> list[tuple[AccountIndex, VectorsOf]]:
        """What `build_graph` is to be called with."""
        every = (self.images, self.prompts)
        return [(self.index, one.kind) for one in every if one.needs_graph]

    # -- following the ledger --

    def catch_up(self, limit: int = _AT_ONCE) -> int:
        """Have the index agree with the ledger, but for at most `limit` new images, in one transaction.

        Returns:
            Number of images that are still to be indexed.
        """
        version = self._ledger.library_version(self.account_id)
        if version != self._state.version:
            self._state = self._changed_state(version) or self._whole_state(version)
        self._read_index()
        if self._agreed == (self._state.version, self._changes):
            return 0
        wanted = np.concatenate((self._state.numbers, self._state.trash))
        gone = np.setdiff1d(self._numbers, wanted, assume_unique=True)
        new = np.setdiff1d(wanted, self._numbers, assume_unique=True)[::-1]  # the newest first
        if len(gone):
            self.index.remove(gone)
            self._read_index()
        if len(new):
            records = self._ledger.image_records(new[:limit].tolist())
            self._take(*self.index.add([IndexedImage(**row) for row in records]))
        left = max(0, len(new) - limit)
        self._agreed = None if left else (self._state.version, self._changes)
        return left

    def _whole_state(self, version: int) -> _State:
        live = self._ledger.image_index(self.account_id)[::-1]
        trash = self._ledger.image_index(self.account_id, ImageFilter(deleted=True))
        return _State(version, *_columns(live), np.array([row.seq for row in trash], np.int64))

    def _changed_state(self, version: int) -> _State | None:
        """The state, if what has changed in the one before is known; else None."""
        state = self._state
        if version < state.version or state.read_at < time.monotonic() - _FORGETTING:
            return None
        changed = self._ledger.changed_images(self.account_id, after=state.version)
        if changed is None:
            return None
        rows = self._ledger.image_states(changed)
        numbers, kept, ratios = _columns([row for row in rows if row.deleted_at is None])
        trash = np.array([row.seq for row in rows if row.deleted_at is not None], np.int64)
        same = ~np.isin(state.numbers, changed)
        numbers = np.concatenate((state.numbers[same], numbers))
        order = np.argsort(numbers)
        return _State(
            version,
            numbers[order],
            np.concatenate((state.kept[same], kept))[order],
            np.concatenate((state.ratios[same], ratios))[order],
            np.concatenate((state.trash[~np.isin(state.trash, changed)], trash)),
        )

    def _read_index(self) -> None:
        """Read what this or another process has changed in the index."""
        changes = self.index.changes
        if changes != self._changes:
            self._numbers, self._prompt_ids = self.index.images()
            self._changes = changes
        self.images.refresh()
        self.prompts.refresh()

    def _take(self, numbers: Numbers, prompt_ids: Numbers) -> None:
        """Take images that were just added, without reading all others again."""
        if self.index.changes != self._changes + 1:  # another process has changed something as well
            self._read_index()
            return
        self._changes += 1
        numbers = np.concatenate((self._numbers, numbers))
        order = np.argsort(numbers)
        self._numbers = numbers[order]
        self._prompt_ids = np.concatenate((self._prompt_ids, prompt_ids))[order]

    # -- images --

    def find(
        self,
        query: Query,
        *,
        text: Embedded | None = None,
        like: Embedded | None = None,
        order: Order = "relevance",
        limit: int = 200,
    ) -> Found:
        """Images that fit.

        Words and meaning are fused by reciprocal ranks. With `like`, words are a condition, and images are
        ranked by likeness.

        Args:
            text: The words as a vector; None: by words alone.
            like: An image that the others are to be like.

        Raises:
            InvalidRequest: A chip names an album that there is not.
            Conflict: The order is by taste, which is switched off.
        """
        left = self.catch_up()
        notes = [f"{left} images are still being indexed"] if left else []
        numbers = allowed = self._allowed(query)
        scores: Scores = np.zeros(len(allowed))
        with_words, meaning = _NONE, False
        if query.words:
            with_words, scores, every = self._by_words(query.words, allowed)
            numbers = with_words
            if not every and len(numbers):
                notes.append("no prompt has all of the words; these have some of them")
        if like is not None:
            meaning = self._comparable(like, allowed, notes)
            numbers = self.images.having(numbers) if meaning else _NONE
            scores = np.zeros(len(numbers))
        elif query.words and text is not None and (meaning := self._comparable(text, allowed, notes)):
            numbers, scores = _fused(numbers, scores, *self._by_meaning(text.vector, allowed))
        total = len(numbers)
        if order == "taste":
            picks = self._picks()
            scores = self._by_taste(numbers, picks)
            if not len(picks):
                notes.append("there is no taste before an image is kept")
        elif order == "relevance" and like is not None:
            numbers, scores = self.images.nearest(like.vector, numbers, limit)
        best = np.argsort(-numbers) if order == "newest" else np.lexsort((-numbers, -scores))
        chosen = best[:limit]
        ratios = self._state.ratios[np.searchsorted(self._state.numbers, numbers[chosen])]
        worded = np.isin(numbers[chosen], with_words)
        values = (numbers[chosen].tolist(), scores[chosen].tolist(), ratios.tolist(), worded.tolist())
        hits = tuple(Hit(*one) for one in zip(*values, strict=True))
        return Found(hits, total, query.terms, meaning, tuple(notes))

    def _allowed(self, query: Query) -> Numbers:
        """The images that fit a query's chips, in order."""
        state = self._state
        numbers = state.numbers
        if query.kept is not None:
            numbers = numbers[state.kept == query.kept]
        if query.albums:
            numbers = numbers[np.isin(numbers, self._in_albums(query.albums))]
        fitting = self.index.fitting(query)
        return numbers if fitting is None else numbers[np.isin(numbers, fitting)]

    def _in_albums(self, names: Sequence[str]) -> Numbers:
        known = {one.name.casefold(): one.id for one in self._ledger.list_albums(self.account_id)}
        found = []
        for name in names:
            if name.casefold() not in known:
                raise InvalidRequest(f"there is no album {name!r}", fields=("q",))
            album = ImageFilter(album=known[name.casefold()])
            found += [row.seq for row in self._ledger.image_index(self.account_id, album)]
        return np.array(found, np.int64)

    def _by_words(self, words: Sequence[str], allowed: Numbers) -> tuple[Numbers, Scores, bool]:
        """Images whose prompts have words, and their scores; whether they have all of the words."""
        matches = self.index.match(words)
        mask = np.isin(self._prompt_ids, matches.prompts) & np.isin(self._numbers, allowed)
        ranks = _ranks(self._prompt_ids[mask], np.array(matches.ranked, np.int64))
        return self._numbers[mask], _WORDS / (_RANK + ranks), matches.every

    def _by_meaning(self, vector: Vector, allowed: Numbers) -> tuple[Numbers, Scores]:
        """Images that stand out from the others by their likeness with a text, and their scores."""
        mean, deviation = self.images.spread(vector, allowed)
        found, cosines = self.images.nearest(vector, allowed, _NEAR)
        least = mean + (2.0 if len(allowed) >= _FEW else 1.0) * deviation
        count = int((cosines > max(least, 0.0)).sum())
        return found[:count], 1.0 / (_RANK + np.arange(count))

    def _comparable(self, other: Embedded, allowed: Numbers, notes: list[str]) -> bool:
        """Whether images can be compared with a vector. What hinders it is added to the notes."""
        if not len(allowed):
            return False
        having = len(self.images.having(allowed))
        if other.encoder != self.index.encoder:
            having = 0
        if having < len(allowed):
            notes.append(f"{len(allowed) - having} images cannot be compared by meaning yet")
        return having > 0

    def vector(self, number: int) -> Embedded | None:
        """The vector of an image; None if it has none yet."""
        found, vectors = self.index.vectors("image_vectors", [number])
        return Embedded(self.index.encoder, vectors[0]) if len(found) else None

    def prompts_without_vector(self, limit: int) -> dict[int, str]:
        """Prompts that have no vector yet, by their ids, the newest first."""
        ids = self.index.missing("prompt_vectors", limit)
        return {one: prompt for one, (prompt, _) in self.index.prompts(ids).items()}

    def put_vectors(self, kind: VectorsOf, vectors: Mapping[int, Embedded | None]) -> None:
        """Store vectors of images by their numbers, or of prompts by their ids; None for what has none."""
        encoders = {one.encoder for one in vectors.values() if one is not None}
        encoder = encoders.pop() if encoders else self.index.encoder
        made = {owner: None if one is None else one.vector for owner, one in vectors.items()}
        self.index.put_vectors(kind, encoder, made)

    # -- taste --

    def clear_taste(self) -> None:
        """Have only images count that are drawn from now on."""
        forget_taste(self._ledger, self.account_id, self._newest())

    def taste(self, numbers: Sequence[int]) -> tuple[dict[int, float], int]:
        """How much images are to the account's taste: from -1 to 1, for those that have a vector. Without a
        kept image for none.

        Returns:
            Scores by number, and the number of kept images that the taste is made of.

        Raises:
            Conflict: It is switched off.
        """
        self.catch_up()
        own = np.intersect1d(np.array(numbers, np.int64), self._state.numbers)
        having = self.images.having(own)
        picks = self._picks()
        if not len(picks):
            return {}, 0
        return dict(zip(having.tolist(), self._by_taste(having, picks).tolist(), strict=True)), len(picks)

    def _picks(self) -> Numbers:
        """The kept images that make the taste, oldest first."""
        settings = taste_settings(self._ledger, self.account_id)
        if not settings.enabled:
            raise Conflict("the taste is switched off", hint="switch it on: PUT /api/v1/taste")
        kept = self._state.numbers[self._state.kept]
        kept = kept[kept > settings.since]
        return self.images.having(kept)[-_PICKS:]

    def _by_taste(self, numbers: Numbers, picks: Numbers) -> Scores:
        """Scores of images: how far they lie from the middle of all towards that of the picks."""
        scores = np.full(len(numbers), -1.0)  # those without a vector go last
        if not len(picks):
            return scores
        found, vectors = self.images.of(picks)
        age = len(picks) - 1 - np.searchsorted(picks, found)
        centre = np.average(vectors, axis=0, weights=0.5 ** (age / _HALF_LIFE))
        _, sample = self.images.of(self.images.sample_of(self._state.numbers))
        towards = centre - sample.mean(axis=0)
        length = float(np.linalg.norm(towards))
        direction = (towards / length if length > 1e-6 else np.zeros_like(towards)).astype(np.float32)
        having, cosines = self.images.likeness(direction, numbers)
        order = np.argsort(numbers)
        scores[order[np.searchsorted(numbers, having, sorter=order)]] = cosines
        return scores

    # -- prompt memory --

    def recall(
        self,
        text: str = "",
        *,
        embedded: Embedded | None = None,
        by_words: bool = True,
        kept_only: bool = True,
        limit: int = 10,
    ) -> list[RememberedPrompt]:
        """Prompts of the account, those that fit a text first; without a text those with most kept images.

        Args:
            embedded: The text as a vector; None: by words alone.
            by_words: Whether words count; else the meaning alone, and the score is a cosine.
            kept_only: Whether only prompts with a kept image are wanted.
            limit: Number of prompts at most.
        """
        self.catch_up()
        rows = np.isin(self._numbers, self._state.numbers) & (self._numbers > self._forgotten())
        numbers = self._numbers[rows]
        kept = self._state.kept[np.searchsorted(self._state.numbers, numbers)]
        ids, its, drawn = np.unique(self._prompt_ids[rows], return_inverse=True, return_counts=True)
        keeps = np.bincount(its, kept, len(ids)).astype(np.int64)
        newest = np.zeros(len(ids), np.int64)
        np.maximum.at(newest, its, numbers + kept * _FIRST)
        newest %= _FIRST
        wanted = keeps > 0 if kept_only else np.ones(len(ids), bool)
        ids, drawn, keeps, newest = ids[wanted], drawn[wanted], keeps[wanted], newest[wanted]
        scores = self._fit(text, embedded, ids, limit, by_words) if text.strip() else np.full(len(ids), 0.01)
        if by_words:
            scores = scores * (1.0 + _KEPT_COUNTS * np.log2(1.0 + keeps))
        best = np.lexsort((-newest, -scores))
        best = best[scores[best] > 0.0][:limit]
        texts = self.index.prompts(ids[best])
        return [
            RememberedPrompt(
                *texts[int(ids[row])], int(keeps[row]), int(drawn[row]), float(scores[row]), int(newest[row])
            )
            for row in best
        ]

    def _fit(self, text: str, embedded: Embedded | None, ids: Numbers, limit: int, by_words: bool) -> Scores:
        """How well prompts fit a text; 0 where they do not."""
        scores = np.zeros(len(ids))
        if by_words and (words := words_of(text)):
            matches = self.index.match([*words[:-1], f"{words[-1]}*"])  # the last one may not be complete
            ranked = np.array(matches.ranked, np.int64)
            hit = np.isin(ids, matches.prompts)
            scores[hit] += _WORDS / (_RANK + _ranks(ids[hit], ranked))
        if embedded is not None and embedded.encoder == self.index.encoder:
            near, cosines = self.prompts.nearest(embedded.vector, ids, 10 * limit)
            scores[np.searchsorted(ids, near)] += (
                1.0 / (_RANK + np.arange(len(near))) if by_words else cosines
            )
        return scores

    def clear_memory(self) -> None:
        """Forget the prompts of all images until now."""
        self._ledger.change_preference(self.account_id, _MEMORY, {"since": self._newest()})

    def _forgotten(self) -> int:
        """Number of the newest image whose prompt is forgotten; 0: none."""
        return int((self._ledger.get_preference(self.account_id, _MEMORY) or {}).get("since", 0))

    def _newest(self) -> int:
        """Number of the newest image; 0 without any."""
        self.catch_up()
        return int(max(self._state.numbers.max(initial=0), self._state.trash.max(initial=0)))


def _columns(rows: Sequence[Any]) -> tuple[Numbers, NDArray[np.bool_], NDArray[np.float64]]:
    """Numbers of images, whether they are kept, and their ratios."""
    return (
        np.array([row.seq for row in rows], np.int64),
        np.array([row.kept for row in rows], bool),
        np.array([row.width / row.height for row in rows], np.float64),
    )


def _ranks(ids: Numbers, ranked: Numbers) -> NDArray[np.int64]:
    """Places of ids among others that are ranked, from 0; the place after the last for those that are not."""
    if not len(ranked):
        return np.zeros(len(ids), np.int64)
    order = np.argsort(ranked)
    at = np.minimum(np.searchsorted(ranked, ids, sorter=order), len(ranked) - 1)
    return np.where(ranked[order[at]] == ids, order[at], len(ranked))


def _fused(one: Numbers, its: Scores, two: Numbers, others: Scores) -> tuple[Numbers, Scores]:
    """Two lists of images as one, with their scores added."""
    numbers = np.union1d(one, two)
    scores = np.zeros(len(numbers))
    scores[np.searchsorted(numbers, one)] += its
    scores[np.searchsorted(numbers, two)] += others
    return numbers, scores
