"""A model, ready to draw: the networks of a checkpoint and the facts about it."""

import json
import math
import platform
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limner import __version__
from limner.device import pick_device
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import scalings
from limner.errors import InvalidCheckpoint, InvalidRequest, NumericalError, UnsupportedModel
from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel
from limner.nn.vae import AutoencoderKL
from limner.prompts.chunks import Chunk, encode_prompt
from limner.prompts.tokenizer import Tokenizer
from limner.request import MAX_SEED, GenerationRequest
from limner.weights.checkpoint import (
    CARD,
    Checkpoint,
    load_text_encoder,
    load_unet,
    load_vae,
    read_checkpoint,
    weights_hash,
)
from limner.weights.hub import locate_model

from .calls import Call, Conditioning, DecodeLatents, Denoise, EncodeText
from .generation import plan_of, text_to_image, watch
from .images import to_images
from .metadata import Picture, Record
from .result import GenerationResult

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STEPS, _GUIDANCE_SCALE = 30, 7.5  # where neither the request nor the model says


@dataclass(frozen=True)
class Progress:
    """Where a request stands.

    Attributes:
        image, images: which picture of how many is being drawn, from 1.
        step, steps: which of its steps was just taken.
        latents: the estimate of the clean latents [1, C, h, w] at this step.
    """

    image: int
    images: int
    step: int
    steps: int
    latents: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint in memory. `load` makes one.

    Attributes:
        name: as it was asked for: "picturebook", a folder, a hub id.
        revision, variant: as they were asked for.
        warnings: what its user should know about how it was found and read.
    """

    name: str
    revision: str | None
    variant: str | None
    checkpoint: Checkpoint
    scheduler: SchedulerConfig
    tokenizer: Tokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]
    warnings: tuple[str, ...] = ()

    def generate(
        self, prompt: str | None = None, *, request: GenerationRequest | None = None, **fields: Any
    ) -> GenerationResult:
        """Draw pictures and wait for them.

        Args:
            prompt: what to draw.
            request: a whole request, in place of a prompt and fields.
            **fields: of `GenerationRequest`.

        Raises:
            InvalidRequest: a field that is unknown, out of range or beyond this model.
            NumericalError: the networks gave no finite picture.
        """
        if request is None:
            request = GenerationRequest.of({"prompt": prompt, "model": self.name, **fields})
        elif prompt is not None or fields:
            raise InvalidRequest("both a request and fields of one were given", hint="give one of them")
        request = self.resolve(request)
        images = tuple(self.pictures(request))
        return GenerationResult(images, request, images[0].record.warnings)

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """Fill in every default, and draw a seed where none is given.

        Raises:
            InvalidRequest: the request is beyond this model.
        """
        defaults = self._card.get("defaults", {})
        native = self.unet.config.sample_size * self.vae.config.downscale
        filled = {
            "model": self.name,
            "revision": self.revision,
            "variant": self.variant,
            "width": native,
            "height": native,
            "steps": _STEPS,
            "guidance_scale": _GUIDANCE_SCALE,
            **defaults,
            "seed": secrets.randbelow(MAX_SEED - request.num_images),
            **request.model_dump(exclude_none=True, exclude={"model", "revision", "variant"}),
        }
        request = GenerationRequest.of(filled)
        layers = self.text_encoder.config.num_hidden_layers
        if request.clip_skip > layers:
            raise InvalidRequest(f"clip_skip is {request.clip_skip}; this text encoder has {layers} layers")
        for name in ("width", "height"):
            side, unit = getattr(request, name), self.vae.config.downscale
            if side % unit:
                raise InvalidRequest(f"{name} is {side}; this model's pictures are multiples of {unit}")
        try:
            plan = plan_of(request, self.scheduler)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        names = {
            "sampler": plan.sampler,
            "timestep_spacing": plan.spacing,
            "sigma_schedule": plan.sigma_schedule,
        }
        return request.model_copy(update=names)

    def pictures(
        self, request: GenerationRequest, progress: Callable[[Progress], None] | None = None
    ) -> Iterator[Picture]:
        """Draw the pictures of a resolved request one by one.

        Args:
            progress: told of every step.

        Raises:
            NumericalError: the networks gave no finite picture.
        """
        assert request.seed is not None
        for index in range(request.num_images):
            own = request.model_copy(update={"seed": request.seed + index, "num_images": 1})
            warnings = list(self.warnings)
            generation = watch(text_to_image(own, self), self)
            while True:
                try:
                    call, answer = next(generation)
                except StopIteration as done:
                    image: Tensor = done.value
                    break
                if isinstance(call, EncodeText):
                    warnings += (warning for text in answer for warning in text.warnings)
                elif isinstance(call, Denoise) and progress is not None:
                    progress(Progress(index + 1, request.num_images, call.step, call.steps, answer))
            if not image.isfinite().all():
                raise NumericalError(
                    f"seed {own.seed} gave a picture that is not finite in {self.precision}",
                    hint="load the model with precision fp32"
                    if self.precision != "fp32"
                    else "check the checkpoint's weights",
                )
            record = Record(
                request=own,
                model=self.identity,
                environment=self.environment(),
                warnings=tuple(dict.fromkeys(warnings)),
            )
            yield Picture(to_images(image)[0], record)

    def latent_shape(self, request: GenerationRequest) -> tuple[int, ...]:
        """[1, C, h, w] of a resolved request."""
        assert request.height is not None
        assert request.width is not None
        unit = self.vae.config.downscale
        return (1, self.vae.config.latent_channels, request.height // unit, request.width // unit)

    @torch.inference_mode()
    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Answer calls in order; those that can share a forward pass do."""
        answers: list[Any] = [None] * len(calls)
        denoise: dict[torch.Size, list[int]] = defaultdict(list)
        for index, call in enumerate(calls):
            if isinstance(call, EncodeText):
                answers[index] = self._encode_text(call)
            elif isinstance(call, DecodeLatents):
                answers[index] = self._decode(call)
            else:
                denoise[call.x.shape].append(index)
        for indices in denoise.values():
            together = self._denoise([call for i in indices if isinstance(call := calls[i], Denoise)])
            for index, answer in zip(indices, together, strict=True):
                answers[index] = answer
        return answers

    def _encode_text(self, call: EncodeText) -> tuple[Conditioning, ...]:
        conditionings = []
        for prompt in call.prompts:
            encoded = encode_prompt(prompt, self.tokenizer, call.syntax)
            ids = torch.tensor([chunk.ids for chunk in encoded.chunks], device=self.device)  # [chunks, T]
            hidden, _ = self.text_encoder(ids, call.clip_skip)
            context = _emphasised(hidden.float(), encoded.chunks).flatten(0, 1)[None]  # [1, chunks*T, C]
            conditionings.append(Conditioning(context, encoded.warnings + self._unknown_words(prompt)))
        return tuple(conditionings)

    def _unknown_words(self, prompt: str) -> tuple[str, ...]:
        """A warning that names the words that a model with a small vocabulary was never taught."""
        known = self._card.get("words")
        if known is None:
            return ()
        words = dict.fromkeys(re.findall(r"[a-z]+", prompt.lower()))
        unknown = [word for word in words if word not in known and word != "break"]
        return (f"{self.name} was never taught: {', '.join(unknown)}",) if unknown else ()

    def _denoise(self, calls: Sequence[Denoise]) -> list[Tensor]:
        rows = [(call, name) for call in calls for name in call.guidance.branches(call.sigma)]
        around = {id(call): scalings(self.scheduler.prediction_type, call.sigma) for call in calls}

        x = torch.cat([call.x * around[id(call)].c_in for call, _ in rows])  # [R, C, h, w]
        timesteps = torch.tensor([call.timestep for call, _ in rows], device=self.device)
        contexts = [call.conditionings[name].context for call, name in rows]
        # Attention does not change when its context is repeated whole, unlike when it is padded.
        length = math.lcm(*(context.shape[1] for context in contexts))
        context = torch.cat([c.repeat(1, length // c.shape[1], 1) for c in contexts])  # [R, T, C]
        outputs = self.unet(self._in(x), timesteps, self._in(context)).float().cpu().split(1)

        estimates: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for (call, name), output in zip(rows, outputs, strict=True):
            estimates[id(call)][name] = around[id(call)].denoised(call.x, output)
        return [
            call.guidance.combine(estimates[id(call)], call.x, call.sigma, around[id(call)]) for call in calls
        ]

    def _decode(self, call: DecodeLatents) -> Tensor:
        image: Tensor = self.vae.decode(self._in(call.latents / self.vae.config.scaling_factor))
        return image.float().cpu()

    def _in(self, tensor: Tensor) -> Tensor:
        """To the networks' device and dtype."""
        return tensor.to(self.device, _DTYPES[self.precision])

    @property
    def family(self) -> str:
        """ "sd1", "sd2" or "custom"."""
        return self.checkpoint.family

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the record of a picture says of its model."""
        return {"name": self.name, "family": self.family, "sha256": weights_hash(self.checkpoint)}

    def environment(self) -> dict[str, str | int]:
        """What must agree, besides the request and the weights, to get the same bits."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "limner": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "backend": "torch",
            "device": gpu or f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}",
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }

    @cached_property
    def _card(self) -> dict[str, Any]:
        return _read_card(self.checkpoint.folder / CARD)


def load(
    reference: str | Path = "picturebook",
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Model:
    """Load a model: the one that ships with Limner, a folder in the diffusers layout, or one from the hub.

    Args:
        reference: "picturebook", a folder, or "organisation/name".
        revision: branch, tag or commit on the hub.
        variant: of the weight files, such as "fp16".
        device: "cpu", "cuda", "cuda:1" …; "auto" is CUDA where there is one.
        precision: of the networks; "auto" is fp16 on CUDA and fp32 on the CPU.

    Raises:
        ModelNotFound: nothing of this name.
        InvalidCheckpoint, PickleRefused, UnsupportedModel: files that are broken, or that Limner cannot run.
        InvalidRequest: an unknown device or precision.
    """
    where = pick_device(device)
    if precision == "auto":
        precision = "fp16" if where.type == "cuda" else "fp32"
    if precision not in _DTYPES:
        raise InvalidRequest(f"precision is {precision!r}; expected auto, {', '.join(_DTYPES)}")
    if precision == "fp16" and where.type == "cpu":
        raise InvalidRequest(
            "fp16 is not computed on the CPU, where it is hundreds of times slower", hint="use bf16"
        )
    dtype = _DTYPES[precision]

    located = locate_model(reference, revision=revision, variant=variant)
    checkpoint = read_checkpoint(located.folder, variant)
    try:
        scheduler = SchedulerConfig.from_dict(checkpoint.scheduler_config)
    except ValueError as error:
        raise UnsupportedModel(f"{located.folder / 'scheduler' / 'scheduler_config.json'}: {error}") from None
    warnings = list(located.warnings + checkpoint.warnings)
    tokenizer = Tokenizer.from_folder(
        checkpoint.tokenizer, default_max_length=checkpoint.text_config.max_position_embeddings
    )
    text = checkpoint.text_config
    if tokenizer.vocab_size > text.vocab_size or tokenizer.max_length > text.max_position_embeddings:
        raise InvalidCheckpoint(
            f"{checkpoint.tokenizer} has {tokenizer.vocab_size} tokens and texts of {tokenizer.max_length}; "
            f"its text encoder knows {text.vocab_size} and {text.max_position_embeddings}"
        )
    return Model(
        name=located.name,
        revision=revision,
        variant=variant,
        checkpoint=checkpoint,
        scheduler=scheduler,
        tokenizer=tokenizer,
        text_encoder=load_text_encoder(checkpoint, dtype).to(where).eval(),
        unet=load_unet(checkpoint, dtype).to(where).eval(),
        vae=load_vae(checkpoint, dtype).to(where).eval(),
        device=where,
        precision=precision,
        warnings=tuple(warnings),
    )


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


def _emphasised(hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Weigh tokens [chunks, T, C], keeping each chunk's mean, as AUTOMATIC1111's "Original" emphasis does.

    A mean that is next to nothing cannot be kept by scaling, so such a chunk is only weighed. CLIP's own
    text encoders are far from that.
    """
    weights = torch.tensor([chunk.weights for chunk in chunks], device=hidden.device)[
        ..., None
    ]  # [chunks, T, 1]
    if bool((weights == 1).all()):
        return hidden
    weighed = hidden * weights
    mean, spread = hidden.mean((1, 2), keepdim=True), hidden.std((1, 2), keepdim=True)
    scale = mean / weighed.mean((1, 2), keepdim=True)
    return weighed * torch.where(mean.abs() > 0.005 * spread, scale, 1.0)
