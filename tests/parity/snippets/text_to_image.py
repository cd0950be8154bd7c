"""The quickstart of a thousand model pages."""

import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", torch_dtype=torch.float32)
pipe = pipe.to("cpu")
pipe.enable_attention_slicing()
pipe.set_progress_bar_config(disable=True)

prompt = "a photograph of an astronaut riding a horse"
generator = torch.Generator("cpu").manual_seed(1024)
image = pipe(prompt, guidance_scale=7.5, num_inference_steps=5, generator=generator).images[0]

result = image
