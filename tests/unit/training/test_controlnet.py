"""A ControlNet from training to its file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limner.errors import InvalidDataset, InvalidRequest, UnsupportedModel
from limner.nn.controlnet import ControlNetModel
from limner.training.controlnet import ControlNetSettings, ControlNetTask, _embedding_channels
from limner.training.data import Preprocessed
from limner.training.folders import FolderControls, FolderPictures
from limner.training.loop import TrainConfig, train
from limner.weights.checkpoint import load_unet, read_checkpoint
from limner.weights.control import read_control

FEW = TrainConfig(steps=8, lr=1e-2, warmup=0, log_steps=1, ema_decay=0.0, precision="fp32")


@pytest.fixture
def trained(make_controlnet_task, tmp_path):
    task = make_controlnet_task()
    train(task, FEW, tmp_path / "run")
    return task, tmp_path / "run/export"


def test_it_begins_as_the_model_without_it(make_controlnet_task):
    task = make_controlnet_task()
    task.prepare()
    batch, timesteps = task.batch(0), torch.tensor([1, 300, 600, 999])
    x, (context, _) = torch.randn(4, 4, 8, 8), task.text_encoder(batch["ids"])
    with torch.no_grad():
        assert torch.equal(task._answer(x, timesteps, context, batch), task.unet(x, timesteps, context))


def test_gradients_reach_the_controlnet_alone(make_controlnet_task, tmp_path):
    task = make_controlnet_task()
    train(task, FEW, tmp_path)  # zero convolutions let nothing through before the first step
    loss, _ = task.loss(task.batch(0), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in task.controlnet.parameters())
    assert all(p.grad is None for network in task.frozen.values() for p in network.parameters())


def test_the_model_stays_as_it_is(trained, checkpoint_folder):
    task, _ = trained
    before = load_unet(read_checkpoint(checkpoint_folder)).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in task.unet.state_dict().items())


def test_it_learns_from_the_control_picture(make_controlnet_task, tmp_path):
    """The corner's width is in the edges and in nothing else that the U-Net is told."""
    task = make_controlnet_task(drop_caption=1.0)
    task.prepare()
    batch, timesteps = task._fresh_batch(), torch.full((8,), 700)
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = task._error(batch, noise, timesteps).mean()
    train(task, replace(FEW, steps=60, lr=3e-3), tmp_path / "run")
    with torch.no_grad():
        after = task._error(batch, noise, timesteps).mean()
        blank = {**batch, "controls": torch.zeros_like(batch["controls"])}
        assert after < 0.8 * before
        assert task._error(blank, noise, timesteps).mean() > after


def test_the_export_is_what_was_trained(trained):
    task, folder = trained
    network = read_control(folder).load(torch.float32)
    assert isinstance(network, ControlNetModel)
    assert network.config == task.controlnet.config
    assert all(torch.equal(w, task.controlnet.state_dict()[name]) for name, w in network.state_dict().items())


def test_diffusers_reads_the_export(trained):
    from diffusers import ControlNetModel as Theirs

    task, folder = trained
    theirs = Theirs.from_pretrained(folder)
    x, context, image = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        down, middle = theirs(x, torch.tensor([7, 900]), context, image, return_dict=False)
        ours = task.controlnet(x, torch.tensor([7, 900]), context, task.controlnet.embed(image))
    for mine, expected in zip(ours, [*down, middle], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "downscale", "expected"),
    [(320, 8, (16, 32, 96, 256)), (128, 8, (8, 16, 32, 64)), (32, 2, (8, 16)), (4, 8, (1, 1, 1, 2))],
)
def test_the_embedding_is_as_wide_as_the_unet_needs(width, downscale, expected):
    assert _embedding_channels(width, downscale) == expected


def test_it_goes_on_from_a_controlnet(trained, make_controlnet_task, checkpoint_folder, squares, tmp_path):
    _, folder = trained
    edges = Preprocessed(squares, "canny")
    further = ControlNetTask(
        ControlNetSettings(batch_size=4),
        read_checkpoint(checkpoint_folder),
        squares,
        squares,
        edges,
        edges,
        tmp_path / "cache",
        model="tiny",
        start=read_control(folder),
    )
    first = make_controlnet_task()
    for task in (first, further):
        task.prepare()
    with torch.no_grad():
        assert further.validate()["error"] != first.validate()["error"]
    before = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    train(further, replace(FEW, steps=1), tmp_path / "further")
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_what_is_refused(make_controlnet_task, checkpoint_folder, squares, tmp_path):
    with pytest.raises(InvalidRequest, match="smaller by 8, but the autoencoder makes images so by 2"):
        make_controlnet_task(embedding_channels=(4, 8, 16, 32))
    with pytest.raises(InvalidRequest, match="there is no preprocessor cany"):
        Preprocessed(squares, "cany")
    checkpoint = read_checkpoint(checkpoint_folder)
    sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": checkpoint.text_configs["text_encoder"].hidden_size + 6 * 8,
    }
    unet = replace(checkpoint.parts["unet"], config=replace(checkpoint.unet_config, **sizes))
    xl = replace(checkpoint, parts={**checkpoint.parts, "unet": unet})
    edges = Preprocessed(squares, "canny")
    with pytest.raises(UnsupportedModel, match="a ControlNet can be trained for"):
        ControlNetTask(ControlNetSettings(), xl, squares, squares, edges, edges, tmp_path, model="xl")


def test_control_pictures_of_a_folder(tmp_path):
    data, controls = tmp_path / "data", tmp_path / "controls"
    (data / "in").mkdir(parents=True), (controls / "in").mkdir(parents=True)
    Image.new("RGB", (32, 16), "red").save(data / "in/a.png")
    (data / "in/a.txt").write_text("red")
    pictures = FolderPictures(data, size=8)
    with pytest.raises(InvalidDataset, match=r"has no control image: there is no .*a\.png"):
        FolderControls(controls, pictures)
    Image.new("L", (64, 32), 200).save(controls / "in/a.jpg")
    found = FolderControls(controls, pictures)
    assert len(found) == 1
    assert found.pixels(0).shape == (8, 8, 3)
    assert np.abs(found.pixels(0).astype(int) - 200).max() <= 1
    Image.new("L", (64, 48), 200).save(controls / "in/a.jpg")
    with pytest.raises(InvalidDataset, match="in other proportions"):
        found.pixels(0)


def test_pictures_in_colour_are_control_pictures_too(squares):
    assert Preprocessed(squares, "none").pixels(0).shape == (16, 16, 3)
    assert Preprocessed(squares, "canny:10:20").pixels(0).shape == (16, 16)
    assert Preprocessed(squares, "canny:10:20").identity != Preprocessed(squares, "canny").identity
