"""Geometry of CLIP's text and image encoders, as the hub's `config.json` describes them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .config import require

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class CLIPConfig:
    """Geometry that text and image encoders have in common."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768

    def __post_init__(self) -> None:
        require(
            self.hidden_act in ACTIVATIONS,
            f"hidden_act {self.hidden_act!r}; supported: {list(ACTIVATIONS)}",
        )
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads "
            f"{self.num_attention_heads}",
        )

    def to_dict(self) -> dict[str, Any]:
        """The hub's `config.json`."""
        values = asdict(self)
        projection = values.pop("projection")
        tower, model_type = (
            ("Text", "clip_text_model")
            if isinstance(self, CLIPTextConfig)
            else ("Vision", "clip_vision_model")
        )
        suffix = "WithProjection" if projection else ""
        return {"architectures": [f"CLIP{tower}Model{suffix}"], "model_type": model_type, **values}


@dataclass(frozen=True)
class CLIPTextConfig(CLIPConfig):
    """Geometry of a text encoder; the defaults are Stable Diffusion 1.x's (CLIP ViT-L/14).

    Attributes:
        max_position_embeddings: tokens of a text, start and end included.
        projection: whether the pooled output passes through `text_projection`.
    """

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    projection: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPTextConfig":
        """Read a hub `config.json`; the library's generic keys in it have no effect on the network.

        Raises ValueError for an activation or geometry that this network does not support.
        """
        return cls(projection=_with_projection(values), **_known(cls, values, "clip_text_model"))


@dataclass(frozen=True)
class CLIPVisionConfig(CLIPConfig):
    """Geometry of an image encoder; the defaults are CLIP ViT-L/14's.

    Attributes:
        image_size: side of the images it sees, a multiple of `patch_size`.
        projection: whether the pooled output passes through `visual_projection`.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    projection: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPVisionConfig":
        """Read a hub `config.json`; the library's generic keys in it have no effect on the network.

        Raises ValueError for an activation or geometry that this network does not support.
        """
        return cls(projection=_with_projection(values), **_known(cls, values, "clip_vision_model"))


def _known(cls: type[CLIPConfig], values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    # A transformers config repeats dozens of its library's own settings, so unknown keys are skipped
    # here; what the network computes is settled by the keys below and checked by the tensors' shapes.
    require(
        values.get("model_type", model_type) == model_type,
        f"model_type is {values.get('model_type')!r}, not {model_type!r}",
    )
    return {
        key: values[key]
        for key in cls.__dataclass_fields__
        if key != "projection" and values.get(key) is not None
    }


def _with_projection(values: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("WithProjection") for name in values.get("architectures") or ())
