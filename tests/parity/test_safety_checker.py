"""CompVis' safety checker against the one in diffusers, on random weights and images."""

import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, PickleRefused
from limner.safety.checker_config import CompVisConfig
from limner.safety.checkers import load_checker

SIDE = 42
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}


def images():
    """Sixteen images of several sizes: soft colours, and noise."""
    rng = np.random.default_rng(0)
    for number in range(16):
        coarse = rng.integers(0, 256, (2 + number % 3, 3, 3), dtype=np.uint8)
        size = (50 + 11 * number, 90 - 3 * number)
        yield np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def theirs(randomise):
    config = CLIPConfig(vision_config=VISION, projection_dim=48)
    checker = StableDiffusionSafetyChecker(config).eval()
    randomise(checker, 0)
    with torch.no_grad():
        concepts, special = similarities(checker)
        # Five concepts are each found in some images and not in others, twelve nowhere.
        checker.concept_embeds_weights.copy_(concepts.quantile(0.93, dim=0))
        checker.concept_embeds_weights[5:] = concepts.amax(dim=0)[5:] + 0.02
        checker.special_care_embeds_weights.copy_(special.quantile(torch.tensor(0.8), dim=0))
    return checker


@torch.no_grad()
def similarities(checker):
    embeddings = checker.visual_projection(checker.vision_model(pixels())[1])
    return (
        cosine_distance(embeddings, checker.concept_embeds),
        cosine_distance(embeddings, checker.special_care_embeds),
    )


def pixels():
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return processor([Image.fromarray(one) for one in images()], return_tensors="pt").pixel_values


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return tmp_path


def scores(folder):
    return load_checker("compvis", CompVisConfig(folder=str(folder))).check([*images()])


def test_the_same_images_are_at_fault(theirs, folder):
    _, at_fault = theirs(pixels(), np.zeros((16, 1)))
    assert 3 <= sum(at_fault) <= 13
    assert [one["nsfw"] > 0 for one in scores(folder)] == at_fault


def test_each_score(theirs, folder):
    found = scores(folder)
    concepts, special = similarities(theirs)
    special = special - theirs.special_care_embeds_weights
    assert {*(special > 0).any(dim=1).tolist()} == {True, False}
    for one, concept_row, special_row in zip(found, concepts, special, strict=True):
        adjustment, expected = 0.0, {}
        for number, value in enumerate(special_row.tolist()):
            expected[f"special_care_{number}"] = value + adjustment
            if round(value + adjustment, 3) > 0:
                adjustment = 0.01
        margins = concept_row - theirs.concept_embeds_weights + adjustment
        expected |= {f"concept_{number}": value for number, value in enumerate(margins.tolist())}
        expected |= {"nsfw": float(margins.max())}
        expected |= {"special_care": max(expected[f"special_care_{number}"] for number in range(3))}
        # Half of the last of three decimals.
        assert one == pytest.approx(expected, abs=0.00051)
        assert all(value == round(value, 3) for value in one.values())


def test_the_rounding_decides_as_theirs(theirs, folder):
    """A margin of 0.0004 is none, and one of 0.0006 is: also with the 0.01 of special care."""
    concepts, special = similarities(theirs)
    tensors = load_file(folder / "model.safetensors")
    high = torch.ones_like(tensors["concept_embeds_weights"])
    flags = []
    for margin in (0.0004, 0.0006):
        for care in (False, True):
            own = high.clone()
            own[0] = concepts[0, 0] - margin + 0.01 * care
            cares = torch.ones(3)
            cares[1] = special[0, 1] - margin if care else 1.0
            changed = {**tensors, "concept_embeds_weights": own, "special_care_embeds_weights": cares}
            save_file(changed, folder / "model.safetensors")
            again = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
            _, at_fault = again(pixels(), np.zeros((16, 1)))
            assert [one["nsfw"] > 0 for one in scores(folder)] == at_fault
            flags.append(at_fault[0])
    assert flags == [False, False, True, True]


def test_files_of_older_versions(folder):
    """The encoder's names began with `vision_model.vision_model.`, and positions were stored."""
    expected = scores(folder)
    tensors, older = load_file(folder / "model.safetensors"), {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("vision_model.").removeprefix("vision_model.")
        older[f"vision_model.vision_model.{bare}" if bare != name else name] = tensor
    older["vision_model.vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(older, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config_dict"], config["vision_config"] = config["vision_config"], {"hidden_size": 9}
    (folder / "config.json").write_text(json.dumps(config))
    assert scores(folder) == expected


def test_what_is_missing_is_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ModelNotFound, match=r"no folder .*nowhere with a safety checker"):
        load_checker("compvis", CompVisConfig(folder="nowhere"), empty)
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        load_checker("compvis", CompVisConfig(folder=str(empty)))
    with pytest.raises(InvalidRequest, match="compvis cannot run on the device 'nowhere'"):
        load_checker("compvis", CompVisConfig(folder=str(folder), device="nowhere"))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: one for name, one in tensors.items() if name != "concept_embeds"}, folder / "model.safetensors"
    )
    with pytest.raises(InvalidCheckpoint, match="concept_embeds"):
        scores(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PickleRefused):
        scores(folder)
