"""Image prompts of requests: named, seen, in company, for some of the steps, and in a picture's record."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limner import GenerationRequest, load
from limner.catalogue.hashes import file_hash
from limner.cli.main import main
from limner.engine.engine import Engine
from limner.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from limner.generation import conditioning
from limner.generation.calls import ReadImagePrompt
from limner.images.inputs import InputImages
from limner.images.opening import image_source
from limner.images.pixels import clip_pixels
from limner.model.image_prompts import ImagePromptLibrary
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.layers import attention
from limner.nn.unet import Conditions
from limner.nn.unet_config import attended_layers
from limner.request import Control, ImagePrompt
from limner.weights.checkpoint import load_unet
from limner.weights.save import save_control, write_json
from limner.weights.tensors import write_tensors

ASK = {"prompt": "a cat", "negative_prompt": "fog", "seed": 3, "steps": 4, "width": 64, "height": 64}
VISION = CLIPVisionConfig(
    hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
    projection_dim=24, projection=True,
)  # fmt: skip
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
FORMS = {
    "plain": ("linear", 24, {"tokens": 4}),
    "plus": ("resampler", 48, {"tokens": 4, "channels": 32, "heads": 1, "depth": 2}),
}


def write_encoder(folder, config=VISION):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    write_tensors(folder / "model.safetensors", CLIPVisionModel(config).state_dict())


def write_adapter(path, unet, form="plain", seed=0):
    """With values that change a picture visibly."""
    torch.manual_seed(seed)
    kind, channels, more = FORMS[form]
    layers = tuple(attended_layers(unet).values())
    adapter = IPAdapter(IPAdapterConfig(kind, channels, unet.cross_attention_dim, layers, **more))
    write_tensors(path, {name: 3 * tensor for name, tensor in adapter.state_dict().items()})
    return str(path)


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


@pytest.fixture
def adapter(tmp_path, model):
    torch.manual_seed(1)
    write_encoder(tmp_path / "adapters" / "image_encoder")
    return write_adapter(tmp_path / "adapters" / "plain.safetensors", model.checkpoint.unet_config)


@pytest.fixture
def plus(tmp_path, model, adapter):
    return write_adapter(tmp_path / "adapters" / "plus.safetensors", model.checkpoint.unet_config, "plus", 2)


def noise_picture(seed, width=40, height=30):
    rows = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def draw(model, *prompts, **fields):
    return model.generate(**{**ASK, **fields}, image_prompts=list(prompts)).images[0]


def bits(picture):
    return picture.tobytes()


def apart(one, other):
    one, other = (torch.frombuffer(bytearray(bits(p)), dtype=torch.uint8).int() for p in (one, other))
    return int((one - other).abs().max())


def test_as_text_and_as_fields():
    text = "model=a/b.safetensors,image=c,d.png,image=e.png,weight=0.6,end=0.5,image_encoder=f"
    fields = {"model": "a/b.safetensors", "images": ["c,d.png", "e.png"], "weight": 0.6, "end": 0.5}
    prompts = [{**fields, "image_encoder": "f"}]
    request = GenerationRequest.of({"prompt": "", "image_prompts": [text]})
    assert request == GenerationRequest.of({"prompt": "", "image_prompts": prompts})
    cells = {"prompt": "", "image_prompts": f"{text}; model=g, image=h.png"}
    more = ImagePrompt(model="g", images=("h.png",))
    assert GenerationRequest.of(GenerationRequest.read_texts(cells)).image_prompts == (
        *request.image_prompts,
        more,
    )
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
    for wrong in ("cat.png", "model=a", "image=a.png", "model=a,image=b,size=3", "model=a,image=b,start=1"):
        with pytest.raises(InvalidRequest, match="image_prompts"):
            GenerationRequest.of({"prompt": "", "image_prompts": [wrong]})


def test_the_network_is_that_of_the_formula(model, adapter):
    """Ye et al. 2023, equation 5, in one attention; the others add nothing."""
    torch.manual_seed(4)
    layers = attended_layers(model.checkpoint.unet_config)
    keys_and_values = [torch.randn(3, 2, tokens, sum(layers.values())) for tokens in (4, 6)]
    for pictures in keys_and_values:
        pictures[:, 1, :, layers[LAYER] :] = 0.0  # it is the first
    x, times, context = torch.randn(3, 4, 8, 8), torch.tensor([900.0, 500.0, 20.0]), torch.randn(3, 16, 32)
    network = load_unet(model.checkpoint)

    def attend(q, k, v, heads):
        y = attention(q, k, v, heads)
        for pictures in keys_and_values:
            keys, values = pictures[..., : layers[LAYER]].unbind(1)
            y = y + attention(q, keys, values, heads)
        return y

    with torch.inference_mode():
        plain = network(x, times, context)
        network.get_submodule(LAYER).attend = attend
        expected = network(x, times, context)
        found, _ = model.backend.denoise(x, times, context, Conditions(image_prompts=keys_and_values))
        again, _ = model.backend.denoise(x, times, context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 0.01


def test_image_prompts_come_and_go(model, adapter):
    picture = noise_picture(0)
    plain = bits(draw(model))
    drawn = draw(model, {"model": adapter, "images": picture})
    assert bits(drawn) != plain
    assert bits(draw(model)) == plain
    assert bits(draw(model, {"model": adapter, "images": [picture]})) == bits(drawn)
    assert bits(draw(model, {"model": adapter, "images": picture, "weight": 0.0})) == plain
    assert bits(draw(model, {"model": adapter, "images": noise_picture(1)})) != bits(drawn)


def test_for_some_of_the_steps(model, adapter):
    prompt = {"model": adapter, "images": noise_picture(0)}
    plain, whole = bits(draw(model)), bits(draw(model, prompt))
    first, last = (draw(model, {**prompt, **part}) for part in ({"end": 0.5}, {"start": 0.5}))
    assert len({plain, whole, bits(first), bits(last)}) == 4
    assert bits(draw(model, {**prompt, "start": 0.1, "end": 0.2})) == plain  # within one step
    fast, fast_plain = draw(model, prompt, speed="fast"), draw(model, speed="fast")
    assert len({plain, whole, bits(fast), bits(fast_plain)}) == 4


def test_rows_of_one_forward_pass_see_pictures_of_their_own(model, adapter, plus):
    """Whoever else is there: other pictures, weights and adapters."""
    one, other = (image_source(noise_picture(seed)) for seed in (0, 1))
    asks = [
        GenerationRequest.of({**ASK, "prompt": "a cat" + " and a dog" * (n % 2), "image_prompts": prompts})
        for n, prompts in enumerate(
            [
                [ImagePrompt(model=adapter, images=(one,))],
                [ImagePrompt(model=adapter, images=(other,), weight=-0.5)],
                [ImagePrompt(model=plus, images=(other,))],
                [ImagePrompt(model=adapter, images=(one, other))],
                [ImagePrompt(model=adapter, images=(one,)), ImagePrompt(model=plus, images=(one,), end=0.5)],
                [],
            ]
        )
    ]
    alone = [model.generate(request=ask).images[0] for ask in asks]
    exact = model.generate(request=asks[4].model_copy(update={"exact": True})).images[0]
    with Engine(model) as engine:
        handles = [engine.submit(ask) for ask in asks]
        together = [handle.result().images[0] for handle in handles]
        stats = engine.stats()
    assert stats.rows["Denoise"] > 1.5 * stats.forwards["Denoise"]
    assert max(map(apart, alone, together)) <= 1
    assert apart(alone[4], exact) <= 1
    assert len({bits(picture) for picture in alone}) == len(asks)


@pytest.mark.parametrize("exact", [False, True])
def test_beside_a_lora(model, adapter, tmp_path, exact):
    """Applied by row, and to the weights: of the very attention that sees the picture."""
    name = f"lora_unet_{LAYER}.to_q".replace(".", "_")
    torch.manual_seed(5)
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    write_tensors(
        tmp_path / "lora.safetensors", {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    )
    prompt, loras = {"model": adapter, "images": noise_picture(0)}, (f"{tmp_path}/lora.safetensors",)
    neither, seen, adapted, both = (
        draw(model, *prompts, loras=names, exact=exact)
        for prompts, names in (([], ()), ([prompt], ()), ([], loras), ([prompt], loras))
    )
    assert len({bits(picture) for picture in (neither, seen, adapted, both)}) == 4
    network = load_unet(model.checkpoint)
    weight = network.get_parameter(f"{LAYER}.to_q.weight")
    weight.data = weight.data + up @ down
    model.backend.networks.__dict__["unet"] = network
    assert apart(draw(model, prompt, exact=exact), both) <= 1


@pytest.mark.long
def test_packed_in_bf16(checkpoint_folder, adapter, model):
    narrow = load(checkpoint_folder, precision="bf16")
    prompt = {"model": adapter, "images": noise_picture(0)}
    wide, found, plain = draw(model, prompt), draw(narrow, prompt), draw(narrow)
    assert 0 < apart(found, wide) < apart(found, plain)


def test_pictures_are_seen_once(model, adapter, monkeypatch):
    seen = []
    encode = type(model.backend).encode_image_prompt

    def counting(self, file, encoder, pixels):
        seen.append(pixels is not None)
        return encode(self, file, encoder, pixels)

    monkeypatch.setattr(type(model.backend), "encode_image_prompt", counting)
    prompt = {"model": adapter, "images": [noise_picture(0), noise_picture(1)]}
    draw(model, prompt)
    assert sorted(seen) == [False, True, True]
    draw(model, {**prompt, "images": [noise_picture(1)], "weight": 0.5}, prompt="a dog")
    assert len(seen) == 3


def test_the_record_names_them(model, adapter, tmp_path):
    noise_picture(0).save(tmp_path / "cat.png")
    images = [str(tmp_path / "cat.png"), noise_picture(1)]
    picture = draw(model, {"model": adapter, "images": images, "weight": 0.5})
    [prompt] = picture.record.request.image_prompts
    assert prompt.images[0] == images[0]
    assert prompt.images[1].startswith("sha256:")
    unit = "Module: ip-adapter-auto, Model: plain, Weight: 0.5, Guidance Start: 0, Guidance End: 1"
    assert unit in picture.record.infotext()
    assert picture.record.model[f"image prompt {adapter}"] == file_hash(
        tmp_path / "adapters/plain.safetensors"
    )


def test_encoders(model, adapter, tmp_path):
    """Beside the adapter, beside its folder as on the hub, or named; the first that fits."""
    picture = noise_picture(0)
    expected = bits(draw(model, {"model": adapter, "images": picture}))
    (tmp_path / "models").mkdir()
    (tmp_path / "adapters" / "image_encoder").rename(tmp_path / "models" / "image_encoder")
    assert bits(draw(model, {"model": adapter, "images": picture})) == expected
    write_encoder(
        tmp_path / "adapters" / "image_encoder",
        CLIPVisionConfig.from_dict({**VISION.to_dict(), "projection_dim": 30}),
    )
    assert bits(draw(model, {"model": adapter, "images": picture})) == expected
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelNotFound, match="adapters/image_encoder gives something else than the 24"):
        draw(model, {"model": adapter, "images": picture})
    named = str(tmp_path / "elsewhere" / "image_encoder")
    assert bits(draw(model, {"model": adapter, "images": picture, "image_encoder": named})) == expected


def test_what_cannot_be_had_or_used(model, adapter, tmp_path):
    with pytest.raises(ModelNotFound, match=r"no file .*none\.safetensors"):
        draw(model, {"model": str(tmp_path / "none.safetensors"), "images": noise_picture(0)})
    (tmp_path / "text.png").write_text("no picture")
    broken = {"model": adapter, "images": str(tmp_path / "text.png")}
    with Engine(model) as engine:
        asks = [
            {**broken, "images": [broken["images"]]},
            {**broken, "images": [image_source(noise_picture(0))]},
        ]
        lost, fine = (
            engine.submit(GenerationRequest.of({**ASK, "image_prompts": [prompt]})) for prompt in asks
        )
        with pytest.raises(InvalidRequest, match="cannot be read as an image"):
            lost.result()
        assert len(fine.result().images) == 1


def test_images_are_decoded_once_and_not_by_the_thread_that_runs_the_networks(model, adapter, monkeypatch):
    seen = []

    def recorded(image, side):
        seen.append((threading.current_thread().name, image))
        return clip_pixels(image, side)

    monkeypatch.setattr(conditioning, "clip_pixels", recorded)
    prompt = ImagePrompt(model=adapter, images=(image_source(noise_picture(0)),))
    request = GenerationRequest.of({**ASK, "image_prompts": (prompt,), "num_images": 2})
    with Engine(model) as engine:
        assert len(engine.submit(request).result().images) == 2
    assert len(seen) == 2
    assert seen[0][1] is seen[1][1]
    assert not any(name.startswith("limner-engine") for name, _ in seen)


def test_openvino_refuses(model, adapter):
    pytest.importorskip("openvino")
    from limner.backends.openvino import OpenVINOBackend

    request = GenerationRequest(prompt="", image_prompts=(ImagePrompt(model=adapter, images=("a.png",)),))
    backend = OpenVINOBackend(model.checkpoint, torch.device("cpu"), "fp32")
    [used] = model.image_prompts.used(request.image_prompts)
    with pytest.raises(UnsupportedModel, match="does not support image prompts"):
        replace(model, backend=backend).answer([ReadImagePrompt(used, ())])


def test_from_the_command_line_and_back(model, adapter, tmp_path, capsys):
    noise_picture(0).save(tmp_path / "cat.png")
    path = tmp_path / "drawn.png"
    prompt = f"model={adapter},image={tmp_path}/cat.png,weight=0.5"
    draws = ["generate", "a cat", "--model", model.checkpoint.folder, "--precision", "fp32", "--steps", "2"]
    for arguments in (
        [*draws, "--width", "64", "--height", "64", "--seed", "3", "--image-prompt", prompt, "--out", path],
        ["show", path],
        ["generate", "--from", path, "--out", tmp_path / "again.png"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0
    assert "cat.png" in capsys.readouterr().out
    with Image.open(path) as first, Image.open(tmp_path / "again.png") as again:
        assert bits(first) == bits(again)


def test_beside_a_control_in_second_passes_and_pictures_that_tile(model, adapter, tmp_path):
    """Each has its effect beside the others, in company as alone."""
    torch.manual_seed(6)
    net = ControlNetModel.from_unet(load_unet(model.checkpoint), conditioning_embedding_out_channels=(8, 16))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * (not parameter.any()))
    save_control(tmp_path / "net", net)
    control = Control(model=str(tmp_path / "net"), image=image_source(noise_picture(2, 64, 64)))
    prompt = ImagePrompt(model=adapter, images=(image_source(noise_picture(0)),))
    whole = {"image_prompts": (prompt,), "controls": (control,), "tiling": "xy", "hires_scale": 1.5}
    without = [{name: value for name, value in whole.items() if name != left_out} for left_out in whole]
    asks = [GenerationRequest.of({**ASK, **fields, "steps": 2}) for fields in (whole, *without)]
    with Engine(model) as engine:
        handles = [engine.submit(ask) for ask in asks]
        together = [handle.result().images[0] for handle in handles]
    assert apart(together[0], model.generate(request=asks[0]).images[0]) <= 1
    assert len({bits(picture) for picture in together}) == len(asks)


def test_adapters_and_encoders_are_found_by_name_in_folders(model, adapter, tmp_path):
    """Of several of one name, the one that fits the model; of encoders, the one that fits the adapter."""
    unet, folder = model.checkpoint.unet_config, tmp_path / "adapters"
    prompt = ImagePrompt(model="plain", images=("a.png",))
    (folder / "a").mkdir()
    wide = replace(unet, cross_attention_dim=2 * unet.cross_attention_dim)
    write_adapter(folder / "a" / "plain.safetensors", wide)
    (folder / "image_encoder").rename(folder / "z")  # not where it is looked for first
    write_encoder(folder / "b", CLIPVisionConfig.from_dict({**VISION.to_dict(), "projection_dim": 30}))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "all").symlink_to(folder)
    for searched in (folder, tmp_path / "linked"):
        [used] = ImagePromptLibrary(unet, [searched]).used([prompt])
        assert used.adapter.path.resolve() == folder / "plain.safetensors"
        assert used.encoder.path.resolve() == folder / "z" / "model.safetensors"
        assert used.warnings == ()
    (folder / "c").mkdir()
    write_adapter(folder / "c" / "plain.safetensors", unet)
    write_encoder(folder / "y")
    [used] = ImagePromptLibrary(unet, [folder]).used([prompt])
    adapters, encoders = used.warnings
    assert used.adapter.path == folder / "plain.safetensors"
    assert str(folder / "c" / "plain.safetensors") in adapters
    assert "(y, z)" in encoders
    named = prompt.model_copy(update={"image_encoder": "z"})
    [used] = ImagePromptLibrary(unet, [folder]).used([named])
    assert used.encoder.path == folder / "z" / "model.safetensors"
    with pytest.raises(ModelNotFound, match=r"no IP-Adapter 'plane'.*similar names: .*plain"):
        ImagePromptLibrary(unet, [folder]).used([prompt.model_copy(update={"model": "plane"})])


def test_several_threads_encode_at_once(model, adapter):
    library = ImagePromptLibrary(model.checkpoint.unet_config, max_bytes=2000)
    prompts = [
        ImagePrompt(model=adapter, images=(image_source(noise_picture(seed)),), weight=1.0)
        for seed in range(6)
    ]

    def encode(_adapter, _encoder, pixels):
        return torch.full((1, 2, 4, 8), 0.0 if pixels is None else float(pixels.sum()))

    def wanted(used):
        return library.encode(
            used, conditioning.read_image_prompt(used, InputImages()).pixels, encode
        ).positive

    expected = [wanted(used) for used in library.used(prompts)]
    with ThreadPoolExecutor(8) as pool:
        indices = list(range(6)) * 8
        found = list(pool.map(lambda i: wanted(library.used([prompts[i]])[0]), indices))
    assert all(torch.equal(one, expected[i]) for i, one in zip(indices, found, strict=True))
    assert len({float(one.sum()) for one in expected}) == 6
