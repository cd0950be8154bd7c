"""Single networks and the tokenizer, called as diffusers and transformers call theirs.

Each network is Limner's own, with another `forward`: what goes in and comes out has the names that programs
with a loop of their own expect.

    latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    context = text_encoder(tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids)[0]
    noise = unet(latents, t, encoder_hidden_states=context).sample
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

import limner.nn.clip
import limner.nn.unet
import limner.nn.vae
import limner.prompts.tokenizer
from limner.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from limner.nn.clip import CLIPTextConfig
from limner.nn.unet import UNetConfig
from limner.nn.vae import VAEConfig
from limner.weights.checkpoint import TOKENIZER_FILES
from limner.weights.files import read_json
from limner.weights.load import Names, load_module, text_encoder_name, unet_name, vae_name
from limner.weights.save import write_json
from limner.weights.single import is_checkpoint, read_single_file, read_vae_config, read_vae_file
from limner.weights.tensors import open_tensors, write_tensors

from .files import Place, refuse, refuse_pickles, single_file
from .noise import Generators, draw
from .values import Config, Output


class NetworkConfig(Config):
    """The `config.json` of a network, with what its absent keys mean."""

    def __init__(self, values: Mapping[str, Any], known: Any) -> None:
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(known).items()}
        super().__init__({**own, **{key: v for key, v in values.items() if v is not None or key not in own}})
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else getattr(self.__dict__["_known"], name)


class Network(nn.Module):
    """What the networks of this face have beside `nn.Module`.

    Attributes:
        config: a dict whose keys are attributes too.
        path: of the file that it was read from.
        as_read: its state then, by `state_of`; None where there is no file.
    """

    stem: ClassVar[str] = "diffusion_pytorch_model"
    config: Any
    path: Path
    as_read: tuple[tuple[int, int], ...] | None = None

    @staticmethod
    def names(key: str) -> str | None:
        """As of `load_module`."""
        return unet_name(key)

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> Any:
        """What a `config.json` says. Raises ValueError for what Limner's network cannot stand for."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        **where: Any,
    ) -> Self:
        """The network of a folder or a hub id, in float32 unless another dtype is asked for.

        Args:
            low_cpu_mem_usage: no effect: hardly more is in memory while weights are read than then.
            where: subfolder; of the hub revision, cache_dir, token, local_files_only.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel: there is none, or Limner cannot run it.
            InvalidRequest: pickles are asked for, or something else that is not offered.
        """
        refuse_pickles(use_safetensors)
        place, strange = Place.of(pretrained_model_name_or_path, where)
        refuse(strange, ())
        values = read_json(place.find("config.json"))
        path = place.find_weights(cls.stem, variant)
        return cls.made(values, open_tensors(path), path, torch_dtype or dtype or torch.float32, cls.names)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        **where: Any,
    ) -> Self:
        """The network in a file: one of its own, or a whole checkpoint.

        Args:
            pretrained_model_link_or_path: a file, or its page on the hub.
            config: a folder or a hub id with a `config.json`, for what a file does not tell.
            where: subfolder, of the config; of the hub revision, cache_dir, token, local_files_only.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel, PickleRefused: as `from_pretrained`.
        """
        refuse_pickles(use_safetensors)
        path, more = single_file(pretrained_model_link_or_path, where)
        refuse(more, ("original_config", "disable_mmap"))
        values = None
        if config is not None:
            place, _ = Place.of(config, {name: value for name, value in where.items() if name != "revision"})
            values = read_json(place.find("config.json"))
        told, tensors = cls._in_single_file(path, None if values is None else cls._read(values))
        return cls.made(values or told.to_dict(), tensors, path, torch_dtype or dtype or torch.float32)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """The geometry of the network in a file, and its tensors by the names of the hub.

        Args:
            config: the geometry, if it is known.
        """
        raise UnsupportedModel(f"{cls.__name__} is not read from single files")

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> dict[str, Any]:
        """What a `config.json` says, for `from_config`. Arguments as of `from_pretrained`."""
        place, strange = Place.of(pretrained_model_name_or_path, where)
        refuse(strange, ())
        return read_json(place.find("config.json"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **where: Any) -> Self:
        """A network without training.

        Raises:
            InvalidRequest: the name of a config, in place of what it says.
        """
        if not isinstance(config, Mapping):
            raise InvalidRequest(
                f"config is {config!r}, expected a dict", hint=f"give {cls.__name__}.load_config(…)"
            )
        refuse(where, ())
        known = cls._read(config)
        network = cls(known)
        network.config = NetworkConfig(config, known)
        return network

    @classmethod
    def made(
        cls,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        source: Path,
        dtype: torch.dtype,
        names: Names = unet_name,
    ) -> Self:
        """A network of a config and tensors, by the names of `load_module`."""
        known = cls._read(values)
        network = load_module(lambda: cls(known), tensors, source=source, names=names, dtype=dtype)
        network.config = NetworkConfig(values, known)
        network.path, network.as_read = source, state_of(network)
        return network.eval()

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Any:
        try:
            return cls.geometry(values)
        except ValueError as error:
            raise UnsupportedModel(f"{cls.__name__}: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config and weights into a folder, which is made if need be."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config)
        write_tensors(folder / f"{self.stem}.safetensors", self.state_dict(), {"format": "pt"})

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config")
        if isinstance(config, NetworkConfig) and name in config:
            return config[name]  # such as unet.in_channels
        return super().__getattr__(name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """That the weights are on."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """How many weights there are."""
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training."""
        self.gradient_checkpointing = True

    def enable_xformers_memory_efficient_attention(self, attention_op: None = None) -> None:
        """No effect: attention never holds all scores at once."""

    def set_default_attn_processor(self) -> None:
        """No effect: there is one way to compute attention."""

    def compile(self, *given: Any, **named: Any) -> None:
        """Not offered: a pipeline would not draw with it."""
        raise InvalidRequest(
            "a network of a pipeline is not compiled by itself", hint="limner.load(…, compiled=True)"
        )


def state_of(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """What changes when weights do."""
    return tuple((id(p), 0 if p.is_inference() else p._version) for p in network.parameters())


@dataclass
class UNet2DConditionOutput(Output):
    """What the U-Net says, [B, C, h, w]."""

    sample: Tensor


class UNet2DConditionModel(Network, limner.nn.unet.UNet2DConditionModel):
    """The U-Net."""

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> UNetConfig:
        return UNetConfig.from_dict(values)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[UNetConfig, Mapping[str, Tensor]]:
        """That of a whole checkpoint."""
        file = read_single_file(path)
        return config or file.unet_config, file.tensors("unet")

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
            sample: [B, C, h, w], as `scale_model_input` gives it.
            timestep: one number, or one for each row.
            encoder_hidden_states: [B, T, channels].
            added_cond_kwargs: "text_embeds" [B, P] and "time_ids" [B, 6 or 5], for XL.
            down_block_additional_residuals, mid_block_additional_residual: what a ControlNet adds.
            without: arguments of diffusers that must be None.

        Raises:
            InvalidRequest: an argument that is not offered.
        """
        refuse(without, _UNET_WITHOUT)
        more = dict(added_cond_kwargs or {})
        pooled, sizes = more.pop("text_embeds", None), more.pop("time_ids", None)
        refuse(more, ())
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        residuals = None
        if down_block_additional_residuals is not None and mid_block_additional_residual is not None:
            residuals = [*down_block_additional_residuals, mid_block_additional_residual]
        elif down_block_additional_residuals is not None or mid_block_additional_residual is not None:
            raise InvalidRequest("residuals of the way down and of the middle go together: give both")
        output = super().forward(sample, timesteps, encoder_hidden_states, pooled, sizes, residuals=residuals)
        return UNet2DConditionOutput(output) if return_dict else (output,)


_UNET_WITHOUT = (
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "down_intrablock_additional_residuals",
    "encoder_attention_mask",
)


@dataclass
class DiagonalGaussianDistribution:
    """What the autoencoder says of a picture: a Gaussian for each latent pixel, [B, C, h, w]."""

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
        """Latents drawn from it."""
        mean = self.mean
        return mean + self.std * draw(mean.shape, generator, mean.device, mean.dtype)

    def mode(self) -> Tensor:
        """The most probable latents."""
        return self.mean

    def kl(self) -> Tensor:
        """The Kullback-Leibler divergence from unit normal noise, [B]."""
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))


@dataclass
class AutoencoderKLOutput(Output):
    """What the encoder says."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(Output):
    """A picture [B, 3, H, W], about [-1, 1]."""

    sample: Tensor


class AutoencoderKL(Network, limner.nn.vae.AutoencoderKL):
    """The autoencoder.

    Attributes:
        use_tiling, use_slicing: how a pipeline decodes with it.
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
        """That of a whole checkpoint, or of a file of its own."""
        if is_checkpoint(path):
            file = read_single_file(path)
            return config or file.vae_config, file.tensors("vae")
        known = config or read_vae_config(path)
        return known, read_vae_file(path, known)

    def encode(  # type: ignore[override]
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pictures [B, 3, H, W] in [-1, 1] to their latents."""
        found = DiagonalGaussianDistribution(*super().encode(x))
        return AutoencoderKLOutput(found) if return_dict else (found,)

    def decode(  # type: ignore[override]
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents [B, C, h, w], divided by `config.scaling_factor`, to pictures. Nothing in it is drawn."""
        pictures = super().decode(z)
        return DecoderOutput(pictures) if return_dict else (pictures,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Pictures to latents and back."""
        found = cast("AutoencoderKLOutput", self.encode(sample)).latent_dist
        return self.decode(found.sample(generator) if sample_posterior else found.mode(), return_dict)

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Have pipelines decode piece by piece."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Have pipelines decode pictures whole."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Have pipelines decode one picture at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Have pipelines decode pictures together."""
        self.use_slicing = False


@dataclass
class CLIPTextOutput(Output):
    """What `CLIPTextModel` says: [B, T, C] behind the final norm, [B, C] at the end token, and if asked for
    [B, T, C] before and behind each layer."""

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class CLIPTextProjectionOutput(Output):
    """What `CLIPTextModelWithProjection` says: the projection [B, P] first."""

    text_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class CLIPTextModel(Network, limner.nn.clip.CLIPTextModel):
    """The text encoder."""

    stem = "model"
    projects: ClassVar[bool] = False

    @staticmethod
    def names(key: str) -> str | None:
        """Those of the text encoder; the files of a whole CLIP model have an image encoder too."""
        others = ("vision_model.", "visual_projection.", "text_projection.")
        return None if key.startswith(others) else text_encoder_name(key)

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> CLIPTextConfig:
        """The geometry, which in the config of a whole CLIP model is a part of it."""
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
        """Embed token ids [B, T].

        Raises:
            InvalidRequest: a mask that leaves something out, or an argument that is not offered.
        """
        refuse(without, ("position_ids", "output_attentions"))
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
    """The text encoder whose pooled output is projected, the second one of XL."""

    projects = True

    @staticmethod
    def names(key: str) -> str | None:
        return None if key.startswith(("vision_model.", "visual_projection.")) else text_encoder_name(key)

    def _output(self, last: Tensor, pooled: Tensor, states: tuple[Tensor, ...] | None) -> Output:
        return CLIPTextProjectionOutput(self.text_projection(pooled), last, states)


@dataclass
class BatchEncoding(Output):
    """Token ids, as tensors [B, T] or lists, and where they are more than padding."""

    input_ids: Any
    attention_mask: Any

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(self.input_ids.to(device), self.attention_mask.to(device))


class CLIPTokenizer:
    """CLIP's tokenizer.

    Attributes:
        model_max_length: tokens of a text that the encoder takes, start and end included.
    """

    def __init__(self, tokenizer: limner.prompts.tokenizer.Tokenizer) -> None:
        self.own = tokenizer
        self.model_max_length = tokenizer.max_length
        self.bos_token_id, self.eos_token_id = tokenizer.bos, tokenizer.eos
        self.pad_token_id, self.vocab_size = tokenizer.pad, tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **where: Any,
    ) -> Self:
        """The tokenizer of a folder or a hub id. Raises as `Tokenizer.from_folder`.

        Args:
            where: as of `Network.from_pretrained`.
        """
        place, strange = Place.of(pretrained_model_name_or_path, where)
        refuse(strange, ("use_fast",))
        found = []
        for name in TOKENIZER_FILES:
            try:
                found.append(place.find(name))
            except ModelNotFound as error:
                missing = error
        if not found:
            raise missing
        return cls(limner.prompts.tokenizer.Tokenizer.from_folder(found[0].parent))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write its files into a folder, which is made if need be."""
        self.own.save(save_directory)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
    ) -> BatchEncoding:
        """Token ids of texts.

        Args:
            padding: "max_length"; "longest" or True; or False.
            truncation: leave out what is beyond `max_length`, which is `model_max_length` by default.
            return_tensors: "pt", or None for lists.

        Raises:
            InvalidRequest: another way to pad or another kind of tensors; texts of different lengths for a
                tensor.
        """
        if padding not in (False, True, "max_length", "longest", "do_not_pad"):
            raise InvalidRequest(f"padding is {padding!r}; expected 'max_length', 'longest' or False")
        if truncation not in (False, True, "longest_first", "do_not_truncate"):
            raise InvalidRequest(f"truncation is {truncation!r}; expected True or False")
        if return_tensors not in (None, "pt"):
            raise InvalidRequest(f"return_tensors is {return_tensors!r}; expected 'pt' or None")
        longest = max_length or self.model_max_length
        frame = 2 * add_special_tokens
        rows = [self.own.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if truncation in (True, "longest_first"):
            rows = [row[: longest - frame] for row in rows]
        if add_special_tokens:
            rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
        length = longest if padding == "max_length" else max(map(len, rows), default=0)
        room = [length - len(row) if padding not in (False, "do_not_pad") else 0 for row in rows]
        masks = [[1] * len(row) + [0] * more for row, more in zip(rows, room, strict=True)]
        rows = [row + [self.pad_token_id] * more for row, more in zip(rows, room, strict=True)]
        if return_tensors is None:
            single = isinstance(text, str)
            return BatchEncoding(rows[0] if single else rows, masks[0] if single else masks)
        if len({len(row) for row in rows}) > 1:
            raise InvalidRequest("texts of different lengths make no tensor", hint="padding='max_length'")
        return BatchEncoding(torch.tensor(rows), torch.tensor(masks))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self(text, add_special_tokens=add_special_tokens).input_ids
        return ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as the vocabulary has them."""
        return self.own.tokens(self.own.encode(text))

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of token ids.

        Args:
            skip_special_tokens: leave out start, end and padding.
        """
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else [*token_ids]
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id}
        return self.own.decode([one for one in ids if not (skip_special_tokens and one in special)])

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of token ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token as the vocabulary has it, or those of several; of an unknown one the end's."""
        ids = [self.own.index(token) for token in ([tokens] if isinstance(tokens, str) else tokens)]
        found = [self.eos_token_id if index is None else index for index in ids]
        return found[0] if isinstance(tokens, str) else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """The token of an id, or those of several."""
        return self.own.tokens([ids])[0] if isinstance(ids, int) else self.own.tokens(ids)
