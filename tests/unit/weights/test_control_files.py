"""Files of ControlNets and T2I-Adapters, in every layout, and what is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel as TheirControlNet
from diffusers import T2IAdapter as TheirAdapter

from limner.catalogue.control import describe_control
from limner.errors import (
    InvalidCheckpoint,
    InvalidRequest,
    LimnerError,
    ModelNotFound,
    OutputError,
    PickleRefused,
    UnsupportedModel,
)
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet_config import UNetConfig
from limner.weights.control import read_control
from limner.weights.convert import convert
from limner.weights.keymaps import controlnet_entries, parameter_shapes, t2i_adapter_entries
from limner.weights.save import save_control
from limner.weights.tensors import open_tensors, write_tensors

SD1 = ControlNetConfig(
    block_out_channels=(64, 128),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    cross_attention_dim=48,
    conditioning_embedding_out_channels=(4, 8, 8, 16),
)
SD2 = replace(SD1, attention_head_dim=(1, 2), use_linear_projection=True, conditioning_channels=1)
XL = replace(
    SD2,
    block_out_channels=(64, 128, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    attention_head_dim=(1, 2, 2),
    transformer_layers_per_block=(1, 1, 2),
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=40 + 6 * 256,
)
CONTROLNETS = {"sd1": SD1, "sd2": SD2, "xl": XL}
ADAPTERS = {
    "full": T2IAdapterConfig(channels=(16, 32, 64, 64), in_channels=1),
    "light": T2IAdapterConfig(channels=(16, 32, 64), num_res_blocks=4, adapter_type="light_adapter"),
    "full xl": T2IAdapterConfig(
        channels=(16, 32, 64, 64), downscale_factor=16, adapter_type="full_adapter_xl"
    ),
}
CONFIGS = {**CONTROLNETS, **ADAPTERS}
PUBLISHED = {
    "controlnet-sd15-canny": ControlNetConfig(),
    # Of the reference's list alone its SHA-256 is known.
    "controlnet-sdxl-canny": ControlNetConfig(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    "t2iadapter-sd15-canny": T2IAdapterConfig(in_channels=1),
}


def network_of(config, seed=0):
    torch.manual_seed(seed)
    network = ControlNetModel(config) if isinstance(config, ControlNetConfig) else T2IAdapter(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network


def entries_of(config, prefix=""):
    map_of = controlnet_entries if isinstance(config, ControlNetConfig) else t2i_adapter_entries
    return map_of(config, prefix)


def tensors_of(network, prefix=""):
    """Under the names of its authors."""
    weights = network.state_dict()
    return {entry.single: weights[entry.name] for entry in entries_of(network.config, prefix)}


def assert_loads(path, network, dtype=None):
    control = read_control(path)
    assert control.config == network.config
    assert control.parameters == sum(parameter.numel() for parameter in network.parameters())
    if control.weights.suffix in (".safetensors", ".json"):
        assert describe_control(path) == (control.config, control.parameters)
    else:
        with pytest.raises(PickleRefused, match="known when it is opened"):
            describe_control(path)
    loaded, expected = control.load(dtype).state_dict(), network.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor if dtype is None else tensor.to(dtype)), name
    return control


def manifest(path: Path) -> dict[str, tuple[int, ...]]:
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def indexed(reference: Path, name: str) -> str:
    lines = (reference / "keys/INDEX.tsv").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}\t")]
    return line.split("\t")[-1]


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    lines = [f"{key}\t{'x'.join(map(str, shapes[key]))}\n" for key in sorted(shapes, key=str.encode)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_keys_of_the_reference(reference, path, name, write_sparse):
    config = PUBLISHED[name]
    network = ControlNetModel if isinstance(config, ControlNetConfig) else T2IAdapter
    shapes = parameter_shapes(lambda: network(config))
    assert digest(shapes) == indexed(reference, f"keys/diffusers/{name}/model.txt")
    write_sparse(path, shapes)
    assert read_control(path).config == config
    folder = reference / "configs" / name
    if folder.is_dir():
        assert type(config).from_dict(json.loads((folder / "config.json").read_text())) == config


def test_a_published_single_file_alone_and_with_the_model_beside_it(reference, path, write_sparse):
    keys = reference / "keys/single"
    own, beside = manifest(keys / "controlnet-sd15.txt"), manifest(keys / "controlnet-sd15.extra.txt")
    for shapes in (own, own | beside, {key.removeprefix("control_model."): s for key, s in own.items()}):
        write_sparse(path, shapes)
        control = read_control(path)
        assert (control.kind, control.config) == ("controlnet", ControlNetConfig())
        assert set(control.keys.values()) == shapes.keys() - beside.keys()
        assert control.misfit(UNetConfig(), 8) is None
        assert describe_control(path) == (control.config, control.parameters)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_save_then_load_is_identity_here_and_in_diffusers(tmp_path, name, dtype):
    network = network_of(CONFIGS[name])
    folder = tmp_path / "saved"
    save_control(folder, network, dtype=dtype)
    expected = network if dtype is None else network.to(dtype)
    control = assert_loads(folder, expected)
    assert_loads(folder / "diffusion_pytorch_model.safetensors", expected)
    assert control.kind == ("controlnet" if name in CONTROLNETS else "t2i_adapter")
    theirs = (TheirControlNet if name in CONTROLNETS else TheirAdapter).from_pretrained(folder)
    assert theirs.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_that_diffusers_saved(tmp_path, name):
    network = network_of(CONFIGS[name])
    cls = TheirControlNet if name in CONTROLNETS else TheirAdapter
    theirs = cls.from_config(network.config.to_dict())
    theirs.load_state_dict(network.state_dict())
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "fp16 alone", variant="fp16")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    theirs.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    for folder in ("whole", "fp16 alone", "shards", "pickle"):
        assert_loads(tmp_path / folder, network)
    assert len(read_control(tmp_path / "shards").files) > 1
    assert_loads(tmp_path / "whole", network, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, "safetensors") for name in CONFIGS), ("sd2", "pth"), ("sd1", "ckpt"), ("light", "ckpt")],
)
def test_single_files(tmp_path, name, suffix):
    network = network_of(CONFIGS[name])
    authors = tensors_of(network, "control_model." if name in CONTROLNETS else "")
    for number, tensors in enumerate((authors, network.state_dict())):
        path = tmp_path / f"{number}.{suffix}"
        if suffix == "safetensors":
            write_tensors(path, tensors)
        else:
            torch.save({"state_dict": tensors, "epoch": 3} if suffix == "ckpt" else tensors, path)
        assert_loads(path, network)


@pytest.mark.parametrize("name", ["full", "light"])
def test_adapters_in_a_pickle_under_a_name(tmp_path, name):
    network = network_of(ADAPTERS[name])
    torch.save({"adapter": tensors_of(network)}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", network)


def test_weights_stay_in_the_file_until_they_are_used(path):
    write_tensors(path, tensors_of(network_of(SD1)))
    weights = read_control(path).load().state_dict().values()
    assert len({tensor.untyped_storage().data_ptr() for tensor in weights}) == 1


def test_a_name_tells_that_it_says_the_same_everywhere(tmp_path):
    tensors = tensors_of(network_of(SD1))
    for name, pooled in (
        ("control_v11e_sd15_shuffle", True),
        ("x_shuffle_fp16", True),
        ("y_shuffle_canny", False),
    ):
        write_tensors(tmp_path / f"{name}.safetensors", tensors)
        assert read_control(tmp_path / f"{name}.safetensors").config.global_pool_conditions == pooled


OTHERS = {
    "lora_controlnet": "Control-LoRA",
    "lllite_unet_input_blocks_1_1.depth": "ControlNet-LLLite",
    "task_embedding": "union",
    "control_add_embedding.linear_1.weight": "union",
    "image_proj.proj.weight": "IP-Adapter",
    "style_embedding": "style adapter",
    "difference": "difference",
    "controlnet_x_embedder.weight": "diffusion transformer",
}


@pytest.mark.parametrize("key", OTHERS)
def test_other_kinds_are_refused_by_name(path, key):
    write_tensors(path, {**network_of(SD1).state_dict(), key: torch.zeros(1)})
    with pytest.raises(UnsupportedModel, match=OTHERS[key]):
        read_control(path)


def test_what_is_nothing_of_the_kind(tmp_path, path, checkpoint_folder):
    write_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(UnsupportedModel, match="no ControlNet or T2I-Adapter"):
        read_control(path)
    with pytest.raises(UnsupportedModel, match="describes a 'UNet2DConditionModel'"):
        read_control(checkpoint_folder / "unet")
    with pytest.raises(ModelNotFound, match="has no config"):
        read_control(checkpoint_folder)
    with pytest.raises(ModelNotFound, match="there is no"):
        read_control(tmp_path / "nothing")
    instant = tmp_path / "InstantID" / "ControlNetModel"
    instant.mkdir(parents=True)
    with pytest.raises(UnsupportedModel, match="InstantID"):
        read_control(instant)


@pytest.mark.parametrize("layout", ["folder", "hub", "authors"])
def test_keys_that_are_missing_unexpected_or_of_another_shape_are_named(tmp_path, layout):
    network = network_of(SD1)
    save_control(tmp_path / "folder", network)
    path = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    names = {entry.name: entry.single if layout == "authors" else entry.name for entry in entries_of(SD1)}
    tensors = {names[name]: tensor for name, tensor in network.state_dict().items()}
    lost = names["mid_block.resnets.1.conv1.weight"]
    tensors[f"{lost}.renamed"] = tensors.pop(lost)
    wrong = names["controlnet_mid_block.bias"]
    tensors[wrong] = tensors[wrong][:-1]
    if layout != "folder":
        path = tmp_path / "single.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(InvalidCheckpoint) as caught:
        read_control(path.parent if layout == "folder" else path)
    for part in (f"1 missing: {lost};", f"1 unexpected: {lost}.renamed", f"{wrong} is floating [127]"):
        assert part in caught.value.message


def test_damaged_files(tmp_path, path):
    write_tensors(path, network_of(SD1).state_dict())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidCheckpoint, match="truncated"):
        read_control(path)
    (tmp_path / "a.pth").write_bytes(b"no archive")
    with pytest.raises(InvalidCheckpoint, match="no archive"):
        read_control(tmp_path / "a.pth")
    torch.save({"body.0.block1.weight": print}, tmp_path / "b.pth")
    with pytest.raises(PickleRefused, match="print"):
        read_control(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"act_fn": "mish"}, "act_fn is 'mish'"),
        ({"num_control_type": 6}, "unknown key 'num_control_type'"),
        ({"layers_per_block": 10**8}, "blocks, but"),
        ({"block_out_channels": [64, -128]}, "expected a positive number"),
        ({"conditioning_channels": 2**30}, "describes no network|wrong"),
    ],
)
def test_configs_that_no_network_can_be_built_from(tmp_path, values, message):
    folder = tmp_path / "saved"
    save_control(folder, network_of(SD1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(LimnerError, match=message):
        read_control(folder)


def test_only_its_own_folder_is_replaced(tmp_path):
    folder, network = tmp_path / "saved", network_of(ADAPTERS["full"])
    save_control(folder, network)
    with pytest.raises(OutputError, match="not empty"):
        save_control(folder, network)
    other = network_of(ADAPTERS["full"], seed=1)
    save_control(folder, other, overwrite=True)
    assert_loads(folder, other)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="something else"):
        save_control(tmp_path / "else", network, overwrite=True)


FAMILIES = {
    "sd1": UNetConfig(),
    "sd2": UNetConfig(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
    "inpainting": UNetConfig(in_channels=9),
    "xl": UNetConfig(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}


@pytest.mark.parametrize(
    ("config", "fitting"),
    [
        (PUBLISHED["controlnet-sd15-canny"], {"sd1", "inpainting"}),
        (PUBLISHED["controlnet-sdxl-canny"], {"xl"}),
        (T2IAdapterConfig(), {"sd1", "sd2", "inpainting"}),
        (
            T2IAdapterConfig(channels=(320, 640, 1280), adapter_type="light_adapter"),
            {"sd1", "sd2", "inpainting"},
        ),
        (T2IAdapterConfig(downscale_factor=16, adapter_type="full_adapter_xl"), {"xl"}),
    ],
    ids=["controlnet", "controlnet xl", "full", "light", "full xl"],
)
def test_which_model_it_is_for(path, config, fitting, write_sparse):
    network = ControlNetModel if isinstance(config, ControlNetConfig) else T2IAdapter
    write_sparse(path, parameter_shapes(lambda: network(config)))
    control = read_control(path)
    misfits = {family: control.misfit(unet, 8) for family, unet in FAMILIES.items()}
    assert {family for family, misfit in misfits.items() if misfit is None} == fitting
    if network is ControlNetModel and "xl" not in fitting:
        assert "its cross_attention_dim is 768, the model's 1024" in misfits["sd2"]


@pytest.mark.parametrize("name", CONFIGS)
def test_converting_there_and_back(tmp_path, name):
    network = network_of(CONFIGS[name])
    save_control(tmp_path / "folder", network)
    single, again = tmp_path / "single.safetensors", tmp_path / "again"
    convert(tmp_path / "folder", single, to="single")
    prefix = "control_model." if name in CONTROLNETS else ""
    expected = network.state_dict() if name == "xl" else tensors_of(network, prefix)
    assert open_tensors(single).keys() == expected.keys()
    assert_loads(single, network)
    convert(single, again, to="folder")
    files = {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()}
    assert {file.name: file.read_bytes() for file in again.iterdir()} == files
    convert(single, tmp_path / "half.safetensors", to="single", dtype=torch.float16)
    assert_loads(tmp_path / "half.safetensors", network.half())


def test_converting_out_of_a_pickle_with_the_model_beside(tmp_path):
    network = network_of(SD1)
    beside = {"first_stage_model.a": torch.ones(2), "betas": torch.ones(1000)}
    torch.save({**tensors_of(network, "control_model."), **beside}, tmp_path / "a.pth")
    with pytest.raises(PickleRefused, match="convert"):
        convert(tmp_path / "a.pth", tmp_path / "a", to="folder")
    done = convert(tmp_path / "a.pth", tmp_path / "a", to="folder", allow_pickle=True)
    assert (done.kept, set(done.left_out)) == ((), beside.keys())
    assert_loads(tmp_path / "a", network)


def test_what_a_single_file_cannot_say_is_not_converted(tmp_path):
    for values, named in (
        ({"controlnet_conditioning_channel_order": "bgr"}, "channel_order bgr as rgb"),
        ({"global_pool_conditions": True}, "global_pool_conditions True as False"),
        ({"attention_head_dim": 4}, "attention_head_dim 4 as 8"),
    ):
        folder = tmp_path / named
        save_control(folder, network_of(replace(SD1, **values)))
        with pytest.raises(UnsupportedModel, match=named):
            convert(folder, tmp_path / "a.safetensors", to="single")
    convert(
        tmp_path / "global_pool_conditions True as False", tmp_path / "a_shuffle.safetensors", to="single"
    )
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        convert(tmp_path / "a_shuffle.safetensors", tmp_path / "b", to="folder", prediction_type="epsilon")
