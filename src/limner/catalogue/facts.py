"""The facts about a checkpoint that resolving a request needs, from its configs and headers alone."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidCheckpoint, InvalidRequest, PickleRefused, UnsupportedModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts

from .architecture import Architecture
from .catalogue import Entry
from .configs import PartConfig
from .headers import PICKLE_HINT, read_header
from .layout import CARD, PICKLE_SUFFIXES, TOKENIZER_OF, how_to_give
from .pipelines import SCHEDULER_CONFIG, read_pipeline
from .single import read_single


def model_facts(entry: Entry) -> ModelFacts:
    """The facts about a checkpoint, as those of the loaded model.

    Raises:
        InvalidCheckpoint: A config or header is missing or malformed, or networks do not fit together.
        ModelNotFound: The folder has no weights of this variant.
        UnsupportedModel: A network that Limner cannot run.
        PickleRefused: A pickle, whose networks are known only once it is opened.
    """
    path = entry.path
    if path.suffix.lower() in PICKLE_SUFFIXES and path.is_file():
        raise PickleRefused(f"{path} is a pickle: its networks are known when it is opened", hint=PICKLE_HINT)
    try:
        if path.is_file():
            single = read_single(path, read_header(path))
            configs, scheduler_config = single.configs, single.scheduler_config
            zero_negative, parameters = single.zero_negative, single.parameters
        else:
            pipeline = read_pipeline(path, entry.variant)
            configs, scheduler_config = pipeline.configs, pipeline.scheduler_config
            zero_negative, parameters = pipeline.index.zero_negative, entry.parameters
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    architecture = architecture_of(path, configs)
    return make_facts(
        architecture,
        read_scheduler(path, architecture, scheduler_config),
        name=entry.name,
        revision=entry.revision,
        variant=entry.variant,
        zero_negative=zero_negative,
        parameters=parameters,
        defaults=read_card(path / CARD).get("defaults", {}),
    )


def architecture_of(source: Path, configs: Mapping[str, PartConfig]) -> Architecture:
    """The networks of a checkpoint, which must be there and fit together.

    Args:
        source: The checkpoint, for messages.

    Raises:
        InvalidCheckpoint, UnsupportedModel: They do not; the mismatch is named.
    """
    texts = {part: config for part in TOKENIZER_OF if isinstance(config := configs.get(part), CLIPTextConfig)}
    unet, vae = configs.get("unet"), configs.get("vae")
    if isinstance(unet, UNetConfig) and isinstance(vae, VAEConfig) and texts:
        architecture = Architecture(unet, vae, texts)
        architecture.check(source)
        return architecture
    lacking = [part for part in ("unet", "vae") if part not in configs]
    lacking += [] if texts else ["text_encoder"]
    raise InvalidCheckpoint(
        f"{source} is a part of a model only: it lacks {', '.join(lacking)}",
        hint="; ".join(map(how_to_give, lacking)),
    )


def read_scheduler(source: Path, architecture: Architecture, values: Mapping[str, Any]) -> SchedulerConfig:
    """The scheduler of a checkpoint, from its config. Raises UnsupportedModel for unsupported settings."""
    try:
        return replace(SchedulerConfig.from_dict(values), family=architecture.family)
    except ValueError as error:
        raise UnsupportedModel(f"{source / SCHEDULER_CONFIG}: {error}") from None


def make_facts(
    architecture: Architecture,
    scheduler: SchedulerConfig,
    *,
    name: str,
    revision: str | None,
    variant: str | None,
    zero_negative: bool,
    parameters: int,
    defaults: Mapping[str, Any],
) -> ModelFacts:
    """The facts about a model with these networks. Arguments as the attributes of `ModelFacts`."""
    unet, vae = architecture.unet, architecture.vae
    layers = min(text.num_hidden_layers for text in architecture.texts.values())
    return ModelFacts(
        name=name,
        revision=revision,
        variant=variant,
        family=architecture.family,
        kind=architecture.kind,
        unet=unet,
        scheduler=scheduler,
        sizes=architecture.sizes,
        zero_negative=zero_negative,
        guides_itself=unet.time_cond_proj_dim is not None,
        latent_channels=vae.latent_channels,
        downscale=vae.downscale,
        scaling_factor=vae.scaling_factor,
        vae_channels=vae.block_out_channels[0],
        text_layers=layers - architecture.skipped_layers,
        parameters=parameters,
        defaults=defaults,
    )


def read_card(path: Path) -> dict[str, Any]:
    """`limner.json` next to `model_index.json`: above all the model's own defaults for a request.

    Raises:
        InvalidCheckpoint: It cannot be read, or its defaults are not those of a request.
    """
    if not path.is_file():
        return {}
    try:
        card = dict(json.loads(path.read_text(encoding="utf-8")))
        GenerationRequest.of({"prompt": "", **card["defaults"]})
    except (ValueError, KeyError, TypeError, InvalidRequest) as error:
        raise InvalidCheckpoint(f"{path} is broken: {error}") from None
    return card
