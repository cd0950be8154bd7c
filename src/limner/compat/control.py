"""ControlNet: the network with diffusers' interface, and the pipelines that use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

import limner.nn.controlnet
from limner.errors import InvalidRequest, UnsupportedModel
from limner.generation.calls import ReadControl
from limner.generation.controls import guess_shares, residual_weights
from limner.generation.networks import Controlled
from limner.nn.control_config import ControlNetConfig
from limner.nn.unet import Conditions
from limner.request import Control
from limner.weights.control import read_control

from .calling import CallArguments, Controls, Prompts, Size
from .families import XLArguments, XLImageArguments
from .files import ComponentLocation, reject_unsupported
from .images import ImageInput, pixel_tensor, size_of
from .lockstep import EngineCalls
from .network import Network, NetworkConfig, weights_version
from .pipelines import DiffusionPipeline
from .stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from .values import Output

Numbers = float | Sequence[float]


@dataclass
class ControlNetOutput(Output):
    """Residuals for each skip connection of the U-Net and for its middle block."""

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor


class ControlNetModel(Network, limner.nn.controlnet.ControlNetModel):
    """A ControlNet."""

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> ControlNetConfig:
        return ControlNetConfig.from_dict(values)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[ControlNetConfig, Mapping[str, Tensor]]:
        """Read a ControlNet file. Raises as `limner.weights.control.read_control`."""
        if config is not None:
            raise InvalidRequest("config is not supported: it is detected from the file", hint="leave it out")
        file = read_control(path)
        if not isinstance(file.config, ControlNetConfig):
            raise UnsupportedModel(f"{file.path} is a T2I-Adapter, not a ControlNet")
        return file.config, file.load().state_dict()

    @classmethod
    def from_unet(cls, unet: Any, **own: Any) -> Self:
        """Return an untrained ControlNet for a U-Net, as `limner.nn.controlnet.ControlNetModel.from_unet`
        does."""
        made = super().from_unet(unet, **own)
        assert isinstance(made, cls)
        made.config = NetworkConfig(made.config.to_dict(), made.config)
        return made

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        *,
        guess_mode: bool = False,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **without: Any,
    ) -> ControlNetOutput | tuple[tuple[Tensor, ...], Tensor]:
        """Return the residuals to add to a U-Net.

        Args:
            sample, timestep, encoder_hidden_states, added_cond_kwargs: As in `UNet2DConditionModel.forward`.
            controlnet_cond: Control images [B, 3, H, W] in [0, 1].
            conditioning_scale: Factor on all residuals.
            guess_mode: Whether to scale the residuals from 0.1 at the outermost skip to 1 at the middle
                block.

        Raises:
            InvalidRequest: An argument is not supported.
        """
        reject_unsupported(
            without, ("class_labels", "timestep_cond", "attention_mask", "cross_attention_kwargs")
        )
        more = dict(added_cond_kwargs or {})
        pooled, sizes = more.pop("text_embeds", None), more.pop("time_ids", None)
        reject_unsupported(more, ())
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        embedding = self.embed(controlnet_cond)
        added = super().forward(
            sample, timesteps, encoder_hidden_states, embedding, Conditions(pooled, sizes)
        )
        guesses = guess_mode and not self.config.global_pool_conditions
        shares = guess_shares(len(added)) if guesses else [1.0] * len(added)
        *down, middle = (one * (conditioning_scale * s) for one, s in zip(added, shares, strict=True))
        return ControlNetOutput(tuple(down), middle) if return_dict else (tuple(down), middle)


class MultiControlNetModel(nn.Module):
    """Several ControlNets whose residuals are summed.

    Attributes:
        nets: The ControlNets.
    """

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets: Any = nn.ModuleList(controlnets)

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | Path, **where: Any) -> Self:
        """Load the ControlNets of a folder `controlnet` and its siblings `controlnet_1`, `controlnet_2` …, as
        `save_pretrained` writes them. Arguments and errors are those of `ControlNetModel.from_pretrained`."""
        inside = where.pop("subfolder", None)
        nets: list[ControlNetModel] = []
        while True:
            number = f"_{len(nets)}" if nets else ""
            root = pretrained_model_path if inside else f"{pretrained_model_path}{number}"
            own = {**where, "subfolder": f"{inside}{number}" if inside else None}
            location, _ = ComponentLocation.from_arguments(root, own)
            if nets and not location.has("config.json"):
                return cls(nets)
            nets.append(ControlNetModel.from_pretrained(root, **own))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write each ControlNet into its own folder: `save_directory`, then with the suffixes _1, _2 …"""
        for number, net in enumerate(self.nets):
            net.save_pretrained(f"{save_directory}_{number}" if number else save_directory)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        **more: Any,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the summed residuals, as `ControlNetModel.forward` with one image and one scale per
        ControlNet."""
        added = [
            net(sample, timestep, encoder_hidden_states, picture, scale, **{**more, "return_dict": False})
            for net, picture, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True)
        ]
        downs, middles = zip(*added, strict=True)
        return tuple(sum(one) for one in zip(*downs, strict=True)), sum(middles)


@dataclass(frozen=True)
class ControlNetArguments(CallArguments):
    """Arguments of ControlNet pipeline calls. A number is for all ControlNets; a list has one per
    ControlNet."""

    controlnet_conditioning_scale: Numbers = 1.0
    guess_mode: bool = False
    control_guidance_start: Numbers = 0.0
    control_guidance_end: Numbers = 1.0


@dataclass(frozen=True)
class XLControlNetArguments(ControlNetArguments, XLArguments):
    """Arguments of XL ControlNet calls."""


@dataclass(frozen=True)
class XLControlNetImageArguments(ControlNetArguments, XLImageArguments):
    """Arguments of XL ControlNet calls for image-to-image and inpainting."""


class _Controlled(DiffusionPipeline):
    """Base of the ControlNet pipelines.

    Attributes:
        controlnet: A `ControlNetModel`, or a `MultiControlNetModel`. A list of ControlNets becomes the
            latter.
    """

    arguments_class: ClassVar[type[CallArguments]] = ControlNetArguments
    steps_offset: ClassVar[int | None] = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "controlnet":
            value = MultiControlNetModel(value) if isinstance(value, list | tuple) else value
            nets = value.nets if isinstance(value, MultiControlNetModel) else [value]
            if strange := [net for net in nets if not isinstance(net, ControlNetModel)]:
                raise InvalidRequest(
                    f"controlnet is a {type(strange[0]).__module__}.{type(strange[0]).__name__}, expected "
                    "one of Limner's",
                    hint="import it from limner",
                )
        super().__setattr__(name, value)

    @classmethod
    def _controlnet(cls, location: ComponentLocation, kind: str, variant: str | None) -> Any:
        net = MultiControlNetModel if kind == "MultiControlNetModel" else ControlNetModel
        hub = {one.name: getattr(location.access, one.name) for one in fields(location.access)}
        return net.from_pretrained(
            location.reference, subfolder="controlnet", revision=location.revision, variant=variant, **hub
        )

    def _controls(self, image: Any, arguments: Any, size: Size) -> Controls:
        """Embed the control images, and return the function that gives the active ControlNets at each call.

        Raises:
            InvalidRequest: The number of control images, scales, starts or ends is not that of ControlNets or
                prompts; or the weights of a ControlNet were changed after loading.
        """
        several = isinstance(self.controlnet, MultiControlNetModel)
        nets: list[Any] = [*self.controlnet.nets] if several else [self.controlnet]
        images = [*image] if several and isinstance(image, list | tuple) else [image]
        if len(images) != len(nets):
            raise InvalidRequest(f"{len(images)} control images were given for {len(nets)} ControlNets")
        scales, starts, ends = (
            _for_each(getattr(arguments, name), len(nets), name)
            for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        )
        execute, found = EngineCalls(self._model), []
        for net, one, scale, start, end in zip(nets, images, scales, starts, ends, strict=True):
            if weights_version(net) != net.version_as_read:
                raise InvalidRequest(
                    "the weights of a ControlNet are not those of its file", hint="save it and load it again"
                )
            mode = "guess" if arguments.guess_mode else "balanced"
            own = {"model": str(net.path), "image": "given", "weight": float(scale), "mode": mode}
            try:
                control = Control(**own, start=float(start), end=float(end))  # type: ignore[arg-type]
            except ValidationError as error:
                raise InvalidRequest(f"a ControlNet: {error.errors()[0]['msg']}") from None
            [used] = self._model.controls.used([control])
            pictures = pixel_tensor(one, size)
            times = arguments.image_count if len(pictures) == 1 else arguments.num_images_per_prompt
            pictures = pictures.repeat_interleave(times, dim=0)
            if len(pictures) != arguments.image_count:
                raise InvalidRequest(
                    f"{len(pictures) // times} control images for {arguments.prompt_count} prompts"
                )
            read = execute([ReadControl(used, row[None]) for row in pictures])
            weights = residual_weights(control, used)
            spares = arguments.guess_mode or used.pooled
            found.append((control, [Controlled(used, one, weights, spares) for [one] in read]))

        def at(call: int, calls: int) -> list[tuple[Controlled, ...]]:
            rows = [
                per_image
                for control, per_image in found
                if call / calls >= control.start and (call + 1) / calls <= control.end
            ]
            return [tuple(row[picture] for row in rows) for picture in range(arguments.image_count)]

        return at


def _for_each(given: Numbers, count: int, name: str) -> list[float]:
    """Return one number for each of `count` ControlNets. Raises InvalidRequest for a list of another
    length."""
    numbers = [given] * count if isinstance(given, int | float) else list(given)
    if len(numbers) != count:
        raise InvalidRequest(f"{name} has {len(numbers)} numbers for {count} ControlNets")
    return numbers


def _size_of(image: Any, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """Return height and width in pixels; for None, those of the control images, rounded down to multiples of
    8."""
    if height and width:
        return height, width
    own = size_of(image)
    return height or own[0], width or own[1]


class StableDiffusionControlNetPipeline(_Controlled, StableDiffusionPipeline):
    """Text to image with ControlNets."""

    component_names = (*StableDiffusionPipeline.component_names, "controlnet")

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        **given: Any,
    ) -> Any:
        """Generate images.

        Args:
            image: Control images; for several ControlNets, a list with one item per ControlNet.
            height, width: Image size in pixels; None is the size of the control image.
            given: Further arguments of diffusers; `ControlNetArguments` lists them.
        """
        height, width = _size_of(image, height, width)
        own = {"prompt": prompt, "height": height, "width": width}
        return self._text_to_image({**own, **given}, controls=partial(self._controls, image))


class StableDiffusionXLControlNetPipeline(_Controlled, StableDiffusionXLPipeline):
    """Text to image with XL and ControlNets."""

    component_names = (*StableDiffusionXLPipeline.component_names, "controlnet")
    arguments_class = XLControlNetArguments

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        **given: Any,
    ) -> Any:
        """Generate images as `StableDiffusionControlNetPipeline` does; `XLControlNetArguments` lists all
        arguments."""
        height, width = _size_of(image, height, width)
        own = {"prompt": prompt, "prompt_2": prompt_2, "height": height, "width": width}
        return self._text_to_image({**own, **given}, controls=partial(self._controls, image))


class StableDiffusionControlNetImg2ImgPipeline(_Controlled, StableDiffusionImg2ImgPipeline):
    """Image to image with ControlNets."""

    component_names = (*StableDiffusionImg2ImgPipeline.component_names, "controlnet")
    defaults: ClassVar[Mapping[str, Any]] = {"controlnet_conditioning_scale": 0.8}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        image: ImageInput | None = None,
        control_image: Any = None,
        strength: float = 0.8,
        **given: Any,
    ) -> Any:
        """Generate variations of `image`, guided by `control_image`. `ControlNetArguments` lists all
        arguments."""
        arguments = self._parse_arguments({"prompt": prompt, **given})
        controls = partial(self._controls, control_image)
        return self._image_to_image(arguments, image, strength, controls=controls)


class StableDiffusionXLControlNetImg2ImgPipeline(_Controlled, StableDiffusionXLImg2ImgPipeline):
    """Image to image with XL and ControlNets."""

    component_names = (*StableDiffusionXLImg2ImgPipeline.component_names, "controlnet")
    arguments_class = XLControlNetImageArguments
    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: ImageInput | None = None,
        control_image: Any = None,
        strength: float = 0.8,
        **given: Any,
    ) -> Any:
        """Generate variations of `image`, guided by `control_image`. `XLControlNetImageArguments` lists all
        arguments."""
        arguments = self._parse_arguments({"prompt": prompt, "prompt_2": prompt_2, **given})
        controls = partial(self._controls, control_image)
        return self._image_to_image(arguments, image, strength, controls=controls)


class StableDiffusionControlNetInpaintPipeline(_Controlled, StableDiffusionInpaintPipeline):
    """Inpainting with ControlNets."""

    component_names = (*StableDiffusionInpaintPipeline.component_names, "controlnet")
    defaults: ClassVar[Mapping[str, Any]] = {"controlnet_conditioning_scale": 0.5}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        **given: Any,
    ) -> Any:
        """Regenerate an image where the mask is white, guided by `control_image`.

        Args:
            height, width: Output size in pixels; None is the size of the control image.
            given: Further arguments of diffusers; `ControlNetArguments` lists them.
        """
        arguments = self._parse_arguments({"prompt": prompt, **given})
        size = self._size_or_default(*_size_of(control_image, height, width))
        controls = partial(self._controls, control_image)
        return self._inpaint(arguments, image, mask_image, size, strength, controls=controls)


class StableDiffusionXLControlNetInpaintPipeline(_Controlled, StableDiffusionXLInpaintPipeline):
    """Inpainting with XL and ControlNets."""

    component_names = (*StableDiffusionXLInpaintPipeline.component_names, "controlnet")
    arguments_class = XLControlNetImageArguments
    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 5.0}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.9999,
        **given: Any,
    ) -> Any:
        """Regenerate an image where the mask is white, as `StableDiffusionControlNetInpaintPipeline` does.
        `XLControlNetImageArguments` lists all arguments."""
        arguments = self._parse_arguments({"prompt": prompt, "prompt_2": prompt_2, **given})
        size = self._size_or_default(*_size_of(control_image, height, width))
        controls = partial(self._controls, control_image)
        return self._inpaint(arguments, image, mask_image, size, strength, controls=controls)
