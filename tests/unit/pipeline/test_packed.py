"""Networks made ready for the CPU compute the same."""

import copy

import pytest
import torch
from torch import nn

from limner.nn.layers import attention, attention_in_blocks
from limner.pipeline.backends.packed import PackedConv2d, can_pack, pack

pytestmark = pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_network_gives_the_same(networks, dtype, tolerance):
    """Sums go in another order; in bfloat16 what lies between two layers is rounded elsewhere."""
    inputs = {
        "unet": (torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 900]), torch.randn(3, 16, 32)),
        "text_encoder": (torch.randint(0, 512, (2, 16)),),
    }
    for name, arrays in inputs.items():
        plain = networks[name].eval().requires_grad_(False)
        expected = plain(*arrays)
        arrays = tuple(array.to(dtype) if array.is_floating_point() else array for array in arrays)
        given = pack(copy.deepcopy(plain), dtype)(*arrays)
        assert distance(given, expected) < tolerance
    vae = networks["vae"].eval().requires_grad_(False)
    packed = pack(copy.deepcopy(vae), dtype)
    latents, images = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16)
    assert distance(packed.decode(latents.to(dtype)), vae.decode(latents)) < tolerance
    assert distance(packed.encode(images.to(dtype)), vae.encode(images)) < tolerance


def distance(given, expected):
    """The root mean square of what differs, relative."""
    given, expected = (x[0] if isinstance(x, tuple) else x for x in (given, expected))
    return float((given.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def test_nothing_is_left_unpacked(networks):
    kinds = {type(module) for module in pack(networks["unet"], torch.float32).modules()}
    assert not kinds & {nn.Linear, nn.Conv2d}


def test_a_convolution_keeps_weights_for_two_sizes_and_its_bits_for_all():
    plain = nn.Conv2d(192, 192, 3, padding=1).requires_grad_(False)
    packed = PackedConv2d(plain)
    sizes = [(8, 8), (16, 16), (8, 24), (8, 8), (5, 7)]
    pictures = [torch.randn(1, 192, *size) for size in sizes]
    for picture in pictures:
        assert torch.allclose(packed(picture), plain(picture), atol=1e-4)
        assert len(packed.weights) <= 2
    fresh = [PackedConv2d(plain)(picture) for picture in pictures]
    again = [packed(picture) for picture in pictures]
    assert all(torch.equal(one, other) for one, other in zip(fresh, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [8, 40])
def test_rows_have_the_same_bits_in_any_company(networks, dtype, side):
    """Maps of 8x8 and of 40x40, which PyTorch's kernels take in different ways."""
    unet, vae = (pack(networks[name].eval().requires_grad_(False), dtype) for name in ("unet", "vae"))
    x, context = torch.randn(5, 4, side, side).to(dtype), torch.randn(5, 16, 32).to(dtype)
    timesteps = torch.tensor([1.0, 200.0, 500.0, 700.0, 900.0])
    together, pictures = unet(x, timesteps, context), vae.decode(x)
    for some in (slice(0, 1), slice(1, 3), slice(2, 5)):
        assert torch.equal(unet(x[some], timesteps[some], context[some]), together[some])
        assert torch.equal(vae.decode(x[some]), pictures[some])


@pytest.mark.parametrize(
    ("rows", "keys", "heads"), [(1, 1, 1), (600, 77, 5), (64, 64, 4), (1030, 1030, 2), (3, 5000, 8)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_in_blocks_is_attention(rows, keys, heads, dtype, tolerance):
    q = torch.randn(2, rows, heads * 8)
    k, v = torch.randn(2, 2, keys, heads * 8).unbind()
    expected = attention(q, k, v, heads)
    assert distance(attention_in_blocks(q.to(dtype), k.to(dtype), v.to(dtype), heads), expected) < tolerance
