"""What a parameters text of webui's says that is not taken over: all of it is named, with what to do."""

import pytest

from limner.errors import InvalidPicture, InvalidRequest
from limner.images.readers import Texts
from limner.images.readers import a1111 as webui
from limner.request import Control, GenerationRequest

PLAIN = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 512x640, Model: dreamshaper_8"


def read(more="", overriding=("model",), plain=PLAIN):
    return webui.read(Texts(comment=f"{plain}, {more}" if more else plain, name="cat.png"), overriding)


def warned(more, overriding=("model",)):
    """The one warning that a text brings."""
    [warning] = read(more, overriding).warnings
    assert warning.startswith("cat.png: ")
    return warning.removeprefix("cat.png: ")


def test_a_plain_text_says_nothing_that_is_lost_but_its_model():
    assert read().warnings == ()
    assert warned("Version: v1.10.1", ()) == ("its model, dreamshaper_8, is not looked for: give `model`")


@pytest.mark.parametrize(
    "idle",
    [
        "Version: v1.10.1",
        "Model hash: 12ab",
        'Lora hashes: "foo: 1234abcd"',
        "Hires checkpoint: Use same checkpoint, Hires Module 1: Use same choices",
        "VAE Encoder: Full, Emphasis: Original, RNG: NV",
        'Template: "{a|b} cat"',
        "CFG scale: 7, Hires CFG Scale: 7",
    ],
)
def test_what_changes_nothing_is_not_spoken_of(idle):
    assert read(idle).warnings == ()


@pytest.mark.parametrize(
    ("more", "parts", "known"),
    [
        ("VAE: kl-f8.safetensors", ["VAE: kl-f8.safetensors", "`vae`"], "vae"),
        (
            "Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.8",
            ["sd_xl_refiner_1.0", "0.8", "`refiner_start`"],
            "refiner",
        ),
        ('TI hashes: "easynegative: c74b"', ["easynegative", "`embedding_dirs`"], "embedding_dirs"),
        ("Denoising strength: 0.4", ["Denoising strength: 0.4", "`image`, `strength`"], "image"),
        (
            "Denoising strength: 0.4, Mask blur: 8, Inpaint area: Only masked, Mask mode: Inpaint not masked",
            ["`image`, `mask`, `strength`, `mask_blur`, `inpaint_area`", "Inpaint not masked"],
            None,
        ),
        ("Skip Early CFG: 0.1", ["Skip Early CFG: 0.1", "`guidance_interval`"], "guidance_interval"),
        ("Hires checkpoint: other [12]", ["Hires checkpoint: other [12]", "one model"], None),
        ("Token merging ratio: 0.5", ["Token merging ratio: 0.5", "may have changed"], None),
        ("ENSD: 31337, Seed resize from: 64x72", ["ENSD: 31337", "Seed resize from-1: 64"], None),
        ("RP Active: True, RP Divide mode: Matrix", ["RP Active: True, RP Divide mode: Matrix"], None),
        ("Frobnication: 7", ["Frobnication: 7"], None),
        ("Emphasis: Louder", ["Emphasis: Louder"], None),
        ("RNG: Dice", ["RNG: Dice"], None),
        (
            "ADetailer model: x.pt, ADetailer confidence: 0.3, ADetailer mask blur: 4, ADetailer version: 24",
            ["ADetailer (4 fields: ADetailer confidence, ADetailer mask blur …)"],
            None,
        ),
        ("Script: X/Y/Z plot, X Type: Steps", ["Script: X/Y/Z plot, X Type: Steps", "limner grid"], None),
    ],
)
def test_what_is_not_taken_over_is_named_unless_it_is_given(more, parts, known):
    warning = warned(more)
    assert [part for part in parts if part not in warning] == []
    if known:
        assert read(more, ("model", known)).warnings == ()


UNIT = (
    'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, Resize Mode: Just '
    "Resize, Processor Res: 512, Threshold A: 50, Threshold B: 150, Guidance Start: 0.1, Guidance End: 0.7, "
    'Pixel Perfect: True, Control Mode: My prompt is more important"'
)
OLD_UNIT = (
    'ControlNet 0: "preprocessor: canny, model: control_canny [ab], weight: 1, starting/ending: (0, 0.5), '
    'resize mode: Just Resize, control mode: ControlNet is more important, low vram: False"'
)


@pytest.mark.parametrize(
    ("unit", "control"),
    [
        (
            UNIT,
            Control(
                model="control_v11p_sd15_canny",
                image="PICTURE",
                preprocessor="canny:50:150",
                weight=0.8,
                start=0.1,
                end=0.7,
                mode="prompt",
            ),
        ),
        (
            OLD_UNIT,
            Control(model="control_canny", image="PICTURE", preprocessor="canny", end=0.5, mode="guess"),
        ),
    ],
)
def test_a_control_unit_is_told_as_the_option_that_asks_for_the_same(unit, control):
    warning = warned(unit)
    assert "ControlNet 0 is not taken over" in warning
    assert Control.model_validate(warning.partition("give `controls=")[2].partition("`")[0]) == control
    assert read(unit, ("model", "controls")).warnings == ()


def test_units_that_have_no_option_of_their_own():
    pose = warned('ControlNet 1: "Module: dw_openpose_full, Model: control_openpose [ab], Weight: 1"')
    assert "`controls=model=control_openpose,image=PICTURE`; " in pose
    assert "ready-made image" in pose
    seen = warned('ControlNet 2: "Module: ip-adapter_clip_sd15, Model: ip-adapter_sd15 [x], Weight: 0.6"')
    assert seen.endswith("give `image_prompts=model=ip-adapter_sd15,image=PICTURE,weight=0.6`")
    cut = warned(
        'ControlNet 0: "Module: none, Model: m [ab], Resize Mode: Crop and Resize, Processor Res: 512"'
    )
    assert cut.endswith("image=PICTURE`; without its resize mode: Crop and Resize, processor res: 512")
    assert "`controls` yourself" in warned('ControlNet 3: "Module: canny, Weight: heavy"')
    assert "ControlNet Enabled: True" in warned("ControlNet Enabled: True")
    broken = warned('ControlNet 4: "Module: canny, Model: m [ab], Threshold A: high"')
    assert broken.endswith("`controls=model=m,image=PICTURE`; its threshold a is 'high', expected a number")


def test_with_a_picture_and_a_mask_what_is_about_them_counts():
    more = "Denoising strength: 0.4, Mask blur: 8, Inpaint area: Only masked, Masked area padding: 64"
    fields = read(more, ("model", "image")).fields
    assert fields["strength"] == 0.4
    assert "mask_blur" not in fields
    found = read(more, ("model", "image", "mask"))
    expected = {"strength": 0.4, "mask_blur": 8.0, "inpaint_area": "masked", "mask_padding": 64}
    assert {name: found.fields[name] for name in expected} == expected
    assert found.warnings == ()


def test_a_text_without_settings_says_which_are_lacking():
    found = webui.read(Texts(comment="a cat", name="cat.png"), ("model",))
    assert found.fields == {"prompt": "a cat", "negative_prompt": "", "noise": "gpu"}
    [warning] = found.warnings
    assert "does not say Steps, Sampler, CFG scale, Seed, Size" in warning


@pytest.mark.parametrize(
    ("more", "sampler"),
    [
        ("", "unipc_bh1"),
        ("UniPC variant: bh2", "unipc_bh2"),
        ("UniPC variant: bh2, UniPC order: 2", "unipc"),
        ("UniPC order: 3", "unipc_bh1"),
    ],
)
def test_the_unipc_that_is_meant(more, sampler):
    found = read(more, plain=PLAIN.replace("Euler", "UniPC, Schedule type: Karras"))
    assert found.fields["sampler"] == sampler
    assert found.fields["sigma_schedule"] == "uniform"  # webui lets no schedule choose UniPC's timesteps
    assert found.warnings == ()


def test_a_unipc_that_limner_lacks_is_the_nearest_and_named():
    found = read("UniPC variant: vary_coeff, UniPC order: 4", plain=PLAIN.replace("Euler", "UniPC"))
    assert found.fields["sampler"] == "unipc_bh1"
    assert "UniPC order: 4, UniPC variant: vary_coeff" in found.warnings[0]


@pytest.mark.parametrize(("first", "size"), [("512x448", (512, 448)), ("0x0", (512, 576))])
def test_old_versions_say_the_size_of_the_second_pass(first, size):
    plain = PLAIN.replace("Size: 512x640", "Size: 1024x1152")
    found = read(f"Denoising strength: 0.7, First pass size: {first}", plain=plain)
    assert found.warnings == ()
    request = GenerationRequest.of(found.fields)
    assert (request.width, request.height) == size
    assert (request.hires_width, request.hires_height, request.hires_strength) == (1024, 1152, 0.7)


def test_a_size_of_nothing_is_refused_by_the_request():
    found = read("First pass size: 0x0", plain=PLAIN.replace("Size: 512x640", "Size: 0x0"))
    with pytest.raises(InvalidRequest, match="width is 0"):
        GenerationRequest.of(found.fields)


def test_a_sampler_that_is_given_stands_over_one_that_limner_lacks():
    plain = PLAIN.replace("Sampler: Euler", "Sampler: Restart 9000, Schedule type: Karras")
    lacking = read(plain=plain)
    assert "Restart 9000" in lacking.refused.message
    assert lacking.unknown_names == {"sampler": "Restart 9000", "sigma_schedule": "Karras"}
    found = read(overriding=("model", "sampler"), plain=plain)
    assert found.fields["sigma_schedule"] == "karras"
    assert "sampler" not in found.fields


def test_a_prompt_in_braces_is_no_json():
    assert read(plain=PLAIN.replace("a cat", "{a cat}")).fields["prompt"] == "{a cat}"
    with pytest.raises(InvalidPicture):
        webui.read(Texts(comment='{"prompt": "a cat"}', name="cat.png"))
