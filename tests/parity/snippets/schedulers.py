"""The same picture by one scheduler after another."""

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

euler = EulerDiscreteScheduler.from_pretrained("org/stable-diffusion", subfolder="scheduler")
pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", scheduler=euler)
pipe.set_progress_bar_config(disable=True)


def draw(**options):
    generator = torch.Generator("cpu").manual_seed(8)
    return pipe("a cat", num_inference_steps=4, generator=generator, output_type="latent", **options).images


result = [draw()]
for scheduler in (
    LMSDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    result.append(draw())
pipe.scheduler = DPMSolverMultistepScheduler.from_config(
    pipe.scheduler.config, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
)
result.append(draw())
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
result.append(draw(eta=0.6))
