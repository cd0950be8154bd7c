"""The bodies of txt2img and img2img, read as leniently as AUTOMATIC1111 reads them.

Every field says how it is handled:

- honoured: it reaches the image or its delivery;
- without effect: it is accepted, and where it asks for something else than is done, `info` names it;
- refused: anything but its default is an error that names it.

docs/guides/webui-api.md has the same table.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Handling = Literal["honoured", "without effect", "refused"]
HANDLINGS: tuple[Handling, ...] = get_args(Handling)


def _whole(value: Any) -> Any:
    """An integer as pydantic 1 reads it: 12.5 and "12.0" are 12."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return value  # which is then refused with pydantic's own message
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return value


Int = Annotated[int, BeforeValidator(_whole)]


def _field(default: Any, handling: Handling, note: str) -> Any:
    """A field with its default in AUTOMATIC1111, its handling, and the counterpart or the reason."""
    return Field(default, description=note, json_schema_extra={"handling": handling})


def honoured(default: Any, note: str) -> Any:
    """A field that reaches the image or its delivery."""
    return _field(default, "honoured", note)


def without_effect(default: Any, note: str) -> Any:
    """A field that is accepted and changes nothing."""
    return _field(default, "without effect", note)


def refused(default: Any, note: str) -> Any:
    """A field of which only the default is accepted."""
    return _field(default, "refused", note)


class Body(BaseModel):
    """A body of the API: null means the default, numbers may be texts, unknown fields are left out."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def handling(cls) -> dict[str, tuple[Handling, str]]:
        """Each field's handling and its note."""
        found: dict[str, tuple[Handling, str]] = {}
        for name, info in cls.model_fields.items():
            extra = info.json_schema_extra
            assert isinstance(extra, dict)
            found[name] = extra["handling"], info.description or ""  # type: ignore[assignment]
        return found


class GenerationBody(Body):
    """The fields that txt2img and img2img share."""

    prompt: str = honoured("", "`prompt`")
    negative_prompt: str = honoured("", "`negative_prompt`")
    styles: list[str] | None = honoured(None, '`styles`; entries "None" mean nothing')
    seed: Int = honoured(-1, "`seed`; -1 is a random one")
    subseed: Int = honoured(-1, "`variation_seed`; -1 is a random one")
    subseed_strength: float = honoured(0.0, "`variation_strength`")
    seed_resize_from_h: Int = refused(-1, "noise of another size is not made; 0 and -1 mean off")
    seed_resize_from_w: Int = refused(-1, "noise of another size is not made; 0 and -1 mean off")
    sampler_name: str | None = honoured(None, "`sampler`; an ending such as Karras is the scheduler")
    sampler_index: str = honoured("Euler", "`sampler`, where `sampler_name` is not given")
    scheduler: str | None = honoured(None, "`sigma_schedule`; Automatic is the sampler's own")
    batch_size: Int = honoured(1, "`num_images`, together with `n_iter`")
    n_iter: Int = honoured(1, "`num_images`, together with `batch_size`")
    steps: Int = honoured(50, "`steps`; left out: the model's own, else 50")
    cfg_scale: float = honoured(7.0, "`guidance_scale`; left out: the model's own, else 7")
    width: Int = honoured(512, "`width`, cut to a multiple of 8; left out: the model's own")
    height: Int = honoured(512, "`height`, cut to a multiple of 8; left out: the model's own")
    restore_faces: bool | None = without_effect(None, "there is no face restoration")
    tiling: bool | None = honoured(None, "`tiling`, in both directions")
    do_not_save_samples: bool = without_effect(
        False, "images are kept as long as the server's retention says"
    )
    do_not_save_grid: bool = without_effect(False, "no grid is made")
    eta: float | None = honoured(None, "`eta`, where the sampler takes one")
    denoising_strength: float | None = honoured(0.75, "`hires_strength` in txt2img, `strength` in img2img")
    s_min_uncond: float | None = honoured(None, "`guidance_skip`")
    s_churn: float | None = honoured(None, "`s_churn`, where the sampler takes one")
    s_tmax: float | None = honoured(None, "`s_tmax`; 0 is no limit")
    s_tmin: float | None = honoured(None, "`s_tmin`")
    s_noise: float | None = honoured(None, "`s_noise`, where the sampler takes one")
    override_settings: dict[str, Any] | None = honoured(None, "options of this request; see the next table")
    override_settings_restore_afterwards: bool = honoured(
        True, "false: the options given are kept for the account"
    )
    refiner_checkpoint: str | None = honoured(None, "`refiner`")
    refiner_switch_at: float | None = honoured(None, "`refiner_start`")
    disable_extra_networks: bool = honoured(False, "tags such as `<lora:…>` are read as text")
    firstpass_image: str | None = refused(None, "a hires pass begins with its own first pass")
    comments: dict[str, Any] | None = without_effect(None, "comments are not written into the image")
    script_name: str | None = refused(None, "there are no selectable scripts")
    script_args: list[Any] = without_effect([], "there are no selectable scripts")
    send_images: bool = honoured(True, "false: `images` is empty; the images are in the native API")
    save_images: bool = without_effect(False, "images are kept as long as the server's retention says")
    alwayson_scripts: dict[str, Any] = honoured(
        {}, "ControlNet, Refiner, Seed and Sampler; others only if they are switched off"
    )
    force_task_id: str | None = honoured(None, "name of the request in `/internal/progress`")
    infotext: str | None = honoured(None, "its fields count where the request does not give them")
    clip_skip: Int | None = honoured(None, "`clip_skip` (a field of SD.Next)")


class Txt2ImgBody(GenerationBody):
    """The body of txt2img."""

    enable_hr: bool = honoured(False, "a hires pass; without it, the fields below mean nothing")
    firstphase_width: Int = honoured(0, "`width`, and the given `width` is that of the hires pass")
    firstphase_height: Int = honoured(0, "`height`, and the given `height` is that of the hires pass")
    hr_scale: float = honoured(2.0, "`hires_scale`")
    hr_upscaler: str | None = honoured(None, "`hires_upscaler`: the latent modes, Lanczos and Nearest")
    hr_second_pass_steps: Int = honoured(0, "`hires_steps`; 0: as many as `steps`")
    hr_resize_x: Int = honoured(0, "`hires_width`")
    hr_resize_y: Int = honoured(0, "`hires_height`")
    hr_checkpoint_name: str | None = refused(
        None, "both passes have one model; the request's own and `Use same checkpoint` are accepted"
    )
    hr_sampler_name: str | None = honoured(None, "`hires_sampler`")
    hr_scheduler: str | None = honoured(None, "`hires_sigma_schedule`")
    hr_prompt: str = honoured("", "`hires_prompt`")
    hr_negative_prompt: str = honoured("", "`hires_negative_prompt`")


class Img2ImgBody(GenerationBody):
    """The body of img2img."""

    init_images: list[str] | None = honoured(None, "`image`; one image")
    resize_mode: Int = honoured(0, "0 stretches, 1 crops, 2 fills the edges; 3 is done as 0, and named")
    image_cfg_scale: float | None = honoured(None, "`image_guidance_scale`, with models for editing")
    mask: str | None = honoured(None, "`mask`")
    mask_blur: Int | None = honoured(None, "`mask_blur`")
    mask_blur_x: Int = honoured(4, "`mask_blur`; another value than `mask_blur_y` is applied before")
    mask_blur_y: Int = honoured(4, "`mask_blur`; another value than `mask_blur_x` is applied before")
    mask_round: bool = without_effect(True, "the mask is never rounded")
    inpainting_fill: Int = honoured(
        0, "0 fills the masked part from its edges, 1 keeps it; 2 (noise) and 3 (nothing) are done in pixels"
    )
    inpaint_full_res: bool = honoured(True, "`inpaint_area`: true is masked, false is whole")
    inpaint_full_res_padding: Int = honoured(0, "`mask_padding`")
    inpainting_mask_invert: Int = honoured(0, "1: `mask` with black and white exchanged")
    initial_noise_multiplier: float | None = without_effect(None, "the noise is never scaled")
    latent_mask: str | None = refused(None, "latents and pixels have one mask: `mask`")
    include_init_images: bool = honoured(False, "`parameters` repeats the images of the request")
