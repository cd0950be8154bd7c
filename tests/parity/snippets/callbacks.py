"""Callbacks: to stop early, to guide less towards the end, to write into the latents."""

import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)
seen = []


def interrupt_callback(pipeline, i, t, callback_kwargs):
    seen.append((i, int(t)))
    if i == 3:
        pipeline._interrupt = True
    return callback_kwargs


def callback_dynamic_cfg(pipe, step_index, timestep, callback_kwargs):
    if step_index == int(pipe.num_timesteps * 0.4):
        prompt_embeds = callback_kwargs["prompt_embeds"]
        callback_kwargs["prompt_embeds"] = prompt_embeds.chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return callback_kwargs


def brighter(pipe, step, timestep, callback_kwargs):
    latents = callback_kwargs["latents"]
    if step % 2:
        callback_kwargs["latents"] = latents + 0.1 * latents.mean(dim=1, keepdim=True)
    return callback_kwargs


def draw(callback, inputs=("latents",)):
    return pipe(
        "a photo of a cat",
        negative_prompt="a dog",
        num_inference_steps=6,
        num_images_per_prompt=2,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=list(inputs),
    ).images


result = [draw(interrupt_callback), draw(callback_dynamic_cfg, ["prompt_embeds"]), draw(brighter)]
result.append(torch.tensor(seen))
