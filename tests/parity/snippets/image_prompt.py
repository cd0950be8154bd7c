"""A picture as a prompt: IP-Adapter."""

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)
pipe.load_ip_adapter(
    "org/ip", subfolder="models", weight_name="plain.safetensors", image_encoder_folder="image_encoder"
)
image = Image.linear_gradient("L").convert("RGB")
result = []
for scale in (1.0, 0.3):
    pipe.set_ip_adapter_scale(scale)
    result += pipe(
        "a cat",
        ip_adapter_image=image,
        num_inference_steps=2,
        generator=torch.manual_seed(1),
        output_type="latent",
    ).images
pipe.unload_ip_adapter()
result += pipe("a cat", num_inference_steps=2, generator=torch.manual_seed(1), output_type="latent").images
