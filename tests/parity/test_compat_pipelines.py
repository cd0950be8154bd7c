"""Pipelines of `limner.compat` and of diffusers of the same name: final latents agree to 1e-4 of their
standard deviation, from the same generator, in whatever order the two draw."""

import json
from functools import cache
from inspect import signature

import diffusers
import numpy as np
import pytest
import torch
from test_families import (  # noqa: F401 (fixtures)
    UNET,
    XL_UNET,
    folders,
    image_prompts,
    mask,
    picture,
)

import limner
from limner import InvalidRequest

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`len.prompt. != len.image.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*only 1 initial images:FutureWarning"),
]

TOLERANCE = 1e-4
SIZE = {"height": 72, "width": 104}
TWO = {"num_images_per_prompt": 2}


def seeded(number):
    return torch.Generator("cpu").manual_seed(number)


@cache
def read(library, folder):
    """A pipeline of the class that a folder names: reading takes a second."""
    pipe = library.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def opened(library, name, folder, controlnets):
    """A pipeline, and the scheduler that its folder names."""
    pipe = read(library, folder)
    nets = [library.ControlNetModel.from_pretrained(net) for net in controlnets]
    own = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
    if type(pipe).__name__ == name:
        return pipe, pipe.scheduler
    other = getattr(library, name).from_pipe(pipe, **own)
    other.set_progress_bar_config(disable=True)
    return other, pipe.scheduler


def draw(library, name, folder, scheduler=None, generators=1, controlnets=(), **given):
    pipe, own = opened(library, name, folder, tuple(controlnets))
    pipe.scheduler = getattr(library, scheduler or type(own).__name__).from_config(own.config)
    generator = seeded(3) if generators == 1 else [seeded(number) for number in range(generators)]
    ask = {"prompt": "a cat in the snow", "negative_prompt": "blurry", "output_type": "latent"}
    return pipe(**{**ask, "num_inference_steps": 5, "generator": generator, **given}).images


def compare(name, folder, **given):
    expected = draw(diffusers, name, folder, **given)
    found = draw(limner, name, folder, **given)
    if not torch.is_tensor(expected):  # pictures of 8 bits, which may round either way
        expected, found = (np.stack(images).astype(float) for images in (expected, found))
        assert np.abs(expected - found).max() <= 1
        return
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    difference = float((found - expected).abs().max() / expected.std())
    assert difference <= TOLERANCE, f"they differ by {difference:.1e} of their standard deviation"


ANCESTRAL = "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", ANCESTRAL])
def test_a_picture_to_begin_with(folders, picture, scheduler):  # noqa: F811
    scheduler = {"scheduler": scheduler} if scheduler != "PNDMScheduler" else {}
    given = {"image": picture, "strength": 0.6, **TWO, **scheduler}
    compare("StableDiffusionImg2ImgPipeline", folders / "img2img", **given)


def test_pictures_in_other_forms(folders, picture):  # noqa: F811
    pixels = np.asarray(picture)[None].astype(np.float32) / 255
    for image in (
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.randn(1, 4, 9, 13, generator=seeded(1)),
    ):
        compare("StableDiffusionImg2ImgPipeline", folders / "img2img", image=image, generators=2, **TWO)


@pytest.mark.parametrize(
    "given",
    [
        {"strength": 0.6, "scheduler": "DPMSolverMultistepScheduler"},
        {"scheduler": ANCESTRAL, "generators": 2},
        {"strength": 0.5, "padding_mask_crop": 7, "output_type": "pil", "height": 64, "width": 64},
    ],
)
def test_within_a_mask(folders, picture, mask, given):  # noqa: F811
    own = {"image": picture, "mask_image": mask, **SIZE} | ({} if "padding_mask_crop" in given else TWO)
    compare("StableDiffusionInpaintPipeline", folders / "plain inpainting", **{**own, **given})


@pytest.mark.parametrize("given", [{"scheduler": ANCESTRAL, **TWO}, {"strength": 0.5}])
def test_a_model_that_is_made_for_masks(folders, picture, mask, given):  # noqa: F811
    own = {"image": picture, "mask_image": mask, **SIZE}
    compare("StableDiffusionInpaintPipeline", folders / "inpainting", **own, **given)


@pytest.mark.parametrize(
    "given",
    [
        {**TWO, "original_size": (30, 40), "crops_coords_top_left": (3, 5)},
        {"negative_prompt": None, "prompt_2": "a dog", "scheduler": "EulerDiscreteScheduler"},
        {"negative_original_size": (30, 40), "negative_target_size": (50, 60), "denoising_end": 0.6},
    ],
)
def test_xl(folders, given):  # noqa: F811
    compare("StableDiffusionXLPipeline", folders / "xl", **SIZE, **given)


def test_xl_from_pictures(folders, picture, mask):  # noqa: F811
    given = {"image": picture, "strength": 0.6, "negative_original_size": (30, 40)}
    compare("StableDiffusionXLImg2ImgPipeline", folders / "xl", **given)
    given = {"image": picture, "mask_image": mask, **SIZE, **TWO}
    compare("StableDiffusionXLInpaintPipeline", folders / "xl", **given)


def test_the_refiner_goes_on(folders):  # noqa: F811
    latents = torch.randn(1, 4, 9, 13, generator=seeded(1))
    compare("StableDiffusionXLImg2ImgPipeline", folders / "refiner", image=latents, denoising_start=0.5)


def test_a_model_that_guides_itself(folders):  # noqa: F811
    compare(
        "StableDiffusionPipeline", folders / "distilled", **SIZE, negative_prompt=None, guidance_scale=4.5
    )


@pytest.fixture(scope="module")
def controlnets(tmp_path_factory, randomise):
    """Folders of one for plain models and one for XL, as diffusers saves them."""
    root = tmp_path_factory.mktemp("controlnets")
    known = signature(diffusers.ControlNetModel.__init__).parameters
    for seed, (name, unet) in enumerate((("plain", UNET), ("xl", XL_UNET))):
        shared = {key: value for key, value in unet.to_dict().items() if key in known}
        net = diffusers.ControlNetModel(**shared, conditioning_embedding_out_channels=(8, 8, 16, 16))
        randomise(net, 50 + seed)
        net.save_pretrained(root / name)
    return root


def test_control_pictures(folders, controlnets, picture):  # noqa: F811
    both = [controlnets / "plain"] * 2
    masked = torch.rand(1, 3, 72, 104, generator=seeded(9))
    masked[:, :, 20:50] = -1.0  # as ControlNets for inpainting are told what to draw
    compare(
        "StableDiffusionControlNetPipeline",
        folders / "img2img",
        controlnets=both,
        image=[picture, masked],
        controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.3],
        **TWO,
    )


def test_control_pictures_for_xl(folders, controlnets, picture, mask):  # noqa: F811
    name = "StableDiffusionXLControlNetInpaintPipeline"
    given = {"image": picture, "mask_image": mask, "control_image": picture.rotate(180), "guess_mode": True}
    compare(name, folders / "xl", controlnets=[controlnets / "xl"], **given)


@pytest.mark.long
@pytest.mark.parametrize(("family", "count"), [("img2img", 1), ("img2img", 2), ("xl", 1)])
def test_saved_with_controlnets(folders, controlnets, picture, tmp_path, family, count):  # noqa: F811
    """What either library saved is opened by both."""
    end, net = ("XL", "xl") if family == "xl" else ("", "plain")
    name = f"StableDiffusion{end}ControlNetPipeline"
    image = picture if count == 1 else [picture, picture.rotate(180)]
    drawn = []
    ask = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "image": image,
        **SIZE,
    }
    for library in (limner, diffusers):
        nets = [library.ControlNetModel.from_pretrained(controlnets / net) for _ in range(count)]
        pipe = library.DiffusionPipeline.from_pretrained(folders / family)
        pipe = getattr(library, name).from_pipe(pipe, controlnet=nets if count > 1 else nets[0])
        folder = tmp_path / library.__name__
        pipe.save_pretrained(folder)
        for reader in (limner, diffusers):
            for kind in (getattr(reader, name), reader.DiffusionPipeline):
                again = kind.from_pretrained(folder)
                assert type(again).__name__ == name
                again.set_progress_bar_config(disable=True)
                drawn.append(again("a cat", generator=seeded(3), **ask).images)
    for one in drawn:
        assert (one - drawn[-1]).abs().max() <= TOLERANCE * drawn[-1].std()


def test_a_folder_with_controlnets_is_a_model_too(folders, controlnets, tmp_path):  # noqa: F811
    net = limner.ControlNetModel.from_pretrained(controlnets / "plain")
    pipe = limner.StableDiffusionPipeline.from_pretrained(folders / "img2img")
    controlled = limner.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    controlled.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text()) == controlled.config
    model = limner.load(tmp_path / "model", precision="fp32")
    assert model.warnings == (
        f"{tmp_path / 'model'} comes with a ControlNet, which is not used unless a request's control names "
        "its folder",
    )
    plain = limner.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    ask = {"num_inference_steps": 2, "output_type": "latent"}
    plain.set_progress_bar_config(disable=True)
    pipe.set_progress_bar_config(disable=True)
    one, other = (p("a cat", generator=seeded(1), **ask).images for p in (plain, pipe))
    assert torch.equal(one, other)


def test_pictures_as_prompts(folders, image_prompts, picture):  # noqa: F811
    files = [image_prompts("plus", UNET, 1), image_prompts("plain", UNET, 2)]
    looks = [[picture, picture.rotate(90, expand=True)], picture.rotate(180)]

    def less(pipe, number, timestep, tensors):
        if number == 1:
            pipe.set_ip_adapter_scale([0.0, 0.9])
        return tensors

    def drawn(library):
        pipe = library.StableDiffusionPipeline.from_pipe(read(library, folders / "img2img"))
        pipe.set_progress_bar_config(disable=True)
        pipe.load_ip_adapter(str(files[0].parent), subfolder="", weight_name=[path.name for path in files])
        pipe.set_ip_adapter_scale([0.6, 0.4])
        ask = {"num_inference_steps": 3, "output_type": "latent", **SIZE, **TWO}
        images = pipe("a cat", ip_adapter_image=looks, generator=seeded(5), **ask).images
        pipe.unload_ip_adapter()
        return images

    theirs, ours = drawn(diffusers), drawn(limner)
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.std()


def test_a_pipeline_for_another_model_is_refused(folders):  # noqa: F811
    with pytest.raises(InvalidRequest, match="the U-Net is one for inpainting"):
        draw(limner, "StableDiffusionPipeline", folders / "inpainting")
