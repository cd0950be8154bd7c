"""Programs in the manner of diffusers' tutorials run on Limner with another import line, and draw the same.

1e-4 of their standard deviation, as whole pipelines elsewhere; pictures of 8 bits may round either way.
"""

import json
import re
from dataclasses import replace
from inspect import signature
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_families import (  # noqa: F401 (a fixture)
    TEXT,
    UNET,
    VAE,
    _text_encoder,
    image_prompts,
    save_family,
)

from limner.prompts.tokenizer import Tokenizer

TOLERANCE = 1e-4
SNIPPETS = sorted(Path(__file__).with_name("snippets").glob("*.py"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`callback(_steps)?` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.filterwarnings("ignore:the scheduler's steps_offset is 0:UserWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, reference, randomise, image_prompts):  # noqa: F811
    """A folder that diffusers saved, with the scheduler of 1.5; beside it what else the programs name."""
    diffusers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(["a cat on a red house", "the sea at night"], vocab_size=530, max_length=77)
    tokenizer.save(root / "tokenizer")  # a small one, as CLIP's takes diffusers a second to read
    parts = {
        "unet": diffusers.UNet2DConditionModel.from_config({**UNET.to_dict(), "sample_size": 8}),
        "vae": diffusers.AutoencoderKL.from_config(VAE.to_dict()),
        "text_encoder": _text_encoder(replace(TEXT, vocab_size=tokenizer.vocab_size)),
    }
    for number, part in enumerate(parts.values()):
        randomise(part, number)
    config = json.loads((reference / "configs" / "sd15" / "scheduler" / "scheduler_config.json").read_text())
    diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(root / "tokenizer"),
        scheduler=diffusers.PNDMScheduler.from_config(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "model")
    (root / "words").mkdir()
    (root / "lora").mkdir()
    width, vectors = TEXT.hidden_size, torch.Generator().manual_seed(1)
    for name, token, count in (("cat-toy", "<cat-toy>", 1), ("style", "<style>", 3)):
        rows = torch.randn(count, width, generator=vectors)
        save_file({token: rows}, root / "words" / f"{name}.safetensors")
    save_file(_lora(parts["unet"], 2), root / "lora" / "style.safetensors")
    save_file(_lora(parts["unet"], 3), root / "lora" / "other.safetensors")
    for name in ("xl", "refiner"):
        save_family(name, root, reference, randomise)
    known = signature(diffusers.ControlNetModel.__init__).parameters
    shared = {key: value for key, value in UNET.to_dict().items() if key in known}
    net = diffusers.ControlNetModel(**shared, conditioning_embedding_out_channels=(8, 8, 16, 16))
    randomise(net, 50)
    net.save_pretrained(root / "controlnet")
    adapter = image_prompts("plain", UNET)
    (root / "ip" / "models").mkdir(parents=True)
    adapter.rename(root / "ip" / "models" / "plain.safetensors")
    (adapter.parent / "image_encoder").rename(root / "ip" / "models" / "image_encoder")
    return root / "model"


def _lora(unet, seed):
    """Of all attention in a U-Net."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, into = module.weight.shape
            for end, shape in (("down", (2, into)), ("up", (out, 2))):
                values = torch.randn(shape, generator=generator) / into**0.5
                tensors[f"unet.{name}.lora.{end}.weight"] = values
    return tensors


def run(source, model, library):
    """What a snippet calls its result, with the imports of a library."""
    source = source.replace("org/stable-diffusion", str(model)).replace("org/", f"{model.parent}/")
    if library == "limner":
        source = re.sub(r"from (diffusers|transformers)[\w.]* import", "from limner import", source)
    names = {"__name__": "snippet"}
    exec(compile(source, "snippet", "exec"), names)
    result = names["result"]
    return result if isinstance(result, list) else [result]


@pytest.mark.long
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda path: path.stem)
def test_another_import_line_is_enough(snippet, model):
    source = snippet.read_text()
    theirs, ours = (run(source, model, library) for library in ("diffusers", "limner"))
    assert len(ours) == len(theirs)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            one, other = torch.from_numpy(one), torch.from_numpy(other)
        if isinstance(one, list | int | float | str):
            assert one == (pytest.approx(other) if isinstance(one, float) else other), f"result {number}"
            continue
        if not torch.is_tensor(one):
            assert one.size == other.size
            difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
            assert difference.max() <= 1, f"result {number}"
            assert (difference > 0).mean() < 0.01, f"result {number}"
            continue
        assert one.shape == other.shape
        difference = float((one - other).abs().max() / other.float().std())
        assert difference <= TOLERANCE, f"result {number} differs by {difference:.1e}"
