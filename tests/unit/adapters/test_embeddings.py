"""Files of textual inversion."""

import base64
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.adapters.embeddings import read_embedding
from limner.errors import InvalidCheckpoint, PickleRefused, UnsupportedModel

SD1, XL = {"text_encoder": 768}, {"text_encoder": 768, "text_encoder_2": 1280}

ONE = {
    "diffusers": ({"<cat-toy>": (768,)}, 1),
    "diffusers, several vectors": ({"<cat-toy>": (4, 768)}, 4),
    "kohya": ({"emb_params": (2, 768)}, 2),
    "XL's name in a file of SD 1.x": ({"clip_l": (2, 768)}, 2),
    "OneTrainer": ({"emp_params": (2, 768), "emp_params_out": (2, 768)}, 2),
    "OneTrainer, XL's name": ({"clip_l": (2, 768), "clip_l_out": (2, 768)}, 2),
    "with other tensors": ({"emb_params": (2, 768), "mean": (768,), "step": ()}, 2),
    "diffusers, with counters": ({"<cat-toy>": (2, 768), "step": (), "seen": (1,)}, 2),
}


@pytest.mark.parametrize("form", ONE)
def test_one_tensor(random_file, form):
    shapes, count = ONE[form]
    embedding = read_embedding(random_file(shapes, name="old lamp.safetensors"), SD1)
    assert embedding.name == "old lamp"
    assert {part: tuple(v.shape) for part, v in embedding.vectors.items()} == {"text_encoder": (count, 768)}


def test_both_vectors_of_xl(random_file):
    path = random_file({"clip_g": (3, 1280), "clip_l": (3, 768)})
    vectors = read_embedding(path, XL).vectors
    assert {part: tuple(v.shape) for part, v in vectors.items()} == {
        "text_encoder": (3, 768),
        "text_encoder_2": (3, 1280),
    }


def test_xl_with_the_output_embeddings_of_onetrainer(random_file):
    shapes = {"clip_g": (3, 1280), "clip_l": (3, 768), "clip_g_out": (3, 1280), "clip_l_out": (3, 768)}
    assert read_embedding(random_file(shapes), XL).vectors["text_encoder_2"].shape == (3, 1280)


def test_the_refiner_takes_a_single_tensor(random_file):
    vectors = read_embedding(random_file({"emb_params": (1, 1280)}), {"text_encoder_2": 1280}).vectors
    assert vectors.keys() == {"text_encoder_2"}


@pytest.mark.parametrize(
    ("shapes", "widths", "family"),
    [
        ({"emb_params": (1, 1024)}, SD1, "Stable Diffusion 2.x"),
        ({"emb_params": (1, 768)}, {"text_encoder": 1024}, "Stable Diffusion 1.x"),
        ({"emb_params": (1, 768)}, XL, "Stable Diffusion 1.x"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, SD1, "Stable Diffusion XL"),
        ({"emb_params": (1, 4096)}, SD1, "another family"),
    ],
)
def test_another_family_is_named(random_file, shapes, widths, family):
    with pytest.raises(UnsupportedModel, match=family):
        read_embedding(random_file(shapes), widths)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"a": (768,), "b": (768,)},
        {"a": ()},
        {"a": (0, 768)},
        {"a": (1, 1, 768)},
        {"a": torch.ones(768, dtype=torch.int32)},
        {"clip_l": (2, 768), "clip_g": (3, 1280)},
        {"string_to_param.a": (2, 768), "string_to_param.b": (2, 768)},
    ],
)
def test_what_is_no_word_is_refused(random_file, values):
    with pytest.raises(InvalidCheckpoint):
        read_embedding(random_file(values), XL if "clip_g" in values else SD1)


PICKLED = {
    "automatic1111.pt": {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.arange(1536.0).reshape(2, 768).requires_grad_()},
        "name": "other",
        "step": 499,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    },
    "parameters.pt": {
        "string_to_param": torch.nn.ParameterDict({"*": torch.arange(1536.0).reshape(2, 768)}),
    },
    "authors.pt": {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.arange(1536.0).reshape(2, 768)}),
    },
    "learned_embeds.bin": {"<cat-toy>": torch.arange(768.0)},
    "xl.pt": {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)},
}


@pytest.mark.parametrize("file", PICKLED)
def test_pickles_are_read_without_being_run(tmp_path, file):
    torch.save(PICKLED[file], tmp_path / file)
    embedding = read_embedding(tmp_path / file, XL if file == "xl.pt" else SD1)
    assert embedding.name == file.partition(".")[0]
    vectors = embedding.vectors["text_encoder"]
    assert vectors.shape == (1 if "bin" in file else 2, 768)
    if file != "xl.pt":
        assert torch.equal(vectors.flatten(), torch.arange(float(vectors.numel())))


class Trap:
    def __reduce__(self):
        return print, ("sprung",)


def test_pickles_that_would_run_something_are_refused(tmp_path, capfd):
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}, "name": Trap()}, tmp_path / "lamp.pt")
    with pytest.raises(PickleRefused, match="print"):
        read_embedding(tmp_path / "lamp.pt", SD1)
    assert "sprung" not in capfd.readouterr().out


def test_a_model_in_a_pickle_is_no_word(tmp_path):
    torch.save({"a": torch.zeros(1, 768), "b": torch.zeros(1, 768)}, tmp_path / "model.ckpt")
    with pytest.raises(InvalidCheckpoint, match="holds 2 tensors"):
        read_embedding(tmp_path / "model.ckpt", SD1)


def write_png(path, text: str | None) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def test_a_picture_may_hold_vectors(tmp_path):
    vectors = torch.randn(2, 768)
    values = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}},
        "name": "other",
        "step": 100,
    }
    write_png(tmp_path / "lamp.png", base64.b64encode(json.dumps(values).encode()).decode())
    embedding = read_embedding(tmp_path / "lamp.png", SD1)
    assert embedding.name == "lamp"
    assert torch.equal(embedding.vectors["text_encoder"], vectors)


@pytest.mark.parametrize(
    "values",
    [
        None,
        "[",
        "[]",
        "{}",
        '{"string_to_param": 3}',
        '{"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}',
    ],
)
def test_a_picture_without_them_is_refused(tmp_path, values):
    write_png(tmp_path / "lamp.png", values and base64.b64encode(values.encode()).decode())
    with pytest.raises(InvalidCheckpoint, match=r"lamp\.png"):
        read_embedding(tmp_path / "lamp.png", SD1)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InvalidCheckpoint, match=r"text\.png"):
        read_embedding(tmp_path / "text.png", SD1)
