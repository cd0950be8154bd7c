"""The classes of diffusers over models of the hub and single files: they draw what the folder draws, and each
argument about the hub counts."""

import json
from pathlib import Path

import pytest
import torch
from hub_standin import COMMIT, Hub
from safetensors.torch import load_file, save_file

import limner
from limner import InvalidRequest, ModelNotFound
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.control_config import ControlNetConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.prompts.tokenizer import Tokenizer
from limner.weights.convert import convert
from limner.weights.save import save_checkpoint

MODEL, NET = "someone/model", "someone/net"
LEVELS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
}
UNET = UNetConfig(**LEVELS, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=64)
VAE = VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, sample_size=512)
TEXT = CLIPTextConfig(64, 64, 1, 1, projection_dim=64, vocab_size=514, max_position_embeddings=77)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1.x in a folder, with a variant, and in a file; a ControlNet in both."""
    root = tmp_path_factory.mktemp("made")
    (root / "files").mkdir()
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a cat on a red house"], vocab_size=514, max_length=77)
    tokenizer.save(root / "tokenizer")
    networks = {
        "unet": UNet2DConditionModel(UNET),
        "vae": AutoencoderKL(VAE),
        "text_encoder": CLIPTextModel(TEXT),
    }
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, **betas}
    made = {**networks, "tokenizer": root / "tokenizer", "scheduler_config": scheduler}
    save_checkpoint(root / "model", **made)
    convert(root / "model", root / "files" / "whole.safetensors", to="single")
    with torch.no_grad():  # so that the variant can be told
        networks["unet"].conv_in.weight.mul_(2)
    save_checkpoint(root / "half", **made, dtype=torch.float16)
    for path in (root / "half").rglob("*.safetensors"):
        to = root / "model" / path.relative_to(root / "half")
        to.with_suffix(".fp16.safetensors").write_bytes(path.read_bytes())
    net = ControlNetModel(ControlNetConfig(**LEVELS))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    (root / "net").mkdir()
    (root / "net" / "config.json").write_text(json.dumps(net.config.to_dict()))
    save_file(net.state_dict(), root / "net" / "diffusion_pytorch_model.safetensors")
    convert(root / "net", root / "files" / "net.safetensors", to="single")
    whole, start = load_file(root / "files" / "whole.safetensors"), "first_stage_model."
    vae = {key.removeprefix(start): value for key, value in whole.items() if key.startswith(start)}
    save_file(vae, root / "files" / "vae.safetensors")
    return root


@pytest.fixture
def online(server: Hub, root: Path) -> Hub:
    server.repos |= {MODEL: root / "model", NET: root / "net", "someone/files": root / "files"}
    server.repos["openai/clip-vit-large-patch14"] = root / "tokenizer"
    return server


def draw(pipe: "limner.DiffusionPipeline", **given: object) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    ask = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt", **given}
    return pipe("a red cat", generator=generator, **ask).images


def test_a_pipeline_of_the_hub(online: Hub, root: Path, tmp_path: Path) -> None:
    expected = draw(limner.StableDiffusionPipeline.from_pretrained(root / "model"))
    where = {"cache_dir": tmp_path / "own", "token": "hf_secret", "revision": COMMIT}
    found = limner.StableDiffusionPipeline.from_pretrained(MODEL, **where)
    assert torch.equal(draw(found), expected)
    assert "Bearer hf_secret" in online.tokens
    assert (tmp_path / "own" / "models--someone--model").is_dir()
    assert not (tmp_path / "cache").exists()
    assert not any(name.endswith(".fp16.safetensors") for name in online.downloads())

    online.asked.clear()
    kept = {"cache_dir": tmp_path / "own", "revision": COMMIT, "local_files_only": True}
    again = limner.DiffusionPipeline.from_pretrained(MODEL, **kept)
    assert type(again) is limner.StableDiffusionPipeline
    assert torch.equal(draw(again), expected)
    auto = limner.AutoPipelineForText2Image.from_pretrained(MODEL, **kept)
    assert torch.equal(draw(auto), expected)
    assert online.asked == []
    with pytest.raises(ModelNotFound, match="local_files_only forbids asking"):
        limner.DiffusionPipeline.from_pretrained(MODEL, local_files_only=True)  # in the hub's own cache
    with pytest.raises(ModelNotFound, match="no revision 'v7'"):
        limner.DiffusionPipeline.from_pretrained(MODEL, revision="v7")


def test_a_variant_of_the_hub(online: Hub, root: Path) -> None:
    plain = draw(limner.StableDiffusionPipeline.from_pretrained(root / "model"))
    expected = draw(limner.StableDiffusionPipeline.from_pretrained(root / "half"))
    half = limner.StableDiffusionPipeline.from_pretrained(MODEL, variant="fp16", torch_dtype=torch.float32)
    assert torch.equal(draw(half), expected)
    assert not torch.equal(expected, plain)
    unet = limner.UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", variant="fp16")
    pipe = limner.StableDiffusionPipeline.from_pretrained(root / "model", unet=unet)
    assert (draw(pipe) - plain).abs().max() > 1e-3
    with pytest.raises(ModelNotFound, match="no variant 'bf16'"):
        limner.StableDiffusionPipeline.from_pretrained(MODEL, variant="bf16")
    with pytest.raises(ModelNotFound, match=r"no file unet/diffusion_pytorch_model\.bf16\.safetensors"):
        limner.UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", variant="bf16")


def test_single_components_of_the_hub(online: Hub, root: Path, tmp_path: Path) -> None:
    where = {"cache_dir": tmp_path / "own", "token": "hf_secret"}
    pipe = limner.StableDiffusionPipeline(
        unet=limner.UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", **where),
        vae=limner.AutoencoderKL.from_pretrained(MODEL, subfolder="vae", **where),
        text_encoder=limner.CLIPTextModel.from_pretrained(MODEL, subfolder="text_encoder", **where),
        tokenizer=limner.CLIPTokenizer.from_pretrained(MODEL, subfolder="tokenizer", **where),
        scheduler=limner.PNDMScheduler.from_pretrained(MODEL, subfolder="scheduler", **where),
        safety_checker=None,
        feature_extractor=None,
    )
    assert not (tmp_path / "cache").exists()
    assert online.tokens == {"Bearer hf_secret"}
    expected = draw(limner.StableDiffusionPipeline.from_pretrained(root / "model"))
    assert torch.equal(draw(pipe), expected)
    online.asked.clear()
    kept = {"cache_dir": tmp_path / "own", "local_files_only": True}
    config = limner.UNet2DConditionModel.load_config(MODEL, subfolder="unet", **kept)
    assert (
        limner.UNet2DConditionModel.from_config(config).conv_in.weight.shape == pipe.unet.conv_in.weight.shape
    )
    assert online.asked == []
    for kind in (limner.AutoencoderKL, limner.CLIPTokenizer, limner.PNDMScheduler):
        with pytest.raises(ModelNotFound):
            kind.from_pretrained(MODEL, subfolder="elsewhere", cache_dir=tmp_path / "own")
        with pytest.raises(InvalidRequest, match="force_download is not offered"):
            kind.from_pretrained(MODEL, subfolder="vae", force_download=True)


def test_a_controlnet_of_the_hub(online: Hub, root: Path, tmp_path: Path) -> None:
    own = {"image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))}
    plain = draw(limner.StableDiffusionPipeline.from_pretrained(MODEL))
    nets = [
        limner.ControlNetModel.from_pretrained(NET),
        limner.ControlNetModel.from_single_file(root / "files" / "net.safetensors"),
        limner.ControlNetModel.from_single_file(
            "https://huggingface.co/someone/files/blob/main/net.safetensors"
        ),
    ]
    drawn = []
    for net in nets:
        pipe = limner.StableDiffusionControlNetPipeline.from_pretrained(MODEL, controlnet=net)
        drawn.append(draw(pipe, **own))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], plain, atol=1e-3)

    pipe.save_pretrained(tmp_path / "saved")
    online.repos["someone/controlled"] = tmp_path / "saved"
    again = limner.DiffusionPipeline.from_pretrained("someone/controlled", cache_dir=tmp_path / "own")
    assert type(again) is limner.StableDiffusionControlNetPipeline
    assert torch.equal(draw(again, **own), drawn[0])
    kept = {"cache_dir": tmp_path / "own", "local_files_only": True}
    assert torch.equal(
        draw(limner.DiffusionPipeline.from_pretrained("someone/controlled", **kept), **own), drawn[0]
    )
    loaded = limner.load("someone/controlled")
    assert any("comes with a ControlNet, which is not used" in warning for warning in loaded.warnings)


def test_several_controlnets_of_the_hub(online: Hub, root: Path, tmp_path: Path) -> None:
    pictures = list(torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    own = {"image": pictures, "controlnet_conditioning_scale": [0.4, 0.9]}
    net = limner.ControlNetModel.from_pretrained(root / "net")
    pipe = limner.StableDiffusionControlNetPipeline.from_pretrained(root / "model", controlnet=[net, net])
    expected = draw(pipe, **own)
    pipe.save_pretrained(tmp_path / "saved")
    online.repos["someone/controlled"] = tmp_path / "saved"
    again = limner.DiffusionPipeline.from_pretrained("someone/controlled")
    assert len(again.controlnet.nets) == 2
    assert torch.equal(draw(again, **own), expected)
    where = {"subfolder": "controlnet", "local_files_only": True}
    assert len(limner.MultiControlNetModel.from_pretrained("someone/controlled", **where).nets) == 2
    where["cache_dir"] = tmp_path / "other"
    limner.ControlNetModel.from_pretrained("someone/controlled", **{**where, "local_files_only": False})
    with pytest.raises(ModelNotFound, match="cannot be asked"):  # one of two is not taken for all
        limner.MultiControlNetModel.from_pretrained("someone/controlled", **where)


def test_single_files(online: Hub, root: Path, tmp_path: Path) -> None:
    pipeline = limner.StableDiffusionPipeline
    path = root / "files" / "whole.safetensors"
    expected = draw(pipeline.from_pretrained(root / "model"))
    where = {"cache_dir": tmp_path / "own", "token": "hf_secret"}
    pages = [
        f"{site}/someone/files/{way}whole.safetensors{end}"
        for site in ("https://huggingface.co", "https://hf.co", "huggingface.co", "hf.co")
        for way, end in (("blob/main/", ""), ("resolve/main/", "?download=true"))
    ]
    assert torch.equal(draw(pipeline.from_single_file(path, safety_checker=None)), expected)
    for page in pages:
        pipe = pipeline.from_single_file(page, torch_dtype=torch.float32, use_safetensors=True, **where)
        assert pipe.name_or_path.endswith(f"snapshots/{COMMIT}/whole.safetensors")
    assert torch.equal(draw(pipe), expected)
    assert (tmp_path / "own" / "models--someone--files").is_dir()
    assert "Bearer hf_secret" in online.tokens
    bright = pipeline.from_single_file(path, vae=limner.AutoencoderKL.from_config(VAE.to_dict()))
    assert not torch.equal(draw(bright), expected)
    picture = limner.StableDiffusionImg2ImgPipeline.from_single_file(path)
    assert picture.unet.config.cross_attention_dim == UNET.cross_attention_dim

    with pytest.raises(ModelNotFound, match=r"no file gone\.safetensors"):
        pipeline.from_single_file("https://huggingface.co/someone/files/blob/main/gone.safetensors")
    with pytest.raises(ModelNotFound, match="there is no file nowhere"):
        pipeline.from_single_file("nowhere.safetensors")
    for given in ({"original_config": "v1.yaml"}, {"load_safety_checker": True}, {"config": MODEL}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(given))} is not offered"):
            pipeline.from_single_file(path, **given)
    with pytest.raises(TypeError, match="colour"):
        pipeline.from_single_file(path, colour="red")


def test_single_components_in_single_files(online: Hub, root: Path) -> None:
    whole = root / "files" / "whole.safetensors"
    expected = draw(limner.StableDiffusionPipeline.from_pretrained(root / "model"))
    page = "https://huggingface.co/someone/files/blob/main/vae.safetensors"
    for vae in (
        limner.AutoencoderKL.from_single_file(whole),
        limner.AutoencoderKL.from_single_file(root / "files" / "vae.safetensors"),
        limner.AutoencoderKL.from_single_file(page, torch_dtype=torch.float32),
    ):
        unet = limner.UNet2DConditionModel.from_single_file(whole)
        pipe = limner.StableDiffusionPipeline.from_pretrained(root / "model", vae=vae, unet=unet)
        assert torch.equal(draw(pipe), expected)
    told = limner.AutoencoderKL.from_single_file(whole, config=MODEL, subfolder="vae")
    assert told.config.sample_size == VAE.sample_size
    hub_names = root / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    for where in ({}, {"config": root / "model", "subfolder": "vae"}):
        vae = limner.AutoencoderKL.from_single_file(hub_names, **where)
        assert torch.equal(vae.decoder.conv_out.weight, told.decoder.conv_out.weight)
    with pytest.raises(limner.UnsupportedModel, match="CLIPTextModel is not read from single files"):
        limner.CLIPTextModel.from_single_file(whole)
