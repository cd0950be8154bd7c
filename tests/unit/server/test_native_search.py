"""Search, prompt memory and taste by the native API, with the networks that ship with Limner."""

import random

import pytest
from PIL import Image

from limner.engine.fake import FakeEngine
from limner.errors import NotFound
from limner.picturebook.world import World, render
from limner.service.judges import Judges
from tests.serving import Painter, png, serving, submit
from tests.waiting import DEADLINE, until

JUDGES = Judges()
LOOKS = [("boat", "red")] * 3 + [("boat", "blue")] * 2
LOOKS += [(kind, "red") for kind in ("house", "cat", "car", "castle", "tree")]


class Seeing(Painter):
    """Draws scenes by their prompts, and makes vectors with the networks that ship."""

    def __init__(self, scenes):
        super().__init__()
        self.scenes = scenes

    def device(self, settings, name, subscribers, meter):
        made = super().device(settings, name, subscribers, meter)
        made.engine = FakeEngine(subscribers=subscribers, draw=self.draw)
        made.calls = {**made.calls, **JUDGES.calls}
        return made

    def draw(self, request):
        return self.scenes.get(request.prompt) or Image.new("RGB", (request.width, request.height))


@pytest.fixture(scope="module")
def scenes():
    """Images of the world by prompts that say nothing of them."""
    rng = random.Random(1)
    worlds = [World(kinds=(kind,), colours=(colour,), max_things=1) for kind, colour in LOOKS]
    return {f"untitled {number}": render(world.sample(rng)) for number, world in enumerate(worlds)}


@pytest.fixture(scope="module")
def served(tmp_path_factory, scenes):
    with serving(tmp_path_factory.mktemp("data"), painter=Seeing(scenes)) as running:
        running.state.embedder.patience = 60.0  # as of a machine that does nothing else
        yield running


@pytest.fixture(scope="module")
def drawn(served, scenes):
    """Anna's key, and what her images show by their numbers, once all are indexed."""
    key = served.key("anna")
    shows = {}
    for prompt, (kind, colour) in zip(scenes, LOOKS, strict=True):
        made = submit(served.client, headers=key, prompt=prompt, width=128, height=128, seed=7)
        shows[made["jobs"][0]["image"]["number"]] = f"{colour} {kind}"
    first = str(next(iter(shows)))
    all_found = lambda: search(served, key, like=first)["total"] == len(shows)  # noqa: E731
    until(all_found, "the index of all images", 5 * DEADLINE)  # torch and the networks are loaded first
    return key, shows


def search(served, key, **params):
    answer = served.client.get("/api/v1/images/search", params=params, headers=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_red_boats_are_found_by_what_they_show(served, drawn):
    key, shows = drawn
    found = search(served, key, q="red boat")
    assert found["meaning"]
    assert [shows[item["number"]] for item in found["items"][:3]] == ["red boat"] * 3
    assert not any(item["words"] for item in found["items"])
    assert found["total"] == len(found["items"]) < len(shows)
    assert found["terms"] == [{"kind": "word", "value": "red"}, {"kind": "word", "value": "boat"}]
    assert found["note"] is None
    first = found["items"][0]
    assert first["ratio"] == 1.0
    assert served.client.get(f"/api/v1/images/{first['number']}", headers=key).json()["id"] == first["id"]


def test_likeness_ranks_what_shows_the_same_first(served, drawn):
    key, shows = drawn
    boat = next(number for number, what in shows.items() if what == "blue boat")
    found = search(served, key, like=str(boat), q="size:128x128")
    assert found["items"][0]["number"] == boat
    assert [shows[item["number"]] for item in found["items"][:2]] == ["blue boat"] * 2
    assert all("boat" in shows[item["number"]] for item in found["items"][:5])
    assert found["total"] == len(shows)

    file = served.client.get(f"/api/v1/images/{boat}/file", headers=key).content
    kind = {"content-type": "image/png", **key}
    reference = served.client.post("/api/v1/uploads", content=file, headers=kind).json()["reference"]
    again = search(served, key, like=reference, limit=1)
    assert again["items"][0]["number"] == boat
    assert again["total"] == len(shows)


def test_words_chips_and_errors(served, drawn):
    key, shows = drawn
    found = search(served, key, q='"untitled 4" seed:7')
    assert [item["words"] for item in found["items"]][:1] == [True]
    assert search(served, key, q="untitled seed:8")["total"] == 0
    everything = search(served, key, order="newest", limit=3)
    assert [item["number"] for item in everything["items"]] == sorted(shows, reverse=True)[:3]
    assert everything["total"] == len(shows)
    answer = served.client.get("/api/v1/images/search", params={"q": "colour:red"}, headers=key)
    assert answer.status_code == 422
    assert "model, lora, seed" in answer.json()["detail"]
    for like in ("999999", "img_none", f"sha256:{'0' * 64}", "../x"):
        answer = served.client.get("/api/v1/images/search", params={"like": like}, headers=key)
        assert answer.status_code == 404, like


def test_nobody_finds_what_is_not_his(served, drawn):
    _, shows = drawn
    other = served.key("bert")
    assert search(served, other, q="untitled")["total"] == 0
    assert search(served, other)["total"] == 0
    number = next(iter(shows))
    answer = served.client.get("/api/v1/images/search", params={"like": number}, headers=other)
    assert answer.status_code == 404
    rated = served.client.get("/api/v1/images/taste", params={"numbers": number}, headers=other).json()
    assert rated == {"items": [], "picks": 0}
    assert served.client.get("/api/v1/prompts/suggestions", headers=other).json() == []


def test_taste_and_prompt_memory(served, drawn):
    key, shows = drawn
    boats = [number for number, what in shows.items() if what == "red boat"]
    marks = {"ids": boats[:2], "kept": True}
    assert served.client.patch("/api/v1/images", json=marks, headers=key).status_code == 200

    suggested = served.client.get("/api/v1/prompts/suggestions", params={"q": "unti"}, headers=key).json()
    assert {(one["image"], one["kept"], one["drawn"]) for one in suggested} == {(n, 1, 1) for n in boats[:2]}
    similar = served.client.get("/api/v1/prompts/similar", params={"q": "untitled 3"}, headers=key).json()
    assert similar[0]["prompt"] == "untitled 3"
    assert similar[0]["score"] == pytest.approx(1.0, abs=1e-2)

    params = {"numbers": ",".join(map(str, shows))}
    rated = served.client.get("/api/v1/images/taste", params=params, headers=key).json()
    assert rated["picks"] == 2
    assert {one["number"] for one in rated["items"][:3]} == set(boats)
    assert {item["number"] for item in search(served, key, order="taste", limit=3)["items"]} == set(boats)

    assert served.client.get("/api/v1/taste", headers=key).json() == {"enabled": True}
    assert served.client.put("/api/v1/taste", json={"enabled": False}, headers=key).status_code == 200
    assert served.client.get("/api/v1/images/taste", params=params, headers=key).status_code == 409
    assert served.client.put("/api/v1/taste", json={"enabled": True}, headers=key).status_code == 200
    assert served.client.delete("/api/v1/taste", headers=key).status_code == 204
    assert served.client.get("/api/v1/images/taste", params=params, headers=key).json()["picks"] == 0

    assert served.client.delete("/api/v1/prompts/memory", headers=key).status_code == 204
    assert served.client.get("/api/v1/prompts/suggestions", headers=key).json() == []
    assert search(served, key, q="untitled")["total"] == len(shows)


def test_an_erased_account_takes_its_index_along(served):
    key = served.key("carl")
    submit(served.client, headers=key, prompt="a secret zeppelin")
    assert search(served, key, q="zeppelin")["total"] == 1
    folder = served.state.settings.data / "search" / "carl"
    assert folder.is_dir()
    assert served.client.delete("/api/v1/accounts/carl", headers=key).status_code == 204
    with pytest.raises(NotFound):
        served.state.searches.run("carl", lambda search: search.catch_up())
    assert not folder.exists()


def test_without_a_worker_words_are_found(tmp_path):
    with serving(tmp_path, working=False) as running:
        found = search(running, {}, q="boat")
        assert (found["total"], found["meaning"]) == (0, False)
        assert "words alone" in found["note"]
        upload = running.client.post(
            "/api/v1/uploads", content=png(), headers={"content-type": "image/png"}
        ).json()
        like = {"like": upload["reference"]}
        assert running.client.get("/api/v1/images/search", params=like).status_code == 503
        assert running.client.get("/api/v1/prompts/suggestions", params={"q": "boat"}).json() == []
        assert running.client.get("/api/v1/prompts/similar", params={"q": "boat"}).status_code == 503
