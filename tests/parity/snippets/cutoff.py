"""Callbacks that come with the library, and the kind that there was before them."""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

ask = {"num_inference_steps": 5, "output_type": "latent"}
pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)
callback = SDCFGCutoffCallback(cutoff_step_ratio=0.4)
plain = pipe("a cat", callback_on_step_end=callback, generator=torch.manual_seed(0), **ask).images
xl = DiffusionPipeline.from_pretrained("org/xl")
xl.set_progress_bar_config(disable=True)
callback = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
given = {"callback_on_step_end": callback, "generator": torch.manual_seed(1), "height": 64, "width": 64}
larger = xl("a cat", **given, **ask).images

seen = []


def old(step, timestep, latents):
    seen.append(latents + step)


before = pipe("a cat", callback=old, callback_steps=2, generator=torch.manual_seed(2), **ask).images
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe("a cat", callback=old, callback_steps=1, generator=torch.manual_seed(2), **ask)


def told(pipeline, step, timestep, callback_kwargs):
    seen.append([pipeline.guidance_scale, pipeline.num_timesteps, pipeline.clip_skip, pipeline.interrupt])
    return {}


pipe("a cat", guidance_scale=3.0, callback_on_step_end=told, generator=torch.manual_seed(2), **ask)
result = [plain, larger, before, *seen]
