"""What is asked for: one schema for Python, the command line, HTTP, metadata and audit.

A field left at None takes the model's own default; `Model.resolve` fills them all in, so that the request
stored with a picture says everything that drew it.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from limner.errors import InvalidRequest
from limner.prompts.chunks import Emphasis, PromptSyntax
from limner.prompts.names import own_names, own_upscaler

MAX_SEED = 2**53 - 1  # the largest integer that JSON carries everywhere without loss
NEW_SEEDS = 2**32 - 2**10  # drawn by lot below it, all seeds of a request have the 32 bits that torch reads

SamplerName = Literal[
    "ddim",
    "ddpm",
    "euler",
    "euler_a",
    "heun",
    "heunpp2",
    "restart",
    "dpm2",
    "dpm2_a",
    "lms",
    "deis",
    "pndm",
    "ipndm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "dpmpp_2s",
    "dpmpp_2s_a",
    "dpmpp_sde",
    "dpm_fast",
    "dpm_adaptive",
    "unipc",
    "unipc_bh1",
    "unipc_bh2",
    "res_multistep",
    "gradient_estimation",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "lcm",
    "tcd",
    "ddim_cfg_pp",
    "euler_cfg_pp",
    "euler_a_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2s_a_cfg_pp",
]
SigmaScheduleName = Literal[
    "uniform",
    "karras",
    "exponential",
    "polyexponential",
    "beta",
    "kl_optimal",
    "normal",
    "simple",
    "sgm_uniform",
    "ddim_uniform",
    "align_your_steps",
]
Spacing = Literal["leading", "linspace", "trailing"]
SpeedName = Literal["exact", "balanced", "fast"]
Upscaler = Literal[
    "latent",
    "latent_antialiased",
    "latent_bicubic",
    "latent_bicubic_antialiased",
    "latent_nearest",
    "latent_nearest_exact",
    "lanczos",
    "nearest",
]
Tiling = Literal["x", "y", "xy"]

MIN_SIDE, MAX_SIDE = 64, 4096  # of a picture, in pixels

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]
Pair = tuple[Annotated[int, Field(ge=0, le=16_384)], Annotated[int, Field(ge=0, le=16_384)]]
Room = Annotated[int, Field(ge=0, le=2048, multiple_of=8)]
Source = Annotated[str, Field(min_length=1, max_length=64 << 20)]
Share = Annotated[float, Field(ge=0, le=1)]
Prompt = Annotated[str, Field(max_length=65_536)]


class Lora(BaseModel):
    """An adapter that changes a model's weights for one request: a LoRA, or another of its kin.

    Attributes:
        name: of a file in the folders of LoRA files, without its suffix, or a path.
        weight: of its effect on the U-Net; 0 is none, and below 0 is away from it.
        text_weight: of its effect on the text encoders; None is the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    weight: Annotated[float, Field(ge=-100, le=100)] = 1.0
    text_weight: Annotated[float, Field(ge=-100, le=100)] | None = None

    @property
    def for_text(self) -> float:
        """The weight for the text encoders."""
        return self.weight if self.text_weight is None else self.text_weight

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        """ "name", "name:0.8" or "name:0.8:0.5", the U-Net's weight first."""
        if not isinstance(given, str):
            return given
        match = re.fullmatch(r"(.+?)(?::([-+.\d]+))?(?::([-+.\d]+))?", given, re.DOTALL)
        if match is None:
            raise ValueError("expected a name, and perhaps a weight: name:0.8")
        try:
            weights = [float(number) for number in match.groups()[1:] if number is not None]
        except ValueError:
            raise ValueError("its weight is no number; expected name:0.8") from None
        return dict(zip(("name", "weight", "text_weight"), (match[1], *weights), strict=False))


class _ForSomeSteps(BaseModel):
    """What holds for some of the steps: between the shares `start` and `end` of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    start: Share = 0.0
    end: Share = 1.0

    def holds_at(self, step: int, steps: int) -> bool:
        """Whether it does at a step, from 1, of so many."""
        return self.start <= (step - 1) / steps and step / steps <= self.end

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start is {self.start} and end {self.end}; expected the lower one first")
        return self

    @classmethod
    def _fields_in(cls, text: str, repeated: str = "") -> dict[str, Any]:
        """The fields that a text names, in any order: "model=…,image=…,weight=0.8".

        Args:
            text: a comma and a name with its = begin a field, so that values may have commas in them.
            repeated: the field that stands for one element of the tuple in its plural.

        Raises:
            ValueError: another field, a field given twice, or a number that is none.
        """
        names = [repeated if name == f"{repeated}s" else name for name in cls.model_fields]
        fields: dict[str, Any] = {}
        for part in re.split(r",\s*(?=[a-z_]+=)", text):
            name, sign, value = part.partition("=")
            if not sign or name not in names:
                raise ValueError(f"{part!r} is no field with its value; expected {'=…, '.join(names)}=…")
            if name == repeated:
                fields[f"{name}s"] = (*fields.get(f"{name}s", ()), value)
            elif name in fields:
                raise ValueError(f"{name} is given twice")
            elif cls.model_fields[name].annotation is float:
                try:
                    fields[name] = float(value)
                except ValueError:
                    raise ValueError(f"{name} is {value!r}; expected a number") from None
            else:
                fields[name] = value
        return fields


class Control(_ForSomeSteps):
    """A picture that says where things are to be, through a ControlNet or a T2I-Adapter.

    Attributes:
        model: the network: its folder, its file, or a hub id.
        image: a picture, by its path or a data URL.
        preprocessor: what makes of it what the network was trained on, such as "canny"; "none" where the
            picture is that already.
        weight: of what the network adds.
        start, end: the shares of the steps between which it does.
        mode: "balanced"; "prompt", where the prompt decides more, as the weight falls off towards the outer
            layers; or "guess", where the picture does, as only what is drawn towards is steered.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    image: Source
    preprocessor: Annotated[str, Field(min_length=1, max_length=64)] = "none"
    weight: Annotated[float, Field(ge=0, le=10)] = 1.0
    mode: Literal["balanced", "prompt", "guess"] = "balanced"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        """ "model=…,image=…,weight=0.8": fields in any order."""
        return cls._fields_in(given) if isinstance(given, str) else given


class ImagePrompt(_ForSomeSteps):
    """Pictures that stand beside the prompt, through an IP-Adapter.

    Attributes:
        model: the adapter: its file, or that of a repository on the hub, organisation/name:folder/file.
        images: pictures, by their paths or data URLs.
        weight: of what they add to the prompt.
        start, end: the shares of the steps between which they do.
        image_encoder: that the adapter was trained with: a folder, or one of a repository on the hub. None is
            `image_encoder` beside the adapter, or `models/image_encoder` beside its folder.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    images: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)]
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    image_encoder: Annotated[str, Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        """ "model=…,image=…,image=…,weight=0.6": fields in any order."""
        if isinstance(given, Mapping):
            images = given.get("images")
            return {**given, "images": tuple(images)} if isinstance(images, list) else given
        return cls._fields_in(given, repeated="image") if isinstance(given, str) else given


class GenerationRequest(BaseModel):
    """A request for one or more pictures.

    Attributes:
        prompt: what to draw, in AUTOMATIC1111's emphasis syntax unless `prompt_syntax` is "literal".
        negative_prompt: what to steer away from. None and "" differ for models that were trained
            with an empty conditioning of their own (XL).
        model: "picturebook", a folder, or a hub id such as "org/name".
        revision: branch, tag or commit on the hub.
        variant: of the weight files on the hub, such as "fp16".
        width, height: in pixels, 64 to 4096, multiples of 8.
        steps: sampler steps.
        guidance_scale: of classifier-free guidance, 1 to 100; at 1 the negative prompt is not evaluated. With
            samplers of CFG++ 0 to 5, of which the paper uses 0 to 1, and None is 0.6.
        guidance_rescale: 0 to 1, how far the guided prediction keeps the contrast of the conditional
            one (Lin et al. 2023).
        guidance_interval: lowest and highest sigma at which guidance is on; None is everywhere.
        guidance_skip: below this sigma, every second step is not guided; 0 is nowhere.
        perp_neg: the weight of the negative prompt if it is to take away only what it does not share with the
            prompt (Perp-Neg); None lets it take away all of itself.
        sampler, sigma_schedule, timestep_spacing: None is what the checkpoint's own config names.
        eta: the share of fresh noise, 0 to 1, in samplers that add some. None is the sampler's own: 0 in
            DDIM and DPM fast, 0.3 in TCD, else 1.
        s_churn, s_tmin, s_tmax: how much noise euler, heun and dpm2 add before their steps, all together, and
            between which sigmas (Karras et al. 2022, algorithm 2). None is 0, and everywhere.
        s_noise: a factor on the noise that a sampler adds.
        seed: of the first picture; the following ones take seed + 1, seed + 2, … None draws one.
        noise: "cpu", or "gpu" for the noise that CUDA GPUs draw from the same seed, which is AUTOMATIC1111's
            default. Either is the same on every device.
        variation_seed, variation_strength: of another noise, and how far towards it the first noise goes, 0
            to 1. Above 0, further pictures take variation_seed + 1, … and all the same seed.
        num_images: how many pictures.
        clip_skip: 1 takes the text encoder's last layer, 2 the one before it, as AUTOMATIC1111 counts.
        prompt_syntax: "a1111" or "literal" for none.
        emphasis: what becomes of weighed words: "original" keeps the mean of all, "no_norm" does not,
            "ignore" leaves weights out, "none" reads brackets as words.
        styles: names in files of styles, whose phrases are put around the prompts in this order.
        wildcards: the prompts are templates: `{red|blue}` and `__animal__` are chosen by each picture's seed.
        loras: adapters, beside those that the prompt names as <lora:name:0.8>.
        controls: pictures that say where things are to be.
        image_prompts: pictures that stand beside the prompt.
        image: a picture to begin with: its path or a data URL. Models for inpainting, editing or depth maps
            need one.
        strength: how much of it is drawn anew, 0 to 1; None is all of it for models that are made for
            inpainting, and 0.8 for others.
        mask: a picture that is white where it is to be drawn anew; where it is black, pixels keep their bits.
        mask_blur: standard deviation, in pixels, by which its edges are softened.
        inpaint_area: "whole" draws the whole picture; "masked" only what lies around the mask, at width x
            height, and puts it back.
        mask_padding: pixels around the mask, for "masked".
        extend: pixels to draw beyond the left, top, right and bottom of the picture.
        depth: a depth map, the nearer the whiter, for a model that takes one.
        image_guidance_scale: how closely an editing model keeps to the picture.
        original_size, target_size: height and width that XL is told; None is the picture's own.
        crop: top and left that XL is told.
        aesthetic_score, negative_aesthetic_score: that the refiner of XL is told, 0 to 10.
        refiner: a model that takes over on the way, such as the refiner of XL.
        refiner_start: the share of the steps after which it does.
        hires_scale: enlarge the picture so many times, and draw it again from a part of the noise
            (AUTOMATIC1111's "hires. fix"). A refiner takes over in this second pass.
        hires_width, hires_height: the same, to this size. One of them keeps the proportions; with both, what
            stands over is cut off.
        hires_strength: the part of the noise, 0 to 1; None is 0.7.
        hires_steps: of the second pass, all of them within that part; None is as many as the first has.
        hires_upscaler: what enlarges: "latent" and its kin the latents, "lanczos" and "nearest" the decoded
            picture. None is "latent".
        hires_sampler, hires_sigma_schedule: of the second pass; None is as in the first.
        hires_prompt, hires_negative_prompt: likewise. If hires_prompt names LoRAs, there are no others then.
        tiling: the directions in which copies of the picture join without a seam: "x", "y" or "xy".
        vae_tiling: encode and decode pictures in tiles also where the memory suffices for the whole.
        speed: "balanced" and "fast" change the picture a little to draw it sooner.
        exact: the picture's bits do not depend on what else is drawn at the same time, which costs speed.
            Without it, company changes the rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    prompt: Prompt
    negative_prompt: Prompt | None = None
    model: Annotated[str, Field(min_length=1, max_length=4096)] = "picturebook"
    revision: str | None = None
    variant: str | None = None
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    guidance_interval: tuple[float, float] | None = None
    guidance_skip: Annotated[float, Field(ge=0, le=1000)] = 0.0
    perp_neg: Annotated[float, Field(ge=0, le=100)] | None = None
    sampler: SamplerName | None = None
    sigma_schedule: SigmaScheduleName | None = None
    timestep_spacing: Spacing | None = None
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    s_churn: Annotated[float, Field(ge=0, le=1000)] | None = None
    s_tmin: Annotated[float, Field(ge=0)] | None = None
    s_tmax: Annotated[float, Field(gt=0)] | None = None
    s_noise: Annotated[float, Field(ge=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    noise: Literal["cpu", "gpu"] = "cpu"
    variation_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    variation_strength: Annotated[float, Field(ge=0, le=1)] = 0.0
    num_images: Annotated[int, Field(ge=1, le=1000)] = 1
    clip_skip: Annotated[int, Field(ge=1, le=64)] = 1
    prompt_syntax: PromptSyntax = "a1111"
    emphasis: Emphasis = "original"
    styles: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = ()
    wildcards: bool = False
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    image: Source | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    mask: Source | None = None
    mask_blur: Annotated[float, Field(ge=0, le=256)] = 4.0
    inpaint_area: Literal["whole", "masked"] = "whole"
    mask_padding: Annotated[int, Field(ge=0, le=1024)] = 32
    extend: tuple[Room, Room, Room, Room] = (0, 0, 0, 0)
    depth: Source | None = None
    image_guidance_scale: Annotated[float, Field(ge=1, le=100)] = 1.5
    original_size: Pair | None = None
    target_size: Pair | None = None
    crop: Pair = (0, 0)
    aesthetic_score: Annotated[float, Field(ge=0, le=10)] = 6.0
    negative_aesthetic_score: Annotated[float, Field(ge=0, le=10)] = 2.5
    refiner: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    refiner_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    hires_scale: Annotated[float, Field(ge=1, le=16)] | None = None
    hires_width: Side | None = None
    hires_height: Side | None = None
    hires_strength: Annotated[float, Field(gt=0, le=1)] | None = None
    hires_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    hires_upscaler: Upscaler | None = None
    hires_sampler: SamplerName | None = None
    hires_sigma_schedule: SigmaScheduleName | None = None
    hires_prompt: Prompt | None = None
    hires_negative_prompt: Prompt | None = None
    tiling: Tiling | None = None
    vae_tiling: bool = False
    speed: SpeedName = "exact"
    exact: bool = False

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
            cfg_pp = self.sampler is not None and self.sampler.endswith("_cfg_pp")
            if cfg_pp and self.guidance_scale > 5.0:
                raise ValueError(f"{given}; {self.sampler} takes 0 to 5, 0.6 for what is 7.5 elsewhere")
            if not cfg_pp and self.guidance_scale < 1.0:
                raise ValueError(f"{given}; expected at least 1, or a sampler of CFG++")
            if self.hires_sampler is not None and self.hires_sampler.endswith("_cfg_pp") != cfg_pp:
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
        """Of a resolved request, the one for its picture `index`, from 0."""
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
        """Whether the picture is enlarged and drawn again."""
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
        """Of a resolved request, one for a picture like its second pass; None if there is none."""
        size = self.hires_size
        if size is None:
            return None
        own = {name: getattr(self, f"hires_{name}") for name in _IN_SECOND_PASS}
        update: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        update |= {name: None for name in type(self).model_fields if name.startswith("hires_")}
        return self.model_copy(update={**update, "width": size[0], "height": size[1], "strength": None})

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Build a request from fields, which may come from JSON: a list stands for a tuple.

        Samplers and sigma schedules are known by the names of diffusers, AUTOMATIC1111 and ComfyUI too:
        "DPM++ 2M Karras" is both.

        Raises:
            InvalidRequest: naming each field at fault, what it was given and what it expects.
        """
        given = {
            name: tuple(value) if name in _TUPLES and isinstance(value, list) else value
            for name, value in fields.items()
        }
        try:
            return cls.model_validate(_under_own_names(given))
        except ValidationError as error:
            raise _refusal(error) from None

    @classmethod
    def read_texts(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """The fields that texts stand for, as in a table: "7.5" for a number, "0.3 5" for an interval, "one,
        another" for styles.

        Raises:
            InvalidRequest: as `of`.
        """
        given = {name: parts_of(name, text) if name in _TUPLES else text for name, text in texts.items()}
        try:
            named = _under_own_names(given)
            return cls.model_validate(named, strict=False).model_dump(exclude_unset=True)
        except ValidationError as error:
            raise _refusal(error) from None

    @classmethod
    def read_text(cls, name: str, text: str) -> Any:
        """The value of one field that a text stands for, as `read_texts`, whatever other fields it goes with.

        Raises:
            InvalidRequest: it stands for none.
        """
        field = cls.model_fields[name]
        kind: Any = Annotated[field.annotation, field]
        given = _under_own_names({name: parts_of(name, text) if name in _TUPLES else text})[name]
        try:
            return TypeAdapter(kind).validate_python(given)
        except ValidationError as error:
            raise _refusal(error, name) from None


_IN_SECOND_PASS = ("steps", "sampler", "sigma_schedule", "prompt", "negative_prompt")  # as hires_steps …
_TUPLES = (
    "guidance_interval",
    "original_size",
    "target_size",
    "crop",
    "styles",
    "loras",
    "controls",
    "image_prompts",
    "extend",
)
# What parts the elements of a tuple in a table, where it is not blanks: names of styles have blanks in them.
_BETWEEN_ITEMS = re.compile(r";\s*(?=[a-z_]+=)")
_BETWEEN = {
    "styles": re.compile(r"\s*,\s*"),
    "controls": _BETWEEN_ITEMS,
    "image_prompts": _BETWEEN_ITEMS,
}


def parts_of(name: str, text: str) -> tuple[str, ...]:
    """The elements of a field that is a tuple, as a text in a table says them."""
    return tuple(_BETWEEN[name].split(text.strip()) if name in _BETWEEN else text.split())


def _under_own_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(fields)
    for prefix in ("", "hires_"):
        names = {
            name: fields[prefix + name]
            for name in ("sampler", "sigma_schedule")
            if isinstance(fields.get(prefix + name), str)
        }
        own |= {prefix + name: value for name, value in own_names(**names, prefix=prefix).items()}
    if isinstance(fields.get("hires_upscaler"), str):
        own["hires_upscaler"] = own_upscaler(fields["hires_upscaler"])
    return own


def _refusal(error: ValidationError, *field: str) -> InvalidRequest:
    """What is wrong with a request, or with one field of it."""
    faults = []
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        where = (*field, *fault["loc"])
        if not where:
            faults.append(message)
            continue
        given = repr(fault["input"])
        shown = given if len(given) <= 60 else f"{given[:57]}…"
        name = ".".join(map(str, where))
        if fault["type"] == "extra_forbidden":
            faults.append(f"{name} is not a field of a request")
        elif fault["type"] == "missing":
            faults.append(f"{name} is missing")
        else:
            faults.append(f"{name} is {shown}: {message[0].lower()}{message[1:]}")
    return InvalidRequest("; ".join(faults), hint=_advice(error))


# What diffusers, AUTOMATIC1111 and ComfyUI call some fields.
_ELSEWHERE = {
    "num_inference_steps": "steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "num_images_per_prompt": "num_images",
    "batch_size": "num_images",
    "sampler_name": "sampler",
    "scheduler": "sigma_schedule",
    "denoise": "strength",
    "denoising_strength": "strength",
    "mask_image": "mask",
    "negative": "negative_prompt",
}


def _advice(error: ValidationError) -> str:
    """What to do about a refused request: about the one fault that it has, where that is plain."""
    [fault, *others] = error.errors(include_url=False)
    name = fault["loc"][-1] if fault["loc"] and not others else None
    if name in ("width", "height") and fault["type"] == "multiple_of" and int(fault["input"]) > MIN_SIDE:
        unit = fault["ctx"]["multiple_of"]
        below = int(fault["input"]) // unit * unit
        return f"the nearest are {below} and {below + unit}"
    if name in ("seed", "variation_seed") and fault["type"] == "greater_than_equal":
        return "leave it out, and one is drawn at random"
    if fault["type"] == "extra_forbidden" and isinstance(name, str):
        near = get_close_matches(_ELSEWHERE.get(name, name), GenerationRequest.model_fields, 1)
        if near:
            return f"did you mean {near[0]}?"
    return "`limner generate --help` lists the fields"
