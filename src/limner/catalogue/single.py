"""The configs of a checkpoint in one safetensors file, as CompVis and most of the field publish it.

Such a file has no configs: the geometry of each network is derived from the shapes of its tensors; numbers of
heads, activations and the noise schedule are those of the model family. Only the header is read.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from limner.diffusion.config import TRAINED_ON
from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.files import parse_object
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.request import MAX_SIDE, MIN_SIDE
from limner.request.facts import Family

from .configs import PartConfig
from .contents import Shapes
from .geometry import clip_text, compvis_unet, compvis_vae, openclip_text
from .headers import Header, read_header
from .inference_config import Prediction, read_inference_config
from .layout import TOKENIZER_OF, how_to_give

UNET, VAE = "model.diffusion_model.", "first_stage_model."
XL_POOLED = 1280  # channels of the pooled text embedding of XL and its refiner


@dataclass(frozen=True)
class Layout:
    """The layout of a family's files.

    Attributes:
        texts: Text encoder -> the prefix of its keys.
        sample_size: Side of the latents that the U-Net was trained on.
    """

    family: Family
    texts: Mapping[str, str]
    sample_size: int


_XL_TEXT, _REFINER_TEXT = "conditioner.embedders.0.transformer.", "conditioner.embedders.0.model."
LAYOUTS = (
    Layout("sd1", {"text_encoder": "cond_stage_model.transformer."}, 64),
    Layout("sd2", {"text_encoder": "cond_stage_model.model."}, 64),
    Layout(
        "xl",
        {
            "text_encoder": _XL_TEXT,
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        128,
    ),
    Layout("xl_refiner", {"text_encoder_2": _REFINER_TEXT}, 128),
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
    "is assumed: if images are noise, give the prediction type"
)

V_PREDICTION, ZERO_SNR = MARKERS = ("v_pred", "ztsnr")  # empty tensors; their presence is the marker
PREDICTION = "modelspec.prediction_type"  # in the metadata: "epsilon" or "v"
RESOLUTION = "modelspec.resolution"  # in the metadata: such as "1024x1024", in pixels
SCHEDULER = "limner.scheduler"  # in the metadata: a scheduler's config, without the fields of training

# Keys of text encoders in files that have no parameter in the networks.
UNUSED_TEXT = re.compile(r"(?:.+\.)?(?:position_ids|logit_scale|text_projection(?:\.weight)?)")

# Keys that no network uses.
WITHOUT_COUNTERPART = re.compile(
    r"model_ema\..+"  # a moving average of the U-Net, to resume training
    r"|betas|posterior_\w+|(?:\w+_)?alphas_cumprod(?:_prev)?|denoiser\.sigmas"  # computed from the schedule
    r"|embedding_manager\..+"  # of the first textual inversion code
    r"|depth_model\..+"  # the estimator of depth maps, not part of the denoising
    rf"|(?:cond_stage_model|conditioner\.embedders\.\d)\.{UNUSED_TEXT.pattern}"
    rf"|{'|'.join(MARKERS)}"
)
_EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
_SCALED = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant")


@dataclass(frozen=True)
class SingleFile:
    """A single-file checkpoint, as its header describes it.

    Attributes:
        path: The file.
        layout: Layout of its family.
        configs: Part -> geometry of its network, without the parts that come from elsewhere.
        keys: Key in the current layout -> key in the file, which may have an older layout.
        shapes: Key in the current layout -> shape.
        scheduler_config: Scheduler config of such models on the hub.
        skipped: Prefixes of keys that no network uses.
        warnings: Warnings about assumptions.
    """

    path: Path
    layout: Layout
    configs: Mapping[str, PartConfig]
    keys: Mapping[str, str]
    shapes: Shapes
    scheduler_config: Mapping[str, Any]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def zero_negative(self) -> bool:
        """Whether an empty negative prompt is an all-zero embedding, not that of an empty text."""
        return self.layout.family == "xl"

    @property
    def parameters(self) -> int:
        """Number of weights that the networks use."""
        return sum(prod(shape) for key, shape in self.shapes.items() if self._is_used(key))

    def is_unused(self, key: str) -> bool:
        """Whether a key that no network has may be left: it is known, or of a part from elsewhere."""
        return bool(WITHOUT_COUNTERPART.fullmatch(key)) or key.startswith(self.skipped)

    def _is_used(self, key: str) -> bool:
        projected = {
            f"{prefix}text_projection"
            for part, prefix in self.layout.texts.items()
            if isinstance(config := self.configs.get(part), CLIPTextConfig) and config.projection
        }
        return key in projected or not self.is_unused(key)


def read_single(
    path: Path,
    header: Header,
    *,
    prediction_type: Prediction | None = None,
    replaced: Collection[str] = (),
    text_configs: Mapping[str, CLIPTextConfig] | None = None,
) -> SingleFile:
    """Read what a single file with this header is; the file need not exist yet.

    The prediction type is that of the markers `v_pred` and `ztsnr`, or of ModelSpec metadata
    (https://github.com/Stability-AI/ModelSpec). Where there are none, it is epsilon, but v for 2.x
    text-to-image models, whose files for 512 (epsilon) and 768 pixels (v) are alike. The sample size is
    from ModelSpec's resolution, or else the family's.

    Args:
        prediction_type: Prediction type, whatever the file says.
        replaced: Parts that come from elsewhere, which the file need not hold.
        text_configs: Geometry of the text encoders among these.

    Raises:
        InvalidCheckpoint: The file lacks a network, or its shapes describe none.
        UnsupportedModel: A model of another kind, or one whose weights are stored with scales.
    """
    names = {_OLDER.sub(r"\1text_model.", key): key for key in header.tensors}
    shapes = {name: header.tensors[key].shape for name, key in names.items()}
    _refuse_other_models(path, shapes)
    layout = _layout(path, shapes, frozenset(replaced))
    configs: dict[str, PartConfig] = {}
    given = text_configs or {}
    try:
        texts = {
            part: given.get(part) or _text_config(shapes, prefix, layout)
            for part, prefix in layout.texts.items()
            if part in given or part not in replaced
        }
        if "unet" not in replaced:
            pooled = [*texts.values()][-1].projection_dim if texts else XL_POOLED
            sizes = 5 if layout.family == "xl_refiner" else 6
            configs["unet"] = compvis_unet(shapes, UNET, pooled=pooled, sizes=sizes)
        if "vae" not in replaced:
            geometry = compvis_vae(shapes, VAE)
            configs["vae"] = VAEConfig(**geometry, scaling_factor=scaling_factor_of(layout.family))
        configs |= {part: config for part, config in texts.items() if part not in replaced}
    except KeyError as error:
        raise InvalidCheckpoint(f"{path} has no tensor {error}, which every such model has") from None
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise InvalidCheckpoint(f"the shapes in {path} describe no Stable Diffusion: {error}") from error
    skipped = _prefixes(layout, replaced)
    if layout.family == "sd2" and "text_encoder" not in replaced:
        skipped += (unused_text_layer(layout.texts["text_encoder"], texts["text_encoder"]),)

    inference = read_inference_config(path)
    in_file = _stored_prediction(path, header)
    stored = inference.prediction or in_file
    zero_snr = ZERO_SNR in shapes or inference.zero_snr
    warnings = inference.warnings
    if in_file not in (None, stored) and prediction_type is None:
        warnings += (f"{inference.path} says {stored}, but {path.name} itself {in_file}; the former is used",)
    prediction = prediction_type or stored or "epsilon"
    unet = configs.get("unet")
    extra = unet.in_channels - unet.out_channels if isinstance(unet, UNetConfig) else 0
    if extra not in (0, 1, 4, 5):
        raise UnsupportedModel(
            f"{path}: the U-Net has {extra} input channels besides the latents",
            hint="expected 0, 1 (depth), 4 (editing) or 5 (inpainting)",
        )
    if not (prediction_type or stored) and layout.family == "sd2" and not extra:
        prediction = "v_prediction"
        warnings += (_ASSUMED.format(path=path),)
    if isinstance(unet, UNetConfig):
        vae = configs.get("vae")
        downscale = vae.downscale if isinstance(vae, VAEConfig) else VAEConfig().downscale
        size = 96 if layout.family == "sd2" and prediction == "v_prediction" else layout.sample_size
        if (resolution := header.metadata.get(RESOLUTION)) is not None:
            if (side := side_of(resolution)) is None:
                warnings += (f"{path}: {RESOLUTION} is {resolution!r}, not a square such as 512x512",)
            else:
                size = side // downscale
        configs["unet"] = replace(unet, sample_size=size)
        if isinstance(vae, VAEConfig):
            configs["vae"] = replace(vae, sample_size=size * downscale)
    scheduler = scheduler_of(layout.family, prediction, zero_snr=zero_snr)
    return SingleFile(
        path=path,
        layout=layout,
        configs=configs,
        keys=names,
        shapes=shapes,
        scheduler_config=_with_sampling(path, scheduler, header.metadata),
        skipped=skipped,
        warnings=warnings,
    )


def scaling_factor_of(family: Family) -> float:
    """Return the factor from the latents of a family's autoencoder to those of its U-Net."""
    return 0.13025 if family in ("xl", "xl_refiner") else 0.18215


def parts_in(path: Path) -> set[str]:
    """Return the parts that have tensors in a single file."""
    keys = read_header(path).tensors.keys()
    prefixes = {("unet", UNET), ("vae", VAE)}.union(*(layout.texts.items() for layout in LAYOUTS))
    return {part for part, prefix in prefixes if any(key.startswith(prefix) for key in keys)}


def is_whole(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a single-file checkpoint: it has a U-Net."""
    return any(key.startswith(UNET) for key in keys)


def _layout(path: Path, shapes: Shapes, replaced: frozenset[str]) -> Layout:
    def holds(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    family = _family_of_unet(shapes, replaced)
    layout = next(
        (
            layout
            for layout in LAYOUTS
            # Text encoders from elsewhere do not identify the family.
            if (layout.family == family or not TOKENIZER_OF.keys() & replaced)
            and all(part in replaced or holds(prefix) for part, prefix in layout.texts.items())
        ),
        None,
    )
    lacking = {} if f"{UNET}input_blocks.0.0.weight" in shapes else {"unet": f"a U-Net ({UNET}…)"}
    lacking |= {} if holds(VAE) else {"vae": f"an autoencoder ({VAE}…)"}
    lacking = {part: text for part, text in lacking.items() if part not in replaced}
    if layout is not None and not lacking:
        return layout
    if layout is None:
        needed = next(layout for layout in LAYOUTS if layout.family == family).texts
        texts = [part for part, prefix in needed.items() if part not in replaced and not holds(prefix)]
        lacking |= dict.fromkeys(texts, "text encoders (cond_stage_model.… or conditioner.…)")
    what = ", ".join(dict.fromkeys(lacking.values()))
    if layout is None and {"unet", "vae"} <= lacking.keys():
        raise UnsupportedModel(
            f"{path} is no Stable Diffusion 1.x, 2.x or XL in one file: it lacks {what}",
            hint="LoRAs, ControlNets, autoencoders and embeddings are not models, but are added to a model",
        )
    raise InvalidCheckpoint(
        f"{path} is a part of a model only: it lacks {what}",
        hint=f"{'; '.join(map(how_to_give, lacking))}; or get the whole checkpoint",
    )


def _family_of_unet(shapes: Shapes, replaced: Collection[str]) -> Family:
    if f"{UNET}label_emb.0.0.weight" in shapes:
        context = shapes.get(f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
        if context == XL_POOLED or any(key.startswith(_REFINER_TEXT) for key in shapes):
            return "xl_refiner"
        clip = "text_encoder" in replaced or any(key.startswith(_XL_TEXT) for key in shapes)
        return "xl" if clip or "text_encoder_2" not in replaced else "xl_refiner"
    projection = shapes.get(f"{UNET}middle_block.1.proj_in.weight", ())
    return "sd2" if len(projection) == 2 else "sd1"  # 1.x has 1x1 convolutions there


def _prefixes(layout: Layout, parts: Collection[str]) -> tuple[str, ...]:
    """Prefixes of the keys of some parts."""
    prefixes = {"unet": UNET, "vae": VAE, **layout.texts}
    return tuple(prefix for part, prefix in prefixes.items() if part in parts)


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


def _text_config(shapes: Shapes, prefix: str, layout: Layout) -> CLIPTextConfig:
    if is_openclip(prefix):
        return openclip_text(shapes, prefix, projection=layout.family != "sd2")
    return clip_text(shapes, prefix, activation="quick_gelu")


def is_openclip(prefix: str) -> bool:
    """Whether the keys with this prefix are OpenCLIP's names of a text encoder, not transformers'."""
    return prefix.endswith(".model.")


def unused_text_layer(prefix: str, config: CLIPTextConfig) -> str:
    """Prefix of the last text layer of a 2.x file, which the network does not have."""
    return f"{prefix}transformer.resblocks.{config.num_hidden_layers}."


def _stored_prediction(path: Path, header: Header) -> Prediction | None:
    """Return the prediction type from markers of trainers and ComfyUI, or from ModelSpec metadata."""
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
    by_architecture: dict[str, Prediction] = {
        "stable-diffusion-v2-512": "epsilon",
        "stable-diffusion-v2-768-v": "v_prediction",
    }
    return by_architecture.get(metadata.get("modelspec.architecture", ""))


def side_of(resolution: str) -> int | None:
    """Return the side of a square resolution "WxH" that a request can have, or None."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", resolution)
    side = int(match[1]) if match and match[1] == match[2] else 0
    return side if MIN_SIDE <= side <= MAX_SIDE and side % 8 == 0 else None


def scheduler_of(family: Family, prediction: Prediction, *, zero_snr: bool) -> dict[str, Any]:
    """Return the scheduler config that the hub has for a family, as published by Stability AI and Runway."""
    if family in ("xl", "xl_refiner"):
        scheduler = _EULER
    elif prediction == "v_prediction" or zero_snr:
        scheduler = _DDIM
    else:
        scheduler = _PNDM
    # With zero terminal SNR sampling has to start at the last timestep (Lin et al. 2023).
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    return {**scheduler, "prediction_type": prediction, **zero}


def _with_sampling(path: Path, scheduler: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return a scheduler config with the sampling settings that `limner convert` stored in the metadata."""
    if SCHEDULER not in metadata:
        return scheduler
    try:
        sampling = parse_object(metadata[SCHEDULER])
    except ValueError as error:
        raise InvalidCheckpoint(f"{path}: {SCHEDULER} in its metadata {error}") from None
    trained = {key: value for key, value in scheduler.items() if key in TRAINED_ON}
    return {**sampling, **trained}
