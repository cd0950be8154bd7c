"""The components of a pipeline, and the model that draws with them.

A pipeline's networks stay in their files until they are wanted: by the model, which has them in the form that
is fastest, or by somebody who uses one of them by itself. Whatever became of such a one in his hands is what
the model draws with next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from limner.device import pick_device
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import PredictionType
from limner.errors import InvalidRequest
from limner.pipeline.backends.base import OffloadName, Precision
from limner.pipeline.backends.native import NativeBackend
from limner.pipeline.loading import read_tokenizers
from limner.pipeline.model import Model
from limner.weights.checkpoint import TOKENIZER_OF, Checkpoint
from limner.weights.files import read_json

from .components import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Network,
    UNet2DConditionModel,
    state_of,
)

_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
_TOKENIZERS = {tokenizer: encoder for encoder, tokenizer in TOKENIZER_OF.items()}


@dataclass(frozen=True, eq=False)
class Stored:
    """A component that is still in its file, as one pipeline hands it to another."""

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
    """What pipelines with the same components share.

    Args:
        checkpoint: that the components come from, if they come from one.
        given: components that were given, by name.
        zero_negative: no negative prompt means an embedding of zeros.

    Raises:
        InvalidRequest: a component is missing.
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
        self._checkpoint, self._made, self.name = checkpoint, dict(given), name
        self._from_file: dict[str, Any] = {}  # networks that were read from the checkpoint, as they were
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
        """Draw on another device or in another dtype.

        Raises:
            InvalidRequest: there is none like it.
        """
        if dtype is not None and dtype not in _PRECISIONS:
            raise InvalidRequest(f"dtype is {dtype}; expected {', '.join(map(str, _PRECISIONS))}")
        self.dtype = dtype or self.dtype
        self.device = self.device if device is None else pick_device(str(device))
        for name, made in self._made.items():
            if isinstance(made, Network):
                same = state_of(made) == self._from_file.get(name)
                made.to(self.device, self.dtype)
                self._from_file |= {name: state_of(made)} if same else {}

    def stored(self, name: str) -> Any:
        """A component to hand to another pipeline."""
        if name in self._made or self._checkpoint is None:
            return self._made.get(name)
        there = _TOKENIZERS.get(name, name) in self._checkpoint.weights
        return Stored(self, name) if there else None

    def made(self, name: str) -> Any:
        """A component, if it was given or used by itself; else None."""
        return self._made.get(name)

    def with_components(self, given: Mapping[str, Any]) -> "Parts":
        """What comes from the same checkpoint but for these components."""
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
        """A network or a tokenizer, to be used by itself; None where the model has none of this name."""
        if name not in self._made:
            if self._checkpoint is None:
                return None
            if _TOKENIZERS.get(name, name) not in self._checkpoint.weights:
                return None
            if name in _TOKENIZERS:
                made: Any = CLIPTokenizer(read_tokenizers(self._checkpoint)[_TOKENIZERS[name]])
            else:
                made = self._network(self._checkpoint, name)
                self._from_file[name] = state_of(made)
            self._made[name] = made
        return self._made[name]

    def _network(self, checkpoint: Checkpoint, name: str) -> Network:
        kinds: dict[str, tuple[type[Network], Any]] = {
            "unet": (UNet2DConditionModel, checkpoint.unet_config),
            "vae": (AutoencoderKL, checkpoint.vae_config),
        }
        for part, config in checkpoint.text_configs.items():
            kinds[part] = CLIPTextModelWithProjection if config.projection else CLIPTextModel, config
        kind, known = kinds[name]
        file = checkpoint.folder / name / "config.json"
        values = read_json(file) if file.is_file() else known.to_dict()
        network = kind.made(values, checkpoint.tensors(name), checkpoint.weights[name], self.dtype)
        return network.to(self.device)

    def model(self, prediction_type: PredictionType, words: Mapping[str, Path]) -> Model:
        """The model that draws with the components as they are now.

        Args:
            prediction_type: what the U-Net predicts, as the scheduler says.
            words: that stand for textual inversions, and their files.

        Raises:
            InvalidRequest: a dtype that the device does not compute in.
            InvalidCheckpoint: components that cannot be read.
        """
        own = {
            name: made
            for name, made in self._made.items()
            if isinstance(made, Network) and state_of(made) != self._from_file.get(name)
        }
        key = self.device, self.dtype, self.offload, {name: state_of(made) for name, made in own.items()}
        if self._backend is None or self._backend[0] != key:
            self._backend = None  # before another one takes memory
            self._model = None
            precision = _PRECISIONS[self.dtype]
            backend = NativeBackend(self._joined(own), self.device, precision, offload=self.offload)
            self._backend = key, backend.read()
        settings = prediction_type, words
        if self._model is None or self._model[0] != settings:
            backend = self._backend[1]
            encoders = backend.checkpoint.text_configs
            model = Model(
                name=self.name,
                revision=None,
                variant=None,
                checkpoint=backend.checkpoint,
                scheduler=SchedulerConfig(prediction_type=prediction_type),
                tokenizers={part: self.component(TOKENIZER_OF[part]).own for part in encoders},
                backend=backend,
                words=words,
            )
            self._model = settings, model
        return self._model[1]

    def _joined(self, own: Mapping[str, Network]) -> Checkpoint:
        """The checkpoint with networks of our own in the place of its files."""
        held = {name: dict(network.state_dict()) for name, network in own.items()}
        configs: dict[str, Any] = {name: network.config._known for name, network in own.items()}
        texts = {name: configs[name] for name in TOKENIZER_OF if name in configs}
        weights = {name: Path(f"the given {name}") for name in own}
        if self._checkpoint is None:
            return Checkpoint(
                folder=Path(self.name),
                unet_config=configs["unet"],
                vae_config=configs["vae"],
                text_configs=texts,
                scheduler_config={},
                tokenizers={},
                weights=weights,
                zero_negative=self.zero_negative,
                held=held,
            )
        before = self._checkpoint
        return replace(
            before,
            unet_config=configs.get("unet", before.unet_config),
            vae_config=configs.get("vae", before.vae_config),
            text_configs={**before.text_configs, **texts},
            weights={**before.weights, **weights},
            held=held,
        )
