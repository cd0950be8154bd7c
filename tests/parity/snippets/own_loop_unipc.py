"""The components of a pipeline, taken apart, in a loop with a scheduler of many steps."""

import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

pipe = DiffusionPipeline.from_pretrained("org/stable-diffusion")
scheduler = UniPCMultistepScheduler.from_pretrained("org/stable-diffusion", subfolder="scheduler")
unet, vae, tokenizer, text_encoder = pipe.unet, pipe.vae, pipe.tokenizer, pipe.text_encoder


@torch.no_grad()
def embed(text):
    ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    output = text_encoder(input_ids=ids.input_ids, output_hidden_states=True)
    assert len(output.hidden_states) == text_encoder.config.num_hidden_layers + 1
    return output.last_hidden_state


context = torch.cat([embed([""]), embed(["a lighthouse"])])
scheduler.set_timesteps(10)
x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)) * scheduler.init_noise_sigma
for i, t in enumerate(scheduler.timesteps):
    with torch.no_grad():
        uncond, cond = unet(scheduler.scale_model_input(torch.cat([x, x]), t), t, context, return_dict=False)[
            0
        ].chunk(2)
    x = scheduler.step(uncond + 5 * (cond - uncond), t, x, return_dict=False)[0]
    if i == 4:
        x = x + 0.05 * torch.sign(x)  # a guidance of one's own
assert sum(p.numel() for p in unet.parameters()) > 1000
result = [x, vae.decode(x / vae.config.scaling_factor, return_dict=False)[0].detach()]
