"""A pipeline call: its arguments, its sampling loop and its output."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from limner.diffusion.guidance import ClassifierFreeGuidance
from limner.errors import InvalidRequest
from limner.generation.calls import Conditioning, EncodeText
from limner.generation.conditioning import read_image_prompt
from limner.generation.networks import Controlled, EncodedImagePrompt
from limner.images.inputs import InputImages
from limner.model.model import Model
from limner.request.networks import UsedAdapter

from .adapters import Adapters
from .images import VaeImageProcessor, to_output
from .lockstep import EngineCalls, LockstepSampling
from .noise import Generators, SharedNoise, randn_tensor
from .settings import Settings
from .values import Output

Prompts = str | Sequence[str] | None
Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
Size = tuple[int, int]
Controls = Callable[[int, int], Sequence[tuple[Controlled, ...]]]
"""(index of the U-Net call, from 0; number of calls) -> the active ControlNets of each image."""


@dataclass(frozen=True)
class CallArguments:
    """Arguments of every pipeline call, with diffusers' names and defaults."""

    prompt: Prompts = None
    negative_prompt: Prompts = None
    num_inference_steps: int = 50
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    num_images_per_prompt: int = 1
    eta: float = 0.0
    generator: Generators = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: None = None
    output_type: str = "pil"
    return_dict: bool = True
    cross_attention_kwargs: Mapping[str, Any] | None = None
    clip_skip: int | None = None
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    callback: Callable[[int, Any, Tensor], None] | None = None
    callback_steps: int = 1

    @property
    def prompt_count(self) -> int:
        """Number of prompts.

        Raises:
            InvalidRequest: Neither or both of `prompt` and `prompt_embeds` were given.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise InvalidRequest("give either prompt or prompt_embeds")
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt or ())

    @property
    def image_count(self) -> int:
        """Number of images to generate."""
        return self.prompt_count * self.num_images_per_prompt


@dataclass(frozen=True)
class InitialState:
    """State at the start of sampling.

    Attributes:
        latents: Latents [B, C, h, w] at the scheduler's scale.
        begin_index: Index of the first of the scheduler's timesteps to run.
        tensors: Further tensors that a callback can read and change: mask, masked_image_latents.
        blend: Function of (index of the U-Net call, latents after it) that returns the latents to continue
            with.
    """

    latents: Tensor
    begin_index: int = 0
    tensors: Mapping[str, Any] = field(default_factory=dict)
    blend: Callable[[int, Tensor], Tensor] | None = None


@dataclass
class StableDiffusionPipelineOutput(Output):
    """Output of a pipeline call.

    Attributes:
        images: PIL images, an array [B, H, W, 3] or a tensor [B, 3, H, W] in [0, 1], or latents [B, C, h, w].
        nsfw_content_detected: Always None: images are not checked.
    """

    images: Any
    nsfw_content_detected: None = None


@dataclass
class StableDiffusionXLPipelineOutput(Output):
    """Output of an XL pipeline call; `images` as in `StableDiffusionPipelineOutput`."""

    images: Any


class PipelineCall(Settings, Adapters):
    """The part of a pipeline that executes calls.

    Attributes:
        scheduler: A `Scheduler`. Its class decides which arguments `step` takes.
        arguments_class: Dataclass of the arguments that `__call__` accepts.
        defaults: Defaults that differ from those of `arguments_class`.
        output: Class of the output.
        unet_kinds: Kinds of U-Net that the pipeline can use: "text", "inpainting".
    """

    scheduler: Any
    arguments_class: ClassVar[type[CallArguments]] = CallArguments
    defaults: ClassVar[Mapping[str, Any]] = {}
    output: ClassVar[type[Any]] = StableDiffusionPipelineOutput
    unet_kinds: ClassVar[tuple[str, ...]] = ("text",)
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ()

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether classifier-free guidance is on; without it the negative prompt has no effect."""
        return self._guidance_scale > 1 and self._model.checkpoint.unet_config.time_cond_proj_dim is None

    @property
    def vae_scale_factor(self) -> int:
        """Number of image pixels per latent pixel, in each direction."""
        return self._model.checkpoint.vae_config.downscale

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Converter between images and tensors."""
        return VaeImageProcessor(self.vae_scale_factor)

    @property
    def _model(self) -> Model:
        """The model that executes the calls."""
        return self._parts.model(self.scheduler.config.prediction_type, self.words)

    @contextmanager
    def progress_bar(self, total: int) -> Any:
        """Show the progress of `total` steps on stderr."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        with tqdm(total=total, **self._progress) as bar:  # type: ignore[no-untyped-call]
            yield bar

    def _size_or_default(self, height: int | None, width: int | None) -> Size:
        """Return height and width in pixels; for None, the size that the model was trained at.

        Raises:
            InvalidRequest: The height or width is not a multiple of 8.
        """
        own = self._model.checkpoint.unet_config.sample_size * self.vae_scale_factor
        height, width = height or own, width or own
        if height % 8 or width % 8:
            raise InvalidRequest(f"{width}x{height} pixels: width and height must be multiples of 8")
        return height, width

    def _parse_arguments(self, given: Mapping[str, Any]) -> Any:
        """Check the keyword arguments of a call and return them as an `arguments_class`.

        Raises:
            TypeError: An argument is unknown.
            InvalidRequest: An argument is not supported, by Limner or by this model.
        """
        if unknown := given.keys() - {one.name for one in fields(self.arguments_class)}:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}")
        arguments = self.arguments_class(**{**self.defaults, **given})
        if (wanted := getattr(arguments.callback_on_step_end, "tensor_inputs", None)) is not None:
            # Callback objects such as SDCFGCutoffCallback name the tensors that they need.
            arguments = replace(arguments, callback_on_step_end_tensor_inputs=wanted)
        if arguments.callback_steps is None or arguments.callback_steps < 1:
            raise InvalidRequest(f"callback_steps is {arguments.callback_steps}; expected 1 or more")
        if arguments.ip_adapter_image_embeds is not None:
            raise InvalidRequest("ip_adapter_image_embeds is not offered", hint="give ip_adapter_image")
        if strange := {*arguments.callback_on_step_end_tensor_inputs} - {*self._callback_tensor_inputs}:
            raise InvalidRequest(
                f"callback_on_step_end_tensor_inputs has {', '.join(sorted(strange))}; "
                f"expected some of {', '.join(self._callback_tensor_inputs)}"
            )
        if arguments.output_type not in ("pil", "np", "pt", "latent"):
            raise InvalidRequest(
                f"output_type is {arguments.output_type!r}; expected 'pil', 'np', 'pt' or 'latent'"
            )
        if self._model.facts.kind not in self.unet_kinds:
            raise InvalidRequest(
                f"the U-Net is one for {self._model.facts.kind}, which {type(self).__name__} cannot use"
            )
        self._guidance_scale, self._guidance_rescale = arguments.guidance_scale, arguments.guidance_rescale
        self._clip_skip, self._cross_attention_kwargs = arguments.clip_skip, arguments.cross_attention_kwargs
        return arguments

    def _run(
        self,
        arguments: Any,
        size: Size,
        start: Callable[[], InitialState],
        finish: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
        controls: Callable[[Any, Size], Controls] | None = None,
    ) -> Any:
        """Generate images and return them in the requested form.

        Args:
            arguments: An `arguments_class`.
            size: Height and width in pixels.
            start: Returns the initial state. It runs after the scheduler's timesteps are set, and its noise
                is drawn before that of the steps.
            finish: Post-processes the finished images.
            controls: Prepares the ControlNets from `arguments` and `size`.
        """
        scale = self.lora_scale(arguments.cross_attention_kwargs)
        tensors = self._conditioning_tensors(arguments, size, scale)
        options = self._prepare_scheduler(arguments)
        controls_at = None if controls is None else controls(arguments, size)
        initial = start()
        tensors |= {"latents": initial.latents, **initial.tensors}
        adapters = self.used_adapters(self._model, scale)
        drawn = self._sample(arguments, tensors, initial, options, adapters, controls_at)
        images = self._to_output(drawn, arguments.output_type)
        if finish is not None:
            images = finish(images)
        if arguments.return_dict:
            return self.output(images)
        return (images, None) if self.output is StableDiffusionPipelineOutput else (images,)

    def _handover_index(self, arguments: Any) -> int | None:
        """Return the index of the first timestep that another pipeline left to this one (`denoising_start`),
        or None."""
        return None

    def _end_index(self, arguments: Any) -> int | None:
        """Return the index of the first timestep that is left to another pipeline (`denoising_end`), or
        None."""
        return None

    def _conditioning_tensors(self, arguments: Any, size: Size, scale: float | None) -> dict[str, Any]:
        """Return the conditioning tensors by the names under which callbacks see them."""
        raise NotImplementedError

    def _conditionings(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        """Return the conditioning of each guidance branch, for each image."""
        raise NotImplementedError

    def _encode_texts(
        self, prompts: Sequence[str], clip_skip: int | None, adapters: tuple[UsedAdapter, ...]
    ) -> list[Conditioning]:
        """Encode prompts, each truncated to the length of one chunk."""
        call = EncodeText(tuple(prompts), "literal", (clip_skip or 0) + 1, adapters=adapters, cut=True)
        [found] = EngineCalls(self._model)([call])
        return list(found)

    def _prepare_scheduler(self, arguments: CallArguments) -> dict[str, Any]:
        """Set the scheduler's timesteps and return the options of its sampler.

        Raises:
            InvalidRequest: The scheduler does not take custom timesteps, custom sigmas or `eta`.
        """
        own: dict[str, Any] = {"timesteps": arguments.timesteps, "sigmas": arguments.sigmas}
        given = {name: value for name, value in own.items() if value is not None}
        known = inspect.signature(self.scheduler.set_timesteps).parameters
        if strange := given.keys() - known.keys():
            raise InvalidRequest(f"{type(self.scheduler).__name__} takes no custom {', '.join(strange)}")
        self.scheduler.set_timesteps(None if given else arguments.num_inference_steps, **given)
        if "eta" in inspect.signature(self.scheduler.step).parameters:
            return {"eta": arguments.eta}
        if arguments.eta:
            raise InvalidRequest(f"eta is {arguments.eta}, but {type(self.scheduler).__name__} has none")
        return {}

    def _sample(
        self,
        arguments: CallArguments,
        tensors: dict[str, Any],
        start: InitialState,
        options: Mapping[str, Any],
        adapters: tuple[UsedAdapter, ...],
        controls: Controls | None,
    ) -> Tensor:
        """Run the sampling loop for all images in lockstep.

        Args:
            tensors: "latents" [B, C, h, w] and the other tensors that a callback can read and change, by
                name.
            start: Initial state.
            options: Options of the sampler.
            adapters: LoRAs.
            controls: Active ControlNets at each U-Net call.

        Returns:
            Latents [B, C, h, w] after the last step.
        """
        order, pictures, end = self.scheduler.order, len(tensors["latents"]), self._end_index(arguments)
        more = len(self.scheduler.timesteps) - order * self.scheduler.num_inference_steps
        plan = self.scheduler.plan(start.begin_index, options)
        timesteps = self.scheduler.timesteps[start.begin_index : end]
        if len(timesteps) == 0:
            raise InvalidRequest("no steps are left to run", hint="raise num_inference_steps or strength")
        if end is not None:
            plan = plan.part(0, -(-len(timesteps) // order))
        self._num_timesteps, self._interrupt = len(timesteps), False
        scales = self.ip_adapter_scales
        sampling = LockstepSampling(
            EngineCalls(self._model),
            plan,
            self.scheduler.sampler_scale,
            tensors["latents"].float().cpu(),
            self._conditionings(tensors, pictures),
            self._guidance(),
            SharedNoise(lambda: self._draw_noise(tensors["latents"].shape, arguments.generator), pictures),
            adapters,
            () if controls is None else controls(0, len(timesteps)),
            self._image_prompt_features(arguments),
        )
        with self.progress_bar(-(-len(timesteps) // order)) as bar:
            for number, _ in enumerate(sampling.steps()):
                if start.blend is not None:
                    sampling.latents = start.blend(number, sampling.latents)
                if arguments.callback_on_step_end is not None:
                    tensors["latents"] = self._copy_to_device(sampling.latents)
                    shown = {name: tensors[name] for name in arguments.callback_on_step_end_tensor_inputs}
                    changed = arguments.callback_on_step_end(self, number, timesteps[number], shown)
                    if changed.get("latents", tensors["latents"]) is not tensors["latents"]:
                        sampling.latents = changed["latents"]
                    tensors |= {name: changed[name] for name in changed.keys() & tensors.keys()}
                    sampling.conditionings = self._conditionings(tensors, pictures)
                    sampling.guidance = self._guidance()
                    if self.ip_adapter_scales != scales:
                        scales = self.ip_adapter_scales
                        sampling.image_prompts = self._image_prompt_features(arguments)
                if controls is not None and number + 1 < len(timesteps):
                    sampling.controls = controls(number + 1, len(timesteps))
                if (number + 1) % order == 0 or number + 1 == len(timesteps):
                    bar.update()
                    past_warmup = (
                        number + 1 > more
                    )  # as in diffusers, where the first step takes several calls
                    if (
                        arguments.callback is not None
                        and past_warmup
                        and number % arguments.callback_steps == 0
                    ):
                        arguments.callback(
                            number // order, timesteps[number], self._copy_to_device(sampling.latents)
                        )
                if self._interrupt:
                    break
        return sampling.latents.float().cpu()

    def _image_prompt_features(self, arguments: CallArguments) -> tuple[EncodedImagePrompt, ...]:
        """Encode the image prompts of the IP-Adapters."""
        execute = EngineCalls(self._model)
        used = self.image_prompts(self._model, arguments.ip_adapter_image)
        images = InputImages()
        return tuple(seen for one in used for seen in execute([read_image_prompt(one, images)]))

    def _initial_latents(self, arguments: CallArguments, size: Size) -> Tensor:
        """Return the initial latents: the given ones or noise, times the scheduler's initial sigma."""
        unit, channels = self.vae_scale_factor, self._model.checkpoint.vae_config.latent_channels
        shape = (arguments.image_count, channels, size[0] // unit, size[1] // unit)
        if arguments.latents is not None and arguments.latents.shape != shape:
            raise InvalidRequest(f"latents are {tuple(arguments.latents.shape)}, expected {shape}")
        latents = (
            self._draw_noise(shape, arguments.generator) if arguments.latents is None else arguments.latents
        )
        first: Tensor = latents * self.scheduler.init_noise_sigma
        return first

    def _draw_noise(self, shape: Sequence[int], generator: Generators) -> Tensor:
        """Draw noise on the pipeline's device and in its dtype; return it in float32 on the CPU."""
        return randn_tensor(shape, generator, self.device, self.dtype).float().cpu()

    def _guidance(self) -> ClassifierFreeGuidance:
        guided = self.do_classifier_free_guidance
        return ClassifierFreeGuidance(self._guidance_scale if guided else 1.0, self._guidance_rescale)

    def _copy_to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the pipeline's device and dtype, for callbacks and outputs."""
        return tensor.to(self.device, self.dtype, copy=True)

    def _to_output(self, latents: Tensor, output_type: str) -> Any:
        """Decode latents at the U-Net's scale to images of `output_type`; "latent" returns them undecoded."""
        if output_type == "latent":
            return self._copy_to_device(latents)
        tiled, sliced = self._tiled, self._sliced
        made = self._parts.loaded("vae")
        if made is not None:
            tiled, sliced = tiled or made.use_tiling, sliced or made.use_slicing
        pictures = to_output(
            EngineCalls(self._model).decode(latents, tiled=tiled, sliced=sliced), output_type
        )
        return self._copy_to_device(pictures) if output_type == "pt" else pictures


def one_per_prompt(prompts: Prompts, count: int, what: str) -> list[str]:
    """Return a list of `count` texts; a single text is repeated, None is the empty text.

    Args:
        what: Name of the argument, for the error.

    Raises:
        InvalidRequest: A list of another length was given.
    """
    if prompts is None or isinstance(prompts, str):
        return [prompts or ""] * count
    if len(prompts) != count:
        raise InvalidRequest(
            f"{what} has {len(prompts)} texts, expected as many as there are prompts, {count}"
        )
    return list(prompts)


def repeat_rows(tensor: Tensor, times: int) -> Tensor:
    """Repeat each row of [B, …] `times` times, copies adjacent: [B * times, …]."""
    return tensor.repeat_interleave(times, dim=0)


def split_branches(tensor: Tensor, pictures: int) -> tuple[Tensor | None, Tensor]:
    """Split [2 * images, …] into its negative and positive half; without a negative half, (None, rows)."""
    rows = tensor.float().cpu()
    return (rows[:pictures], rows[pictures:]) if len(rows) == 2 * pictures else (None, rows)
