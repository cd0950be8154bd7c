"""Lists of prompts, and pictures in every form that a pipeline gives them in."""

import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe = pipe.to("cpu", torch.float32)
pipe.enable_attention_slicing()
pipe.enable_model_cpu_offload(device="cpu")
pipe.vae.enable_slicing()
pipe.vae.enable_tiling()
prompts, negatives = ["a cat", "the sea at night"], ["a red house", ""]
several = pipe(
    prompt=prompts,
    negative_prompt=negatives,
    num_images_per_prompt=2,
    generator=[torch.Generator("cpu").manual_seed(number) for number in range(4)],
    num_inference_steps=2,
    output_type="np",
)
images, nsfw = pipe(
    "a cat",
    generator=torch.manual_seed(0),
    num_inference_steps=2,
    guidance_rescale=0.5,
    output_type="pt",
    return_dict=False,
)
assert nsfw is None
latents = pipe("a cat", generator=torch.manual_seed(0), num_inference_steps=2, output_type="latent")[0]
with torch.no_grad():
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
processed = pipe.image_processor.postprocess(image, output_type="pt")
[picture] = pipe.image_processor.postprocess(image, output_type="pil", do_denormalize=[True])
processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
pixels = processor.preprocess(Image.linear_gradient("L").convert("RGB"), height=48, width=56)

with torch.no_grad():
    prompt_embeds, negative_prompt_embeds = pipe.encode_prompt("a cat", "cpu", 1, True, "a dog")
embedded = pipe(
    prompt_embeds=prompt_embeds,
    negative_prompt_embeds=negative_prompt_embeds,
    generator=torch.manual_seed(1),
    num_inference_steps=2,
    output_type="latent",
).images
without = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", text_encoder=None, tokenizer=None)
without.set_progress_bar_config(disable=True)
ask = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
bare = without(**ask, generator=torch.manual_seed(1), num_inference_steps=2, output_type="latent").images
result = [several["images"], several[0], images, latents, image, processed, picture, pixels]
result += [prompt_embeds, embedded, bare, pipe.unet.config.in_channels, pipe.vae_scale_factor]
