"""A module takes exactly the tensors it calls for, by whichever of their published names."""

import pytest
import torch
from torch import nn

from limner.errors import InvalidCheckpoint
from limner.weights.load import load_module, text_encoder_name, vae_name
from limner.weights.tensors import open_tensors, write_tensors


def build() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Embedding(5, 2)})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {name: t.half() for name, t in build().state_dict().items()})
    return path


def test_mapped_as_stored_or_cast(path):
    tensors = open_tensors(path)
    module = load_module(build, tensors, source=path)
    assert module["a"].weight.data_ptr() == tensors["a.weight"].data_ptr()
    assert module["a"].weight.dtype == torch.float16
    cast = load_module(build, tensors, source=path, dtype=torch.bfloat16)
    assert cast["a"].weight.dtype == torch.bfloat16
    assert torch.equal(cast["b"].weight, tensors["b.weight"].bfloat16())
    assert not any(p.is_meta for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())


def test_every_fault_is_named(path):
    tensors = open_tensors(path)
    tensors["c.weight"] = tensors.pop("a.weight")
    tensors["b.weight"] = tensors["b.weight"].t()
    tensors["a.bias"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InvalidCheckpoint) as caught:
        load_module(build, tensors, source=path)
    for part in (
        str(path),
        "1 missing: a.weight",
        "1 unexpected: c.weight",
        "2 wrong: a.bias is torch.int64 [4], expected floating [4]",
        "b.weight is floating [2, 5], expected floating [5, 2]",
    ):
        assert part in caught.value.message


def test_many_faults_are_counted(path):
    extra = {f"x.{i}": torch.ones(1) for i in range(11)} | {"\ud800\n" * 10_000: torch.ones(1)}
    with pytest.raises(InvalidCheckpoint, match=r"12 unexpected: .*x\.0, x\.1, .* and 2 more") as caught:
        load_module(build, open_tensors(path) | extra, source=path)
    assert len(caught.value.message) < 1000


def test_a_key_under_two_names_is_refused(path):
    tensors = open_tensors(path)
    names = {"old": "a.weight"}
    with pytest.raises(InvalidCheckpoint, match="1 unexpected: old"):
        load_module(
            build, tensors | {"old": tensors["a.weight"]}, source=path, names=lambda k: names.get(k, k)
        )


def test_a_buffer_without_values_is_a_fault_of_the_network(path):
    def with_buffer() -> nn.Module:
        module = build()
        module.register_buffer("positions", torch.arange(3), persistent=False)
        return module

    with pytest.raises(AssertionError, match="positions is in no file"):
        load_module(with_buffer, open_tensors(path), source=path)


def test_published_names():
    assert (
        vae_name("decoder.mid_block.attentions.0.proj_attn.bias")
        == "decoder.mid_block.attentions.0.to_out.0.bias"
    )
    assert vae_name("decoder.mid_block.resnets.0.query.bias") == "decoder.mid_block.resnets.0.query.bias"
    assert text_encoder_name("final_layer_norm.bias") == "text_model.final_layer_norm.bias"
    assert text_encoder_name("text_model.final_layer_norm.bias") == "text_model.final_layer_norm.bias"
    assert text_encoder_name("text_projection.weight") == "text_projection.weight"
    assert text_encoder_name("embeddings.position_ids") is None
    assert text_encoder_name("vision_model.post_layernorm.weight") == "vision_model.post_layernorm.weight"
