"""The library in the ledger: marking, trash, albums, lineage, and which images are meant."""

from dataclasses import astuple, fields

import pytest

from limner.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from limner.service.events import LibraryChanged
from limner.service.jobs import Completion, NewJob, Submission
from limner.service.ledger.library import ImageFilter


@pytest.fixture
def draw(ledger, stored):
    """Submits a job for each of the parameters and finishes them: the images."""

    def drawn(principal, *params, model="m", **more):
        jobs = tuple(NewJob({"prompt": "boat", **one}, model, 1.0) for one in params or ({},))
        made = ledger.accept(principal, Submission(jobs, {"prompt": "boat"}, **more))
        for claim in ledger.claim("w", lease_seconds=10, limit=len(jobs)):
            image = stored(claim.job.id, claim.job.fence)
            assert ledger.finish(claim.job.id, claim.job.fence, Completion(image, 1.0))
        return [job.image for job in ledger.get_set(made.id).jobs]

    return drawn


def listed(ledger, account_id="anna", **which):
    return [one.id for one in ledger.list_images(account_id, which=ImageFilter(**which))]


def indexed(ledger, account_id="anna", **which):
    return [row.seq for row in ledger.image_index(account_id, ImageFilter(**which))]


def told(ledger, account_id="anna"):
    """What the events of a library say."""
    found = ledger.events(account_id, after=0)
    return [(one.change, dict(one.data)) for one in found if isinstance(one, LibraryChanged)]


def test_images_are_found_by_id_and_number(ledger, anna, bert, draw):
    first, second = draw(anna, {"seed": 7}, {"seed": 8, "prompt": "a red boat"})
    assert second.number > first.number
    found = ledger.get_image(str(second.number), account_id="anna")
    assert (found.id, found.seed, found.index, found.prompt) == (second.id, 8, 1, "a red boat")
    assert found == ledger.get_image(second.id)
    file = ledger.find_image(str(second.number), account_id="anna")
    assert file == ledger.find_image(second.id)
    assert [getattr(found, name.name) for name in fields(file)] == list(astuple(file))
    for name in (second.id, str(second.number), "0", "img_x"):
        with pytest.raises(NotFound):
            ledger.get_image(name, account_id="bert")
        with pytest.raises(NotFound):
            ledger.find_image(name, account_id="bert")
    assert [one.id for one in ledger.list_images("anna", before=str(second.number))] == [first.id]


def test_the_index_has_what_the_list_has_newest_first(ledger, anna, bert, draw):
    drawn = draw(anna, {}, {}) + draw(anna)
    draw(bert)
    rows = ledger.image_index("anna")
    assert [row.seq for row in rows] == [one.number for one in drawn[::-1]]
    assert [(row.width, row.height, row.kept) for row in rows] == [(64, 32, False)] * 3
    assert [row.created_at for row in rows] == [one.created_at for one in drawn[::-1]]


def test_images_are_marked_many_at_once_and_those_of_others_are_unknown(ledger, anna, bert, draw):
    mine, (other,) = draw(anna, {}, {}, {}), draw(bert)
    names = [mine[0].id, str(mine[1].number), mine[1].id, other.id, str(other.number), "img_gone"]
    done = ledger.mark_images(names, account_id="anna", kept=True)
    assert done.changed == 2
    assert done.unknown == (other.id, str(other.number), "img_gone")
    assert listed(ledger, kept=True) == [mine[1].id, mine[0].id]
    assert listed(ledger, kept=False) == [mine[2].id]
    assert not ledger.get_image(other.id).kept
    assert ledger.mark_images(names, account_id="anna", kept=True).changed == 0
    assert told(ledger) == [("kept", {"kept": True, "numbers": [mine[0].number, mine[1].number]})]
    assert told(ledger, "bert") == []


def test_deleted_images_are_hidden_and_come_back_where_they_were(ledger, anna, draw):
    drawn = draw(anna, *[{}] * 5)
    ids = [one.id for one in drawn[::-1]]
    gone = [drawn[1].id, drawn[3].id]
    assert ledger.mark_images(gone, account_id="anna", deleted=True).changed == 2
    assert listed(ledger) == [one for one in ids if one not in gone]
    assert indexed(ledger) == [drawn[4].number, drawn[2].number, drawn[0].number]
    assert listed(ledger, deleted=True) == gone[::-1]
    assert ledger.get_image(gone[0]).deleted_at is not None
    assert ledger.mark_images(gone, account_id="anna", deleted=False).changed == 2
    assert listed(ledger) == ids
    assert ledger.get_image(gone[0]).deleted_at is None
    numbers = [drawn[1].number, drawn[3].number]
    assert told(ledger) == [("deleted", {"numbers": numbers}), ("restored", {"numbers": numbers})]


def test_ten_thousand_names_are_marked_in_one_call(ledger, anna, draw):
    (image,) = draw(anna)
    names = [str(image.number), *(str(10**9 + number) for number in range(9_999))]
    done = ledger.mark_images(names, account_id="anna", deleted=True)
    assert (done.changed, len(done.unknown)) == (1, 9_999)


def test_the_trash_is_emptied_after_a_while_and_no_sooner(ledger, anna, draw):
    kept, gone = draw(anna, {}, {})
    ledger.mark_images([gone.id], account_id="anna", deleted=True)
    assert ledger.empty_trash(deleted_for=60) == []
    assert ledger.empty_trash(deleted_for=-60) == [gone.key]
    assert listed(ledger) == [kept.id]
    assert told(ledger)[-1] == ("deleted", {"numbers": [gone.number]})
    with pytest.raises(NotFound):
        ledger.get_image(gone.id)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"seed": 2**40}, [0]),
        ({"seed": 8}, [1]),
        ({"lora": "ink"}, [1, 2]),
        ({"lora": "in"}, []),
        ({"model": "other"}, [3]),
        ({"model": "m", "lora": "wash"}, [2]),
    ],
)
def test_images_are_found_by_what_made_them(ledger, anna, draw, which, expected):
    ink, wash = {"name": "ink", "weight": 0.5}, {"name": "wash"}
    drawn = draw(anna, {"seed": 2**40}, {"seed": 8, "loras": [ink]}, {"loras": [wash, ink], "seed": None})
    drawn += draw(anna, {"loras": []}, model="other")
    assert indexed(ledger, **which) == [drawn[one].number for one in expected[::-1]]


def test_images_are_found_by_their_time(ledger, anna, draw):
    (first,) = draw(anna)
    (second,) = draw(anna)
    assert listed(ledger, until=second.created_at) == [first.id]
    assert listed(ledger, since=second.created_at) == [second.id]


# -- lineage --


def test_a_lineage_reaches_parents_and_children_of_several_sets(ledger, anna, bert, draw):
    (root,) = draw(anna)
    variations = draw(anna, {}, {}, parents=(str(root.number),), relation="variation")
    (refined,) = draw(anna, parents=(variations[0].id, variations[1].id), relation="refined")
    (last,) = draw(anna, parents=(refined.id,), relation="edited")
    draw(anna)
    found = ledger.lineage(str(refined.number), account_id="anna")
    assert found.image.parents == (variations[0].id, variations[1].id)
    assert [one.id for one in found.parents] == [variations[1].id, variations[0].id, root.id]
    assert [(one.id, one.relation) for one in found.children] == [(last.id, "edited")]
    assert found.complete
    assert [one.id for one in ledger.lineage(root.id).children] == [
        *(v.id for v in variations),
        refined.id,
        last.id,
    ]
    with pytest.raises(NotFound):
        ledger.lineage(root.id, account_id="bert")


def test_a_lineage_is_bounded_and_leaves_out_what_is_deleted(ledger, anna, draw, monkeypatch):
    monkeypatch.setattr("limner.service.ledger.library.MAX_RELATIVES", 3)
    (root,) = draw(anna)
    children = draw(anna, *[{}] * 4, parents=(root.id,), relation="variation")
    found = ledger.lineage(root.id)
    assert [one.id for one in found.children] == [one.id for one in children[:3]]
    assert not found.complete
    ledger.mark_images([children[1].id], account_id="anna", deleted=True)
    assert [one.id for one in ledger.lineage(root.id).children] == [children[0].id, children[2].id]
    ledger.delete_image(root.id)
    assert ledger.lineage(children[0].id).parents == ()
    assert ledger.get_image(children[0].id).parents == (root.id,)


def test_a_set_keeps_its_parents_and_names_only_own_images(ledger, anna, bert, draw, submit):
    (mine,), (other,) = draw(anna), draw(bert)
    made = submit(anna, parents=(str(mine.number),), relation="redrawn")
    assert (made.parents, made.relation) == ((mine.id,), "redrawn")
    assert ledger.get_set(made.id) == made
    with pytest.raises(InvalidRequest, match="not an image of this account"):
        submit(anna, parents=(other.id,), relation="redrawn")
    for more in ({"parents": (mine.id,)}, {"relation": "edited"}):
        with pytest.raises(InvalidRequest, match="go together"):
            submit(anna, **more)
    assert len(ledger.list_sets("anna")) == 2


# -- albums --


def test_an_album_has_images_a_count_and_the_newest_as_its_cover(ledger, anna, draw):
    drawn = draw(anna, {}, {}, {})
    album = ledger.create_album("anna", "boats")
    assert (album.count, album.cover) == (0, None)
    names = [drawn[0].id, str(drawn[1].number), "img_x"]
    changed, unknown = ledger.change_album(album.id, account_id="anna", add=names)
    assert (changed.count, changed.cover, unknown) == (2, drawn[1].number, ("img_x",))
    again, _ = ledger.change_album(album.id, account_id="anna", add=names)
    assert again.count == 2
    assert listed(ledger, album=album.id) == [drawn[1].id, drawn[0].id]
    assert indexed(ledger, album=album.id, kept=True) == []
    assert ledger.get_image(drawn[0].id).albums == (album.id,)
    ledger.mark_images([drawn[1].id], account_id="anna", deleted=True)
    (found,) = ledger.list_albums("anna")
    assert (found.count, found.cover) == (1, drawn[0].number)
    ledger.mark_images([drawn[1].id], account_id="anna", deleted=False)
    changed, _ = ledger.change_album(album.id, account_id="anna", remove=[drawn[0].id])
    assert (changed.count, changed.cover) == (1, drawn[1].number)
    ledger.delete_image(drawn[1].id)
    assert ledger.get_album(album.id).count == 0
    ledger.delete_album(album.id, account_id="anna")
    assert ledger.list_albums("anna") == []
    albums = [data for change, data in told(ledger) if change == "albums"]
    assert {data["album"] for data in albums} == {album.id}
    assert [data["numbers"] for data in albums][1] == [drawn[0].number, drawn[1].number]


def test_albums_have_names_of_their_own_and_one_owner(ledger, anna, bert, draw, monkeypatch):
    (other,) = draw(bert)
    boats = ledger.create_album("anna", "boats")
    seas = ledger.create_album("anna", "seas")
    ledger.create_album("bert", "boats")
    with pytest.raises(Conflict, match="'boats' already"):
        ledger.create_album("anna", "boats")
    with pytest.raises(Conflict):
        ledger.rename_album(seas.id, "boats", account_id="anna")
    assert ledger.rename_album(seas.id, "ships", account_id="anna").name == "ships"
    _, unknown = ledger.change_album(boats.id, account_id="anna", add=[other.id])
    assert unknown == (other.id,)
    for act in (
        lambda: ledger.get_album(boats.id, account_id="bert"),
        lambda: ledger.rename_album(boats.id, "x", account_id="bert"),
        lambda: ledger.change_album(boats.id, account_id="bert", add=[other.id]),
        lambda: ledger.delete_album(boats.id, account_id="bert"),
    ):
        with pytest.raises(NotFound):
            act()
    monkeypatch.setattr("limner.service.ledger.albums.MAX_ALBUMS", 2)
    with pytest.raises(QuotaExceeded, match="2 albums"):
        ledger.create_album("anna", "more")


def test_a_library_is_exported_and_erased_with_its_account(ledger, anna, bert, draw):
    (mine,), (other,) = draw(anna), draw(bert)
    (child,) = draw(anna, parents=(mine.id,), relation="edited")
    album = ledger.create_album("anna", "boats")
    ledger.change_album(album.id, account_id="anna", add=[mine.id])
    kept = ledger.create_album("bert", "boats")
    ledger.change_album(kept.id, account_id="bert", add=[other.id])
    ledger.mark_images([mine.id], account_id="anna", kept=True, deleted=True)
    rows = list(ledger.export_account("anna"))
    of = {kind: [row for name, row in rows if name == kind] for kind, _ in rows}
    assert [row["name"] for row in of["album"]] == ["boats"]
    assert of["album_image"] == [{"album_id": album.id, "number": mine.number}]
    assert [(row["set_id"], row["image_id"]) for row in of["parent"]] == [(child.set_id, mine.id)]
    assert {row["id"]: row["kept"] for row in of["image"]} == {mine.id: True, child.id: False}
    freed = ledger.erase_account("anna")
    assert set(freed.keys) == {mine.key, child.key}
    assert [one for one in ledger.events(None, after=0) if one.account_id == "anna"] == []
    assert ledger.get_album(kept.id).count == 1
    assert list(ledger.export_account("bert"))
