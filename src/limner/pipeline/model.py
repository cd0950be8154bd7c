"""A model, ready to draw: the networks of a checkpoint and the facts about it."""

import hashlib
import json
import math
import platform
import re
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from limner import __version__
from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import Scalings, scalings
from limner.diffusion.samplers import CFG_PP
from limner.errors import InvalidCheckpoint, InvalidRequest, NumericalError, UnsupportedModel
from limner.prompts.tokenizer import Tokenizer
from limner.request import (
    MAX_SIDE,
    MIN_SIDE,
    NEW_SEEDS,
    Control,
    GenerationRequest,
    ImagePrompt,
    Tiling,
)
from limner.weights.checkpoint import CARD, Checkpoint, Kind, weights_hash
from limner.weights.hashes import file_hash, lora_hash, network_hash

from .adapting import AdapterLibrary, UsedAdapter, Words, with_loras
from .backends.base import Backend, ControlRows, Guest, Terms
from .backends.native import NativeBackend
from .calls import (
    Answer,
    Call,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeImage,
    EncodeText,
    ReadControl,
    ReadImagePrompt,
)
from .controlling import ControlLibrary, UsedControl
from .generation import Traits, passes_of, plan_of
from .image_prompts import ImagePromptLibrary, UsedImagePrompt
from .images import check_control, image_source, open_image, to_images
from .metadata import LORA, Origin, Picture, Record
from .result import GenerationResult
from .text import TextEncoder, Tower
from .tiles import decode_in_tiles, encode_in_tiles, whole_axes
from .tuning import rows_estimate
from .wording import worded

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")

_ADAPTED_BYTES = 4 << 30  # of layers that adapters have changed, kept beside the model's own
_FEW_ROWS = 4  # which pay together: then adapters are worth to be applied by row
_IMAGES = {"image", "mask", "depth"}
_NAMING_IMAGES = {"controls", "image_prompts"}  # fields whose items have pictures
_NEEDED: dict[Kind, set[str]] = {
    "text": set(),
    "edit": {"image"},
    "inpainting": {"image", "mask"},
    "depth": {"image", "depth"},
}
_STRENGTH = 0.8
_HIRES_STRENGTH, _UPSCALER = 0.7, "latent"
_STEPS, _GUIDANCE_SCALE = 30, 7.5  # where neither the request nor the model says
_CFG_PP_SCALE = 0.6  # which stands for 7.5 elsewhere
# Of a prompt: a word of any script, a number that is no weight or step, a pictogram.
_WORD = re.compile(r"[^\W\d_]+|(?<![:.\d])\d+(?![.\d])|[\u2600-\u27bf\U0001f000-\U0001faff]")


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint in memory. `load` makes one.

    Attributes:
        name: as it was asked for: "picturebook", a folder, a single file, a hub id.
        revision, variant: as they were asked for.
        tokenizers: of each text encoder.
        backend: runs its networks.
        warnings: what its user should know about how it was found and read.
        lora_dirs, embedding_dirs: folders with adapters, as `load` takes them.
        words: that stand for a file of textual inversion, whatever its name.
        wildcards_dirs, styles_files: of which prompts are made, as `load` takes them.
        options: of `load`, by which a refiner is loaded like this model.
    """

    name: str
    revision: str | None
    variant: str | None
    checkpoint: Checkpoint
    scheduler: SchedulerConfig
    tokenizers: Mapping[str, Tokenizer]
    backend: Backend
    warnings: tuple[str, ...] = ()
    lora_dirs: tuple[Path, ...] = ()
    embedding_dirs: tuple[Path, ...] = ()
    words: Mapping[str, Path] = field(default_factory=dict)
    wildcards_dirs: tuple[Path, ...] = ()
    styles_files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    _controls: ControlLibrary = field(init=False, repr=False)
    _image_prompts: ImagePromptLibrary = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Not when they are first asked for, as several threads do that.
        unet, downscale = self.checkpoint.unet_config, self.checkpoint.vae_config.downscale
        object.__setattr__(self, "_controls", ControlLibrary(unet, downscale))
        object.__setattr__(self, "_image_prompts", ImagePromptLibrary(unet))

    def generate(
        self, prompt: str | None = None, *, request: GenerationRequest | None = None, **fields: Any
    ) -> GenerationResult:
        """Draw pictures and wait for them. Calls from several threads share forward passes.

        Args:
            prompt: what to draw.
            request: a whole request, in place of a prompt and fields.
            **fields: of `GenerationRequest`; pictures may be PIL images.

        Raises:
            InvalidRequest: a field that is unknown, out of range or beyond this model.
            NumericalError: the networks gave no finite picture.
            OutOfMemory: the pictures are too large for this machine.
        """
        if request is None:
            for name in fields.keys() & _IMAGES:
                fields[name] = None if fields[name] is None else image_source(fields[name])
            for name in fields.keys() & _NAMING_IMAGES:
                if isinstance(fields[name], list | tuple):
                    fields[name] = tuple(map(_with_sources, fields[name]))
            request = GenerationRequest.of({"prompt": prompt, "model": self.name, **fields})
        elif prompt is not None or fields:
            raise InvalidRequest("both a request and fields of one were given", hint="give one of them")
        handle = self.engine.submit(request)
        try:
            return handle.result()
        finally:
            handle.cancel()  # Ctrl-C must not leave it drawing; no effect on one that is done

    @cached_property
    def engine(self) -> "Engine":
        """Draws what `generate` is asked for. It has a thread only while there is something to draw."""
        from .engine import Engine

        return Engine(self)

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """Fill in every default, and draw a seed where none is given.

        Raises:
            InvalidRequest: the request is beyond this model.
        """
        defaults = self._card.get("defaults", {})
        self._check_pictures(request)
        self._check_told(request)
        kind = self.traits.kind
        width, height, varies = *self._own_size(request), request.variation_strength > 0
        filled = {
            "model": self.name,
            "revision": self.revision,
            "variant": self.variant,
            "width": width,
            "height": height,
            "steps": _STEPS,
            "guidance_scale": _GUIDANCE_SCALE,
            **defaults,
            **({"guidance_scale": _CFG_PP_SCALE} if request.sampler in CFG_PP else {}),
            **({"width": width, "height": height} if request.image is not None else {}),
            **({"strength": _STRENGTH} if request.image is not None and kind in ("text", "depth") else {}),
            "seed": secrets.randbelow(NEW_SEEDS),
            **({"variation_seed": secrets.randbelow(NEW_SEEDS)} if varies else {}),
            **request.model_dump(exclude_none=True, exclude={"model", "revision", "variant"}),
        }
        if request.has_second_pass:
            again = {"steps": filled["steps"], "strength": _HIRES_STRENGTH, "upscaler": _UPSCALER}
            filled = {**{f"hires_{name}": value for name, value in again.items()}, **filled}
        request = GenerationRequest.of(filled)
        if not (request.styles or request.wildcards):
            request = with_loras(request)
        self.controls_of(request)
        for control in request.controls:
            check_control(control, request)
        self.image_prompts_of(request)
        layers = min(text.num_hidden_layers for text in self.checkpoint.text_configs.values())
        if request.clip_skip + self._skipped > layers:
            raise InvalidRequest(f"clip_skip is {request.clip_skip}; the text encoder has {layers} layers")
        try:
            plan = plan_of(request, self.scheduler)
            names = {
                "sampler": plan.sampler,
                "timestep_spacing": plan.spacing,
                "sigma_schedule": plan.sigma_schedule,
            }
            request = request.model_copy(update=names)
            passes = passes_of(request, self.scheduler)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        for index in range(request.num_images if request.wildcards else 1):
            for one in passes_of(self.worded(request.of_picture(index)), self.scheduler):
                self.adapters_of(one.request)
        for one in passes:
            self._check_size(one.request, "" if one.done is None else "the second pass's ")
        (height, width), *_, (h, w) = [self.latent_shape(one.request)[2:] for one in (passes[0], *passes)]
        if request.tiling and height * w != width * h:
            raise InvalidRequest(
                "a second pass of other proportions cuts the picture, which does not tile then",
                hint="give hires_scale, or one of hires_width and hires_height",
            )
        return request

    def _check_size(self, request: GenerationRequest, whose: str) -> None:
        """Refuse a size that the networks cannot draw, or not so that the ends meet."""
        unit = self.checkpoint.vae_config.downscale
        whole = unit << (len(self.checkpoint.unet_config.block_out_channels) - 1)
        for axis, name in (("x", "width"), ("y", "height")):
            side = getattr(request, name)
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise InvalidRequest(f"{whose}{name} is {side}; expected {MIN_SIDE} to {MAX_SIDE}")
            if side % unit:
                raise InvalidRequest(
                    f"{whose}{name} is {side}; this model's pictures are multiples of {unit}"
                )
            if axis in (request.tiling or "") and side % whole:  # halving would round up at the seam
                raise InvalidRequest(f"{whose}{name} is {side}; to tile it must be a multiple of {whole}")

    def worded(self, request: GenerationRequest) -> GenerationRequest:
        """A request for one picture, with its seed, as its prompts are read: in its styles, its wildcards
        chosen, and the adapters that they name among its `loras`.

        Raises:
            InvalidRequest: a style or a wildcard that is not there, or a prompt that cannot be read.
        """
        return with_loras(worded(request, self.styles_files, self.wildcards_dirs))

    def adapters_of(self, request: GenerationRequest) -> tuple[UsedAdapter, ...]:
        """The adapters of a resolved request.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel: one that cannot be had or used.
        """
        return self._library.used(request.loras)

    @cached_property
    def _library(self) -> AdapterLibrary:
        return AdapterLibrary(self.checkpoint, self.lora_dirs, self.embedding_dirs, self.words)

    def controls_of(self, request: GenerationRequest) -> tuple[UsedControl, ...]:
        """The control networks of a resolved request.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel, InvalidRequest: one that cannot be used.
        """
        return self._controls.used(request.controls)

    def image_prompts_of(self, request: GenerationRequest) -> tuple[UsedImagePrompt, ...]:
        """The image prompts of a resolved request.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel: an adapter or encoder that cannot be used.
        """
        return self._image_prompts.used(request.image_prompts)

    def guests_of(self, request: GenerationRequest) -> frozenset[Guest]:
        """The networks beside its own that a resolved request needs. Raises as `controls_of` and
        `image_prompts_of`."""
        seeing = map(self._image_prompts.networks, self.image_prompts_of(request))
        return frozenset(self.controls_of(request)).union(*seeing)

    def fetch(self, request: GenerationRequest) -> None:
        """Have the networks that a request names beside the model on this machine.

        `resolve` does so too; this is for a thread that may wait for the hub. Any may call it. Raises as
        `controls_of` and `image_prompts_of`.
        """
        self._controls.fetch(request.controls)
        self._image_prompts.used(request.image_prompts)

    def find_refiner(self, request: GenerationRequest) -> "Model | None":
        """The refiner that a request names, if it is in memory."""
        assert request.refiner is not None
        return self._refiners.get((request.refiner, request.variant))

    def refiner(self, request: GenerationRequest) -> "Model":
        """The refiner that a request names, loaded when it is first named. Raises as `load`."""
        found = self.find_refiner(request)
        if found is None:
            from .loading import load  # here, as it makes models

            assert request.refiner is not None
            self._refiners.clear()
            found = load(request.refiner, variant=request.variant, **self.options)
            self._refiners[request.refiner, request.variant] = found
        return found

    @cached_property
    def _refiners(self) -> "dict[tuple[str, str | None], Model]":
        return {}

    def check_refines(self, first: "Model", request: GenerationRequest) -> None:
        """Raise InvalidRequest unless this model can take over from another on the way."""
        ours, theirs = self.checkpoint.vae_config, first.checkpoint.vae_config
        if self.traits.kind != "text" or ours.latent_channels != theirs.latent_channels:
            raise InvalidRequest(
                f"{self.name} cannot take over from {first.name}: it needs {self.traits.kind} and latents of "
                f"{ours.latent_channels} channels, and has latents of {theirs.latent_channels}"
            )
        assert request.refiner_start is not None
        last = passes_of(request, first.scheduler)[-1]
        self._check_size(last.request, "for the refiner the ")
        plan = last.plan
        if not 0 < plan.step_at(request.refiner_start) < len(plan.timesteps):
            raise InvalidRequest(
                f"refiner_start is {request.refiner_start}, which leaves one model none of the "
                f"{len(plan.timesteps)} steps"
            )

    def _check_pictures(self, request: GenerationRequest) -> None:
        """Refuse a request that lacks a picture that this model needs, or has one that it has no use for."""
        kind, given = self.traits.kind, {name for name in _IMAGES if getattr(request, name) is not None}
        if any(request.extend):
            if "image" not in given:
                raise InvalidRequest("there is no picture to extend", hint="give one with --image")
            if "mask" in given or request.inpaint_area != "whole":
                raise InvalidRequest("a picture is extended, or drawn anew where a mask says, not both")
            given.add("mask")  # of the room that is made
        elif request.inpaint_area != "whole" and "mask" not in given:
            raise InvalidRequest(
                f"inpaint_area is {request.inpaint_area}, but there is no mask", hint="give one with --mask"
            )
        for name, told in (
            ("mask_blur", "mask" in given),
            ("mask_padding", request.inpaint_area == "masked"),
        ):
            if not told and getattr(request, name) != type(request).model_fields[name].default:
                what = "mask" if name == "mask_blur" else "inpaint_area that is masked"
                raise InvalidRequest(
                    f"{name} is {getattr(request, name)}, but there is no {what}", hint="leave it out"
                )
        if "mask" in given and "image" not in given:
            raise InvalidRequest("there is no picture that the mask is of", hint="give one with --image")
        needed = _NEEDED[kind]
        lacking, idle = needed - given, given - needed - {"image"}
        if "image" in given and kind == "text":
            idle -= {"mask"}
        if lacking:
            raise InvalidRequest(f"{self.name}, a model for {kind}, needs {' and '.join(sorted(needed))}")
        if idle:
            raise InvalidRequest(
                f"{self.name} has no use for {' and '.join(sorted(idle))}",
                hint="leave it out, or name a model that is made for it",
            )
        if "mask" in given and request.has_second_pass:
            raise InvalidRequest(
                "a mask keeps the pixels of its picture, which a second pass draws at another size",
                hint="leave the hires fields out, or enlarge the picture first",
            )
        if "mask" in given and request.inpaint_area == "masked" and request.tiling:
            raise InvalidRequest(
                "the ends of a part of a picture do not meet: tiling is for the whole",
                hint="leave tiling out, or have the whole area drawn",
            )
        if request.strength is not None and "image" not in given:
            raise InvalidRequest(
                f"strength is {request.strength}, but there is no picture to begin with",
                hint="give one with --image, or leave strength out",
            )
        if request.strength is not None and kind == "edit":
            raise InvalidRequest(
                f"strength is {request.strength}, which {self.name} has no use for: it starts from noise",
                hint="leave it out; image_guidance_scale says how closely it keeps to the picture",
            )

    def _check_told(self, request: GenerationRequest) -> None:
        """Refuse numbers that only other kinds of models are told."""
        idle = set()
        if self.traits.kind != "edit":
            idle |= {"image_guidance_scale"}
        if request.refiner is None and self.traits.sizes != 5:
            idle |= {"aesthetic_score", "negative_aesthetic_score"}
            if not self.traits.sizes:
                idle |= {"original_size", "target_size", "crop"}
        fields = type(request).model_fields
        given = [name for name in sorted(idle) if getattr(request, name) != fields[name].default]
        if given:
            raise InvalidRequest(
                f"{self.name} is not told {' and '.join(given)}", hint="leave it out, or name a model that is"
            )

    def _own_size(self, request: GenerationRequest) -> tuple[int, int]:
        """Width and height where the request says nothing: those of its picture, or what the model is made
        for.

        Raises:
            InvalidRequest: the picture is larger than any that is drawn, and no size is given.
        """
        unit = self.checkpoint.vae_config.downscale
        if request.image is None:
            side = self.checkpoint.unet_config.sample_size * unit
            return side, side
        left, top, right, bottom = request.extend
        width, height = open_image(request.image).size
        width, height = width + left + right, height + top + bottom
        if (request.width is None and width > MAX_SIDE) or (request.height is None and height > MAX_SIDE):
            raise InvalidRequest(
                f"the picture to begin with makes {width}x{height} pixels; a side has at most {MAX_SIDE}",
                hint="give the size to draw it at: width and height",
            )
        return max(MIN_SIDE, width // unit * unit), max(MIN_SIDE, height // unit * unit)

    @cached_property
    def traits(self) -> Traits:
        """What sets it apart from plain text-to-image."""
        read = self.checkpoint
        return Traits(
            read.kind,
            read.sizes,
            read.zero_negative,
            read.unet_config.time_cond_proj_dim is not None,
            read.vae_config.scaling_factor,
        )

    def latent_shape(self, request: GenerationRequest) -> tuple[int, ...]:
        """[1, C, h, w] of a resolved request."""
        assert request.height is not None
        assert request.width is not None
        config = self.checkpoint.vae_config
        return (
            1,
            config.latent_channels,
            request.height // config.downscale,
            request.width // config.downscale,
        )

    def group(self, call: Call) -> Hashable:
        """What calls must have in common to share a forward pass."""
        match call:
            case EncodeText():
                return EncodeText, call.clip_skip, call.exact, call.adapters
            case Denoise():
                weights = () if self._by_row(call) else call.adapters
                nets = tuple(control.used for control in call.controls)
                seen = tuple(pictures.wanted.shape for pictures in call.pictures)
                shared = call.x.shape, call.deep is not None, weights, call.tiling
                return Denoise, *shared, nets, len(call.features), seen
            case DecodeLatents():
                return DecodeLatents, call.latents.shape, call.tiled, call.tiling
            case EncodeImage():
                return EncodeImage, call.image.shape, call.tiled, call.tiling
            case ReadControl():
                return ReadControl, call.used, call.image.shape, call.tiling
            case ReadImagePrompt():
                return ReadImagePrompt, call.prompt.adapter, call.prompt.encoder

    @torch.inference_mode()
    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """Answer calls of one `group`, in their order, in one forward pass.

        What one call's row makes of the numbers is that call's error; whatever else is raised concerns all.
        """
        for call in calls:
            reason = self.backend.refusal(call)
            if reason is not None:
                raise UnsupportedModel(
                    f"the {self.backend.name} backend {reason}", hint="use --backend torch"
                )
        # One group has one type, which a type checker cannot know.
        match calls[0]:
            case EncodeText():
                return self._encode_text(cast("Sequence[EncodeText]", calls))
            case Denoise():
                return self._denoise(cast("Sequence[Denoise]", calls))
            case DecodeLatents():
                return self._decode(cast("Sequence[DecodeLatents]", calls))
            case EncodeImage():
                return self._encode_image(cast("Sequence[EncodeImage]", calls))
            case ReadControl():
                return self._read_control(cast("Sequence[ReadControl]", calls))
            case ReadImagePrompt():
                return [self._read_image_prompt(call) for call in cast("Sequence[ReadImagePrompt]", calls)]

    def _encode_text(self, calls: Sequence[EncodeText]) -> list[Answer]:
        variant, used = self._variant(calls[0].adapters), calls[0].adapters
        told = tuple(warning for one in used for warning in self._library.read(one).warnings)
        return [
            replace(answer, warnings=answer.warnings + told + self._unknown_words(call.prompts))
            for call, answer in zip(calls, variant.texts.answer(calls), strict=True)
        ]

    def _unknown_words(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """A warning that names the words that a model with a small vocabulary was never taught."""
        known = self._card.get("words")
        if known is None:
            return ()
        words = dict.fromkeys(word for prompt in prompts for word in _WORD.findall(prompt.lower()))
        unknown = [word for word in words if word not in known and word != "break"]
        return (f"{self.name} was never taught: {', '.join(unknown)}",) if unknown else ()

    def _denoise(self, calls: Sequence[Denoise]) -> list[Answer]:
        rows = [(call, name) for call in calls for name in call.branches]
        around = {id(call): scalings(self.scheduler.prediction_type, call.sigma) for call in calls}

        told = [call.conditionings[name] for call, name in rows]
        x = torch.cat([call.x * around[id(call)].c_in for call, _ in rows])  # [R, C, h, w]
        if told[0].channels is not None:
            x = torch.cat([x, torch.cat([_there(one.channels) for one in told])], dim=1)
        timesteps = torch.tensor([call.timestep for call, _ in rows])
        contexts = [one.context for one in told]
        # Attention does not change when its context is repeated whole, unlike when it is padded.
        length = math.lcm(*(context.shape[1] for context in contexts))
        context = torch.cat([c.repeat(1, length // c.shape[1], 1) for c in contexts])  # [R, T, C]
        known = [call.deep[name] for call, name in rows if call.deep is not None]
        deep = torch.cat(known) if known else None
        keep = any(call.keep for call in calls)
        more: dict[str, Tensor] = {}
        if told[0].pooled is not None:
            more["pooled"] = torch.cat([_there(one.pooled) for one in told])  # [R, P]
            more["sizes"] = torch.tensor([one.sizes for one in told])  # [R, 6 or 5]
        if told[0].guidance is not None:
            more["guidance"] = torch.tensor([_there(one.guidance) for one in told])  # [R]

        controls = [
            ControlRows(
                one.used,
                torch.cat([call.controls[index].embedding for call, _ in rows]),
                torch.tensor([call.controls[index].weights_of(name) for call, name in rows]),
            )
            for index, one in enumerate(calls[0].controls)
        ]
        levels = range(len(calls[0].features))
        features = [torch.cat([call.features[level] for call, _ in rows]) for level in levels]
        prompts = range(len(calls[0].pictures))
        pictures = [torch.cat([call.pictures[i].beside(name) for call, name in rows]) for i in prompts]

        adapters = () if self._by_row(calls[0]) else calls[0].adapters
        terms: Terms = {}
        if not adapters and any(call.adapters for call in calls):
            terms = self._library.terms(tuple(call.adapters for call, _ in rows))

        def forward(backend: Backend, which: Tensor) -> tuple[Tensor, ...]:
            output, kept = backend.denoise(
                x[which],
                timesteps[which],
                context[which],
                **{name: rows[which] for name, rows in more.items()},
                terms={name: (down[which], up[which]) for name, (down, up) in terms.items()},
                controls=[control.of(which) for control in controls],
                features=[feature[which] for feature in features],
                pictures=[seen[which.to(seen.device)] for seen in pictures],
                keep=keep,
                deep=None if deep is None else deep[which.to(deep.device)],
            )
            return (output,) if kept is None else (output, kept)

        outputs, again, lost = self._finite(forward, len(rows), adapters, calls[0].tiling)
        estimates: dict[int, dict[str, Tensor]] = defaultdict(dict)
        kept: dict[int, dict[str, Tensor]] = defaultdict(dict)
        row_of: dict[int, set[int]] = defaultdict(set)
        for row, (call, name) in enumerate(rows):
            estimates[id(call)][name] = around[id(call)].denoised(call.x, outputs[0][row : row + 1])
            row_of[id(call)].add(row)
            if call.keep and len(outputs) > 1:
                kept[id(call)][name] = outputs[1][row : row + 1].clone()
        return [
            self._answer(
                _combined(call, estimates[id(call)], around[id(call)], kept[id(call)]),
                f"the U-Net at step {call.step}",
                bool(again & row_of[id(call)]),
                bool(lost & row_of[id(call)]),
            )
            for call in calls
        ]

    def _decode(self, calls: Sequence[DecodeLatents]) -> list[Answer]:
        config, first = self.checkpoint.vae_config, calls[0]
        scaled = torch.cat([call.latents for call in calls]) / config.scaling_factor
        inside, around = _ends(first, *scaled.shape[2:])

        def decode(backend: Backend, which: Tensor) -> tuple[Tensor]:
            if not first.tiled:
                return (backend.decode(scaled[which]),)
            rows = torch.split(scaled[which], 1)
            tiled = [decode_in_tiles(backend.decode, row, config.downscale, around) for row in rows]
            return (torch.cat(tiled),)

        [images], again, lost = self._finite(decode, len(calls), tiling=inside)
        return [
            self._answer(image, "the autoencoder's decoder", row in again, row in lost)
            for row, image in enumerate(images[:, None])
        ]

    def _encode_image(self, calls: Sequence[EncodeImage]) -> list[Answer]:
        config, first = self.checkpoint.vae_config, calls[0]
        images, factor = torch.cat([call.image for call in calls]), config.scaling_factor
        inside, around = _ends(first, *(side // config.downscale for side in images.shape[2:]))

        def encode(backend: Backend, which: Tensor) -> tuple[Tensor, ...]:
            if not first.tiled:
                return backend.encode(images[which])
            rows = torch.split(images[which], 1)
            tiled = [encode_in_tiles(backend.encode, row, config.downscale, around) for row in rows]
            return tuple(torch.cat(moment) for moment in zip(*tiled, strict=True))

        (means, logvars), again, lost = self._finite(encode, len(calls), tiling=inside)
        spreads = (0.5 * logvars).exp()
        return [
            self._answer(
                (means[row, None] * factor, spreads[row, None] * factor),
                "the autoencoder's encoder",
                row in again,
                row in lost,
            )
            for row in range(len(calls))
        ]

    def _read_control(self, calls: Sequence[ReadControl]) -> list[Answer]:
        images, used = torch.cat([call.image for call in calls]), calls[0].used
        read, again, lost = self._finite(
            lambda backend, which: tuple(backend.read_control(used, images[which])),
            len(calls),
            tiling=calls[0].tiling,
        )
        return [
            self._answer(
                tuple(tensor[row, None] for tensor in read), used.path.name, row in again, row in lost
            )
            for row in range(len(calls))
        ]

    def _read_image_prompt(self, call: ReadImagePrompt) -> Answer:
        warnings = list[str]()

        def see(adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None) -> Tensor:
            [seen], again, lost = self._finite(lambda backend, _: (backend.see(adapter, encoder, pixels),), 1)
            answer = self._answer(seen, adapter.path.name, bool(again), bool(lost))
            if answer.error is not None:
                raise answer.error
            warnings.extend(answer.warnings)
            return seen

        return Answer(self._image_prompts.seen(call.prompt, see), tuple(warnings))

    def _finite(
        self,
        forward: Callable[[Backend, Tensor], tuple[Tensor, ...]],
        rows: int,
        adapters: tuple[UsedAdapter, ...] = (),
        tiling: Tiling | None = None,
    ) -> tuple[tuple[Tensor, ...], set[int], set[int]]:
        """Run a forward pass, and again in fp32 for the rows that it spoils.

        Args:
            forward: of a backend and the indices of rows.

        Returns:
            the outputs, each [rows, …]; the rows that took fp32; the rows that are not finite even so.
        """
        backend = self._variant(adapters).backend
        outputs = forward(backend.seamless(tiling) if tiling else backend, torch.arange(rows))
        again, lost = set[int](), _not_finite(outputs)
        if lost and self.backend.precision != "fp32":
            again = lost
            which = torch.tensor(sorted(again))
            wide: Backend = self._in_fp32
            if adapters:
                wide = wide.adapted(self._library.weighted(adapters))
            repeated = forward(wide.seamless(tiling) if tiling else wide, which)
            outputs = tuple(
                output.index_copy(0, which.to(output.device), row.to(output))
                for output, row in zip(outputs, repeated, strict=True)
            )
            lost = _not_finite(outputs)
        return outputs, again - lost, lost

    def _answer(self, value: Any, part: str, again: bool, lost: bool) -> Answer:
        if lost:
            return Answer(
                error=NumericalError(
                    f"{part} gave numbers that are not finite, in fp32 too",
                    hint="check the checkpoint's weights, or lower the guidance scale",
                )
            )
        told = f"{part} gave numbers that are not finite in {self.backend.precision}; fp32 was used there"
        return Answer(value, (told,) if again else ())

    @cached_property
    def _in_fp32(self) -> NativeBackend:
        """The same networks in full precision, each read when it is first needed."""
        options = {name: self.options[name] for name in ("attention", "offload") if name in self.options}
        return NativeBackend(self.checkpoint, self.backend.device, "fp32", **options)

    def _variant(self, adapters: tuple[UsedAdapter, ...]) -> "_Variant":
        """The model with these adapters. The last few are kept."""
        known = self._variants
        if adapters not in known:
            backend = self.backend
            if adapters:
                backend = backend.adapted(self._library.weighted(adapters))
            known[adapters] = _Variant(backend, self._texts(backend, self._library.words(adapters)))
        known.move_to_end(adapters)
        while len(known) > 2 and sum(v.backend.bytes for key, v in known.items() if key) > _ADAPTED_BYTES:
            del known[next(key for key in known if key)]
        return known[adapters]

    @cached_property
    def _variants(self) -> "OrderedDict[tuple[UsedAdapter, ...], _Variant]":
        return OrderedDict()

    def _texts(self, backend: Backend, words: Words) -> TextEncoder:
        towers = []
        for part, tokenizer in self.tokenizers.items():

            def encode(ids: Tensor, clip_skip: int, part: str = part) -> tuple[Tensor, Tensor]:
                return backend.encode_text(
                    ids,
                    clip_skip + self._skipped,
                    part=part,
                    final_norm=not self._skipped,
                    learned=words.table(part),
                )

            towers.append(Tower(tokenizer, encode))
        return TextEncoder(towers, words, pooled=self.checkpoint.pooled_channels > 0)

    def _by_row(self, call: Denoise) -> bool:
        """Whether a call's adapters are applied to its rows, so that it shares forward passes with others,
        rather than to the weights: where one picture alone does not keep the machine busy."""
        if call.exact or not call.adapters:
            return False
        height, width = call.x.shape[2:]
        rows = rows_estimate(self.parameters, height, width, self.backend.device.type)
        known = self.backend.rowwise
        return rows >= _FEW_ROWS and all(self._library.is_low_rank(one, known) for one in call.adapters)

    @property
    def _skipped(self) -> int:
        """Layers of the text encoders that are never used: XL takes the last but one, without a norm."""
        return 1 if self.family.startswith("xl") else 0

    def picture(
        self,
        image: Tensor,
        request: GenerationRequest,
        warnings: Sequence[str],
        refiner: "Model | None" = None,
        asked: GenerationRequest | None = None,
    ) -> Picture:
        """A finished picture [1, 3, H, W] with the record of what drew it.

        Args:
            request: resolved, of this picture alone, and `worded`.
            asked: what it comes from, where styles and wildcards have made its prompts.
        """
        told = tuple(dict.fromkeys([*self.warnings, *warnings]))
        pictures: dict[str, Any] = {name: _digest(getattr(request, name)) for name in _IMAGES}
        for name in _NAMING_IMAGES:
            pictures[name] = tuple(map(_with_digests, getattr(request, name)))
        request = request.model_copy(update={name: digest for name, digest in pictures.items() if digest})
        identity = dict(self.identity)
        if refiner is not None:
            identity["refiner_sha256"] = refiner.identity["sha256"]
        passes = passes_of(request, self.scheduler)
        for used in dict.fromkeys(used for one in passes for used in self.adapters_of(one.request)):
            identity[f"{LORA} {used.path.stem}"] = lora_hash(used.path)
        for control, net in zip(request.controls, self.controls_of(request), strict=True):
            identity[f"control {control.model}"] = network_hash(net.path)
        for prompt, seen in zip(request.image_prompts, self.image_prompts_of(request), strict=True):
            identity[f"image prompt {prompt.model}"] = file_hash(seen.adapter[0])
        record = Record(
            request=request,
            origin=None if asked is None else Origin.of(asked),
            model=identity,
            environment=self.environment(),
            warnings=told,
        )
        return Picture(to_images(image)[0], record)

    @property
    def family(self) -> str:
        """ "sd1", "sd2", "xl", "xl_refiner" or "custom"."""
        return self.checkpoint.family

    @cached_property
    def parameters(self) -> int:
        """Number of weights in all networks."""
        return self.checkpoint.parameters

    @cached_property
    def geometry(self) -> str:
        """A short hash over the networks' shapes: what figures about speed hold for."""
        read = self.checkpoint
        configs = read.unet_config, read.vae_config, tuple(read.text_configs.values())
        return hashlib.sha256(repr(configs).encode()).hexdigest()[:12]

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the record of a picture says of its model."""
        return {"name": self.name, "family": self.family, "sha256": weights_hash(self.checkpoint)}

    def environment(self) -> dict[str, str | int]:
        """What must agree, besides the request and the weights, to get the same bits."""
        device = self.backend.device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        return {
            "limner": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "backend": self.backend.name,
            "device": gpu or f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
            "precision": self.backend.precision,
            "threads": torch.get_num_threads(),
            **self.backend.details,
        }

    @cached_property
    def _card(self) -> dict[str, Any]:
        return _read_card(self.checkpoint.folder / CARD)


@dataclass(frozen=True, eq=False)
class _Variant:
    """A model's networks under some adapters, and the texts that they have read."""

    backend: Backend
    texts: TextEncoder


def _digest(source: str | None) -> str | None:
    """What stands for a picture's pixels in a record; None for a path, which stands for itself."""
    if source is None or not source.startswith("data:"):
        return None
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def _with_sources(item: Any) -> Any:
    """An item of a request's field with its pictures as the request holds them."""
    if not isinstance(item, Mapping):
        return item
    item = dict(item)
    if "image" in item:
        item["image"] = image_source(item["image"])
    if "images" in item:
        images = item["images"] if isinstance(item["images"], list | tuple) else [item["images"]]
        item["images"] = tuple(map(image_source, images))
    return item


def _with_digests(item: Control | ImagePrompt) -> Control | ImagePrompt:
    """Likewise, with its pictures as a record holds them."""
    if isinstance(item, Control):
        return item.model_copy(update={"image": _digest(item.image) or item.image})
    return item.model_copy(update={"images": tuple(_digest(image) or image for image in item.images)})


def _ends(call: DecodeLatents | EncodeImage, height: int, width: int) -> tuple[Tiling | None, str]:
    """The axes along which the ends of a picture meet within the network, and those where tiles see to it.

    Args:
        height, width: of the latents.
    """
    if call.tiling is None or not call.tiled:
        return call.tiling, ""
    whole = whole_axes(height, width)
    inside = "".join(axis for axis in call.tiling if axis in whole)
    return cast("Tiling | None", inside or None), "".join(axis for axis in call.tiling if axis not in whole)


def _combined(
    call: Denoise, estimates: Mapping[str, Tensor], around: Scalings[float], deep: Mapping[str, Tensor]
) -> Denoised:
    """What answers a call, from the estimate of each of its branches."""
    guided = call.guidance.combine(estimates, call.x, call.sigma, around)
    if not call.paired:
        return Denoised(guided, deep=deep)
    unguided = call.guidance.unguided(estimates, call.sigma)
    return Denoised(guided, guided if unguided is None else unguided, deep)


def _there(value: T | None) -> T:
    """What all rows of a batch have if the first one has it."""
    assert value is not None
    return value


def _not_finite(outputs: Sequence[Tensor]) -> set[int]:
    """The rows of [R, …] tensors where any is not finite."""
    fine = torch.stack([output.isfinite().flatten(1).all(1).cpu() for output in outputs]).all(0)
    return set(range(len(fine))) - set(fine.nonzero().flatten().tolist())


def _read_card(path: Path) -> dict[str, Any]:
    """`limner.json` beside `model_index.json`: the model's own defaults for a request, and all its words
    where those are few."""
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        GenerationRequest.of({"prompt": "", **card["defaults"]})
        if "words" in card:
            card["words"] = frozenset(map(str, card["words"]))
    except (ValueError, KeyError, TypeError, InvalidRequest) as error:
        raise InvalidCheckpoint(f"{path} is broken: {error}") from None
    return dict(card)
