"""LoRA in training: it begins as nothing, trains alone, and is written as it can be read."""

import pytest
import torch

from limner.adapters.adapter import patched_weights, read_adapter
from limner.adapters.trainable import LoRALayer, attach_lora, detach_lora, write_lora

PATTERN = r".*\.(to_[qkv]|to_out\.0|proj_in|conv1|downsamplers\.0\.conv|time_emb_proj)"
TEXT = r".*self_attn\.[qkv]_proj"


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.tensor([7, 500]), torch.randn(2, 5, 32)


def randomise(layers: dict[str, LoRALayer]) -> None:
    torch.manual_seed(2)
    for layer in layers.values():
        torch.nn.init.normal_(layer.up.weight, std=0.5)


def test_it_begins_as_nothing_and_trains_alone(networks, inputs):
    network = networks["unet"]
    run = torch.no_grad()(lambda: network(*inputs))
    plain = run()
    layers = attach_lora(network, PATTERN, rank=2, alpha=4.0)
    assert torch.equal(run(), plain)
    trained = {
        id(p) for layer in layers.values() for side in (layer.down, layer.up) for p in side.parameters()
    }
    assert {id(p) for p in network.parameters() if p.requires_grad} == trained
    assert len(trained) == 2 * len(layers) > 20

    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        network(*inputs).square().mean().backward()
        optimizer.step()
    assert not torch.equal(run(), plain)
    assert all(torch.equal(p, frozen[name]) for name, p in network.named_parameters() if name in frozen)
    assert all(layer.up.weight.abs().max() > 0 for layer in layers.values())

    detach_lora(network, layers)
    assert torch.equal(run(), plain)
    assert not any(isinstance(module, LoRALayer) for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_written_reads_as_it_was(networks, tiny, inputs, tmp_path, dtype):
    network, text = networks["unet"], networks["text_encoder"]
    layers = {"unet": attach_lora(network, PATTERN, rank=2, alpha=3.0)}
    layers["text_encoder"] = attach_lora(text, TEXT, rank=4, alpha=1.0)
    for part in layers.values():
        randomise(part)
        for layer in part.values():
            layer.down.weight.data, layer.up.weight.data = (
                side.weight.data.to(dtype).float() for side in (layer.down, layer.up)
            )
    tokens = torch.tensor([[0, 5, 513]])
    trained, trained_text = network(*inputs), text(tokens)[0]
    write_lora(tmp_path / "mine.safetensors", layers, tiny, metadata={"ss_network_dim": "2"}, dtype=dtype)
    detach_lora(network, layers["unet"])
    detach_lora(text, layers["text_encoder"])

    adapter = read_adapter(tmp_path / "mine.safetensors", tiny)
    assert adapter.unapplied == ()
    for part, run, expected in (
        ("unet", lambda n, w: torch.func.functional_call(n, w, inputs), trained),
        ("text_encoder", lambda n, w: torch.func.functional_call(n, w, (tokens,))[0], trained_text),
    ):
        base = dict(networks[part].named_parameters()).__getitem__
        patched = patched_weights([(adapter, {part: 1.0})], part, base)
        assert len(patched) == len(layers[part])
        # Two products instead of one: float32 through some twenty layers.
        torch.testing.assert_close(run(networks[part], patched), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(run(networks[part], {}), expected, atol=1e-2)


def test_a_layer_of_half_precision_is_trained_in_float32():
    layer = LoRALayer(torch.nn.Linear(8, 8).bfloat16(), rank=2, alpha=2.0)
    y = layer(torch.randn(3, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.up.weight.grad.dtype == torch.float32
    assert layer.base.weight.grad is None


def test_nothing_and_other_layers_are_refused(networks):
    with pytest.raises(ValueError, match="no module"):
        attach_lora(networks["unet"], "to_q", rank=2, alpha=1.0)
    with pytest.raises(ValueError, match="GroupNorm"):
        attach_lora(networks["unet"], "conv_norm_out", rank=2, alpha=1.0)
