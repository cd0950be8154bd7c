"""The options of AUTOMATIC1111 (`/sdapi/v1/options` and `override_settings`): those that clients read or set.

Any key may be set and is kept for the account, so that a client which sends back what it got finds it again.
`OPTIONS` says which of them change images here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import Refusal

Effect = Literal["honoured", "named", "none"]


@dataclass(frozen=True)
class Option:
    """An option.

    Attributes:
        default: Its value in a new account.
        effect: "honoured"; "named": it would change images in AUTOMATIC1111 and is named where a request
            sets another value; "none": it changes no image.
        note: What it means here.
    """

    default: Any
    effect: Effect
    note: str = ""


OPTIONS: dict[str, Option] = {
    "sd_model_checkpoint": Option(None, "honoured", "`model`, by any of its names; null is the server's own"),
    "sd_checkpoint_hash": Option(None, "none", "SHA-256 of the model; follows from the checkpoint"),
    "sd_vae": Option("Automatic", "honoured", "`Automatic` and `None`: the model's own; others are refused"),
    "CLIP_stop_at_last_layers": Option(1, "honoured", "`clip_skip`"),
    "samples_format": Option("png", "honoured", "`png`, `jpg`, `jpeg` or `webp`"),
    "jpeg_quality": Option(80, "honoured", "quality of JPEG and WebP"),
    "webp_lossless": Option(False, "honoured", "WebP without loss"),
    "enable_pnginfo": Option(True, "honoured", "false: the images sent carry no parameters"),
    "randn_source": Option("GPU", "honoured", "`noise`: CPU is `cpu`; GPU and NV are `gpu`"),
    "emphasis": Option("Original", "honoured", "`emphasis`"),
    "eta_ancestral": Option(1.0, "honoured", "`eta` of ancestral samplers, where the request gives none"),
    "eta_ddim": Option(0.0, "honoured", "`eta` of DDIM, where the request gives none"),
    "s_churn": Option(0.0, "honoured", "`s_churn`, where the request gives none"),
    "s_tmin": Option(0.0, "honoured", "`s_tmin`, where the request gives none"),
    "s_tmax": Option(0.0, "honoured", "`s_tmax`, where the request gives none"),
    "s_noise": Option(1.0, "honoured", "`s_noise`, where the request gives none"),
    "s_min_uncond": Option(0.0, "honoured", "`guidance_skip`, where the request gives none"),
    "tiling": Option(False, "honoured", "`tiling`, where the request gives none"),
    "live_previews_enable": Option(True, "honoured", "false: `progress` has no image"),
    "show_progress_every_n_steps": Option(10, "none", "previews come as often as the server makes them"),
    "show_progress_type": Option("Approx NN", "none", "previews are made by the model's own map"),
    "live_previews_image_format": Option("png", "none", "previews are PNG"),
    "interrupt_after_current": Option(True, "none", "interrupt stops after the step"),
    "return_grid": Option(True, "none", "no grid is made"),
    "add_model_hash_to_info": Option(True, "none", "the hash is always written"),
    "face_restoration_model": Option("CodeFormer", "none", "there is no face restoration"),
    "code_former_weight": Option(0.5, "none", "there is no face restoration"),
    "upscaler_for_img2img": Option(None, "named", "init images are resized by Lanczos"),
    "sd_lora": Option("None", "named", "LoRAs are named in the prompt"),
    "outdir_samples": Option("", "none", "images are in the server's store"),
    "outdir_txt2img_samples": Option("outputs/txt2img-images", "none", "images are in the server's store"),
    "outdir_img2img_samples": Option("outputs/img2img-images", "none", "images are in the server's store"),
    "eta_noise_seed_delta": Option(0, "named", "samplers take the noise of the request's own seed"),
    "img2img_color_correction": Option(False, "named", "colours are not matched to the init image"),
    "img2img_fix_steps": Option(False, "named", "`denoising_strength` leaves that part of the steps"),
    "inpainting_mask_weight": Option(1.0, "named", "models for inpainting get the mask as it is"),
    "initial_noise_multiplier": Option(1.0, "named", "the noise is never scaled"),
    "token_merging_ratio": Option(0.0, "named", "tokens are not merged"),
}

FIXED = {"sd_checkpoint_hash"}
"""Options that follow from others; setting them changes nothing."""

_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
NO_VAE = {"", "automatic", "none", "auto"}


def defaults() -> dict[str, Any]:
    """The options of a new account."""
    return {name: option.default for name, option in OPTIONS.items()}


def picture_format(options: Mapping[str, Any]) -> str | None:
    """The format that images are sent in; None for one that is not known."""
    return _FORMATS.get(str(options.get("samples_format") or "png").lower())


def unsupported(given: Mapping[str, Any]) -> list[str]:
    """Names of the options of a request that would change its image in AUTOMATIC1111 and do not here.

    Options that are not known are among them, unless they are empty.
    """
    found = []
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            if value not in (None, "", [], {}, False):
                found.append(name)
        elif option.effect == "named" and value not in (option.default, None, ""):
            found.append(name)
    return found


def number(value: Any, name: str, kind: type[int] | type[float]) -> Any:
    """The value of an option as a number; null is 0. Raises Refusal where it is none."""
    try:
        return kind(value if value is not None else 0)
    except (TypeError, ValueError, OverflowError):
        raise Refusal(
            f"{name} is {str(value)[:40]!r}; expected a number", fields=(f"override_settings.{name}",)
        ) from None
