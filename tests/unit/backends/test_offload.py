"""Blocks whose weights are on the device only while they run, with copies in place of a device."""

import copy

import pytest
import torch

from limner.backends import offload
from limner.backends.offload import LARGEST, blocks, offload_blocks
from limner.backends.seamless import seamless


class FakeDevice:
    """Copies weights, and knows which copies are alive."""

    def __init__(self):
        self.brought = 0

    def bring(self, weight):
        self.brought += weight.numel()
        return weight.clone()


def inputs(name):
    if name == "text_encoder":
        return (torch.randint(0, 512, (2, 16)),)
    if name == "unet":
        return torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0]), torch.randn(2, 16, 32)
    return (torch.randn(1, 4, 8, 8),)


@pytest.mark.parametrize(
    ("name", "largest"),
    # A text encoder reads its table of positions from outside, so that its embeddings must stay together.
    [*((name, size) for name in ("unet", "vae") for size in (1, 1000, LARGEST)), ("text_encoder", LARGEST)],
)
def test_each_block_is_there_while_it_runs_and_no_other(networks, name, largest, monkeypatch):
    monkeypatch.setattr(offload, "LARGEST", largest)
    network = networks[name].eval().requires_grad_(False)
    run = network.decode if name == "vae" else network
    given = inputs(name)
    with torch.inference_mode():
        expected = run(*given)
    waiting = {weight: weight.data_ptr() for weight in network.parameters()}
    device, there = FakeDevice(), []

    def look(block, *_):
        away = [weight for weight in network.parameters() if weight.data_ptr() != waiting[weight]]
        there.append(len(away))
        assert {id(weight) for weight in away} == {id(weight) for weight in block.parameters()}

    parts = list(blocks(network))
    offload_blocks(network, device.bring)
    for block in parts:
        block.register_forward_pre_hook(look)
    for _ in range(2):
        with torch.inference_mode():
            found = run(*given)
        for one, other in zip(
            *((x,) if isinstance(x, torch.Tensor) else x for x in (found, expected)), strict=True
        ):
            assert torch.equal(one, other)
    assert max(there) > 0
    assert {weight: weight.data_ptr() for weight in network.parameters()} == waiting
    if name != "vae":  # whose encoder did not run
        assert device.brought == 2 * sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("largest", [1, 1000, LARGEST])
def test_every_weight_is_of_one_block(networks, largest, monkeypatch):
    monkeypatch.setattr(offload, "LARGEST", largest)
    for network in networks.values():
        found = [id(weight) for block in blocks(network) for weight in block.parameters()]
        assert sorted(found) == sorted(id(weight) for weight in network.parameters())


def test_weights_leave_where_a_block_fails(networks):
    unet = networks["unet"].eval()
    waiting = [weight.data_ptr() for weight in unet.parameters()]
    offload_blocks(unet, torch.clone)
    with pytest.raises(RuntimeError), torch.inference_mode():
        unet(torch.randn(1, 3, 8, 8), torch.tensor([1.0]), torch.randn(1, 16, 32))
    assert [weight.data_ptr() for weight in unet.parameters()] == waiting


def test_networks_that_share_blocks_bring_them_once(networks):
    """As one that is adapted, or seamless, shares those of the model's own."""
    unet = networks["unet"].eval().requires_grad_(False)
    plain, given = copy.deepcopy(unet), inputs("unet")
    device = FakeDevice()
    offload_blocks(unet, device.bring)
    other = copy.copy(unet)
    other._modules = {**unet._modules, "conv_in": copy.deepcopy(plain.conv_in)}
    offload_blocks(other, device.bring)
    whole = sum(weight.numel() for weight in unet.parameters())
    with torch.inference_mode():
        assert torch.equal(other(*given), plain(*given))
        assert device.brought == whole
        assert torch.equal(seamless(unet, "xy")(*given), seamless(plain, "xy")(*given))
        assert device.brought == 2 * whole
