"""Completions, and the lists of models that cards are made of."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.serving import serving

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(path, width=192, **metadata):
    """A LoRA for texts of `width` channels; picturebook's have 192."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{KEY}.lora_down.weight": np.ones((2, width), np.float32)}
    save_file({**tensors, f"{KEY}.lora_up.weight": np.zeros((48, 2), np.float32)}, path, metadata)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stocked")
    loras = folder / "loras"
    lora(loras / "ink/sketch.safetensors", **{"modelspec.trigger_phrase": "inkdrop, fine lines"})
    lora(loras / "pencil/sketch.safetensors")
    lora(loras / "inkblot.safetensors")
    lora(loras / "thinking.safetensors")
    lora(loras / "ink_xl.safetensors", width=2048)
    lora(loras / "ink_other.safetensors", width=100)
    Image.new("RGB", (900, 300), "red").save(loras / "inkblot.preview.png")
    (loras / "thinking.png").write_bytes(b"no image")
    (folder / "words/animals").mkdir(parents=True)
    (folder / "words/animals/inksects.txt").write_text("ant\nbee\n")
    (folder / "styles.csv").write_text('name,prompt,negative_prompt\nInk,"{prompt}, ink drawing",\n')
    settings = {"wildcards_dirs": (folder / "words",), "styles_files": (folder / "styles.csv",)}
    with serving(folder / "data", working=False, lora_dirs=(loras,), **settings) as served:
        yield served


def completions(served, q="", **params):
    answer = served.client.get("/api/v1/completions", params={"q": q, **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_begins_with_the_text_comes_before_what_holds_it(stocked):
    found = completions(stocked, "ink", kind="lora")
    assert [one["name"] for one in found] == ["inkblot", "ink_other", "ink/sketch", "thinking"]
    assert completions(stocked, "INKB")[0]["insert"] == "<lora:inkblot:1>"
    assert "·" in found[0]["detail"]


def test_trigger_words_come_with_their_lora_and_find_it(stocked):
    [found] = completions(stocked, "inkdr")
    assert found["name"] == "ink/sketch"
    assert found["trigger_words"] == ["inkdrop", "fine lines"]


def test_a_name_that_two_files_have_is_inserted_whole(stocked):
    found = completions(stocked, "sketch", kind="lora")
    assert {one["insert"] for one in found} == {"<lora:ink/sketch:1>", "<lora:pencil/sketch:1>"}


def test_wildcards_styles_and_words_are_completed(stocked):
    kinds = {one["kind"]: one for one in completions(stocked, "ink")}
    assert kinds["wildcard"]["insert"] == "__animals/inksects__"
    assert (kinds["style"]["insert"], kinds["style"]["detail"]) == ("Ink", "{prompt}, ink drawing")
    assert [one["name"] for one in completions(stocked, "mushr", kind="word")] == ["mushroom", "mushrooms"]
    assert completions(stocked, "", kind="word") == []


def test_without_a_text_there_is_a_beginning_and_the_limit_holds(stocked):
    assert len(completions(stocked, limit=2)) == 2
    assert stocked.client.get("/api/v1/completions", params={"limit": 1000}).status_code == 422
    assert stocked.client.get("/api/v1/completions", params={"model": "none"}).status_code == 404
    assert stocked.client.get("/api/v1/completions", params={"kind": "none"}).status_code == 422


def test_a_completion_does_not_search_the_folders(stocked, monkeypatch):
    completions(stocked, "ink")
    monkeypatch.setattr("limner.catalogue.catalogue.walk_folder", lambda folder: pytest.fail("searched"))
    monkeypatch.setattr("limner.prompts.wildcards.walk_folder", lambda folder: pytest.fail("searched"))
    assert completions(stocked, "ink")
    assert stocked.client.get("/api/v1/models").status_code == 200


def test_new_files_are_completed_once_the_catalogue_knows_them(stocked):
    assert completions(stocked, "brandnew") == []
    folder = stocked.state.settings.lora_dirs[0]
    lora(folder / "brandnew.safetensors")
    stocked.state.catalogue.refresh()
    assert [one["name"] for one in completions(stocked, "brandnew")] == ["brandnew"]
    listed = stocked.client.get("/api/v1/models", params={"kind": "lora"}).json()
    assert "brandnew" in [one["name"] for one in listed]


def test_the_list_of_models_says_what_fits_a_base(stocked):
    params = {"kind": ["lora", "checkpoint"], "base": "picturebook"}
    listed = stocked.client.get("/api/v1/models", params=params).json()
    fits = {one["name"]: one["fits"] for one in listed}
    assert (fits["inkblot"], fits["ink_xl"], fits["ink_other"], fits["picturebook"]) == (
        True,
        False,
        False,
        None,
    )
    assert stocked.client.get("/api/v1/models", params={"base": "none"}).status_code == 404


def test_the_list_of_models_is_sent_again_only_where_it_has_changed(stocked):
    first = stocked.client.get("/api/v1/models")
    again = stocked.client.get("/api/v1/models", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["content-encoding"] == "gzip"


def test_images_beside_files_are_thumbnails(stocked):
    listed = stocked.client.get("/api/v1/models", params={"kind": "lora"}).json()
    paths = {one["name"]: one["thumbnail"] for one in listed}
    answer = stocked.client.get(paths["inkblot"])
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert (opened.format, opened.size) == ("WEBP", (384, 128))
    assert stocked.client.get(paths["thinking"]).json()["code"] == "not_found"
    assert paths["ink_xl"] is None
    assert stocked.client.get("/api/v1/models/lora:ink_xl/thumbnail").status_code == 404
