"""The base class of all pipelines: loading, components, saving."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from limner.catalogue.layout import MODEL_INDEX
from limner.errors import InvalidRequest, UnsupportedModel
from limner.files import read_json
from limner.model.loading import find
from limner.model.options import LoadOptions
from limner.weights.hub import Access
from limner.weights.save import write_json

from .calling import PipelineCall
from .files import ComponentLocation, reject_pickles, reject_unsupported, single_file
from .parts import Parts, StoredComponent
from .schedulers import Scheduler, scheduler_from
from .values import Config, UnsupportedAttribute, named_subclasses

_UNSUPPORTED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
_PIPELINE_COMPONENTS = (
    "scheduler",
    "controlnet",
)  # components that pipelines with the same networks do not share
_ANY: Any = object()
_UNSUPPORTED_LOADING = (
    *("add_watermarker", "enable_pag", "custom_pipeline", "custom_revision", "trust_remote_code"),
    *(
        "max_memory",
        "offload_folder",
        "offload_state_dict",
        "quantization_config",
        *_UNSUPPORTED_COMPONENTS[1:],
    ),
)
_UNSUPPORTED_SINGLE_FILE = (
    *("config", "original_config", "original_config_file", "load_safety_checker", "extract_ema"),
    *("image_size", "num_in_channels", "prediction_type", "scheduler_type", "upcast_attention"),
)
_UNSUPPORTED_ATTRIBUTES = {
    "check_inputs": "arguments are checked by the call itself",
    "enable_freeu": "FreeU is not offered",
    "enable_group_offload": "say enable_model_cpu_offload()",
    "enable_layerwise_casting": "say to(torch.bfloat16)",
    "prepare_ip_adapter_image_embeds": "give ip_adapter_image",
    "prepare_latents": "give latents: torch.randn(shape, generator=…)",
    "register_modules": "assign to the component: pipe.unet = …",
    "upcast_vae": "load the pipeline in float32 or bfloat16",
}
"""Attribute of diffusers' pipelines that Limner does not support -> what to do instead."""


class DiffusionPipeline(PipelineCall):
    """Base of all pipelines. `DiffusionPipeline.from_pretrained` returns an instance of the class that a
    model names.

    Attributes:
        scheduler: Scheduler of the calls. It can be replaced.
        name_or_path: Source of the components.
        component_names: Names of the components.
        optional: Names of the components that may be None.
        steps_offset: `steps_offset` that the pipeline sets on its scheduler; None sets none.
    """

    component_names: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    steps_offset: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        requires_safety_checker: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        **given: Any,
    ) -> None:
        """Build a pipeline from components: those of another pipeline, or loaded one by one with
        `from_pretrained`.

        Raises:
            TypeError: A component is unknown or missing.
            InvalidRequest: A safety checker or image encoder was given, which Limner does not support.
        """
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        if unknown := given.keys() - {*self.component_names, *_UNSUPPORTED_COMPONENTS}:
            raise TypeError(f"{type(self).__name__} has no component {', '.join(sorted(unknown))}")
        needed = [name for name in self.component_names if name not in self.optional]
        if missing := [name for name in needed if given.get(name) is None]:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")
        for name in _UNSUPPORTED_COMPONENTS:
            if given.pop(name, None) is not None:
                raise InvalidRequest(f"{name} is not offered", hint=f"say {name}=None")
        own = {name: given.pop(name) for name in _PIPELINE_COMPONENTS if name in given}
        self._set_components(_build_parts(given, force_zeros_for_empty_prompt and self.is_xl), own)

    def _set_components(self, parts: Parts, own: Mapping[str, Any]) -> None:
        """Set the shared components, and the pipeline's own scheduler and ControlNets."""
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
        """Whether this is an XL pipeline."""
        return "text_encoder_2" in self.component_names

    @classmethod
    def from_pipe(
        cls, pipeline: "DiffusionPipeline", *, torch_dtype: torch.dtype | None = None, **given: Any
    ) -> Self:
        """Return a pipeline of this class with the components and adapters of another one.

        Args:
            torch_dtype: Dtype to move to, as in `to`; it applies to both pipelines, as they share their
                networks.
            given: Components that replace those of `pipeline`, or that it lacks, such as `controlnet`.
        """
        made = cls.__new__(cls)
        made.force_zeros_for_empty_prompt = pipeline.force_zeros_for_empty_prompt
        own = {name: given.pop(name) for name in _PIPELINE_COMPONENTS if name in given}
        if unknown := given.keys() - {*cls.component_names}:
            raise TypeError(f"{cls.__name__} has no component {', '.join(sorted(unknown))}")
        made._set_components(pipeline._parts, cls._pipeline_components(own, pipeline.scheduler))
        for name, component in given.items():
            setattr(made, name, component)
        made.copy_adapters(pipeline)
        return made.to(torch_dtype)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        **given: Any,
    ) -> Self:
        """Load a pipeline from a checkpoint in a single file.

        Args:
            pretrained_model_link_or_path: Path of a .safetensors file, or its URL on the hub.
            given: Arguments of `from_pretrained`.

        Raises:
            As `from_pretrained`.
        """
        reject_unsupported(
            {name: given.pop(name) for name in _UNSUPPORTED_SINGLE_FILE if name in given},
            _UNSUPPORTED_SINGLE_FILE,
        )
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
        """Load a pipeline from a folder or a hub id. The weights are read at the first call.

        Args:
            torch_dtype, dtype: Dtype of the networks; None is float32.
            variant: Variant of the weight files, such as "fp16".
            safety_checker: None: Limner has no safety checker of this kind.
            low_cpu_mem_usage: No effect: loading never needs much more memory than the weights.
            given: For the hub revision, cache_dir, token and local_files_only (use only the cache); and
                components that replace those of the model.

        Raises:
            ModelNotFound, InvalidCheckpoint, PickleRefused, UnsupportedModel: As in `limner.load`.
            TypeError: An argument is unknown.
            InvalidRequest: An argument is not supported.
        """
        reject_pickles(use_safetensors)
        location, given = ComponentLocation.from_arguments(pretrained_model_name_or_path, given)
        reject_unsupported(
            {name: given.pop(name) for name in _UNSUPPORTED_LOADING if name in given}, _UNSUPPORTED_LOADING
        )
        options = LoadOptions(
            location.reference, revision=location.revision, variant=variant, device="cpu", precision="fp32"
        )
        source = find(options, location.access)
        for message in source.warnings:
            warnings.warn(message, stacklevel=2)
        index_file = source.checkpoint.folder / MODEL_INDEX
        index = read_json(index_file) if index_file.is_file() else {}
        kind = cls._class_for(index)
        if safety_checker is _ANY and index.get("safety_checker", [None])[0] is not None:
            warnings.warn(
                "the model's safety checker is not used; pass safety_checker=None to silence this warning",
                stacklevel=2,
            )
        elif safety_checker not in (_ANY, None):
            raise InvalidRequest("safety_checker is not offered", hint="say safety_checker=None")
        if unknown := given.keys() - {*kind.component_names}:
            raise TypeError(f"{kind.__name__} has no component {', '.join(sorted(unknown))}")
        if "controlnet" in kind.component_names and source.checkpoint.controlled:
            given.setdefault("controlnet", kind._controlnet(location, index["controlnet"][-1], variant))
        scheduler = given.pop("scheduler", None) or scheduler_from(source.checkpoint.scheduler_config)
        held = kind._pipeline_components(
            {name: given.pop(name) for name in _PIPELINE_COMPONENTS if name in given}, scheduler
        )
        own = {name: given[name] for name in given if given[name] is not None}
        zero = source.checkpoint.zero_negative
        name = str(location.reference)
        parts = Parts(source.checkpoint, own, name=name, dtype=torch.float32, zero_negative=zero)
        pipeline = kind.__new__(kind)
        pipeline.force_zeros_for_empty_prompt = zero
        pipeline._set_components(parts, held)
        parts.move(None, torch_dtype or dtype)
        return pipeline

    @classmethod
    def _controlnet(cls, location: ComponentLocation, kind: str, variant: str | None) -> Any:
        """Load the ControlNets in a pipeline folder.

        Args:
            kind: Name of their class in the folder's `model_index.json`.
        """
        raise NotImplementedError

    @classmethod
    def _pipeline_components(cls, given: Mapping[str, Any], scheduler: Scheduler) -> dict[str, Any]:
        """Check and return the components that are not shared between pipelines.

        Raises:
            TypeError: A component is missing or unknown.
        """
        own = {"scheduler": scheduler, **given}
        expected = {name for name in cls.component_names if name in _PIPELINE_COMPONENTS}
        if wrong := own.keys() ^ expected:
            what = "needs" if wrong <= expected else "has no component"
            raise TypeError(f"{cls.__name__} {what} {', '.join(sorted(wrong))}")
        return own

    @classmethod
    def _class_for(cls, index: Mapping[str, Any]) -> "type[DiffusionPipeline]":
        """Return the pipeline class that a `model_index.json` names."""
        if cls is not DiffusionPipeline:
            return cls
        classes, name = named_subclasses(DiffusionPipeline, "Pipeline"), str(index.get("_class_name"))
        if name not in classes:
            raise UnsupportedModel(f"{name} is not offered", hint=f"there are {', '.join(classes)}")
        return classes[name]

    @property
    def components(self) -> dict[str, Any]:
        """Components by name, for building another pipeline: `Other(**pipe.components)`."""
        own = {name: getattr(self, name) for name in self.component_names if name in _PIPELINE_COMPONENTS}
        return {**self._networks, **own, **dict.fromkeys(_UNSUPPORTED_COMPONENTS)}

    def __getattr__(self, name: str) -> Any:
        if name in type(self).component_names:
            return self._parts.component(name)
        if name in _UNSUPPORTED_COMPONENTS:
            return None
        if name in _UNSUPPORTED_ATTRIBUTES:
            raise UnsupportedAttribute(
                f"{type(self).__name__} has no {name}", hint=_UNSUPPORTED_ATTRIBUTES[name]
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _UNSUPPORTED_COMPONENTS and value is not None:
            raise InvalidRequest(f"{name} is not offered", hint="leave it at None")
        if name in self.component_names and name not in _PIPELINE_COMPONENTS:
            self._parts = _build_parts({**self._networks, name: value}, self._parts.zero_negative)
        elif name not in _UNSUPPORTED_COMPONENTS:
            super().__setattr__(name, value)

    @property
    def _networks(self) -> dict[str, Any]:
        names = [name for name in self.component_names if name not in _PIPELINE_COMPONENTS]
        return {name: self._parts.stored(name) for name in names}

    @property
    def name_or_path(self) -> str:
        """Source of the components."""
        return self._parts.name

    def to(self, *where: Any, device: Any = None, dtype: torch.dtype | None = None) -> Self:
        """Move to another device, another dtype, or both.

        Raises:
            InvalidRequest: The device or dtype is not available.
        """
        for value in where:
            if isinstance(value, torch.dtype):
                dtype = value
            elif value is not None:
                device = value
        self._parts.move(device, dtype)
        return self

    def save_pretrained(self, save_directory: str | Path, *, safe_serialization: bool = True) -> None:
        """Write all components into a folder, which diffusers can open too.

        Raises:
            InvalidRequest: Pickles were requested.
        """
        reject_pickles(safe_serialization)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.component_names:
            if (component := getattr(self, name)) is not None:
                component.save_pretrained(folder / name)
        write_json(folder / MODEL_INDEX, self.config)

    @property
    def config(self) -> Config:
        """Contents of `model_index.json` for this pipeline."""
        index: dict[str, Any] = {"_class_name": type(self).__name__}
        for name in self.component_names:
            component = getattr(self, name)
            library = "transformers" if name.startswith(("text", "token")) else "diffusers"
            index[name] = [None, None] if component is None else [library, type(component).__name__]
        absent = _UNSUPPORTED_COMPONENTS[1:] if self.is_xl else _UNSUPPORTED_COMPONENTS
        index |= {name: [None, None] for name in absent}
        if self.is_xl:
            index["force_zeros_for_empty_prompt"] = self.force_zeros_for_empty_prompt
        else:
            index["requires_safety_checker"] = False
        return Config(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.config, indent=2)}"

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """Convert an array [B, H, W, 3] or [H, W, 3] in [0, 1] to images."""
        batch = images[None] if images.ndim == 3 else images
        return [Image.fromarray(rows) for rows in (batch * 255).round().astype("uint8")]


def _build_parts(given: Mapping[str, Any], zero_negative: bool) -> Parts:
    """Return the parts of these components; the parts of another pipeline if all components come from it."""
    owners = {id(value.parts): value.parts for value in given.values() if isinstance(value, StoredComponent)}
    if len(owners) == 1:
        [parts] = owners.values()
        if all(
            parts.stored(name) is value or isinstance(value, StoredComponent) for name, value in given.items()
        ):
            return parts
        own = {
            n: value
            for n, value in given.items()
            if value is not None and not isinstance(value, StoredComponent)
        }
        return parts.with_components(own)
    plain = {
        name: value.component if isinstance(value, StoredComponent) else value
        for name, value in given.items()
    }
    plain = {name: value for name, value in plain.items() if value is not None}
    parts = Parts(None, plain, zero_negative=zero_negative)
    first = plain["unet"]
    parts.dtype, parts.device = first.dtype, first.device
    return parts
