"""What the face of diffusers cannot honour is an error; what it has of its own holds."""

import subprocess
import sys

import pytest
import torch

import limner.face
from limner import InvalidRequest, UnsupportedModel
from limner.face.schedulers import scheduler_from
from limner.weights.hub import SHIPPED

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
        ({"num_images_per_prompt": 2, "generator": [torch.Generator()]}, "1 generators .* 2 pictures"),
        ({"num_inference_steps": 0}, "steps is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_honoured(pipe, given, message):
    pipe.scheduler = limner.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InvalidRequest, match=message):
        pipe(**{"prompt": "a boat", "num_inference_steps": 2, **given})


def test_arguments_that_nobody_has(pipe):
    for given in ({"steps": 5}, {"callback": print}, {"image": None}):
        with pytest.raises(TypeError, match=f"no argument {next(iter(given))}"):
            pipe("a boat", **given)
    with pytest.raises(TypeError, match="no component refiner"):
        limner.StableDiffusionPipeline.from_pretrained(FOLDER, refiner=1)
    with pytest.raises(TypeError, match="needs controlnet"):
        limner.StableDiffusionControlNetPipeline.from_pretrained(FOLDER)


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
    assert [*limner._FACE] == limner.face.__all__
    assert all(getattr(limner, name).__name__ == name for name in limner._FACE)
    with pytest.raises(AttributeError, match="FluxPipeline"):
        limner.FluxPipeline  # noqa: B018
