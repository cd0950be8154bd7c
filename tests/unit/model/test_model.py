"""Loading a model, filling in a request, drawing."""

import json

import pytest
import torch
from PIL import Image, ImageFilter

from limner.engine.loaded import load
from limner.errors import InvalidCheckpoint, InvalidRequest, NumericalError
from limner.generation.calls import EncodeText
from limner.request import GenerationRequest


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def draw(model, **fields):
    return model.generate("a red house", **{"steps": 2, "width": 64, "height": 64, "seed": 5, **fields})


def test_resolving_fills_in_every_default(model):
    request = model.resolve(GenerationRequest(prompt="x", width=64, height=64)).request
    assert request.sampler == "ddim"  # what the checkpoint's scheduler names
    assert (request.timestep_spacing, request.sigma_schedule) == ("leading", "uniform")
    assert (request.steps, request.guidance_scale) == (30, 7.5)
    assert request.seed is not None
    assert model.resolve(request).request == request


def test_cfg_pp_has_a_scale_of_its_own(model):
    request = model.resolve(
        GenerationRequest(prompt="x", width=64, height=64, sampler="euler_cfg_pp")
    ).request
    assert request.guidance_scale == 0.6
    assert model.resolve(request).request == request
    with pytest.raises(InvalidRequest, match="euler has no option 'eta'"):
        model.resolve(GenerationRequest(prompt="x", width=64, height=64, sampler="euler", eta=0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aesthetic_score": 7.0, "crop": (8, 8)}, "not conditioned on aesthetic_score and crop"),
        ({"original_size": (64, 64)}, "not conditioned on original_size"),
        ({"image_guidance_scale": 2.0}, "not conditioned on image_guidance_scale"),
        ({"inpaint_area": "masked"}, "there is no mask"),
        ({"mask": "mask.png"}, "there is a mask, but no image"),
        ({"strength": 0.5}, "no image to begin with"),
    ],
)
def test_what_a_plain_model_cannot_heed_is_refused(model, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        model.resolve(GenerationRequest(prompt="x", width=64, height=64, **fields))


def test_align_your_steps_needs_a_family_that_it_is_known_of(model):
    asked = GenerationRequest(prompt="x", width=64, height=64, sigma_schedule="align_your_steps")
    with pytest.raises(InvalidRequest, match=f"this one is {model.family}"):
        model.resolve(asked)


def test_the_models_own_defaults_and_words_come_from_its_card(checkpoint_folder):
    card = {"defaults": {"steps": 3, "guidance_scale": 2.0}, "words": ["a", "red", "house"]}
    (checkpoint_folder / "limner.json").write_text(json.dumps(card))
    model = load(checkpoint_folder)
    result = model.generate("A red dragon", width=64, height=64)
    assert (result.request.steps, result.request.guidance_scale) == (3, 2.0)
    assert any(warning.endswith("was not trained on these words: dragon") for warning in result.warnings)


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a красный \N{HOUSE BUILDING}", "красный, \N{HOUSE BUILDING}"),
        ("2 red houses, 10", "2, houses, 10"),
        ("a (red:1.3) [house:4], (red: 0.5)", None),
    ],
)
def test_words_of_any_script_numbers_and_pictograms_are_named(checkpoint_folder, prompt, unknown):
    (checkpoint_folder / "limner.json").write_text(
        json.dumps({"defaults": {}, "words": ["a", "red", "house"]})
    )
    result = load(checkpoint_folder).generate(prompt, steps=1, width=64, height=64)
    told = [
        warning.partition("was not trained on these words: ")[2]
        for warning in result.warnings
        if "trained" in warning
    ]
    assert told == ([] if unknown is None else [unknown])


def test_a_picture_that_is_too_large_asks_for_a_size(model, tmp_path):
    Image.new("1", (5000, 8)).save(tmp_path / "wide.png")
    asked = GenerationRequest(prompt="x", image=str(tmp_path / "wide.png"))
    with pytest.raises(InvalidRequest, match="the image is 5000x8; a side has at most 4096 pixels") as caught:
        model.resolve(asked)
    assert "`width` and `height`" in caught.value.hint
    assert model.resolve(asked.model_copy(update={"width": 64})).request.height == 64


def test_seeds_drawn_by_lot_have_32_bits(model, monkeypatch):
    monkeypatch.setattr("secrets.randbelow", lambda bound: bound - 1)
    request = model.resolve(
        GenerationRequest(prompt="x", num_images=1000, variation_strength=0.5, width=64, height=64)
    ).request
    assert max(request.seed, request.variation_seed) + 999 < 2**32


@pytest.mark.parametrize(
    "card",
    [
        "[]",
        "{",
        '{"defaults": {"steps": 0}}',
        '{"defaults": {"colour": 1}}',
        '{"defaults": {}, "preview": {"weights": [[0, 0]]}}',
        '{"defaults": {}, "preview": {"weights": [[0, 0, 0]]}}',
    ],
)
def test_a_broken_card_is_an_error(checkpoint_folder, card):
    (checkpoint_folder / "limner.json").write_text(card)
    with pytest.raises(InvalidCheckpoint, match=r"limner\.json"):
        load(checkpoint_folder).resolve(GenerationRequest(prompt="x", width=64, height=64))


def test_each_image_is_a_generation_of_its_own(model):
    three = draw(model, num_images=3, exact=True)
    assert three.seeds == (5, 6, 7)
    second = draw(model, seed=6, exact=True)
    assert second.images[0].tobytes() == three.images[1].tobytes()
    assert three.images[0].tobytes() != three.images[1].tobytes()
    assert three.grid().width > three.images[0].width


def test_emphasis_and_clip_skip_reach_the_picture(model):
    plain = draw(model).images[0].tobytes()
    assert draw(model, clip_skip=2).images[0].tobytes() != plain
    literal = model.generate(
        "a (red:1.5) house", prompt_syntax="literal", steps=2, width=64, height=64, seed=5
    )
    weighed = model.generate("a (red:1.5) house", steps=2, width=64, height=64, seed=5)
    assert literal.images[0].tobytes() != weighed.images[0].tobytes() != plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_skip": 9}, "the text encoder has 2 layers"),
        ({"sampler": "dpmpp_2m", "steps": 1000, "timestep_spacing": "linspace"}, "steps is 1000"),
        ({"colour": "red"}, "colour is not a field"),
        ({"width": 65}, "width is 65"),
        ({"seed": 2**53 - 1, "num_images": 2}, "largest seed"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        draw(model, **fields)


def test_a_request_and_fields_of_one_are_too_much(model):
    with pytest.raises(InvalidRequest, match="both"):
        model.generate("x", request=GenerationRequest(prompt="y"))


def test_numbers_that_are_not_finite_are_an_error_not_a_black_picture(model):
    with torch.no_grad():
        model.backend.networks.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="U-Net at step 1"):
        draw(model)


@pytest.mark.parametrize("fields", [{"precision": "fp8"}, {"device": "tpu"}, {"device": "cuda:99x"}])
def test_unknown_devices_and_precisions_are_refused(checkpoint_folder, fields):
    with pytest.raises(InvalidRequest):
        load(checkpoint_folder, **fields)


def test_fp16_is_refused_on_the_cpu(checkpoint_folder):
    with pytest.raises(InvalidRequest, match="slower"):
        load(checkpoint_folder, device="cpu", precision="fp16")


def test_bf16_draws_nearly_the_same_picture(checkpoint_folder, model):
    exact = torch.frombuffer(bytearray(draw(model).images[0].tobytes()), dtype=torch.uint8).float()
    rough = draw(load(checkpoint_folder, precision="bf16")).images[0].tobytes()
    difference = (torch.frombuffer(bytearray(rough), dtype=torch.uint8).float() - exact).abs().mean()
    assert 0 < difference < 4  # of 255; bf16 has eight bits


def test_a_vocabulary_larger_than_the_text_encoders_is_an_error(checkpoint_folder):
    path = checkpoint_folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps({**vocabulary, "zebra</w>": len(vocabulary)}))
    with pytest.raises(InvalidCheckpoint, match="tokens"):
        load(checkpoint_folder)


def test_options_of_gpus_are_refused_on_the_cpu(checkpoint_folder):
    for options in ({"compiled": True}, {"offload": "model"}, {"offload": "sequential"}):
        with pytest.raises(InvalidRequest, match="for GPUs"):
            load(checkpoint_folder, device="cpu", **options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compiled": True},
        {"attention": "sliced"},
        {"offload": "model"},
        {"offload": "sequential"},
    ],
)
def test_cuda_draws_the_same_picture(checkpoint_folder, model, options):
    there = load(checkpoint_folder, device="cuda", precision="fp32", **options)
    for images in (1, 3):  # three guided pictures are six rows, filled up to eight where they are compiled
        ours, theirs = (
            torch.frombuffer(bytearray(draw(m, num_images=images).images[-1].tobytes()), dtype=torch.uint8)
            for m in (model, there)
        )
        assert (ours.int() - theirs.int()).abs().max() <= 1
    if "offload" in options:
        backend = there.backend
        networks = [*backend.networks.text_encoders.values(), backend.networks.unet, backend.networks.vae]
        on_device = [network for network in networks if any(p.is_cuda for p in network.parameters())]
        assert on_device == ([backend.networks.vae] if options["offload"] == "model" else [])


@pytest.fixture
def photo(tmp_path):
    """A picture that no network would draw, and a mask with soft edges in it."""
    rows = torch.randint(0, 256, (96, 128, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    photo, mask = Image.fromarray(rows.numpy()), Image.new("L", (128, 96))
    mask.paste(255, (40, 30, 70, 60))
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    return tmp_path


def pixels(image):
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, 3)


@pytest.mark.parametrize(
    "area", [{}, {"inpaint_area": "masked", "width": 64, "height": 64, "mask_padding": 8}]
)
def test_what_a_mask_keeps_has_the_same_bits(checkpoint_folder, photo, area):
    model = load(checkpoint_folder, precision="fp32")
    original = pixels(Image.open(photo / "photo.png"))
    given = {"image": photo / "photo.png", "mask": photo / "mask.png", "steps": 3, "seed": 1}
    found = pixels(model.generate("a cat", **given, **area).images[0])
    assert found.shape == original.shape
    mask = Image.open(photo / "mask.png").filter(ImageFilter.GaussianBlur(4.0))
    kept = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).reshape(96, 128) == 0
    assert 0.5 < kept.float().mean() < 0.95
    assert torch.equal(found[kept], original[kept])
    assert (found[45, 55] != original[45, 55]).any()


def test_a_picture_is_extended(checkpoint_folder, photo):
    model = load(checkpoint_folder, precision="fp32")
    original = pixels(Image.open(photo / "photo.png"))
    given = {"image": photo / "photo.png", "extend": (0, 16, 32, 0), "mask_blur": 0.0, "steps": 3, "seed": 1}
    given |= {"width": 160, "height": 112}
    found = model.generate("a cat", **given, strength=1.0).images[0]
    assert found.size == (160, 112)
    assert torch.equal(pixels(found)[16:, :128], original)
    assert found.record.request.extend == (0, 16, 32, 0)
    with pytest.raises(InvalidRequest, match="not both"):
        model.generate("a cat", **given, mask=photo / "mask.png")
    with pytest.raises(InvalidRequest, match="no image to extend"):
        model.generate("a cat", extend=(8, 0, 0, 0))


def test_modes_of_emphasis(checkpoint_folder):
    model = load(checkpoint_folder, precision="fp32")

    def context(prompt, emphasis):
        [answer] = model.answer([EncodeText((prompt,), "a1111", 1, emphasis=emphasis)])
        return answer.value[0].context

    plain = context("a cat", "original")
    assert torch.equal(context("a (cat:1.5)", "ignore"), plain)
    bare = context("a (cat:1.5)", "no_norm")
    assert torch.allclose(bare[:, :2], plain[:, :2])  # start and "a"
    assert torch.allclose(bare[:, 3], 1.5 * plain[:, 3])
    words = model.answer([EncodeText(("a (cat:1.5)",), "literal", 1)])[0].value[0].context
    assert torch.equal(context("a (cat:1.5)", "none"), words)
