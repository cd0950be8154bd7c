"""Pictures of other programs than webui: each value is taken over, or named in a warning.

The samples are written as the programs write them.
"""

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from limner.errors import InvalidPicture
from limner.images.metadata import read_all_texts, read_request
from limner.images.readers import READERS, Texts, novelai, reader_of
from limner.request import GenerationRequest


def png(path, **chunks):
    texts = PngImagePlugin.PngInfo()
    for key, value in chunks.items():
        texts.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (512, 640)).save(path, pnginfo=texts)
    return path


def read(path, overriding=("model",)):
    found = read_request(path, overriding)
    GenerationRequest.of(found.fields)  # which is strict
    return found


def test_every_program_has_a_reader_of_its_own():
    names = [reader.NAME for reader in READERS]
    assert len(set(names)) == len(names)
    assert names[-1] == "AUTOMATIC1111"


# ComfyUI


def sampler(seed=2**63 + 5, latents="5", model="4", positive="6", **changes):
    inputs = {"seed": seed, "steps": 20, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    inputs |= {"denoise": 1.0, "model": [model, 0], "positive": [positive, 0], "negative": ["7", 0]}
    return {"class_type": "KSampler", "inputs": {**inputs, "latent_image": [latents, 0], **changes}}


def graph(**more):
    return {
        "3": sampler(),
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "sd\\dreamshaper_8.safetensors"},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat\n", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
        **more,
    }


COMFY = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "seed": 5,  # of 64 bits the lower 32, which alone a CPU's noise depends on
    "steps": 20,
    "guidance_scale": 6.5,
    "sampler": "dpmpp_2m",
    "sigma_schedule": "karras",
    "width": 512,
    "height": 640,
    "noise": "cpu",
    "emphasis": "no_norm",
}


def test_a_graph_of_comfyui(tmp_path):
    found = read(png(tmp_path / "a.png", prompt=graph(), workflow={"nodes": []}), ())
    assert found.fields == COMFY
    assert found.warnings == (
        f"{tmp_path / 'a.png'}: its model, dreamshaper_8, is not looked for: give `model`",
    )


def test_a_graph_of_comfyui_in_a_webps_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph())
    exif[0x010F] = "workflow:" + json.dumps({"nodes": []})
    Image.new("RGB", (64, 64)).save(tmp_path / "a.webp", exif=exif)
    assert read(tmp_path / "a.webp").fields == COMFY


def test_adapters_the_layer_of_the_text_encoder_and_linked_values(tmp_path):
    loader = {"lora_name": "ink v1.5.safetensors", "strength_model": 0.7, "strength_clip": 0.5}
    more = graph(
        **{
            "3": sampler(model="11", seed=["20", 0]),
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["21", 0], "clip": ["12", 0]}},
            "10": {"class_type": "LoraLoader", "inputs": {**loader, "model": ["4", 0], "clip": ["4", 1]}},
            "11": {
                "class_type": "LoraLoaderModelOnly",
                "inputs": {"lora_name": "b.safetensors", "strength_model": 1.0, "model": ["10", 0]},
            },
            "12": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
            "20": {"class_type": "Seed", "inputs": {"seed": 77}},
            "21": {"class_type": "StringConstant", "inputs": {"string": "a (cat:1.2)"}},
        }
    )
    found = read(png(tmp_path / "a.png", prompt=more))
    assert found.fields["loras"] == [
        {"name": "ink v1.5", "weight": 0.7, "text_weight": 0.5},
        {"name": "b", "weight": 1.0, "text_weight": 0.0},
    ]
    assert (found.fields["seed"], found.fields["clip_skip"]) == (77, 2)
    assert found.fields["prompt"] == "a (cat:1.2)"
    [warning] = found.warnings
    assert "weights words otherwise" in warning


def test_a_second_sampler_over_scaled_latents_is_the_hires_pass(tmp_path):
    scale = {"upscale_method": "nearest-exact", "width": 1024, "height": 1280, "crop": "disabled"}
    second = sampler(
        latents="10", denoise=0.5, steps=14, sampler_name="euler", scheduler="simple", positive="13"
    )
    more = graph(
        **{
            "8": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["4", 2]}},
            "10": {"class_type": "LatentUpscale", "inputs": {**scale, "samples": ["3", 0]}},
            "11": second,
            "13": {"class_type": "CLIPTextEncode", "inputs": {"text": "a large cat", "clip": ["4", 1]}},
        }
    )
    found = read(png(tmp_path / "a.png", prompt=more))
    assert found.warnings == ()
    assert found.fields == {
        **COMFY,
        "hires_width": 1024,
        "hires_height": 1280,
        "hires_strength": 0.5,
        "hires_steps": 7,
        "hires_upscaler": "latent_nearest_exact",
        "hires_sampler": "euler",
        "hires_sigma_schedule": "simple",
        "hires_prompt": "a large cat",
    }


def test_what_a_graph_has_besides_is_named(tmp_path):
    more = graph(
        **{
            "3": sampler(positive="30", sampler_name="exotic"),
            "30": {
                "class_type": "ControlNetApply",
                "inputs": {
                    "strength": 1.0,
                    "conditioning": ["6", 0],
                    "control_net": ["31", 0],
                    "image": ["32", 0],
                },
            },
            "31": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "canny.pth"}},
            "32": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        }
    )
    found = read(png(tmp_path / "a.png", prompt=more))
    assert found.fields["prompt"] == "a cat"
    assert [warning.partition(": ")[2] for warning in found.warnings] == [
        "its sampler exotic is none that Limner has: give another",
        "nodes that are not taken over: ControlNetApply, ControlNetLoader, LoadImage",
    ]


def test_a_graph_that_begins_with_a_picture_asks_for_it(tmp_path):
    more = graph(
        **{
            "3": sampler(latents="15", denoise=0.6),
            "15": {"class_type": "VAEEncode", "inputs": {"pixels": ["16", 0], "vae": ["4", 2]}},
            "16": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        }
    )
    found = read(png(tmp_path / "a.png", prompt=more))
    assert found.fields["strength"] == 0.6
    assert any("give `image`" in warning for warning in found.warnings)
    assert not any("give `image`" in w for w in read(tmp_path / "a.png", ("model", "image")).warnings)


WORKFLOWS = {  # published graphs -> some of the fields that are read from them, and what is named besides
    "02-hiresfix-latent": (
        {"steps": 12, "hires_width": 1152, "hires_strength": 0.5, "hires_sampler": "dpmpp_2m"},
        ["saved several images"],
    ),
    "17-lora-multiple": (
        {
            "loras": [
                {"name": "theovercomer8sContrastFix_sd15", "weight": 1.0},
                {"name": "epiNoiseoffset_v2", "weight": 1.0},
            ]
        },
        [],
    ),
    "25-sdxl-refiner-prompt-example": (
        {"seed": 6767725640732, "width": 1024},
        ["ran the steps 0 to 20 of 25", "a second sampler goes on", "CLIPTextEncode"],
    ),
    "27-embedding-example": (
        {
            "prompt": "photograph in the style of SDA768 girl with blonde hair\nlandscape scenery view",
            "sampler": "unipc_bh2",
        },
        [],
    ),
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_graphs_that_comfyui_publishes(tmp_path, name):
    file = Path(__file__).parents[2] / "golden" / "workflows" / f"{name}.json"
    found = read(png(tmp_path / "a.png", prompt=file.read_text(encoding="utf-8")))
    fields, warnings = WORKFLOWS[name]
    assert fields.items() <= found.fields.items()
    assert len(found.warnings) == len(warnings)
    assert all(part in warning for part, warning in zip(warnings, found.warnings, strict=True))


def test_a_workflow_of_the_editor_alone_does_not_suffice(tmp_path):
    with pytest.raises(InvalidPicture, match="editor, but not what it ran"):
        read_request(png(tmp_path / "a.png", workflow={"nodes": [], "links": []}))


# InvokeAI

INVOKE = {
    "app_version": "3.3.0post3",
    "generation_mode": "txt2img",
    "positive_prompt": "landscape",
    "negative_prompt": "low quality",
    "width": 768,
    "height": 432,
    "seed": 356120443,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 50,
    "scheduler": "dpmpp_2m_sde_k",
    "clip_skip": 1,
    "model": {"model_name": "amixx_3Prunedfp16", "base_model": "sd-1", "model_type": "main"},
    "controlnets": [],
    "ipAdapters": [],
    "loras": [{"lora": {"model_name": "ink_v1.5", "base_model": "sd-1"}, "weight": 0.75}],
    "vae": None,
}


def test_invokeai_of_today(tmp_path):
    found = read(png(tmp_path / "a.png", invokeai_metadata=INVOKE), ())
    assert found.fields == {
        "prompt": "landscape",
        "negative_prompt": "low quality",
        "width": 768,
        "height": 432,
        "seed": 356120443,
        "guidance_scale": 7.5,
        "steps": 50,
        "sampler": "dpmpp_2m_sde",
        "sigma_schedule": "karras",
        "clip_skip": 2,
        "noise": "cpu",
        "loras": [{"name": "ink_v1.5", "weight": 0.75}],
    }
    [warning] = found.warnings
    assert "amixx_3Prunedfp16" in warning


def test_what_invokeai_has_besides_is_named(tmp_path):
    more = {
        **INVOKE,
        "positive_prompt": "a cat++ on a (mat)1.2",
        "controlnets": [{"image": {"image_name": "a.png"}}],
        "vae": {"model_name": "sd-vae-ft-mse", "base_model": "sd-1"},
        "init_image": "b.png",
        "strength": 0.6,
        "seamless_x": True,
        "new_setting": 3,
    }
    found = read(png(tmp_path / "a.png", invokeai_metadata=more))
    assert (found.fields["strength"], found.fields["tiling"]) == (0.6, "x")
    said = " ".join(found.warnings)
    for part in ("`controls`", "`image`", "sd-vae-ft-mse", "word++", "new_setting: 3"):
        assert part in said


def test_invokeai_of_versions_1_and_2(tmp_path):
    image = {
        "prompt": [{"prompt": "a cat [dog]", "weight": 1.0}],
        "steps": 50,
        "cfg_scale": 7.5,
        "seed": 7,
        "sampler": "k_euler_a",
        "width": 512,
        "height": 640,
        "type": "txt2img",
    }
    second = {
        "model": "stable diffusion",
        "model_weights": "sd-1.4",
        "app_id": "invoke-ai/InvokeAI",
        "image": image,
    }
    expected = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "steps": 50,
        "guidance_scale": 7.5,
        "seed": 7,
        "sampler": "euler_a",
        "width": 512,
        "height": 640,
        "noise": "cpu",
    }
    assert read(png(tmp_path / "a.png", **{"sd-metadata": second})).fields == expected
    dream = '"a cat [dog]" -s 50 -S 7 -W 512 -H 640 -C 7.5 -A k_euler_a'
    assert read(png(tmp_path / "b.png", Dream=dream)).fields == expected
    assert read(png(tmp_path / "c.png", Dream=dream.replace("-s 50", "-s50"))).fields == expected


def test_broken_metadata_of_invokeai_is_an_error(tmp_path):
    with pytest.raises(InvalidPicture, match="broken"):
        read_request(png(tmp_path / "a.png", invokeai_metadata="{"))
    with pytest.raises(InvalidPicture, match="steps: 'many', expected a number"):
        read_request(png(tmp_path / "a.png", invokeai_metadata={**INVOKE, "steps": "many"}))


# Fooocus

FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "created_by": "",
    "full_negative_prompt": ["low quality"],
    "full_prompt": ["cinematic still a cat", "a cat, intricate"],
    "guidance_scale": 4.0,
    "loras": [["sd_xl_offset_example-lora_1.0", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "",
    "performance": "Speed",
    "prompt": "a cat",
    "prompt_expansion": "a cat, intricate",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(896, 1152)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "8812345678901234567",
    "sharpness": 2.0,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.0",
}


def test_fooocus(tmp_path):
    found = read(png(tmp_path / "a.png", parameters=FOOOCUS, fooocus_scheme="fooocus"))
    assert found.fields == {
        "prompt": "cinematic still a cat, a cat, intricate",
        "negative_prompt": "low quality",
        "seed": 8812345678901234567 % 2**32,
        "steps": 30,
        "guidance_scale": 4.0,
        "clip_skip": 2,
        "width": 896,
        "height": 1152,
        "sampler": "dpmpp_2m_sde",
        "sigma_schedule": "karras",
        "loras": [{"name": "sd_xl_offset_example-lora_1.0", "weight": 0.1}],
        "noise": "cpu",
    }
    said = " ".join(found.warnings)
    assert "adm_guidance: (1.5, 0.8, 0.3), sharpness: 2.0" in said
    assert "each part of its prompt" in said


def test_fooocus_in_a_jpegs_exif_and_in_webuis_scheme(tmp_path):
    exif = Image.Exif()
    exif[0x9286], exif[0x927C], exif[0x0131] = json.dumps(FOOOCUS), "fooocus", "Fooocus v2.5.0"
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").fields["steps"] == 30
    text = "a cat\nNegative prompt: dog\nSteps: 30, Sampler: DPM++ 2M SDE Karras, CFG scale: 4, Seed: 5, "
    text += "Size: 896x1152, Sharpness: 2, ADM Guidance: (1.5, 0.8, 0.3), Version: Fooocus v2.5.0"
    found = read(png(tmp_path / "b.png", parameters=text, fooocus_scheme="a1111"))
    assert found.fields["sampler"] == "dpmpp_2m_sde"
    assert "Sharpness: 2" in " ".join(found.warnings)


# NovelAI

NOVEL = {
    "prompt": "{{cat}}, [dog], a (b), 1.2::tree, house::, plain",
    "steps": 28,
    "height": 640,
    "width": 512,
    "scale": 5.0,
    "uncond_scale": 0.0,
    "cfg_rescale": 0.2,
    "seed": 2174562839,
    "n_samples": 1,
    "noise_schedule": "karras",
    "sampler": "k_euler_ancestral",
    "request_type": "PromptGenerateRequest",
    "uc": "lowres, {bad}",
    "strength": 0.7,
    "noise": 0.2,
    "sm": True,
}
NOVEL_TEXTS = {
    "Software": "NovelAI",
    "Source": "NovelAI Diffusion V3",
    "Description": "cat",
    "Comment": json.dumps(NOVEL),
}
NOVEL_FIELDS = {
    "prompt": r"(cat:1.1), (dog:0.952), a \(b\), (tree, house:1.2), plain",
    "negative_prompt": "lowres, (bad:1.05)",
    "seed": 2174562839,
    "steps": 28,
    "guidance_scale": 5.0,
    "guidance_rescale": 0.2,
    "width": 512,
    "height": 640,
    "sampler": "euler_a",
    "sigma_schedule": "karras",
    "noise": "gpu",
}


def test_novelai(tmp_path):
    found = read(png(tmp_path / "a.png", **NOVEL_TEXTS))
    assert found.fields == NOVEL_FIELDS
    said = " ".join(found.warnings)
    assert "sm: true" in said.lower()
    assert "its noise are NovelAI's own" in said


def hide(image, data):
    """Write bytes into the lowest bits of the alpha channel, as NovelAI does."""
    packed = gzip.compress(data)
    content = b"stealth_pngcomp" + (8 * len(packed)).to_bytes(4) + packed
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    alpha = np.full(image.width * image.height, 254, np.uint8)
    alpha[: len(bits)] |= bits
    image.putalpha(Image.fromarray(alpha.reshape(image.width, image.height).T.copy()))


def test_novelais_hidden_texts(tmp_path):
    image = Image.new("RGB", (96, 128))
    hide(image, json.dumps(NOVEL_TEXTS).encode())
    image.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").fields == NOVEL_FIELDS


def test_hidden_texts_that_are_a_bomb_are_not_unpacked():
    image = Image.new("RGB", (1024, 1024))
    hide(image, json.dumps({"Comment": "x" * (64 << 20)}).encode())
    tracemalloc.start()
    try:
        assert novelai.hidden_texts(image) == {}
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"stealth_pngcomp" + b"\xff" * 40, b"stealth_pngcomp\0\0\0\x10ab"])
def test_hidden_texts_that_are_broken_are_none(content):
    image = Image.new("RGBA", (32, 32))
    alpha = np.zeros(32 * 32, np.uint8)
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    alpha[: len(bits)] = bits
    image.putalpha(Image.fromarray(alpha.reshape(32, 32).T.copy()))
    assert novelai.hidden_texts(image) == {}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("plain", "plain"),
        ("{a}", "(a:1.05)"),
        ("[[a]]", "(a:0.907)"),
        ("{a, {b}, c}", "(a, :1.05)(b:1.1)(, c:1.05)"),
        (r"\(kept\)", r"\(kept\)"),
        ("0.5::a::b", "(a:0.5)b"),
        ("{unclosed", "(unclosed:1.05)"),
    ],
)
def test_novelais_weights_become_webuis(theirs, ours):
    assert novelai.in_webui_grammar(theirs) == ours


# SwarmUI

SWARM = {
    "prompt": "a photo of a cat",
    "negativeprompt": "dog",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0",
    "seed": 305223794,
    "steps": 25,
    "cfgscale": 7.0,
    "aspectratio": "1:1",
    "width": 1024,
    "height": 1024,
    "sampler": "euler",
    "scheduler": "normal",
    "clipstopatlayer": -2,
    "loras": ["style/ink v1.5"],
    "loraweights": ["0.6"],
    "swarm_version": "0.9.1.1",
    "refinercontrolpercentage": 0.2,
}


def test_swarmui(tmp_path):
    given = {"sui_image_params": SWARM, "sui_extra_data": {"date": "2025-01-25"}}
    expected = {
        "prompt": "a photo of a cat",
        "negative_prompt": "dog",
        "seed": 305223794,
        "steps": 25,
        "guidance_scale": 7.0,
        "width": 1024,
        "height": 1024,
        "sampler": "euler",
        "sigma_schedule": "normal",
        "clip_skip": 2,
        "loras": [{"name": "ink v1.5", "weight": 0.6}],
        "noise": "cpu",
        "emphasis": "no_norm",
    }
    found = read(png(tmp_path / "a.png", parameters=given))
    assert found.fields == expected
    [warning] = found.warnings
    assert "refinercontrolpercentage: 0.2" in warning
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(given).encode("utf-16-le")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").fields == expected


# Draw Things, Easy Diffusion


def test_draw_things(tmp_path):
    given = {
        "c": "a cat & dog",
        "uc": "fog",
        "steps": 20,
        "sampler": "DPM++ 2M Karras",
        "scale": 7.5,
        "seed": 3,
        "size": "512x640",
        "strength": 1,
        "model": "sd_v1.5_f16.ckpt",
        "seed_mode": "Scale Alike",
        "lora": [{"model": "ink_lora_f16.ckpt", "weight": 0.6}],
        "v2": {"steps": 20},
    }
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><exif:UserComment><rdf:Alt>'
        '<rdf:li xml:lang="x-default">'
        + json.dumps(given).replace("&", "&amp;").replace('"', "&quot;")
        + "</rdf:li></rdf:Alt></exif:UserComment></rdf:RDF></x:xmpmeta>"
    )
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=chunks)
    found = read(tmp_path / "a.png")
    assert found.fields == {
        "prompt": "a cat & dog",
        "negative_prompt": "fog",
        "seed": 3,
        "steps": 20,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 640,
        "sampler": "dpmpp_2m",
        "sigma_schedule": "karras",
        "loras": [{"name": "ink_lora_f16", "weight": 0.6}],
        "noise": "cpu",
    }
    assert "Scale Alike" in " ".join(found.warnings)


@pytest.mark.parametrize("shown", [True, False])
def test_easy_diffusion(tmp_path, shown):
    names = {
        "Prompt": "prompt",
        "Negative Prompt": "negative_prompt",
        "Seed": "seed",
        "Stable Diffusion model": "use_stable_diffusion_model",
        "Steps": "num_inference_steps",
        "Guidance Scale": "guidance_scale",
        "Sampler": "sampler_name",
        "Width": "width",
        "Height": "height",
        "Clip Skip": "clip_skip",
    }
    values = ("a cat", "dog", "3", "sd-v1-5", "25", "7.5", "euler_a", "512", "640", "True")
    given = dict(zip(names if shown else names.values(), values, strict=True))
    assert read(png(tmp_path / "a.png", **given)).fields == {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "seed": 3,
        "steps": 25,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 640,
        "sampler": "euler_a",
        "clip_skip": 2,
        "noise": "gpu",
    }


# Others


def test_unknown_metadata_is_named(tmp_path):
    path = png(tmp_path / "a.png", Software="gimp", **{"my program": "a cat"})
    with pytest.raises(
        InvalidPicture, match="contains no known generation metadata; its text keys are Software, my program"
    ):
        read_request(path)
    assert reader_of(read_all_texts(path)) is None
    assert reader_of(Texts()) is None


def test_an_open_file_is_read_and_can_be_read_again(tmp_path):
    with png(tmp_path / "a.png", invokeai_metadata=INVOKE).open("rb") as file:
        assert read(file).fields == read(file).fields


@pytest.mark.parametrize(
    ("version", "warns"), [("v1.5.2", True), ("v1.6.0", False), ("v1.10.1", False), ("f2.0", False)]
)
def test_the_prompt_timelines_of_old_versions_of_webui_are_mentioned(tmp_path, version, warns):
    for prompt, edited in (("a [cat:dog:0.5]", True), ("a [cat|dog]", True), ("a [cat]", False)):
        text = (
            f"{prompt}\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 512x640, Version: {version}"
        )
        found = read(png(tmp_path / "a.png", parameters=text))
        assert bool(found.warnings) == (warns and edited)
        assert all("timelines that webui had before 1.6" in warning for warning in found.warnings)
