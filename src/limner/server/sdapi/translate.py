"""A body of txt2img or img2img -> the fields of a `GenerationRequest`, and how its images are delivered.

Nothing here knows of HTTP or of a queue. What a client leaves out takes the model's own default where its
card says one, else AUTOMATIC1111's; the size is then the one that the model was trained on.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from limner.catalogue.catalogue import Entry
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.errors import InvalidPicture, InvalidRequest
from limner.images.a1111_write import CFG_PP, CFG_PP_SCALE, EMPHASES
from limner.images.infotext import parse_infotext
from limner.images.readers import Texts, a1111
from limner.request.facts import ModelFacts
from limner.request.resolve import CFG_PP_SCALE as OWN_CFG_PP_SCALE
from limner.service.encoding import AS_STORED, Encoding

from . import names
from .bodies import GenerationBody, Img2ImgBody, Txt2ImgBody
from .errors import Refusal
from .img2img import STRENGTH, init_image, start_of
from .noise import set_noise_options
from .options import NO_VAE, number, picture_format, unsupported
from .pictures import MAX_PIXELS
from .units import DetectedMap, Networks, Scripts, read_scripts

_SAME = ("", "none", "use same checkpoint", "use same sampler", "use same scheduler")
_STEPS, _CFG_SCALE, _SWITCH_AT = 50, 7.0, 0.8
_TAG = re.compile(r"<(?=\w+:[^>]+>)")


@dataclass(frozen=True)
class Delivery:
    """How images are sent.

    Attributes:
        send: Whether they are sent at all.
        encoding: How their files are encoded.
        maps: Control images that follow them.
    """

    send: bool = True
    encoding: Encoding = AS_STORED
    maps: tuple[DetectedMap, ...] = ()


@dataclass(frozen=True)
class Translated:
    """A body as a request.

    Attributes:
        fields: Fields of a `GenerationRequest`.
        body: The body, with what its scripts and its infotext give.
        delivery: How its images are sent.
        without_effect: Names of the fields and options that ask for something else than is done.
        notes: What else is not done as the body says, in sentences.
        kept: Options that the account keeps.
    """

    fields: dict[str, Any] = field(repr=False)
    body: GenerationBody = field(repr=False)
    delivery: Delivery
    without_effect: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The model that a request is for.

    Attributes:
        name: What the request calls it, in the catalogue's names.
        facts: Facts about it; None where only loading it finds them.
    """

    name: str
    facts: ModelFacts | None = None


def model_of(body: GenerationBody, options: Mapping[str, Any], models: names.Models) -> Entry | None:
    """The model that a request is for; None for the server's own.

    The request's own options go before its infotext, and that before the account's options.

    Raises:
        Refusal: An option names a model that there is not.
    """
    override = body.override_settings or {}
    for name in ("sd_model_checkpoint", "sd_checkpoint_hash"):
        if override.get(name):
            return models.find(str(override[name]), f"override_settings.{name}")
    found = _model_in_infotext(body, models)
    kept = options.get("sd_model_checkpoint")
    if found is None and kept:
        return models.find(str(kept), "sd_model_checkpoint")
    return found


def _model_in_infotext(body: GenerationBody, models: names.Models) -> Entry | None:
    """The model that an infotext names by its hash or its name; None if it names none that is here."""
    said = parse_infotext(body.infotext or "")
    for name in filter(None, (said.get("Model hash"), said.get("Model"))):
        with suppress(Refusal):
            return models.find(name, "infotext")
    return None


def translate(
    body: GenerationBody,
    options: Mapping[str, Any],
    model: Model,
    networks: Networks,
    models: names.Models,
    unknown: tuple[str, ...] = (),
    *,
    max_pixels: int = MAX_PIXELS,
) -> Translated:
    """A body as a request.

    Args:
        options: The account's.
        model: What `model_of` finds, or the server's own.
        networks: Finds what ControlNet's units name.
        models: Finds the refiner.
        unknown: Fields of the body that are not this API's.
        max_pixels: Largest number of pixels of an input image.

    Raises:
        Refusal: What cannot be done, with the name of the field.
    """
    return _Translation(body, options, model, networks, models, max_pixels).result(unknown)


class _Translation:
    """One translation; its methods add to `fields`, `without_effect` and `notes`."""

    def __init__(
        self,
        body: GenerationBody,
        options: Mapping[str, Any],
        model: Model,
        networks: Networks,
        models: names.Models,
        max_pixels: int,
    ) -> None:
        self.given = set(body.model_fields_set)
        self.body = body
        self.override = {
            key: value for key, value in (body.override_settings or {}).items() if value is not None
        }
        self.options = {**options, **self.override}
        self.model, self.networks, self.models = model, networks, models
        self.max_pixels = max_pixels
        self.fields: dict[str, Any] = {"model": model.name}
        self.without_effect: list[str] = []
        self.notes: list[str] = []

    def result(self, unknown: tuple[str, ...]) -> Translated:
        """The translation. Raises as `translate`."""
        self._refuse()
        image = init_image(self.body, self.max_pixels) if isinstance(self.body, Img2ImgBody) else None
        scripts = self._scripts(image)
        self._infotext()
        self._prompts()
        self._seeds()
        self._size()
        self._sampling()
        self._second_pass()
        if image is not None and isinstance(self.body, Img2ImgBody):
            start = start_of(self.body, self.given, self.fields, image, self.model.facts, self.max_pixels)
            self.fields = start.fields
            self.without_effect += start.without_effect
            self.notes += start.notes
        self._rest(scripts)
        self._name_without_effect(unknown)
        delivery = self._delivery(scripts)
        kept = {} if self.body.override_settings_restore_afterwards else self.override
        return Translated(
            self.fields,
            self.body,
            delivery,
            tuple(dict.fromkeys(self.without_effect)),
            tuple(dict.fromkeys(self.notes)),
            kept,
        )

    def _default(self, name: str, usual: Any) -> Any:
        """The model's own default, or AUTOMATIC1111's."""
        own = self.model.facts.defaults if self.model.facts is not None else {}
        return own.get(name, usual)

    def _refuse(self) -> None:
        """Refuse a request for what is not supported."""
        body = self.body
        if body.script_name and body.script_name.strip().lower() not in ("none", ""):
            raise Refusal(
                f"Script {body.script_name[:80]!r} not found",
                hint="there are no selectable scripts",
                status=422,
                fields=("script_name",),
            )
        for name in ("seed_resize_from_h", "seed_resize_from_w"):
            if getattr(body, name) > 0:
                raise Refusal(
                    f"{name} is {getattr(body, name)}; noise of another size is not made",
                    hint="leave it out",
                    fields=(name,),
                )
        for name in ("firstpass_image", "latent_mask"):
            if getattr(body, name, None):
                raise Refusal(f"{name} is not supported", hint="leave it out", fields=(name,))
        vae = self.override.get("sd_vae", self.options.get("sd_vae"))
        if vae is not None and str(vae).strip().lower() not in NO_VAE:
            raise Refusal(
                f"sd_vae is {str(vae)[:80]!r}; expected Automatic or None, which is the model's own",
                fields=("override_settings.sd_vae",),
            )

    def _scripts(self, image: str | None) -> Scripts:
        """The always-on scripts; what Refiner, Seed and Sampler say takes the place of the body's fields."""
        sized = {"width", "height"} & self.given
        found = read_scripts(
            self.body.alwayson_scripts,
            self.networks,
            size=self._sides() if sized else None,
            init_image=image,
            inpainting=isinstance(self.body, Img2ImgBody) and bool(self.body.mask),
            max_pixels=self.max_pixels,
        )
        if found.body:
            self.body = self._updated(found.body)
        self.notes += found.notes
        return found

    def _updated(self, fields: Mapping[str, Any]) -> GenerationBody:
        """The body with other fields, which count as given."""
        self.given |= fields.keys()
        whole = {**self.body.model_dump(exclude_unset=True), **fields}
        try:
            return type(self.body).model_validate(whole)
        except ValueError as error:
            raise Refusal(
                f"alwayson_scripts: {str(error).splitlines()[-1].strip()}",
                status=422,
                fields=("alwayson_scripts",),
            ) from None

    def _infotext(self) -> None:
        """Begin with the fields of the infotext; those of the body then take their place."""
        if not self.body.infotext or not self.body.infotext.strip():
            return
        texts = Texts({"parameters": self.body.infotext}, name="infotext")
        overriding = {"model"} | ({"image"} if isinstance(self.body, Img2ImgBody) else set())
        overriding |= {"mask"} if isinstance(self.body, Img2ImgBody) and self.body.mask else set()
        try:
            read = a1111.read(texts, overriding)
        except (InvalidPicture, InvalidRequest) as error:
            raise Refusal(error.message, hint=error.hint, fields=("infotext",)) from None
        said = parse_infotext(self.body.infotext)
        named = said.get("Model") or said.get("Model hash")
        if named and _model_in_infotext(self.body, self.models) is None:
            self.notes.append(f"infotext names the model {named[:80]}, which is not here")
        self.fields |= read.fields
        self.notes += read.warnings

    def _prompts(self) -> None:
        body, fields = self.body, self.fields
        for name in ("prompt", "negative_prompt"):
            if name in self.given or name not in fields:
                fields[name] = getattr(body, name)
        if body.styles:
            fields["styles"] = tuple(name for name in body.styles if name.strip() not in ("", "None"))
        if body.disable_extra_networks:
            for name in ("prompt", "negative_prompt"):
                fields[name] = _plain(fields[name])
        # Without text there is nothing to steer away from, and models with their own embedding keep it.
        if not fields.get("negative_prompt"):
            del fields["negative_prompt"]
        skip = body.clip_skip if body.clip_skip is not None else self.override.get("CLIP_stop_at_last_layers")
        if skip is None and "clip_skip" not in fields:
            skip = self.options.get("CLIP_stop_at_last_layers", 1)
        if skip is not None:
            fields["clip_skip"] = max(1, number(skip, "CLIP_stop_at_last_layers", int))
        emphasis = str(self.override.get("emphasis") or (self.options.get("emphasis") or "Original"))
        if "emphasis" in self.override or "emphasis" not in fields:
            ours = {label.lower(): own for own, label in EMPHASES.items()}.get(emphasis.lower())
            if ours is None:
                raise Refusal(
                    f"emphasis is {emphasis[:40]!r}; expected one of {', '.join(EMPHASES.values())}",
                    fields=("override_settings.emphasis",),
                )
            fields["emphasis"] = ours

    def _seeds(self) -> None:
        body, fields = self.body, self.fields
        for name, own in (("seed", "seed"), ("subseed", "variation_seed")):
            if name in self.given or own not in fields:
                value = getattr(body, name)
                fields.pop(own, None)
                if value < -1:
                    raise Refusal(f"{name} is {value}; expected -1 for a random one, or more", fields=(name,))
                if value != -1:
                    fields[own] = value
        if "subseed_strength" in self.given or "variation_strength" not in fields:
            fields["variation_strength"] = body.subseed_strength
        if not fields["variation_strength"]:
            fields.pop("variation_seed", None)
        fields["num_images"] = body.batch_size * body.n_iter
        for name in ("batch_size", "n_iter"):
            if not 1 <= getattr(body, name) <= 1000:
                raise Refusal(f"{name} is {getattr(body, name)}; expected 1 to 1000", fields=(name,))
        source = str(self.override.get("randn_source") or self.options.get("randn_source") or "GPU").upper()
        if "randn_source" in self.override or "noise" not in fields:
            if source not in ("CPU", "GPU", "NV"):
                raise Refusal(
                    f"randn_source is {source[:20]!r}; expected CPU, GPU or NV",
                    fields=("override_settings.randn_source",),
                )
            fields["noise"] = "cpu" if source == "CPU" else "gpu"

    def _sides(self) -> tuple[int, int]:
        """Width and height of the body, cut to multiples of 8."""
        return self.body.width // 8 * 8, self.body.height // 8 * 8

    def _size(self) -> None:
        facts = self.model.facts
        for name, side, whole in zip(
            ("width", "height"), self._sides(), (self.body.width, self.body.height), strict=True
        ):
            if name in self.given or (facts is None and name not in self.fields):
                self.fields[name] = side
                if side != whole:
                    self.notes.append(f"{name} is {whole}, which is cut to {side}")
            elif name not in self.fields and facts is not None:
                own = facts.size[0] if name == "width" else facts.size[1]
                other = "height" if name == "width" else "width"
                self.fields[name] = getattr(self.body, name) // 8 * 8 if other in self.given else own

    def _sampling(self) -> None:
        body, fields = self.body, self.fields
        if "steps" in self.given or "steps" not in fields:
            fields["steps"] = body.steps if "steps" in self.given else self._default("steps", _STEPS)
        named = body.sampler_name if body.sampler_name and body.sampler_name.strip() else None
        if named is None and "sampler_index" in self.given and body.sampler_index.strip():
            named = body.sampler_index
        if named is not None or "sampler" not in fields:
            own = self._default("sampler", None)
            if named is None and own is not None:
                sampler, schedule, unused = own, self._default("sigma_schedule", None), False
                if body.scheduler and body.scheduler.strip().lower() not in ("", names.AUTOMATIC):
                    schedule = names.own_schedule(body.scheduler)
                schedule = schedule or SAMPLER_TABLE[sampler].automatic
            else:
                sampler, schedule, unused = names.sampling(
                    named or body.sampler_index,
                    body.scheduler,
                    "sampler_name" if body.sampler_name else "sampler_index",
                )
            if unused:
                self.without_effect.append("scheduler")
            fields |= {"sampler": sampler, "sigma_schedule": schedule}
        elif body.scheduler and body.scheduler.strip().lower() not in ("", names.AUTOMATIC):
            fields["sigma_schedule"] = names.own_schedule(body.scheduler)
        if "cfg_scale" in self.given or "guidance_scale" not in fields:
            fields["guidance_scale"] = self._guidance_scale(fields["sampler"])
        self.without_effect += set_noise_options(fields, body, self.options, self.override)

    def _guidance_scale(self, sampler: str) -> float:
        """The scale for a sampler. AUTOMATIC1111 divides that of its one sampler of CFG++."""
        given = "cfg_scale" in self.given
        if not given and sampler != CFG_PP and SAMPLER_TABLE[sampler].cfg_pp:
            return OWN_CFG_PP_SCALE
        scale: float = self.body.cfg_scale if given else self._default("guidance_scale", _CFG_SCALE)
        return scale / CFG_PP_SCALE if sampler == CFG_PP else scale

    def _second_pass(self) -> None:
        body, fields = self.body, self.fields
        if not isinstance(body, Txt2ImgBody) or not body.enable_hr:
            if "enable_hr" in self.given or isinstance(body, Img2ImgBody):
                for name in [name for name in fields if name.startswith("hires_")]:
                    del fields[name]
            return
        if body.hr_checkpoint_name and body.hr_checkpoint_name.strip().lower() not in _SAME:
            entry = self.models.find(body.hr_checkpoint_name, "hr_checkpoint_name")
            if entry.id != self.model.name:
                raise Refusal(
                    f"hr_checkpoint_name is {body.hr_checkpoint_name[:80]!r}; both passes have one model",
                    hint="leave it out",
                    fields=("hr_checkpoint_name",),
                )
        width, height = body.hr_resize_x, body.hr_resize_y
        if body.firstphase_width > 0 or body.firstphase_height > 0:
            width, height = fields["width"], fields["height"]
            first = (body.firstphase_width or width), (body.firstphase_height or height)
            fields["width"], fields["height"] = (side // 8 * 8 for side in first)
        for name in [name for name in fields if name.startswith("hires_")]:
            if name in ("hires_scale", "hires_width", "hires_height"):
                del fields[name]
        if width > 0 or height > 0:
            if width > 0:
                fields["hires_width"] = width // 8 * 8
            if height > 0:
                fields["hires_height"] = height // 8 * 8
        else:
            fields["hires_scale"] = body.hr_scale
        strength = body.denoising_strength
        fields["hires_strength"] = STRENGTH if strength is None else strength
        if body.hr_second_pass_steps > 0:
            fields["hires_steps"] = body.hr_second_pass_steps
        fields["hires_upscaler"] = names.upscaler(body.hr_upscaler)
        self._second_sampling(body)
        for name, text in (
            ("hires_prompt", body.hr_prompt),
            ("hires_negative_prompt", body.hr_negative_prompt),
        ):
            if text:
                fields[name] = _plain(text) if body.disable_extra_networks else text

    def _second_sampling(self, body: Txt2ImgBody) -> None:
        """Sampler and sigma schedule of the hires pass."""
        sampler = body.hr_sampler_name if (body.hr_sampler_name or "").strip().lower() not in _SAME else None
        schedule = body.hr_scheduler if (body.hr_scheduler or "").strip().lower() not in _SAME else None
        if sampler is not None:
            own, sigmas, unused = names.sampling(sampler, schedule, "hr_sampler_name", "hr_scheduler")
            self.fields |= {"hires_sampler": own, "hires_sigma_schedule": sigmas}
            if unused:
                self.without_effect.append("hr_scheduler")
        elif schedule is not None:
            automatic = schedule.strip().lower() == names.AUTOMATIC
            self.fields["hires_sigma_schedule"] = (
                SAMPLER_TABLE[self.fields["sampler"]].automatic
                if automatic
                else names.own_schedule(schedule, "hr_scheduler")
            )

    def _rest(self, scripts: Scripts) -> None:
        body, fields = self.body, self.fields
        tiling = body.tiling if body.tiling is not None else self.options.get("tiling")
        if body.tiling is not None or "tiling" not in fields:
            fields.pop("tiling", None)
            if tiling is True:
                fields["tiling"] = "xy"
        if body.refiner_checkpoint and body.refiner_checkpoint.strip().lower() not in _SAME:
            at = _SWITCH_AT if body.refiner_switch_at is None else body.refiner_switch_at
            if at < 1.0:
                fields["refiner"] = self.models.find(body.refiner_checkpoint, "refiner_checkpoint").id
                fields["refiner_start"] = at
        if scripts.controls:
            fields["controls"] = tuple(scripts.controls)
        if scripts.image_prompts:
            fields["image_prompts"] = tuple(scripts.image_prompts)

    def _name_without_effect(self, unknown: tuple[str, ...]) -> None:
        """Name the fields and options that ask for something else than is done."""
        body = self.body
        if body.restore_faces:
            self.without_effect.append("restore_faces")
        if body.do_not_save_samples:
            self.without_effect.append("do_not_save_samples")
        grid = body.save_images and not body.do_not_save_grid and "do_not_save_grid" in self.given
        if grid and body.batch_size * body.n_iter > 1:
            self.without_effect.append("do_not_save_grid")
        if body.comments:
            self.without_effect.append("comments")
        if body.script_args:
            self.without_effect.append("script_args")
        self.without_effect += [f"override_settings.{name}" for name in unsupported(self.override)]
        self.without_effect += unknown

    def _delivery(self, scripts: Scripts) -> Delivery:
        format = picture_format(self.options)
        if format is None:
            given = str(self.options.get("samples_format"))[:20]
            if "samples_format" in self.override:
                raise Refusal(
                    f"samples_format is {given!r}; expected png, jpg, jpeg or webp",
                    fields=("override_settings.samples_format",),
                )
            format = "png"
            self.notes.append(f"the option samples_format is {given!r}, which is not known: PNG is sent")
        quality = number(self.options.get("jpeg_quality", 80), "jpeg_quality", int)
        return Delivery(
            send=self.body.send_images,
            encoding=Encoding(
                format,
                min(100, max(1, quality)),
                lossless=self.options.get("webp_lossless") is True,
                with_record=self.options.get("enable_pnginfo") is not False,
            ),
            maps=tuple(scripts.maps),
        )


def _plain(prompt: str) -> str:
    """A prompt whose tags are text: the blank does not change how CLIP reads it."""
    return _TAG.sub("< ", prompt)
