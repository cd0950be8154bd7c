"""`limner evaluate`, with a model that draws noise and judges that have learned nothing."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.picturebook.probe import Probe, ProbeConfig, save_probe
from limner.training.components import read_text_encoder, write_component


@pytest.fixture
def judges(tmp_path):
    torch.manual_seed(0)
    save_probe(Probe(ProbeConfig(widths=(8, 8, 8), blocks=1)), tmp_path / "judges")
    return tmp_path / "judges"


@pytest.fixture
def clip(tiny, judges):
    """Encoders that agree on nothing, beside the probe."""
    folder = judges / "clip"
    text = replace(read_text_encoder(tiny / "text_encoder").config, projection=True, projection_dim=8)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=128,
        patch_size=32,
        projection_dim=8,
        projection=True,
    )
    write_component(folder / "text_encoder", CLIPTextModel(text), text.to_dict(), torch.float16)
    write_component(folder / "image_encoder", CLIPVisionModel(vision), vision.to_dict(), torch.float16)
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    (folder / "feature_extractor").mkdir()
    scaling = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(scaling))
    return folder


def test_figures_of_a_model_that_draws_noise(limner, tiny, judges):
    arguments = ("--model", tiny, "--prompts", 64, "--steps", 1, "--judges", judges, "--out", "report.md")
    done = limner("evaluate", *arguments, "--sheet", "sheet.png")
    assert (done.code, done.out) == (0, "report.md\n"), done.err
    with open("report.json") as file:
        report = json.load(file)
    assert report["generated"]["all"]["counts"]["of"] == 64
    assert report["generated"]["held-out combinations"]["entirely right"] == {"right": 0, "of": 32}
    assert len(report["wrong"]) == 64
    assert report["psnr"]["of"] == 64
    assert report["command"].startswith("limner evaluate --model ")
    assert report["retrieval"] == {}
    with open("report.md") as file:
        text = file.read()
    assert "| entirely right | 0.0 % (0.0 to 5.7) | 0.0 % (0.0 to 10.7) | 0.0 % (0.0 to 10.7) |" in text
    assert "--steps 1 " in text
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 1000


def test_a_smaller_world_and_a_clip(limner, tiny, judges, clip, tmp_path):
    (tmp_path / "world.json").write_text(json.dumps({"kinds": ["cat", "dog"], "max_things": 2}))
    limner(
        "evaluate", "--model", tiny, "--world", "world.json", "--prompts", 64, "--steps", 1,
        "--judges", judges, "--out", "report.md",
    )  # fmt: skip
    with open("report.json") as file:
        report = json.load(file)
    assert "three things" not in report["generated"]
    found = report["retrieval"]["a picture's caption among 64"]
    assert (found["of"], found["right"] < 10) == (64, True)  # one is chance
    assert report["retrieval"]["a picture's caption against false ones"]["of"] == 64
    assert all(
        "cat" in w["prompt"] or "dog" in w["prompt"] or "kitten" in w["prompt"] or "pupp" in w["prompt"]
        for w in report["wrong"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "no/where/report.md"), "is not a folder"),
        (("--judges", "nowhere"), "probe.json is missing"),
        (("--world", "world.json"), "does not give the fields of a picturebook world"),
    ],
)
def test_refusals_before_anything_is_drawn(limner, tiny, judges, tmp_path, arguments, words):
    (tmp_path / "world.json").write_text('{"planets": ["mars"]}')
    done = limner("evaluate", "--model", tiny, "--judges", judges, "--out", "report.md", *arguments)
    assert (done.code, words in done.err) == (2, True), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "report.md").exists()
