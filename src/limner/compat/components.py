"""Single networks with the interfaces of diffusers and transformers.

Each class is Limner's network with a `forward` that has the argument and output names of diffusers, for
programs that write their own sampling or training loop.

    latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    context = text_encoder(tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids)[0]
    noise = unet(latents, t, encoder_hidden_states=context).sample
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

import limner.nn.clip
import limner.nn.unet
import limner.nn.vae
import limner.prompts.tokenizer
from limner.errors import InvalidRequest
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import Conditions
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.weights.components import read_part
from limner.weights.load import text_encoder_name, vae_name

from .files import reject_unsupported
from .network import Network
from .noise import Generators, randn_tensor
from .values import Output


@dataclass
class UNet2DConditionOutput(Output):
    """Output of the U-Net, [B, C, h, w]: noise, velocity or clean latents."""

    sample: Tensor


class UNet2DConditionModel(Network, limner.nn.unet.UNet2DConditionModel):
    """The U-Net."""

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> UNetConfig:
        return UNetConfig.from_dict(values)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[UNetConfig, Mapping[str, Tensor]]:
        """Read the network from a whole checkpoint or from a file that holds only this network."""
        part = read_part("unet", path)
        assert isinstance(part.config, UNetConfig)
        return config or part.config, part.tensors()

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        **without: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict noise, velocity or clean latents.

        Args:
            sample: Latents [B, C, h, w], scaled by the scheduler's `scale_model_input`.
            timestep: One number for all rows, or one per row [B].
            encoder_hidden_states: Text embeddings [B, T, channels].
            added_cond_kwargs: "text_embeds" [B, P] and "time_ids" [B, 6 or 5], for XL.
            down_block_additional_residuals, mid_block_additional_residual: Residuals of a ControlNet.
            without: Other arguments of diffusers, which must be None.

        Raises:
            InvalidRequest: An argument is not supported.
        """
        reject_unsupported(without, _UNSUPPORTED_UNET)
        more = dict(added_cond_kwargs or {})
        pooled, sizes = more.pop("text_embeds", None), more.pop("time_ids", None)
        reject_unsupported(more, ())
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        residuals: list[Tensor] = []
        if down_block_additional_residuals is not None and mid_block_additional_residual is not None:
            residuals = [*down_block_additional_residuals, mid_block_additional_residual]
        elif down_block_additional_residuals is not None or mid_block_additional_residual is not None:
            raise InvalidRequest(
                "down_block_additional_residuals and mid_block_additional_residual go together: give both"
            )
        output = super().forward(
            sample, timesteps, encoder_hidden_states, Conditions(pooled, sizes, residuals=residuals)
        )
        return UNet2DConditionOutput(output) if return_dict else (output,)


_UNSUPPORTED_UNET = (
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "down_intrablock_additional_residuals",
    "encoder_attention_mask",
)


@dataclass
class DiagonalGaussianDistribution:
    """The encoder's distribution of latents: an independent Gaussian per element, [B, C, h, w]."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviations."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variances."""
        return torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw latents from the distribution."""
        mean = self.mean
        return mean + self.std * randn_tensor(mean.shape, generator, mean.device, mean.dtype)

    def mode(self) -> Tensor:
        """The most probable latents."""
        return self.mean

    def kl(self) -> Tensor:
        """The Kullback-Leibler divergence from unit normal noise, [B]."""
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))


@dataclass
class AutoencoderKLOutput(Output):
    """Output of the encoder."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(Output):
    """Decoded images [B, 3, H, W], about [-1, 1]."""

    sample: Tensor


class AutoencoderKL(Network, limner.nn.vae.AutoencoderKL):
    """The autoencoder.

    Attributes:
        use_tiling, use_slicing: Whether pipelines decode in tiles, and one image at a time.
    """

    use_tiling = False
    use_slicing = False

    @staticmethod
    def names(key: str) -> str | None:
        return vae_name(key)

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> VAEConfig:
        return VAEConfig.from_dict(values)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[VAEConfig, Mapping[str, Tensor]]:
        """Read the network from a whole checkpoint or from a file that holds only this network."""
        part = read_part("vae", path, like=config)
        assert isinstance(part.config, VAEConfig)
        return config or part.config, part.tensors()

    def encode(  # type: ignore[override]
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode images [B, 3, H, W] in [-1, 1] to a distribution of latents, not yet scaled."""
        found = DiagonalGaussianDistribution(*super().encode(x))
        return AutoencoderKLOutput(found) if return_dict else (found,)

    def decode(  # type: ignore[override]
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents [B, C, h, w], divided by `config.scaling_factor`. `generator` has no effect."""
        pictures = super().decode(z)
        return DecoderOutput(pictures) if return_dict else (pictures,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode images to latents and decode these again."""
        found = cast("AutoencoderKLOutput", self.encode(sample)).latent_dist
        return self.decode(found.sample(generator) if sample_posterior else found.mode(), return_dict)

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Make pipelines decode in tiles."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Make pipelines decode images whole."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Make pipelines decode one image at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Make pipelines decode images in batches."""
        self.use_slicing = False


@dataclass
class CLIPTextOutput(Output):
    """Output of `CLIPTextModel`.

    Attributes:
        last_hidden_state: Output of the final norm, [B, T, C].
        pooler_output: Its row at the end token, [B, C].
        hidden_states: Input of the first layer and output of each layer, [B, T, C] each; None unless
            requested.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class CLIPTextProjectionOutput(Output):
    """Output of `CLIPTextModelWithProjection`; `text_embeds` is the projected pooled output [B, P]."""

    text_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class CLIPTextModel(Network, limner.nn.clip.CLIPTextModel):
    """The text encoder."""

    stem = "model"
    projects: ClassVar[bool] = False

    @staticmethod
    def names(key: str) -> str | None:
        """Map a key as `load_module` asks. Keys of the image encoder, in files of a whole CLIP model, are
        skipped."""
        others = ("vision_model.", "visual_projection.", "text_projection.")
        return None if key.startswith(others) else text_encoder_name(key)

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> CLIPTextConfig:
        """Read the geometry from the config of a text encoder, or from `text_config` in that of a whole CLIP
        model."""
        own = {**values, **values.get("text_config", {})} if "text_config" in values else dict(values)
        suffix = "WithProjection" if cls.projects else ""
        named = {"architectures": [f"CLIPTextModel{suffix}"], "model_type": "clip_text_model"}
        return CLIPTextConfig.from_dict({**own, **named})

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
        **without: Any,
    ) -> Output | tuple[Any, ...]:
        """Encode token ids [B, T].

        Raises:
            InvalidRequest: The mask excludes tokens, or an argument is not supported.
        """
        reject_unsupported(without, ("position_ids", "output_attentions"))
        if attention_mask is not None and not bool(attention_mask.all()):
            raise InvalidRequest(
                "attention_mask leaves tokens out, which is not offered",
                hint="leave it out: Stable Diffusion was trained without one",
            )
        model = self.text_model
        states = model.encoder(
            model.embeddings(input_ids), causal=True, checkpointed=self.gradient_checkpointing
        )
        last = model.final_layer_norm(states[-1])
        pooled = last[torch.arange(len(last), device=last.device), input_ids.argmax(-1)]
        output = self._output(last, pooled, tuple(states) if output_hidden_states else None)
        return output if return_dict else output.to_tuple()

    def _output(self, last: Tensor, pooled: Tensor, states: tuple[Tensor, ...] | None) -> Output:
        return CLIPTextOutput(last, pooled, states)


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text encoder with a projection of its pooled output: the second one of XL."""

    projects = True

    @staticmethod
    def names(key: str) -> str | None:
        return None if key.startswith(("vision_model.", "visual_projection.")) else text_encoder_name(key)

    def _output(self, last: Tensor, pooled: Tensor, states: tuple[Tensor, ...] | None) -> Output:
        return CLIPTextProjectionOutput(self.text_projection(pooled), last, states)
