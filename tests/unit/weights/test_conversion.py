"""Between single files and folders: what comes out is what went in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils as peer
from transformers import CLIPTextModelWithProjection

from limner.catalogue.headers import read_header
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidRequest, OutputError, PickleRefused, UnsupportedModel
from limner.weights.checkpoint import load_text_encoder, load_unet, load_vae, read_checkpoint
from limner.weights.convert import EXTRAS, convert
from limner.weights.single import read_single_file
from limner.weights.tensors import LazyTensor, open_tensors, write_tensors

FAMILIES = ("sd1", "sd2", "xl", "xl_refiner")
OTHERS = {
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.diffusion_modelout2bias": torch.ones(4),
    "betas": torch.linspace(0, 1, 1000, dtype=torch.float64),
}


def assert_same(tensors, others):
    assert tensors.keys() == others.keys()
    for key, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (others[key].dtype, others[key].shape), key
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, others[key])]
        assert torch.equal(*bits), key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    return tmp_path / "back.safetensors"


@pytest.mark.long
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(path, folder, back, small_single, tokenizer_folder, family, keep):
    tensors = small_single(family)
    metadata = {"modelspec.title": "of its author"}
    write_tensors(path, tensors | OTHERS, metadata)
    there = convert(path, folder, to="folder", keep_extras=keep, tokenizer=tokenizer_folder)
    without = read_single_file(path).unused
    assert set(there.kept if keep else there.left_out[:-1]) == set(without)
    assert keep or there.left_out[-1] == "__metadata__"
    assert len(without) >= 3
    assert not (there.left_out if keep else there.kept)
    assert len(there.warnings) == (family == "sd2")  # v was assumed
    assert (folder / EXTRAS).is_file() == keep

    checkpoint = read_checkpoint(folder)
    single = read_single_file(path)
    assert checkpoint.unet_config == single.unet_config
    assert checkpoint.vae_config == single.vae_config
    assert checkpoint.text_configs == single.text_configs
    assert checkpoint.scheduler_config == single.scheduler_config
    assert checkpoint.zero_negative == single.zero_negative
    assert_same(dict(load_unet(checkpoint).state_dict()), single.tensors("unet"))
    assert_same(dict(load_vae(checkpoint).state_dict()), single.tensors("vae"))
    for part in checkpoint.text_configs:
        assert_same(dict(load_text_encoder(checkpoint, part=part).state_dict()), single.tensors(part))

    again = convert(folder, back, to="single")
    rest = {key: tensor for key, tensor in (tensors | OTHERS).items() if key not in without}
    assert_same(open_tensors(back), tensors | OTHERS if keep else rest)
    assert set(again.kept) == (set(without) if keep else set())
    written = read_header(back).metadata
    assert written["modelspec.title"] == ("of its author" if keep else "back")
    side = single.unet_config.sample_size * single.vae_config.downscale
    assert written["modelspec.resolution"] == f"{side}x{side}"
    assert read_single_file(back).unet_config == single.unet_config
    assert read_single_file(back).text_configs == single.text_configs
    assert read_single_file(back).scheduler_config == single.scheduler_config
    assert read_single_file(back).warnings == ()


@pytest.mark.parametrize(("family", "prediction"), [("sd1", "v_prediction"), ("xl", "v_prediction")])
def test_markers_go_into_the_scheduler_and_come_back(
    path, folder, back, small_single, tokenizer_folder, family, prediction
):
    write_tensors(path, small_single(family) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    there = convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    assert there.left_out == ()
    assert read_checkpoint(folder).scheduler_config["rescale_betas_zero_snr"] is True
    convert(folder, back, to="single")
    assert {"v_pred", "ztsnr"} <= read_header(back).tensors.keys()
    assert read_single_file(back).scheduler_config == read_single_file(path).scheduler_config


def test_the_default_size_of_a_folder_is_written_down(path, folder, back, small_single, tokenizer_folder):
    write_tensors(path, small_single("sd1"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 96}))
    downscale = read_checkpoint(folder).vae_config.downscale
    convert(folder, back)
    assert read_header(back).metadata["modelspec.resolution"] == f"{96 * downscale}x{96 * downscale}"
    assert read_single_file(back).unet_config.sample_size == 96


def test_a_default_size_that_a_single_file_cannot_say_is_a_warning(
    path, folder, back, small_single, tokenizer_folder
):
    write_tensors(path, small_single("sd1"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 5000}))
    warning, _ = convert(folder, back).warnings
    assert "the default size is" in warning
    assert "modelspec.resolution" not in read_header(back).metadata


def test_the_resolution_of_its_author_stays(path, back, small_single):
    write_tensors(path, small_single("sd1"), {"modelspec.resolution": "512x768"})
    convert(path, back, to="single")
    assert read_header(back).metadata["modelspec.resolution"] == "512x768"


def test_a_given_prediction_type_is_written_down(path, back, small_single):
    write_tensors(path, small_single("xl"), {"modelspec.predict_key": "epsilon"})
    convert(path, back, to="single", prediction_type="v_prediction")
    assert read_single_file(back).scheduler_config["prediction_type"] == "v_prediction"
    assert "v_pred" in read_header(back).tensors
    path.unlink()
    convert(back, path, to="single", prediction_type="epsilon")
    assert read_single_file(path).scheduler_config["prediction_type"] == "epsilon"
    assert "v_pred" not in read_header(path).tensors


def test_another_dtype_is_for_the_networks_alone(path, folder, back, small_single, tokenizer_folder):
    tensors = small_single("sd1", dtype=torch.float32)
    write_tensors(path, tensors | OTHERS)
    convert(path, back, to="single", dtype=torch.bfloat16, keep_extras=True)
    assert_same(open_tensors(back), {key: tensor.bfloat16() for key, tensor in tensors.items()} | OTHERS)
    convert(path, folder, to="folder", dtype=torch.float16, tokenizer=tokenizer_folder)
    assert {tensor.dtype for tensor in read_checkpoint(folder).tensors("unet").values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_every_dtype_comes_back(path, folder, back, small_single, tokenizer_folder, dtype):
    tensors = small_single("xl", dtype=dtype)
    write_tensors(path, tensors)
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    convert(folder, back, to="single")
    assert_same(open_tensors(back), tensors)


def test_a_folder_without_tokenizer_is_written_with_a_warning(path, folder, small_single):
    write_tensors(path, small_single("sd1"))
    assert "holds no tokenizer" in convert(path, folder, to="folder").warnings[0]
    assert not (folder / "tokenizer").exists()


def test_tokenizers_pad_as_their_family_does(path, folder, small_single, tokenizer_folder):
    write_tensors(path, small_single("xl"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    pads = [
        json.loads((folder / name / "special_tokens_map.json").read_text())["pad_token"]
        for name in ("tokenizer", "tokenizer_2")
    ]
    assert pads == ["<|endoftext|>", "!"]


def test_what_a_single_file_cannot_tell_is_refused(checkpoint_folder, back):
    with pytest.raises(UnsupportedModel, match=r"could not be read: .* multiples of norm_num_groups 32"):
        convert(checkpoint_folder, back, to="single")
    assert not back.exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"attention_head_dim": 4}, r"unet attention_head_dim \(4, 4\) as \(8, 8\)"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end 0.02 as 0.012"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type sample as epsilon",
        ),
        ("vae/config.json", {"scaling_factor": 0.5}, "vae scaling_factor 0.5 as 0.18215"),
    ],
)
def test_each_difference_is_named(path, folder, back, small_single, tokenizer_folder, file, change, message):
    write_tensors(path, small_single("sd1"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UnsupportedModel, match=message):
        convert(folder, back, to="single")


def test_the_sampler_of_a_folder_is_kept_in_a_single_file(path, folder, back, small_single, tokenizer_folder):
    write_tensors(path, small_single("sd1"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    scheduler = folder / "scheduler/scheduler_config.json"
    own = json.loads(scheduler.read_text())
    own |= {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_spacing": "trailing",
        "use_karras_sigmas": True,
    }
    scheduler.write_text(json.dumps(own))
    done = convert(folder, back)
    assert not any("sampler" in warning or "schedul" in warning for warning in done.warnings)
    expected = SchedulerConfig.from_dict(own)
    assert SchedulerConfig.from_dict(read_single_file(back).scheduler_config) == expected
    again = folder.with_name("again")
    convert(back, again, tokenizer=tokenizer_folder)
    assert SchedulerConfig.from_dict(read_checkpoint(again).scheduler_config) == expected


def test_what_is_written_by_default(path, folder, back, small_single, tokenizer_folder):
    write_tensors(path, small_single("sd1"))
    convert(path, back)
    assert back.is_file()
    convert(back, folder, tokenizer=tokenizer_folder)
    assert (folder / "model_index.json").is_file()
    lora = {"lora_unet_mid.lora_up.weight": torch.ones(4, 2)}
    torch.save({"state_dict": lora, "epoch": 1}, path.with_suffix(".bin"))
    target = path.with_name("lora.safetensors")
    done = convert(path.with_suffix(".bin"), target, allow_pickle=True)
    assert_same(open_tensors(target), lora)
    assert done.left_out == ("epoch",)


def test_nothing_is_overwritten_and_other_components_are_named(
    path, folder, back, small_single, tokenizer_folder
):
    write_tensors(path, small_single("sd1"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    (folder / "safety_checker").mkdir()
    (folder / "limner.json").write_text("{}")
    assert convert(folder, back, to="single").left_out == ("limner.json", "safety_checker/")
    with pytest.raises(OutputError, match="there already"):
        convert(folder, back, to="single")
    with pytest.raises(InvalidRequest, match="is a folder, which can be written as a single file"):
        convert(folder, folder.with_name("other"), to="folder")
    back.unlink()
    with pytest.raises(InvalidRequest, match="a file has no variants"):
        convert(path, back, to="single", variant="fp16")
    with pytest.raises(InvalidRequest, match="only a folder has one"):
        convert(path, back, to="single", tokenizer=tokenizer_folder)


def test_a_folders_prediction_type_can_be_said_too(path, folder, back, small_single, tokenizer_folder):
    write_tensors(path, small_single("sd2"))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    convert(folder, back, to="single", prediction_type="epsilon")
    assert read_single_file(back).scheduler_config["prediction_type"] == "epsilon"


PEAK = """
import resource, sys
from pathlib import Path
from limner.weights.convert import convert
source, target, to, tokenizer = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(Path(source), Path(target), to=to, tokenizer=Path(tokenizer) if tokenizer else None, keep_extras=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak(source: Path, target: Path, to: str, tokenizer: Path | None) -> int:
    """Bytes of memory that a conversion takes."""
    arguments = [sys.executable, "-c", PEAK, str(source), str(target), to, str(tokenizer or "")]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


@pytest.mark.long
def test_memory_holds_a_few_tensors_at_a_time(path, folder, back, small_single, tokenizer_folder):
    large = {f"model_ema.{index}": torch.full((1 << 21,), float(index)) for index in range(40)}  # 320 MiB
    write_tensors(path, small_single("sd1") | large)
    assert peak(path, folder, "folder", tokenizer_folder) < 100 << 20
    assert peak(folder, back, "single", None) < 100 << 20
    assert torch.equal(open_tensors(back)["model_ema.39"], large["model_ema.39"])


@pytest.mark.slow
def test_memory_at_full_size_stays_below_the_largest_part(reference, path, folder, back, tokenizer_folder):
    lines = (reference / "keys/single/sd15.txt").read_text().splitlines()
    write_tensors(
        path,
        {
            key: LazyTensor(torch.float16, shape, lambda shape=shape: torch.zeros(shape, dtype=torch.float16))
            for key, shape in (
                (key, tuple(map(int, s.split("x")))) for key, s in (x.split("\t") for x in lines)
            )
        },
    )
    assert peak(path, folder, "folder", tokenizer_folder) < 400 << 20  # of 2.1 GB, 1.7 in the U-Net
    assert peak(folder, back, "single", None) < 400 << 20


def test_a_pickle_is_opened_only_where_it_is_allowed(path, folder, back, small_single, tokenizer_folder):
    tensors = small_single("sd1")
    pickled = path.with_suffix(".ckpt")
    training = {"state_dict": tensors | OTHERS, "global_step": 7, "optimizer": [{"exp_avg": torch.ones(3)}]}
    torch.save(training, pickled)
    with pytest.raises(PickleRefused):
        convert(pickled, back, to="single")
    done = convert(pickled, back, to="single", allow_pickle=True)
    assert_same(open_tensors(back), tensors)
    assert done.left_out == (*sorted(OTHERS), "optimizer.0.exp_avg", "global_step")
    convert(pickled, folder, to="folder", allow_pickle=True, tokenizer=tokenizer_folder)
    assert_same(read_checkpoint(folder).tensors("unet"), read_single_file(back).tensors("unet"))


def test_the_tensors_of_any_pickle(path, back):
    pickled = path.with_suffix(".pt")
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    torch.save({"nested": tensors, "name": "x"}, pickled)
    done = convert(pickled, back, to="tensors", allow_pickle=True, dtype=torch.float16)
    assert_same(open_tensors(back), {"nested.a": tensors["a"].half(), "nested.b": tensors["b"]})
    assert done.left_out == ("name",)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_takes_single_files_apart_in_the_same_way(path, small_single, family):
    tensors = small_single(family)
    write_tensors(path, tensors)
    single = read_single_file(path)
    unet = peer.convert_ldm_unet_checkpoint(dict(tensors), single.unet_config.to_dict())
    assert_same(single.tensors("unet"), unet)
    vae = peer.convert_ldm_vae_checkpoint(dict(tensors), single.vae_config.to_dict())
    assert_same(single.tensors("vae"), vae)
    for part, config in single.text_configs.items():
        if config.hidden_act == "gelu":
            [last] = [key for key in tensors if key.endswith("text_projection")]
            prefix = last.removesuffix("text_projection")
            theirs = peer.convert_open_clip_checkpoint(CLIPTextModelWithProjection, dict(tensors), prefix)
        else:
            theirs = peer.convert_ldm_clip_checkpoint(dict(tensors))
        if family == "sd2":  # diffusers knows the unused layer by its number, 23
            unused = ("text_model.encoder.layers.2.", "text_projection.")
            theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(unused)}
        assert_same(single.tensors(part), theirs)


@pytest.mark.parametrize("in_channels", [4, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_opens_the_folders(path, folder, small_single, tokenizer_folder, family, in_channels):
    write_tensors(path, small_single(family, in_channels))
    convert(path, folder, to="folder", tokenizer=tokenizer_folder)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    single = read_single_file(path)
    for part in single.parts:
        ours = single.tensors(part)
        theirs = getattr(pipeline, part).state_dict()
        assert len(ours) == len(theirs)
        # transformers leaves out `text_model.` in memory.
        found = {name: theirs.get(name, theirs.get(name.removeprefix("text_model."))) for name in ours}
        assert_same(
            {name: tensor.float() for name, tensor in ours.items()}, {n: t.float() for n, t in found.items()}
        )
