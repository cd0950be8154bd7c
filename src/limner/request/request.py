"""A request for images: one schema for Python, the command line, HTTP, stored records and audit.

A field left at None takes the model's own default. Resolving a request fills these in, so that the request
stored with an image says everything that made it.

The serialised form carries `schema_version`. A request without one is of version 1. A later minor version
adds fields; a later major version changes what fields mean. Older versions are read, and newer ones as long
as they use no field that this version lacks.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from limner.diffusion.sampler_table import SAMPLER_TABLE, SamplerName
from limner.diffusion.schedule import SigmaScheduleName, Spacing
from limner.errors import InvalidRequest
from limner.prompts.attention import Emphasis, PromptSyntax

from .fields import (
    MAX_LORAS,
    MAX_SEED,
    Fraction,
    Group,
    Margin,
    Name,
    NonzeroFraction,
    Pair,
    Prompt,
    Seed,
    Side,
    Source,
    SpeedName,
    Steps,
    Tiling,
    Upscaler,
    field,
)
from .parsing import (
    SCHEMA_VERSION,
    check_version,
    invalid_fields,
    invalid_request,
    parts_of,
    with_own_names,
)
from .parts import Control, ImagePrompt, Lora


class GenerationRequest(BaseModel):
    """A request for one or more images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    schema_version: Annotated[str, Field(pattern=r"^\d+\.\d+$")] = Field(
        default=SCHEMA_VERSION, description="Version of this schema, for readers of stored requests."
    )

    prompt: Prompt = Field(
        description="What the image shows.",
        examples=["a red house in the snow"],
        json_schema_extra={"group": Group.PROMPT.value},
    )
    negative_prompt: Prompt | None = field(
        Group.PROMPT,
        "What to steer away from. Models with an unconditional embedding of their own (XL) use it where "
        "this is left out, and the text where it is given, even if empty.",
        also=["negative"],
        examples=["blurry, rain"],
    )
    styles: tuple[Name, ...] = field(
        Group.PROMPT,
        "Names of styles in the styles files, applied to the prompts in this order.",
        (),
        max_length=100,
        examples=[["Ink"]],
    )
    wildcards: bool = field(
        Group.PROMPT,
        "Treat prompts as templates: `{red|blue}` and `__animal__` are replaced by a choice that depends on "
        "the image's seed.",
        False,
    )
    loras: tuple[Lora, ...] = field(
        Group.PROMPT,
        "Adapters to apply, besides those that the prompt names as `<lora:name:0.8>`.",
        (),
        max_length=MAX_LORAS,
        examples=[[{"name": "ink", "weight": 0.8}]],
    )
    prompt_syntax: PromptSyntax = field(
        Group.PROMPT,
        "How prompts are read: `a1111` as AUTOMATIC1111's webui does, with `(emphasis:1.3)`, "
        "`[from:to:when]`, `BREAK` and `AND`; `literal` takes every character as text.",
        "a1111",
    )
    emphasis: Emphasis = field(
        Group.PROMPT,
        "How `(words:1.3)` are weighted: `original` keeps the mean of the embedding, `no_norm` does not, "
        "`ignore` drops the weights, `none` reads brackets as text.",
        "original",
    )
    clip_skip: Annotated[int, Field(ge=1, le=64)] = field(
        Group.PROMPT,
        "Layer of the text encoder to use, counted from the end as AUTOMATIC1111's webui does: 1 is the "
        "last.",
        1,
        also=["CLIP_stop_at_last_layers"],
    )

    width: Side | None = field(
        Group.IMAGE, "Width of the image. Default: the size that the model was trained on.", unit="pixels"
    )
    height: Side | None = field(
        Group.IMAGE, "Height of the image. Default: the size that the model was trained on.", unit="pixels"
    )
    num_images: Annotated[int, Field(ge=1, le=1000)] = field(
        Group.IMAGE,
        "Number of images. Each takes the next seed.",
        1,
        also=["num_images_per_prompt", "batch_size", "n_iter"],
    )
    seed: Seed | None = field(
        Group.IMAGE, "Seed of the first image. Default: a random one.", examples=[42], also=["noise_seed"]
    )
    variation_seed: Seed | None = field(
        Group.IMAGE,
        "Seed of a second noise that `variation_strength` mixes in. Further images then share `seed`, and "
        "each takes the next variation seed. Default: a random one.",
        also=["subseed"],
    )
    variation_strength: Fraction = field(
        Group.IMAGE,
        "How far the initial noise moves towards the noise of `variation_seed`.",
        0.0,
        also=["subseed_strength"],
    )
    noise: Literal["cpu", "gpu"] = field(
        Group.IMAGE,
        "Generator of the noise: `cpu`, or `gpu` for the noise that CUDA draws from the same seed, "
        "AUTOMATIC1111's default. Either gives the same noise on every device.",
        "cpu",
    )
    tiling: Tiling | None = field(
        Group.IMAGE, "Directions in which copies of the image join without a seam. Default: neither."
    )

    steps: Steps | None = field(
        Group.SAMPLING,
        "Number of sampling steps. Default: the model's, or 30.",
        also=["num_inference_steps"],
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = field(
        Group.SAMPLING,
        "Scale of classifier-free guidance: how closely to follow the prompt. From 1, at which guidance is "
        "off; for CFG++ samplers from 0 to 5. Default: the model's, or 7.5; 0.6 for CFG++.",
        also=["cfg", "cfg_scale"],
    )
    guidance_rescale: Fraction = field(
        Group.SAMPLING,
        "How far the guided prediction is rescaled to the standard deviation of the positive one (Lin et "
        "al. 2023).",
        0.0,
    )
    guidance_interval: tuple[float, float] | None = field(
        Group.SAMPLING,
        "Lowest and highest sigma at which guidance is on. Default: everywhere.",
        parts=["low", "high"],
        examples=[[0.3, 5.0]],
    )
    guidance_skip: Annotated[float, Field(ge=0, le=1000)] = field(
        Group.SAMPLING,
        "Sigma below which only every second step is guided.",
        0.0,
        also=["s_min_uncond"],
    )
    perp_neg: Annotated[float, Field(ge=0, le=100)] | None = field(
        Group.SAMPLING,
        "Weight of the negative prompt in Perp-Neg, which removes only its component perpendicular to the "
        "prompt. Default: ordinary guidance.",
    )
    sampler: SamplerName | None = field(
        Group.SAMPLING,
        "Sampler. Names of diffusers, AUTOMATIC1111 and ComfyUI are accepted, such as 'DPM++ 2M Karras'. "
        "Default: the model's.",
        also=["sampler_name"],
    )
    sigma_schedule: SigmaScheduleName | None = field(
        Group.SAMPLING,
        "Sigma schedule. Names of AUTOMATIC1111 and ComfyUI are accepted. `align_your_steps` is for SD 1 "
        "and XL. Default: the model's.",
        also=["scheduler"],
    )
    timestep_spacing: Spacing | None = field(
        Group.SAMPLING, "How the timesteps are spaced. Default: the model's."
    )
    eta: Fraction | None = field(
        Group.SAMPLING,
        "Fraction of fresh noise in samplers that add some. Default: 0 for DDIM and DPM fast, 0.3 for TCD, "
        "else 1.",
    )
    s_churn: Annotated[float, Field(ge=0, le=1000)] | None = field(
        Group.SAMPLING,
        "Total noise that `euler`, `heun` and `dpm2` add before their steps (Karras et al. 2022, algorithm "
        "2). Default: 0.",
    )
    s_tmin: Annotated[float, Field(ge=0)] | None = field(
        Group.SAMPLING, "Lowest sigma at which `s_churn` adds noise. Default: 0."
    )
    s_tmax: Annotated[float, Field(gt=0)] | None = field(
        Group.SAMPLING, "Highest sigma at which `s_churn` adds noise. Default: no limit."
    )
    s_noise: Annotated[float, Field(ge=0, le=10)] | None = field(
        Group.SAMPLING, "Factor on the noise that a sampler adds. Default: 1."
    )

    image: Source | None = field(
        Group.IMAGE_TO_IMAGE,
        "Image to start from: its path or a data URL. Models for inpainting, editing and depth need one.",
        also=["init_image", "init_images"],
        examples=["photo.png"],
    )
    strength: NonzeroFraction | None = field(
        Group.IMAGE_TO_IMAGE,
        "Denoising strength: how much of `image` is replaced. Default: 1 for inpainting models, else 0.8.",
        also=["denoise", "denoising_strength"],
    )
    image_guidance_scale: Annotated[float, Field(ge=1, le=100)] = field(
        Group.IMAGE_TO_IMAGE, "How closely an editing model (InstructPix2Pix) keeps to `image`.", 1.5
    )
    depth: Source | None = field(
        Group.IMAGE_TO_IMAGE, "Depth map for a depth model, lighter is nearer: its path or a data URL."
    )

    mask: Source | None = field(
        Group.INPAINTING,
        "Mask of `image`: white is regenerated, black keeps its pixels to the bit. Its path or a data URL.",
        also=["mask_image"],
    )
    mask_blur: Annotated[float, Field(ge=0, le=256)] = field(
        Group.INPAINTING, "Standard deviation of the blur of the mask's edges.", 4.0, unit="pixels"
    )
    inpaint_area: Literal["whole", "masked"] = field(
        Group.INPAINTING,
        "Area that is regenerated: the `whole` image, or only the surroundings of the mask (`masked`), which "
        "are scaled to `width` x `height`, and pasted back.",
        "whole",
        also=["inpaint_full_res"],
    )
    mask_padding: Annotated[int, Field(ge=0, le=1024)] = field(
        Group.INPAINTING,
        "Margin around the mask in `inpaint_area` `masked`.",
        32,
        unit="pixels",
        also=["inpaint_full_res_padding", "padding_mask_crop"],
    )
    extend: tuple[Margin, Margin, Margin, Margin] = field(
        Group.INPAINTING,
        "Margins to generate beyond the edges of `image` (outpainting).",
        (0, 0, 0, 0),
        unit="pixels",
        parts=["left", "top", "right", "bottom"],
        examples=[[0, 0, 128, 0]],
    )

    controls: tuple[Control, ...] = field(
        Group.CONTROL,
        "Control images, which guide the layout through a ControlNet or a T2I-Adapter.",
        (),
        max_length=32,
        examples=[[{"model": "sd15-canny", "image": "photo.png", "preprocessor": "canny"}]],
    )
    image_prompts: tuple[ImagePrompt, ...] = field(
        Group.CONTROL,
        "Images that act as part of the prompt, through an IP-Adapter.",
        (),
        max_length=32,
        also=["ip_adapter_image"],
        examples=[[{"model": "ip-adapter_sd15.safetensors", "images": ["cat.png"], "weight": 0.6}]],
    )

    hires_scale: Annotated[float, Field(ge=1, le=16)] | None = field(
        Group.HIRES,
        'Enlarge the image by this factor and denoise it again (AUTOMATIC1111\'s "hires. fix"). A refiner '
        "then takes over in this second pass.",
        also=["hr_scale"],
    )
    hires_width: Side | None = field(
        Group.HIRES,
        "Width of the hires pass. With `hires_height` left out, proportions are kept; with both, the excess "
        "is cropped.",
        unit="pixels",
        also=["hr_resize_x"],
    )
    hires_height: Side | None = field(
        Group.HIRES,
        "Height of the hires pass. With `hires_width` left out, proportions are kept.",
        unit="pixels",
        also=["hr_resize_y"],
    )
    hires_strength: NonzeroFraction | None = field(
        Group.HIRES, "Denoising strength of the hires pass. Default: 0.7."
    )
    hires_steps: Steps | None = field(
        Group.HIRES,
        "Number of steps of the hires pass, all of them within its strength. Default: as many as the first "
        "pass.",
        also=["hr_second_pass_steps"],
    )
    hires_upscaler: Upscaler | None = field(
        Group.HIRES,
        "How the image is enlarged: `latent` and its variants enlarge the latents, `lanczos` and `nearest` "
        "the decoded image. Default: `latent`.",
        also=["hr_upscaler"],
    )
    hires_sampler: SamplerName | None = field(
        Group.HIRES,
        "Sampler of the hires pass, by any name that `sampler` accepts. Default: as in the first pass.",
        also=["hr_sampler_name"],
    )
    hires_sigma_schedule: SigmaScheduleName | None = field(
        Group.HIRES,
        "Sigma schedule of the hires pass. Default: as in the first pass.",
        also=["hr_scheduler"],
    )
    hires_prompt: Prompt | None = field(
        Group.HIRES,
        "Prompt of the hires pass. If it names LoRAs, they replace those of the first pass. Default: as in "
        "the first pass.",
        also=["hr_prompt"],
    )
    hires_negative_prompt: Prompt | None = field(
        Group.HIRES,
        "Negative prompt of the hires pass. Default: as in the first pass.",
        also=["hr_negative_prompt"],
    )

    refiner: Name | None = field(
        Group.XL,
        "Model that takes over during sampling, such as XL's refiner: given like `model`.",
        also=["refiner_checkpoint"],
    )
    refiner_start: Annotated[float, Field(gt=0, lt=1)] | None = field(
        Group.XL,
        "Fraction of the steps after which `refiner` takes over.",
        also=["refiner_switch_at", "denoising_end"],
    )
    original_size: Pair | None = field(
        Group.XL,
        "Original size that XL is conditioned on. Default: the image's own.",
        unit="pixels",
        parts=["height", "width"],
    )
    target_size: Pair | None = field(
        Group.XL,
        "Target size that XL is conditioned on. Default: the image's own.",
        unit="pixels",
        parts=["height", "width"],
    )
    crop: Pair = field(
        Group.XL,
        "Crop offset that XL is conditioned on.",
        (0, 0),
        unit="pixels",
        parts=["top", "left"],
        also=["crops_coords_top_left"],
    )
    aesthetic_score: Annotated[float, Field(ge=0, le=10)] = field(
        Group.XL, "Aesthetic score that XL's refiner is conditioned on.", 6.0
    )
    negative_aesthetic_score: Annotated[float, Field(ge=0, le=10)] = field(
        Group.XL, "Aesthetic score of the negative conditioning of XL's refiner.", 2.5
    )

    model: Name = field(
        Group.MODEL,
        "Model: `picturebook`, a folder, a .safetensors file, or a hub id: organisation/name.",
        "picturebook",
        also=["sd_model_checkpoint", "ckpt_name"],
    )
    revision: str | None = field(Group.MODEL, "Branch, tag or commit of `model` on the hub.")
    variant: str | None = field(Group.MODEL, "Variant of the weight files.", examples=["fp16"])

    speed: SpeedName = field(
        Group.SPEED,
        "Preset: `balanced` and `fast` reuse features and end guidance early, which is faster and changes "
        "the image a little; `exact` runs every layer at every step (unrelated to the field `exact`).",
        "exact",
    )
    exact: bool = field(
        Group.SPEED,
        "Compute each image alone, so that its bits cannot depend on what shares a batch with it. Slower. "
        "Unrelated to the preset `exact` of `speed`.",
        False,
    )
    vae_tiling: bool = field(
        Group.SPEED, "Encode and decode images in tiles, which takes less memory.", False
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """The fields in this version's form: tuples for lists, Limner's names for those of other programs."""
        if not isinstance(given, Mapping):
            return given
        fields = {
            name: tuple(value) if name in _TUPLES and isinstance(value, list) else value
            for name, value in given.items()
        }
        check_version(fields.pop("schema_version", "1.0"), fields, cls.model_fields)
        try:
            return {**fields, **with_own_names(fields)}
        except InvalidRequest as error:
            raise invalid_fields(error.message, error.hint) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (
            self.guidance_interval is not None
            and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]
        ):
            raise ValueError(
                f"guidance_interval is {self.guidance_interval}; expected two sigmas, the lower one first"
            )
        if self.seed is not None and self.seed + self.num_images - 1 > MAX_SEED:
            raise ValueError(
                f"seed {self.seed} and {self.num_images} images pass the largest seed {MAX_SEED}"
            )
        if (self.refiner is None) != (self.refiner_start is None):
            raise ValueError("refiner and refiner_start go together: give both or neither")
        if self.variation_seed is not None and not self.variation_strength:
            raise ValueError("variation_seed has no effect without a variation_strength")
        sized = self.hires_width is not None or self.hires_height is not None
        if self.hires_scale is not None and sized:
            raise ValueError("hires_scale and a hires_width or hires_height say the same: give one of them")
        names = [f"hires_{name}" for name in (*_IN_SECOND_PASS, "strength", "upscaler")]
        idle = [name for name in names if getattr(self, name) is not None]
        if idle and not self.has_second_pass:
            raise ValueError(
                f"there is no second pass for {' and '.join(idle)}: give a hires_scale, a hires_width or a "
                "hires_height"
            )
        if self.guidance_scale is not None:
            given = f"guidance_scale is {self.guidance_scale}"
            cfg_pp = self.sampler is not None and SAMPLER_TABLE[self.sampler].cfg_pp
            if cfg_pp and self.guidance_scale > 5.0:
                raise ValueError(f"{given}; {self.sampler} takes 0 to 5, 0.6 for what is 7.5 elsewhere")
            if not cfg_pp and self.guidance_scale < 1.0:
                raise ValueError(f"{given}; expected at least 1, or a sampler of CFG++")
            if self.hires_sampler is not None and SAMPLER_TABLE[self.hires_sampler].cfg_pp != cfg_pp:
                raise ValueError("of sampler and hires_sampler one is of CFG++, whose scale is another")
        if self.perp_neg is not None and self.negative_prompt is None:
            raise ValueError("perp_neg weighs the negative prompt, but there is none")
        if not self.s_churn and (self.s_tmin is not None or self.s_tmax is not None):
            raise ValueError("s_tmin and s_tmax have no effect without an s_churn")
        if self.s_tmin is not None and self.s_tmax is not None and self.s_tmin > self.s_tmax:
            raise ValueError(
                f"s_tmin is {self.s_tmin} and s_tmax {self.s_tmax}; expected the lower one first"
            )
        return self

    def of_picture(self, index: int) -> Self:
        """Of a resolved request, the one for its image `index`, from 0."""
        assert self.seed is not None
        seeds: dict[str, Any] = {"seed": self.seed + index}
        if self.variation_strength:
            assert self.variation_seed is not None
            seeds = {"variation_seed": self.variation_seed + index}
        return self.model_copy(update={**seeds, "num_images": 1})

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that it gives: also the negative one, and those of the second pass."""
        given = (self.prompt, self.negative_prompt, self.hires_prompt, self.hires_negative_prompt)
        return tuple(text for text in given if text is not None)

    @property
    def has_second_pass(self) -> bool:
        """Whether there is a hires pass."""
        return any(size is not None for size in (self.hires_scale, self.hires_width, self.hires_height))

    @property
    def hires_size(self) -> tuple[int, int] | None:
        """Of a resolved request, width and height of the second pass; None if there is none."""
        if not self.has_second_pass:
            return None
        assert self.width is not None
        assert self.height is not None
        width, height = self.hires_width, self.hires_height
        if self.hires_scale is not None:
            width, height = int(self.hires_scale * self.width), int(self.hires_scale * self.height)
        elif height is None:
            assert width is not None
            height = width * self.height // self.width
        elif width is None:
            width = height * self.width // self.height
        assert width is not None
        assert height is not None
        return width // 8 * 8, height // 8 * 8

    def of_second_pass(self) -> Self | None:
        """Of a resolved request, one for an image like its second pass; None if there is none."""
        size = self.hires_size
        if size is None:
            return None
        own = {name: getattr(self, f"hires_{name}") for name in _IN_SECOND_PASS}
        update: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        update |= {name: None for name in type(self).model_fields if name.startswith("hires_")}
        return self.model_copy(update={**update, "width": size[0], "height": size[1], "strength": None})

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Build a request from fields. As in JSON, a list may stand for a tuple.

        Raises:
            InvalidRequest: names each field at fault, its value and what is expected.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid_request(error, cls.model_fields) from None

    @classmethod
    def read_texts(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """The fields that texts give, as in a table: "7.5" is a number, "0.3 5" an interval, "one, another"
        two styles.

        Raises:
            InvalidRequest: as `of`.
        """
        given = {name: parts_of(name, text) if name in _TUPLES else text for name, text in texts.items()}
        try:
            return cls.model_validate(given, strict=False).model_dump(exclude_unset=True)
        except ValidationError as error:
            raise invalid_request(error, cls.model_fields) from None

    @classmethod
    def read_text(cls, name: str, text: str) -> Any:
        """The value of one field, read as by `read_texts` but not checked against other fields.

        Raises:
            InvalidRequest: the text is no value of this field.
        """
        field = cls.model_fields[name]
        kind: Any = Annotated[field.annotation, field]
        given = with_own_names({name: parts_of(name, text) if name in _TUPLES else text})[name]
        try:
            return TypeAdapter(kind).validate_python(given)
        except ValidationError as error:
            raise invalid_request(error, cls.model_fields, name) from None


_IN_SECOND_PASS = ("steps", "sampler", "sigma_schedule", "prompt", "negative_prompt")  # as hires_steps …
_TUPLES = {
    name
    for name, info in GenerationRequest.model_fields.items()
    if any(get_origin(kind) is tuple for kind in (info.annotation, *get_args(info.annotation)))
}
