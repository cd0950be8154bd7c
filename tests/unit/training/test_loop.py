"""The loop: what it promises for every task."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image

from limner.errors import InvalidTrainingState
from limner.training import loop
from limner.training.loop import TrainConfig, export, train
from limner.training.metrics import MetricsLog
from limner.training.sheets import Sheet
from limner.training.vae import VAETask

CONFIG = TrainConfig(steps=6, lr=1e-3, warmup=2, log_steps=1, ema_decay=0.9)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def weights(task):
    return {f"{m}.{name}": w for m, module in task.modules.items() for name, w in module.state_dict().items()}


def stop_after(task, steps):
    """The process is told to stop while it prepares the batch behind `steps` others."""
    loss, seen = task.loss, []

    def counted(batch, generator):
        seen.append(1)
        if len(seen) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(batch, generator)

    task.loss = counted


@pytest.mark.long
def test_resumed_training_equals_uninterrupted(make_task, tmp_path):
    whole, first, second = make_task(), make_task(), make_task()
    assert train(whole, CONFIG, tmp_path / "whole")
    stop_after(first, 3)
    assert not train(first, CONFIG, tmp_path / "parts")
    assert train(second, CONFIG, tmp_path / "parts")

    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert [step for step, _, _ in losses(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(second)[name]), name
    exported = sorted(path for path in (tmp_path / "whole/export").rglob("*.safetensors"))
    assert exported
    for path in exported:
        assert (
            path.read_bytes()
            == (tmp_path / "parts/export" / path.relative_to(tmp_path / "whole/export")).read_bytes()
        )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_training_on_a_gpu(make_task, tmp_path):
    task = make_task()
    assert train(task, CONFIG, tmp_path)
    assert task.device.type == "cuda"
    assert list((tmp_path / "export").rglob("*.safetensors"))


@pytest.mark.long
def test_training_lowers_the_loss(make_task, tmp_path):
    config = TrainConfig(steps=60, lr=5e-3, warmup=5, log_steps=20, precision="fp32")
    task = make_task()
    if isinstance(task, VAETask):  # an adversarial loss need not fall: two networks play against each other
        task.how = replace(task.how, adversarial_from=None)
    train(task, config, tmp_path)
    (_, first, _), *_, (_, last, _) = losses(tmp_path)
    # Measured 0.3 to 0.75 of the first twenty steps' mean; a broken gradient gives 1.
    assert last < 0.9 * first


@pytest.mark.long
def test_frozen_modules_do_not_change(make_task, tmp_path):
    task = make_task()
    trained = {id(weight) for module in task.modules.values() for weight in module.parameters()}
    frozen = [w for module in task.frozen.values() for w in module.parameters() if id(w) not in trained]
    before = [weight.clone() for weight in frozen]
    train(task, CONFIG, tmp_path)
    assert all(map(torch.equal, frozen, before))


@pytest.mark.long
def test_every_weight_of_the_modules_learns(make_task, tmp_path):
    task = make_task()
    before = {name: w.clone() for name, w in weights(task).items()}
    train(task, CONFIG, tmp_path)
    still = {name for name, w in weights(task).items() if torch.equal(w, before[name])}
    assert not {name for name in still if "bias" not in name}  # a bias before a normalisation has no gradient


def test_other_settings_need_resume_and_another_task_is_refused(vae_task, tmp_path):
    task = vae_task()
    stop_after(task, 2)
    train(task, CONFIG, tmp_path)
    longer = TrainConfig(steps=8, lr=1e-3, warmup=2, log_steps=1, ema_decay=0.9)
    with pytest.raises(InvalidTrainingState, match="steps was 6 and is now 8"):
        train(vae_task(), longer, tmp_path)
    assert train(vae_task(), longer, tmp_path, resume=True)

    other = vae_task()
    other.identity = {**other.identity, "kind": "other"}
    with pytest.raises(InvalidTrainingState, match="kind was 'vae' and is now 'other'"):
        train(other, longer, tmp_path, resume=True)


def test_fresh_starts_over(vae_task, tmp_path):
    train(vae_task(), CONFIG, tmp_path)
    once = losses(tmp_path)
    train(vae_task(), CONFIG, tmp_path, resume=False)
    assert losses(tmp_path) == once


def test_a_broken_checkpoint_costs_only_itself(vae_task, tmp_path):
    first = vae_task()
    stop_after(first, 2)
    train(first, CONFIG, tmp_path)
    second = vae_task()
    stop_after(second, 2)
    train(second, CONFIG, tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (newest / "state.safetensors").write_bytes(b"torn")
    assert train(vae_task(), CONFIG, tmp_path)
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_only_broken_checkpoints_are_an_error(vae_task, tmp_path):
    train(vae_task(), CONFIG, tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{")
    with pytest.raises(InvalidTrainingState, match=r"no checkpoint in .* can be read"):
        train(vae_task(), CONFIG, tmp_path)


def test_a_diverged_run_keeps_its_last_good_checkpoint(vae_task, tmp_path):
    task = vae_task()
    stop_after(task, 2)
    train(task, CONFIG, tmp_path)
    worse = vae_task()
    loss = worse.loss
    worse.loss = lambda batch, generator: (loss(batch, generator)[0] * torch.nan, {})
    with pytest.raises(InvalidTrainingState, match="diverged"):
        train(worse, CONFIG, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]


def test_accumulated_batches_make_one_step(vae_task, tmp_path):
    """Two halves of a batch give the gradient of the whole, as the losses are means."""

    def gradient_norm(accumulate):
        task = vae_task()
        crops = torch.cat([task.batch(0)["crops"], task.batch(1)["crops"]])
        parts = crops.chunk(accumulate)
        task.batch = lambda step: {"crops": parts[step % accumulate]}
        task.loss = lambda batch, generator: (
            task.vae.encode(batch["crops"].permute(0, 3, 1, 2) / 255.0)[0].square().mean(),
            {},
        )
        run = tmp_path / str(accumulate)
        train(task, TrainConfig(steps=1, lr=1e-3, log_steps=1, accumulate=accumulate, precision="fp32"), run)
        return losses(run)[0][2]

    assert gradient_norm(2) == pytest.approx(gradient_norm(1), rel=1e-5)  # fp32 sums in another order


@pytest.mark.long
def test_gradient_checkpointing_changes_nothing_but_memory(make_task, tmp_path):
    plain = TrainConfig(steps=2, lr=1e-3, log_steps=1)
    saving = TrainConfig(steps=2, lr=1e-3, log_steps=1, gradient_checkpointing=True)
    train(make_task(), plain, tmp_path / "plain")
    train(make_task(), saving, tmp_path / "saving")
    assert losses(tmp_path / "plain") == losses(tmp_path / "saving")


def test_export_of_an_unfinished_run(make_task, tmp_path):
    task = make_task()
    stop_after(task, 2)
    train(task, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run/export").exists()
    assert export(make_task(), tmp_path / "run", tmp_path / "out", torch.float16) == 2
    assert list((tmp_path / "out").rglob("*.safetensors"))
    with pytest.raises(InvalidTrainingState, match="no checkpoint"):
        export(make_task(), tmp_path / "nothing", tmp_path / "out")


def test_lr_schedule():
    config = TrainConfig(steps=100, lr=1.0, warmup=10)
    assert config.lr_at(0) == 0.1
    assert config.lr_at(10) == pytest.approx(1.0)
    assert config.lr_at(55) == pytest.approx(0.505)  # halfway between 1 and 0.01
    assert config.lr_at(100) == pytest.approx(0.01)
    assert TrainConfig(steps=100, lr=1.0, warmup=0, lr_schedule="constant").lr_at(99) == 1.0


def test_a_metric_is_averaged_over_the_batches_that_have_it(tmp_path, caplog):
    with caplog.at_level("INFO", "limner.training"), MetricsLog(tmp_path, 0, 3, 3) as log:
        for step, metrics in enumerate(({"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0, "late": 5.0}), start=1):
            log.add({name: torch.tensor(value) for name, value in metrics.items()})
            log.step(step, {})
        log.report(3, {"error": 0.25}, None)
    trained, validated = caplog.records
    assert (trained.message, validated.message) == ("trained", "validation")
    assert {"step": 3, "steps": 3, "loss": 2.0, "late": 5.0}.items() <= trained.fields.items()
    assert validated.fields == {"step": 3, "steps": 3, "error": 0.25}
    line, _ = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["loss"], line["late"]) == (2, 5)


def test_what_a_safety_policy_blocks_is_grey_on_the_sheet_of_samples(tmp_path, monkeypatch):
    class Stub:
        """Scores how red an image is."""

        name, version = "opennsfw", "stub"

        def check(self, images):
            return [{"nsfw": float(image[..., 0].mean() - image[..., 2].mean()) / 255} for image in images]

    monkeypatch.setattr(loop, "load_checkers", lambda policy: {"opennsfw": Stub()})
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    samples = Sheet((red, blue), columns=2)
    with MetricsLog(tmp_path, 0, 1, 1, loop._shown_by("standard")) as log:
        log.report(1, {}, samples)
    with Image.open(tmp_path / "samples" / "00000001.png") as written:
        assert written.getpixel((8, 8)) == (128, 128, 128)
        assert written.getpixel((24, 8)) == (0, 0, 255)
    assert loop._shown_by(None)(samples.images) == samples.images
