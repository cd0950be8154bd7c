"""Drawings that are steered by ControlNets and T2I-Adapters, by both programs.

1e-4 of their standard deviation for the final latents, as for the plain pipelines.
"""

from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_families import ASK, FAMILIES, HEIGHT, UNET, WIDTH, XL_UNET, assert_same, draw, save_family

from limner import load
from limner.images.opening import image_source
from limner.nn.control_config import T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import UNet2DConditionModel
from limner.weights.save import save_control

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = {"width": WIDTH, "height": HEIGHT}
XL_SIZE = {"width": 96, "height": 80}  # multiples of what an adapter for XL divides by
FULL = T2IAdapterConfig(channels=(16, 32, 32, 32))
ADAPTERS = {
    "full": FULL,
    "gray": replace(FULL, in_channels=1),
    "light": T2IAdapterConfig(channels=(16, 32, 32), adapter_type="light_adapter"),
    "xl": replace(FULL, downscale_factor=16, adapter_type="full_adapter_xl"),
    "xl 2": replace(FULL, downscale_factor=16, adapter_type="full_adapter_xl", num_res_blocks=1),
}
CONTROLNETS = {
    "first": (UNET, {}),
    "second": (UNET, {"conditioning_embedding_out_channels": (4, 8, 12, 16)}),
    "pooled": (UNET, {"global_pool_conditions": True}),
    "bgr": (UNET, {"controlnet_conditioning_channel_order": "bgr"}),
    "xl": (XL_UNET, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, reference, randomise):
    """Models, and the networks beside them."""
    root = tmp_path_factory.mktemp("controlled")
    for name in ("img2img", "inpainting", "xl", "distilled"):
        save_family(name, root, reference, randomise)
    networks = {name: T2IAdapter(config) for name, config in ADAPTERS.items()}
    for name, (unet, own) in CONTROLNETS.items():
        network = ControlNetModel.from_unet(UNet2DConditionModel(unet), **own)
        networks[f"controlnet {name}"] = network
    for seed, (name, network) in enumerate(networks.items(), start=1000):
        randomise(network, seed)
        save_control(root / "networks" / name, network)
    return root


def picture(size, seed=0):
    """Smooth colours, other ones for another seed."""
    y, x = np.mgrid[0 : size["height"], 0 : size["width"]]
    waves = [
        np.sin((3 + seed) * x / size["width"] + c) * np.cos((2 + c) * y / size["height"] + seed)
        for c in range(3)
    ]
    return Image.fromarray((127.5 * (1 + np.stack(waves, axis=-1))).astype(np.uint8))


def of(folders, name, image, **fields):
    """A control as a request has it."""
    return {"model": str(folders / "networks" / name), "image": image_source(image), **fields}


@cache
def plain_pipeline(folders, family):
    cls = getattr(diffusers, FAMILIES[family][0])
    return cls.from_pretrained(folders / family, local_files_only=True)


@cache
def loaded(folders, family):
    return load(folders / family, precision="fp32")


def ours(folders, family, **fields):
    """Final latents by Limner."""
    return draw(loaded(folders, family), **fields)


@torch.no_grad()
def theirs(folders, family, cls, networks, **fields):
    """Final latents by a pipeline of diffusers with networks beside it."""
    cls = getattr(diffusers, cls)
    paths = [folders / "networks" / name for name in networks]
    if "ControlNet" in cls.__name__:
        nets = [diffusers.ControlNetModel.from_pretrained(path) for path in paths]
        beside = {"controlnet": nets if len(nets) > 1 else nets[0]}
    else:
        nets = [diffusers.T2IAdapter.from_pretrained(path) for path in paths]
        beside = {"adapter": diffusers.MultiAdapter(nets) if len(nets) > 1 else nets[0]}
    pipeline = cls.from_pipe(plain_pipeline(folders, family), **beside)
    pipeline.set_progress_bar_config(disable=True)
    named = {"seed": "generator", "steps": "num_inference_steps"}
    fields = {named.get(field, field): value for field, value in {**ASK, **fields}.items()}
    fields["generator"] = torch.Generator("cpu").manual_seed(fields["generator"])
    return pipeline(output_type="latent", **fields).images


def assert_steered(found, folders, family, **fields):
    """A drawing without controls is another."""
    plain = ours(folders, family, **fields)
    assert (found - plain).abs().max() > 0.05 * plain.std()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "control", "their_fields"),
    [
        ("controlnet first", {}, {}),
        (
            "controlnet first",
            {"weight": 0.6, "start": 0.3, "end": 0.8},
            {
                "controlnet_conditioning_scale": 0.6,
                "control_guidance_start": 0.3,
                "control_guidance_end": 0.8,
            },
        ),
        (
            "controlnet first",
            {"mode": "guess", "weight": 0.8},
            {"guess_mode": True, "controlnet_conditioning_scale": 0.8},
        ),
        ("controlnet pooled", {"weight": 0.7}, {"controlnet_conditioning_scale": 0.7}),
        ("controlnet bgr", {}, {}),
    ],
)
def test_a_controlnet(folders, name, control, their_fields):
    image = picture(SIZE)
    found = ours(folders, "img2img", **SIZE, controls=(of(folders, name, image, **control),))
    pipeline = "StableDiffusionControlNetPipeline"
    assert_same(found, theirs(folders, "img2img", pipeline, [name], image=image, **their_fields))
    assert_steered(found, folders, "img2img", **SIZE)


@pytest.mark.parametrize("guess", [False, True])
def test_two_controlnets(folders, guess):
    names, images = ["controlnet first", "controlnet second"], [picture(SIZE), picture(SIZE, 1)]
    mode = "guess" if guess else "balanced"
    controls = (
        of(folders, names[0], images[0], weight=0.5, mode=mode),
        of(folders, names[1], images[1], weight=0.9, start=0.2, end=0.8, mode=mode),
    )
    found = ours(folders, "img2img", **SIZE, controls=controls)
    expected = theirs(
        folders,
        "img2img",
        "StableDiffusionControlNetPipeline",
        names,
        image=images,
        controlnet_conditioning_scale=[0.5, 0.9],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[1.0, 0.8],
        guess_mode=guess,
    )
    assert_same(found, expected)


def test_a_controlnet_without_guidance(folders):
    image, name = picture(SIZE), "controlnet first"
    found = ours(folders, "img2img", **SIZE, guidance_scale=1.0, controls=(of(folders, name, image),))
    pipeline = "StableDiffusionControlNetPipeline"
    assert_same(found, theirs(folders, "img2img", pipeline, [name], image=image, guidance_scale=1.0))


def test_a_controlnet_beside_a_model_that_is_told_a_guidance_scale(folders):
    image, name = picture(SIZE), "controlnet first"
    found = ours(folders, "distilled", **SIZE, guidance_scale=4.0, controls=(of(folders, name, image),))
    pipeline = "StableDiffusionControlNetPipeline"
    expected = theirs(folders, "distilled", pipeline, [name], image=image, guidance_scale=4.0)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("family", "strength", "name", "pipeline"),
    [
        ("img2img", 0.5, "controlnet first", "StableDiffusionControlNetImg2ImgPipeline"),
        ("xl", 0.5, "controlnet xl", "StableDiffusionXLControlNetImg2ImgPipeline"),
    ],
)
def test_a_controlnet_and_a_picture_to_begin_with(folders, family, strength, name, pipeline):
    image, begun = picture(SIZE), picture(SIZE, 2)
    control = of(folders, name, image, start=0.1, end=0.7)
    fields = {"image": begun, "strength": strength}
    found = ours(folders, family, **fields, controls=(control,))
    expected = theirs(
        folders,
        family,
        pipeline,
        [name],
        **fields,
        control_image=image,
        controlnet_conditioning_scale=1.0,
        control_guidance_start=0.1,
        control_guidance_end=0.7,
    )
    assert_same(found, expected)
    assert_steered(found, folders, family, **fields)


@pytest.mark.parametrize("family", ["img2img", "inpainting"])
def test_a_controlnet_and_a_mask(folders, family):
    """A model for text, and one for inpainting, whose mask and picture a ControlNet is not given."""
    image, begun, name = picture(SIZE), picture(SIZE, 2), "controlnet first"
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (21, 10, 75, 51))
    fields = {"image": begun, "mask": mask, "mask_blur": 0.0, "strength": 0.8}
    found = ours(folders, family, **fields, controls=(of(folders, name, image, weight=0.8),))
    expected = theirs(
        folders,
        family,
        "StableDiffusionControlNetInpaintPipeline",
        [name],
        image=begun,
        mask_image=mask,
        strength=0.8,
        control_image=image,
        controlnet_conditioning_scale=0.8,
        **SIZE,
    )
    assert_same(found, expected)
    assert_steered(found, folders, family, **fields)


@pytest.mark.parametrize("guess", [False, True])
def test_a_controlnet_of_xl(folders, guess):
    image, name = picture(SIZE), "controlnet xl"
    control = of(folders, name, image, weight=0.7, end=0.8, mode="guess" if guess else "balanced")
    found = ours(folders, "xl", **SIZE, controls=(control,))
    expected = theirs(
        folders,
        "xl",
        "StableDiffusionXLControlNetPipeline",
        [name],
        image=image,
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.8,
        guess_mode=guess,
    )
    assert_same(found, expected)
    assert_steered(found, folders, "xl", **SIZE)


@pytest.mark.parametrize("name", ["full", "gray", "light"])
def test_an_adapter(folders, name):
    image = picture(SIZE).convert("L" if name == "gray" else "RGB")
    found = ours(folders, "img2img", **SIZE, controls=(of(folders, name, image, weight=0.6),))
    expected = theirs(
        folders,
        "img2img",
        "StableDiffusionAdapterPipeline",
        [name],
        image=image,
        adapter_conditioning_scale=0.6,
        **SIZE,
    )
    assert_same(found, expected)
    assert_steered(found, folders, "img2img", **SIZE)


def test_two_adapters(folders):
    names, images = ["full", "full"], [picture(SIZE), picture(SIZE, 1)]
    controls = tuple(
        of(folders, name, image, weight=weight)
        for name, image, weight in zip(names, images, (0.3, 0.8), strict=True)
    )
    found = ours(folders, "img2img", **SIZE, controls=controls)
    expected = theirs(
        folders,
        "img2img",
        "StableDiffusionAdapterPipeline",
        names,
        image=images,
        adapter_conditioning_scale=[0.3, 0.8],
        **SIZE,
    )
    assert_same(found, expected)


@pytest.mark.parametrize(("names", "factor"), [(["xl"], 1.0), (["xl", "xl 2"], 0.5)])
def test_adapters_of_xl(folders, names, factor):
    images, weights = [picture(XL_SIZE), picture(XL_SIZE, 1)][: len(names)], [0.8, 0.4][: len(names)]
    controls = tuple(
        of(folders, name, image, weight=weight, end=factor)
        for name, image, weight in zip(names, images, weights, strict=True)
    )
    found = ours(folders, "xl", **XL_SIZE, controls=controls)
    expected = theirs(
        folders,
        "xl",
        "StableDiffusionXLAdapterPipeline",
        names,
        image=images if len(names) > 1 else images[0],
        adapter_conditioning_scale=weights if len(names) > 1 else weights[0],
        adapter_conditioning_factor=factor,
        **XL_SIZE,
    )
    assert_same(found, expected)
    assert_steered(found, folders, "xl", **XL_SIZE)
