"""Tests of `limner.compat`: unsupported arguments raise, and Limner's own behaviour holds."""

import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

import limner.compat
from limner import InvalidRequest, UnsupportedModel
from limner.catalogue.shipped import SHIPPED
from limner.compat.schedulers import scheduler_from

FOLDER = SHIPPED["picturebook"]


@pytest.fixture(scope="module")
def pipe():
    pipe = limner.StableDiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ip_adapter_image": "a picture"}, "ip_adapter_image has 1 items for 0 IP-Adapters"),
        ({"ip_adapter_image_embeds": []}, "ip_adapter_image_embeds is not offered"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
        ({"eta": 0.5}, "eta is 0.5, but .* has none"),
        ({"timesteps": [900, 500], "sigmas": [3.0, 0.0]}, "timesteps|sigmas"),
        ({"cross_attention_kwargs": {"gligen": {}}}, "only scale is offered"),
        ({"callback_on_step_end_tensor_inputs": ["noise_pred"]}, "noise_pred"),
        ({"height": 60}, "multiples of 8"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, "either prompt or prompt_embeds"),
        ({"latents": torch.zeros(1, 4, 3, 3)}, "latents are"),
        ({"negative_prompt": ["one", "two"]}, "as many as there are prompts"),
        ({"num_images_per_prompt": 2, "generator": [torch.Generator()]}, "1 generators .* 2 images"),
        ({"num_inference_steps": 0}, "steps is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_honoured(pipe, given, message):
    pipe.scheduler = limner.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InvalidRequest, match=message):
        pipe(**{"prompt": "a boat", "num_inference_steps": 2, **given})


def test_arguments_that_nobody_has(pipe):
    for given in ({"steps": 5}, {"colour": "red"}, {"image": None}):
        with pytest.raises(TypeError, match=f"no argument {next(iter(given))}"):
            pipe("a boat", **given)
    with pytest.raises(TypeError, match="no component refiner"):
        limner.StableDiffusionPipeline.from_pretrained(FOLDER, refiner=1)
    with pytest.raises(TypeError, match="needs controlnet"):
        limner.StableDiffusionControlNetPipeline.from_pretrained(FOLDER)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("enable_freeu", "FreeU"),
        ("prepare_ip_adapter_image_embeds", "ip_adapter_image"),
        ("register_modules", "pipe.unet"),
    ],
)
def test_attributes_of_diffusers_that_are_not_offered(pipe, name, hint):
    assert not hasattr(pipe, name)
    with pytest.raises(InvalidRequest, match=f"has no {name}") as refused:
        getattr(pipe, name)
    assert hint in refused.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_networks_that_are_compiled(pipe):
    with pytest.raises(InvalidRequest, match="OptimizedModule") as refused:
        pipe.unet = torch.compile(pipe.unet)
    assert refused.value.hint == "limner.load(…, compiled=True)"
    with pytest.raises(InvalidRequest, match="not compiled by itself"):
        pipe.unet.compile()


def test_offload_on_a_machine_without_a_gpu(pipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for offload in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        with pytest.raises(InvalidRequest, match="this machine has none"):
            offload()
        offload(device="cpu")
    assert pipe("a boat", num_inference_steps=1, output_type="latent").images.shape[0] == 1


def test_what_pictures_are_made_of():
    processor = limner.VaeImageProcessor()
    gray = np.zeros((20, 30), np.float32)
    masks = limner.VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    assert masks.preprocess(gray).shape == (1, 1, 16, 24)
    assert processor.postprocess(torch.zeros(1, 3, 8, 8), "pil", [False])[0].getpixel((0, 0)) == (0, 0, 0)
    assert processor.postprocess(torch.zeros(1, 3, 8, 8), "np").max() == 0.5
    for wrong in ({"output_type": "jpg"}, {"do_denormalize": [True, False]}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            processor.postprocess(torch.zeros(1, 3, 8, 8), **wrong)
    with pytest.raises(InvalidRequest, match="nothing else is offered"):
        limner.VaeImageProcessor(do_binarize=True)
    with pytest.raises(InvalidRequest, match="an image is NoneType"):
        processor.preprocess(None)
    with pytest.raises(InvalidRequest, match="2 images do not fill 1 rows of 3"):
        limner.make_image_grid([Image.new("RGB", (8, 8))] * 2, rows=1, cols=3)


def test_a_picture_by_its_address(tmp_path):
    Image.new("RGBA", (9, 5), (10, 20, 30, 255)).save(tmp_path / "one.png")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        image = limner.load_image(f"http://127.0.0.1:{httpd.server_port}/one.png")
        httpd.shutdown()
    for one in (image, limner.load_image(tmp_path / "one.png"), limner.load_image(image)):
        assert (one.mode, one.size, one.getpixel((0, 0))) == ("RGB", (9, 5), (10, 20, 30))
    with pytest.raises(InvalidRequest, match=r"none\.png"):
        limner.load_image(str(tmp_path / "none.png"))


@pytest.mark.parametrize(("ratio", "index"), [(None, None), (0.5, 2), (1.5, None)])
def test_when_guidance_is_to_be_cut_off(ratio, index):
    with pytest.raises(InvalidRequest, match="cutoff_step_ratio"):
        limner.SDCFGCutoffCallback(cutoff_step_ratio=ratio, cutoff_step_index=index)


def test_guidance_is_cut_off_for_several_pictures(pipe):
    seen = []

    def cut(pipeline, step, timestep, tensors):
        changed = callback(pipeline, step, timestep, tensors)
        seen.append((len(changed["prompt_embeds"]), pipeline.do_classifier_free_guidance))
        return changed

    callback = limner.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    cut.tensor_inputs = callback.tensor_inputs
    pipe(["a boat", "a house"], num_inference_steps=3, callback_on_step_end=cut, output_type="latent")
    assert seen[:2] == [(4, True), (2, False)]


def test_a_scheduler_of_another_offset_is_told(pipe):
    zero = limner.DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=0, clip_sample=False)
    components = {**pipe.components, "scheduler": zero}
    with pytest.warns(UserWarning, match="steps_offset is 0; as in diffusers"):
        made = limner.StableDiffusionPipeline(**components)
    assert (made.scheduler.config.steps_offset, zero.config.steps_offset) == (1, 0)


def test_a_controlnet_of_another_library(pipe):
    with pytest.raises(InvalidRequest, match="controlnet is a torch"):
        limner.StableDiffusionControlNetPipeline(**pipe.components, controlnet=[torch.nn.Linear(1, 1)])
    net = limner.ControlNetModel.from_unet(pipe.unet)
    controlled = limner.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    with pytest.raises(InvalidRequest, match="not those of its file"):
        controlled("a boat", torch.zeros(1, 3, 128, 128), num_inference_steps=1)


def test_components_that_cannot_be_had(pipe, tmp_path):
    with pytest.raises(InvalidRequest, match="pickles"):
        limner.StableDiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False)
    with pytest.raises(InvalidRequest, match="safety_checker is not offered"):
        limner.StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=torch.nn.Linear(1, 1))
    half = limner.StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float16)
    with pytest.raises(InvalidRequest, match="fp16 is not computed on the CPU"):
        half("a boat")
    with pytest.raises(InvalidRequest, match="dtype is torch"):
        pipe.to(torch.int8)
    with pytest.raises(AttributeError, match="enable_freeu"):
        pipe.enable_freeu()
    with pytest.raises(InvalidRequest, match="no adapter style"):
        pipe.set_adapters(["style"])
    with pytest.raises(InvalidRequest, match="no word"):
        pipe.unload_textual_inversion("<cat>")
    with pytest.raises(limner.ModelNotFound, match="learned_embeds"):
        pipe.load_textual_inversion(tmp_path)
    with pytest.raises(UnsupportedModel, match="FlowMatchEulerDiscreteScheduler"):
        scheduler_from({"_class_name": "FlowMatchEulerDiscreteScheduler"})


def test_arguments_of_components(pipe):
    x = torch.zeros(1, pipe.unet.config.in_channels, 8, 8)
    context = torch.zeros(1, 8, pipe.unet.config.cross_attention_dim)
    with pytest.raises(InvalidRequest, match="class_labels is not offered"):
        pipe.unet(x, 1, context, class_labels=torch.zeros(1))
    with pytest.raises(TypeError, match="'colour'"):
        pipe.unet(x, 1, context, colour="red")
    ids = pipe.tokenizer("a boat", return_tensors="pt").input_ids
    with pytest.raises(InvalidRequest, match="leaves tokens out"):
        pipe.text_encoder(ids, attention_mask=torch.zeros_like(ids))
    with pytest.raises(InvalidRequest, match="padding is 'left'"):
        pipe.tokenizer("a boat", padding="left")
    assert pipe.components["unet"].config.in_channels == x.shape[1]
    assert pipe.unet.device == torch.device("cpu")
    assert pipe.unet.in_channels == x.shape[1]  # as programs had it before there was a config
    with pytest.raises(AttributeError, match="colour"):
        pipe.unet.colour  # noqa: B018


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipe):
    long = "a boat on the sea at sunset " * 30
    with pytest.warns(UserWarning, match="the prompt is cut after"):
        cut, _ = pipe.encode_prompt(long, do_classifier_free_guidance=False)
    assert cut.shape[1] == pipe.tokenizer.model_max_length


def test_pictures_of_one_call_share_forward_passes(pipe, monkeypatch):
    rows = []
    model = pipe._model
    denoise = type(model.backend).denoise

    def counted(self, x, *rest, **more):
        rows.append(len(x))
        return denoise(self, x, *rest, **more)

    monkeypatch.setattr(type(model.backend), "denoise", counted)
    pipe(["a boat", "a house"], num_inference_steps=2, num_images_per_prompt=2, output_type="latent")
    assert rows == [8, 8]  # four pictures, each with a negative branch


def test_a_drawing_that_is_stopped_leaves_what_there_is(pipe):
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipeline._interrupt = step == 1
        return tensors

    generator = torch.Generator().manual_seed(1)
    ask = {"num_inference_steps": 5, "generator": generator, "output_type": "latent"}
    images = pipe("a boat", callback_on_step_end=stop, **ask).images
    assert len(seen) == 2
    assert torch.equal(images, seen[-1])


def test_names_are_looked_up_when_they_are_used():
    program = "import limner, sys; limner.LimnerError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert set(limner.compat.__all__) <= set(dir(limner))
    assert all(getattr(limner, name).__name__ == name for name in limner.compat.__all__)
    with pytest.raises(AttributeError, match="FluxPipeline"):
        limner.FluxPipeline  # noqa: B018
