"""One class for a task: the pipeline that fits the model, and those that are made from it."""

import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
)
from diffusers.utils import load_image, make_image_grid
from PIL import Image

Image.linear_gradient("L").resize((64, 64)).save("org/gradient.png")
image = load_image("org/gradient.png")
mask = Image.new("L", (64, 64), 0)
mask.paste(255, (8, 8, 40, 40))
ask = {"num_inference_steps": 4, "output_type": "latent"}

pipeline = AutoPipelineForText2Image.from_pretrained(
    "org/stable-diffusion", torch_dtype=torch.float32, use_safetensors=True, safety_checker=None
)
drawn = [pipeline("a cat", generator=torch.manual_seed(0), **ask).images]
again = AutoPipelineForImage2Image.from_pipe(pipeline)
drawn += [again("a dog", image=image, strength=0.5, generator=torch.manual_seed(1), **ask).images]
inpaint = AutoPipelineForInpainting.from_pipe(again, torch_dtype=torch.float32)
mask = inpaint.mask_processor.blur(mask, blur_factor=3)
drawn += [inpaint("a dog", image=image, mask_image=mask, generator=torch.manual_seed(2), **ask).images]

controlnet = ControlNetModel.from_pretrained("org/controlnet", torch_dtype=torch.float32)
pipeline = AutoPipelineForText2Image.from_pretrained("org/stable-diffusion", controlnet=controlnet)
drawn += [pipeline("a cat", image=image, generator=torch.manual_seed(3), **ask).images]
both = AutoPipelineForImage2Image.from_pipe(pipeline)
drawn += [both("a cat", image=image, control_image=image, generator=torch.manual_seed(4), **ask).images]
plain = AutoPipelineForImage2Image.from_pipe(pipeline, controlnet=None)
drawn += [plain("a cat", image=image, generator=torch.manual_seed(5), **ask).images]
xl = AutoPipelineForImage2Image.from_pretrained("org/xl")

names = [type(one).__name__ for one in (again, inpaint, pipeline, both, plain, xl)]
[black] = inpaint.numpy_to_pil(np.zeros((8, 8, 3)))
result = [*drawn, names, make_image_grid([image, mask], rows=1, cols=2), black]
