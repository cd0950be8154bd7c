"""A pipeline of parts that are read one by one; the parts by themselves."""

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

repo = "org/stable-diffusion"
tokenizer = CLIPTokenizer.from_pretrained(repo, subfolder="tokenizer")
text_encoder = CLIPTextModel.from_pretrained(repo, subfolder="text_encoder")
vae = AutoencoderKL.from_pretrained(repo, subfolder="vae", torch_dtype=torch.float32)
unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(repo, subfolder="unet"))
unet.load_state_dict(UNet2DConditionModel.from_pretrained(repo, subfolder="unet").state_dict())
pipe = StableDiffusionPipeline(
    vae=vae,
    text_encoder=text_encoder,
    tokenizer=tokenizer,
    unet=unet,
    scheduler=PNDMScheduler.from_pretrained(repo, subfolder="scheduler"),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)
pipe.set_progress_bar_config(disable=True)
drawn = pipe("a cat", num_inference_steps=2, generator=torch.manual_seed(1), output_type="latent").images

ids = tokenizer(["a cat at night"], padding="max_length", truncation=True, return_tensors="pt").input_ids
words = [tokenizer.decode(ids[0], skip_special_tokens=True), *tokenizer.batch_decode(ids[:, :4])]
words += [
    tokenizer.convert_tokens_to_ids("a</w>"),
    tokenizer.convert_tokens_to_ids(["a</w>", "no such token"]),
]
vae.requires_grad_(False)
pixels = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(2)) * 2 - 1
said = vae.encode(pixels).latent_dist
latents = said.sample(generator=torch.manual_seed(3)) * vae.config.scaling_factor
back = vae.decode(latents / vae.config.scaling_factor).sample
context = text_encoder(ids, output_hidden_states=True).hidden_states[-2].detach().repeat(2, 1, 1)
unet.train()
unet.enable_gradient_checkpointing()
noise = unet(latents, torch.tensor([5, 700]), context).sample
noise.mean().backward()
result = [drawn, words, latents, said.mode(), said.kl(), back, noise.detach(), unet.conv_in.weight.grad]
