"""A loaded model: its facts, resolving requests against them, and the execution of calls."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from limner.backends.base import AuxiliaryNetwork, Backend
from limner.catalogue.catalogue import trigger_words_of
from limner.catalogue.facts import make_facts, read_card
from limner.catalogue.files import CatalogueFiles
from limner.catalogue.layout import CARD
from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidCheckpoint, InvalidRequest
from limner.generation.calls import Answer, Call
from limner.generation.no_effect import without_effect
from limner.generation.passes import plan_of
from limner.generation.preview import PREVIEWS, LatentPreview
from limner.images.assets import Assets
from limner.images.checks import check_images
from limner.images.inputs import InputImages, map_inputs
from limner.images.picture import Picture, pixel_hash
from limner.images.pixels import to_images
from limner.prompts.tokenizer import Tokenizer
from limner.request import Control, GenerationRequest, ImagePrompt, Lora
from limner.request.facts import ModelFacts
from limner.request.loras import with_loras
from limner.request.networks import UsedAdapter, UsedControl, UsedImagePrompt
from limner.request.resolve import Files, PictureSpec, ResolvedRequest, check_refiner, resolve
from limner.request.templates import with_final_prompts
from limner.settings import default_cache_dir
from limner.weights.checkpoint import Checkpoint, files_hash, weights_hash

from .adapters import AdapterLibrary
from .answers import CallExecutor
from .controls import ControlLibrary
from .image_prompts import ImagePromptLibrary
from .options import LoadOptions
from .provenance import environment, record_of

if TYPE_CHECKING:
    from limner.safety.checkers import ImageChecker
    from limner.safety.policy import Policy


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint in memory. `Source.load` makes one.

    Attributes:
        name: Name as it was asked for: "picturebook", a folder, a single file, a hub id.
        revision, variant: Revision and variant as they were asked for.
        tokenizers: Tokenizer of each text encoder.
        backend: Runs the networks.
        warnings: What the user should know about how the model was found and read.
        lora_dirs, embedding_dirs, control_dirs, image_prompt_dirs: Folders with adapters and networks, as
            `load` takes them.
        assets: Opens the input images of requests.
        words: Words that stand for a file of textual inversion, whatever its name.
        wildcards_dirs, styles_files: Files that prompts are made of, as `load` takes them.
        options: Options that it was loaded with; a refiner is loaded with the same.
        cache_dir: Folder for hashes, graphs and tuning.
        policy: Safety policy for what it draws; None for "off".
        checkers: Image checkers of the policy, by name.
        controls: Control networks that requests name.
        image_prompts: IP-Adapters that requests name.
    """

    name: str
    revision: str | None
    variant: str | None
    checkpoint: Checkpoint
    scheduler: SchedulerConfig
    tokenizers: Mapping[str, Tokenizer]
    backend: Backend
    warnings: tuple[str, ...] = ()
    lora_dirs: tuple[Path, ...] = ()
    embedding_dirs: tuple[Path, ...] = ()
    control_dirs: tuple[Path, ...] = ()
    image_prompt_dirs: tuple[Path, ...] = ()
    words: Mapping[str, Path] = field(default_factory=dict)
    wildcards_dirs: tuple[Path, ...] = ()
    styles_files: tuple[Path, ...] = ()
    assets: Assets = field(default_factory=Assets)
    options: LoadOptions = field(default_factory=LoadOptions)
    cache_dir: Path = field(default_factory=default_cache_dir)
    policy: "Policy | None" = None
    checkers: Mapping[str, "ImageChecker"] = field(default_factory=dict)
    controls: ControlLibrary = field(init=False, repr=False)
    image_prompts: ImagePromptLibrary = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Not when they are first asked for, as several threads do that.
        unet, downscale = self.checkpoint.unet_config, self.checkpoint.vae_config.downscale
        object.__setattr__(self, "controls", ControlLibrary(unet, downscale, self.control_dirs))
        object.__setattr__(self, "image_prompts", ImagePromptLibrary(unet, self.image_prompt_dirs))

    @cached_property
    def facts(self) -> ModelFacts:
        """What resolving a request needs to know of the model."""
        return make_facts(
            self.checkpoint.architecture,
            self.scheduler,
            name=self.name,
            revision=self.revision,
            variant=self.variant,
            zero_negative=self.checkpoint.zero_negative,
            parameters=self.parameters,
            defaults=self._card.get("defaults", {}),
        )

    def resolve(self, request: GenerationRequest, images: InputImages | None = None) -> ResolvedRequest:
        """Fill in every default, choose a seed where none is given, and find all files that the request
        names.

        Args:
            images: Opens the request's images; what it has opened can be shared with `picture_of`.

        Raises:
            InvalidRequest: The request is beyond this model.
            ModelNotFound, InvalidCheckpoint, UnsupportedModel: A network that cannot be found or used.
        """
        images = images or InputImages()
        request = map_inputs(request, lambda name, source: self.assets.locate(source, name))
        resolved = resolve(
            request,
            self.facts,
            self._files(images),
            styles_files=self.styles_files,
            wildcards_dirs=self.wildcards_dirs,
        )
        return replace(resolved, warnings=(*resolved.warnings, *without_effect(resolved, self.facts)))

    def check_prompts(self, resolved: ResolvedRequest) -> tuple[str, ...]:
        """Check all texts of a resolved request against the safety policy.

        Returns:
            A warning for each rule that flags the request.

        Raises:
            PromptRefused: The policy refuses it.
        """
        if self.policy is None:
            return ()
        from limner.safety.prompts import check_request, find_trigger_words

        words_of = cache(self.adapters.words), cache(trigger_words_of)  # folders and files are read once
        decision = check_request(resolved, self.policy, partial(find_trigger_words, *words_of))
        decision.raise_if_blocked()
        return decision.warnings

    @property
    def checks_images(self) -> bool:
        """Whether the safety policy has rules about images."""
        return self.policy is not None and bool(self.policy.image_rules)

    def released(self, picture: Picture) -> Picture:
        """A finished image after the image rules of the safety policy: as it is, or blurred.

        Raises:
            ImageRefused: The policy blocks it.
        """
        if self.policy is None or not self.checks_images:
            return picture
        from limner.safety.images import check_images, released

        [decision] = check_images([np.asarray(picture)], self.policy, self.checkers)
        return released(picture, decision)

    def _files(self, images: InputImages) -> Files:
        """Finds what a request names."""
        if (catalogue := self.options.catalogue) is None:
            return _Files(self, images)
        return CatalogueFiles(catalogue, self.facts, images=images, searches=True)

    def with_final_prompts(self, request: GenerationRequest) -> GenerationRequest:
        """A request for one image with a seed, its prompts final: styles applied, wildcards chosen, and the
        LoRAs that they name among its `loras`.

        Raises:
            InvalidRequest: A style or wildcard that does not exist, or a prompt that cannot be read.
        """
        return with_loras(with_final_prompts(request, self.styles_files, self.wildcards_dirs))

    @cached_property
    def adapters(self) -> AdapterLibrary:
        """LoRAs and textual inversions that requests name."""
        return AdapterLibrary(self.checkpoint, self.lora_dirs, self.embedding_dirs, self.words)

    def auxiliary_networks(self, picture: PictureSpec) -> frozenset[AuxiliaryNetwork]:
        """The networks besides the model's own that an image needs."""
        encoders = map(self.image_prompts.networks, picture.image_prompts)
        return frozenset[AuxiliaryNetwork](picture.controls).union(*encoders)

    def fetch(self, request: GenerationRequest) -> None:
        """Download the networks that a request names besides the model, so that `resolve` finds them here.

        Safe to call from any thread. Raises as `resolve`.
        """
        if self.options.catalogue is None:
            self.controls.fetch(request.controls)
            self.image_prompts.used(request.image_prompts)

    def check_refines(self, first: "Model", picture: PictureSpec) -> None:
        """Raise InvalidRequest unless this model can take over an image from another."""
        check_refiner(self.facts, first.facts, picture)
        plan, start = plan_of(picture.passes[-1], first.scheduler), picture.request.refiner_start
        if start is not None and not 0 < plan.step_at(start) < len(plan.timesteps):
            raise InvalidRequest(
                f"refiner_start is {start}, which leaves one model none of the {len(plan.timesteps)} steps",
                fields=("refiner_start",),
            )

    @cached_property
    def executor(self) -> CallExecutor:
        """Executes the calls of generations with this model."""
        vocabulary = self._card.get("words")
        options = {"attention": self.options.attention, "offload": self.options.offload}
        return CallExecutor(
            self.name,
            self.checkpoint,
            self.scheduler,
            self.tokenizers,
            self.backend,
            self.adapters,
            self.image_prompts,
            vocabulary,
            options,
        )

    def group(self, call: Call) -> Hashable:
        """What calls must have in common to share a forward pass."""
        return self.executor.group(call)

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """Execute calls of one `group`. Raises as `CallExecutor.answer`."""
        return self.executor.answer(calls)

    def picture(
        self,
        image: Tensor,
        spec: PictureSpec,
        warnings: Sequence[str],
        refiner: "Model | None" = None,
        asked: GenerationRequest | None = None,
    ) -> Picture:
        """A finished image [1, 3, H, W] with its record. Arguments as of `record_of`."""
        drawn = to_images(image)[0]
        return Picture(drawn, record_of(self, spec, warnings, refiner, asked, pixel_hash(drawn)))

    @property
    def family(self) -> str:
        """ "sd1", "sd2", "xl", "xl_refiner" or "custom"."""
        return self.checkpoint.family

    @cached_property
    def parameters(self) -> int:
        """Number of weights in all networks."""
        return self.checkpoint.parameters

    @cached_property
    def geometry(self) -> str:
        """A short hash over the networks' shapes: what figures about speed hold for."""
        read = self.checkpoint
        configs = read.unet_config, read.vae_config, tuple(read.text_configs.values())
        return hashlib.sha256(repr(configs).encode()).hexdigest()[:12]

    @cached_property
    def identity(self) -> dict[str, str]:
        """Name, family and hashes for the record of an image: "sha256" of all weights, and "part NAME" of
        each part that replaces the model's own."""
        replaced = self.checkpoint.replaced
        return {
            "name": self.name,
            "family": self.family,
            "sha256": weights_hash(self.checkpoint, self.cache_dir),
            **{f"part {name}": files_hash(files, self.cache_dir) for name, files in replaced.items()},
        }

    def environment(self) -> dict[str, str | int]:
        """What must agree, besides the request and the weights, to get the same bits."""
        return environment(self.backend, self.options.prediction_type)

    @cached_property
    def _card(self) -> dict[str, Any]:
        return _read_card(self.checkpoint.folder / CARD, self.checkpoint.vae_config.latent_channels)

    @cached_property
    def preview(self) -> LatentPreview | None:
        """Map from latents to previews: the card's, else that of the family; None if neither has one."""
        preview: LatentPreview | None = self._card.get("preview", PREVIEWS.get(self.facts.family))
        return preview


@dataclass(frozen=True)
class _Files:
    """Finds what a request names among a model's files."""

    model: Model
    images: InputImages

    def adapters(self, loras: Sequence[Lora]) -> tuple[UsedAdapter, ...]:
        return self.model.adapters.used(loras)

    def controls(self, controls: Sequence[Control]) -> tuple[UsedControl, ...]:
        return self.model.controls.used(controls)

    def image_prompts(self, prompts: Sequence[ImagePrompt]) -> tuple[UsedImagePrompt, ...]:
        return self.model.image_prompts.used(prompts)

    def image_size(self, source: str) -> tuple[int, int]:
        return self.images.size(source)

    def check_images(self, request: GenerationRequest) -> tuple[str, ...]:
        return check_images(request, self.images)


def _read_card(path: Path, channels: int) -> dict[str, Any]:
    """`limner.json` next to `model_index.json`: the model's own defaults for a request, all its words if
    those are few, and the map for previews of its latents.

    Args:
        channels: Channels of the latents.
    """
    card = read_card(path)
    try:
        if "words" in card:
            card["words"] = frozenset(map(str, card["words"]))
        if "preview" in card:
            card["preview"] = LatentPreview.of(card["preview"])
            if len(card["preview"].weights) != channels:
                raise ValueError(f"preview has weights of other than {channels} channels")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(f"{path} is broken: {error}") from None
    return card
