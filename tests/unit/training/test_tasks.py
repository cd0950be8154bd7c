"""What is particular to each task."""

import json
import math

import pytest
import torch

from limner.generation.preview import LatentPreview
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.training.clip import with_projection
from limner.training.components import read_text_encoder, read_vae
from limner.training.loop import TrainConfig, train
from limner.training.vae import VAESettings, VAETask, psnr

ONE = TrainConfig(steps=1, lr=1e-4, log_steps=1, precision="fp32")


def test_batches_are_functions_of_the_step(make_task):
    first, second = make_task(), make_task()
    first.prepare(), second.prepare()
    for name, value in first.batch(3).items():
        assert torch.equal(value, second.batch(3)[name])
    assert any(not torch.equal(value, first.batch(4)[name]) for name, value in first.batch(3).items())


def test_validation_and_samples_take_nothing_from_training(make_task, tmp_path):
    """They may come at any time, so the global generator and the weights must not notice."""
    task = make_task()
    task.prepare()
    before, state = task.loss(task.batch(0), torch.Generator().manual_seed(1))[0], torch.get_rng_state()
    with torch.no_grad():
        assert task.validate() == task.validate()
        assert task.samples().image().size[0] > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(task.loss(task.batch(0), torch.Generator().manual_seed(1))[0], before)


def test_psnr():
    assert psnr(torch.tensor(0.04)) == pytest.approx(20)


def test_the_vae_is_exported_with_the_factor_that_gives_its_latents_unit_variance(vae_task, tmp_path):
    task = vae_task()
    train(task, ONE, tmp_path)
    vae = read_vae(tmp_path / "export/vae")
    with torch.no_grad():
        latents = vae.encode(task.fresh)[0] * vae.config.scaling_factor
    # The factor is rounded to five places, and a one-step network has small latents.
    assert latents.std().item() == pytest.approx(1, rel=1e-3)


def test_training_the_decoder_alone_leaves_latents_as_they_are(vae_task, tmp_path):
    first = vae_task()
    train(first, ONE, tmp_path / "first")
    before = read_vae(tmp_path / "first/export/vae")
    settings = VAESettings(before.config, batch_size=4, crop=8, decoder_only=True)
    train(
        VAETask(settings, first.pictures, first.pictures, tmp_path / "first/export/vae"),
        ONE,
        tmp_path / "run",
    )
    after = read_vae(tmp_path / "run/export/vae")
    assert after.config == before.config
    old = before.state_dict()
    changed = {name.split(".")[0] for name, value in after.state_dict().items() if not value.equal(old[name])}
    assert changed == {"decoder", "post_quant_conv"}


class Answers(torch.nn.Module):
    """In place of a U-Net: answers with what it was built for."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, timesteps, context):
        return self.answer(x, timesteps)


def test_the_unet_that_knows_the_noise_has_no_loss(make_unet_task, tmp_path):
    task = make_unet_task(tmp_path, prediction_type="epsilon")
    task.prepare()
    batch = task.batch(0)
    x0 = batch["latents"].float()

    def noise(x, timesteps):
        signal, rate = task.schedule.rates_at(timesteps, x)
        return (x - signal * x0) / rate

    task.unet = Answers(noise)
    loss, _ = task.loss(batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0, abs=1e-8)  # the division by small rates costs fp32 digits
    task.unet = Answers(lambda x, timesteps: torch.zeros_like(x))
    loss, _ = task.loss(batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(1, abs=0.15)  # the variance of 4 x 2 x 8 x 8 unit normals


def test_min_snr_weighs_the_loss(make_unet_task, tmp_path):
    plain, weighted = (make_unet_task(tmp_path, min_snr_gamma=gamma) for gamma in (None, 5.0))
    losses = []
    for task in (plain, weighted):
        task.prepare()
        task.unet = Answers(lambda x, timesteps: torch.zeros_like(x))
        losses.append(task.loss(task.batch(0), torch.Generator().manual_seed(0)))
    assert losses[0][1]["error"] == losses[1][1]["error"] == losses[0][0]
    assert losses[1][0] < losses[0][0]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 4)])
def test_captions_are_dropped_for_guidance(make_unet_task, tmp_path, share, expected):
    task = make_unet_task(tmp_path, drop_caption=share)
    task.prepare()
    empty = torch.tensor(task.tokenizer.encode_padded("")[0])
    assert sum(torch.equal(ids, empty) for ids in task.batch(0)["ids"]) == expected


def test_the_ideal_denoiser_draws_its_picture(make_unet_task, tmp_path):
    """For one single picture the right v is known, and every prompt must lead to that picture."""
    task = make_unet_task(tmp_path, prediction_type="v_prediction")
    task.prepare()
    x0 = task.fresh_latents[:1]

    def v(x, timesteps):
        signal, rate = task.schedule.rates_at(timesteps.long(), x)
        return signal * (x - signal * x0) / rate - rate * x0

    task.unet = Answers(v)
    with torch.no_grad():
        wanted = task.vae.decode(x0 / task.vae.config.scaling_factor)
        drawing = task.draw(["a red square"], steps=8)
    # The last step ends at sigma 0, where the sampler returns the denoised latents themselves.
    torch.testing.assert_close(drawing, wanted, atol=1e-4, rtol=1e-4)


def test_zero_terminal_snr_reaches_the_schedule(make_unet_task, tmp_path):
    assert make_unet_task(tmp_path, zero_terminal_snr=True).schedule.alphas_cumprod[-1] == 0
    assert make_unet_task(tmp_path).schedule.alphas_cumprod[-1] > 0


def test_the_exported_checkpoint_is_one_that_limner_loads(make_unet_task, tmp_path):
    import limner

    train(make_unet_task(tmp_path), ONE, tmp_path / "run")
    model = limner.load(str(tmp_path / "run/export"))
    result = model.generate("a red dragon", width=64, height=64, steps=2, seed=1)
    assert result.images[0].size == (64, 64)
    assert result.request.guidance_scale == 4.0
    assert result.warnings == (f"{model.name} was not trained on these words: dragon",)


def test_the_exported_checkpoint_has_a_map_for_previews(make_unet_task, tmp_path):
    import limner

    task = make_unet_task(tmp_path)
    train(task, ONE, tmp_path / "run")
    preview = limner.load(str(tmp_path / "run/export")).preview
    latents = task.fresh_latents
    with torch.no_grad():
        images = task.vae.decode(latents / task.vae.config.scaling_factor)
    expected = LatentPreview.fit(latents, images)
    for channel, colour in zip(preview.weights, expected.weights, strict=True):
        assert channel == pytest.approx(colour, abs=1e-4)
    assert preview.bias == pytest.approx(expected.bias, abs=1e-4)


def test_false_captions_make_clip_harder(make_clip_task):
    with_false, without = make_clip_task(hard_negatives=1), make_clip_task(hard_negatives=0)
    assert with_false.batch(0)["ids"].shape[0] == 8
    assert without.batch(0)["ids"].shape[0] == 4
    assert "true_over_false" in with_false.validate()


def test_clip_starts_at_its_temperature(make_clip_task):
    temperature = make_clip_task().temperature
    assert temperature(torch.tensor(1.0)).item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        temperature.logit_scale.fill_(math.log(1000))
    assert temperature(torch.tensor(1.0)).item() == pytest.approx(100)


def test_a_frozen_text_encoder_learns_only_its_projection(make_clip_task, tmp_path):
    task = make_clip_task(train_text_encoder=False)
    before = {name: w.clone() for name, w in task.text_encoder.state_dict().items()}
    train(task, TrainConfig(steps=2, lr=1e-2, warmup=0, log_steps=1), tmp_path)
    changed = {name for name, w in task.text_encoder.state_dict().items() if not torch.equal(w, before[name])}
    assert changed == {"text_projection.weight"}
    exported = read_text_encoder(tmp_path / "export/text_encoder")
    assert exported.config.projection
    config = json.loads((tmp_path / "export/image_encoder/config.json").read_text())
    assert config["architectures"] == ["CLIPVisionModelWithProjection"]


def test_a_projection_is_added_only_where_there_is_none():
    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    encoder = CLIPTextModel(config)
    projected = with_projection(encoder, 4)
    ids = torch.tensor([[1, 2, 8]])
    torch.testing.assert_close(projected(ids)[0], encoder(ids)[0])
    assert projected(ids)[1].shape == (1, 4)
    assert with_projection(projected, 5) is projected
