"""Search over an account's images, prompt memory and taste, on a ledger."""

import threading
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import delete, update

from limner.errors import Conflict, InvalidRequest, NotFound, StorageError
from limner.service.identity import Principal
from limner.service.jobs import Completion, NewJob, StoredImage, Submission
from limner.service.ledger.schema import events, images
from limner.service.search import searches as searches_module
from limner.service.search.account import Embedded
from limner.service.search.query import parse_query
from limner.service.search.searches import Searches
from limner.service.search.taste import switch_taste

WIDTH = 8


@pytest.fixture
def gallery(ledger, tmp_path):
    """Accounts with images, and their search."""
    searches = Searches(ledger, tmp_path / "search")

    def draw(account, *prompts, **request):
        """Draws an image of each prompt, and returns their numbers."""
        principal = Principal(ledger.get_account(account))
        jobs = tuple(NewJob({"prompt": prompt}, "m", 1.0) for prompt in prompts)
        made = ledger.accept(principal, Submission(jobs, {}))
        for claim in ledger.claim("w", lease_seconds=60, limit=len(jobs), warm=()):
            job = claim.job
            record = {"request": {**job.params, "seed": 7, **request}, "model": {"name": "m"}}
            image = StoredImage(
                f"img_{job.id}", job.id, account, f"{job.id}.png", "00" * 32, "11" * 32, 64, 32, 10, record
            )
            assert ledger.finish(job.id, job.fence, Completion(image, 1.0))
        images = {one.image.id for one in ledger.get_set(made.id).jobs}
        every = ledger.list_images(account, limit=100)
        return sorted(one.number for one in every if one.id in images)

    def find(account, query="", **more):
        return searches.run(account, lambda search: search.find(parse_query(query), **more))

    def numbers(account, query=""):
        return {hit.number for hit in find(account, query).hits}

    ledger.create_account("anna")
    ledger.create_account("bert")
    yield SimpleNamespace(ledger=ledger, searches=searches, draw=draw, find=find, numbers=numbers)
    searches.close()


def axis(index, length=1.0):
    """A vector along an axis, and a little along the first."""
    vector = np.zeros(WIDTH, np.float32)
    vector[index] = length
    vector[0] += 0.1
    return vector / np.linalg.norm(vector)


def embed(gallery, account, vectors, encoder="e"):
    made = {number: Embedded(encoder, vector) for number, vector in vectors.items()}

    def put(search):
        search.catch_up()
        search.put_vectors("image_vectors", made)

    gallery.searches.run(account, put)


def mark(gallery, account, *numbers, **how):
    gallery.ledger.mark_images([str(one) for one in numbers], account_id=account, **how)


def test_each_account_finds_its_own_alone(gallery):
    mine = gallery.draw("anna", "a red boat", "a blue boat")
    gallery.draw("bert", "a red boat at night", "a boat", "a boat")
    found = gallery.find("anna", "boat")
    assert {hit.number for hit in found.hits} == set(mine)
    assert (found.total, found.meaning) == (2, False)
    assert all(hit.by_words and hit.ratio == 2.0 for hit in found.hits)
    assert gallery.find("anna", "night").total == 0
    assert gallery.find("anna", limit=1).total == 2


def test_the_index_follows_what_happens_to_images(gallery):
    one, two, three = gallery.draw("anna", "a red boat", "a blue boat", "a boat")
    album = gallery.ledger.create_album("anna", "For Anna")
    gallery.ledger.change_album(album.id, account_id="anna", add=[str(two)])
    mark(gallery, "anna", one, kept=True)
    assert gallery.numbers("anna", "boat kept:yes") == {one}
    assert gallery.numbers("anna", 'boat album:"for anna"') == {two}
    assert gallery.numbers("anna", 'kept:no album:"for anna" seed:7 size:64x32') == {two}
    with pytest.raises(InvalidRequest, match="no album"):
        gallery.find("anna", "album:other")
    mark(gallery, "anna", one, deleted=True)
    assert gallery.numbers("anna", "boat") == {two, three}
    mark(gallery, "anna", one, deleted=False)
    assert gallery.numbers("anna", "boat") == {one, two, three}
    gallery.ledger.delete_image(str(two), account_id="anna")
    assert gallery.numbers("anna", "boat") == {one, three}
    assert gallery.numbers("anna", "blue") == set()
    (four,) = gallery.draw("anna", "a boat at night")
    assert gallery.numbers("anna", "night") == {four}


def test_an_index_that_was_lost_or_damaged_is_made_again(gallery, tmp_path):
    mine = set(gallery.draw("anna", "a red boat", "a boat"))
    assert gallery.numbers("anna", "boat") == mine
    path = tmp_path / "search" / "anna" / "index.sqlite3"
    gallery.searches.close()
    path.write_bytes(b"x" * path.stat().st_size)
    assert gallery.numbers("anna", "boat") == mine
    other = Searches(gallery.ledger, tmp_path / "search")  # as another process erases it
    other.forget("anna")
    assert not path.exists()
    assert gallery.numbers("anna", "boat") == mine
    assert path.exists()


def test_an_erased_account_leaves_no_index(gallery, tmp_path):
    gallery.draw("anna", "a red boat")
    gallery.draw("bert", "a boat")
    gallery.numbers("anna", "boat")
    gallery.numbers("bert", "boat")
    gallery.ledger.erase_account("anna")  # and the process ends before it has erased the index
    gallery.searches.forget_erased()
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["bert"]


def test_words_and_meaning_are_fused(gallery):
    boats = gallery.draw("anna", "a red boat", "a blue boat")
    others = gallery.draw("anna", *["a grey stone"] * 8, "a scarlet ship")
    ship = others[-1]
    vectors = {number: axis(3) for number in others[:-1]}
    embed(gallery, "anna", {**vectors, boats[0]: axis(1), boats[1]: axis(2), ship: axis(1)})
    text = Embedded("e", axis(1))
    found = gallery.find("anna", "boat", text=text)
    assert found.meaning
    assert found.hits[0].number == boats[0]
    assert {hit.number for hit in found.hits} == {*boats, ship}
    assert found.total == 3
    assert [hit.by_words for hit in found.hits if hit.number == ship] == [False]
    other = gallery.find("anna", "boat", text=Embedded("another", axis(1)))
    assert not other.meaning
    assert {hit.number for hit in other.hits} == set(boats)
    assert "11 images cannot be compared" in other.notes[0]


def test_likeness_ranks_what_the_words_allow(gallery):
    one, two, three = gallery.draw("anna", "a boat", "a house", "a boat at night")
    embed(gallery, "anna", {one: axis(1), two: axis(1, 0.9), three: axis(2)})
    like = Embedded("e", axis(1))
    found = gallery.find("anna", like=like)
    assert [hit.number for hit in found.hits] == [one, two, three]
    assert found.hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert found.total == 3
    assert [hit.number for hit in gallery.find("anna", "boat", like=like).hits] == [one, three]
    assert [hit.number for hit in gallery.find("anna", like=like, order="newest").hits] == [three, two, one]
    mark(gallery, "anna", one, deleted=True)
    assert [hit.number for hit in gallery.find("anna", like=like).hits] == [two, three]


def test_prompts_of_kept_images_are_remembered(gallery):
    boats = gallery.draw("anna", "a red boat", "a red boat", "a blue boat", "a green house")
    gallery.draw("bert", "a red boat of bert")
    mark(gallery, "anna", boats[1], boats[3], kept=True)

    def recall(text="", account="anna", **more):
        return gallery.searches.run(account, lambda search: search.recall(text, **more))

    assert {one.prompt for one in recall()} == {"a red boat", "a green house"}
    (found,) = recall("bo")  # while it is typed
    assert (found.prompt, found.kept, found.drawn, found.image) == ("a red boat", 1, 2, boats[1])
    assert {one.prompt for one in recall("boat", kept_only=False)} == {"a red boat", "a blue boat"}
    missing = gallery.searches.run("anna", lambda search: search.prompts_without_vector(10))
    places = {"a red boat": 1, "a blue boat": 2, "a green house": 3}
    made = {one: Embedded("e", axis(places[prompt])) for one, prompt in missing.items()}
    gallery.searches.run("anna", lambda search: search.put_vectors("prompt_vectors", made))
    near = recall("dwelling", embedded=Embedded("e", axis(3)), by_words=False, kept_only=False)
    assert near[0].prompt == "a green house"
    assert recall("dwelling", embedded=Embedded("e", axis(3)))[0].prompt == "a green house"
    assert recall(account="bert") == []

    gallery.searches.run("anna", lambda search: search.clear_memory())
    assert recall() == recall(kept_only=False) == []
    assert gallery.numbers("anna", "boat") == set(boats[:3])  # the images stay
    (again,) = gallery.draw("anna", "a red boat")
    mark(gallery, "anna", again, kept=True)
    assert [(one.prompt, one.drawn) for one in recall()] == [("a red boat", 1)]


def test_taste_is_the_way_from_all_images_to_the_kept_ones(gallery):
    numbers = gallery.draw("anna", *["a boat"] * 6)
    embed(gallery, "anna", {number: axis(1 + place % 2) for place, number in enumerate(numbers[:5])})
    taste = lambda: gallery.searches.run("anna", lambda search: search.taste(numbers))  # noqa: E731
    assert taste()[1] == 0
    mark(gallery, "anna", numbers[0], kept=True)
    scores, picks = taste()
    assert picks == 1
    assert set(scores) == set(numbers[:5])  # the last one has no vector
    assert scores[numbers[2]] > 0 > scores[numbers[1]]
    order = [hit.number for hit in gallery.find("anna", order="taste").hits]
    assert set(order[:3]) == {numbers[0], numbers[2], numbers[4]}
    assert order[-1] == numbers[5]
    mark(gallery, "anna", numbers[0], kept=False)
    mark(gallery, "anna", numbers[1], kept=True)
    assert taste()[0][numbers[2]] < 0
    gallery.searches.run("anna", lambda search: search.clear_taste())
    assert taste()[1] == 0
    switch_taste(gallery.ledger, "anna", False)
    with pytest.raises(Conflict, match="switched off"):
        taste()
    switch_taste(gallery.ledger, "anna", True)
    assert taste()[1] == 0  # what was cleared stays so


def test_a_ledger_of_an_earlier_time_is_believed(gallery):
    """As after a backup was restored: its changes have lower numbers than what was seen."""
    one, two = gallery.draw("anna", "a boat", "a boat at night")
    mark(gallery, "anna", one, kept=True)
    assert gallery.numbers("anna", "kept:yes") == {one}
    with gallery.ledger._db.write() as tx:
        tx.execute(update(images).values(kept=False))
        tx.execute(delete(images).where(images.c.seq == two))
        tx.execute(delete(events))
    assert gallery.numbers("anna", "kept:yes") == set()
    assert gallery.numbers("anna", "boat") == {one}


def test_many_images_are_indexed_in_parts_and_searches_say_so(gallery):
    numbers = gallery.draw("anna", *(f"boat {n}" for n in range(5)))
    left = gallery.searches.run("anna", lambda search: search.catch_up(2))
    assert left == 3
    gallery.ledger.delete_image(str(numbers[0]), account_id="anna")
    assert gallery.numbers("anna", "boat") == set(numbers[1:])


def test_searches_at_once_take_turns(gallery):
    numbers = set(gallery.draw("anna", *(f"boat {n}" for n in range(20))))
    failed = []

    def search():
        try:
            assert gallery.numbers("anna", "boat") == numbers
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(("most", "left"), [(6, ["bert", "carl", "dora"]), (4, ["dora"])])
def test_indexes_used_longest_ago_are_closed_beyond_a_number_of_vectors(gallery, monkeypatch, most, left):
    gallery.ledger.create_account("carl")
    gallery.ledger.create_account("dora")
    opened = {}
    for name, count in {"anna": 1, "bert": 1, "carl": 4, "dora": 1}.items():
        numbers = gallery.draw(name, *(f"boat {n}" for n in range(count)))
        embed(gallery, name, {number: axis(1) for number in numbers})
        gallery.numbers(name, "boat")
        gallery.searches.run(name, lambda search, name=name: opened.update({name: search.index}))
    monkeypatch.setattr(searches_module, "_IN_MEMORY", most)
    gallery.numbers("dora")
    assert _open(opened) == left


def test_accounts_without_an_open_index_do_not_count(gallery, monkeypatch):
    monkeypatch.setattr(searches_module, "_OPEN", 2)
    opened = {}
    for name in ("anna", "bert"):
        gallery.searches.run(name, lambda search, name=name: opened.update({name: search.index}))
    with pytest.raises(NotFound):
        gallery.searches.run("nobody", lambda search: search)
    gallery.numbers("anna", "boat")
    assert _open(opened) == ["anna", "bert"]


def _open(indexes):
    """Names of the indexes that are open."""
    found = []
    for name, index in indexes.items():
        with suppress(StorageError):
            index.changes  # noqa: B018
            found.append(name)
    return found


def test_preferences_are_exported_and_erased(gallery):
    ledger = gallery.ledger
    ledger.change_preference("anna", "taste", {"enabled": False})
    ledger.change_preference("anna", "taste", {"since": 3})
    assert ledger.get_preference("anna", "taste") == {"enabled": False, "since": 3}
    assert ledger.get_preference("bert", "taste") is None
    exported = [row for kind, row in ledger.export_account("anna") if kind == "preference"]
    assert [(row["name"], row["value"]["since"]) for row in exported] == [("taste", 3)]
    ledger.erase_account("anna")
    assert ledger.get_preference("anna", "taste") is None
    with pytest.raises(NotFound):
        ledger.change_preference("anna", "taste", {})
