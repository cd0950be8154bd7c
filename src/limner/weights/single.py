"""A whole checkpoint in one safetensors file, as CompVis, Stability AI and most of the field publish them.

Such a file has no configs: the geometry of each network is read off the shapes of its tensors, and what
shapes cannot tell (heads, activations, the noise schedule) is what the model family was published with. Only
the header is read; tensors are mapped where they are, under the hub's names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.nn.clip import CLIPTextConfig
from limner.nn.unet import UNetConfig
from limner.nn.vae import VAEConfig

from .geometry import bounded, compvis_encoder, count_of, heads_of
from .keymaps import (
    Entry,
    Shapes,
    clip_entries,
    openclip_entries,
    single_shapes,
    unet_entries,
    vae_entries,
)
from .load import refuse_unless_fitting, vae_name
from .tensors import DTYPES, Header, TensorInfo, open_tensors, read_header

if TYPE_CHECKING:
    from .checkpoint import Family, Kind

Prediction = Literal["epsilon", "v_prediction"]

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@dataclass(frozen=True)
class _Layout:
    """What a family's files are like.

    Attributes:
        texts: text encoder -> the prefix of its keys.
        scaling_factor, sample_size: of the autoencoder, and the side of the U-Net's latents.
    """

    family: "Family"
    texts: Mapping[str, str]
    scaling_factor: float
    sample_size: int


_LAYOUTS = (
    _Layout("sd1", {"text_encoder": "cond_stage_model.transformer."}, 0.18215, 64),
    _Layout("sd2", {"text_encoder": "cond_stage_model.model."}, 0.18215, 64),
    _Layout(
        "xl",
        {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        0.13025,
        128,
    ),
    _Layout("xl_refiner", {"text_encoder_2": "conditioner.embedders.0.model."}, 0.13025, 128),
)

# Merges of 2022 dropped the `text_model.` that belongs here.
_OLDER = re.compile(r"(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)")

_BETAS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_PNDM = {"_class_name": "PNDMScheduler", **_BETAS}
_DDIM = {"_class_name": "DDIMScheduler", **_BETAS}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "timestep_spacing": "leading"}

_ASSUMED = (
    "{path} does not say whether it predicts noise (epsilon, as 2.x of 512 pixels) or v (of 768 pixels); v "
    "is assumed: where pictures turn out as noise, give the prediction type"
)

V_PREDICTION, ZERO_SNR = MARKERS = ("v_pred", "ztsnr")  # empty tensors: their presence says something
PREDICTION = "modelspec.prediction_type"  # in the metadata: "epsilon" or "v"

# Keys that no network here has a use for.
WITHOUT_COUNTERPART = re.compile(
    r"model_ema\..+"  # a moving average of the U-Net, for training to go on from
    r"|betas|posterior_\w+|(?:\w+_)?alphas_cumprod(?:_prev)?|denoiser\.sigmas"  # computed from the schedule
    r"|embedding_manager\..+"  # of the first textual inversion code
    r"|depth_model\..+"  # the estimator of depth maps, not part of the denoising
    r"|(?:cond_stage_model|conditioner\.embedders\.\d)\.(?:.+\.)?"
    r"(?:position_ids|logit_scale|text_projection(?:\.weight)?)"
    rf"|{'|'.join(MARKERS)}"
)
_VAE_WITHOUT_COUNTERPART = re.compile(r"(?:model_ema|loss)\..+")  # of its training
_EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
_SCALED = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant")


@dataclass(frozen=True)
class SingleFile:
    """A checked header, and what it says.

    Attributes:
        kind: what the U-Net is given beside the noisy latents, told from its input channels.
        text_configs: text encoder ("text_encoder", "text_encoder_2") -> its geometry.
        scheduler_config: what the hub's `scheduler_config.json` says for such a model.
        zero_negative: no negative prompt means an embedding of zeros, not that of an empty text.
        entries: where each tensor of each network is.
        without_counterpart: the other keys: EMA copies, schedule buffers, unused layers …
        warnings: what was assumed, as the file does not tell.
    """

    path: Path
    family: "Family"
    kind: "Kind"
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_configs: Mapping[str, CLIPTextConfig]
    scheduler_config: Mapping[str, Any]
    zero_negative: bool
    entries: tuple[Entry, ...]
    without_counterpart: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks."""
        return ("unet", "vae", *self.text_configs)

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Hub name -> tensor of a network: views of the mapped file, of which nothing is read yet."""
        tensors = open_tensors(self.path)
        return {
            entry.name: entry.from_single(tensors[entry.single])
            for entry in self.entries
            if entry.part == part
        }


def read_single_file(path: Path, *, prediction_type: Prediction | None = None) -> SingleFile:
    """Read what a single-file checkpoint holds; cost does not depend on its size.

    The prediction type is told by the markers `v_pred` and `ztsnr`, or by ModelSpec metadata
    (https://github.com/Stability-AI/ModelSpec). Where there are none, it is epsilon, but v for 2.x that
    draws from text alone, where the files of 512 (epsilon) and 768 pixels (v) are alike.

    Args:
        prediction_type: what the file is to be taken for, whatever it says.

    Raises:
        InvalidCheckpoint: the file is broken, lacks a network, or holds keys or shapes that the networks do
            not call for; they are named.
        UnsupportedModel: a model of another kind, or one whose weights are stored with scales.
        PickleRefused: the file is a pickle.
    """
    return describe(path, read_header(path), prediction_type=prediction_type)


def describe(path: Path, header: Header, *, prediction_type: Prediction | None = None) -> SingleFile:
    """As `read_single_file`, of a file that has, or will have, this header."""
    names = {_OLDER.sub(r"\1text_model.", key): key for key in header.tensors}
    shapes = {name: header.tensors[key].shape for name, key in names.items()}
    _refuse_other_models(path, shapes)
    layout = _layout(path, shapes)
    try:
        texts = {part: _text_config(shapes, prefix, layout) for part, prefix in layout.texts.items()}
        unet = _unet_config(shapes, layout, [*texts.values()][-1].projection_dim)
        vae = _vae_config(shapes, VAE, layout.scaling_factor)
        entries = [
            replace(entry, single=names.get(entry.single, entry.single))
            for entry in _entries(layout, unet, vae, texts)
        ]
    except KeyError as error:
        raise InvalidCheckpoint(f"{path} has no tensor {error}, which every such model has") from None
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"the shapes in {path} describe no Stable Diffusion: {reason}") from error
    unused = _unused_layer(layout, texts)
    rest = _check(
        path,
        header.tensors,
        entries,
        lambda key: WITHOUT_COUNTERPART.fullmatch(key) or key.startswith(unused),
    )

    kinds: dict[int, Kind] = {0: "text", 1: "depth", 4: "edit", 5: "inpainting"}
    if (beside := unet.in_channels - vae.latent_channels) not in kinds:
        raise UnsupportedModel(
            f"{path}: the U-Net takes {beside} channels beside the latents",
            hint="expected 0, 1 (depth), 4 (editing) or 5 (inpainting)",
        )
    told = _told_prediction(path, header)
    warnings: tuple[str, ...] = ()
    prediction = prediction_type or told or "epsilon"
    if not (prediction_type or told) and layout.family == "sd2" and kinds[beside] == "text":
        prediction = "v_prediction"
        warnings = (_ASSUMED.format(path=path),)
    size = 96 if layout.family == "sd2" and prediction == "v_prediction" else layout.sample_size
    return SingleFile(
        path=path,
        family=layout.family,
        kind=kinds[beside],
        unet_config=replace(unet, sample_size=size),
        vae_config=replace(vae, sample_size=size * vae.downscale),
        text_configs=texts,
        scheduler_config=_scheduler(layout.family, prediction, zero_snr=ZERO_SNR in shapes),
        zero_negative=layout.family == "xl",
        entries=tuple(entries),
        without_counterpart=rest,
        warnings=warnings,
    )


def single_entries(
    unet: UNetConfig, vae: VAEConfig, texts: Mapping[str, CLIPTextConfig]
) -> tuple["Family", list[Entry]]:
    """The family that a model has the text encoders of, and where its tensors are in a single file.

    Raises:
        UnsupportedModel: its text encoders are those of no family.
    """
    for layout in _LAYOUTS:
        if layout.texts.keys() == texts.keys() and all(
            _is_openclip(prefix) == (texts[part].hidden_act == "gelu")
            for part, prefix in layout.texts.items()
        ):
            return layout.family, _entries(layout, unet, vae, texts)
    given = ", ".join(f"{part} ({config.hidden_act})" for part, config in texts.items())
    raise UnsupportedModel(f"no single file has the text encoders {given}")


def read_vae_file(path: Path, config: VAEConfig) -> dict[str, Tensor]:
    """Map an autoencoder in a file of its own, under CompVis' names or the hub's.

    Args:
        config: of the model that it is for. What the file cannot tell, such as the scaling factor, is the
            model's.

    Returns:
        Hub name -> tensor, views of the mapped file.

    Raises:
        InvalidCheckpoint, PickleRefused: as `read_single_file`.
    """
    infos = read_header(path).tensors
    prefix = VAE if any(key.startswith(VAE) for key in infos) else ""
    entries = vae_entries(config, prefix)
    hub = {vae_name(key): key for key in infos}
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in hub:
        entries = [
            replace(entry, single=hub.get(entry.name, entry.name), transform="same") for entry in entries
        ]
    _check(path, infos, entries, _VAE_WITHOUT_COUNTERPART.fullmatch)
    tensors = open_tensors(path)
    return {entry.name: entry.from_single(tensors[entry.single]) for entry in entries}


def is_checkpoint(path: Path) -> bool:
    """Whether a file holds a U-Net, and so is to be read by `read_single_file`."""
    return any(key.startswith(UNET) for key in read_header(path).tensors)


def read_vae_config(path: Path) -> VAEConfig:
    """The geometry of an autoencoder in a file of its own, under CompVis' names.

    The scaling factor, which such a file does not tell, is that of 1.x.

    Raises:
        InvalidCheckpoint: it is no such file.
        PickleRefused: it is a pickle.
    """
    shapes = {key: info.shape for key, info in read_header(path).tensors.items()}
    prefix = VAE if any(key.startswith(VAE) for key in shapes) else ""
    try:
        return _vae_config(shapes, prefix, VAEConfig().scaling_factor)
    except (LookupError, ValueError):
        raise InvalidCheckpoint(
            f"{path} is no autoencoder under CompVis' names", hint="give config, a folder with a config.json"
        ) from None


def _layout(path: Path, shapes: Shapes) -> _Layout:
    def holds(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    layout = next((layout for layout in _LAYOUTS if all(map(holds, layout.texts.values()))), None)
    parts = {
        "a U-Net (model.diffusion_model.…)": f"{UNET}input_blocks.0.0.weight" in shapes,
        "an autoencoder (first_stage_model.…)": holds(VAE),
        "text encoders (cond_stage_model.… or conditioner.…)": layout is not None,
    }
    lacking = [part for part, there in parts.items() if not there]
    if len(lacking) == len(parts):
        raise UnsupportedModel(
            f"{path} is no Stable Diffusion 1.x, 2.x or XL in one file: it lacks {', '.join(lacking)}",
            hint="LoRAs, ControlNets, autoencoders and embeddings are no models, but used beside one",
        )
    if layout is None or lacking:
        raise InvalidCheckpoint(
            f"{path} is a part of a model only: it lacks {', '.join(lacking)}",
            hint="get the whole checkpoint; or put the parts together in another program",
        )
    return layout


def _refuse_other_models(path: Path, shapes: Shapes) -> None:
    scaled = [key for key in shapes if key == "scaled_fp8" or key.endswith(_SCALED)]
    if scaled:
        raise UnsupportedModel(
            f"{path} stores its weights divided by scales ({scaled[0]} and {len(scaled) - 1} more)",
            hint="get the file in float16, bfloat16 or plain float8",
        )
    if edm := [key for key in _EDM if key in shapes]:
        raise UnsupportedModel(
            f"{path} is trained for the EDM noise schedule ({edm[0]}), which is not offered"
        )


def _text_config(shapes: Shapes, prefix: str, layout: _Layout) -> CLIPTextConfig:
    projected: int | None = None
    if _is_openclip(prefix):
        root, blocks, first, inner = prefix, "transformer.resblocks.", "ln_1", "mlp.c_fc"
        tokens, positions, activation = "token_embedding.weight", "positional_embedding", "gelu"
    else:
        root, blocks, first, inner = f"{prefix}text_model.", "encoder.layers.", "layer_norm1", "mlp.fc1"
        tokens, positions = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        activation = "quick_gelu"
    layers = count_of(shapes, f"{root}{blocks}{{}}.{first}.weight")
    vocabulary, width = shapes[root + tokens]
    if layout.family == "sd2":
        # Trained on the output of the last layer but one, so the hub has no last layer; nor have the files
        # that were made from the hub's, which have no projection either.
        layers -= layers == 24 or f"{prefix}text_projection" in shapes
    elif _is_openclip(prefix):
        projected = shapes[f"{prefix}text_projection"][1]
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{root}{blocks}0.{inner}.weight"][0],
        num_hidden_layers=bounded(layers),
        num_attention_heads=heads_of(width),
        hidden_act=activation,
        projection_dim=projected or {"sd2": 512}.get(layout.family, width),
        vocab_size=vocabulary,
        max_position_embeddings=shapes[root + positions][0],
        projection=projected is not None,
    )


def _unused_layer(layout: _Layout, texts: Mapping[str, CLIPTextConfig]) -> tuple[str, ...]:
    """The prefix of 2.x's last text layer."""
    if layout.family != "sd2":
        return ()
    layers = texts["text_encoder"].num_hidden_layers
    return (f"{layout.texts['text_encoder']}transformer.resblocks.{layers}.",)


def _entries(
    layout: _Layout, unet: UNetConfig, vae: VAEConfig, texts: Mapping[str, CLIPTextConfig]
) -> list[Entry]:
    entries = [*unet_entries(unet), *vae_entries(vae)]
    for part, config in texts.items():
        prefix = layout.texts[part]
        text_entries = openclip_entries if _is_openclip(prefix) else clip_entries
        entries += text_entries(config, part, prefix)
    return entries


def _is_openclip(prefix: str) -> bool:
    return prefix.endswith(".model.")


def _unet_config(shapes: Shapes, layout: _Layout, pooled: int) -> UNetConfig:
    shared = compvis_encoder(shapes, UNET)
    widths, kinds = shared["block_out_channels"], shared["down_block_types"]
    time = shared["projection_class_embeddings_input_dim"]
    sizes = 5 if layout.family == "xl_refiner" else 6
    guidance = shapes.get(f"{UNET}time_embed.cond_proj.weight")
    return UNetConfig(
        **shared,
        out_channels=shapes[f"{UNET}out.2.weight"][0],
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        attention_head_dim=8 if layout.family == "sd1" else tuple(map(heads_of, widths)),
        addition_time_embed_dim=(time - pooled) // sizes if time else None,
        time_cond_proj_dim=guidance[1] if guidance else None,
        sample_size=layout.sample_size,
    )


def _vae_config(shapes: Shapes, prefix: str, scaling_factor: float) -> VAEConfig:
    levels = count_of(shapes, prefix + "encoder.down.{}.block.0.conv1.weight")
    widths = (shapes[f"{prefix}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
    return VAEConfig(
        in_channels=shapes[f"{prefix}encoder.conv_in.weight"][1],
        out_channels=shapes[f"{prefix}decoder.conv_out.weight"][0],
        latent_channels=shapes[f"{prefix}post_quant_conv.weight"][0],
        block_out_channels=tuple(widths),
        layers_per_block=bounded(count_of(shapes, prefix + "encoder.down.0.block.{}.conv1.weight")),
        scaling_factor=scaling_factor,
    )


def _check(
    path: Path, infos: Mapping[str, TensorInfo], entries: list[Entry], harmless: Callable[[str], object]
) -> tuple[str, ...]:
    """The keys that no entry has a use for.

    Raises:
        InvalidCheckpoint: naming what is missing, of another shape, or neither used nor harmless.
    """
    expected = single_shapes(entries)
    rest = tuple(sorted(infos.keys() - expected.keys()))
    refuse_unless_fitting(
        path,
        {key: f"floating {list(shape)}" for key, shape in expected.items()},
        {
            key: f"{'floating' if DTYPES[info.dtype].is_floating_point else info.dtype} {list(info.shape)}"
            for key, info in infos.items()
            if key in expected
        },
        [key for key in rest if not harmless(key)],
        model="a model of these shapes",
    )
    return rest


def _told_prediction(path: Path, header: Header) -> Prediction | None:
    """By markers that trainers and ComfyUI write, or by ModelSpec metadata."""
    if V_PREDICTION in header.tensors:
        return "v_prediction"
    metadata = header.metadata
    for key in (PREDICTION, "modelspec.predict_key"):
        match metadata.get(key):
            case "v" | "v_prediction":
                return "v_prediction"
            case "epsilon":
                return "epsilon"
            case None:
                pass
            case other:
                raise UnsupportedModel(f"{path}: {key} is {other!r}, expected 'epsilon' or 'v'")
    told: dict[str, Prediction] = {
        "stable-diffusion-v2-512": "epsilon",
        "stable-diffusion-v2-768-v": "v_prediction",
    }
    return told.get(metadata.get("modelspec.architecture", ""))


def _scheduler(family: "Family", prediction: Prediction, *, zero_snr: bool) -> dict[str, Any]:
    """As the hub has it for the models published by Stability AI and Runway."""
    if family in ("xl", "xl_refiner"):
        scheduler = _EULER
    elif prediction == "v_prediction" or zero_snr:
        scheduler = _DDIM
    else:
        scheduler = _PNDM
    # With zero terminal SNR sampling has to start at the last timestep (Lin et al. 2023).
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    return {**scheduler, "prediction_type": prediction, **zero}
