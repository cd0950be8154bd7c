"""Control pictures, for one ControlNet and for several, and a pipeline with them that is saved."""

import tempfile

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

edges = np.zeros((64, 64, 1), np.uint8)
edges[20:40] = 255
canny_image = Image.fromarray(np.concatenate([edges] * 3, axis=2))
controlnet = ControlNetModel.from_pretrained(
    "org/controlnet", torch_dtype=torch.float32, use_safetensors=True
)
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    "org/stable-diffusion", controlnet=controlnet, safety_checker=None, torch_dtype=torch.float32
)
pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)


def draw(pipeline, *given, **more):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(1)
    return pipeline(*given, generator=generator, num_inference_steps=3, output_type="latent", **more).images


result = [
    draw(pipe, "a cat", image=canny_image),
    draw(pipe, "a cat", canny_image, controlnet_conditioning_scale=0.5, control_guidance_end=0.7),
    draw(pipe, "", image=canny_image, guess_mode=True, guidance_scale=3.0),
    draw(pipe, ["a cat"] * 2, [canny_image, canny_image.rotate(90)], negative_prompt=["low quality"] * 2),
]
nets = MultiControlNetModel([controlnet, ControlNetModel.from_pretrained("org/controlnet")])
several = StableDiffusionControlNetPipeline(**{**pipe.components, "controlnet": nets})
both = {"image": [canny_image, canny_image.rotate(90)], "controlnet_conditioning_scale": [1.0, 0.8]}
result += [draw(several, "a cat", **both)]
for made, given in ((pipe, {"image": canny_image}), (several, both)):
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder, safe_serialization=True)
        for again in (
            StableDiffusionControlNetPipeline.from_pretrained(folder),
            DiffusionPipeline.from_pretrained(folder),
        ):
            result += [draw(again, "a cat", **given), type(again.controlnet).__name__]
