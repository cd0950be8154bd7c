"""One generator for each picture, first latents of one's own, and pictures as tensors."""

import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("org/stable-diffusion", use_safetensors=True)
pipe.set_progress_bar_config(disable=True)

generators = [torch.Generator(device="cpu").manual_seed(i) for i in range(3)]
images = pipe(["a cat"] * 3, generator=generators, num_inference_steps=3, output_type="pt").images

shape = (2, pipe.unet.config.in_channels, 8, 12)
latents = torch.randn(shape, generator=torch.Generator().manual_seed(7))
embeds, negative = pipe.encode_prompt("a dog", "cpu", 2, True, negative_prompt="a cat")
(others, _) = pipe(
    prompt_embeds=embeds,
    negative_prompt_embeds=negative,
    latents=latents,
    height=64,
    width=96,
    guidance_scale=4.0,
    guidance_rescale=0.5,
    num_inference_steps=3,
    output_type="latent",
    return_dict=False,
)
result = [images, others]
