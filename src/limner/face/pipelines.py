"""Pipelines with the arguments, the defaults and the order of draws that diffusers has."""

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.diffusion.guidance import ClassifierFreeGuidance
from limner.errors import InvalidRequest, UnsupportedModel
from limner.pipeline.adapting import UsedAdapter
from limner.pipeline.backends.base import OffloadName
from limner.pipeline.calls import Conditioning, EncodeText, ReadImagePrompt
from limner.pipeline.controlling import Controlled
from limner.pipeline.image_prompts import SeenPictures
from limner.pipeline.loading import find
from limner.pipeline.model import Model
from limner.weights.checkpoint import MODEL_INDEX
from limner.weights.files import read_json
from limner.weights.hub import Access
from limner.weights.save import write_json

from .adapters import Adapters
from .drawing import Answers, Drawing
from .files import Place, refuse, refuse_pickles, single_file
from .noise import Generators, SharedNoise, draw
from .parts import Parts, Stored
from .pictures import VaeImageProcessor, finished
from .schedulers import Scheduler, scheduler_from
from .values import Config, NotOffered, Output

Prompts = str | Sequence[str] | None
Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
Size = tuple[int, int]
Controls = Callable[[int, int], Sequence[tuple[Controlled, ...]]]
"""Which ControlNets are at work on each picture at a call of the U-Net, from 0, of so many."""

_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
_OWN = ("scheduler", "controlnet")  # components that a pipeline itself keeps
_ANY: Any = object()
_LOADING_WITHOUT = (
    *("add_watermarker", "enable_pag", "custom_pipeline", "custom_revision", "trust_remote_code"),
    *("max_memory", "offload_folder", "offload_state_dict", "quantization_config", *_ABSENT[1:]),
)
_SINGLE_WITHOUT = (
    *("config", "original_config", "original_config_file", "load_safety_checker", "extract_ema"),
    *("image_size", "num_in_channels", "prediction_type", "scheduler_type", "upcast_attention"),
)
_NOT_OFFERED = {
    "check_inputs": "arguments are checked when something is drawn",
    "enable_freeu": "FreeU is not offered",
    "enable_group_offload": "say enable_model_cpu_offload()",
    "enable_layerwise_casting": "say to(torch.bfloat16)",
    "prepare_ip_adapter_image_embeds": "give ip_adapter_image",
    "prepare_latents": "give latents of your own: torch.randn(shape, generator=…)",
    "register_modules": "assign to the component: pipe.unet = …",
    "upcast_vae": "load the pipeline in float32 or bfloat16",
}
"""What programs ask of diffusers' pipelines that there is not here -> what to do."""


@dataclass(frozen=True)
class Ask:
    """What every call may say, under diffusers' names, and what it means if nothing is said."""

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
    def prompts(self) -> int:
        """How many there are.

        Raises:
            InvalidRequest: none, or texts and embeddings of them both.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise InvalidRequest("give either prompt or prompt_embeds")
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt or ())

    @property
    def pictures(self) -> int:
        """How many are asked for."""
        return self.prompts * self.num_images_per_prompt


@dataclass(frozen=True)
class Start:
    """Where a drawing begins.

    Attributes:
        latents: [B, C, h, w] at the scheduler's scale.
        begin: which of the scheduler's timesteps is the first.
        tensors: what else a callback may see and change: mask, masked_image_latents.
        blend: changes the latents after a call of the U-Net: of its number and the latents.
    """

    latents: Tensor
    begin: int = 0
    tensors: Mapping[str, Any] = field(default_factory=dict)
    blend: Callable[[int, Tensor], Tensor] | None = None


@dataclass
class StableDiffusionPipelineOutput(Output):
    """What a pipeline gives.

    Attributes:
        images: PIL images, or an array [B, H, W, 3] or a tensor [B, 3, H, W] in [0, 1], or latents.
        nsfw_content_detected: None: no picture is judged.
    """

    images: Any
    nsfw_content_detected: None = None


@dataclass
class StableDiffusionXLPipelineOutput(Output):
    """As `StableDiffusionPipelineOutput`."""

    images: Any


class DiffusionPipeline(Adapters):
    """What all pipelines have; `DiffusionPipeline.from_pretrained` gives one of the class that a model names.

    Attributes:
        scheduler: of its class and settings are the steps that a call takes. Another may take its place.
        name_or_path: where the components come from.
    """

    component_names: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    ask: ClassVar[type[Ask]] = Ask
    defaults: ClassVar[Mapping[str, Any]] = {}  # where they are others than those of `ask`
    output: ClassVar[type[Any]] = StableDiffusionPipelineOutput
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    steps_offset: ClassVar[int | None] = None  # what schedulers have that a pipeline is made with

    def __init__(
        self,
        *,
        requires_safety_checker: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        **given: Any,
    ) -> None:
        """A pipeline of components, as another one's `components` or `from_pretrained` of each give them.

        Raises:
            TypeError: a component that this pipeline does not have, or one that it needs is missing.
            InvalidRequest: a safety checker or image encoder, which are not offered.
        """
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        if unknown := given.keys() - {*self.component_names, *_ABSENT}:
            raise TypeError(f"{type(self).__name__} has no component {', '.join(sorted(unknown))}")
        needed = [name for name in self.component_names if name not in self.optional]
        if missing := [name for name in needed if given.get(name) is None]:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")
        for name in _ABSENT:
            if given.pop(name, None) is not None:
                raise InvalidRequest(f"{name} is not offered", hint=f"say {name}=None")
        own = {name: given.pop(name) for name in _OWN if name in given}
        self._adopt(_parts_of(given, force_zeros_for_empty_prompt and self.is_xl), own)

    def _adopt(self, parts: Parts, own: Mapping[str, Any]) -> None:
        """Take components: those that pipelines share, and the scheduler and ControlNets."""
        super().__init__()
        self._parts = parts
        scheduler = own["scheduler"]
        if self.steps_offset not in (None, scheduler.config.get("steps_offset", self.steps_offset)):
            warnings.warn(
                f"the scheduler's steps_offset is {scheduler.config['steps_offset']}; as in diffusers, "
                f"{type(self).__name__} takes {self.steps_offset}",
                stacklevel=3,
            )
            changed = {"steps_offset": self.steps_offset}
            own = {**own, "scheduler": scheduler.from_config(scheduler.config, **changed)}
        for name, component in own.items():
            setattr(self, name, component)
        self._guidance_scale = self._guidance_rescale = 0.0
        self._clip_skip: int | None = None
        self._cross_attention_kwargs: Mapping[str, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = self._tiled = self._sliced = False
        self._progress: dict[str, Any] = {}

    @property
    def is_xl(self) -> bool:
        """Whether it is one for XL."""
        return "text_encoder_2" in self.component_names

    @classmethod
    def from_pipe(
        cls, pipeline: "DiffusionPipeline", *, torch_dtype: torch.dtype | None = None, **given: Any
    ) -> Self:
        """A pipeline of this class with the components of another one, and its adapters.

        Args:
            torch_dtype: to draw in, as of `to`, for both: they share their networks.
            given: components in the place of the other one's, or that it does not have: controlnet.
        """
        made = cls.__new__(cls)
        made.force_zeros_for_empty_prompt = pipeline.force_zeros_for_empty_prompt
        own = {name: given.pop(name) for name in _OWN if name in given}
        if unknown := given.keys() - {*cls.component_names}:
            raise TypeError(f"{cls.__name__} has no component {', '.join(sorted(unknown))}")
        made._adopt(pipeline._parts, cls._own_of(own, pipeline.scheduler))
        for name, component in given.items():
            setattr(made, name, component)
        made.take_adapters(pipeline)
        return made.to(torch_dtype)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        **given: Any,
    ) -> Self:
        """The pipeline of a checkpoint in one file.

        Args:
            pretrained_model_link_or_path: a .safetensors file, or its page on the hub.
            given: as of `from_pretrained`.

        Raises:
            As `from_pretrained`.
        """
        refuse({name: given.pop(name) for name in _SINGLE_WITHOUT if name in given}, _SINGLE_WITHOUT)
        path, own = single_file(pretrained_model_link_or_path, given)
        access = {one.name: given[one.name] for one in fields(Access) if one.name in given}
        made: Self = cls.from_pretrained(path, **own, **access)
        return made

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        safety_checker: None = _ANY,
        requires_safety_checker: bool = False,
        low_cpu_mem_usage: bool = True,
        **given: Any,
    ) -> Any:
        """The pipeline of a folder or a hub id. Networks are read when something is drawn.

        Args:
            torch_dtype, dtype: of the networks; None is float32.
            variant: of the weight files, such as "fp16".
            safety_checker: None: it is not offered.
            low_cpu_mem_usage: no effect: hardly more is in memory while weights are read than then.
            given: of the hub revision, cache_dir, token and local_files_only, which takes what is in its
                cache; and components to take the place of the model's.

        Raises:
            ModelNotFound, InvalidCheckpoint, PickleRefused, UnsupportedModel: as `limner.load`.
            TypeError: an argument that is unknown.
            InvalidRequest: one that is not offered.
        """
        refuse_pickles(use_safetensors)
        place, given = Place.of(pretrained_model_name_or_path, given)
        refuse({name: given.pop(name) for name in _LOADING_WITHOUT if name in given}, _LOADING_WITHOUT)
        source = find(
            place.reference,
            revision=place.revision,
            variant=variant,
            access=place.access,
            device="cpu",
            precision="fp32",
        )
        for told in source.warnings:
            warnings.warn(told, stacklevel=2)
        index = read_json(source.checkpoint.folder / MODEL_INDEX) if source.checkpoint.single is None else {}
        kind = cls._of(index)
        if safety_checker is _ANY and index.get("safety_checker", [None])[0] is not None:
            warnings.warn(
                "the model's safety checker is not used; safety_checker=None says that you know", stacklevel=2
            )
        elif safety_checker not in (_ANY, None):
            raise InvalidRequest("safety_checker is not offered", hint="say safety_checker=None")
        if unknown := given.keys() - {*kind.component_names}:
            raise TypeError(f"{kind.__name__} has no component {', '.join(sorted(unknown))}")
        if "controlnet" in kind.component_names and source.checkpoint.controlled:
            given.setdefault("controlnet", kind._controlnet(place, index["controlnet"][-1], variant))
        scheduler = given.pop("scheduler", None) or scheduler_from(source.checkpoint.scheduler_config)
        held = kind._own_of({name: given.pop(name) for name in _OWN if name in given}, scheduler)
        own = {name: given[name] for name in given if given[name] is not None}
        zero = source.checkpoint.zero_negative
        name = str(place.reference)
        parts = Parts(source.checkpoint, own, name=name, dtype=torch.float32, zero_negative=zero)
        pipeline = kind.__new__(kind)
        pipeline.force_zeros_for_empty_prompt = zero
        pipeline._adopt(parts, held)
        parts.move(None, torch_dtype or dtype)
        return pipeline

    @classmethod
    def _controlnet(cls, place: Place, kind: str, variant: str | None) -> Any:
        """The ControlNets that a model comes with.

        Args:
            kind: the name of their class.
        """
        raise NotImplementedError

    @classmethod
    def _own_of(cls, given: Mapping[str, Any], scheduler: Scheduler) -> dict[str, Any]:
        """The components that a pipeline itself keeps.

        Raises:
            TypeError: one that is missing or unknown.
        """
        own = {"scheduler": scheduler, **given}
        expected = {name for name in cls.component_names if name in _OWN}
        if wrong := own.keys() ^ expected:
            what = "needs" if wrong <= expected else "has no component"
            raise TypeError(f"{cls.__name__} {what} {', '.join(sorted(wrong))}")
        return own

    @classmethod
    def _of(cls, index: Mapping[str, Any]) -> "type[DiffusionPipeline]":
        """The class to make for a `model_index.json`."""
        if cls is not DiffusionPipeline:
            return cls
        from .classes import PIPELINES

        name = str(index.get("_class_name"))
        if name not in PIPELINES:
            raise UnsupportedModel(f"{name} is not offered", hint=f"there are {', '.join(PIPELINES)}")
        return PIPELINES[name]

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, of which another pipeline can be made: `Other(**pipe.components)`."""
        own = {name: getattr(self, name) for name in self.component_names if name in _OWN}
        return {**self._networks, **own, **dict.fromkeys(_ABSENT)}

    def __getattr__(self, name: str) -> Any:
        if name in type(self).component_names:
            return self._parts.component(name)
        if name in _ABSENT:
            return None
        if name in _NOT_OFFERED:
            raise NotOffered(f"{type(self).__name__} has no {name}", hint=_NOT_OFFERED[name])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ABSENT and value is not None:
            raise InvalidRequest(f"{name} is not offered", hint="leave it at None")
        if name in self.component_names and name not in _OWN:
            self._parts = _parts_of({**self._networks, name: value}, self._parts.zero_negative)
        elif name not in _ABSENT:
            super().__setattr__(name, value)

    @property
    def _networks(self) -> dict[str, Any]:
        names = [name for name in self.component_names if name not in _OWN]
        return {name: self._parts.stored(name) for name in names}

    @property
    def name_or_path(self) -> str:
        """Where the components come from."""
        return self._parts.name

    def to(self, *where: Any, device: Any = None, dtype: torch.dtype | None = None) -> Self:
        """Draw on another device, in another dtype, or both.

        Raises:
            InvalidRequest: there is none like it.
        """
        for value in where:
            if isinstance(value, torch.dtype):
                dtype = value
            elif value is not None:
                device = value
        self._parts.move(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """That it draws on."""
        return self._parts.device

    _execution_device = device  # as community pipelines call it

    @property
    def dtype(self) -> torch.dtype:
        """That it draws in."""
        return self._parts.dtype

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of tqdm, such as disable=True."""
        self._progress = settings

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """No effect: attention never holds all scores at once."""

    def disable_attention_slicing(self) -> None:
        """No effect, as of `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: None = None) -> None:
        """No effect, as of `enable_attention_slicing`."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """No effect, as of `enable_attention_slicing`."""

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time."""
        self._sliced = True

    def disable_vae_slicing(self) -> None:
        """Decode as many pictures together as fit."""
        self._sliced = False

    def enable_vae_tiling(self) -> None:
        """Decode pictures piece by piece."""
        self._tiled = True

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole where they fit."""
        self._tiled = False

    def fuse_qkv_projections(self) -> None:
        """No effect, as of `enable_attention_slicing`: projections are joined where that is faster."""

    def unfuse_qkv_projections(self) -> None:
        """No effect, as of `fuse_qkv_projections`."""

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the network that is running on the GPU; no effect where the device is the CPU.

        Raises:
            InvalidRequest: there is no GPU.
        """
        self._offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the block that is running on the GPU. As `enable_model_cpu_offload`."""
        self._offload("sequential", gpu_id, device)

    def _offload(self, what: OffloadName, gpu_id: int | None, device: str | torch.device) -> None:
        where = str(device) if gpu_id is None else f"{device}:{gpu_id}"
        if where.startswith("cuda") and not torch.cuda.is_available():
            raise InvalidRequest(
                "networks are kept off a GPU, and this machine has none", hint="leave it out on a CPU"
            )
        self._parts.move(where, None)
        self._parts.offload = "none" if self.device.type == "cpu" else what

    def maybe_free_model_hooks(self) -> None:
        """No effect: there are no hooks."""

    def remove_all_hooks(self) -> None:
        """No effect: there are no hooks."""

    def save_pretrained(self, save_directory: str | Path, *, safe_serialization: bool = True) -> None:
        """Write all components into a folder, which diffusers opens too.

        Raises:
            InvalidRequest: pickles are asked for.
        """
        refuse_pickles(safe_serialization)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.component_names:
            if (component := getattr(self, name)) is not None:
                component.save_pretrained(folder / name)
        write_json(folder / MODEL_INDEX, self.config)

    @property
    def config(self) -> Config:
        """What `model_index.json` says of this pipeline."""
        index: dict[str, Any] = {"_class_name": type(self).__name__}
        for name in self.component_names:
            component = getattr(self, name)
            library = "transformers" if name.startswith(("text", "token")) else "diffusers"
            index[name] = [None, None] if component is None else [library, type(component).__name__]
        absent = _ABSENT[1:] if self.is_xl else _ABSENT
        index |= {name: [None, None] for name in absent}
        if self.is_xl:
            index["force_zeros_for_empty_prompt"] = self.force_zeros_for_empty_prompt
        else:
            index["requires_safety_checker"] = False
        return Config(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.config, indent=2)}"

    @property
    def guidance_scale(self) -> float:
        """Of the call in progress; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """Of the call in progress."""
        return self._guidance_rescale

    @property
    def clip_skip(self) -> int | None:
        """Of the call in progress."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Of the call in progress."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """How many calls of the U-Net the call in progress takes."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress is to stop; a callback may set `_interrupt`."""
        return self._interrupt

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the negative prompt counts."""
        return self._guidance_scale > 1 and self._model.checkpoint.unet_config.time_cond_proj_dim is None

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels a latent pixel stands for, in each direction."""
        return self._model.checkpoint.vae_config.downscale

    @property
    def image_processor(self) -> VaeImageProcessor:
        """What makes tensors of pictures and pictures of tensors."""
        return VaeImageProcessor(self.vae_scale_factor)

    @property
    def _model(self) -> Model:
        """The model that draws."""
        return self._parts.model(self.scheduler.config.prediction_type, self.words)

    @contextmanager
    def progress_bar(self, total: int) -> Any:
        """Tell on stderr how far the steps are."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        with tqdm(total=total, **self._progress) as bar:  # type: ignore[no-untyped-call]
            yield bar

    def _sized(self, height: int | None, width: int | None) -> Size:
        """Height and width, or those that the model was trained for.

        Raises:
            InvalidRequest: they are no multiples of 8.
        """
        own = self._model.checkpoint.unet_config.sample_size * self.vae_scale_factor
        height, width = height or own, width or own
        if height % 8 or width % 8:
            raise InvalidRequest(f"{width}x{height} pixels: width and height must be multiples of 8")
        return height, width

    def _asked(self, given: Mapping[str, Any]) -> Any:
        """The arguments of a call.

        Raises:
            TypeError: one that is unknown.
            InvalidRequest: one that is not offered, or that this model cannot honour.
        """
        if unknown := given.keys() - {one.name for one in fields(self.ask)}:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}")
        ask = self.ask(**{**self.defaults, **given})
        if (wanted := getattr(ask.callback_on_step_end, "tensor_inputs", None)) is not None:
            ask = replace(ask, callback_on_step_end_tensor_inputs=wanted)  # a callback that knows its own
        if ask.callback_steps is None or ask.callback_steps < 1:
            raise InvalidRequest(f"callback_steps is {ask.callback_steps}; expected 1 or more")
        if ask.ip_adapter_image_embeds is not None:
            raise InvalidRequest("ip_adapter_image_embeds is not offered", hint="give ip_adapter_image")
        if strange := {*ask.callback_on_step_end_tensor_inputs} - {*self._callback_tensor_inputs}:
            raise InvalidRequest(
                f"callback_on_step_end_tensor_inputs has {', '.join(sorted(strange))}; "
                f"expected some of {', '.join(self._callback_tensor_inputs)}"
            )
        if ask.output_type not in ("pil", "np", "pt", "latent"):
            raise InvalidRequest(
                f"output_type is {ask.output_type!r}; expected 'pil', 'np', 'pt' or 'latent'"
            )
        if self._model.traits.kind not in self.kinds:
            raise InvalidRequest(
                f"the U-Net is one for {self._model.traits.kind}, which {type(self).__name__} cannot use"
            )
        self._guidance_scale, self._guidance_rescale = ask.guidance_scale, ask.guidance_rescale
        self._clip_skip, self._cross_attention_kwargs = ask.clip_skip, ask.cross_attention_kwargs
        return ask

    def _call(
        self,
        ask: Any,
        size: Size,
        start: Callable[[], Start],
        finish: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
        controls: Callable[[Any, Size], Controls] | None = None,
    ) -> Any:
        """Draw what is asked for.

        Args:
            size: height and width in pixels.
            start: tells where it begins, once the scheduler's timesteps are set; what it draws comes first.
            finish: does something to finished pictures.
            controls: has ControlNets read their pictures, given `ask` and `size`.
        """
        scale = self.lora_scale(ask.cross_attention_kwargs)
        tensors = self._told_tensors(ask, size, scale)
        options = self._begin(ask)
        steering = None if controls is None else controls(ask, size)
        begun = start()
        tensors |= {"latents": begun.latents, **begun.tensors}
        adapters = self.used_adapters(self._model, scale)
        drawn = self._draw(ask, tensors, begun, options, adapters, steering)
        images = self._finished(drawn, ask.output_type)
        if finish is not None:
            images = finish(images)
        if ask.return_dict:
            return self.output(images)
        return (images, None) if self.output is StableDiffusionPipelineOutput else (images,)

    def _begun_at(self, ask: Any) -> int | None:
        """At which of the scheduler's timesteps another pipeline has left off; None if none has."""
        return None

    def _end(self, ask: Any) -> int | None:
        """The first of the scheduler's timesteps that is left to another pipeline; None if none is."""
        return None

    def _told_tensors(self, ask: Any, size: Size, scale: float | None) -> dict[str, Any]:
        """What the U-Net is told, in the form that callbacks know."""
        raise NotImplementedError

    def _told(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        """What the U-Net is told in each branch, for each picture."""
        raise NotImplementedError

    def _texts(
        self, prompts: Sequence[str], clip_skip: int | None, adapters: tuple[UsedAdapter, ...]
    ) -> list[Conditioning]:
        """What the text encoders make of prompts, each cut to what they take at once."""
        call = EncodeText(tuple(prompts), "literal", (clip_skip or 0) + 1, adapters=adapters, cut=True)
        [found] = Answers(self._model)([call])
        return list(found)

    def _begin(self, ask: Ask) -> dict[str, Any]:
        """Set the scheduler's timesteps, and return the options of its sampler.

        Raises:
            InvalidRequest: an argument that the scheduler does not have.
        """
        own: dict[str, Any] = {"timesteps": ask.timesteps, "sigmas": ask.sigmas}
        given = {name: value for name, value in own.items() if value is not None}
        known = inspect.signature(self.scheduler.set_timesteps).parameters
        if strange := given.keys() - known.keys():
            raise InvalidRequest(f"{type(self.scheduler).__name__} takes no {', '.join(strange)} of your own")
        self.scheduler.set_timesteps(None if given else ask.num_inference_steps, **given)
        if "eta" in inspect.signature(self.scheduler.step).parameters:
            return {"eta": ask.eta}
        if ask.eta:
            raise InvalidRequest(f"eta is {ask.eta}, but {type(self.scheduler).__name__} has none")
        return {}

    def _draw(
        self,
        ask: Ask,
        tensors: dict[str, Any],
        start: Start,
        options: Mapping[str, Any],
        adapters: tuple[UsedAdapter, ...],
        controls: Controls | None,
    ) -> Tensor:
        """Draw pictures in step with each other.

        Args:
            tensors: "latents" [B, C, h, w] and what else a callback may see and change, by name.
            options: of the sampler.

        Returns:
            latents [B, C, h, w], where the last step left them.
        """
        order, pictures, end = self.scheduler.order, len(tensors["latents"]), self._end(ask)
        more = len(self.scheduler.timesteps) - order * self.scheduler.num_inference_steps
        plan = self.scheduler.plan(start.begin, options)
        timesteps = self.scheduler.timesteps[start.begin : end]
        if len(timesteps) == 0:
            raise InvalidRequest("of the steps none is left to take", hint="raise their number, or strength")
        if end is not None:
            plan = plan.part(0, -(-len(timesteps) // order))
        self._num_timesteps, self._interrupt = len(timesteps), False
        scales = self.ip_adapter_scales
        drawing = Drawing(
            Answers(self._model),
            plan,
            self.scheduler.norm,
            tensors["latents"].float().cpu(),
            self._told(tensors, pictures),
            self._guidance(),
            SharedNoise(lambda: self._drawn(tensors["latents"].shape, ask.generator), pictures),
            adapters,
            () if controls is None else controls(0, len(timesteps)),
            self._seen(ask),
        )
        with self.progress_bar(-(-len(timesteps) // order)) as bar:
            for number, _ in enumerate(drawing.steps()):
                if start.blend is not None:
                    drawing.latents = start.blend(number, drawing.latents)
                if ask.callback_on_step_end is not None:
                    tensors["latents"] = self._out(drawing.latents)
                    shown = {name: tensors[name] for name in ask.callback_on_step_end_tensor_inputs}
                    changed = ask.callback_on_step_end(self, number, timesteps[number], shown)
                    if changed.get("latents", tensors["latents"]) is not tensors["latents"]:
                        drawing.latents = changed["latents"]
                    tensors |= {name: changed[name] for name in changed.keys() & tensors.keys()}
                    drawing.told, drawing.guidance = self._told(tensors, pictures), self._guidance()
                    if self.ip_adapter_scales != scales:
                        scales, drawing.pictures = self.ip_adapter_scales, self._seen(ask)
                if controls is not None and number + 1 < len(timesteps):
                    drawing.controls = controls(number + 1, len(timesteps))
                if (number + 1) % order == 0 or number + 1 == len(timesteps):
                    bar.update()
                    told = number + 1 > more  # as diffusers counts, where the first step takes more calls
                    if ask.callback is not None and told and number % ask.callback_steps == 0:
                        ask.callback(number // order, timesteps[number], self._out(drawing.latents))
                if self._interrupt:
                    break
        return drawing.latents.float().cpu()

    def _seen(self, ask: Ask) -> tuple[SeenPictures, ...]:
        """What IP-Adapters make of their pictures."""
        answers = Answers(self._model)
        used = self.image_prompts(self._model, ask.ip_adapter_image)
        return tuple(seen for one in used for seen in answers([ReadImagePrompt(one)]))

    def _first(self, ask: Ask, size: Size) -> Tensor:
        """The first latents, of noise or of what was given."""
        unit, channels = self.vae_scale_factor, self._model.checkpoint.vae_config.latent_channels
        shape = (ask.pictures, channels, size[0] // unit, size[1] // unit)
        if ask.latents is not None and ask.latents.shape != shape:
            raise InvalidRequest(f"latents are {tuple(ask.latents.shape)}, expected {shape}")
        latents = self._drawn(shape, ask.generator) if ask.latents is None else ask.latents
        first: Tensor = latents * self.scheduler.init_noise_sigma
        return first

    def _drawn(self, shape: Sequence[int], generator: Generators) -> Tensor:
        """Noise as it would be drawn on the pipeline's device, in its dtype."""
        return draw(shape, generator, self.device, self.dtype).float().cpu()

    def _guidance(self) -> ClassifierFreeGuidance:
        guided = self.do_classifier_free_guidance
        return ClassifierFreeGuidance(self._guidance_scale if guided else 1.0, self._guidance_rescale)

    def _out(self, tensor: Tensor) -> Tensor:
        """A tensor as it is handed to a callback or returned: a new one, on the pipeline's device."""
        return tensor.to(self.device, self.dtype, copy=True)

    def _finished(self, latents: Tensor, output_type: str) -> Any:
        """Pictures in the form that was asked for, from latents as the U-Net knows them."""
        if output_type == "latent":
            return self._out(latents)
        tiled, sliced = self._tiled, self._sliced
        made = self._parts.made("vae")
        if made is not None:
            tiled, sliced = tiled or made.use_tiling, sliced or made.use_slicing
        pictures = finished(Answers(self._model).decode(latents, tiled=tiled, sliced=sliced), output_type)
        return self._out(pictures) if output_type == "pt" else pictures

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """Arrays [B, H, W, 3] in [0, 1], or one [H, W, 3], to images."""
        batch = images[None] if images.ndim == 3 else images
        return [Image.fromarray(rows) for rows in (batch * 255).round().astype("uint8")]


def _parts_of(given: Mapping[str, Any], zero_negative: bool) -> Parts:
    """The parts of components; shared with the pipeline that they come from, if they all come from one."""
    owners = {id(value.parts): value.parts for value in given.values() if isinstance(value, Stored)}
    if len(owners) == 1:
        [parts] = owners.values()
        if all(parts.stored(name) is value or isinstance(value, Stored) for name, value in given.items()):
            return parts
        own = {n: value for n, value in given.items() if value is not None and not isinstance(value, Stored)}
        return parts.with_components(own)
    plain = {name: value.component if isinstance(value, Stored) else value for name, value in given.items()}
    plain = {name: value for name, value in plain.items() if value is not None}
    parts = Parts(None, plain, zero_negative=zero_negative)
    first = plain["unet"]
    parts.dtype, parts.device = first.dtype, first.device
    return parts


def repeated(prompts: Prompts, count: int, what: str) -> list[str]:
    """One text for each of `count` prompts.

    Raises:
        InvalidRequest: a list of another length.
    """
    if prompts is None or isinstance(prompts, str):
        return [prompts or ""] * count
    if len(prompts) != count:
        raise InvalidRequest(
            f"{what} has {len(prompts)} texts, expected as many as there are prompts, {count}"
        )
    return list(prompts)


def each(tensor: Tensor, times: int) -> Tensor:
    """Rows [B, …] repeated, those of one prompt side by side: [B * times, …]."""
    return tensor.repeat_interleave(times, dim=0)


def halves(tensor: Tensor, pictures: int) -> tuple[Tensor | None, Tensor]:
    """The negative half of rows, if there is one, and the positive."""
    rows = tensor.float().cpu()
    return (rows[:pictures], rows[pictures:]) if len(rows) == 2 * pictures else (None, rows)
