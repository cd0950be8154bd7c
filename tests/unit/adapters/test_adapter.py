"""Reading adapter files for a small model, and applying them."""

import dataclasses
import json
import random
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import Adapter, patched_weights, read_adapter
from limner.errors import InvalidCheckpoint, LimnerError, PickleRefused, UnsupportedModel
from limner.weights.tensors import open_tensors

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
UNDERSCORED = QUERY.replace(".", "_")
C, R = 32, 2  # channels of both networks, rank


def lora(module: str, up: str = ".lora_up.weight", down: str = ".lora_down.weight"):
    return {f"{module}{up}": (C, R), f"{module}{down}": (R, C)}


NAMED = {
    "kohya": (lora(f"lora_unet_{UNDERSCORED}"), "unet", QUERY),
    "kohya, single file": (
        lora("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
        "unet",
        QUERY,
    ),
    "kohya, an index at the end": (lora(f"lora_unet_{OUT.replace('.', '_')}"), "unet", OUT),
    "kohya, text": (lora(f"lora_te_{TEXT.replace('.', '_')}"), "text_encoder", TEXT),
    "kohya, first of two texts": (lora(f"lora_te1_{TEXT.replace('.', '_')}"), "text_encoder", TEXT),
    "lycoris": (lora(f"lycoris_{UNDERSCORED}"), "unet", QUERY),
    "peft": (lora(f"unet.{QUERY}", ".lora_B.weight", ".lora_A.weight"), "unet", QUERY),
    "peft, named adapter": (
        lora(f"unet.{QUERY}", ".lora_B.default_0.weight", ".lora_A.default_0.weight"),
        "unet",
        QUERY,
    ),
    "peft, a model of its own": (
        lora(f"base_model.model.{QUERY}", ".lora_B.weight", ".lora_A.weight"),
        "unet",
        QUERY,
    ),
    "peft, text": (
        lora(f"text_encoder.{TEXT}", ".lora_B.weight", ".lora_A.weight"),
        "text_encoder",
        TEXT,
    ),
    "transformers 5": (
        lora(f"text_encoder.{TEXT.removeprefix('text_model.')}", ".lora_B.weight", ".lora_A.weight"),
        "text_encoder",
        TEXT,
    ),
    "diffusers": (lora(f"unet.{QUERY}", ".lora.up.weight", ".lora.down.weight"), "unet", QUERY),
    "diffusers, text": (
        lora(f"text_encoder.{TEXT}", ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
        "text_encoder",
        TEXT,
    ),
    "processors": (
        lora(
            QUERY.replace(".to_q", ".processor.to_q"),
            "_lora.up.weight",
            "_lora.down.weight",
        ),
        "unet",
        QUERY,
    ),
    "processors, prefixed": (
        lora(
            "unet." + OUT.replace(".to_out.0", ".processor.to_out"),
            "_lora.up.weight",
            "_lora.down.weight",
        ),
        "unet",
        OUT,
    ),
    "ComfyUI": (lora("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"), "unet", QUERY),
    "ComfyUI, A and B": (
        lora(
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            ".lora_B.weight",
            ".lora_A.weight",
        ),
        "unet",
        QUERY,
    ),
    "ComfyUI, text": (lora(f"text_encoders.clip_l.transformer.{TEXT}"), "text_encoder", TEXT),
    "ComfyUI, text of 2.x": (lora(f"text_encoders.clip_h.transformer.{TEXT}"), "text_encoder", TEXT),
    "OneTrainer": (lora("unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q"), "unet", QUERY),
    "OneTrainer, text": (lora(f"clip_l.{TEXT}"), "text_encoder", TEXT),
    "cloneofsimo": (lora("unet:3", ":up", ":down"), "unet", OUT),
    "cloneofsimo, text": (lora("text_encoder:6", ":up", ":down"), "text_encoder", TEXT),
}


@pytest.mark.parametrize("form", NAMED)
def test_a_name_finds_its_module(tiny, random_file, form):
    values, part, module = NAMED[form]
    path = random_file(values)
    adapter = read_adapter(path, tiny)
    assert adapter.unapplied == ()
    [(name, patch)] = adapter.patches[part].items()
    assert name == f"{module}.weight"
    tensors = open_tensors(path)
    [up], [down] = (
        [tensors[key] for key in tensors if re.search(side, key)] for side in ("up|_B", "down[.:]|down$|_A")
    )
    torch.testing.assert_close(patch.change(torch.zeros(C, C)), up @ down)


def test_comfyui_and_onetrainer_name_both_text_encoders_of_xl(published):
    names = published("sdxl-base").names
    for prefix in ("text_encoders.clip_{}.transformer.", "clip_{}."):
        assert names[f"{prefix.format('l')}{TEXT}"] == ("text_encoder", TEXT)
        assert names[f"{prefix.format('g')}{TEXT}"] == ("text_encoder_2", TEXT)


def test_both_real_files_are_applied_whole(reference, published):
    targets = published("sd15")
    order = (reference / "lora" / "real" / "cloneofsimo-index-order.tsv").read_text().splitlines()
    for file, rank, words in (("analog_svd_rank4", 4, 0), ("lora_disney", 1, 2)):
        path = reference / "lora" / "real" / f"{file}.safetensors"
        adapter, tensors = read_adapter(path, targets), open_tensors(path)
        assert adapter.name == file
        assert adapter.unapplied == ()
        assert [embedding.name for embedding in adapter.embeddings] == ["<s1>", "<s2>"][:words]
        assert sum(len(patches) for patches in adapter.patches.values()) * 2 + words == len(tensors)
        checked = 0
        for line in order:
            key, module, _ = line.split("\t")
            part, index = key.split(":")
            patch = adapter.patches[part][f"{module}.weight"]
            if part == "unet":
                assert torch.equal(patch.up, tensors[f"unet:{index}:up"])
                assert torch.equal(patch.down, tensors[f"unet:{index}:down"])
                checked += 1
            assert patch.down.shape[0] == rank
            assert patch.scale == 1
        assert checked > 100


def test_text_layers_are_numbered_as_they_were_registered(tiny, random_file):
    values = {
        key: shape for i in range(8) for key, shape in lora(f"text_encoder:{i}", ":up", ":down").items()
    }
    path = random_file(values)
    patches, tensors = read_adapter(path, tiny).patches["text_encoder"], open_tensors(path)
    for i, projection in enumerate(("k_proj", "v_proj", "q_proj", "out_proj") * 2):
        name = f"text_model.encoder.layers.{i // 4}.self_attn.{projection}.weight"
        assert torch.equal(patches[name].up, tensors[f"text_encoder:{i}:up"])


def test_numbers_depend_on_the_classes_that_were_searched(tiny, random_file):
    values = lora("unet:4", ":up", ":down")
    adapter = read_adapter(random_file(values, {"unet": '["CrossAttention"]'}), tiny)
    assert list(adapter.patches["unet"]) == [QUERY.replace("attn1", "attn2") + ".weight"]
    values = {"unet:4:up": (8 * C, R), "unet:4:down": (R, C)}
    adapter = read_adapter(random_file(values, {"unet": '["CrossAttention", "GEGLU"]'}), tiny)
    assert list(adapter.patches["unet"]) == [QUERY.replace("attn1.to_q", "ff.net.0.proj") + ".weight"]
    with pytest.raises(UnsupportedModel, match="ResnetBlock2D"):
        read_adapter(random_file(values, {"unet": '["CrossAttention", "ResnetBlock2D"]'}), tiny)
    for broken in ("[", "3", '[["GEGLU"]]', '{"GEGLU": 1'):
        with pytest.raises(InvalidCheckpoint, match="JSON list"):
            read_adapter(random_file(values, {"unet": broken}), tiny)


def test_rank_in_the_metadata_must_be_that_of_the_tensors(tiny, random_file):
    values = lora("unet:3", ":up", ":down")
    assert read_adapter(random_file(values, {"unet:3:rank": str(R)}), tiny).patches
    for rank in ("3", "x"):
        with pytest.raises(InvalidCheckpoint):
            read_adapter(random_file(values, {"unet:3:rank": rank}), tiny)


PEFT = lora(f"unet.{QUERY}", ".lora_B.weight", ".lora_A.weight")
CONFIGS = {
    "alpha": ({"unet.r": R, "unet.lora_alpha": 8}, 8 / R),
    "root": ({"unet.r": R, "unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / R**0.5),
    "pattern": ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 3}}, 3 / R),
    "exact pattern": ({"unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{QUERY}": 3}}, 3 / R),
    "pattern of another": ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"^to_q": 3, "o_q": 5}}, 8 / R),
    "of another part": ({"text_encoder.lora_alpha": 8}, 1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_scale_by_metadata_of_peft(tiny, random_file, name):
    config, scale = CONFIGS[name]
    adapter = read_adapter(random_file(PEFT, {"lora_adapter_metadata": json.dumps(config)}), tiny)
    assert adapter.patches["unet"][f"{QUERY}.weight"].scale == pytest.approx(scale)


def test_scale_by_the_config_beside_a_file_of_peft(tiny, random_file, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": R, "lora_alpha": 8}))
    own = lora(f"base_model.model.{QUERY}", ".lora_B.weight", ".lora_A.weight")
    for values, scale in ((own, 8 / R), (PEFT, 1)):
        adapter = read_adapter(random_file(values, name="adapter_model.safetensors"), tiny)
        assert adapter.patches["unet"][f"{QUERY}.weight"].scale == scale


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"unet.lora_alpha": "8"}',
        f'{{"unet.lora_alpha": 1{"0" * 400}}}',
        '{"unet.lora_alpha": 8, "unet.alpha_pattern": {"(a+)+b": 1}}',
        '{"unet.lora_alpha": 8, "unet.alpha_pattern": [1]}',
    ],
)
def test_metadata_that_says_no_scale_is_refused(tiny, random_file, text):
    with pytest.raises(InvalidCheckpoint):
        read_adapter(random_file(PEFT, {"lora_adapter_metadata": text}), tiny)


def test_alpha_of_a_module_comes_before_the_metadata(tiny, random_file):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})}
    adapter = read_adapter(random_file(PEFT | {f"unet.{QUERY}.alpha": 1.0}, metadata), tiny)
    assert adapter.patches["unet"][f"{QUERY}.weight"].scale == 1 / R


def test_what_belongs_to_no_module_is_named(tiny, random_file):
    strange = {
        "lora_te_text_model_encoder_layers_99_mlp_fc1.lora_up.weight": (C, R),
        f"lora_unet_{UNDERSCORED}.oft_blocks": (4, 4),
        "unheard_of": (1,),
    }
    adapter = read_adapter(random_file(lora(f"lora_unet_{UNDERSCORED}") | strange), tiny)
    assert set(adapter.unapplied) == strange.keys()
    [warning] = adapter.warnings
    assert warning.startswith("3 tensors of the adapter adapter have no effect")
    assert all(key in warning for key in strange)


def test_words_come_along(tiny, random_file):
    values = {
        **lora(f"lora_unet_{UNDERSCORED}"),
        "<s1>": (C,),
        "bundle_emb.lamp.string_to_param.*": (3, C),
        "bundle_emb.tree.emb_params": (2, C),
    }
    adapter = read_adapter(random_file(values, {"<s1>": "<embed>"}), tiny)
    shapes = {e.name: tuple(e.vectors["text_encoder"].shape) for e in adapter.embeddings}
    assert shapes == {"<s1>": (1, C), "lamp": (3, C), "tree": (2, C)}
    assert adapter.unapplied == ()
    with pytest.raises(UnsupportedModel, match="vectors of 33 channels"):
        read_adapter(random_file({"bundle_emb.lamp.emb_params": (3, C + 1)}), tiny)


FOREIGN = {
    "its metadata": ({"elsewhere.lora_up.weight": (C, R)}, {"modelspec.architecture": "flux-1-dev/lora"}),
    "Stable Diffusion XL": ({"unet.elsewhere.attn2.to_k.lora_A.weight": (R, 2048)}, None),
    "Stable Diffusion 2.x": ({"lora_unet_elsewhere_attn2_to_v.lora_down.weight": (R, 1024)}, None),
    "OFT": ({f"lora_unet_{UNDERSCORED}.oft_blocks": (2, 4, 4)}, None),
    "a diffusion transformer": ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (R, C)}, None),
    "diffusion transformer": ({"transformer.elsewhere.lora_A.weight": (R, C)}, None),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_a_file_for_another_family_is_refused_by_name(tiny, random_file, family):
    values, metadata = FOREIGN[family]
    with pytest.raises(UnsupportedModel, match="is not an adapter for this model") as caught:
        read_adapter(random_file(values, metadata), tiny)
    assert ("flux-1-dev/lora" if metadata else family) in caught.value.hint


def test_a_file_for_a_family_of_like_names_is_refused(tiny, random_file):
    module = QUERY.replace("attn1.to_q", "attn2.to_k")
    path = random_file({f"unet.{module}.lora_B.weight": (C, R), f"unet.{module}.lora_A.weight": (R, 2048)})
    with pytest.raises(UnsupportedModel, match="for Stable Diffusion XL, whose texts have 2048") as caught:
        read_adapter(path, tiny)
    assert "Stable Diffusion XL" in caught.value.hint


@pytest.mark.parametrize("alpha", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "form",
    [
        {"lokr_w1": (4, 8), "lokr_w2": (8, 4)},
        {"lokr_w1": (4, 8), "lokr_w2": (8, 4), "dora_scale": (C, 1)},
        {"diff": (C, C)},
        {"weight": (C,), "on_input": 1.0},
    ],
)
def test_an_alpha_that_no_form_uses_is_not_read(tiny, random_file, form, alpha):
    """LyCORIS stores alpha = dim with LoKr of full dimension: infinity in fp16."""
    values = {f"lora_unet_{UNDERSCORED}.{name}": value for name, value in form.items()}
    base = torch.randn(C, C)
    expected = read_adapter(random_file(values), tiny).patches["unet"][f"{QUERY}.weight"].change(base)
    values |= {f"lora_unet_{UNDERSCORED}.alpha": alpha}
    found = read_adapter(random_file(values), tiny).patches["unet"][f"{QUERY}.weight"].change(base)
    assert torch.equal(found, expected)


def test_an_alpha_that_scales_must_be_a_number(tiny, random_file):
    values = {f"lora_unet_{UNDERSCORED}.alpha": float("inf")}
    with pytest.raises(InvalidCheckpoint, match="alpha is inf"):
        read_adapter(random_file(lora(f"lora_unet_{UNDERSCORED}") | values), tiny)


def test_a_config_that_no_module_needs_is_not_read(tiny, random_file):
    """A module with an alpha of its own does not ask PEFT's config, which may be broken."""
    for text in ('{"unet.lora_alpha": Infinity}', '{"unet.alpha_pattern": {"(a+)+b": 1}}', "["):
        path = random_file(PEFT | {f"unet.{QUERY}.alpha": 1.0}, {"lora_adapter_metadata": text})
        assert read_adapter(path, tiny).patches["unet"][f"{QUERY}.weight"].scale == 1 / R
        with pytest.raises(InvalidCheckpoint):
            read_adapter(random_file(PEFT, {"lora_adapter_metadata": text}), tiny)


def test_an_alpha_without_a_form_is_named_and_changes_nothing(tiny, random_file):
    alone = f"lora_unet_{OUT.replace('.', '_')}.alpha"
    adapter = read_adapter(random_file(lora(f"lora_unet_{UNDERSCORED}") | {alone: 1.0}), tiny)
    assert list(adapter.patches["unet"]) == [f"{QUERY}.weight"]
    assert adapter.unapplied == (alone,)


def test_reading_an_adapter_does_not_import_the_compiler(tmp_path):
    """`torch._dynamo` takes a second to import, which operations on the meta device do."""
    program = f"""
import sys
from pathlib import Path
import torch
from limner.adapters.adapter import patched_weights, read_adapter
from limner.adapters.targets import Targets
from limner.weights.tensors import write_tensors

path = Path({str(tmp_path / "a.safetensors")!r})
write_tensors(path, {{
    "unet.a.lora_up.weight": torch.ones(4, 2), "unet.a.lora_down.weight": torch.ones(2, 4),
    "unet.a.dora_scale": torch.ones(4, 1),
    "unet.b.lokr_w1": torch.ones(2, 2), "unet.b.lokr_w2": torch.ones(2, 2),
    "unet.c.hada_w1_a": torch.ones(4, 2), "unet.c.hada_w1_b": torch.ones(2, 4),
    "unet.c.hada_w2_a": torch.ones(4, 2), "unet.c.hada_w2_b": torch.ones(2, 4),
}})
shapes = {{"unet": {{f"{{name}}.weight": torch.Size((4, 4)) for name in "abc"}}}}
adapter = read_adapter(path, Targets(shapes, {{f"unet.{{n}}": ("unet", n) for n in "abc"}}, {{}}))
assert len(patched_weights([(adapter, {{"unet": 1.0}})], "unet", lambda name: torch.ones(4, 4))) == 3
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_half_a_module_or_a_module_twice_is_refused(tiny, random_file):
    whole = lora(f"lora_unet_{UNDERSCORED}")
    for lost in whole:
        with pytest.raises(InvalidCheckpoint, match=rf"unet {QUERY}: (up|down) alone"):
            read_adapter(random_file({key: shape for key, shape in whole.items() if key != lost}), tiny)
    with pytest.raises(InvalidCheckpoint, match="names the same tensor as another key"):
        read_adapter(random_file(whole | lora(f"unet.{QUERY}")), tiny)


def test_files_of_other_kinds_are_refused(tiny, random_file, tmp_path):
    (tmp_path / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(PickleRefused):
        read_adapter(tmp_path / "pickle.safetensors", tiny)
    with pytest.raises(InvalidCheckpoint):
        read_adapter(tmp_path / "nothing.safetensors", tiny)
    with pytest.raises(UnsupportedModel):
        read_adapter(random_file({}), tiny)
    with pytest.raises(InvalidCheckpoint, match="weight alone"):  # a model
        read_adapter(random_file({f"unet.{QUERY}.weight": (C, C)}), tiny)


# Applying


def every_form(tiny) -> dict[str, tuple[int, ...] | float]:
    """A form for each of some modules of both networks."""
    conv, text = "lora_unet_down_blocks_0_resnets_0_conv1", f"lora_te_{TEXT.replace('.', '_')}"
    key = f"lora_unet_{UNDERSCORED.replace('attn1_to_q', 'attn1_to_k')}"
    value = f"lora_unet_{UNDERSCORED.replace('attn1_to_q', 'attn1_to_v')}"
    return {
        **lora(f"lora_unet_{UNDERSCORED}"),
        f"lora_unet_{UNDERSCORED}.alpha": 1.0,
        **{
            f"{key}.hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", (C, R)), ("b", (R, C)))
        },
        f"{value}.lokr_w1": (4, 8),
        f"{value}.lokr_w2_a": (8, R),
        f"{value}.lokr_w2_b": (R, 4),
        f"{value}.alpha": 3.0,
        f"{conv}.lora_up.weight": (C, R, 1, 1),
        f"{conv}.lora_mid.weight": (R, R, 3, 3),
        f"{conv}.lora_down.weight": (R, C, 1, 1),
        f"{conv}.diff_b": (C,),
        **lora(text),
        f"{text}.dora_scale": (C, 1),
        "lora_unet_conv_norm_out.w_norm": (C,),
        "lora_unet_conv_norm_out.b_norm": (C,),
    }


@pytest.fixture
def adapters(tiny, random_file) -> list[Adapter]:
    values = every_form(tiny)
    first = read_adapter(random_file(values, name="first.safetensors"), tiny)
    reversed_values = dict(reversed(values.items()))  # so that the same shapes get other numbers
    second = read_adapter(random_file(reversed_values, name="second.safetensors"), tiny)
    third = read_adapter(random_file(lora(f"unet.{QUERY}"), name="third.safetensors"), tiny)
    return [first, second, third]


def weights(networks, part):
    return dict(networks[part].named_parameters()).__getitem__


ONE = {"unet": 1.0, "text_encoder": 1.0}


def test_a_weight_is_the_base_and_the_change(networks, adapters):
    base = weights(networks, "unet")
    for weight in (1.0, -0.5, 1.75):
        patched = patched_weights([(adapters[0], {"unet": weight})], "unet", base)
        assert patched.keys() == adapters[0].patches["unet"].keys()
        assert len(patched) == 7
        for name, value in patched.items():
            change = adapters[0].patches["unet"][name].change(base(name).detach())
            torch.testing.assert_close(value, base(name) + weight * change)


def test_each_part_has_its_own_weight(networks, adapters):
    pair = [(adapters[0], {"unet": 0.0, "text_encoder": 0.5})]
    assert patched_weights(pair, "unet", weights(networks, "unet")) == {}
    assert patched_weights(pair, "text_encoder", weights(networks, "text_encoder"))
    assert patched_weights([(adapters[0], {})], "text_encoder", weights(networks, "text_encoder")) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_forget_is_to_detach(networks, adapters, dtype):
    network = networks["unet"].to(dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    picture, steps, context = (
        torch.randn(1, 4, 8, 8).to(dtype),
        torch.tensor([7]),
        torch.randn(1, 5, C).to(dtype),
    )
    plain = network(picture, steps, context)
    patched = patched_weights([(adapter, ONE) for adapter in adapters], "unet", weights(networks, "unet"))
    assert {value.dtype for value in patched.values()} == {dtype}
    adapted = torch.func.functional_call(network, patched, (picture, steps, context))
    assert not torch.allclose(adapted, plain)
    assert torch.equal(network(picture, steps, context), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_several_at_once_in_any_order(networks, adapters):
    base = weights(networks, "unet")
    pairs = [(adapter, {"unet": weight}) for adapter, weight in zip(adapters, (0.7, -0.4, 1.3), strict=True)]
    together = patched_weights(pairs, "unet", base)
    for order in (pairs[::-1], [pairs[1], pairs[2], pairs[0]]):
        other = patched_weights(order, "unet", base)
        assert all(torch.equal(other[name], value) for name, value in together.items())
    alone = [patched_weights([pair], "unet", base) for pair in pairs]
    for name, value in together.items():
        changes = sum(patched[name] - base(name) for patched in alone if name in patched)
        torch.testing.assert_close(value, base(name) + changes, rtol=1e-4, atol=1e-4)


def test_the_sum_is_made_before_it_is_rounded(networks, tiny, random_file):
    """A change too small for the base's dtype counts all the same where another joins it."""
    network = networks["unet"].to(torch.bfloat16)
    base = weights(networks, "unet")
    with torch.no_grad():
        base(f"{QUERY}.weight").fill_(1.0)
    step = torch.tensor(2.0**-9)  # a quarter of bfloat16's step at 1
    pairs = []
    for name in "abc":
        ones = {f"unet.{QUERY}.diff": step.expand(C, C).contiguous()}
        pairs.append((read_adapter(random_file(ones, name=f"{name}.safetensors"), tiny), ONE))
    assert network is networks["unet"]
    assert torch.all(patched_weights(pairs[:1], "unet", base)[f"{QUERY}.weight"] == 1)
    assert torch.all(patched_weights(pairs, "unet", base)[f"{QUERY}.weight"] == 1 + 2.0**-7)


# Damage


def tensors_within(value: object) -> int:
    if isinstance(value, Tensor):
        return 1
    if dataclasses.is_dataclass(value):
        return sum(tensors_within(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0


def test_a_thousand_damaged_files_load_whole_or_not_at_all(tiny, random_file, tmp_path):
    """Each is refused by one of our errors, or all of its tensors are applied or named."""
    whole = random_file(every_form(tiny), name="whole.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path, draw = tmp_path / "damaged.safetensors", random.Random(0)
    refused, applied = [], 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            at = draw.randrange(draw.choice((header, header, header, len(whole))))
            damaged[at] = draw.choice((damaged[at] ^ 1 << draw.randrange(8), *b'_.0123456789abw"'))
        if draw.random() < 0.05:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            adapter = read_adapter(path, tiny)
        except LimnerError as error:
            refused.append(error.message)
            continue
        keys = open_tensors(path).keys()
        held = sum(tensors_within(patch) for part in adapter.patches.values() for patch in part.values())
        alphas = sum(key.endswith(".alpha") for key in keys - {*adapter.unapplied})
        assert held + alphas + len(adapter.unapplied) == len(keys)
        applied += 1
    assert len(refused) > 300
    assert all(str(path) in message for message in refused)
    assert applied > 50


def test_every_tensor_lost_or_renamed_is_noticed(tiny, random_file):
    values = every_form(tiny)
    for key in values:
        for other in ({}, {f"un{key}": values[key]}):
            rest = {name: value for name, value in values.items() if name != key} | other
            optional = key.endswith((".alpha", ".dora_scale", ".diff_b", ".w_norm", ".b_norm"))
            try:
                adapter = read_adapter(random_file(rest), tiny)
            except InvalidCheckpoint:
                continue
            assert optional, key
            assert adapter.unapplied == tuple(other)
