"""ControlNets: the network, called as diffusers calls it, and the pipelines that keep to its picture."""

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
from limner.nn.controlnet import ControlNetConfig
from limner.pipeline.calls import ReadControl
from limner.pipeline.controlling import Controlled, guess_shares, residual_weights
from limner.request import Control, GenerationRequest
from limner.weights.control import read_control

from .components import Network, NetworkConfig, state_of
from .drawing import Answers
from .files import Place, refuse
from .pictures import Pictures, pixels_of, size_of
from .pipelines import Ask, Controls, DiffusionPipeline, Prompts, Size
from .stable_diffusion import (
    AskXL,
    AskXLPicture,
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
    """What is added to each skip of the U-Net, and to its middle."""

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor


class ControlNetModel(Network, limner.nn.controlnet.ControlNetModel):
    """A ControlNet."""

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> ControlNetConfig:
        return ControlNetConfig.from_dict(values)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[ControlNetConfig, Mapping[str, Tensor]]:
        """That of a file of its own. Raises as `limner.weights.control.read_control`."""
        if config is not None:
            raise InvalidRequest("config is not offered: the file tells it", hint="leave it out")
        file = read_control(path)
        if not isinstance(file.config, ControlNetConfig):
            raise UnsupportedModel(f"{file.path} is a T2I-Adapter, not a ControlNet")
        return file.config, file.load().state_dict()

    @classmethod
    def from_unet(cls, unet: Any, **own: Any) -> Self:
        """One to be trained, as of `limner.nn.controlnet.ControlNetModel`."""
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
        """What is added to a U-Net.

        Args:
            sample, timestep, encoder_hidden_states, added_cond_kwargs: as of `UNet2DConditionModel`.
            controlnet_cond: pictures [B, 3, H, W] in [0, 1].
            guess_mode: add less to the outer skips, from a tenth on.

        Raises:
            InvalidRequest: an argument that is not offered.
        """
        refuse(without, ("class_labels", "timestep_cond", "attention_mask", "cross_attention_kwargs"))
        more = dict(added_cond_kwargs or {})
        pooled, sizes = more.pop("text_embeds", None), more.pop("time_ids", None)
        refuse(more, ())
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        embedding = self.embed(controlnet_cond)
        added = super().forward(sample, timesteps, encoder_hidden_states, embedding, pooled, sizes)
        guesses = guess_mode and not self.config.global_pool_conditions
        shares = guess_shares(len(added)) if guesses else [1.0] * len(added)
        *down, middle = (one * (conditioning_scale * s) for one, s in zip(added, shares, strict=True))
        return ControlNetOutput(tuple(down), middle) if return_dict else (tuple(down), middle)


class MultiControlNetModel(nn.Module):
    """Several ControlNets, whose additions are added up.

    Attributes:
        nets: the ControlNets.
    """

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets: Any = nn.ModuleList(controlnets)

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | Path, **where: Any) -> Self:
        """Those of a folder `controlnet`, beside it of `controlnet_1`, and so on, as `save_pretrained` writes
        them. Arguments and errors as of `ControlNetModel.from_pretrained`."""
        inside = where.pop("subfolder", None)
        nets: list[ControlNetModel] = []
        while True:
            number = f"_{len(nets)}" if nets else ""
            root = pretrained_model_path if inside else f"{pretrained_model_path}{number}"
            own = {**where, "subfolder": f"{inside}{number}" if inside else None}
            place, _ = Place.of(root, own)
            if nets and not place.has("config.json"):
                return cls(nets)
            nets.append(ControlNetModel.from_pretrained(root, **own))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write each into a folder of its own, whose names are the given one, and with _1, _2 … behind."""
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
        """What is added to a U-Net. As `ControlNetModel`, with a picture and a scale for each."""
        added = [
            net(sample, timestep, encoder_hidden_states, picture, scale, **{**more, "return_dict": False})
            for net, picture, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True)
        ]
        downs, middles = zip(*added, strict=True)
        return tuple(sum(one) for one in zip(*downs, strict=True)), sum(middles)


@dataclass(frozen=True)
class AskControl(Ask):
    """What calls with ControlNets may say besides; numbers are one for all, or one for each."""

    controlnet_conditioning_scale: Numbers = 1.0
    guess_mode: bool = False
    control_guidance_start: Numbers = 0.0
    control_guidance_end: Numbers = 1.0


@dataclass(frozen=True)
class AskControlXL(AskControl, AskXL):
    """What calls of XL with ControlNets may say."""


@dataclass(frozen=True)
class AskControlXLPicture(AskControl, AskXLPicture):
    """What calls of XL with ControlNets may say that begin with a picture."""


class _Controlled(DiffusionPipeline):
    """Pictures that keep to others.

    Attributes:
        controlnet: a `ControlNetModel`, or a `MultiControlNetModel`, which a list of them becomes.
    """

    ask: ClassVar[type[Ask]] = AskControl
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
    def _controlnet(cls, place: Place, kind: str, variant: str | None) -> Any:
        net = MultiControlNetModel if kind == "MultiControlNetModel" else ControlNetModel
        hub = {one.name: getattr(place.access, one.name) for one in fields(place.access)}
        return net.from_pretrained(
            place.reference, subfolder="controlnet", revision=place.revision, variant=variant, **hub
        )

    def _controls(self, image: Any, ask: Any, size: Size) -> Controls:
        """Have ControlNets read their pictures.

        Raises:
            InvalidRequest: as many pictures and numbers as ControlNets are needed.
        """
        several = isinstance(self.controlnet, MultiControlNetModel)
        nets: list[Any] = [*self.controlnet.nets] if several else [self.controlnet]
        images = [*image] if several and isinstance(image, list | tuple) else [image]
        if len(images) != len(nets):
            raise InvalidRequest(f"{len(images)} control pictures were given for {len(nets)} ControlNets")
        scales, starts, ends = (
            _for_each(getattr(ask, name), len(nets), name)
            for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        )
        answers, found = Answers(self._model), []
        for net, one, scale, start, end in zip(nets, images, scales, starts, ends, strict=True):
            if state_of(net) != net.as_read:
                raise InvalidRequest(
                    "the weights of a ControlNet are not those of its file", hint="save it and load it again"
                )
            mode = "guess" if ask.guess_mode else "balanced"
            own = {"model": str(net.path), "image": "given", "weight": float(scale), "mode": mode}
            try:
                control = Control(**own, start=float(start), end=float(end))  # type: ignore[arg-type]
            except ValidationError as error:
                raise InvalidRequest(f"a ControlNet: {error.errors()[0]['msg']}") from None
            [used] = self._model.controls_of(GenerationRequest(prompt="", controls=(control,)))
            pictures = pixels_of(one, size)
            times = ask.pictures if len(pictures) == 1 else ask.num_images_per_prompt
            pictures = pictures.repeat_interleave(times, dim=0)
            if len(pictures) != ask.pictures:
                raise InvalidRequest(f"{len(pictures) // times} control pictures for {ask.prompts} prompts")
            read = answers([ReadControl(used, row[None]) for row in pictures])
            weights = residual_weights(control, used)
            spares = ask.guess_mode or used.pooled
            found.append((control, [Controlled(used, one, weights, spares) for [one] in read]))

        def at(call: int, calls: int) -> list[tuple[Controlled, ...]]:
            rows = [
                each
                for control, each in found
                if call / calls >= control.start and (call + 1) / calls <= control.end
            ]
            return [tuple(row[picture] for row in rows) for picture in range(ask.pictures)]

        return at


def _for_each(given: Numbers, count: int, name: str) -> list[float]:
    """A number for each of `count` ControlNets. Raises InvalidRequest for a list of another length."""
    numbers = [given] * count if isinstance(given, int | float) else list(given)
    if len(numbers) != count:
        raise InvalidRequest(f"{name} has {len(numbers)} numbers for {count} ControlNets")
    return numbers


def _size_of(image: Any, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """Height and width in pixels, or those of control pictures, cut to multiples of 8."""
    if height and width:
        return height, width
    own = size_of(image)
    return height or own[0], width or own[1]


class StableDiffusionControlNetPipeline(_Controlled, StableDiffusionPipeline):
    """Text to picture that keeps to a control picture."""

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
        """Draw pictures.

        Args:
            image: control pictures; of several ControlNets a list with as many.
            height, width: in pixels; None is the control picture's.
            given: as in diffusers; `AskControl` has them all.
        """
        height, width = _size_of(image, height, width)
        own = {"prompt": prompt, "height": height, "width": width}
        return self._from_noise({**own, **given}, controls=partial(self._controls, image))


class StableDiffusionXLControlNetPipeline(_Controlled, StableDiffusionXLPipeline):
    """Text to picture with XL that keeps to a control picture."""

    component_names = (*StableDiffusionXLPipeline.component_names, "controlnet")
    ask = AskControlXL

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
        """Draw pictures. As `StableDiffusionControlNetPipeline`; `AskControlXL` has all arguments."""
        height, width = _size_of(image, height, width)
        own = {"prompt": prompt, "prompt_2": prompt_2, "height": height, "width": width}
        return self._from_noise({**own, **given}, controls=partial(self._controls, image))


class StableDiffusionControlNetImg2ImgPipeline(_Controlled, StableDiffusionImg2ImgPipeline):
    """Picture to picture that keeps to a control picture."""

    component_names = (*StableDiffusionImg2ImgPipeline.component_names, "controlnet")
    defaults: ClassVar[Mapping[str, Any]] = {"controlnet_conditioning_scale": 0.8}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        image: Pictures | None = None,
        control_image: Any = None,
        strength: float = 0.8,
        **given: Any,
    ) -> Any:
        """Draw a picture anew, as `control_image` says. `AskControl` has all arguments."""
        ask = self._asked({"prompt": prompt, **given})
        controls = partial(self._controls, control_image)
        return self._from_picture(ask, image, strength, controls=controls)


class StableDiffusionXLControlNetImg2ImgPipeline(_Controlled, StableDiffusionXLImg2ImgPipeline):
    """Picture to picture with XL that keeps to a control picture."""

    component_names = (*StableDiffusionXLImg2ImgPipeline.component_names, "controlnet")
    ask = AskControlXLPicture
    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 5.0, "controlnet_conditioning_scale": 0.8}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: Pictures | None = None,
        control_image: Any = None,
        strength: float = 0.8,
        **given: Any,
    ) -> Any:
        """Draw a picture anew, as `control_image` says. `AskControlXLPicture` has all arguments."""
        ask = self._asked({"prompt": prompt, "prompt_2": prompt_2, **given})
        controls = partial(self._controls, control_image)
        return self._from_picture(ask, image, strength, controls=controls)


class StableDiffusionControlNetInpaintPipeline(_Controlled, StableDiffusionInpaintPipeline):
    """Inpainting that keeps to a control picture."""

    component_names = (*StableDiffusionInpaintPipeline.component_names, "controlnet")
    defaults: ClassVar[Mapping[str, Any]] = {"controlnet_conditioning_scale": 0.5}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        **given: Any,
    ) -> Any:
        """Draw a picture anew where a mask is white, as `control_image` says.

        Args:
            height, width: in pixels; None is the control picture's.
            given: as in diffusers; `AskControl` has them all.
        """
        ask = self._asked({"prompt": prompt, **given})
        size = self._sized(*_size_of(control_image, height, width))
        controls = partial(self._controls, control_image)
        return self._inpaint(ask, image, mask_image, size, strength, controls=controls)


class StableDiffusionXLControlNetInpaintPipeline(_Controlled, StableDiffusionXLInpaintPipeline):
    """Inpainting with XL that keeps to a control picture."""

    component_names = (*StableDiffusionXLInpaintPipeline.component_names, "controlnet")
    ask = AskControlXLPicture
    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 5.0}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.9999,
        **given: Any,
    ) -> Any:
        """Draw a picture anew where a mask is white. As `StableDiffusionControlNetInpaintPipeline`;
        `AskControlXLPicture` has all arguments."""
        ask = self._asked({"prompt": prompt, "prompt_2": prompt_2, **given})
        size = self._sized(*_size_of(control_image, height, width))
        controls = partial(self._controls, control_image)
        return self._inpaint(ask, image, mask_image, size, strength, controls=controls)
