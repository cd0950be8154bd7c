"""Reading and writing the networks' `config.json`, and the parameters that follow from it."""

import json

import pytest
import torch

from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig

# Those of Stable Diffusion 1.5 and 2.1 are held to their manifests where their weights are read.
PUBLISHED = {
    "controlnet-sd15-canny": (ControlNetConfig, ControlNetModel),
    "t2iadapter-sd15-canny": (T2IAdapterConfig, T2IAdapter),
    "sd15/unet": (UNetConfig, UNet2DConditionModel),
    "sd15/vae": (VAEConfig, AutoencoderKL),
    "sd15/text_encoder": (CLIPTextConfig, CLIPTextModel),
    "sd21-768-v/unet": (UNetConfig, UNet2DConditionModel),
    "sd21-768-v/vae": (VAEConfig, AutoencoderKL),
    "sd21-768-v/text_encoder": (CLIPTextConfig, CLIPTextModel),
    "sdxl-base/unet": (UNetConfig, UNet2DConditionModel),
    "sdxl-base/vae": (VAEConfig, AutoencoderKL),
    "sdxl-base/text_encoder": (CLIPTextConfig, CLIPTextModel),
    "sdxl-base/text_encoder_2": (CLIPTextConfig, CLIPTextModel),
}


def published(reference, name):
    return json.loads((reference / "configs" / name / "config.json").read_text())


def manifest(reference, name):
    lines = (reference / "keys" / "diffusers" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def keys_of(network):
    return {name: "x".join(map(str, tensor.shape)) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(reference, name):
    config_class, _ = PUBLISHED[name]
    config = config_class.from_dict(published(reference, name))
    written = json.loads(json.dumps(config.to_dict()))
    assert config_class.from_dict(written) == config


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("sdxl")])
def test_published_parameters_of_xl(reference, name):
    config_class, network_class = PUBLISHED[name]
    with torch.device("meta"):
        network = network_class(config_class.from_dict(published(reference, name)))
    assert keys_of(network) == manifest(reference, name)


def test_published_parameters_of_the_safety_checker_s_image_encoder(reference):
    values = published(reference, "sd15/safety_checker")
    config = CLIPVisionConfig.from_dict(
        {
            **values["vision_config"],
            "projection_dim": values["projection_dim"],
            "architectures": ["CLIPVisionModelWithProjection"],
        }
    )
    assert CLIPVisionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with torch.device("meta"):
        network = CLIPVisionModel(config)
    own = {"concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"}
    expected = {
        key.removeprefix("vision_model.") if key.count("vision_model.") == 2 else key: shape
        for key, shape in manifest(reference, "sd15/safety_checker").items()
        if key not in own and not key.endswith("position_ids")
    }
    assert keys_of(network) == expected


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(),
        UNetConfig(attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, cross_attention_dim=1024),
        ControlNetConfig(),
        ControlNetConfig(global_pool_conditions=True, mid_block_type="UNetMidBlock2D"),
        T2IAdapterConfig(),
        T2IAdapterConfig(adapter_type="light_adapter", channels=(320, 640, 1280)),
        VAEConfig(),
        VAEConfig(latent_channels=8, scaling_factor=0.3, block_out_channels=(32, 64)),
        CLIPTextConfig(),
        CLIPTextConfig(projection=True, hidden_act="gelu"),
        CLIPVisionConfig(),
        CLIPVisionConfig(projection=True, image_size=42),
    ],
    ids=lambda config: type(config).__name__,
)
def test_writing_then_reading_is_identity(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("config_class", "values", "named"),
    [
        (UNetConfig, {"time_embedding": "fourier"}, "unknown key 'time_embedding' (value 'fourier')"),
        (UNetConfig, {"act_fn": "mish"}, "act_fn is 'mish'; only 'silu' is supported"),
        (UNetConfig, {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        (UNetConfig, {"num_attention_heads": 8}, "num_attention_heads is 8"),
        (UNetConfig, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        (UNetConfig, {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 4}, "down block 'AttnDownBlock2D'"),
        (UNetConfig, {"up_block_types": ["AttnUpBlock2D"] * 4}, "up block 'AttnUpBlock2D'"),
        (UNetConfig, {"down_block_types": ["DownBlock2D"] * 3}, "must have 4 entries"),
        (
            UNetConfig,
            {"attention_head_dim": [5, 10, 20]},
            "attention_head_dim (5, 10, 20) must have 4 entries",
        ),
        (UNetConfig, {"block_out_channels": []}, "block_out_channels is empty"),
        (UNetConfig, {"block_out_channels": [320, 640, 1280, 1290]}, "multiples of norm_num_groups 32"),
        (UNetConfig, {"attention_head_dim": 7}, "number of heads (7, 7, 7, 7)"),
        (ControlNetConfig, {"num_control_type": 6}, "unknown key 'num_control_type'"),
        (ControlNetConfig, {"mid_block_type": "UNetMidBlock3D"}, "middle block 'UNetMidBlock3D'"),
        (ControlNetConfig, {"conditioning_embedding_out_channels": []}, "out_channels is empty"),
        (
            ControlNetConfig,
            {"conditioning_channels": 1, "controlnet_conditioning_channel_order": "bgr"},
            "'bgr' of 1 channels",
        ),
        (T2IAdapterConfig, {"adapter_type": "style"}, "adapter_type is 'style'"),
        (T2IAdapterConfig, {"channels": []}, "channels is empty"),
        (
            T2IAdapterConfig,
            {"adapter_type": "full_adapter_xl", "channels": [320, 640, 1280, 640]},
            "the same from the third on",
        ),
        (VAEConfig, {"latent_shift": 0.1}, "unknown key 'latent_shift' (value 0.1)"),
        (VAEConfig, {"shift_factor": 0.1}, "shift_factor is 0.1; only None is supported"),
        (VAEConfig, {"use_quant_conv": False}, "use_quant_conv is False; only True is supported"),
        (VAEConfig, {"mid_block_add_attention": False}, "mid_block_add_attention is False"),
        (
            VAEConfig,
            {"down_block_types": ["DownEncoderBlock2D"]},
            "down_block_types is ['DownEncoderBlock2D']",
        ),
        (VAEConfig, {"block_out_channels": [128, 200, 256, 256]}, "multiples of norm_num_groups 32"),
        (CLIPTextConfig, {"hidden_act": "relu"}, "hidden_act 'relu'; supported: ['quick_gelu', 'gelu']"),
        (CLIPTextConfig, {"model_type": "t5"}, "model_type is 't5', not 'clip_text_model'"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "multiple of num_attention_heads 7"),
        (CLIPVisionConfig, {"model_type": "clip_text_model"}, "not 'clip_vision_model'"),
    ],
)
def test_what_no_network_here_can_stand_for_is_named(config_class, values, named):
    with pytest.raises(ValueError, match=r".") as caught:
        config_class.from_dict({**config_class().to_dict(), **values})
    assert named in str(caught.value)


def test_provenance_and_generic_settings_are_skipped():
    unet = UNetConfig.from_dict(
        {"_diffusers_version": "0.6.0", "_name_or_path": "x", "upcast_attention": True}
    )
    assert unet == UNetConfig()
    text = CLIPTextConfig.from_dict({"torch_dtype": "float16", "eos_token_id": 2, "dropout": 0.0})
    assert text == CLIPTextConfig()
