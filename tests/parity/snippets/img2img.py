"""From a sketch, and again from what came of it; a second pipeline with the components of the first."""

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

y, x = np.mgrid[0:70, 0:100]
init_image = Image.fromarray(np.stack([2 * x, 3 * y, 255 - x - y], -1).clip(0, 255).astype(np.uint8))
init_image = init_image.resize((96, 64))

text2img = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe = StableDiffusionImg2ImgPipeline(**text2img.components)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator(device="cpu").manual_seed(1024)
image = pipe(
    prompt="A fantasy landscape",
    image=init_image,
    strength=0.75,
    guidance_scale=7.5,
    num_inference_steps=6,
    generator=generator,
).images[0]
auto = AutoPipelineForImage2Image.from_pipe(pipe)
auto.set_progress_bar_config(disable=True)
again = auto("A fantasy landscape", image=image, strength=0.5, num_inference_steps=4, generator=generator)
result = [image, again.images[0]]
