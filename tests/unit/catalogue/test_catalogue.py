"""The catalogue of a machine's models."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from limner import load
from limner.catalogue import catalogue as module
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.contents import describe_tensors
from limner.catalogue.facts import model_facts
from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, PickleRefused, UnsupportedModel
from tests.clocks import time_with

QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONTEXT = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
UNET = "model.diffusion_model."
FILES = {
    "checkpoint sd1": {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    },
    "checkpoint xl": {f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048)},
    "checkpoint other": {f"{UNET}double_blocks.0.img_attn.qkv.weight": (9216, 3072)},
    "lora sd1": {f"lora_unet_{CONTEXT}.lora_down.weight": (4, 768), f"lora_unet_{CONTEXT}.alpha": ()},
    "lora sd2": {f"unet.{CONTEXT.replace('_attn2_to_k', '.attn2.to_k')}.lora_A.weight": (4, 1024)},
    "lora xl": {"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)},
    "lora  xl": {f"lora_unet_{QUERY}.hada_w1_b": (4, 640), "lora_te2_text_model_x.hada_w1_b": (4, 1280)},
    "lora custom": {f"lora_unet_{CONTEXT}.lokr_w1": (8, 8), f"lora_unet_{CONTEXT}.lokr_w2": (24, 24)},
    "lora   xl": {f"lora_unet_{CONTEXT}.lokr_w1": (8, 8), f"lora_unet_{CONTEXT}.lokr_w2": (80, 256)},
    "lora  sd1": {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)},
    "lora    xl": {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)},
    "lora  ": {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (4, 768)},
    "lora other": {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (4, 3072)},
    "lora ": {f"lora_unet_{QUERY}.diff_b": (320,)},
    "embedding sd1": {"emb_params": (3, 768)},
    "embedding  sd1": {"<cat>": (768,)},
    "embedding sd2": {"emp_params": (3, 1024), "emp_params_out": (3, 1024)},
    "embedding xl": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "controlnet sd1": {
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
    },
    "controlnet xl": {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 2048),
    },
    "t2i_adapter sd1": {"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 192, 3, 3)},
    "t2i_adapter xl": {
        "adapter.body.0.resnets.0.block1.weight": (3, 3),
        "adapter.conv_in.weight": (3, 768, 3, 3),
    },
    "ip_adapter sd1": {"image_proj.norm.weight": (768,), "ip_adapter.1.to_k_ip.weight": (320, 768)},
    "ip_adapter xl": {"image_proj.proj_out.weight": (2048, 1280), "image_proj.latents": (1, 16, 1280)},
    "vae ": {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)},
    "image_encoder ": {"vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14)},
    "upscaler ": {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)},
    "None ": {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_tensors(name):
    kind, family = name.split(" ", 1)
    found = describe_tensors(FILES[name], {})
    assert (str(found.kind), found.family) == (kind, family.strip())
    assert found.parameters == sum(math.prod(shape) for shape in FILES[name].values())


def test_metadata_tells_the_family_where_shapes_do_not():
    shapes = {f"lora_unet_{QUERY}.lora_down.weight": (4, 640)}
    for metadata, family in (
        ({}, ""),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "xl"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
    ):
        assert describe_tensors(shapes, metadata).family == family


def test_trigger_words_come_from_the_metadata():
    shapes = FILES["lora sd1"]
    tags = json.dumps({"1_a": {"ink wash": 30, "boat": 4}, "2_b": {"boat": 2, "sea": 5}})
    assert describe_tensors(shapes, {"ss_tag_frequency": tags}).trigger_words == ("ink wash", "boat", "sea")
    told = {"ss_tag_frequency": tags, "modelspec.trigger_phrase": "inkwash, brush"}
    assert describe_tensors(shapes, told).trigger_words == ("inkwash", "brush")
    for broken in ("[", "[1]", '{"a": 1}', '{"a": {"b": "c"}}'):
        assert describe_tensors(shapes, {"ss_tag_frequency": broken}).trigger_words == ()


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None
) -> Path:
    """A sparse safetensors file of zeros."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        entries[key] = {"dtype": "U8", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    loras = tmp_path / "loras"
    write(loras / "ink.safetensors", FILES["lora sd1"], {"modelspec.trigger_phrase": "inkwash"})
    write(loras / "sd15/pen.safetensors", FILES["lora sd1"])
    write(loras / "xl/pen.safetensors", FILES["lora xl"])
    write(loras / "model.safetensors", FILES["checkpoint sd1"])  # a checkpoint in the wrong folder
    (loras / "ink.preview.png").write_bytes(b"a picture")
    (loras / "ink.civitai.info").write_text('{"trainedWords": ["ink wash", "brush"]}')
    (loras / "old.pt").write_bytes(b"a pickle")
    (loras / "broken.safetensors").write_bytes(b"nothing")
    (loras / "linked").symlink_to(tmp_path / "disk")
    (loras / "round").symlink_to(loras)
    write(tmp_path / "disk/far.safetensors", FILES["lora sd2"])
    embeddings = tmp_path / "embeddings"
    write(embeddings / "bad.safetensors", FILES["embedding sd1"])
    (embeddings / "older.pt").write_bytes(b"a pickle")
    (embeddings / "card.png").write_bytes(b"\x89PNG...sd-ti-embedding...")
    (embeddings / "bad.png").write_bytes(b"\x89PNG of a house")
    snapshot = tmp_path / "hub/models--org--ip/snapshots/0123abc"
    write(snapshot / "models/plain.safetensors", FILES["ip_adapter sd1"])
    (snapshot / "models/image_encoder").mkdir()
    (snapshot / "models/image_encoder/config.json").write_text(
        '{"architectures": ["CLIPVisionModelWithProjection"]}'
    )
    write(snapshot / "models/image_encoder/model.safetensors", FILES["image_encoder "])
    return Catalogue(
        {"lora": [loras], "embedding": [embeddings]},
        cache=tmp_path / "cache",
        shipped=SHIPPED | SHIPPED_NETWORKS,
        hub_cache=tmp_path / "hub",
    )


def test_what_is_on_the_machine(catalogue, tmp_path):
    found = {entry.id: entry for entry in catalogue.entries()}
    assert {id_: (entry.family, entry.where) for id_, entry in found.items()} == {
        "checkpoint:model": ("sd1", "folder"),
        "checkpoint:picturebook": ("custom", "shipped"),
        "controlnet:picturebook-edges": ("custom", "shipped"),
        "embedding:bad": ("sd1", "folder"),
        "embedding:card": ("", "folder"),
        "embedding:older": ("", "folder"),
        "image_encoder:org/ip:models/image_encoder": ("", "hub cache"),
        "ip_adapter:org/ip:models/plain.safetensors": ("sd1", "hub cache"),
        "lora:broken": ("", "folder"),
        "lora:ink": ("sd1", "folder"),
        "lora:linked/far": ("sd2", "folder"),
        "lora:old": ("", "folder"),
        "lora:sd15/pen": ("sd1", "folder"),
        "lora:xl/pen": ("xl", "folder"),
    }
    ink = found["lora:ink"]
    assert ink.trigger_words == ("ink wash", "brush")
    assert ink.preview == tmp_path / "loras/ink.preview.png"
    assert ink.bytes == ink.path.stat().st_size
    assert ink.problem is None
    assert "pickle" in found["lora:old"].problem
    assert "too short" in found["lora:broken"].problem
    assert found["ip_adapter:org/ip:models/plain.safetensors"].revision == "0123abc"
    shipped = found["checkpoint:picturebook"]
    assert shipped.problem is None
    assert 30 << 20 > shipped.bytes > shipped.parameters > 1 << 20


def test_a_name_finds_its_entry(catalogue, tmp_path):
    assert catalogue.find("lora", "ink").path == tmp_path / "loras/ink.safetensors"
    assert catalogue.find("lora", "ink.safetensors").id == "lora:ink"
    assert catalogue.find("lora", "xl/pen").family == "xl"
    assert catalogue.find("lora", "pen", "sd1").id == "lora:sd15/pen"
    assert catalogue.find("checkpoint", "picturebook").where == "shipped"
    with pytest.raises(InvalidRequest, match=r"means 2 files: lora:sd15/pen .*, lora:xl/pen"):
        catalogue.find("lora", "pen")
    with pytest.raises(ModelNotFound, match="no lora 'inc' in the catalogue; similar names: ink"):
        catalogue.find("lora", "inc")
    with pytest.raises(
        ModelNotFound, match=r"is for Stable Diffusion 1\.x, expected one for Stable Diffusion XL"
    ):
        catalogue.find("lora", "ink", "xl")
    with pytest.raises(ModelNotFound, match="no ip adapter 'ink'"):
        catalogue.find("ip_adapter", "ink")


def test_a_new_file_is_found_by_its_name_after_a_moment(catalogue, tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module, "time", time_with(monotonic=lambda: clock[0]))
    with pytest.raises(ModelNotFound):
        catalogue.find("lora", "brand new")
    (first,) = [one for one in catalogue.entries("lora") if one.family == "sd1"][:1]
    shutil.copy(first.path, first.path.with_name("brand new.safetensors"))
    clock[0] += 1
    with pytest.raises(ModelNotFound):  # searched a moment ago
        catalogue.find("lora", "brand new")
    clock[0] += 1
    assert catalogue.find("lora", "brand new").family == "sd1"


def test_files_are_hashed_in_the_background(catalogue, tmp_path):
    assert all(entry.sha256 is None for entry in catalogue.entries())
    catalogue.refresh()
    assert catalogue.wait_hashed(60)
    for entry in catalogue.entries():
        if entry.path.is_file():
            assert entry.sha256 == hashlib.sha256(entry.path.read_bytes()).hexdigest()
            assert entry.short_hash == entry.sha256[:10]
    ink = catalogue.find("lora", "ink")
    data = ink.path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert ink.tensors_sha256 == hashlib.sha256(data[start:]).hexdigest()
    assert catalogue.find("lora", ink.sha256[:10].upper()) == ink
    assert catalogue.find("lora", f"sha256:{ink.sha256}") == ink
    write(ink.path, FILES["lora sd2"])
    catalogue.refresh()
    assert catalogue.wait_hashed(60)
    changed = catalogue.find("lora", "ink")
    assert (changed.family, changed.sha256) == ("sd2", hashlib.sha256(ink.path.read_bytes()).hexdigest())


def test_what_was_read_is_kept_by_stamp(catalogue, tmp_path, monkeypatch):
    first = catalogue.entries()
    read = []
    real = module.read_header
    monkeypatch.setattr(module, "read_header", lambda path: read.append(path.name) or real(path))
    again = Catalogue(
        catalogue._folders, cache=tmp_path / "cache", shipped=catalogue._shipped, hub_cache=tmp_path / "hub"
    )
    assert again.entries() == first
    assert read == ["broken.safetensors"]
    read.clear()
    write(tmp_path / "loras/ink.safetensors", FILES["lora xl"])
    (tmp_path / "loras/sd15/pen.safetensors").unlink()
    found = {entry.name: entry.family for entry in again.refresh() if entry.kind == "lora"}
    assert sorted(read) == ["broken.safetensors", "ink.safetensors"]
    assert found["ink"] == "xl"
    assert "sd15/pen" not in found
    again.wait_hashed(60)
    for broken in ("[", "{}", '{"version": 1, "contents": {"a": {"kind": 3}}}'):
        (tmp_path / "cache/catalogue.json").write_text(broken)
        fresh = Catalogue(catalogue._folders, cache=tmp_path / "cache")
        assert {entry.name for entry in fresh.entries("lora")} == found.keys()


def test_no_torch_is_imported(tmp_path):
    program = f"""
import sys
from pathlib import Path
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
from limner.catalogue.shipped import SHIPPED
folder = Path({str(tmp_path)!r})
catalogue = Catalogue({{"lora": [folder]}}, cache=folder / "cache", shipped=SHIPPED)
catalogue.refresh()
assert catalogue.wait_hashed(60)
assert model_facts(catalogue.find("checkpoint", "picturebook")).parameters
assert not {{"torch", "numpy", "huggingface_hub"}} & sys.modules.keys()
"""
    write(tmp_path / "ink.safetensors", FILES["lora sd1"])
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("model", ["picturebook", "tiny"])
def test_facts_are_those_of_the_loaded_model(model, tmp_path, checkpoint_folder):
    folders = {"picturebook": SHIPPED["picturebook"], "tiny": checkpoint_folder}
    catalogue = Catalogue({}, cache=tmp_path / "cache", shipped=folders)
    facts = model_facts(catalogue.find("checkpoint", model))
    expected = load(folders[model], precision="fp32").facts
    assert replace(facts, name=expected.name) == expected


def test_facts_of_broken_configs(tmp_path, checkpoint_folder):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "copy")
    catalogue = Catalogue({"checkpoint": [tmp_path]}, cache=tmp_path / "cache")
    config = json.loads((folder / "vae/config.json").read_text())
    for broken, problem in (
        ({**config, "block_out_channels": None}, r"vae/config\.json holds a value that no network has"),
        ({**config, "latent_channels": 7}, "U-Net out_channels and VAE latent_channels must agree"),
    ):
        (folder / "vae/config.json").write_text(json.dumps(broken))
        with pytest.raises(InvalidCheckpoint, match=problem):
            model_facts(catalogue.find("checkpoint", "copy"))
    (folder / "vae/config.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"vae/config\.json is missing"):
        model_facts(catalogue.find("checkpoint", "copy"))


def test_facts_of_broken_single_files(tmp_path):
    write(tmp_path / "part.safetensors", FILES["checkpoint sd1"])
    write(tmp_path / "other.safetensors", FILES["checkpoint other"])
    (tmp_path / "old.ckpt").write_bytes(b"a pickle")
    catalogue = Catalogue({"checkpoint": [tmp_path]}, cache=tmp_path / "cache")
    for name, error, problem in (
        ("part", InvalidCheckpoint, "part of a model only: it lacks text encoders"),
        ("other", UnsupportedModel, "no Stable Diffusion 1.x, 2.x or XL in one file"),
        ("old", PickleRefused, "old.ckpt is a pickle: its networks are known when it is opened"),
    ):
        with pytest.raises(error, match=problem):
            model_facts(catalogue.find("checkpoint", name))
