"""`limner train` on a folder of pictures: a whole run with tiny networks, and what is refused."""

import json

import pytest
from PIL import Image

from limner.cli.main import main
from limner.files import only_writer

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 4,
    "sample_size": 64,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "sample_size": 8,
}
TEXT = {
    "model_type": "clip_text_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 12,
}
VISION = {
    "model_type": "clip_vision_model",
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "projection_dim": 8,
}
TINY = ["--steps", "2", "--batch", "2", "--size", "64", "--warmup", "0"]
SMALL = [*TINY, "--size", "32"]  # for `checkpoint_folder`, whose latents are half as wide as its pictures


@pytest.fixture
def limner(capsys):
    """Run a command line; its exit code and what it said on stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    return run


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        Image.new("RGB", (80, 64), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} picture")
    return folder


@pytest.fixture
def config(tmp_path):
    def write(name, values):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(values))
        return file

    return write


def test_from_a_folder_of_pictures_to_a_model_that_draws(limner, data, config, tmp_path):
    code, out, _ = limner(
        "train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "vae", *TINY
    )
    assert (code, out.strip()) == (0, str(tmp_path / "vae/export"))

    unet = ["--config", config("unet", UNET), "--text-config", config("text", TEXT), "--data", data]
    code, out, _ = limner(
        "train", "unet", "--vae", tmp_path / "vae/export/vae", "--out", tmp_path / "unet", *unet, *TINY
    )
    assert (code, out.strip()) == (0, str(tmp_path / "unet/export"))
    assert {"metrics.jsonl", "samples", "checkpoints", "options.json"} <= {
        path.name for path in (tmp_path / "unet").iterdir()
    }

    code, out, _ = limner("train", "export", tmp_path / "unet", "--to", tmp_path / "half", "--dtype", "fp16")
    assert (code, out.strip()) == (0, f"step 2: {tmp_path / 'half'}")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / weights).stat().st_size < (tmp_path / "unet/export" / weights).stat().st_size

    code, _, err = limner(
        *(
            "generate",
            "a red picture",
            "--model",
            tmp_path / "half",
            "--steps",
            "1",
            "--out",
            tmp_path / "out",
        ),
        *("--width", "64", "--height", "64"),
    )
    assert code == 0, err
    with Image.open(next((tmp_path / "out").glob("*.png"))) as picture:
        assert picture.size == (64, 64)

    code, _, _ = limner(
        *("train", "clip", "--data", data, "--text", tmp_path / "half", "--no-train-text-encoder"),
        *("--out", tmp_path / "clip", *TINY),
    )
    assert code == 0
    assert (tmp_path / "clip/export/image_encoder/model.safetensors").exists()


def test_a_lora_of_a_style_and_a_picture_by_it(limner, checkpoint_folder, tmp_path):
    style = ["train", "lora", "--model", checkpoint_folder, "--style", "pixel", "--out", tmp_path / "blocky"]
    rest = ["--latents", "4", "--rank", "2", "--train-text-encoder", *SMALL]
    code, out, err = limner(*style, *rest)
    assert (code, out.strip()) == (0, str(tmp_path / "blocky/export")), err
    path = tmp_path / "blocky/export/blocky.safetensors"
    assert f"limner generate PROMPT --model {checkpoint_folder} --lora {path}" in err
    assert limner(*style, *rest)[0] == 0  # a run that is complete is left as it is
    assert "alpha was 2.0 and is now 1.0" in limner(*style, *rest, "--alpha", "1")[2]

    code, out, _ = limner(
        "train", "export", tmp_path / "blocky", "--to", tmp_path / "half", "--dtype", "fp16"
    )
    assert (code, out.strip()) == (0, f"step 2: {tmp_path / 'half'}")
    assert (tmp_path / "half/blocky.safetensors").stat().st_size < path.stat().st_size

    draw = ["generate", "a cat", "--model", checkpoint_folder, "--steps", "1", "--seed", "1", "-q"]
    size = ["--width", "64", "--height", "64", "--out", tmp_path / "out"]
    code, _, err = limner(*draw, *size, "--lora", f"{tmp_path / 'half/blocky.safetensors'}:0.5")
    assert (code, err) == (0, "")


@pytest.mark.long
def test_a_controlnet_of_edges_and_one_of_a_folder(limner, data, checkpoint_folder, tmp_path):
    run = ["train", "controlnet", "--model", checkpoint_folder, *SMALL]
    edges = [*run, "--out", tmp_path / "edges", "--latents", "4"]
    code, out, err = limner(*edges, "--preprocessor", "canny:50:100")
    assert (code, out.strip()) == (0, str(tmp_path / "edges/export")), err
    control = f"model={tmp_path / 'edges/export'},image=PICTURE,preprocessor=canny:50:100"
    assert f"limner generate PROMPT --model {checkpoint_folder} --control {control}" in err
    assert "controls was {'preprocessor': 'canny:50:100'" in limner(*edges)[2]

    code, out, _ = limner("train", "export", tmp_path / "edges", "--to", tmp_path / "half", "--dtype", "fp16")
    assert (code, out.strip()) == (0, f"step 2: {tmp_path / 'half'}")
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / weights).stat().st_size < (tmp_path / "edges/export" / weights).stat().st_size

    draw = ["generate", "a cat", "--model", checkpoint_folder, "--steps", "1", "--seed", "1", "-q"]
    size = ["--width", "64", "--height", "64", "--out", tmp_path / "out"]
    photo = next(data.glob("*.png"))
    code, _, err = limner(*draw, *size, "--control", control.replace("PICTURE", str(photo)))
    assert (code, err) == (0, "")

    conditions = tmp_path / "conditions"
    conditions.mkdir()
    for picture in data.glob("*.png"):
        Image.new("L", (80, 64), 90).save(conditions / picture.name)
    folder = ["--data", data, "--conditions", conditions, "--out", tmp_path / "further"]
    code, _, err = limner(*run, *folder, "--init", tmp_path / "half")
    assert code == 0, err
    assert "preprocessor" not in err
    (conditions / "red.png").unlink()
    assert "red.png has no control image" in " ".join(limner(*run, *folder)[2].split())


def test_what_is_refused(limner, data, config, checkpoint_folder, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    odd = config("odd", {**VAE, "act_fn": "relu"})
    vae = ["train", "vae", "--out", tmp_path / "run", *TINY]
    lora = ["train", "lora", "--out", tmp_path / "run", "--model", checkpoint_folder, *TINY]
    control = ["train", "controlnet", "--out", tmp_path / "run", "--model", checkpoint_folder, *TINY]
    for arguments, message in (
        ([*vae, "--data", tmp_path / "gone"], "is not a folder"),
        ([*vae, "--data", data, "--config", tmp_path / "gone.json"], "is missing"),
        ([*vae, "--data", data, "--config", broken], "not valid JSON"),
        ([*vae, "--data", data, "--config", odd], "relu"),
        ([*vae, "--world", broken], "does not give the fields of a picturebook world"),
        ([*vae, "--world", config("world", {"kinds": ["unicorn"]})], "unicorn"),
        ([*vae, "--world", config("other", {"dragons": True})], "dragons"),
        ([*vae, "--data", data, "--crop", "60"], "multiples of 8"),
        ([*vae, "--data", data, "--crop", "128"], "no larger than the images"),
        ([*vae, "--data", data, "--device", "gpu"], "device is 'gpu'"),
        ([*vae, "--data", data, "--init", tmp_path], "config.json is missing"),
        ([*vae, "--steps", "0"], "greater than or equal to 1"),
        (
            ["train", "unet", "--vae", tmp_path, "--data", data, "--out", tmp_path / "run"],
            "config.json is missing",
        ),
        ([*lora, "--data", data, "--style", "pixel"], "give one of them"),
        ([*lora, "--style", "cubist"], "cubist"),
        ([*lora, "--data", data, "--model", tmp_path], "no model_index.json"),
        ([*lora, "--data", data, "--targets", "to_q"], "no module"),
        ([*control, "--conditions", data], "--conditions belong to --data"),
        ([*control, "--data", data, "--conditions", data, "--preprocessor", "canny"], "belong to --data"),
        ([*control, "--data", data, "--preprocessor", "depth_midas"], "is a network"),
        ([*control, "--data", data, "--embedding", "4,x"], "--embedding is 4,x"),
        ([*control, "--data", data, "--embedding", "4"], "smaller by 1"),
        ([*control, "--data", data, "--init", tmp_path], "has no config.json"),
        (["train", "export", tmp_path / "nothing"], "is no run"),
    ):
        code, out, err = limner(*arguments)
        assert code == 2, (arguments, err)
        assert message in " ".join(err.replace("│", " ").split()), (arguments, err)
        assert "Traceback" not in err
        assert not out
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_changed_option_needs_resume(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run)[0] == 0
    before = (tmp_path / "run/options.json").read_text()
    code, _, err = limner(*run, "--lr", "0.1")
    assert code == 2
    assert "lr was 0.001 and is now 0.1" in err
    assert "--resume" in err
    assert (tmp_path / "run/options.json").read_text() == before
    assert limner(*run, "--lr", "0.1", "--resume")[0] == 0


def test_fresh_leaves_no_cache_behind(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run)[0] == 0
    rows = (tmp_path / "run/cache/pictures.u8").stat().st_size
    Image.new("RGB", (80, 64), (9, 9, 9)).save(data / "red.png")
    assert limner(*run, "--resume")[0] == 0
    assert (tmp_path / "run/cache/pictures.u8").stat().st_size >= rows
    assert limner(*run, "--fresh")[0] == 0
    assert (tmp_path / "run/cache/pictures.u8").stat().st_size == rows


def test_a_changed_picture_is_another_data_set(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run)[0] == 0
    for name in ("red", "green", "blue"):
        Image.new("RGB", (80, 64), (9, len(name), 9)).save(data / f"{name}.png")
    code, _, err = limner(*run)
    assert code == 2
    assert "pictures was {'content': " in err


def test_pictures_to_validate_on_may_be_named(limner, data, config, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 64), (255, 255, 255)).save(other / "w.png")
    (other / "w.txt").write_text("a white picture")
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run, "--validation", other)[0] == 0
    options = json.loads((tmp_path / "run/options.json").read_text())
    assert options["validation"] == str(other)
    keys = (tmp_path / "run/cache/pictures.keys").stat().st_size // 32
    assert keys == 3  # all of --data is trained on
    code, _, err = limner("train", "vae", "--validation", other, "--out", tmp_path / "x", *TINY)
    assert code == 2
    assert "--validation is of a run on images of a folder: give --data too" in " ".join(err.split())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["controlnet", "lora", "clip", "vae", "features"])
def test_a_short_run_makes_no_more_pictures_than_it_uses(limner, kind, config, checkpoint_folder, tmp_path):
    run = ["train", kind, "--out", tmp_path / "run", *TINY]
    if kind in ("controlnet", "lora"):
        run += ["--model", checkpoint_folder, *SMALL]
    if kind == "vae":
        run += ["--config", config("vae", VAE)]
    if kind == "features":
        run += ["--crop", "32"]
    if kind == "clip":
        run += ["--text-config", config("text", TEXT), "--config", config("vision", VISION)]
    code, _, err = limner(*run)
    assert code == 0, err
    for keys in (tmp_path / "run/cache").glob("*.keys"):
        assert keys.stat().st_size // 32 == 4, keys  # 2 steps of 2


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_bf16_is_used_where_it_is_fast(limner, data, config, tmp_path, monkeypatch, fast, precision):
    monkeypatch.setattr("limner.backends.device.computes_in_bf16", lambda: fast)
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run, "--device", "cpu")[0] == 0
    [state] = (tmp_path / "run/checkpoints").glob("*/state.json")
    assert json.loads(state.read_text())["settings"]["precision"] == precision


def test_two_processes_do_not_train_in_one_folder(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run/.lock", "training run"):
        code, _, err = limner(*run)
    assert code == 2
    assert "another training run is writing to" in " ".join(err.split())
    assert not (tmp_path / "run/checkpoints").exists()


def test_an_export_replaces_no_other_folder(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run)[0] == 0
    export = ["train", "export", tmp_path / "run", "--to", tmp_path / "mine"]
    (tmp_path / "mine/vae").mkdir(parents=True)
    (tmp_path / "mine/vae/holiday.jpg").write_bytes(b"precious")
    code, _, err = limner(*export)
    assert code == 2
    assert "holds something else" in err
    assert (tmp_path / "mine/vae/holiday.jpg").read_bytes() == b"precious"
    (tmp_path / "mine/vae/holiday.jpg").unlink()
    assert limner(*export)[0] == limner(*export)[0] == 0


def test_runs_of_earlier_versions_are_exported(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    assert limner(*run)[0] == 0
    file = tmp_path / "run/options.json"
    later = {"validation", "perceptual", "perceptual_weight", "adversarial_from", "adversarial_weight"}
    options = {name: value for name, value in json.loads(file.read_text()).items() if name not in later}
    file.write_text(json.dumps(options))
    code, out, err = limner("train", "export", tmp_path / "run", "--to", tmp_path / "out")
    assert (code, out.strip()) == (0, f"step 2: {tmp_path / 'out'}"), err


def test_stopping_on_time_leaves_a_checkpoint(limner, data, config, tmp_path):
    run = ["train", "vae", "--data", data, "--config", config("vae", VAE), "--out", tmp_path / "run", *TINY]
    code, out, err = limner(*run, "--minutes", "0")
    assert (code, out) == (130, "")
    assert "the same command resumes" in err
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["00000001"]
    assert limner(*run)[0] == 0
