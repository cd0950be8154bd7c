"""The options that drawing commands share, each declared here and nowhere else.

A command takes a class of them as one parameter, and `spread` makes an option of each field:

    @spread
    def generate(prompt: …, *, fields: RequestOptions, models: ModelOptions) -> None: ...
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from limner.errors import InvalidRequest

# Headings of the help, in the order of their first options.
PROMPT, PICTURE, SAMPLING, IMAGE = "Prompt", "Picture", "Sampling", "Picture to begin with"
PART, GUIDES, HIRES, XL = "Part of a picture", "Guiding pictures", "Second pass", "Stable Diffusion XL"
MODEL, SPEED, FILES, OUTPUT = "Model", "Speed and memory", "Files by name", "Output"


def option(help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option under a heading of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def flag(help: str, panel: str, *names: str) -> Any:
    """An option without a value."""
    return option(help, panel, *names, metavar="", show_default=False)


_SYNTAX = "a1111 reads (emphasis:1.3) and BREAK, as AUTOMATIC1111 does; literal takes every sign for itself."
_SAMPLERS = (
    "ddim, ddpm, euler, euler_a, heun, heunpp2, restart, dpm2, dpm2_a, lms, deis, pndm, ipndm, dpmpp_2m, "
    "dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_2s, dpmpp_2s_a, dpmpp_sde, dpm_fast, dpm_adaptive, "
    "unipc, unipc_bh1, unipc_bh2, res_multistep, gradient_estimation, er_sde, seeds_2, seeds_3, sa_solver, "
    "lcm, tcd, ddim_cfg_pp, euler_cfg_pp, euler_a_cfg_pp, dpmpp_2m_cfg_pp or dpmpp_2s_a_cfg_pp, or another "
    "program's name, such as 'DPM++ 2M Karras'."
)
_SCHEDULES = (
    "uniform, karras, exponential, polyexponential, beta, kl_optimal, normal, simple, sgm_uniform, "
    "ddim_uniform, or align_your_steps for SD 1 and XL."
)
_REFERENCE = "picturebook (the default), a folder, a .safetensors file, or a hub id: organisation/name."
_WILDCARDS = "Choose {red|blue} and __name__ in prompts by the picture's seed."
_WILDCARDS_DIR = "With files for wildcards; by default, wildcards. May be repeated."
_STYLES_FILE = "AUTOMATIC1111's CSV, or JSON; by default, styles.csv. May be repeated."
_AREA = "whole, or masked: only what lies around the mask, at width x height, and put back."
_TOLD = "Height and width that XL is told; by default the picture's own."
_COMPILED = "Compile the U-Net for a GPU: minutes once, for many pictures."
_ATTENTION = "auto, fused, or sliced: in blocks, where the fused kernel is slow or holds all scores."
_OFFLOAD = "none, or keep off the GPU what does not run: model (networks) or sequential (their blocks)."
_LOW_VRAM = "Short for --offload model."
_RESIZED = "In pixels; one alone keeps the proportions."
_OF_HIRES = "Of the second pass; by default as in the first."
_ENLARGES = (
    "latent (the default), latent_antialiased, latent_bicubic, latent_bicubic_antialiased, latent_nearest, "
    "latent_nearest_exact, lanczos or nearest."
)
_TILING = "x, y or xy: where copies of the picture join without a seam."
_LORA_DIR = "With LoRA files, by whose names prompts ask for them. May be repeated."
_WORDS_DIR = "With textual inversions, whose names are words in prompts. May be repeated."
_PREDICTS = "epsilon or v_prediction, where a single file does not say what its U-Net predicts."
_CONTROL = (
    "A picture that says where things are: model=FOLDER,image=PICTURE and if need be, after more commas, "
    "preprocessor=canny weight=0.8 start=0 end=0.7 mode=guess. May be repeated."
)
_IMAGE_PROMPT = (
    "Pictures beside the prompt: model=ADAPTER,image=PICTURE and if need be, after more commas, "
    "image=PICTURE weight=0.6 start=0 end=0.7 image_encoder=FOLDER. May be repeated."
)
_SPEED = "exact, balanced or fast: the latter two change the picture a little to draw it sooner."
_EXACT = "Draw each picture by itself, so that its bits do not depend on the others, or (default) share work."

Text = str | None  # an option left out is None, and the model's own default holds
Whole = int | None
Number = float | None
Sides = tuple[int, int] | None

Quiet = Annotated[bool, flag("No progress or notes, only warnings.", OUTPUT, "--quiet", "-q")]


class _Options:
    def given(self) -> dict[str, Any]:
        """Those that were not left out."""
        return {name: value for name, value in vars(self).items() if value not in (None, [])}


@dataclass(frozen=True)
class RequestOptions(_Options):
    """The fields of a `GenerationRequest`, but for its prompt."""

    negative_prompt: Annotated[Text, option("What to steer away from.", PROMPT)] = None
    styles: Annotated[
        list[str] | None,
        option(
            "Of a file of styles, put around the prompt. May be repeated.", PROMPT, "--style", metavar="NAME"
        ),
    ] = None
    wildcards: Annotated[bool | None, flag(_WILDCARDS, PROMPT, "--wildcards")] = None
    loras: Annotated[
        list[str] | None,
        option("An adapter, and its weight. May be repeated.", PROMPT, "--lora", metavar="NAME:0.8"),
    ] = None
    prompt_syntax: Annotated[Text, option(_SYNTAX, PROMPT)] = None
    emphasis: Annotated[Text, option("Of (words:1.3): original, no_norm, ignore or none.", PROMPT)] = None
    clip_skip: Annotated[Whole, option("1: the text encoder's last layer, 2: one before …", PROMPT)] = None
    width: Annotated[Whole, option("In pixels, a multiple of 8.", PICTURE)] = None
    height: Annotated[Whole, option("In pixels, a multiple of 8.", PICTURE)] = None
    num_images: Annotated[
        Whole, option("How many; each takes the next seed.", PICTURE, "--num-images", "-n")
    ] = None
    seed: Annotated[Whole, option("Of the first picture; by default a new one.", PICTURE)] = None
    variation_seed: Annotated[Whole, option("Of another noise, to go towards.", PICTURE)] = None
    variation_strength: Annotated[Number, option("0 to 1: how far.", PICTURE)] = None
    noise: Annotated[Text, option("cpu, or gpu for the noise of CUDA and AUTOMATIC1111.", PICTURE)] = None
    tiling: Annotated[Text, option(_TILING, PICTURE)] = None
    steps: Annotated[Whole, option("Sampler steps.", SAMPLING)] = None
    guidance_scale: Annotated[Number, option("How closely to follow the prompt; 1: off.", SAMPLING)] = None
    guidance_rescale: Annotated[Number, option("0 to 1: keeps contrast from growing.", SAMPLING)] = None
    guidance_interval: Annotated[
        tuple[float, float] | None,
        option("Lowest and highest sigma at which guidance is on.", SAMPLING, metavar="LOW HIGH"),
    ] = None
    guidance_skip: Annotated[Number, option("Below this sigma, guide every second step only.", SAMPLING)] = (
        None
    )
    perp_neg: Annotated[
        Number, option("The negative prompt's weight, if it is to spare the prompt.", SAMPLING)
    ] = None
    sampler: Annotated[Text, option(_SAMPLERS, SAMPLING)] = None
    sigma_schedule: Annotated[Text, option(_SCHEDULES, SAMPLING)] = None
    timestep_spacing: Annotated[Text, option("leading, linspace or trailing.", SAMPLING)] = None
    eta: Annotated[Number, option("0 to 1: share of fresh noise, of samplers that add some.", SAMPLING)] = (
        None
    )
    s_churn: Annotated[Number, option("Noise that euler, heun and dpm2 add on the way.", SAMPLING)] = None
    s_tmin: Annotated[Number, option("The sigma above which they do.", SAMPLING)] = None
    s_tmax: Annotated[Number, option("The sigma below which they do.", SAMPLING)] = None
    s_noise: Annotated[Number, option("A factor on the noise that a sampler adds.", SAMPLING)] = None
    image: Annotated[Text, option("A picture to begin with.", IMAGE, metavar="PICTURE")] = None
    strength: Annotated[Number, option("0 to 1: how much of it is drawn anew.", IMAGE)] = None
    image_guidance_scale: Annotated[
        Number, option("How closely editing models keep to the picture.", IMAGE)
    ] = None
    depth: Annotated[
        Text, option("A depth map, nearer is whiter, for depth models.", IMAGE, metavar="PICTURE")
    ] = None
    mask: Annotated[Text, option("White where to draw anew.", PART, metavar="PICTURE")] = None
    mask_blur: Annotated[Number, option("Pixels by which the mask's edges are softened.", PART)] = None
    inpaint_area: Annotated[Text, option(_AREA, PART)] = None
    mask_padding: Annotated[Whole, option("Pixels around the mask, for masked.", PART)] = None
    extend: Annotated[
        tuple[int, int, int, int] | None,
        option("Pixels to draw beyond its left, top, right and bottom.", PART, metavar="L T R B"),
    ] = None
    controls: Annotated[list[str] | None, option(_CONTROL, GUIDES, "--control", metavar="FIELDS")] = None
    image_prompts: Annotated[
        list[str] | None, option(_IMAGE_PROMPT, GUIDES, "--image-prompt", metavar="FIELDS")
    ] = None
    hires_scale: Annotated[Number, option("Enlarge the picture so many times, and draw it again.", HIRES)] = (
        None
    )
    hires_width: Annotated[Whole, option(_RESIZED, HIRES)] = None
    hires_height: Annotated[Whole, option(_RESIZED, HIRES)] = None
    hires_strength: Annotated[Number, option("0 to 1: how much is drawn anew; by default 0.7.", HIRES)] = None
    hires_steps: Annotated[Whole, option("Of the second pass; by default as many.", HIRES)] = None
    hires_upscaler: Annotated[Text, option(_ENLARGES, HIRES)] = None
    hires_sampler: Annotated[Text, option(_OF_HIRES, HIRES)] = None
    hires_sigma_schedule: Annotated[Text, option(_OF_HIRES, HIRES)] = None
    hires_prompt: Annotated[Text, option(_OF_HIRES, HIRES)] = None
    hires_negative_prompt: Annotated[Text, option(_OF_HIRES, HIRES)] = None
    refiner: Annotated[Text, option("A model that takes over on the way, as XL's refiner.", XL)] = None
    refiner_start: Annotated[Number, option("0 to 1: after which share of the steps.", XL)] = None
    original_size: Annotated[Sides, option(_TOLD, XL, metavar="H W")] = None
    target_size: Annotated[Sides, option(_TOLD, XL, metavar="H W")] = None
    crop: Annotated[Sides, option("Pixels cut off at top and left, as XL is told.", XL, metavar="T L")] = None
    aesthetic_score: Annotated[Number, option("That XL's refiner is told, 0 to 10.", XL)] = None
    negative_aesthetic_score: Annotated[Number, option("Of what to steer away from.", XL)] = None
    model: Annotated[Text, option(_REFERENCE, MODEL)] = None
    revision: Annotated[Text, option("Branch, tag or commit on the hub.", MODEL)] = None
    variant: Annotated[Text, option("Of the weight files, such as fp16.", MODEL)] = None
    speed: Annotated[Text, option(_SPEED, SPEED)] = None
    exact: Annotated[bool | None, flag(_EXACT, SPEED, "--exact/--shared")] = None
    vae_tiling: Annotated[
        bool | None, flag("Decode in tiles, which takes less memory.", SPEED, "--vae-tiling")
    ] = None


@dataclass(frozen=True)
class ModelOptions(_Options):
    """How models are loaded: arguments of `limner.load`."""

    vae: Annotated[Path | None, option("Another autoencoder, in a file of its own.", MODEL)] = None
    prediction_type: Annotated[Text, option(_PREDICTS, MODEL)] = None
    device: Annotated[Text, option("auto, cpu, cuda, cuda:1 …", SPEED)] = None
    precision: Annotated[Text, option("auto, fp32, bf16, fp16 or int8.", SPEED)] = None
    backend: Annotated[Text, option("What runs the networks: torch (the default) or openvino.", SPEED)] = None
    compiled: Annotated[bool | None, flag(_COMPILED, SPEED, "--compiled")] = None
    attention: Annotated[Text, option(_ATTENTION, SPEED)] = None
    offload: Annotated[Text, option(_OFFLOAD, SPEED)] = None
    low_vram: Annotated[bool | None, flag(_LOW_VRAM, SPEED, "--low-vram")] = None
    lora_dirs: Annotated[
        list[Path] | None,
        option(_LORA_DIR, FILES, "--lora-dir", envvar="LIMNER_LORA_DIR", metavar="FOLDER"),
    ] = None
    embedding_dirs: Annotated[
        list[Path] | None,
        option(_WORDS_DIR, FILES, "--embedding-dir", envvar="LIMNER_EMBEDDING_DIR", metavar="FOLDER"),
    ] = None
    wildcards_dirs: Annotated[
        list[Path] | None,
        option(_WILDCARDS_DIR, FILES, "--wildcards-dir", envvar="LIMNER_WILDCARDS_DIR", metavar="FOLDER"),
    ] = None
    styles_files: Annotated[
        list[Path] | None,
        option(_STYLES_FILE, FILES, "--styles-file", envvar="LIMNER_STYLES_FILE", metavar="FILE"),
    ] = None

    def given(self) -> dict[str, Any]:
        options = super().given()
        if options.pop("low_vram", False) and options.setdefault("offload", "model") != "model":
            raise InvalidRequest(f"--low-vram is --offload model, and --offload {self.offload} was given too")
        return options


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make an option of each field of those parameters that are dataclasses, for typer to read."""
    hints = get_type_hints(command, include_extras=True)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in classes:
            own = get_type_hints(classes[name], include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=own[field.name],
                )
                for field in fields(classes[name])
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    def spreading(**values: Any) -> None:
        gathered = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in classes.items()
        }
        command(**values, **gathered)

    spreading.__name__, spreading.__doc__ = command.__name__, command.__doc__
    spreading.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    spreading.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spreading
