"""Several pictures of each prompt from one generator, on one sheet."""

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

pipe = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", safety_checker=None)
pipe.set_progress_bar_config(disable=True)


def image_grid(imgs, rows, cols):
    w, h = imgs[0].size
    grid = Image.new("RGB", size=(cols * w, rows * h))
    for i, img in enumerate(imgs):
        grid.paste(img, box=(i % cols * w, i // cols * h))
    return grid


prompt = ["a red house", "a blue boat on the sea"]
output = pipe(
    prompt,
    negative_prompt=["blurry", "dark"],
    num_images_per_prompt=2,
    num_inference_steps=4,
    height=64,
    width=96,
    generator=torch.Generator("cpu").manual_seed(0),
)
assert output.nsfw_content_detected is None
result = image_grid(output.images, rows=2, cols=2)
