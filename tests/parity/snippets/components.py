"""An autoencoder of one's own, components that are shared, a pipeline that is saved."""

import tempfile

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline

vae = AutoencoderKL.from_pretrained("org/stable-diffusion", subfolder="vae")
with torch.no_grad():
    vae.decoder.conv_out.weight.mul_(0.5)
pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", vae=vae)
pipe.set_progress_bar_config(disable=True)
pipe.vae.enable_slicing()


def draw(pipeline):
    generator = torch.Generator().manual_seed(6)
    return pipeline("a cat", num_inference_steps=2, generator=generator, output_type="pt").images


result = [draw(pipe)]
with torch.no_grad():  # whoever changes a network has it drawn with
    pipe.unet.conv_out.weight.mul_(0.9)
result.append(draw(pipe))
with tempfile.TemporaryDirectory() as folder:
    pipe.save_pretrained(folder)
    again = DiffusionPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    result.append(draw(again))
