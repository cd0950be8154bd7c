"""The perceptual and the adversarial loss of the autoencoder."""

import json

import pytest
import torch
import torch.nn.functional as F

from limner.errors import InvalidCheckpoint, InvalidRequest
from limner.training.adversarial import PatchDiscriminator, balance, decoder_loss, discriminator_loss
from limner.training.loop import TrainConfig, train
from limner.training.perceptual import (
    FeatureConfig,
    FeatureNetwork,
    FeatureSettings,
    FeatureTask,
    read_features,
)
from limner.training.vae import VAESettings, VAETask


def pictures(count=2, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gradients(module):
    return [weight.grad for weight in module.parameters()]


def test_each_adversarial_loss_trains_its_own_side():
    torch.manual_seed(0)
    discriminator, decoder = PatchDiscriminator(), torch.nn.Conv2d(3, 3, 1)
    real, decoded = pictures(), decoder(pictures(seed=1))
    discriminator_loss(discriminator, real, decoded).backward()
    assert all(grad is not None for grad in gradients(discriminator))
    assert gradients(decoder) == [None, None]

    discriminator.zero_grad()
    decoder_loss(discriminator, decoded).backward()
    assert all(grad is None for grad in gradients(discriminator))
    assert all(grad is not None for grad in gradients(decoder))


def test_the_discriminator_learns_to_tell_noise_from_flat_colour():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    real, decoded = pictures(8) * 0.0 + 0.3, pictures(8)
    first = discriminator_loss(discriminator, real, decoded).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminator, real, decoded)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2  # measured: below 0.02 from 1
    assert decoder_loss(discriminator, real) < decoder_loss(discriminator, decoded)


def test_both_losses_weigh_the_same_at_the_last_layer():
    last = torch.nn.Parameter(torch.tensor([2.0]))
    reconstruction, adversarial = (3 * last).sum(), (0.5 * last).sum()
    assert balance(reconstruction, adversarial, last).item() == pytest.approx(6, rel=1e-3)


def test_the_adversarial_loss_begins_at_its_batch_and_rises(make_adversarial_vae_task):
    task = make_adversarial_vae_task()
    assert "adversarial_weight" not in task.batch(1)
    weights = [task.batch(step)["adversarial_weight"].item() for step in (2, 502, 1002, 5000)]
    assert weights == [0.0, 0.25, 0.5, 0.5]
    _, before = task.loss(task.batch(1), torch.Generator().manual_seed(0))
    _, after = task.loss(task.batch(2), torch.Generator().manual_seed(0))
    assert after.keys() - before.keys() == {"adversarial", "discriminator"}


def test_the_discriminator_rests_until_then(make_adversarial_vae_task, tmp_path):
    task = make_adversarial_vae_task()
    before = [weight.clone() for weight in task.discriminator.parameters()]
    train(task, TrainConfig(steps=2, lr=1e-2, warmup=0, log_steps=1), tmp_path)
    assert all(map(torch.equal, before, task.discriminator.parameters()))


def test_the_discriminator_is_not_exported(make_adversarial_vae_task, tmp_path):
    train(make_adversarial_vae_task(), TrainConfig(steps=3, lr=1e-3, log_steps=1), tmp_path)
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["vae"]


def test_the_distance_is_zero_for_equal_pictures_and_grows_with_blur():
    torch.manual_seed(0)
    network = FeatureNetwork(FeatureConfig())
    sharp = pictures()
    little, much = F.avg_pool2d(sharp, 3, 1, 1), F.avg_pool2d(sharp, 7, 1, 3)
    assert network.distance(sharp, sharp).item() == 0
    assert 0 < network.distance(sharp, little).item() < network.distance(sharp, much).item() <= 2


def test_the_perceptual_loss_reaches_the_autoencoder_and_not_the_features(make_adversarial_vae_task):
    task = make_adversarial_vae_task()
    task.features.requires_grad_(False)
    loss, metrics = task.loss(task.batch(0), torch.Generator().manual_seed(0))
    loss.backward()
    assert metrics["perceptual"] > 0
    assert all(grad is None for grad in gradients(task.features))
    plain = VAETask(task.how, task.pictures, task.fresh_pictures)
    without, _ = plain.loss(task.batch(0), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(without.item() + metrics["perceptual"].item(), rel=1e-5)


def test_other_features_are_another_setting(make_adversarial_vae_task, vae_task):
    one, other = make_adversarial_vae_task(), make_adversarial_vae_task()
    assert one.settings == other.settings
    with torch.no_grad():
        next(other.features.parameters()).add_(1)
    changed = VAETask(other.how, other.pictures, other.fresh_pictures, features=other.features)
    assert changed.settings["features"] != one.settings["features"]
    assert "features" not in vae_task().settings  # older runs resume


def test_features_are_read_as_they_were_exported(make_feature_task, tmp_path):
    task = make_feature_task()
    train(task, TrainConfig(steps=2, lr=1e-3, log_steps=1, ema_decay=0.0), tmp_path)
    network = read_features(tmp_path / "export/features")
    assert network.config == task.how.model
    torch.testing.assert_close(network(pictures()), task.network(pictures()))


def test_crops_of_one_pair_overlap(make_feature_task):
    """Of crops of 8 that are shifted by up to 2, the middle 4x4 is in both; here all pictures are flat."""
    first, second = make_feature_task().batch(0)["pairs"]
    assert first.shape == second.shape == (8, 8, 8, 3)
    assert torch.equal(first[:, -1, -1], second[:, -1, -1])


def test_what_is_no_feature_network_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: expected the config of a FeatureNetwork"):
        read_features(tmp_path)


def test_crops_too_large_to_shift_are_refused(squares):
    with pytest.raises(InvalidRequest, match="crops of at most 12"):
        FeatureTask(FeatureSettings(crop=16), squares, squares)


def test_an_adversarial_run_is_another_task(make_adversarial_vae_task):
    task = make_adversarial_vae_task()
    plain = VAETask(VAESettings(task.how.model, crop=8), task.pictures, task.fresh_pictures)
    assert task.identity != plain.identity
