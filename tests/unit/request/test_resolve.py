"""Resolving a request against a model's facts; policies and estimates. None of it needs torch."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidRequest
from limner.generation import passes
from limner.generation.run import run
from limner.generation.story import picture_of
from limner.images.inputs import InputImages
from limner.images.opening import image_source, open_image
from limner.model.loading import find
from limner.model.options import LoadOptions
from limner.nn.unet_config import UNetConfig
from limner.request import GenerationRequest
from limner.request.estimate import Device, estimate, unet_flops
from limner.request.facts import ModelFacts
from limner.request.policy import RequestPolicy
from limner.request.resolve import ResolvedRequest, resolve

SD1 = ModelFacts("sd", "sd1", UNetConfig(), SchedulerConfig(), parameters=1_000_000_000)


class Files:
    """The files of a model where requests name no networks, and images have one size."""

    def __init__(self, size=(512, 512)):
        self.size = size

    def adapters(self, loras):
        return ()

    def controls(self, controls):
        return ()

    def image_prompts(self, prompts):
        return ()

    def image_size(self, source):
        return self.size

    def check_images(self, request):
        return ()


def resolved(size=(512, 512), facts=SD1, **fields):
    return resolve(GenerationRequest(**{"prompt": "a house", "seed": 1, **fields}), facts, Files(size))


def test_each_image_has_its_seed_and_each_pass_its_steps():
    found = resolved(num_images=2, steps=10, hires_scale=2.0, hires_steps=4)
    assert [picture.seed for picture in found.pictures] == [1, 2]
    first, second = found.pictures[1].passes
    assert (first.width, first.height, first.run_steps, first.steps_before) == (512, 512, 10, None)
    assert (second.width, second.height, second.run_steps, second.steps_before) == (1024, 1024, 4, 10)
    assert found.pictures[0].total_steps == 14


@pytest.mark.parametrize(
    ("defaults", "sampler", "scale"),
    [
        ({}, None, 7.5),
        ({}, "euler_cfg_pp", 0.6),
        ({"guidance_scale": 5.0}, "euler", 5.0),
        ({"guidance_scale": 5.0}, "euler_cfg_pp", 0.6),
        ({"sampler": "Euler CFG++"}, None, 0.6),
        ({"sampler": "euler_cfg_pp", "guidance_scale": 0.8}, None, 0.8),
        ({"sampler": "euler_cfg_pp", "guidance_scale": 0.8}, "ddim_cfg_pp", 0.8),
        ({"sampler": "euler_cfg_pp", "guidance_scale": 0.8}, "euler", 7.5),
    ],
)
def test_the_default_guidance_scale_suits_the_sampler(defaults, sampler, scale):
    found = resolved(facts=replace(SD1, defaults=defaults), sampler=sampler)
    assert found.request.guidance_scale == scale


def test_a_resolved_request_survives_json_and_resolves_to_itself():
    found = resolved(num_images=2, prompt="[a:b:0.5] AND c", sampler="euler", s_churn=2.0)
    assert ResolvedRequest.from_json(found.to_json()) == found
    assert resolve(found.request, SD1, Files()) == found
    newer = json.loads(found.to_json()) | {"schema_version": "3.0"}
    with pytest.raises(InvalidRequest, match=r"has version 3\.0"):
        ResolvedRequest.from_json(json.dumps(newer))


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 2),
        ({"guidance_scale": 1.0}, 1),
        ({"guidance_scale": 1.0, "sampler": "euler_cfg_pp"}, 2),
        ({"prompt": "a AND b AND c"}, 4),
        ({"negative_prompt": "x", "perp_neg": 1.0}, 3),
    ],
)
def test_rows_of_a_forward_pass_are_known_beforehand(fields, rows):
    assert resolved(**fields).pictures[0].rows == rows


def test_a_photo_is_begun_at_the_models_own_area():
    found = resolved((4032, 3024), image="photo.jpg")
    one = found.pictures[0].passes[0]
    assert (one.width, one.height) == (592, 440)
    assert "4032x3024" in found.warnings[0]
    assert "592x440" in found.warnings[0]
    assert resolved((4032, 3024), image="photo.jpg", width=4032, height=3024).warnings == ()
    one = resolved((1000, 768), image="p.png").pictures[0].passes[0]  # not that large
    assert (one.width, one.height) == (1000, 768)


@pytest.mark.parametrize(
    ("policy", "fields", "message"),
    [
        ({"max_side": 768}, {"width": 1024}, "width is 1024; the limit is 768"),
        ({"max_side": 768}, {"hires_scale": 2.0}, "width is 1024; the limit is 768"),
        ({"max_steps": 20}, {"steps": 30}, "steps is 30; the limit is 20"),
        ({"max_images": 4}, {"num_images": 5}, "num_images is 5; the limit is 4"),
        ({"max_prompt_length": 3}, {"prompt": "four"}, "prompt has 4 characters; the limit is 3"),
        ({"max_work": 10**6}, {}, "are 7,864,320 in all; the limit, max_work, is 1,000,000"),
    ],
)
def test_a_policy_names_field_value_and_limit(policy, fields, message):
    policy = RequestPolicy(**policy)
    with pytest.raises(InvalidRequest, match=message) as caught:
        policy.check_resolved(resolved(**fields))
    assert caught.value.fields
    RequestPolicy().check_resolved(resolved(**fields))


@pytest.mark.parametrize(
    ("limit", "hint"),
    [(16_000_000, "`num_images` of 2 at most"), (1_966_080, "less than 25% of the pixels")],
)
def test_too_much_work_is_refused_with_what_would_do(limit, hint):
    RequestPolicy(max_work=3 * 7_864_320).check_resolved(resolved(num_images=3))
    with pytest.raises(InvalidRequest, match="23,592,960 in all; the limit, max_work, is") as caught:
        RequestPolicy(max_work=limit).check_resolved(resolved(num_images=3))
    assert hint in (caught.value.hint or "")


def test_a_policy_checks_what_a_request_says_before_it_is_resolved():
    with pytest.raises(InvalidRequest, match="steps is 30; the limit is 20") as caught:
        RequestPolicy(max_steps=20).check(GenerationRequest(prompt="", steps=30))
    assert caught.value.fields == ("steps",)


def test_estimates_follow_the_work():
    device = Device(flops=1e12, memory=8 << 30, price=0.5)
    one, two = (estimate(resolved(num_images=n), SD1, device) for n in (1, 2))
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert one.cost == pytest.approx(0.5 * one.seconds)
    assert one.fits
    assert not estimate(resolved(width=4096, height=4096), SD1, device).fits
    for fields in ({}, {"num_images": 3, "hires_scale": 2.0}, {"image": "photo.png", "strength": 0.5}):
        found = resolved(**fields)
        assert found.estimate(device) == estimate(found, SD1, device)
        assert ResolvedRequest.from_json(found.to_json()).estimate(device) == found.estimate(device)
    # 803 billion by counting the operations of the network itself
    assert unet_flops(UNetConfig(), 64, 64) == pytest.approx(803e9, rel=0.05)


def test_one_plan_per_pass_one_lookup_per_adapter_one_opening_per_image(checkpoint_folder, monkeypatch):
    model, counts = find(LoadOptions(checkpoint_folder, precision="fp32")).load(), Counter()

    def counted(name, call):
        def wrapper(*args, **kwargs):
            counts[name] += 1
            return call(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(passes, "make_plan", counted("plans", passes.make_plan))
    monkeypatch.setattr(model.adapters, "used", counted("lookups", model.adapters.used))
    passes._plan.cache_clear()
    ask = {"prompt": "a", "width": 64, "height": 64, "steps": 2, "seed": 1, "num_images": 4}
    photo = image_source(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    mask = image_source(Image.new("L", (64, 64), 255))
    for fields, openings in (({}, 0), ({"image": photo, "mask": mask}, 2)):
        counts.clear()
        passes._plan.cache_clear()
        images = InputImages(counted("openings", open_image))
        found = model.resolve(GenerationRequest(**ask, **fields), images)
        for picture in found.pictures:
            run(picture_of(picture, model.facts, images=images), model)
        assert (counts["plans"], counts["lookups"], counts["openings"]) == (1, 1, openings)


def test_resolving_imports_no_torch():
    program = "import sys, limner.request.policy, limner.request.estimate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
