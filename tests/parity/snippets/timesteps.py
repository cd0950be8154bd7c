"""Timesteps and sigmas of one's own, few steps, schedulers that are made by hand or saved."""

import tempfile

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)


def draw(pipeline=pipe, **options):
    return pipeline("a cat", generator=torch.manual_seed(8), output_type="latent", **options).images


pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
result = [draw(timesteps=[999, 700, 300, 100]), draw(sigmas=[14.6, 6.0, 2.0, 0.5, 0.0])]
pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(
    "org/stable-diffusion", subfolder="scheduler", algorithm_type="sde-dpmsolver++"
)
result += [draw(timesteps=[999, 845, 730, 587, 443, 310, 193, 116, 53, 13])]
pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
result += [draw(num_inference_steps=4, guidance_scale=1.0), draw(timesteps=[999, 499])]
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
result += [draw(num_inference_steps=4, guidance_rescale=0.7, eta=0.3)]

noise_scheduler = DDPMScheduler.from_pretrained("org/stable-diffusion", subfolder="scheduler")
result += [noise_scheduler.alphas_cumprod, noise_scheduler.betas, noise_scheduler.timesteps]
scheduler = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
)
old = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", scheduler=scheduler)
old.set_progress_bar_config(disable=True)
result += [draw(old, num_inference_steps=3, eta=0.3), float(scheduler.final_alpha_cumprod)]
with tempfile.TemporaryDirectory() as folder:
    old.scheduler.save_config(folder)
    read = EulerDiscreteScheduler.from_config(EulerDiscreteScheduler.load_config(folder))
read.set_timesteps(3)
result += [read.sigmas, read.timesteps]
