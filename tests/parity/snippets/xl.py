"""XL: a base that hands over to the refiner, prompts for each text encoder, sizes, embeddings."""

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

base = DiffusionPipeline.from_pretrained(
    "org/xl", torch_dtype=torch.float32, use_safetensors=True, add_watermarker=False
)
refiner = DiffusionPipeline.from_pretrained(
    "org/refiner", text_encoder_2=base.text_encoder_2, vae=base.vae, use_safetensors=True
)
for pipe in (base, refiner):
    pipe.set_progress_bar_config(disable=True)
size = {"height": 64, "width": 96}
n_steps, high_noise_frac = 5, 0.8
image = base(
    prompt="a cat",
    num_inference_steps=n_steps,
    denoising_end=high_noise_frac,
    output_type="latent",
    generator=torch.manual_seed(0),
    **size,
).images
refined = refiner(
    prompt="a cat",
    num_inference_steps=n_steps,
    denoising_start=high_noise_frac,
    image=image,
    aesthetic_score=7.0,
    negative_aesthetic_score=2.0,
    output_type="latent",
    generator=torch.manual_seed(1),
).images
told = base(
    prompt="a cat",
    prompt_2="a dog",
    negative_prompt="the sea",
    negative_prompt_2="a house",
    original_size=(1024, 1024),
    target_size=(1024, 1024),
    crops_coords_top_left=(0, 0),
    negative_original_size=(512, 512),
    negative_target_size=(1024, 1024),
    num_inference_steps=2,
    output_type="latent",
    generator=torch.manual_seed(2),
    **size,
).images
pipe = StableDiffusionXLPipeline.from_pretrained("org/xl")
pipe.set_progress_bar_config(disable=True)
with torch.no_grad():
    embeds = pipe.encode_prompt("a cat", None, "cpu", 1, True, "a dog")
positive, negative, pooled, negative_pooled = embeds
ask = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "pooled_prompt_embeds": pooled}
ask |= {"negative_pooled_prompt_embeds": negative_pooled, "num_inference_steps": 2, **size}
(pixels,) = pipe(**ask, generator=torch.manual_seed(3), output_type="pt", return_dict=False)
again = StableDiffusionXLImg2ImgPipeline(**pipe.components)
again.set_progress_bar_config(disable=True)
ask = {"image": pixels, "strength": 0.5, "num_inference_steps": 4, "output_type": "latent"}
anew = again("a cat", **ask, generator=torch.manual_seed(4)).images
result = [image, refined, told, *embeds, pixels, anew]
