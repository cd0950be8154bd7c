"""What requests name, found in a catalogue: the same as the loaded model finds, for the same files."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from limner import GenerationRequest, load
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
from limner.catalogue.files import CatalogueFiles
from limner.errors import InvalidCheckpoint, InvalidRequest, LimnerError, ModelNotFound, UnsupportedModel
from limner.images.assets import Assets
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet_config import EncoderConfig, attended_layers
from limner.request.resolve import resolve
from limner.weights.keymaps import controlnet_entries
from limner.weights.save import write_json
from limner.weights.tensors import write_tensors

ASK = {"prompt": "a cat", "seed": 3, "steps": 4, "width": 64, "height": 64}
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
OTHER = "lora_unet_double_blocks_0_img_attn_qkv"
VISION = CLIPVisionConfig(
    hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
    projection_dim=24, projection=True,
)  # fmt: skip


def write_lora(path, *modules, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    sides = {"lora_down": (2, width), "lora_up": (32, 2)}
    shapes = {f"{module}.{side}.weight": shape for module in modules for side, shape in sides.items()}
    write_tensors(path, {key: torch.randn(shape, generator=random) for key, shape in shapes.items()})


def controlnet(unet, **own):
    shared = {field.name: getattr(unet, field.name) for field in fields(EncoderConfig)}
    return ControlNetConfig(**{**shared, "conditioning_embedding_out_channels": (8, 16), **own})


def write_network(folder, config, network):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    write_tensors(folder / "diffusion_pytorch_model.safetensors", network(config).state_dict())


def write_ip_adapter(path, unet, context=None):
    layers = tuple(attended_layers(unet).values())
    config = IPAdapterConfig("linear", 24, context or unet.cross_attention_dim, layers, tokens=4)
    write_tensors(path, IPAdapter(config).state_dict())


@pytest.fixture
def places(tmp_path, networks):
    """Folders of LoRAs, control networks and IP-Adapters: what fits the tiny model, and what does not."""
    unet = networks["unet"].config
    loras, controls, prompts = (tmp_path / "files" / name for name in ("loras", "controls", "prompts"))
    write_lora(loras / "one.safetensors", QUERY, KEY, TEXT)
    write_lora(loras / "more/two.safetensors", QUERY)
    write_lora(loras / "a/twice.safetensors", QUERY)
    write_lora(loras / "b/twice.safetensors", QUERY, KEY)
    write_lora(loras / "tiny/apart.safetensors", KEY)
    write_lora(loras / "xl/apart.safetensors", KEY, width=2048)
    write_lora(loras / "large.safetensors", QUERY, KEY, width=2048)
    write_lora(loras / "flux.safetensors", OTHER)
    (loras / "broken.safetensors").write_bytes(b"nothing")
    (loras / "old.pt").write_bytes(b"a pickle")
    write_network(controls / "net", controlnet(unet), ControlNetModel)
    write_network(controls / "gray", controlnet(unet, conditioning_channels=1), ControlNetModel)
    write_network(controls / "wide", controlnet(unet, cross_attention_dim=768), ControlNetModel)
    t2i = T2IAdapterConfig(channels=(32, 32), num_res_blocks=1, downscale_factor=2)
    write_network(controls / "t2i", t2i, T2IAdapter)
    single = ControlNetConfig(block_out_channels=(64,), down_block_types=("CrossAttnDownBlock2D",))
    single = {entry.single: torch.zeros(entry.shape) for entry in controlnet_entries(single)}
    write_tensors(controls / "single.safetensors", {**single, "logvar": torch.zeros(4)})
    prompts.mkdir()
    write_ip_adapter(prompts / "plain.safetensors", unet)
    write_ip_adapter(prompts / "xl.safetensors", unet, context=2048)
    (prompts / "far").mkdir()
    write_ip_adapter(prompts / "far/plainer.safetensors", unet)
    for folder, config in (("image_encoder", VISION), ("small", replace(VISION, projection_dim=12))):
        (prompts / folder).mkdir()
        write_json(prompts / folder / "config.json", config.to_dict())
        write_tensors(prompts / folder / "model.safetensors", CLIPVisionModel(config).state_dict())
    return {"lora": [loras], "controlnet": [controls], "ip_adapter": [prompts]}


@pytest.fixture
def model(checkpoint_folder, places):
    lora_dirs, control_dirs, image_prompt_dirs = places.values()
    return load(
        checkpoint_folder,
        precision="fp32",
        lora_dirs=lora_dirs,
        control_dirs=control_dirs,
        image_prompt_dirs=image_prompt_dirs,
    )


@pytest.fixture
def catalogue(tmp_path, checkpoint_folder, places):
    return Catalogue(places, cache=tmp_path / "cache", shipped={"tiny": checkpoint_folder})


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def found(model, catalogue):
    """Resolves a request with the catalogue, as the loaded model would."""
    facts = replace(model_facts(catalogue.find("checkpoint", "tiny")), name=model.name)
    assert facts == model.facts

    def resolved(**fields):
        request = GenerationRequest.of({**ASK, "model": model.name, **fields})
        return resolve(request, facts, CatalogueFiles(catalogue, facts))

    return resolved


def expected(model, **fields):
    return model.resolve(GenerationRequest.of({**ASK, "model": model.name, **fields}))


def fields_of(case, image):
    """A case with the image in the place of "IMAGE"."""
    return json.loads(json.dumps(case).replace("IMAGE", image))


ACCEPTED = [
    {"loras": [{"name": "one"}]},
    {"loras": [{"name": "two", "weight": 0.5}, {"name": "more/two", "weight": 0.25}, {"name": "one"}]},
    {"prompt": "a cat <lora:one:0.7>", "loras": [{"name": "two", "weight": 0.0}]},
    {"loras": [{"name": "twice"}]},
    {"loras": [{"name": "apart"}]},
    {"hires_scale": 2.0, "hires_prompt": "a cat <lora:twice>", "loras": [{"name": "one"}]},
    {"controls": [{"model": "net", "image": "IMAGE"}, {"model": "gray", "image": "IMAGE"}]},
    {"controls": [{"model": "t2i", "image": "IMAGE", "preprocessor": "canny"}]},
    {"image_prompts": [{"model": "plain", "images": ["IMAGE"], "weight": 0.5}]},
    {"image_prompts": [{"model": "plainer", "images": ["IMAGE"]}]},
    {"image_prompts": [{"model": "plain", "images": ["IMAGE"], "image_encoder": "image_encoder"}]},
    {"image": "IMAGE", "strength": 0.5, "width": None, "height": None},
    {"image": "IMAGE", "mask": "IMAGE", "guidance_scale": 1.0, "negative_prompt": "fog"},
]


def test_the_same_as_the_loaded_model_finds(model, found, image):
    for case in ACCEPTED:
        asked = fields_of(case, image)
        ours, theirs = found(**asked), expected(model, **asked)
        assert ours == replace(theirs, warnings=ours.warnings)
        assert set(ours.warnings) == set(theirs.warnings)
        ambiguous = [warning for warning in ours.warnings if "files named 'twice' fit" in warning]
        assert len(ambiguous) == ("twice" in json.dumps(case))


REFUSED = [
    ({"loras": [{"name": "large"}]}, UnsupportedModel),
    ({"loras": [{"name": "flux"}]}, UnsupportedModel),
    ({"loras": [{"name": "broken"}]}, InvalidCheckpoint),
    ({"controls": [{"model": "wide", "image": "IMAGE"}]}, InvalidRequest),
    ({"controls": [{"model": "single", "image": "IMAGE"}]}, InvalidRequest),
    ({"controls": [{"model": "t2i", "image": "IMAGE", "mode": "guess"}]}, InvalidRequest),
    ({"controls": [{"model": "net", "image": "IMAGE", "preprocessor": "cany"}]}, InvalidRequest),
    ({"controls": [{"model": "net", "image": "IMAGE", "preprocessor": "inpaint"}]}, InvalidRequest),
    ({"image_prompts": [{"model": "xl", "images": ["IMAGE"]}]}, UnsupportedModel),
    ({"width": 63}, InvalidRequest),
]


def test_refused_as_the_loaded_model_refuses(model, found, image):
    for case, error in REFUSED:
        asked = fields_of(case, image)
        with pytest.raises(error) as ours:
            found(**asked)
        with pytest.raises(error) as theirs:
            expected(model, **asked)
        assert (ours.value.message, ours.value.hint) == (theirs.value.message, theirs.value.hint)
        assert ours.value.fields == (theirs.value.fields if error is InvalidRequest else tuple(case))


UNKNOWN = [
    ({"loras": [{"name": "onne"}]}, "loras", "no lora 'onne' in the catalogue; similar names: one"),
    ({"loras": [{"name": "LORAS/one.safetensors"}]}, "loras", "no lora '/"),
    ({"loras": [{"name": "loras/one.safetensors"}]}, "loras", "no lora 'loras/one"),
    ({"loras": [{"name": "old"}]}, "loras", "is a pickle"),
    (
        {"controls": [{"model": "someone/else", "image": "IMAGE"}]},
        "controls",
        "no controlnet or t2i adapter 'someone/else'",
    ),
    ({"controls": [{"model": "CONTROLS/net", "image": "IMAGE"}]}, "controls", "no controlnet or"),
    (
        {"image_prompts": [{"model": "none", "images": ["IMAGE"]}]},
        "image_prompts",
        "no ip adapter 'none'",
    ),
    (
        {"image_prompts": [{"model": "plain", "images": ["IMAGE"], "image_encoder": "small"}]},
        "image_prompts",
        "no image encoder of the kind that plain needs: .*small gives something else than the 24 numbers",
    ),
]


def test_only_what_the_catalogue_has(found, places, image):
    for case, field, problem in UNKNOWN:
        text = json.dumps(case).replace("IMAGE", image)
        text = text.replace("LORAS", str(places["lora"][0])).replace("CONTROLS", str(places["controlnet"][0]))
        with pytest.raises(LimnerError, match=problem) as caught:
            found(**json.loads(text))
        assert caught.value.fields == (field,)


def test_images_of_a_store(catalogue, tmp_path, image):
    assets = Assets(tmp_path / "store", allow_paths=False)
    facts = model_facts(catalogue.find("checkpoint", "tiny"))
    files = CatalogueFiles(catalogue, facts, assets)
    with open(image, "rb") as file:
        reference = assets.put(file.read())
    assert files.image_size(reference) == (80, 64)
    request = GenerationRequest.of({**ASK, "image": reference, "width": None, "height": None})
    assert resolve(request, facts, files).pictures[0].passes[0].width == 80
    for source in (image, "sha256:" + "0" * 64):
        with pytest.raises(InvalidRequest):
            files.image_size(source)


def test_a_model_that_finds_files_in_a_catalogue(model, catalogue, checkpoint_folder, places, image):
    closed = load(checkpoint_folder, precision="fp32", catalogue=catalogue)
    cases = [
        {"loras": [{"name": "one", "weight": 8.0}]},
        {"controls": [{"model": "net", "image": image}]},
        {"image_prompts": [{"model": "plain", "images": [image]}]},
    ]
    plain = model.generate(**ASK).images[0].tobytes()
    for case in cases:
        ours, theirs = (one.generate(**ASK, **case).images[0] for one in (closed, model))
        assert ours.tobytes() == theirs.tobytes()
        assert (ours.tobytes() != plain) is ("controls" not in case)  # whose new network adds zeros
    path = places["lora"][0] / "one.safetensors"
    model.resolve(GenerationRequest.of({**ASK, "loras": [{"name": str(path)}]}))
    for name in (str(path), "new"):
        with pytest.raises(ModelNotFound):
            closed.generate(**ASK, loras=[{"name": name}])
    path.with_stem("new").write_bytes(path.read_bytes())
    assert closed.generate(**ASK, loras=[{"name": "new"}]).images


def test_no_torch_is_imported(places, checkpoint_folder, tmp_path, image):
    folders = {kind: [str(folder) for folder in given] for kind, given in places.items()}
    request = {
        **ASK,
        "loras": [{"name": "one"}],
        "controls": [{"model": "net", "image": image, "preprocessor": "canny"}],
        "image_prompts": [{"model": "plain", "images": [image]}],
        "image": image,
    }
    cache, tiny = str(tmp_path / "own"), str(checkpoint_folder)
    program = f"""
import sys
from pathlib import Path
from limner.catalogue.catalogue import Catalogue
from limner.catalogue.facts import model_facts
from limner.catalogue.files import CatalogueFiles
from limner.request import GenerationRequest
from limner.request.estimate import DEVICES
from limner.request.resolve import resolve
folders = {{kind: list(map(Path, given)) for kind, given in {folders!r}.items()}}
catalogue = Catalogue(folders, cache=Path({cache!r}), shipped={{"tiny": Path({tiny!r})}})
facts = model_facts(catalogue.find("checkpoint", "tiny"))
resolved = resolve(GenerationRequest.of({request!r}), facts, CatalogueFiles(catalogue, facts))
assert resolved.estimate(DEVICES["cpu"]).seconds > 0
assert resolved.pictures[0].passes[0].adapters and resolved.pictures[0].controls
assert not {{"torch", "safetensors", "huggingface_hub"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
