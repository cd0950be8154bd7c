"""Control networks of requests: named, applied from step to step, in company, and left out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from limner import GenerationRequest, load
from limner.catalogue.shipped import SHIPPED
from limner.engine.engine import Engine
from limner.errors import InvalidRequest, ModelNotFound
from limner.files import FileStamp
from limner.generation.calls import ReadControl
from limner.generation.canvas import canvas_of, control_image
from limner.generation.controls import Steering, residual_weights
from limner.generation.run import watch
from limner.generation.story import picture_of
from limner.images.inputs import InputImages
from limner.images.opening import image_source
from limner.images.preprocess import preprocessed
from limner.model.controls import ControlLibrary
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.request import Control
from limner.request.networks import UsedControl
from limner.weights.checkpoint import read_checkpoint
from limner.weights.save import save_control

ASK = {"prompt": "a cat", "negative_prompt": "fog", "seed": 3, "steps": 4, "width": 64, "height": 64}
RESIDUALS = 5  # of the tiny U-Net: its first convolution, two levels of a block each, a resize, the middle


def write_controlnet(folder, unet, seed=0):
    """One whose zero convolutions are not zero."""
    config = ControlNetConfig(
        block_out_channels=unet.block_out_channels,
        down_block_types=unet.down_block_types,
        layers_per_block=unet.layers_per_block,
        attention_head_dim=unet.attention_head_dim,
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
        conditioning_embedding_out_channels=(8, 16),
    )
    torch.manual_seed(seed)
    network = ControlNetModel(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        if tensor.ndim > 1
        else tensor
        for name, tensor in network.state_dict().items()
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def picture(seed=0):
    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).ellipse((8 + seed, 8, 40 + seed, 40), fill="white")
    return image


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


@pytest.fixture
def net(tmp_path, networks):
    return write_controlnet(tmp_path / "net", networks["unet"].config)


def draw(model, **fields):
    return model.generate(**{**ASK, **fields}).images[0]


def control(net, **fields):
    return {"model": str(net), "image": picture(), **fields}


def used(residuals=5, pooled=False, name="net"):
    from pathlib import Path

    return UsedControl(FileStamp(Path(name), 0, 0, 0), residuals, pooled, 3, 0)


def test_fields_as_text():
    request = GenerationRequest.of(
        {"prompt": "", "controls": ["model=a/b,image=x,y.png,weight=0.5,end=0.25,mode=guess"]}
    )
    assert request.controls == (Control(model="a/b", image="x,y.png", weight=0.5, end=0.25, mode="guess"),)
    several = GenerationRequest.read_texts({"prompt": "", "controls": "model=a,image=b; model=c,image=d"})
    assert [one["model"] for one in several["controls"]] == ["a", "c"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a picture", "model=…, image=…"),
        ("model=a,picture=b", "model=…, image=…"),
        ("model=a,image=b,weight=x", "weight|float"),
        ("model=a,image=b,start=0.5,end=0.5", "the lower one first"),
        ("model=a", "image is missing"),
    ],
)
def test_faults_are_named(given, told):
    with pytest.raises(InvalidRequest, match=told):
        GenerationRequest.of({"prompt": "", "controls": [given]})


def test_weights_of_the_modes():
    one = Control(model="a", image="b", weight=0.5)
    assert residual_weights(one, used()) == (0.5,) * 5
    guessed = residual_weights(one.model_copy(update={"mode": "guess"}), used())
    assert guessed == pytest.approx([0.5 * 10 ** (-1 + i / 4) for i in range(5)])
    prompted = residual_weights(one.model_copy(update={"mode": "prompt"}), used())
    assert prompted == pytest.approx([0.5 * 0.825 ** (4 - i) for i in range(5)])
    assert residual_weights(one.model_copy(update={"mode": "guess"}), used(pooled=True)) == (0.5,) * 5
    prompted_too = residual_weights(one.model_copy(update={"mode": "prompt"}), used(pooled=True))
    assert prompted_too == prompted


def test_steps_at_which_it_works():
    """As diffusers counts: a step is in if it lies within the shares wholly."""
    half = Control(model="a", image="b", start=0.25, end=0.75)
    steering = Steering((half,), (used(),), ((torch.zeros(1),),))
    at_work = [step for step in range(1, 9) if steering.at(step, 8)[0]]
    assert at_work == [3, 4, 5, 6]


def test_features_of_several_are_summed():
    controls = tuple(Control(model="a", image="b", weight=w) for w in (0.5, 2.0))
    read = tuple((torch.full((1, 2), value), torch.full((1, 1), value)) for value in (1.0, 10.0))
    networks, features = Steering(controls, (used(residuals=0),) * 2, read).at(1, 4)
    assert networks == ()
    assert [float(feature.mean()) for feature in features] == [20.5, 20.5]
    for some in (read[::-1], read):  # one of which has a feature for the middle too
        some = (some[0], (*some[1], torch.full((1, 1), 3.0)))
        _, features = Steering((controls[0],) * 2, (used(residuals=0),) * 2, some).at(1, 4)
        assert [float(feature.mean()) for feature in features] == [5.5, 5.5, 1.5]


def test_it_changes_the_picture_and_is_gone_again(model, net):
    plain = draw(model, exact=True).tobytes()
    steered = draw(model, exact=True, controls=[control(net)])
    other = draw(model, exact=True, controls=[{**control(net), "image": picture(12)}])
    assert len({plain, steered.tobytes(), other.tobytes()}) == 3
    assert draw(model, exact=True).tobytes() == plain
    assert draw(model, exact=True, controls=[control(net, weight=0.0)]).tobytes() == plain
    record = steered.record
    assert record.request.controls[0].image.startswith("sha256:")
    assert len(record.model[f"control {net}"]) == 64
    assert 'ControlNet 0: "Module: none, Model: net, Weight: 1, Guidance Start: 0' in record.infotext()


def test_the_sum_of_two_is_one_of_double_weight(model, net):
    twice = draw(model, controls=[control(net, weight=0.3), control(net, weight=0.4)])
    once = draw(model, controls=[control(net, weight=0.7)])
    pixels = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int() for p in (twice, once)]
    assert (pixels[0] - pixels[1]).abs().max() <= 1


def test_guess_spares_the_negative_prompt(model, net):
    plain, guess = (draw(model, controls=[control(net, mode=mode)]) for mode in ("balanced", "guess"))
    assert plain.tobytes() != guess.tobytes()
    calls = []
    answer = model.answer
    steps = {"controls": [control(net, mode="guess")], "guidance_scale": 5.0}

    def watched(given):
        calls.extend(given)
        return answer(given)

    object.__setattr__(model, "answer", watched)
    draw(model, **steps)
    asked = [call for call in calls if getattr(call, "controls", ())]
    assert asked
    assert all(call.controls[0].weights_of("negative") == (0.0,) * RESIDUALS for call in asked)


def test_requests_with_different_controls_in_company(model, net, tmp_path, networks):
    second = write_controlnet(tmp_path / "second", networks["unet"].config, seed=7)
    adapter = tmp_path / "adapter"
    config = T2IAdapterConfig(
        channels=networks["unet"].config.block_out_channels, downscale_factor=2, num_res_blocks=1
    )
    save_control(adapter, T2IAdapter(config))
    with pytest.raises(InvalidRequest, match="a T2I-Adapter, and the mode guess is for ControlNets"):
        model.controls.used([Control.model_validate(f"model={adapter},image=a,mode=guess")])
    sets = [
        [],
        [control(net)],
        [control(net, weight=0.4, end=0.5)],
        [control(adapter)],
        [control(net), control(second, weight=0.5), control(adapter, weight=0.5, end=0.5)],
    ]
    asks = [
        GenerationRequest.of(
            {
                **ASK,
                "exact": True,
                "controls": [{**one, "image": image_source(one["image"])} for one in controls],
            }
        )
        for controls in sets
    ]
    alone = [model.generate(request=ask).images[0].tobytes() for ask in asks]
    with Engine(model) as engine:
        handles = [engine.submit(ask) for ask in asks * 2]
        together = [handle.result().images[0].tobytes() for handle in handles]
    assert together == alone * 2
    assert len(set(alone)) == len(sets)


def test_reused_features_wait_until_it_is_done(model, net):
    """With a speed preset the deep layers run anew as long as a ControlNet works."""
    kept = {"steps": 10, "speed": "fast", "guidance_interval": (0.0, 1e9), "exact": True}
    whole = draw(model, **kept, controls=[control(net)])
    exact = draw(model, **{**kept, "speed": "exact"}, controls=[control(net)])
    assert whole.tobytes() == exact.tobytes()


def test_networks_that_cannot_be_had(model, net, tmp_path, networks):
    with pytest.raises(ModelNotFound, match="no network 'nowhere'"):
        draw(model, controls=[{"model": "nowhere", "image": picture()}])
    wide = replace(networks["unet"].config, cross_attention_dim=64)
    other = write_controlnet(tmp_path / "other", wide)
    with pytest.raises(InvalidRequest, match="its cross_attention_dim is 64, the model's 32"):
        draw(model, controls=[control(other)])
    with pytest.raises(InvalidRequest, match="no image"):
        draw(model, controls=[{"model": str(net), "image": str(tmp_path / "none.png")}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        draw(model, controls=[control(tmp_path / "empty")])
    with pytest.raises(InvalidRequest, match="controls is 'model=a,image=b'"):
        draw(model, controls="model=a,image=b")


def test_preprocessors(model, net, tmp_path):
    photo = picture()
    drawn = [
        draw(model, exact=True, controls=[control(net, image=photo, preprocessor=name)]).tobytes()
        for name in ("none", "canny", "canny:1:2")
    ]
    assert drawn[0] != drawn[1]
    edges = preprocessed(photo, "canny")
    assert draw(model, exact=True, controls=[control(net, image=edges)]).tobytes() == drawn[1]
    for name, message in (("cany", "no preprocessor cany"), ("canny:2:1", "low is 2.0 and high is 1.0")):
        with pytest.raises(InvalidRequest, match=message):
            draw(model, controls=[control(net, preprocessor=name)])


def test_a_mask_can_be_told(model, net, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    fields = {"image": picture(), "mask": mask, "strength": 1.0, "exact": True}
    told = draw(model, **fields, controls=[control(net, preprocessor="inpaint")])
    plain = draw(model, **fields, controls=[control(net)])
    assert told.tobytes() != plain.tobytes()
    with pytest.raises(InvalidRequest, match="needs a mask of what is regenerated"):
        draw(model, controls=[control(net, preprocessor="inpaint")])


def _read(one, request):
    """What a control network reads of its image."""
    size = request.width, request.height
    return control_image(one, request, size, 3, InputImages(), canvas_of(request, size, InputImages()))


def test_room_that_is_made_can_be_told(model, net):
    """The control picture is the extended one, -1 where it is drawn, whichever of the two is given for it."""
    photo = Image.effect_noise((64, 64), 90).convert("RGB")
    whole = Image.new("RGB", (88, 80), "red")
    whole.paste(photo, (16, 0))
    fields = {"image": image_source(photo), "extend": (16, 0, 8, 16), "width": 88, "height": 80}
    request = GenerationRequest.of({**ASK, **fields, "mask_blur": 6.0})
    expected = torch.full((1, 3, 80, 88), -1.0)
    expected[:, :, :64, 16:80] = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    for shown in (photo, whole):
        one = Control(model="a", image=image_source(shown), preprocessor="inpaint")
        assert torch.equal(_read(one, request), expected)
    given = {**fields, "image": photo, "exact": True}
    told = draw(model, **given, controls=[control(net, image=photo, preprocessor="inpaint")])
    assert told.size == (88, 80)
    assert told.tobytes() != draw(model, **given).tobytes()


def test_a_control_picture_without_the_room_is_refused(model, net):
    fields = {"image": picture(), "extend": (16, 0, 8, 0), "width": 88}
    with pytest.raises(InvalidRequest, match="64 x 64, as large as the image before") as caught:
        draw(model, **fields, controls=[control(net)])
    assert caught.value.hint == "give one that covers them, 88 x 64"
    assert draw(model, **fields, controls=[control(net, image=picture().resize((88, 64)))]).size == (88, 64)


@pytest.mark.parametrize("preprocessor", ["none", "inpaint"])
def test_where_a_part_is_drawn_it_reads_the_same_part(preprocessor):
    """A control picture of any size shows what the whole picture does."""
    mask, shown = Image.new("L", (64, 64)), Image.new("RGB", (128, 128))
    mask.paste(255, (32, 32, 48, 48))
    shown.paste("white", (64, 64, 96, 128))
    fields = {"image": image_source(picture()), "mask": image_source(mask), "inpaint_area": "masked"}
    request = GenerationRequest.of({**ASK, **fields, "mask_padding": 0, "mask_blur": 0.0})
    one = Control(model="a", image=image_source(shown), preprocessor=preprocessor)
    read = _read(one, request)
    assert read.shape == (1, 3, 64, 64)
    low, high = (-1.0, -1.0) if preprocessor == "inpaint" else (0.85, 1.0)  # resizing blurs its edges
    assert low <= float(read.min()) <= float(read.max()) <= high


def test_in_a_second_pass_and_where_ends_meet(model, net):
    """A control's picture is read anew at the larger size, and every picture is the same in company."""
    asked = [{"hires_width": 96}, {"tiling": "xy"}, {"hires_width": 80, "tiling": "x"}]
    ask = {
        **ASK,
        "steps": 2,
        "exact": True,
        "controls": [{"model": str(net), "image": image_source(picture())}],
    }
    requests = [GenerationRequest.of({**ask, **fields}) for fields in asked]
    expected = [model.generate(request=request).images[0].tobytes() for request in requests]
    assert len(set(expected)) == len(expected)
    with Engine(model) as engine:
        handles = [engine.submit(request) for request in requests]
        assert [handle.result().images[0].tobytes() for handle in handles] == expected

    read = []
    [spec] = model.resolve(requests[0]).pictures
    for call, _ in watch(picture_of(spec, model.facts), model):
        if isinstance(call, ReadControl):
            read.append(tuple(call.image.shape[2:]))
    assert read == [(64, 64), (96, 96)]


def write_foreign(folder, networks):
    """A ControlNet for a model of another width of texts."""
    unet = networks["unet"].config
    return write_controlnet(folder, replace(unet, cross_attention_dim=2 * unet.cross_attention_dim))


def test_networks_are_found_by_name_in_folders_and_links(checkpoint_folder, tmp_path, networks):
    checkpoint = read_checkpoint(checkpoint_folder)
    write_controlnet(tmp_path / "disk", checkpoint.unet_config)
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "canny").symlink_to(tmp_path / "disk")
    (folder / "round").symlink_to(folder)
    library = ControlLibrary(checkpoint.unet_config, checkpoint.vae_config.downscale, [folder])
    [used] = library.used([Control(model="canny", image="a.png")])
    assert used.path == folder / "canny"
    assert used.residuals == RESIDUALS
    with pytest.raises(ModelNotFound, match=r"no control network 'cany'.*similar names: canny"):
        library.used([Control(model="cany", image="a.png")])
    own = read_checkpoint(SHIPPED["picturebook"])
    library = ControlLibrary(own.unet_config, own.vae_config.downscale, [folder])
    [shipped] = library.used([Control(model="picturebook-edges", image="a.png")])
    assert shipped.path.name == "edges"


def test_a_request_names_a_network_in_a_folder(checkpoint_folder, net):
    model = load(checkpoint_folder, precision="fp32", control_dirs=[net.parent])
    by_path = draw(model, controls=[control(net)], exact=True)
    by_name = draw(model, controls=[control("net")], exact=True)
    assert by_name.tobytes() == by_path.tobytes()
    assert by_name.tobytes() != draw(model, exact=True).tobytes()


def test_of_one_name_the_network_that_fits_the_model_is_used(checkpoint_folder, tmp_path, networks):
    checkpoint = read_checkpoint(checkpoint_folder)
    for family in ("a", "z"):
        (tmp_path / family).mkdir()
        write_foreign(tmp_path / family / "canny", networks)
    (tmp_path / "m").mkdir()
    fits = write_controlnet(tmp_path / "m" / "canny", checkpoint.unet_config)
    arguments = checkpoint.unet_config, checkpoint.vae_config.downscale, [tmp_path]
    [used] = ControlLibrary(*arguments).used([Control(model="canny", image="a.png")])
    assert (used.path, used.warnings) == (fits, ())
    write_controlnet(tmp_path / "z" / "canny", checkpoint.unet_config)
    [used] = ControlLibrary(*arguments).used([Control(model="canny", image="a.png")])
    assert used.path == fits
    assert "m/canny, z/canny" in used.warnings[0]
    [used] = ControlLibrary(*arguments).used([Control(model="z/canny", image="a.png")])
    assert (used.path, used.warnings) == (tmp_path / "z" / "canny", ())
    with pytest.raises(InvalidRequest, match="cross_attention_dim"):
        ControlLibrary(*arguments).used([Control(model="a/canny", image="a.png")])
