"""Checkpoints in one file: what is told from the header alone, and what is refused."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.catalogue.headers import read_header
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidCheckpoint, LimnerError, PickleRefused, UnsupportedModel
from limner.files import read_json
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.weights.checkpoint import read_checkpoint
from limner.weights.components import read_vae_part
from limner.weights.load import load_module
from limner.weights.single import family_of, read_single_file
from limner.weights.tensors import write_tensors

FAMILIES = {"sd15": "sd1", "sd21-768-v": "sd2", "sdxl-base": "xl"}
PARTS = {
    "unet": UNetConfig,
    "vae": VAEConfig,
    "text_encoder": CLIPTextConfig,
    "text_encoder_2": CLIPTextConfig,
}


def manifest(path: Path) -> dict[str, tuple[int, ...]]:
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


@pytest.mark.parametrize("model", FAMILIES)
def test_published_files_have_the_configs_of_the_hub(reference, path, model, write_sparse):
    core = manifest(reference / "keys/single" / f"{model}.txt")
    extra = manifest(reference / "keys/single" / f"{model}.extra.txt")
    write_sparse(path, core | extra)
    single = read_single_file(path)
    assert (single.family, single.kind) == (FAMILIES[model], "text")
    assert family_of(single.text_configs) == single.family
    configs = {"unet": single.unet_config, "vae": single.vae_config, **single.text_configs}
    assert tuple(configs) == tuple(single.parts)
    for part, config in configs.items():
        assert config == PARTS[part].from_dict(
            read_json(reference / "configs" / model / part / "config.json")
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in single.tensors(part).items()}
        assert shapes == manifest(reference / "keys/diffusers" / model / f"{part}.txt")
    hub = read_json(reference / "configs" / model / "scheduler/scheduler_config.json")
    assert SchedulerConfig.from_dict(single.scheduler_config) == SchedulerConfig.from_dict(hub)
    assert single.zero_negative == (model == "sdxl-base")
    unused = ("logit_scale", "text_projection", "resblocks.23.")
    rest = {key for key in core if model == "sd21-768-v" and any(word in key for word in unused)}
    rest |= {key for key in core if model == "sdxl-base" and "logit_scale" in key}
    assert set(single.unused) == extra.keys() | rest


@pytest.mark.parametrize(
    ("family", "in_channels", "kind"),
    [
        ("sd1", 4, "text"),
        ("sd1", 8, "edit"),
        ("sd1", 9, "inpainting"),
        ("sd2", 5, "depth"),
        ("sd2", 9, "inpainting"),
        ("xl", 4, "text"),
        ("xl", 9, "inpainting"),
        ("xl_refiner", 4, "text"),
    ],
)
def test_small_files_load_into_networks(path, small_single, family, in_channels, kind):
    tensors = small_single(family, in_channels)
    write_tensors(path, tensors)
    single = read_single_file(path)
    assert (family_of(single.text_configs), single.kind) == (family, kind)
    networks = {"unet": (UNet2DConditionModel, single.unet_config), "vae": (AutoencoderKL, single.vae_config)}
    networks |= {part: (CLIPTextModel, config) for part, config in single.text_configs.items()}
    used = 0
    for part, (network, config) in networks.items():
        module = load_module(lambda n=network, c=config: n(c), single.tensors(part), source=path)
        used += sum(parameter.numel() for parameter in module.parameters())
    unused = sum(tensors[key].numel() for key in single.unused)
    assert used + unused == sum(tensor.numel() for tensor in tensors.values())
    assert bool(unused) == (family == "sd2")
    if "xl" in family:
        assert single.unet_config.addition_time_embed_dim == 32


def test_tensors_are_views_of_the_right_rows(path, small_single):
    tensors = small_single("xl")
    write_tensors(path, tensors)
    single = read_single_file(path)
    text = single.tensors("text_encoder_2")
    prefix = "conditioner.embedders.1.model."
    rows = tensors[f"{prefix}transformer.resblocks.1.attn.in_proj_weight"]
    layer = "text_model.encoder.layers.1.self_attn."
    for start, projection in ((0, "q"), (64, "k"), (128, "v")):
        assert torch.equal(text[f"{layer}{projection}_proj.weight"], rows[start : start + 64])
    assert torch.equal(text["text_projection.weight"], tensors[f"{prefix}text_projection"].t())
    squeezed = single.tensors("vae")["encoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(squeezed, tensors["first_stage_model.encoder.mid.attn_1.q.weight"][:, :, 0, 0])
    everything = [
        text[f"{layer}q_proj.weight"],
        text[f"{layer}v_proj.weight"],
        text["text_projection.weight"],
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in everything}) == 1  # the mapped file's


def test_older_merges_without_text_model(path, small_single):
    tensors = small_single("sd1")
    old = {key.replace(".text_model.", "."): tensor for key, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    positions = "cond_stage_model.transformer.embeddings.position_ids"
    write_tensors(path, old | {positions: torch.arange(16)[None]})
    single = read_single_file(path)
    assert single.unused == (positions,)
    name = "text_model.final_layer_norm.bias"
    expected = tensors[f"cond_stage_model.transformer.{name}"]
    assert torch.equal(single.tensors("text_encoder")[name], expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32])
def test_every_floating_dtype_stays_as_it_is(path, small_single, dtype):
    write_tensors(path, small_single("sd1", dtype=dtype))
    assert {tensor.dtype for tensor in read_single_file(path).tensors("unet").values()} == {dtype}


EPSILON, V = ("epsilon", False), ("v_prediction", False)


@pytest.mark.parametrize(
    ("family", "markers", "metadata", "expected"),
    [
        ("sd1", (), {}, EPSILON),
        ("xl", (), {}, EPSILON),
        ("xl", ("v_pred",), {}, V),
        ("xl", ("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ("sd1", ("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ("xl", (), {"modelspec.prediction_type": "v"}, V),
        ("xl", (), {"modelspec.predict_key": "v"}, V),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V),
        ("sd2", (), {"modelspec.prediction_type": "epsilon"}, EPSILON),
    ],
)
def test_prediction_type_is_told_by_markers_and_metadata(
    path, small_single, family, markers, metadata, expected
):
    write_tensors(path, small_single(family) | {key: torch.zeros(0) for key in markers}, metadata)
    single = read_single_file(path)
    config = SchedulerConfig.from_dict(single.scheduler_config)
    assert (config.prediction_type, config.rescale_betas_zero_snr) == expected
    assert set(markers) <= set(single.unused)
    assert single.warnings == ()


def test_where_a_2x_file_does_not_say_v_is_assumed_with_a_warning(path, small_single):
    write_tensors(path, small_single("sd2"))
    single = read_single_file(path)
    assert single.scheduler_config["prediction_type"] == "v_prediction"
    assert "v is assumed" in single.warnings[0]
    assert single.unet_config.sample_size == 96
    told = read_single_file(path, prediction_type="epsilon")
    assert (told.scheduler_config["prediction_type"], told.warnings) == ("epsilon", ())
    assert told.unet_config == replace(single.unet_config, sample_size=64)
    write_tensors(path, small_single("sd2", 9))  # inpainting is always of the 512 pixels' kind
    assert read_single_file(path).scheduler_config["prediction_type"] == "epsilon"
    assert read_single_file(path).warnings == ()


V_YAML = "model:\n  params:\n    parameterization: v\n"
EPS_YAML = "model:\n  target: ldm.LatentDiffusion\n  params:\n    timesteps: 1000\n"


@pytest.mark.parametrize(
    ("family", "name", "text", "expected"),
    [
        ("sd1", "model.yaml", V_YAML, V),
        ("sd1", "model.yml", V_YAML, V),
        ("sd2", "model.yaml", EPS_YAML, EPSILON),
        ("sd1", "model.yaml", f"{V_YAML}    zero_terminal_snr: true\n", ("v_prediction", True)),
        (
            "xl",
            "model.yaml",
            "model: {params: {denoiser_config: {params: {scaling_config: {target: sgm.VScaling}}}}}",
            V,
        ),
    ],
)
def test_the_yaml_next_to_a_file_says_what_it_predicts(path, small_single, family, name, text, expected):
    write_tensors(path, small_single(family))
    path.with_name(name).write_text(text)
    single = read_single_file(path)
    config = SchedulerConfig.from_dict(single.scheduler_config)
    assert (config.prediction_type, config.rescale_betas_zero_snr) == expected
    assert single.warnings == ()
    given = read_single_file(path, prediction_type="epsilon")
    assert given.scheduler_config["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    "text", ["model: [", "- a", "model: {params: {parameterization: x0}}", "!!python/object:os.x {}"]
)
def test_a_yaml_that_cannot_be_followed_is_named(path, small_single, text):
    write_tensors(path, small_single("sd1"))
    path.with_suffix(".yaml").write_text(text)
    [warning] = read_single_file(path).warnings
    assert "model.yaml is not followed" in warning


def test_a_yaml_that_contradicts_the_file(path, small_single):
    write_tensors(path, small_single("sd1"), {"modelspec.prediction_type": "epsilon"})
    path.with_suffix(".yaml").write_text(V_YAML)
    single = read_single_file(path)
    assert single.scheduler_config["prediction_type"] == "v_prediction"
    assert "model.yaml says v_prediction" in single.warnings[0]


def test_the_resolution_in_the_metadata_is_the_default_size(path, small_single):
    write_tensors(path, small_single("sd1"), {"modelspec.resolution": "768x768"})
    single = read_single_file(path)
    assert single.unet_config.sample_size * single.vae_config.downscale == 768
    assert single.vae_config.sample_size == 768
    assert single.warnings == ()


@pytest.mark.parametrize("resolution", ["832x1216", "32x32", "8192x8192", "770x770", "large"])
def test_a_resolution_that_no_request_can_default_to(path, small_single, resolution):
    write_tensors(path, small_single("sd1"), {"modelspec.resolution": resolution})
    single = read_single_file(path)
    assert single.unet_config.sample_size == 64
    [warning] = single.warnings
    assert f"modelspec.resolution is {resolution!r}" in warning


def without(tensors, prefix):
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: without(t, "cond"), InvalidCheckpoint, r"part of a model only: it lacks text encoders"),
        (lambda t: without(t, "first"), InvalidCheckpoint, r"it lacks an autoencoder \(first_stage_model"),
        (
            lambda t: {key: t[key] for key in t if key.startswith("model.")},
            InvalidCheckpoint,
            r"lacks an autoencoder \(first_stage_model.…\), text encoders",
        ),
        (lambda t: {"lora_unet_a.alpha": torch.ones(())}, UnsupportedModel, "is no Stable Diffusion"),
        (
            lambda t: t | {"model.diffusion_model.spy": torch.ones(1)},
            InvalidCheckpoint,
            "1 unexpected: .*spy",
        ),
        (lambda t: t | {"cond_stage_model.odd": torch.ones(1)}, InvalidCheckpoint, "1 unexpected: .*odd"),
        (lambda t: without(t, "model.diffusion_model.out.2.b"), InvalidCheckpoint, "1 missing: .*out.2.bias"),
        (lambda t: without(t, "model.diffusion_model.out.2.w"), InvalidCheckpoint, "no tensor 'model.*out.2"),
        (
            lambda t: t | {"model.diffusion_model.out.0.bias": torch.ones(3)},
            InvalidCheckpoint,
            r"1 wrong: model.diffusion_model.out.0.bias is floating \[3\], expected floating \[64\]",
        ),
        (
            lambda t: t | {"model.diffusion_model.out.0.bias": torch.ones(64, dtype=torch.int64)},
            InvalidCheckpoint,
            r"is I64 \[64\], expected floating",
        ),
        (lambda t: t | {"scaled_fp8": torch.ones(1)}, UnsupportedModel, "divided by scales"),
        (lambda t: t | {"model.a.scale_weight": torch.ones(1)}, UnsupportedModel, "divided by scales"),
        (lambda t: t | {"edm_vpred.sigma_max": torch.ones(1)}, UnsupportedModel, "EDM noise schedule"),
    ],
)
def test_what_is_no_whole_model_is_refused(path, small_single, change, error, message):
    write_tensors(path, change(small_single("sd1")))
    with pytest.raises(error, match=message):
        read_single_file(path)


def test_other_refusals(path, small_single):
    write_tensors(path, small_single("sd1", 7))
    with pytest.raises(UnsupportedModel, match="3 input channels besides the latents"):
        read_single_file(path)
    write_tensors(path, small_single("xl"), {"modelspec.prediction_type": "flow"})
    with pytest.raises(UnsupportedModel, match="prediction_type is 'flow'"):
        read_single_file(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(PickleRefused):
        read_single_file(path)


def test_a_header_cannot_ask_for_a_network_of_many_thousand_blocks(path, small_single):
    block = "model.diffusion_model.middle_block.1.transformer_blocks.{}.norm1.weight"
    many = {block.format(index): torch.zeros(0) for index in range(20_000)}
    write_tensors(path, small_single("sd1") | many)
    with pytest.raises(InvalidCheckpoint, match="a network of 20001 blocks"):
        read_single_file(path)


@pytest.mark.parametrize("layout", ["prefix", "bare", "hub", "older hub"])
def test_autoencoders_in_a_file_of_their_own(path, small_single, layout):
    tensors = small_single("sd1")
    write_tensors(path, tensors)
    single = read_single_file(path)
    hub = single.tensors("vae")
    prefix = "first_stage_model."
    files = {
        "prefix": {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)},
        "bare": {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        | {"model_ema.decay": torch.ones(()), "loss.logvar": torch.ones(())},
        "hub": hub,
        "older hub": {key.replace("to_out.0", "proj_attn").replace("to_q", "query"): hub[key] for key in hub},
    }
    own = path.with_name("vae.safetensors")
    write_tensors(own, files[layout])
    read = read_vae_part(own, single.vae_config).tensors()
    assert read.keys() == hub.keys()
    assert all(torch.equal(read[key], hub[key]) for key in hub)
    write_tensors(own, files[layout] | {"other": torch.ones(1)})
    with pytest.raises(InvalidCheckpoint, match="1 unexpected: other"):
        read_vae_part(own, single.vae_config).tensors()
    write_tensors(own, files[layout] | {next(iter(files[layout])): torch.ones(1)})
    with pytest.raises(InvalidCheckpoint, match=r"1 wrong|is not an autoencoder"):
        read_vae_part(own)


@pytest.mark.parametrize("family", ["sd1", "sd2", "xl", "xl_refiner"])
def test_parts_that_a_file_lacks_come_from_elsewhere(path, small_single, tokenizer_folder, family):
    tensors = small_single(family)
    write_tensors(path, tensors)
    whole = read_checkpoint(path, tokenizer=tokenizer_folder)
    bare = path.with_name("bare.safetensors")
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
    for part in whole.parts:
        prefix = prefixes.get(part) or whole.parts[part].entries[0].single.partition("token_embedding")[0]
        prefix = prefix.partition("text_model.")[0]
        write_tensors(bare, without(tensors, prefix))
        with pytest.raises(InvalidCheckpoint, match="part of a model only") as caught:
            read_checkpoint(bare, tokenizer=tokenizer_folder)
        assert f"`{part}`" in caught.value.hint
        read = read_checkpoint(bare, tokenizer=tokenizer_folder, parts={part: path})
        assert read.parts[part].config == whole.parts[part].config
        assert (read.family, read.kind, read.scheduler_config) == (
            whole.family,
            whole.kind,
            whole.scheduler_config,
        )
        if part != "unet":  # alone in a file, the family of a U-Net follows from the sizes of published ones
            own = path.with_name("own.safetensors")
            held = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            write_tensors(own, {key.removeprefix(prefix): tensor for key, tensor in held.items()})
            read = read_checkpoint(bare, tokenizer=tokenizer_folder, parts={part: own})
        expected = whole.tensors(part)
        assert read.tensors(part).keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in read.tensors(part).items())


@pytest.mark.parametrize("layout", ["compvis", "hub"])
def test_a_unet_alone_in_a_file(path, small_single, tokenizer_folder, layout):
    tensors = small_single("sd1")
    write_tensors(path, tensors)
    whole = read_checkpoint(path, tokenizer=tokenizer_folder)
    prefix = "model.diffusion_model."
    bare = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    own = path.with_name("own.safetensors")
    write_tensors(own, bare if layout == "compvis" else whole.tensors("unet"))
    read = read_checkpoint(path, tokenizer=tokenizer_folder, parts={"unet": own})
    expected = whole.tensors("unet")
    assert read.unet_config == whole.unet_config
    assert read.parts["unet"].source == own
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.tensors("unet").items())
    write_tensors(own, whole.tensors("vae"))
    with pytest.raises(InvalidCheckpoint, match="is not a U-Net"):
        read_checkpoint(path, tokenizer=tokenizer_folder, parts={"unet": own})


def flipped(header: bytes, chance: random.Random) -> bytes:
    """One to three bits are other than they were."""
    damaged = bytearray(header)
    for _ in range(chance.randint(1, 3)):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def rewritten(header: bytes, chance: random.Random) -> bytes:
    """A header in good order, but one of its tensors has another name, shape or kind."""
    entries = json.loads(header[8:])
    key = chance.choice(sorted(entries))
    entry, kind = entries[key], chance.randrange(4)
    if kind == 0:
        entry["shape"] = chance.sample(entry["shape"], len(entry["shape"]))
    elif kind == 1:
        entry["shape"] = (
            [*entry["shape"], 1] if chance.random() < 0.5 else [torch.Size(entry["shape"]).numel()]
        )
    elif kind == 2:
        entry["dtype"] = chance.choice(["BF16", "I16", "U16"])
    else:
        digits = [at for at, letter in enumerate(key) if letter.isdigit()] or [0]
        at = chance.choice(digits)
        entries[f"{key[:at]}{chance.choice('012379')}{key[at + 1 :]}"] = entries.pop(key)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.long
@pytest.mark.parametrize(("change", "times"), [(flipped, 800), (rewritten, 200)])
def test_damaged_files_open_fully_or_are_refused(path, small_single, change, times):
    write_tensors(path, small_single("sd1"))
    start = read_header(path).data_start
    whole = path.read_bytes()
    chance = random.Random(0)
    opened = 0
    for _ in range(times):
        # Only the header is written again, as the tensors take longer.
        header = change(whole[:start], chance)
        size = len(header) + len(whole) - start
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
        try:
            single = read_single_file(path)
        except LimnerError:
            continue
        opened += 1
        for part in single.parts:
            assert not any(tensor.reshape(-1)[-1] for tensor in single.tensors(part).values())
    assert opened < 0.6 * times
