"""Previews of latents by a fitted linear map."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from limner.engine.loaded import load
from limner.errors import UnsupportedModel
from limner.generation.preview import PREVIEWS, LatentPreview
from limner.request import GenerationRequest


def test_a_linear_decoder_is_recovered():
    generator = torch.Generator().manual_seed(0)
    weights, bias = torch.randn(4, 3, generator=generator) * 0.1, torch.tensor([0.1, -0.2, 0.3])
    latents = torch.randn(2, 4, 8, 6, generator=generator)
    images = torch.einsum("nchw,cr->nrhw", latents, weights) + bias[:, None, None]
    preview = LatentPreview.fit(latents, images.repeat_interleave(8, 2).repeat_interleave(8, 3))
    torch.testing.assert_close(torch.tensor(preview.weights), weights)
    torch.testing.assert_close(torch.tensor(preview.bias), bias)
    shown = preview(latents)
    assert (shown.dtype, shown.shape) == (torch.uint8, (2, 8, 6, 3))
    torch.testing.assert_close(shown.float(), ((images + 1) * 127.5).movedim(1, -1), atol=0.51, rtol=0)


def test_published_maps_take_four_channels():
    assert PREVIEWS["sd1"](torch.zeros(1, 4, 2, 2)).unique().tolist() == [128]
    with pytest.raises(ValueError, match="5 channels; expected 4"):
        PREVIEWS["xl"](torch.zeros(1, 5, 2, 2))


def test_previews_of_the_shipped_model_are_near_its_images():
    model = load("picturebook", precision="fp32", device="cpu")
    for prompt, seed in (("a red house", 1), ("a yellow balloon at sunset", 2)):
        request = GenerationRequest(prompt=prompt, seed=seed, steps=4)
        *_, last = model.engine.submit(request)
        preview = last.preview()
        assert preview.size == (last.latents.shape[3], last.latents.shape[2])
        image = last.picture.resize(preview.size, Image.Resampling.BOX)
        assert np.corrcoef(np.ravel(preview), np.ravel(image))[0, 1] > 0.85, prompt


def test_a_model_of_another_family_says_how_it_gets_previews(checkpoint_folder):
    ask = GenerationRequest(prompt="a", seed=1, steps=1, width=64, height=64)
    *_, last = load(checkpoint_folder).engine.submit(ask)
    with pytest.raises(UnsupportedModel, match="no previews") as error:
        last.preview()
    assert "limner.json" in error.value.hint
    path = checkpoint_folder / "limner.json"
    path.write_text(json.dumps({"defaults": {}, "preview": {"weights": [[0.5, 0, 0]] * 4}}))
    *_, last = load(checkpoint_folder).engine.submit(ask)
    assert last.preview().getextrema()[1:] == ((128, 128), (128, 128))
