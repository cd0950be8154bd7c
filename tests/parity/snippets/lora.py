"""A LoRA, loaded, weighed, fused and forgotten."""

import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion")
pipe.set_progress_bar_config(disable=True)


def draw(**options):
    generator = torch.Generator().manual_seed(2)
    return pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent", **options).images


plain = draw()
pipe.load_lora_weights("org/lora", weight_name="style.safetensors", adapter_name="style")
whole = draw()
half = draw(cross_attention_kwargs={"scale": 0.5})
pipe.set_adapters(["style"], adapter_weights=[0.3])
weighed = draw()
pipe.disable_lora()
off = draw()
pipe.enable_lora()
pipe.fuse_lora(lora_scale=0.7)
fused = draw()
assert pipe.num_fused_loras == 1
pipe.unfuse_lora()
pipe.load_lora_weights("org/lora/other.safetensors", adapter_name="other")
pipe.set_adapters(["style", "other"], adapter_weights=[0.4, 0.3])
assert sorted(pipe.get_active_adapters()) == ["other", "style"]
both = draw()
pipe.delete_adapters("style")
other = draw()
pipe.unload_lora_weights()
assert (whole - plain).abs().max() > 0.1
result = [plain, whole, half, weighed, off, fused, both, other, draw()]
