"""Networks made ready for the CPU compute the same."""

import copy

import pytest
import torch
from torch import nn

from limner.backends.packed import PackedConv2d, can_pack, pack
from limner.nn.layers import attention, attention_in_blocks

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="PyTorch was built without oneDNN")
BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this processor packs no bfloat16"),
)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_every_network_gives_the_same(networks, dtype):
    """Sums go in another order; in bfloat16 what lies between two layers is rounded elsewhere."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
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


@pytest.mark.parametrize(
    ("rows", "keys", "heads"), [(1, 1, 1), (600, 77, 5), (64, 64, 4), (1030, 1030, 2), (3, 5000, 8)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_in_blocks_is_attention(rows, keys, heads, dtype, tolerance):
    q = torch.randn(2, rows, heads * 8)
    k, v = torch.randn(2, 2, keys, heads * 8).unbind()
    expected = attention(q, k, v, heads)
    assert distance(attention_in_blocks(q.to(dtype), k.to(dtype), v.to(dtype), heads), expected) < tolerance
