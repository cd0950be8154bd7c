"""How a policy file configures an image checker: `[checkers.NAME]` with a `kind`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    Field(description="`fp32`, `bf16` (with OpenVINO), or `auto`: bf16 where OpenVINO computes in it."),
]
CONCEPTS, SPECIAL = 17, 3  # of CompVis' checker
Three = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=4096)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenNSFWConfig(_Config):
    """Yahoo's open_nsfw: one category, `nsfw`, from 0 to 1."""

    kind: Literal["opennsfw"] = Field(default="opennsfw", description="`opennsfw`.")
    precision: Precision = "auto"

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of its scores."""
        return ("nsfw",)


class CompVisConfig(_Config):
    """The safety checker of Stable Diffusion 1.x. Categories: `nsfw`, `special_care`, and each concept."""

    kind: Literal["compvis"] = Field(default="compvis", description="`compvis`.")
    folder: str = Field(
        description="Folder with `config.json` and `model.safetensors`, relative to the policy file, as in "
        "`safety_checker` of a model in the diffusers layout."
    )
    device: str = Field(default="cpu", description="Device that it runs on: `cpu`, `cuda`, `cuda:1` …")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of its scores."""
        special = (f"special_care_{number}" for number in range(SPECIAL))
        return ("nsfw", "special_care", *(f"concept_{number}" for number in range(CONCEPTS)), *special)


class OnnxConfig(_Config):
    """An image classifier in an ONNX file with one input [1, 3, H, W] or [1, H, W, 3], in fp32."""

    kind: Literal["onnx"] = Field(default="onnx", description="`onnx`.")
    file: str = Field(description="The ONNX file, relative to the policy file.")
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = Field(
        description="Categories: names of the outputs, in order."
    )
    size: tuple[Side, Side] = Field(default=(224, 224), description="Width and height of its input.")
    fit: Literal["squash", "crop"] = Field(
        default="squash",
        description="How an image becomes that size: `squash` scales both sides, `crop` scales the image "
        "until it covers the input and cuts out the middle.",
    )
    resampling: Literal["bilinear", "bicubic"] = Field(default="bilinear", description="How it is scaled.")
    layout: Literal["nchw", "nhwc"] = Field(default="nchw", description="Order of the input's axes.")
    channels: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of the colours.")
    white: Literal[1, 255] = Field(
        default=1, description="Value of white before mean and deviation: 1 or 255."
    )
    mean: Three = Field(
        default=(0.0, 0.0, 0.0), description="What is subtracted of each colour, in the order of `channels`."
    )
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ] = Field(default=(1.0, 1.0, 1.0), description="What each colour is then divided by.")
    activation: Literal["none", "softmax", "sigmoid"] = Field(
        default="none", description="What turns the outputs into scores."
    )
    precision: Precision = "auto"

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of its scores."""
        return self.labels

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len({*self.labels}) < len(self.labels):
            raise ValueError("two labels are the same")
        return self


CheckerConfig = Annotated[OpenNSFWConfig | CompVisConfig | OnnxConfig, Field(discriminator="kind")]
"""One of the kinds of checkers, by `kind`."""
