"""Adapters against diffusers and PEFT, which fuse the same files into the same random networks.

Both sides make the same few products in float32; 1e-5 leaves room for another order of them.
"""

import json
from dataclasses import asdict

import peft
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as TheirUNet
from torch import nn
from transformers import CLIPTextConfig as TheirTextConfig
from transformers import CLIPTextModel as TheirTextModel

from limner.adapters.adapter import patched_weights, read_adapter
from limner.adapters.patches import read_patches
from limner.adapters.targets import find_targets
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.weights.tensors import write_tensors

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
ALPHA, RANK = 3.0, 2
UNETS = {
    "sd15": UNetConfig(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=24,
        norm_num_groups=8,
    ),
    "xl": UNetConfig(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=24,
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    ),
}
TEXT = CLIPTextConfig(
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=100,
    max_position_embeddings=16,
)
MEANT = (".to_q", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2", ".proj_in")
CONVOLUTIONS = (".conv1", ".conv_shortcut", ".downsamplers.0.conv")
TEXT_MEANT = (".q_proj", ".out_proj")

# form -> the ends of down's and up's names, and whether the name of the module is kohya's
FORMS = {
    "kohya": (".lora_down.weight", ".lora_up.weight", True),
    "peft": (".lora_A.weight", ".lora_B.weight", False),
    "diffusers": (".lora.down.weight", ".lora.up.weight", False),
}


def lora(targets, form: str, *, alpha: bool, dora: bool = False) -> dict[str, torch.Tensor]:
    """A file's tensors, random, for some linear layers and convolutions of each part."""
    generator = torch.Generator().manual_seed(1)
    down, up, kohya = FORMS[form]
    tensors = {}
    for (part, module), kohya_name in targets.kohya.items():
        convolutions = () if form == "diffusers" else CONVOLUTIONS
        meant = (*MEANT, *convolutions) if part == "unet" else TEXT_MEANT
        if not module.endswith(meant):
            continue
        name = kohya_name if kohya else f"{part}.{module}"
        out, into, *kernel = targets.shapes[part][f"{module}.weight"]
        tensors[name + down] = torch.randn(RANK, into, *kernel, generator=generator)
        tensors[name + up] = torch.randn(out, RANK, *[1] * len(kernel), generator=generator)
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        if dora:
            shape = (1, out, 1, 1) if kernel else (out,)
            tensors[f"{name}.lora_magnitude_vector"] = torch.rand(shape, generator=generator) + 0.5
    assert len(tensors) > 50
    return tensors


def their_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by their own names, where PEFT has wrapped their layers."""
    return {
        name.replace(".base_layer", ""): value
        for name, value in network.state_dict().items()
        if "lora_" not in name
    }


@pytest.fixture(params=UNETS)
def unets(request, randomise):
    config = UNETS[request.param]
    ours = UNet2DConditionModel(config)
    randomise(ours, 0)
    theirs = TheirUNet(**{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()})
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


CASES = {
    "kohya": ("kohya", {"alpha": True}, None),
    "kohya without alpha": ("kohya", {"alpha": False}, None),
    "peft": ("peft", {"alpha": False}, None),
    "peft with its config": ("peft", {"alpha": False}, {"unet.r": RANK, "unet.lora_alpha": 8}),
    "peft with ranks' roots": (
        "peft",
        {"alpha": False},
        {"unet.r": RANK, "unet.lora_alpha": 8, "unet.use_rslora": True},
    ),
    "peft with an alpha for some": (
        "peft",
        {"alpha": False},
        {"unet.r": RANK, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 5, "ff.net.2": 1}},
    ),
    "peft dora": ("peft", {"alpha": False, "dora": True}, None),
    "diffusers": ("diffusers", {"alpha": False}, None),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_unet(unets, tmp_path, case):
    form, options, config = CASES[case]
    ours, theirs = unets
    targets = find_targets({"unet": ours})
    tensors = lora(targets, form, **options)
    metadata = {"format": "pt"}
    if config:
        config = {"unet.target_modules": [name.lstrip(".") for name in (*MEANT, *CONVOLUTIONS)], **config}
        metadata["lora_adapter_metadata"] = json.dumps(config)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_tensors(path, tensors, metadata)

    state, alphas, read = StableDiffusionXLPipeline.lora_state_dict(
        str(path), unet_config=theirs.config, return_lora_metadata=True
    )
    StableDiffusionXLPipeline.load_lora_into_unet(state, alphas, theirs, metadata=read)
    scale = 1.0 if options.get("dora") else 0.7  # of DoRA, only the whole means the same to all
    theirs.fuse_lora(lora_scale=scale)

    adapter = read_adapter(path, targets)
    assert adapter.unapplied == ()
    base = dict(ours.named_parameters())
    patched = patched_weights([(adapter, {"unet": scale})], "unet", base.__getitem__)
    assert len(patched) >= 20
    fused = their_weights(theirs)
    for name, parameter in base.items():
        if name in patched:
            torch.testing.assert_close(patched[name], fused[name], **TOLERANCE)
            assert (patched[name] - parameter).abs().max() > 0.01
        else:
            assert torch.equal(parameter, fused[name])


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_text_encoder(tmp_path, randomise, form):
    ours = CLIPTextModel(TEXT)
    randomise(ours, 0)
    theirs = TheirTextModel(TheirTextConfig(**TEXT.to_dict())).eval()
    theirs.load_state_dict({name.removeprefix("text_model."): v for name, v in ours.state_dict().items()})
    targets = find_targets({"text_encoder": ours})
    tensors = {}
    generator = torch.Generator().manual_seed(1)
    for (part, module), name in targets.kohya.items():
        if module.endswith(TEXT_MEANT):
            name = name if form == "kohya" else f"{part}.{module}"
            down, up, _ = FORMS[form]
            tensors[name + down] = torch.randn(RANK, 24, generator=generator)
            tensors[name + up] = torch.randn(24, RANK, generator=generator)
            if form == "kohya":
                tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    path = tmp_path / "lora.safetensors"
    write_tensors(path, tensors, {"format": "pt"})
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(str(path))
    StableDiffusionXLPipeline.load_lora_into_text_encoder(state, alphas, theirs, prefix="text_encoder")
    tokens = torch.tensor([[1, 50, 7, 99]])
    expected = theirs(tokens).last_hidden_state

    base = dict(ours.named_parameters())
    patched = patched_weights(
        [(read_adapter(path, targets), {"text_encoder": 1.0})], "text_encoder", base.__getitem__
    )
    assert len(patched) == 4
    hidden, _ = torch.func.functional_call(ours, patched, (tokens,))
    torch.testing.assert_close(hidden, expected, **TOLERANCE)
    assert (ours(tokens)[0] - expected).abs().max() > 0.1


LYCORIS = {
    "loha": lambda: peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["layer"]),
    "loha tucker": lambda: peft.LoHaConfig(
        r=RANK, alpha=ALPHA, target_modules=["layer"], use_effective_conv2d=True
    ),
    "lokr": lambda: peft.LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["layer"]),
    "lokr factors": lambda: peft.LoKrConfig(
        r=1, alpha=ALPHA, target_modules=["layer"], decompose_both=True, decompose_factor=4
    ),
    "lokr tucker": lambda: peft.LoKrConfig(
        r=RANK, alpha=ALPHA, target_modules=["layer"], use_effective_conv2d=True
    ),
    "dora": lambda: peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], use_dora=True),
}
LAYERS = {"linear": lambda: nn.Linear(24, 16), "convolution": lambda: nn.Conv2d(24, 16, 3)}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", LYCORIS)
def test_forms_of_peft(layer, form):
    """One layer, of which PEFT says what its tensors are called and what they make of the weight."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": LAYERS[layer]()})
    weight = model["layer"].weight.detach().clone()
    wrapped = peft.get_peft_model(model, LYCORIS[form]())
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5, mean=1.0 if "magnitude" in name else 0.0)
    ends = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude"}
    tensors = {
        ends.get(end, end): value.detach().clone()
        for key, value in peft.get_peft_model_state_dict(wrapped).items()
        for end in [key.split(".layer.")[1]]
    }
    sign = {
        "loha tucker": "hada_t1",
        "lokr tucker": "lokr_t2",
        "lokr factors": "lokr_w1_a",
        "dora": "magnitude",
    }
    assert sign.get(form, "hada_w1_a" if form == "loha" else "lokr_w2_a") in tensors or layer == "linear"
    patches = read_patches(tensors | {"alpha": torch.tensor(ALPHA)}, {"weight": weight.shape})
    ours = weight + patches["weight"].change(weight)
    torch.testing.assert_close(ours, wrapped.merge_and_unload()["layer"].weight.detach(), **TOLERANCE)
