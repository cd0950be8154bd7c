"""What is white in a mask is regenerated."""

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw

init_image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
mask_image = Image.new("L", (64, 64))
ImageDraw.Draw(mask_image).ellipse((10, 12, 50, 55), fill=255)

pipe = StableDiffusionInpaintPipeline.from_pretrained("org/stable-diffusion", safety_checker=None)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
prompt = "Face of a yellow cat, sitting on a park bench"
generator = torch.Generator().manual_seed(4)
image = pipe(
    prompt=prompt, image=init_image, mask_image=mask_image, num_inference_steps=4, generator=generator
).images[0]
result = image
