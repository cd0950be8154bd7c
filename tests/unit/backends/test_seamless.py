"""Pictures that tile: one moved around its edges is drawn the same, by networks that share all weights."""

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from limner.backends.openvino import OpenVINOBackend
from limner.backends.packed import can_pack, pack
from limner.backends.seamless import seamless
from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.errors import InvalidRequest
from limner.generation.calls import DecodeLatents, EncodeImage
from limner.model import tiles
from limner.nn.controlnet import ControlNetModel
from limner.request import GenerationRequest

FORMS = {
    "plain": (lambda network: network, torch.float32, 1e-5),
    "packed": (lambda network: pack(network, torch.float32), torch.float32, 1e-5),
    "bf16": (lambda network: pack(network, torch.bfloat16), torch.bfloat16, 6e-2),
}


def far(one, other):
    return float((one.float() - other.float()).abs().max() / other.float().std())


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_moved_around_the_edges_is_drawn_as_well(networks, form, axes):
    make, dtype, tolerance = FORMS[form]
    if form != "plain" and not can_pack(dtype):
        pytest.skip("this processor or PyTorch cannot pack weights")
    unet, vae = (make(networks[name].eval().requires_grad_(False)) for name in ("unet", "vae"))
    x, context = torch.randn(1, 4, 8, 12).to(dtype), torch.randn(1, 16, 32).to(dtype)
    image = torch.randn(1, 3, 16, 24).to(dtype)
    time = torch.tensor([500.0])
    by = {"x": (0, 4), "y": (2, 0), "xy": (2, 4)}[axes]  # multiples of what the U-Net makes smaller
    runs = (
        (x, 1, lambda unet, vae, x: unet(x, time, context)),
        (x, 2, lambda unet, vae, x: vae.decode(x)),
        (image, 1, lambda unet, vae, x: vae.encode(x)[0].repeat_interleave(2, 2).repeat_interleave(2, 3)),
    )
    joined = seamless(unet, axes), seamless(vae, axes)
    for given, scale, run in runs:
        moved = run(*joined, given.roll(by, (2, 3)))
        assert far(moved, run(*joined, given).roll([scale * n for n in by], (2, 3))) < tolerance
        plain = run(unet, vae, given)
        assert far(run(unet, vae, given.roll(by, (2, 3))), plain.roll([scale * n for n in by], (2, 3))) > 0.1


def test_control_networks_join_the_ends_too(networks):
    """A picture moved around its edges steers the same, moved."""
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(networks["unet"], conditioning_embedding_out_channels=(8, 16)).eval()
    for parameter in network.parameters():  # its last layers begin with zeros
        torch.nn.init.normal_(parameter, std=0.1)
    x, context, time = torch.randn(1, 4, 8, 12), torch.randn(1, 16, 32), torch.tensor([500.0])
    image, by = torch.rand(1, 3, 16, 24), (2, 4)

    @torch.no_grad()
    def residuals(network, x, image):
        return network(x, time, context, network.embed(image))

    joined = seamless(network, "xy")
    moved = residuals(joined, x.roll(by, (2, 3)), image.roll([2 * n for n in by], (2, 3)))
    for one, other in zip(moved, residuals(joined, x, image), strict=True):
        shorter = x.shape[2] // other.shape[2]
        assert far(one, other.roll([n // shorter for n in by], (2, 3))) < 1e-4
    plain = residuals(network, x, image)
    assert all(far(one, other) > 0.01 for one, other in zip(residuals(joined, x, image), plain, strict=True))


def test_an_edge_that_is_not_to_join_is_as_it_was(networks):
    """Along one axis a network pads from the opposite edge, along the other with zeros."""
    vae = networks["vae"].eval()
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        across = seamless(vae, "x").decode(latents)
        wide = vae.decoder.conv_in(vae.post_quant_conv(torch.cat([latents[..., -1:], latents], dim=3)))
        first = seamless(vae, "x").decoder.conv_in(vae.post_quant_conv(latents))
    assert torch.allclose(first[..., :4], wide[..., 1:5], atol=1e-5)
    assert far(across.roll(1, 2), across) > 0.1


def test_weights_are_shared_and_nothing_changes(networks):
    unet = networks["unet"].eval().requires_grad_(False)
    if can_pack(torch.float32):
        unet = pack(unet, torch.float32)
    x, context, time = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 32), torch.tensor([500.0])
    modules = dict(unet.named_modules())
    with torch.no_grad():
        before = unet(x, time, context)
        joined = seamless(unet, "xy")
        assert far(joined(x, time, context), before) > 0.01
        assert torch.equal(unet(x, time, context), before)
    assert dict(unet.named_modules()) == modules
    theirs = {id(parameter) for parameter in unet.parameters()}
    assert {id(parameter) for parameter in joined.parameters()} == theirs
    linear = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert joined.get_submodule(linear) is not None
    assert joined.get_submodule(linear).weight is unet.get_submodule(linear).weight
    assert copy.copy(joined).conv_in.then.weights is unet.conv_in.weights if can_pack(torch.float32) else True


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


ASK = {"prompt": "a red house", "width": 64, "height": 64, "steps": 3, "seed": 1}


def test_tiling_and_not_at_the_same_time(model):
    tilings = [None, "xy", "x", None, "xy", "y"]
    requests = [GenerationRequest(**ASK, exact=True, tiling=tiling) for tiling in tilings]
    expected = [model.generate(request=request).images[0].tobytes() for request in requests]
    assert len(set(expected)) == 4
    with Engine(model) as engine:
        handles = [engine.submit(request) for request in requests]
        shared = [engine.submit(request.model_copy(update={"exact": False})) for request in requests]
        assert [handle.result().images[0].tobytes() for handle in handles] == expected
        assert all(handle.result() for handle in shared)


def test_a_second_pass_tiles_too(model):
    image = model.generate(**ASK, tiling="xy", hires_scale=1.5, hires_upscaler="lanczos").images[0]
    assert image.size == (96, 96)


def test_openvino_refuses_them():
    """Its graphs are traced with the padding that they have."""
    latents = torch.zeros(1, 4, 8, 8)
    for call in (DecodeLatents(latents, tiling="x"), EncodeImage(latents[:, :3], tiling="xy")):
        assert OpenVINOBackend.refusal(None, call) == "does not support tiling"
        assert OpenVINOBackend.refusal(None, replace(call, tiling=None)) is None


def test_sizes_that_cannot_tile_are_refused(model):
    with pytest.raises(InvalidRequest, match="width is 66"):
        model.generate(**{**ASK, "width": 66}, tiling="y")
    levels = len(model.checkpoint.unet_config.block_out_channels)
    assert levels == 2  # so that multiples of 8 are fine here
    assert model.generate(**{**ASK, "width": 72}, tiling="xy").images[0].size == (72, 64)


def test_a_refiner_that_halves_more_often_cannot_draw_all_sizes_that_tile(model):
    config = model.checkpoint.unet_config
    kinds = {
        f"{way}_block_types": (f"CrossAttn{way.title()}Block2D", *[f"{way.title()}Block2D"] * 3)
        for way in ("down", "up")
    }
    deeper = replace(config, block_out_channels=(config.block_out_channels[0],) * 4, **kinds)
    parts = {**model.checkpoint.parts, "unet": replace(model.checkpoint.parts["unet"], config=deeper)}
    refiner = replace(model, checkpoint=replace(model.checkpoint, parts=parts))
    asked = GenerationRequest(**{**ASK, "width": 72}, tiling="x", refiner="r", refiner_start=0.5)
    with pytest.raises(InvalidRequest, match=r"for the refiner the width is 72; to tile .* multiple of 16"):
        refiner.check_refines(model, model.resolve(asked).pictures[0])
    [picture] = model.resolve(asked.model_copy(update={"tiling": "y"})).pictures
    refiner.check_refines(model, picture)


def test_a_part_of_a_picture_has_no_ends_that_meet(model):
    fields = {"image": Image.new("RGB", (64, 64)), "mask": Image.new("L", (64, 64), 255), "tiling": "x"}
    with pytest.raises(InvalidRequest, match="tiling needs the whole"):
        model.generate(**ASK, **fields, inpaint_area="masked")


@pytest.mark.parametrize("size", [(40, 24), (40, 10), (10, 40)])
def test_tiles_of_the_autoencoder_go_around(model, monkeypatch, size):
    """Where a side is longer than a tile the tiles see to it, and the network where it is not."""
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "_OVERLAP", 6)
    latents = torch.randn(1, 4, *size)

    def decoded(latents, tiled=True, tiling="xy"):
        [answer] = model.answer([DecodeLatents(latents, tiled=tiled, tiling=tiling)])
        return answer.value

    number = [-(-side // 10) if side > 16 else side for side in size]
    steps = [side // n if side > 16 else 3 for side, n in zip(size, number, strict=True)]  # from tile to tile
    moved = decoded(latents.roll(steps, (2, 3)))
    assert far(moved, decoded(latents).roll([2 * step for step in steps], (2, 3))) < 1e-4
    assert far(decoded(latents.roll(steps, (2, 3)), tiling=None), moved) > 0.1

    image = torch.rand(1, 3, 2 * size[0], 2 * size[1])
    pictures = image.roll([2 * step for step in steps], (2, 3)), image
    [one], [other] = (model.answer([EncodeImage(x, tiled=True, tiling="xy")]) for x in pictures)
    for moment, expected in zip(one.value, other.value, strict=True):
        assert far(moment, expected.roll(steps, (2, 3))) < 1e-4
