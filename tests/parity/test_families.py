"""The families beyond plain 1.x and 2.x: folders that diffusers wrote, drawn by both programs.

1e-4 of their standard deviation for latents, as for the plain pipelines.
"""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from inspect import signature
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from limner import GenerationRequest, ModelCache, load
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
from limner.diffusion.plan import make_plan
from limner.engine.engine import Engine
from limner.errors import InvalidRequest
from limner.generation.calls import DecodeLatents, Denoise, EncodeImage
from limner.generation.run import watch
from limner.generation.story import picture_of
from limner.images.opening import image_source
from limner.images.pixels import to_images
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.unet_config import UNetConfig, attended_layers
from limner.nn.vae_config import VAEConfig
from limner.prompts.tokenizer import Tokenizer
from limner.request import Lora
from limner.weights.tensors import write_tensors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a red house (left) of a [green] tree, at night!", "blurry, dark"
WIDTH, HEIGHT = 104, 72  # 13x9 latents
ASK = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 6.0, "steps": 6, "seed": 7}

# A small one, as CLIP's takes each program half a second to read; test_pipelines.py draws with that.
TOKENIZER = Tokenizer.train([PROMPT, NEGATIVE] * 2, vocab_size=560, max_length=77)
VAE = VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)
TEXT = CLIPTextConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=32,
    vocab_size=TOKENIZER.vocab_size,
)
TEXT_2 = replace(TEXT, hidden_size=48, hidden_act="gelu", projection_dim=40, projection=True)
UNET = UNetConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=4,
)
XL_UNET = UNetConfig(
    block_out_channels=(16, 32, 32),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=(1, 2, 4),
    transformer_layers_per_block=(1, 1, 2),
    cross_attention_dim=80,
    use_linear_projection=True,
    norm_num_groups=4,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=40 + 6 * 8,
)
REFINER_UNET = replace(
    XL_UNET, cross_attention_dim=48, projection_class_embeddings_input_dim=40 + 5 * 8, layers_per_block=2
)

# name -> pipeline, U-Net, text encoders, the reference's scheduler config, further arguments of the pipeline
FAMILIES = {
    "xl": ("StableDiffusionXLPipeline", XL_UNET, (TEXT, TEXT_2), "sdxl-base", {}),
    "refiner": (
        "StableDiffusionXLImg2ImgPipeline",
        REFINER_UNET,
        (None, TEXT_2),
        "sdxl-base",
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
    "inpainting": (
        "StableDiffusionInpaintPipeline", replace(UNET, in_channels=9), (TEXT,), "sd15", {},
    ),
    "edit": (
        "StableDiffusionInstructPix2PixPipeline", replace(UNET, in_channels=8), (TEXT,), "sd15", {},
    ),
    "depth": (
        "StableDiffusionDepth2ImgPipeline",
        replace(UNET, in_channels=5),
        (TEXT,),
        "sd15",
        {"depth_estimator": None, "feature_extractor": None},
    ),
    "img2img": ("StableDiffusionImg2ImgPipeline", UNET, (TEXT,), "sd15", {}),
    "plain": ("StableDiffusionPipeline", UNET, (TEXT,), "sd15", {}),
    "plain inpainting": ("StableDiffusionInpaintPipeline", UNET, (TEXT,), "sd15", {}),
    "distilled": (
        "StableDiffusionPipeline", replace(UNET, time_cond_proj_dim=12), (TEXT,), "sd15", {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, reference, randomise):
    """A folder of each family, as diffusers saves it."""
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        save_family(name, root, reference, randomise)
    return root


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_without_loading(folders, tmp_path, name):
    catalogue = Catalogue({}, cache=tmp_path, shipped={name: folders / name})
    facts, loaded = model_facts(catalogue.find("checkpoint", name)), load(folders / name, precision="fp32")
    assert facts == replace(loaded.facts, name=name)


def save_family(name, root, reference, randomise):
    """Have diffusers save a family's pipeline, with random weights, at `root / name`."""
    diffusers.utils.logging.disable_progress_bar()
    pipeline, unet, texts, known, more = FAMILIES[name]
    cls = getattr(diffusers, pipeline)
    parts = {
        "unet": diffusers.UNet2DConditionModel.from_config(unet.to_dict()),
        "vae": diffusers.AutoencoderKL.from_config(VAE.to_dict()),
    }
    for number, text in enumerate(texts, start=1):
        end = "" if number == 1 else f"_{number}"
        parts[f"text_encoder{end}"] = text and _text_encoder(text)
        parts[f"tokenizer{end}"] = text and _tokenizer(root, reference, number)
    for number, part in enumerate(parts.values()):
        if isinstance(part, torch.nn.Module):
            randomise(part, 20 * list(FAMILIES).index(name) + number)
    scheduler = reference / "configs" / known / "scheduler" / "scheduler_config.json"
    parts["scheduler"] = diffusers.DDIMScheduler.from_config(json.loads(scheduler.read_text()))
    if "safety_checker" in signature(cls.__init__).parameters:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    cls(**parts, **more).save_pretrained(root / name)


def _text_encoder(config):
    kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
    ends = {"bos_token_id": config.vocab_size - 2, "eos_token_id": config.vocab_size - 1}
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**{**config.to_dict(), **ends}))


def _tokenizer(root, reference, number):
    folder = root / f"tokenizer-{number}"
    if not folder.exists():
        name = "tokenizer" if number == 1 else f"tokenizer_{number}"
        TOKENIZER.save(folder)
        shutil.copytree(reference / "configs" / "sdxl-base" / name, folder, dirs_exist_ok=True)
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def picture():
    """Smooth colours, so that resampling and blurring would show."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rows = np.stack([2 * x, 3 * y, 255 - x - y], axis=-1)
    return Image.fromarray(rows.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def mask():
    """White in a box with no edge on the grid of latents."""
    image = Image.new("L", (WIDTH, HEIGHT))
    image.paste(255, (21, 10, 75, 51))
    return image


@cache
def _loaded(folder, name):
    return load(folder / name, precision="fp32")


@cache
def _shared_pipeline(folder, name):
    """The family's own pipeline of diffusers, to be left as it is."""
    more = {"depth_estimator": None, "feature_extractor": None} if name == "depth" else {}
    return _pipeline(folder / name, FAMILIES[name][0], **more)


@torch.no_grad()
def theirs(folder, name, lora=None, **fields):
    """Final latents by diffusers, with a LoRA file and its weight."""
    if lora is None:
        pipeline = _shared_pipeline(folder, name)
    else:
        pipeline = _pipeline(folder / name, FAMILIES[name][0])
        pipeline.load_lora_weights(str(lora[0].parent), weight_name=lora[0].name)
        pipeline.fuse_lora(lora_scale=lora[1])
    named = {"seed": "generator", "steps": "num_inference_steps"}
    fields = {named.get(field, field): value for field, value in {**ASK, **fields}.items()}
    fields["generator"] = torch.Generator("cpu").manual_seed(fields["generator"])
    return pipeline(output_type="latent", **fields).images


def ours(folder, name, **fields):
    """Final latents by Limner."""
    return draw(_loaded(folder, name), **fields)


def draw(model, **fields):
    for field in {"image", "mask", "depth"} & fields.keys():
        fields[field] = image_source(fields[field])
    request = GenerationRequest.of({"prompt_syntax": "literal", "sampler": "ddim", **ASK, **fields})
    for call, _ in watch(picture_of(model.resolve(request).pictures[0], model.facts), model):
        if isinstance(call, DecodeLatents):
            latents = call.latents
    return latents


def assert_same(one, other):
    assert one.shape == other.shape
    assert other.std() > 0.1
    difference = float((one - other).abs().max() / other.std())
    assert difference <= TOLERANCE, f"they differ by {difference:.1e} of their standard deviation"


SIZE = {"width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize("negative", [NEGATIVE, None, ""])
def test_xl(folders, negative):
    assert_same(
        ours(folders, "xl", **SIZE, negative_prompt=negative),
        theirs(folders, "xl", **SIZE, negative_prompt=negative),
    )


def test_another_layer_of_both_text_encoders(folders):
    # Without guidance, as their clip_skip leaves the negative prompt where it is.
    assert_same(
        ours(folders, "xl", **SIZE, clip_skip=2, guidance_scale=1.0),
        theirs(folders, "xl", **SIZE, clip_skip=1, guidance_scale=1.0),
    )


def test_what_xl_is_told_of_sizes(folders):
    sizes = {"original_size": (300, 200), "target_size": (64, 96)}
    found = ours(folders, "xl", **SIZE, **sizes, crop=(5, 11))
    negative = {f"negative_{name}": size for name, size in sizes.items()}
    crops = {"crops_coords_top_left": (5, 11), "negative_crops_coords_top_left": (5, 11)}
    expected = theirs(folders, "xl", **SIZE, **sizes, **negative, **crops)
    assert_same(found, expected)


@pytest.mark.parametrize(("family", "empty"), [("xl", None), ("plain", ""), ("inpainting", "")])
def test_perp_neg_with_the_prompt_for_its_negative_goes_away_from_the_empty_one(
    folders, picture, mask, family, empty
):
    """Nothing of it is perpendicular, so what is left is guidance of diffusers' without a negative prompt."""
    fields = SIZE if family != "inpainting" else {"image": picture, "strength": 1.0}
    masks = {"mask": mask, "mask_blur": 0.0} if family == "inpainting" else {}
    found = ours(folders, family, **fields, **masks, negative_prompt=PROMPT, perp_neg=1.0)
    their_masks = {"mask_image": mask, **SIZE} if masks else {}
    assert_same(found, theirs(folders, family, **fields, **their_masks, negative_prompt=empty))


@pytest.mark.parametrize("family", ["xl", "plain"])
def test_cfg_pp_is_guidance_whose_scale_goes_with_the_step(folders, family):
    """diffusers' DDIM with guidance at scale / (1 - sigma_next / sigma), which its caller may set anew."""
    steps, scale = ASK["steps"], 1.5  # below 1 diffusers would leave guidance out
    scheduler = _loaded(folders, family).scheduler
    plan = make_plan(scheduler, steps, sampler="ddim")
    scales = [scale / (1.0 - after / before) for before, after in pairwise(plan.sigmas)]

    def set_scale(pipeline, step, timestep, kwargs):
        pipeline._guidance_scale = [*scales, 0.0][step + 1]
        return {}

    expected = theirs(folders, family, **SIZE, guidance_scale=scales[0], callback_on_step_end=set_scale)
    assert_same(ours(folders, family, **SIZE, sampler="ddim_cfg_pp", guidance_scale=scale), expected)


def test_a_picture_to_begin_with(folders, picture):
    for strength in (0.5, 1.0):
        assert_same(
            ours(folders, "img2img", image=picture, strength=strength),
            theirs(folders, "img2img", image=picture, strength=strength),
        )


def test_the_refiner_alone(folders, picture):
    scores = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.5}
    assert_same(
        ours(folders, "refiner", image=picture, strength=0.5, **scores),
        theirs(folders, "refiner", image=picture, strength=0.5, **scores),
    )


def test_the_refiner_takes_over(folders):
    base = theirs(folders, "xl", **SIZE, steps=10, denoising_end=0.7)
    sizes = {"original_size": (HEIGHT, WIDTH), "target_size": (HEIGHT, WIDTH)}
    expected = theirs(folders, "refiner", image=base, steps=10, denoising_start=0.7, **sizes)

    model, cache = str(folders / "xl"), ModelCache(precision="fp32")
    refiner = {"refiner": str(folders / "refiner"), "refiner_start": 0.7}
    ask = {**ASK, **SIZE, **refiner, "steps": 10, "sampler": "ddim", "prompt_syntax": "literal"}
    with Engine(cache) as engine:
        handle = engine.submit(GenerationRequest.of({**ask, "model": model}))
        plain = engine.submit(GenerationRequest.of({**ask, **dict.fromkeys(refiner), "model": model}))
        seen = list(handle)
        assert [progress.step for progress in seen if progress.picture is None] == list(range(1, 11))
        plain.result()
    assert_same(seen[-1].latents, expected)
    [alone] = load(model, precision="fp32").generate(**ask).images
    assert alone.tobytes() == seen[-1].picture.tobytes()
    assert alone.record.model["refiner_sha256"] == load(folders / "refiner").identity["sha256"]


def test_inpainting(folders, picture, mask):
    assert_same(
        ours(folders, "inpainting", image=picture, mask=mask, mask_blur=0.0),
        theirs(folders, "inpainting", image=picture, mask_image=mask, strength=1.0, **SIZE),
    )


def test_inpainting_with_a_model_that_is_not_made_for_it(folders, picture, mask):
    for strength in (0.7, 1.0):
        fields = {"image": picture, "strength": strength}
        assert_same(
            ours(folders, "plain inpainting", **fields, mask=mask, mask_blur=0.0),
            theirs(folders, "plain inpainting", **fields, mask_image=mask, **SIZE),
        )


def test_instruct_pix2pix(folders, picture):
    assert_same(
        ours(folders, "edit", image=picture, image_guidance_scale=1.7),
        theirs(folders, "edit", image=picture, image_guidance_scale=1.7),
    )


def test_depth(folders, picture, mask):
    depth = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None] / 255
    assert_same(
        ours(folders, "depth", image=picture, depth=mask, strength=0.7),
        theirs(folders, "depth", image=picture, depth_map=depth, strength=0.7),
    )


def test_a_model_that_guides_itself(folders):
    fields = {**SIZE, "negative_prompt": None, "guidance_scale": 4.5}
    found = ours(folders, "distilled", **fields)
    assert_same(found, theirs(folders, "distilled", **fields))
    assert not torch.equal(found, ours(folders, "distilled", **{**fields, "guidance_scale": 8.0}))


def test_what_a_model_needs_or_has_no_use_for(folders, picture, mask):
    with pytest.raises(InvalidRequest, match="a model for inpainting, needs image and mask"):
        ours(folders, "inpainting", image=picture)
    with pytest.raises(InvalidRequest, match="there is a mask, but no image"):
        ours(folders, "img2img", mask=mask)
    with pytest.raises(InvalidRequest, match="no image to begin with"):
        ours(folders, "xl", strength=0.5)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", ["img2img", "xl"])
def test_a_lora(folders, tmp_path, picture, family, form):
    """Of all attention in the U-Net, in the two forms that most files have.

    Text encoders are compared in test_adapters.py: diffusers does not load both at once with transformers 5.
    """
    targets = _loaded(folders, family).adapters.targets
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for (part, module), kohya in targets.kohya.items():
        if not re.search(r"to_[qkv]$|to_out\.0$", module):
            continue
        out, into = targets.shapes[part][f"{module}.weight"]
        name = kohya if form == "kohya" else f"{part}.{module}.lora"
        ends = ("lora_down", "lora_up") if form == "kohya" else ("down", "up")
        for end, shape in zip(ends, ((2, into), (out, 2)), strict=True):
            values = torch.randn(shape, generator=generator) / into**0.5
            tensors[f"{name}.{end}.weight"] = values
        if form == "kohya":
            tensors[f"{name}.alpha"] = torch.tensor(1.5)
    path = tmp_path / "lora.safetensors"
    write_tensors(path, tensors)
    fields = {"image": picture, "strength": 0.8} if family == "img2img" else SIZE
    plain = ours(folders, family, **fields)
    found = ours(folders, family, **fields, loras=(Lora(name=str(path), weight=0.7),))
    assert (found - plain).abs().max() > 0.1 * plain.std()
    assert_same(found, theirs(folders, family, lora=(path, 0.7), **fields))


HIRES = {"hires_scale": 2.0, "hires_steps": 3, "hires_strength": 0.5}  # of six steps, the last three


@pytest.mark.parametrize("upscaler", ["latent", "latent_nearest_exact", "latent_bicubic_antialiased"])
@pytest.mark.parametrize("family", ["img2img", "xl"])
def test_a_second_pass_at_a_larger_size(folders, family, upscaler):
    xl = "XL" if family == "xl" else ""
    first = _pipeline(folders / family, f"StableDiffusion{xl}Pipeline")
    mode, antialias = {
        "latent": ("bilinear", False),
        "latent_nearest_exact": ("nearest-exact", False),
        "latent_bicubic_antialiased": ("bicubic", True),
    }[upscaler]
    small = _drawn(first, **SIZE)
    larger = torch.nn.functional.interpolate(small, scale_factor=2, mode=mode, antialias=antialias)
    second = getattr(diffusers, f"StableDiffusion{xl}Img2ImgPipeline")(**first.components)
    expected = _drawn(second, image=larger, strength=0.5)
    assert_same(ours(folders, family, **SIZE, **HIRES, hires_upscaler=upscaler), expected)


def test_a_second_pass_of_the_decoded_picture(folders):
    """The enlarged pixels, rounded to 8 bits in both programs, are given to both second passes."""
    model = _loaded(folders, "img2img")
    fields = {**ASK, **SIZE, **HIRES, "sampler": "ddim", "prompt_syntax": "literal"}
    [picture] = model.resolve(GenerationRequest.of({**fields, "hires_upscaler": "lanczos"})).pictures
    for call, _ in watch(picture_of(picture, model.facts), model):
        if isinstance(call, EncodeImage):
            [picture] = to_images(call.image)
        elif isinstance(call, DecodeLatents):
            latents = call.latents
    first = _pipeline(folders / "img2img", "StableDiffusionPipeline")
    small = _drawn(first, **SIZE, output_type="pil")[0]
    larger = small.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(picture, np.int16) - np.asarray(larger, np.int16)).max() <= 2
    second = diffusers.StableDiffusionImg2ImgPipeline(**first.components)
    assert_same(latents, _drawn(second, image=picture, strength=0.5))


@pytest.mark.parametrize(("family", "fields"), [("edit", {}), ("depth", {"strength": 0.7})])
def test_what_a_model_is_shown_is_larger_in_the_second_pass(folders, picture, mask, family, fields):
    """The picture or depth map is read anew at the larger size."""
    shown = {"image": picture} if family == "edit" else {"image": picture, "depth": mask}
    model = _loaded(folders, family)
    ask = {**ASK, **HIRES, **fields, **{name: image_source(one) for name, one in shown.items()}}
    [picture] = model.resolve(
        GenerationRequest.of({**ask, "sampler": "ddim", "prompt_syntax": "literal"})
    ).pictures
    calls = [call for call, _ in watch(picture_of(picture, model.facts), model)]
    denoising = [call for call in calls if isinstance(call, Denoise)]
    sizes = [tuple(call.conditionings["positive"].channels.shape[2:]) for call in denoising]
    assert sizes == [(9, 13)] * (len(denoising) - 3) + [(18, 26)] * 3
    encoded = [tuple(call.image.shape[2:]) for call in calls if isinstance(call, EncodeImage)]
    assert encoded == [(HEIGHT, WIDTH)] + [(2 * HEIGHT, 2 * WIDTH)] * (family == "edit")


def test_the_refiner_takes_over_in_the_second_pass(folders):
    base = _pipeline(folders / "xl", "StableDiffusionXLPipeline")
    larger = torch.nn.functional.interpolate(_drawn(base, **SIZE), scale_factor=2, mode="bilinear")
    second = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components)
    handed = _drawn(second, image=larger, strength=0.5, num_inference_steps=10, denoising_end=0.8)
    refiner = _pipeline(folders / "refiner", "StableDiffusionXLImg2ImgPipeline")
    size = (2 * HEIGHT, 2 * WIDTH)
    sizes = {"original_size": size, "target_size": size}
    expected = _drawn(refiner, image=handed, num_inference_steps=10, denoising_start=0.8, **sizes)

    models = [_loaded(folders, name) for name in ("xl", "refiner")]
    fields = {**ASK, **SIZE, **HIRES, "hires_steps": 5, "refiner": "refiner", "refiner_start": 0.8}
    fields |= {"sampler": "ddim", "prompt_syntax": "literal"}
    [picture] = models[0].resolve(GenerationRequest.of(fields)).pictures
    models[1].check_refines(models[0], picture)
    generation, answer = picture_of(picture, *(model.facts for model in models)), None
    steps = []
    while not isinstance(call := generation.send(answer), DecodeLatents):
        [told] = models[call.role == "refiner"].answer([call])
        answer = told.value
        steps += [(call.step, call.role)] if isinstance(call, Denoise) else []
    assert steps == [(step, "refiner" if step > 9 else "model") for step in range(1, 12)]
    assert_same(call.latents, expected)


@pytest.mark.parametrize("family", ["img2img", "xl"])
def test_pictures_that_tile(folders, family):
    """As convolutions with padding_mode="circular" draw them."""
    theirs = _pipeline(folders / family, f"StableDiffusion{'XL' if family == 'xl' else ''}Pipeline")
    for network in (theirs.unet, theirs.vae.decoder):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.padding_mode = "circular"
    size = {"width": 128, "height": 64}
    latents = ours(folders, family, **size, tiling="xy")
    assert_same(latents, _drawn(theirs, **size))
    model = _loaded(folders, family)
    [answer] = model.answer([DecodeLatents(latents, tiling="xy")])
    with torch.no_grad():
        expected = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    assert_same(answer.value, expected)


def _pipeline(folder, name, **components):
    pipeline = getattr(diffusers, name).from_pretrained(folder, local_files_only=True, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _drawn(pipeline, output_type="latent", **fields):
    ask = {name: value for name, value in ASK.items() if name not in ("seed", "steps")}
    generator = torch.Generator("cpu").manual_seed(ASK["seed"])
    fields = {**ask, "num_inference_steps": ASK["steps"], "generator": generator, **fields}
    return pipeline(output_type=output_type, **fields).images


VISION = CLIPVisionConfig(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    projection_dim=24,
    projection=True,
)
FORMS = {
    "plain": ("linear", 24, {"tokens": 4}),
    "plus": ("resampler", 48, {"tokens": 5, "channels": 64, "heads": 1, "depth": 4}),
    "full-face": ("mlp", 48, {}),
}


@pytest.fixture(scope="module")
def image_prompts(tmp_path_factory, randomise):
    """A folder with an image encoder, and a maker of files of IP-Adapters in it."""
    folder = tmp_path_factory.mktemp("image prompts")
    encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION.to_dict()))
    randomise(encoder, 7)
    encoder.save_pretrained(folder / "image_encoder")

    def make(form, unet, seed=0):
        kind, channels, more = FORMS[form]
        layers = tuple(attended_layers(unet).values())
        adapter = IPAdapter(IPAdapterConfig(kind, channels, unet.cross_attention_dim, layers, **more))
        randomise(adapter, seed)
        path = folder / f"{form} {unet.cross_attention_dim} {seed}.safetensors"
        write_tensors(path, adapter.state_dict())
        return path

    return make


@pytest.mark.parametrize(
    ("family", "forms"),
    [
        ("img2img", ("full-face",)),
        ("img2img", ("plain", "plus")),
        ("plain inpainting", ("plus",)),
        ("xl", ("plus", "plain")),
    ],
)
def test_image_prompts(folders, image_prompts, picture, mask, family, forms):
    """Two pictures for the first adapter, one for the second, in other proportions than the encoder's."""
    tall = picture.rotate(90, expand=True)
    unet = FAMILIES[family][1]
    prompts = [
        (image_prompts(form, unet, seed), [tall] if seed else [picture, tall], 0.9 - 0.3 * seed)
        for seed, form in enumerate(forms)
    ]
    fields = theirs_too = SIZE if family == "xl" else {"image": picture, "strength": 0.8}
    if family == "plain inpainting":
        fields, theirs_too = ({**fields, name: mask, **SIZE} for name in ("mask", "mask_image"))
        fields["mask_blur"] = 0.0
    asked = [
        {"model": str(path), "images": tuple(map(image_source, pictures)), "weight": weight}
        for path, pictures, weight in prompts
    ]
    plain = ours(folders, family, **fields)
    found = ours(folders, family, **fields, image_prompts=asked)
    assert (found - plain).abs().max() > 0.1 * plain.std()
    theirs = _pipeline(folders / family, FAMILIES[family][0])
    files = [path for path, _, _ in prompts]
    theirs.load_ip_adapter(str(files[0].parent), subfolder="", weight_name=[path.name for path in files])
    theirs.set_ip_adapter_scale([weight for _, _, weight in prompts])
    given = [pictures for _, pictures, _ in prompts]
    assert_same(found, _drawn(theirs, **theirs_too, ip_adapter_image=given))
