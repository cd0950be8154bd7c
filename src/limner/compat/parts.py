"""The components of a pipeline, and the model that runs them.

Networks are loaded from their files when they are first used: by the model, in the form that is fastest on
the device, or by a program that accesses one, such as `pipe.unet`, as a plain module. If a program changes
such a module, the model uses the changed weights at the next call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from limner.backends.base import OffloadName, Precision
from limner.backends.device import pick_device
from limner.backends.native import NativeBackend
from limner.catalogue.layout import TOKENIZER_OF, WEIGHT_STEMS
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import PredictionType
from limner.errors import InvalidRequest
from limner.files import read_json
from limner.model.model import Model
from limner.weights.checkpoint import Checkpoint, replace_parts
from limner.weights.parts import MemoryPart
from limner.weights.tokenizers import read_tokenizers

from .components import AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel
from .network import Network, weights_version
from .tokenizer import CLIPTokenizer

_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
_TOKENIZERS = {tokenizer: encoder for encoder, tokenizer in TOKENIZER_OF.items()}


@dataclass(frozen=True, eq=False)
class StoredComponent:
    """A component that may not be loaded yet, as one pipeline passes it to another. Access loads it."""

    parts: "Parts"
    name: str

    @cached_property
    def component(self) -> Any:
        return self.parts.component(self.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.component, name)

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self.component(*values, **named)


class Parts:
    """The components that several pipelines can share.

    Args:
        checkpoint: Checkpoint of the components that are not given, if there is one.
        given: Component name -> given component.
        name: Name of the model, for records and messages.
        dtype: Dtype in which networks compute.
        zero_negative: Whether an absent negative prompt means an all-zero embedding.

    Raises:
        InvalidRequest: A component is missing or not one of Limner's classes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        given: Mapping[str, Any],
        *,
        name: str = "components",
        dtype: torch.dtype = torch.float32,
        zero_negative: bool = False,
    ) -> None:
        self._checkpoint, self._components, self.name = checkpoint, dict(given), name
        self._unchanged_versions: dict[
            str, Any
        ] = {}  # `weights_version` of networks read from the checkpoint
        self.zero_negative = zero_negative
        self.dtype, self.device = dtype, torch.device("cpu")
        self.offload: OffloadName = "none"
        self._backend: tuple[Any, NativeBackend] | None = None
        self._model: tuple[Any, Model] | None = None
        for name, component in given.items():
            kind = CLIPTokenizer if name in _TOKENIZERS else Network
            if not isinstance(component, kind):
                raise InvalidRequest(
                    f"{name} is a {type(component).__module__}.{type(component).__name__}, expected one of "
                    "Limner's",
                    hint="limner.load(…, compiled=True)"
                    if type(component).__name__ == "OptimizedModule"
                    else "import it from limner",
                )
        if checkpoint is None and not {"unet", "vae"} <= given.keys():
            raise InvalidRequest(f"{' and '.join(sorted({'unet', 'vae'} - given.keys()))} must be given")

    def move(self, device: str | torch.device | None, dtype: torch.dtype | None) -> None:
        """Move to another device or dtype; None keeps the current one.

        Raises:
            InvalidRequest: The device or dtype is not available.
        """
        if dtype is not None and dtype not in _PRECISIONS:
            raise InvalidRequest(f"dtype is {dtype}; expected {', '.join(map(str, _PRECISIONS))}")
        self.dtype = dtype or self.dtype
        self.device = self.device if device is None else pick_device(str(device))
        for name, made in self._components.items():
            if isinstance(made, Network):
                same = weights_version(made) == self._unchanged_versions.get(name)
                made.to(self.device, self.dtype)
                self._unchanged_versions |= {name: weights_version(made)} if same else {}

    def stored(self, name: str) -> Any:
        """Return a component for another pipeline, without loading it."""
        if name in self._components or self._checkpoint is None:
            return self._components.get(name)
        there = _TOKENIZERS.get(name, name) in self._checkpoint.parts
        return StoredComponent(self, name) if there else None

    def loaded(self, name: str) -> Any:
        """Return a component if it was given or is loaded as a plain module; else None."""
        return self._components.get(name)

    def with_components(self, given: Mapping[str, Any]) -> "Parts":
        """Return parts of the same checkpoint with `given` in place of the components of the same names."""
        parts = Parts(
            self._checkpoint,
            given,
            name=self.name,
            dtype=self.dtype,
            zero_negative=self.zero_negative,
        )
        parts.device, parts.offload = self.device, self.offload
        return parts

    def component(self, name: str) -> Any:
        """Return a network or tokenizer as a plain object, loaded on first access; None if the model has
        none."""
        if name not in self._components:
            if self._checkpoint is None:
                return None
            if _TOKENIZERS.get(name, name) not in self._checkpoint.parts:
                return None
            if name in _TOKENIZERS:
                made: Any = CLIPTokenizer(read_tokenizers(self._checkpoint)[_TOKENIZERS[name]])
            else:
                made = self._read_network(self._checkpoint, name)
                self._unchanged_versions[name] = weights_version(made)
            self._components[name] = made
        return self._components[name]

    def _read_network(self, checkpoint: Checkpoint, name: str) -> Network:
        kinds: dict[str, tuple[type[Network], Any]] = {
            "unet": (UNet2DConditionModel, checkpoint.unet_config),
            "vae": (AutoencoderKL, checkpoint.vae_config),
        }
        for part, config in checkpoint.text_configs.items():
            kinds[part] = CLIPTextModelWithProjection if config.projection else CLIPTextModel, config
        kind, known = kinds[name]
        file = checkpoint.folder / name / "config.json"
        values = read_json(file) if file.is_file() else known.to_dict()
        stored = checkpoint.parts[name]
        network = kind.build(values, stored.tensors(), stored.source, self.dtype)
        return network.to(self.device)

    def model(self, prediction_type: PredictionType, words: Mapping[str, Path]) -> Model:
        """Return the model of the components with their current weights.

        Args:
            prediction_type: Prediction type of the U-Net, from the scheduler's config.
            words: Token of each textual inversion -> its file.

        Raises:
            InvalidRequest: The device does not support the dtype.
            InvalidCheckpoint: A component cannot be read.
        """
        own = {
            name: made
            for name, made in self._components.items()
            if isinstance(made, Network) and weights_version(made) != self._unchanged_versions.get(name)
        }
        key = (
            self.device,
            self.dtype,
            self.offload,
            {name: weights_version(made) for name, made in own.items()},
        )
        if self._backend is None or self._backend[0] != key:
            self._backend = None  # free its memory before the next is loaded
            self._model = None
            precision = _PRECISIONS[self.dtype]
            backend = NativeBackend(self._checkpoint_with(own), self.device, precision, offload=self.offload)
            self._backend = key, backend.read()
        settings = prediction_type, words
        if self._model is None or self._model[0] != settings:
            backend = self._backend[1]
            encoders = backend.networks.checkpoint.text_configs
            model = Model(
                name=self.name,
                revision=None,
                variant=None,
                checkpoint=backend.networks.checkpoint,
                scheduler=SchedulerConfig(prediction_type=prediction_type),
                tokenizers={part: self.component(TOKENIZER_OF[part]).own for part in encoders},
                backend=backend,
                words=words,
            )
            self._model = settings, model
        return self._model[1]

    def _checkpoint_with(self, own: Mapping[str, Network]) -> Checkpoint:
        """Return the checkpoint with networks in memory in place of its files of the same names."""
        parts = {
            name: MemoryPart(network.config._parsed, Path(f"the given {name}"), dict(network.state_dict()))
            for name, network in own.items()
        }
        if self._checkpoint is not None:
            return replace_parts(self._checkpoint, parts)
        return Checkpoint(
            folder=Path(self.name),
            parts={name: parts[name] for name in WEIGHT_STEMS if name in parts},
            scheduler_config={},
            tokenizers={},
            zero_negative=self.zero_negative,
        )
