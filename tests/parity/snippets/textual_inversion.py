"""A word that was learned."""

import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)
pipe.load_textual_inversion(["org/words/cat-toy.safetensors"])
pipe.load_textual_inversion("org/words/style.safetensors", token="<two>")
images = pipe(
    ["a <cat-toy> on a table", "a house in the manner of <two>"],
    num_inference_steps=3,
    generator=torch.Generator().manual_seed(2),
    output_type="latent",
).images
result = images
